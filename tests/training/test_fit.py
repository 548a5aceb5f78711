from types import SimpleNamespace

import numpy as np
import pytest

from tfllmrec.config import ModelConfig
from tfllmrec.data.batches import Sequences
from tfllmrec.data.queries import Ragged
from tfllmrec.models.item_weights import ItemWeightSettings, centred_unit, solve_item_weights
from tfllmrec.training.fit import set_item_weights

pytestmark = pytest.mark.tf


@pytest.mark.parametrize(("form", "rank"), [("auto", 2), ("exact", 2), ("low_rank", 2), ("low_rank", 6)])
def test_item_weights_are_solved_as_the_config_says_and_without_what_is_held_out(form, rank):
    rng = np.random.default_rng(0)
    items = Ragged.from_rows([rng.permutation(6)[:4] for _ in range(20)], np.int64)
    held_out = Ragged(np.arange(80) % 8 == 7, items.offsets)  # the last event of every other history
    ratings = Ragged(np.full(80, np.nan, np.float32), items.offsets)
    sequences, text = Sequences(items, ratings, held_out, 6), rng.normal(size=(6, 3)).astype(np.float32)
    settings = ItemWeightSettings(0.8, 1.0, 0.5, 2.0)
    said = {}
    model = SimpleNamespace(
        config=ModelConfig(item_weights=form, item_weights_rank=rank),
        set_item_weights=lambda weights: said.update(all=weights),
        set_holdout=lambda weights, counts: said.update(kept=weights, counts=counts),
    )
    set_item_weights(model, sequences, text, settings, neighbours=5)

    kept = Ragged.from_rows([row[: 4 - user % 2] for user, row in enumerate(items)], np.int64)
    for name, histories in (("all", items), ("kept", kept)):
        expected = solve_item_weights(histories, 6, settings, centred_unit(text), form=form, rank=rank, neighbours=5)
        assert np.array_equal(said[name].neighbours, expected.neighbours)
        assert np.array_equal(said[name].weights, expected.weights)
    assert said["counts"].tolist() == np.bincount(kept.values, minlength=6).tolist()

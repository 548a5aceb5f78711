from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ModelConfig
from tfllmrec.data.batches import Sequences
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.models.item_weights import ItemWeightSettings, centred_unit, solve_item_weights
from tfllmrec.training import fit
from tfllmrec.training.fit import CLOSINGS, STRENGTHS, choose_gates, set_item_weights

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
        config=ModelConfig(item_weights=form, item_weights_rank=rank, item_weights_neighbours=5),
        set_item_weights=lambda weights: said.update(all=weights),
        set_holdout=lambda weights, counts: said.update(kept=weights, counts=counts),
    )
    set_item_weights(model, sequences, text, settings)

    kept = Ragged.from_rows([row[: 4 - user % 2] for user, row in enumerate(items)], np.int64)
    for name, histories in (("all", items), ("kept", kept)):
        expected = solve_item_weights(histories, 6, settings, centred_unit(text), form=form, rank=rank, neighbours=5)
        assert np.array_equal(said[name].neighbours, expected.neighbours)
        assert np.array_equal(said[name].weights, expected.weights)
    assert said["counts"].tolist() == np.bincount(kept.values, minlength=6).tolist()


class Gates:
    """Two terms of four items; c and d as in TermGates, a gate of one half, no scales."""

    trainable = True

    def __init__(self, strength=1.0, closing=1.0):
        self.dense_strength, self.closing = tf.Variable(strength), tf.Variable(closing)

    def factors(self, counts):
        return self.dense_strength * 0.5 * tf.ones(4), (1.0 - self.closing * 0.5) * tf.ones(4)


def gated(gates, rows):
    rng = np.random.default_rng(1)
    terms = rng.normal(size=(2, rows, 4)).astype(np.float32)
    return SimpleNamespace(gates=gates, train_counts=None, score_terms=lambda queries: terms), terms


def test_weighed_scores_are_those_of_the_gates_whatever_the_batches():
    gates = Gates()
    model, (dense, sparse) = gated(gates, 700)
    queries = Queries.from_histories([[0]] * 700)
    weighed = fit._Weighed(model, queries)
    for c, d, size in ((1.0, 1.0, 512), (0.25, 0.5, 512), (2.0, 0.0, 300)):
        gates.dense_strength.assign(c)
        gates.closing.assign(d)
        came = np.concatenate([weighed.score(batch) for batch in queries.batches(size)])
        np.testing.assert_allclose(came, c * 0.5 * dense + (1 - d * 0.5) * sparse, rtol=1e-5)


@pytest.mark.parametrize("best", [(0.0, 0.0), (0.25, 0.75), (2.0, 1.0)])
def test_gates_are_chosen_on_a_planted_surface(best, monkeypatch):
    gates, tried = Gates(0.5, 0.5), []
    model, _ = gated(gates, 3)

    def value(*_, **__):
        tried.append((float(gates.dense_strength), float(gates.closing)))
        return -abs(tried[-1][0] - best[0]) - abs(tried[-1][1] - best[1])

    monkeypatch.setattr(fit, "evaluate", value)
    monkeypatch.setattr(fit, "selection_value", lambda result: result)
    for climb in (True, False):
        gates.dense_strength.assign(0.5)
        gates.closing.assign(0.5)
        tried.clear()
        assert choose_gates(model, Queries.from_histories([[0]] * 3), None, {}, climb=climb) == 0
        assert (float(gates.dense_strength), float(gates.closing)) == best
        assert len(tried) == len(set(tried))
        assert (len(tried) == len(STRENGTHS) * len(CLOSINGS)) != climb

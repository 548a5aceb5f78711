from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import (
    DataConfig,
    ExperimentConfig,
    SplitConfig,
)
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.queries import Queries
from tfllmrec.errors import ModelError
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import MAX_EXACT_ITEMS
from tfllmrec.training import defaults


def stand_in(lengths, n_items, n_events=None):
    """What ``sizes`` looks at of a split, of any size."""
    queries = Queries.from_histories([np.zeros(n, np.int64) for n in lengths])
    return SimpleNamespace(
        train_queries=lambda: queries,
        dataset=SimpleNamespace(n_items=n_items),
        train=range(sum(lengths) if n_events is None else n_events),
        train_counts=np.ones(n_items, np.int64),
    )


@pytest.mark.parametrize(
    ("length", "batch_size"),
    [(4, 256), (8, 128), (15, 64), (30, 32), (200, 16), (1, 256)],  # 1000 / length, a power of 2, 16 to 256
)
def test_a_step_has_about_as_many_targets_whatever_the_histories(length, batch_size):
    config = ExperimentConfig()
    said = defaults.sizes(stand_in([length] * 20_000, 100), config)
    assert config.training.batch_size == batch_size
    assert f"training.batch_size {batch_size}: {length} events per history on average" in said


@pytest.mark.parametrize(
    ("users", "batch_size"), [(1, 16), (250, 16), (64 * 32, 32), (64 * 128 - 1, 64), (64 * 128, 128)]
)
def test_few_users_make_small_batches_so_that_an_epoch_has_many_steps(users, batch_size):
    config = ExperimentConfig()
    said = defaults.sizes(stand_in([8] * users, 100), config)
    assert config.training.batch_size == batch_size
    assert any(line.startswith(f"training.batch_size {batch_size}: {users:,} histories") for line in said) == (
        batch_size < 128
    )


@pytest.mark.parametrize(("longest", "length"), [(3, 50), (50, 50), (51, 100), (120, 150), (5000, 200)])
def test_the_encoder_sees_nine_in_ten_histories_whole(longest, length):
    config = ExperimentConfig()
    said = defaults.sizes(stand_in([1] * 8 + [longest] * 2 + [9000], 100), config)
    assert config.model.history_length == length
    which = "longest of 50, 100, 150, 200" if longest > 200 else "shortest of 50, 100, 150, 200 that is enough"
    reason = f"the {which}; 90 % of histories have at most {longest} events"
    assert said[0] == f"model.history_length {length}: {reason}"


@pytest.mark.parametrize(("events", "dropout", "id_dropout"), [(9_900, 0.4, 0.3), (10_000, 0.2, 0.1)])
def test_less_noise_where_items_have_many_events(events, dropout, id_dropout):
    config = ExperimentConfig()
    defaults.sizes(stand_in([5], 100, events), config)
    assert (config.model.dropout, config.model.id_dropout) == (dropout, id_dropout)


@pytest.mark.parametrize(("events", "epochs"), [(1_000, 12), (2_000_000, 6), (20_000_000, 4)])
def test_fewer_epochs_for_more_events(events, epochs):
    config = ExperimentConfig()
    defaults.sizes(stand_in([5], 100, events), config)
    assert config.training.epochs == epochs


@pytest.mark.parametrize(
    ("items", "negatives"), [(defaults.FULL_SOFTMAX_ITEMS, 0), (defaults.FULL_SOFTMAX_ITEMS + 1, 8192)]
)
def test_sampled_negatives_where_the_catalogue_does_not_fit(items, negatives):
    config = ExperimentConfig()
    defaults.sizes(stand_in([5], items), config)
    assert config.training.negatives == negatives


def test_blocks_of_scores_stay_in_memory():
    config = ExperimentConfig()
    assert not any("evaluation.batch_size" in line for line in defaults.sizes(stand_in([5], 300_000), config))
    assert any("evaluation.batch_size 200" in line for line in defaults.sizes(stand_in([5], 1_000_000), config))
    assert config.evaluation.batch_size == 200


def test_no_catalogue_is_too_large_for_behaviour_but_for_ease():
    config = ExperimentConfig()
    assert not any("without ease" in line for line in defaults.sizes(stand_in([5], MAX_EXACT_ITEMS), config))
    config = ExperimentConfig(model={"terms": ["behaviour"]})
    said = "\n".join(defaults.sizes(stand_in([5], MAX_EXACT_ITEMS + 1), config))
    assert "without ease, ease_text: 30,001 items" in said
    assert config.evaluation.baselines == [
        "popularity", "recent_popularity", "popularity_by_segment", "markov", "item_knn", "ials", "text", "star",
        "emcdr", "domain_map", "two_tower",
    ]  # fmt: skip
    assert config.model.terms == ["behaviour"]


def test_ials_is_left_out_where_its_grid_takes_too_long(monkeypatch):
    monkeypatch.setattr(defaults, "MAX_IALS_EVENTS", 9)
    for events, left_out in ((9, False), (10, True)):
        config = ExperimentConfig()
        said = "\n".join(defaults.sizes(stand_in([events], 7), config))
        assert (f"without ials: {events} training events" in said) == left_out
        assert ("ials" not in config.evaluation.baselines) == left_out


def test_what_is_set_stays():
    config = ExperimentConfig(
        training={"epochs": 3, "batch_size": 7, "negatives": 5},
        model={"dropout": 0.0, "id_dropout": 1.0, "history_length": 7},
    )
    before = config.model_copy(deep=True)
    assert defaults.sizes(stand_in([5], 100), config) == []
    assert config == before


# Texts of users -------------------------------------------------------------------------------------------------------


def split_with_texts(user=True):
    """Five users with three events each, all with comments, of which two are alike."""
    rows = [
        (f"u{user}", f"i{item}", 100 * user + item, "so so" if item else f"on {user}")
        for user in range(5)
        for item in range(3)
    ]
    events = pd.DataFrame(rows, columns=["user", "item", "timestamp", "comment"])
    users = pd.DataFrame({"user": [f"u{user}" for user in range(5)], "about": [f"I am {u}" for u in "abcde"]})
    config = DataConfig(fields={name: {"kind": "text"} for name in ["comment", *["about"] * user]})
    dataset = dataset_from_frames(events, None, users if user else None, config=config)
    return make_split(dataset, SplitConfig(kind="leave_last_out"), 0)


def chosen_user_text(split, given, texts="an encoder", **model):
    config, told = ExperimentConfig(), []
    config.model = config.model.model_copy(update={"user_text": given, **model})
    data = TrainingData(split, np.zeros((split.dataset.n_items, 1)), user_texts=texts)
    said = defaults.choose_user_text(data, config, told.append)
    return config.model.user_text, said, told


def test_texts_of_users_are_read_if_there_are_any_and_not_too_many(chain_split, monkeypatch):
    split = split_with_texts()
    assert chosen_user_text(split, None)[:2] == (
        True, ["model.user_text true: event.comment, user.about, 11 different texts"]
    )  # fmt: skip
    assert chosen_user_text(split, True)[:2] == (True, []) and chosen_user_text(split, False)[:2] == (False, [])
    monkeypatch.setattr(defaults, "MAX_TEXTS", 10)
    assert chosen_user_text(split, None)[:2] == (
        False, ["model.user_text false: event.comment, user.about, 11 different texts, more than 10"]
    )  # fmt: skip
    assert chosen_user_text(split, True)[0] is True
    assert chosen_user_text(chain_split, None) == (False, [], [])
    for unread in ({"fields": False}, {"terms": ["feedback"]}):
        assert chosen_user_text(split, None, **unread) == (False, [], [])


def test_without_an_encoder_texts_are_not_read_and_nobody_may_ask_for_it():
    assert chosen_user_text(split_with_texts(), None, texts=None)[:2] == (False, [])
    with pytest.raises(ModelError, match=r"expected an encoder, .*event\.comment, user\.about\), found none"):
        chosen_user_text(split_with_texts(), True, texts=None)


def test_a_text_without_a_time_may_be_of_the_future():
    (warning,) = chosen_user_text(split_with_texts(), None)[2]
    assert warning.startswith("warning: user.about: a text of a user has no time") and "event.comment" not in warning
    assert chosen_user_text(split_with_texts(user=False), None)[2] == []
    assert chosen_user_text(split_with_texts(), False)[2] == []

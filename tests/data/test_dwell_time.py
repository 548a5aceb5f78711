"""How long users stay with items, as a weight of events: ``data.fields.NAME.weighs``."""

import json

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, FieldConfig, ItemWeightSettings, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.schema import LEAST_SHARE, Schema
from tfllmrec.models.fitting import TrainingData
from tfllmrec.training.item_weight_search import item_weights_result

WEIGHS = {"watch_time": FieldConfig(weighs=True)}
KINDS = ["view", "view", "play", "play", "skip", "impression"]


def shop(times, kinds=None, fields=WEIGHS):
    """One user for each of the lists ``times``, with an event for each time; ``kinds`` are those of every user."""
    rows = [
        (f"u{user}", f"i{place}", place, *([kinds[place]] if kinds else []), time)
        for user, own in enumerate(times)
        for place, time in enumerate(own)
    ]
    names = ["user", "item", "order", *(["kind"] if kinds else []), "watch_time"]
    return dataset_from_frames(pd.DataFrame(rows, columns=names), config=DataConfig(fields=fields))


def weights_of(schema, **columns):
    return schema.event_weights({f"event.{name}": schema[f"event.{name}"].encode(v) for name, v in columns.items()})


def test_events_shorter_than_the_median_count_less_and_none_counts_nothing():
    schema = shop([[10, 20, 30, 40, 0, -5]]).schema  # 0 and -5 are no dwell times
    assert schema.dwell_time.name == "watch_time" and schema.dwell_time.medians == {"": 25}
    found = weights_of(schema, watch_time=["5", "20", "25", "900", "0", "-1", "", "long"])
    assert found.tolist() == pytest.approx([0.2, 0.8, 1, 1, LEAST_SHARE, 1, 1, 1])
    assert Schema.from_dict(json.loads(json.dumps(schema.as_dict()))) == schema
    assert "events count less below any event 25" in schema.dwell_time.line()


def test_each_kind_has_a_median_of_its_own_and_only_choices_are_weighed():
    schema = shop([[2, 4, 100, 300, 1, 1]], KINDS).schema
    assert schema.dwell_time.medians == {"": 52, "view": 3, "play": 200}
    kinds = ["view", "play", "Play", "skip", "impression", "", "gift"]
    plain = schema["event.kind"].code_weights[schema["event.kind"].encode(kinds)]
    found = weights_of(schema, kind=kinds, watch_time=["1.5"] * 7)
    # No kind counts as the most frequent choice, an unknown kind by the median of all choices.
    usual = {"play": LEAST_SHARE, "view": 1 / 2}[schema["event.kind"].vocabulary[0]]
    share = [1 / 2, LEAST_SHARE, LEAST_SHARE, 1, 1, usual, LEAST_SHARE]
    np.testing.assert_allclose(found, plain * share, rtol=1e-6)
    assert found[3] < 0 == found[4]


def test_medians_are_those_of_the_training_events():
    data = shop([[10, 20, 30, 5000, 9000]] * 4)
    assert make_split(data, SplitConfig(), seed=1).schema.dwell_time.medians == {"": 20}


def test_without_the_setting_a_note_names_it():
    for name in ("dwell_s", "watchTime", "time_spent", "seconds_watched", "play_duration", "ms_played", "time_on_page"):
        data = shop([range(40)], fields={})
        schema = dataset_from_frames(
            data.events[["user_id", "item_id", "order", "watch_time"]].rename(columns={"watch_time": name})
        ).schema
        assert schema.dwell_time is None and f"data.fields.{name}.weighs=true" in schema.notes[-1]
    assert not any("weighs" in note for note in shop([range(40)]).schema.notes)
    assert not shop([range(40)]).schema.notes


def readers(n_users=150):
    """Users who stay long with articles of one topic of four, click on as many of another, and go on with the first."""
    rng, rows = np.random.default_rng(0), []
    for user in range(n_users):
        wanted, other = rng.permutation(4)[:2]
        own = [f"a{12 * wanted + i:02}" for i in rng.permutation(12)[:6]]
        short = [f"a{12 * other + i:02}" for i in rng.permutation(12)[:4]]
        seen = rng.permutation([(item, "90") for item in own[:4]] + [(item, "3") for item in short])
        rows += [
            (f"u{user:03}", item, place, time)
            for place, (item, time) in enumerate([*seen, (own[4], "90"), (own[5], "")])
        ]
    return pd.DataFrame(rows, columns=["user", "item", "order", "watch_time"])


def test_what_users_stay_with_decides_what_comes_next_only_with_the_setting():
    settings, found = ItemWeightSettings(decay=1.0, l2=100.0, next_item=0.0, co_occurrence=1.0, text=0.0), {}
    for fields in ({}, WEIGHS):
        split = make_split(dataset_from_frames(readers(), config=DataConfig(fields=fields)), SplitConfig(), seed=1)
        data = TrainingData(split, np.zeros((48, 1), np.float32))
        found[bool(fields)] = item_weights_result(data, settings).metrics["recall@10"]
        assert split.train_counts.sum() == 8 * 150  # a short event is one even so
    assert found[True] > 0.9 and found[False] < 0.7

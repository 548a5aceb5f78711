from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_datasets import made

from tfllmrec.config import FieldConfig, SplitConfig
from tfllmrec.data import make_split
from tfllmrec.data.cleaning.tags import TAG_TYPES
from tfllmrec.errors import ConfigError

EVENTS = [("a", f"i{step}", 3, 10 * step) for step in range(1, 6)] + [("b", "i1", 3, 10), ("b", "i2", 3, 10)]
TAGS = [
    ("a", "i9", "too early", 9.0),
    ("a", "i1", "at once", 10.0),
    ("a", "i1", "a day later", 19.0),
    ("a", "i1", "at once", 19.5),
    ("a", "i3", "before the next", 49.0),
    ("a", "i3", "with the last", 50.0),
    ("a", "i3", "at some time", np.nan),
    ("b", "i1", "of both", 10.0),
    ("c", "i1", "a stranger's", 20.0),
]


def tagged(tags=TAGS, events=EVENTS, **config):
    table = pd.DataFrame(tags, columns=list(TAG_TYPES)).astype(TAG_TYPES)
    return replace(made(events, **config), tags=table)


def texts(dataset):
    events = dataset.with_tags_written.events
    return {(user, text) for user, text in zip(events["user_id"], events["tags_written"], strict=True) if text}


def test_an_event_has_the_tags_until_the_next_event():
    assert texts(tagged()) == {
        ("a", "at once, a day later"), ("a", "before the next"), ("a", "with the last"), ("b", "of both")
    }  # fmt: skip
    events = tagged().with_tags_written.events
    own = events[events["user_id"] == "a"]
    assert dict(zip(own["timestamp_s"], own["tags_written"], strict=True)) == {
        10.0: "at once, a day later", 20.0: "", 30.0: "", 40.0: "before the next", 50.0: "with the last"
    }  # fmt: skip
    both = events[events["user_id"] == "b"]["tags_written"].tolist()
    assert both == ["", "of both"]  # at the same time: the last of them


def test_no_history_has_a_tag_of_the_time_of_its_target_or_later():
    split = make_split(tagged(), SplitConfig(kind="leave_last_out"), 1)
    assert split.schema["event.tags_written"].kind == "text"
    for queries, said in ((split.test, ["at once, a day later", "", "", "before the next"]),
                          (split.validation, ["at once, a day later", "", ""])):  # fmt: skip
        row = queries.user_ids.tolist().index("a")
        assert queries.fields["event.tags_written"][row].tolist() == said


@pytest.mark.parametrize("kind", ["leave_random_out", "random", "cold_items"])
def test_no_history_has_a_text_of_the_users_future(kind):
    rng = np.random.default_rng(0)
    events = [
        (f"u{user:02}", f"i{item}", 3, 10 * step)
        for user in range(20)
        for step, item in enumerate(rng.permutation(12)[:8])
    ]
    dataset = tagged([(user, item, f"at {time}", time + 5.0) for user, item, _, time in events], events)
    split = make_split(dataset, SplitConfig(kind=kind, validation_share=0.2, test_share=0.2), 1)
    time_of = dataset.events.set_index(["user_id", "item_index"])["timestamp_s"].map(int)
    for queries in (split.validation, split.test):
        texts = queries.fields["event.tags_written"]
        for row, user in enumerate(queries.user_ids):
            known, first = time_of[user][queries.history[row]], time_of[user][queries.targets[row]].min()
            assert texts[row].tolist() == [f"at {time}" if time < first else "" for time in known]


def test_the_data_set_stays_as_it_is_where_tags_have_no_place():
    timeless = [(*tag[:3], np.nan) for tag in TAGS]
    strangers = [("c", *tag[1:]) for tag in TAGS]
    early = [(*tag[:3], 1.0) for tag in TAGS]
    for dataset in (tagged(timeless), tagged(strangers), tagged(early), made(EVENTS)):
        assert dataset.with_tags_written is dataset
    assert (
        replace(tagged(), ordered=False).with_tags_written.events.columns.tolist() == tagged().events.columns.tolist()
    )
    assert "tags_written" in tagged().with_tags_written.events
    backwards = tagged()
    backwards.events["timestamp_s"] = backwards.events["timestamp_s"].to_numpy()[::-1]
    assert backwards.with_tags_written is backwards


def test_the_tags_are_joined_once():
    dataset = tagged()
    assert dataset.with_tags_written is dataset.with_tags_written
    again = dataset.with_tags_written
    assert again.with_tags_written is again


def test_the_settings_of_the_field_are_accepted_before_and_after_the_split():
    unread = {"tags_written": FieldConfig(use=False)}
    dataset = replace(tagged(), fields=unread)
    assert "event.tags_written" not in [field.key for field in dataset.schema]
    split = make_split(dataset, SplitConfig(kind="leave_last_out"), 1)
    assert "event.tags_written" not in [field.key for field in split.schema]
    with pytest.raises(ConfigError, match=r"data\.fields\.tags_written: no table has such a column"):
        made(EVENTS, fields=unread)

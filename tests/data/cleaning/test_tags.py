import json

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import Dataset, dataset_from_frames, make_split
from tfllmrec.data.cleaning.tags import no_tags, with_tags
from tfllmrec.text.template import ItemTemplate

# Three users with five events each, one an hour; items a to e, tagged f. In leave-last-out, e is u's test item.
EVENTS = pd.DataFrame(
    [(u, i, 10 * n + k) for k, u in enumerate("uvw") for n, i in enumerate("abcde"[k:] + "abcde"[:k], start=1)],
    columns=["user", "item", "timestamp"],
)
ITEMS = pd.DataFrame({"item": list("abcdef"), "title": [f"Title {i}" for i in "abcdef"]})
GIVEAWAY = "seen by u at last"


def dataset(tags, events=EVENTS, items=ITEMS, columns="user item tag timestamp", **config):
    tags = None if tags is None else pd.DataFrame(tags, columns=columns.split())
    return dataset_from_frames(events, items, config=DataConfig(name="made", **config), tags=tags)


def text(split):
    return dict(zip(split.items.item_id, split.items.get("tags", [""] * split.dataset.n_items), strict=True))


def left_out(split):
    return {f.what.partition(": ")[2]: f.count for f in split.findings if f.action == "dropped"}


def test_a_tag_that_gives_the_target_away_does_not_reach_the_text():
    # u has a, b, c, d, e at 10, 20, 30, 40, 50: d is for validation, e for the test.
    plain = [("w", "e", "fine", 31), ("u", "a", "early", 10)]
    for tag in [
        ("u", "e", GIVEAWAY, 51),  # on the test item, after it
        ("u", "e", GIVEAWAY, 5),  # on the test item, before anything else
        ("u", "d", GIVEAWAY, 12),  # on the validation item
        ("u", "a", GIVEAWAY, 45),  # on an old item, when the validation item was known
        ("stranger", "e", GIVEAWAY, 41),  # by a user who has no events, in the held-out period
    ]:
        split = make_split(dataset([*plain, tag]), SplitConfig(kind="leave_last_out"), 0)
        template = ItemTemplate.from_items(split.items)
        assert template.template == "{title} [{tags}]"
        texts = template.texts(split.items)
        assert texts[:2] == ["Title a [early]", "Title b"] and texts[4] == "Title e [fine]"
        assert GIVEAWAY not in "".join(texts)
        assert sum(left_out(split).values()) == 1
    # Without the rule it is there: the same tag in time, on an item that is not held out.
    split = make_split(dataset([*plain, ("u", "c", GIVEAWAY, 30)]), SplitConfig(kind="leave_last_out"), 0)
    assert text(split)["c"] == GIVEAWAY and not split.findings


def test_reasons_are_counted_once_each():
    tags = [
        ("u", "e", "t", 5),
        ("u", "d", "t", 50),
        ("u", "a", "t", 31),
        ("u", "a", "t", None),
        ("x", "a", "t", 40),
        ("x", "a", "t", 39),
        ("", "b", "t", 41),
        ("u", "b", "t", 30),
    ]
    split = make_split(dataset(tags), SplitConfig(kind="leave_last_out"), 0)
    assert left_out(split) == {
        "its user and item are those of a held-out event": 2,
        "it is later than the last training event of its user, or has no time": 2,
        "its user has no event, and it is not older than all held-out events": 2,
    }
    assert text(split) == {"a": "t", "b": "t", "c": "", "d": "", "e": "", "f": ""}
    assert split.findings[0].example == "user 'u', item 'd', tag 't'"
    assert "tags: 2 dropped: left out of the items' text: " in str(split.findings[0])


def test_cold_users_tell_nothing():
    split = make_split(dataset(None), SplitConfig(kind="cold_users"), 0)
    [tested] = split.test.user_ids
    [trained] = set(split.train.user_id)
    tags = [(tested, "f", GIVEAWAY, 1), (trained, "f", "fine", 50), (trained, "a", "late", 99)]
    split = make_split(dataset(tags), SplitConfig(kind="cold_users"), 0)
    assert text(split)["f"] == "fine" and GIVEAWAY not in "".join(text(split).values())
    assert left_out(split) == {
        "its user has events, but none in training": 1,
        "it is later than the last training event of its user, or has no time": 1,
    }


def test_random_split():
    first = make_split(dataset(None), SplitConfig(kind="leave_random_out"), 0)
    target = ITEMS.item[first.test.targets[0][0]]
    user = first.test.user_ids[0]
    last = first.train.timestamp_s[first.train.user_id == user].max()
    tags = [(user, target, GIVEAWAY, 0), (user, "f", "late", last + 1), (user, "f", "fine", last)]
    split = make_split(dataset(tags), SplitConfig(kind="leave_random_out"), 0)
    assert text(split)["f"] == "fine" and GIVEAWAY not in "".join(text(split).values())


def test_global_time_takes_tags_before_the_validation_period():
    config = SplitConfig(kind="global_time", validation_share=0.2, test_share=0.2)
    start = make_split(dataset(None), config, 0).validation
    held_out = EVENTS.timestamp.sort_values().iloc[int(15 * 0.6)]
    assert len(start) and held_out == 40
    tags = [("u", "f", "before", 39), ("x", "f", "also", 39), ("u", "f", "late", 40), ("", "f", "gone", None)]
    split = make_split(dataset([*tags, ("u", "e", GIVEAWAY, 1)]), config, 0)
    assert text(split)["f"] == "also|before" and text(split)["e"] == ""
    assert left_out(split) == {
        "its user and item are those of a held-out event": 1,
        "it is not older than the validation period": 2,
    }


def test_cold_items_take_no_tags_of_held_out_pairs():
    config = SplitConfig(kind="cold_items", validation_share=0.2, test_share=0.2)
    cold = ITEMS.item[make_split(dataset(None), config, 0).test.targets[0][0]]
    split = make_split(dataset([("u", cold, GIVEAWAY, 1), ("x", cold, "fine", 99), ("u", "f", "late", 99)]), config, 0)
    assert (text(split)[cold], text(split)["f"]) == ("fine", "late")
    assert left_out(split) == {"its user and item are those of a held-out event": 1}


def test_repeated_pairs_are_held_out_though_they_are_trained_on():
    events = pd.DataFrame({"user": "u", "item": list("aabca"), "timestamp": range(5)})
    events = pd.concat([events, EVENTS.assign(user=EVENTS.user + "2")])
    split = make_split(dataset([("u", "a", GIVEAWAY, 1)], events, repeats="all"), SplitConfig(kind="leave_last_out"), 0)
    assert GIVEAWAY not in "".join(text(split).values())


@pytest.mark.parametrize("columns", ["user item tag", "item tag", "item tag timestamp"])
def test_tags_without_times_are_used_and_reported(columns):
    rows = [("u", "f", "late", 99), ("u", "e", GIVEAWAY, 99)]
    tags = pd.DataFrame(rows, columns=["user", "item", "tag", "timestamp"])[columns.split()]
    data = dataset(tags.to_numpy().tolist(), columns=columns)
    split = make_split(data, SplitConfig(kind="leave_last_out"), 0)
    untimed = "timestamp" not in columns
    assert text(split)["f"] == ("late" if untimed else "")
    assert (GIVEAWAY in text(split)["e"]) == (columns == "item tag")  # a known user's held-out item is never tagged
    said = [line for line in data.report.lines() if "no tag has a time" in line]
    assert len(said) == untimed and all("may have been written after the events that" in line for line in said)
    kept = [f for f in split.findings if f.action == "kept"]
    assert len(kept) == untimed and all("no times to compare with the split" in f.what for f in kept)


def test_events_without_times_cannot_be_compared_with_tags():
    data = dataset([("u", "f", "t", 9)], EVENTS[["user", "item"]])
    split = make_split(data, SplitConfig(), 0)
    assert split.kind == "leave_random_out" and text(split)["f"] == "t"
    assert [f.count for f in split.findings] == [1] and "no times to compare" in split.findings[0].what


def test_without_tags_the_catalogue_is_that_of_the_data():
    split = make_split(dataset(None), SplitConfig(), 0)
    assert split.items is split.dataset.items and "tags" not in split.items
    assert split.findings == [] and split.dataset.tags.empty


def test_tags_in_the_catalogue_are_kept_and_reported():
    items = ITEMS.assign(genres="Drama", tags=["own", *[""] * 5])
    data = dataset([("u", "a", "t", 9), ("u", "b", "t", 9)], items=items)
    split = make_split(data, SplitConfig(kind="leave_last_out"), 0)
    assert list(text(split).values())[:3] == ["own|t", "t", ""]
    [said] = [f for f in data.report.findings if "tags without a time" in f.what]
    assert (said.table, said.count, said.action) == ("items", 1, "kept")
    # As categories, too, they are tags.
    data = dataset(None, items=ITEMS.assign(tags="x|y"))
    assert data.items.categories[0] == "x|y"
    assert [f.count for f in data.report.findings if "tags without a time" in f.what] == [6]


def test_cleaning_of_tags():
    tags = [
        ("7.0", "a", "<b>Fun</b>", "9"),
        ("8.0", "a", "", "9"),
        ("9.0", "z", "x", "9"),
        (None, "a", "y", "soon"),
        ("1.0", "a", "z", "9000"),
    ]
    data = dataset(tags, max_bad_rows=1)
    assert data.tags.to_dict("list") == {
        "user_id": ["", "1", "7"],
        "item_id": ["a"] * 3,
        "tag": ["y", "z", "Fun"],
        "timestamp_s": [pytest.approx(np.nan, nan_ok=True), 9000.0, 9.0],
    }
    assert [str(t) for t in data.tags.dtypes] == ["str", "str", "str", "float64"]
    found = {f.what: (f.count, f.action) for f in data.report.findings if f.table == "tags"}
    assert found == {
        "user_id is an integer written as a float": (4, "repaired"),
        "no tag": (1, "dropped"),
        "the tagged item is not in the catalogue": (1, "dropped"),
        "HTML in tag": (1, "repaired"),
        "the time is neither a number nor a date: taken as unknown": (1, "repaired"),
        "the time lies before 1995 if it is in seconds since 1970; set data.time_format if it is not": (3, "kept"),
    }
    assert data.report.rows_in["tags"] == 5 == data.report.rows_kept["tags"] + 2


def test_tags_are_saved_fingerprinted_and_described(tmp_path):
    data = dataset([("u", "a", "t", 9), ("x", "f", "long tag", None)])
    data.save(tmp_path / "saved")
    back = Dataset.load(tmp_path / "saved")
    pd.testing.assert_frame_equal(back.tags, data.tags)
    assert back.fingerprint == data.fingerprint
    assert len({data.fingerprint, dataset(None).fingerprint, dataset([("u", "a", "T", 9)]).fingerprint}) == 3
    told = data.describe()
    assert (told["tags"], told["tags_with_time"]) == (2, 1)
    assert told["mean_text_characters"] == (6 * len("Title a") + len("t") + len("long tag")) / 6
    assert json.loads(json.dumps(told)) == told


def test_the_text_of_tags():
    items = pd.DataFrame({"item_id": ["a", "b", "c"]}, dtype="str")
    tags = pd.DataFrame({"item_id": list("aaa") + ["b"] * 25, "tag": ["slow", "Funny", "funny", *map(str, range(25))]})
    found = with_tags(items, tags).tags.tolist()
    assert found == ["Funny|slow", "|".join(sorted(map(str, range(25)))[:20]), ""]
    assert with_tags(items, no_tags()).tags.tolist() == ["", "", ""]

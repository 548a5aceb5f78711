"""The facts on the lists of answers."""

import json

import numpy as np
import pandas as pd
import pytest

from tfllmrec.server.lists import Items, context_of, entries_of, letters_and_script, lists_of, user_of
from tfllmrec.serving.layout import EXTRA, ITEMS


def strings(*rows):
    return np.array([[text.encode() for text in row] for row in rows], object)


def items(tmp_path, schema=(), **columns):
    (tmp_path / EXTRA).mkdir(exist_ok=True)
    pd.DataFrame({"item_id": ["a", "é", "c"], **columns}).to_parquet(tmp_path / EXTRA / ITEMS)
    return Items.of(tmp_path, {"schema": list(schema)})


def test_lengths_scores_unknown_ids_and_strata(tmp_path):
    about = items(tmp_path, stratum=["head", "tail", "cold"], train_events=[9, 1, 0])
    outputs = {
        "item_ids": strings(["a", "é"], ["c", ""], ["", ""], ["x", "a"]),
        "scores": np.array([[3, 1], [5, 0], [0, 0], [-1, np.nan]], np.float32),
        "unknown": np.array([0, 2, 1, 0], np.int32),
    }
    found = lists_of({"history": strings(["a", ""], ["x", "y"], ["", ""], ["", "a"])}, outputs, about)
    assert found.listed.tolist() == [2, 1, 0, 2]
    assert found.history_ids.tolist() == [1, 2, 0, 1]
    assert found.unknown_ids.tolist() == [0, 2, 1, 0]
    np.testing.assert_array_equal(found.best_score, [3, 5, np.nan, -1])
    np.testing.assert_array_equal(found.mean_score, [(3 + 1) / 2, 5, np.nan, -1])
    assert found.strata == {"head": 2, "tail": 1, "cold": 1, "unknown": 1} and found.texts == []


def test_what_an_answer_lacks_counts_as_absent(tmp_path):
    ids = strings(["a"], ["c"])
    assert lists_of({}, {"scores": np.zeros((2, 3))}, Items()) is None
    assert lists_of({}, {"item_ids": np.zeros((2, 3))}, Items()) is None
    found = lists_of({"history": np.zeros((3, 1))}, {"item_ids": ids, "scores": np.zeros(2), "unknown": ids}, Items())
    assert found.history_ids is None and found.unknown_ids.tolist() == [0, 0]
    assert np.isnan(found.best_score).all() and found.strata == {"unknown": 2}
    one = lists_of({"history": strings(["a", "b"]), "text": np.array([b"red"], object)}, {"item_ids": ids}, Items())
    assert one.history_ids.tolist() == [2, 2] and one.texts == [b"red", b"red"]
    none = lists_of({}, {"item_ids": np.zeros((2, 0), object)}, Items())
    assert none.listed.tolist() == [0, 0] and none.strata == {}
    assert items(tmp_path).strata([b"a"]) == {"unknown": 1}  # exported before there were strata


def test_categories_and_numbers_of_the_request_are_logged_and_nothing_else(tmp_path):
    schema = [
        {"name": "device", "owner": "request", "kind": "category"},
        {"name": "hour", "owner": "request", "kind": "number"},
        {"name": "note", "owner": "request", "kind": "text"},
        {"name": "session", "owner": "request", "kind": "id"},
        {"name": "age", "owner": "user", "kind": "number"},
        {"name": "kind", "owner": "event", "kind": "category"},
    ]
    about = items(tmp_path, schema)
    assert about.fields == {"device", "hour"}
    entries = [b"note=my address", b"device=t\0v", b"age=33", b"session=1", b"user_id=7", b"hour=" + b"9" * 99, b""]
    assert json.loads(context_of(entries, about.fields)) == {"device": "t�v", "hour": "9" * 64}
    assert context_of([b"note=x"], about.fields) is None
    many = frozenset(f"f{n}" for n in range(40))
    assert len(json.loads(context_of([f"f{n}=1".encode() for n in range(40)], many))) == 16


def test_entries_and_users():
    context = strings(["user_id=7", ""])
    assert entries_of(context, 2) == [[b"user_id=7", b""]] * 2
    assert entries_of(strings(["a"], ["b"]), 2) == [[b"a"], [b"b"]]
    for wrong in (None, np.array([b"user_id=7"], object), np.zeros((2, 1)), strings(["a"], ["b"], ["c"])):
        assert entries_of(wrong, 2) == [[], []]
    assert (user_of([b"x=1", b"user_id=7"]), user_of([b"user_id="]), user_of([])) == ("7", None, None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", (None, None)),
        (b"red car", (7, "LATIN")),
        ("чай 茶".encode(), (5, "CYRILLIC")),
        (b"12!", (3, "none")),
        (b"\xff", (1, "none")),
    ],
)
def test_the_length_and_script_of_a_text(text, found):
    assert letters_and_script(text) == found

import dataclasses
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tfllmrec.columns import ITEM, RATING, TIMESTAMP
from tfllmrec.data.cleaning.ids import clean_ids, lists, one_event_per_item
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.errors import DataError


def ids_of(*cells, dtype=None):
    """The ids, and the names of the masks with their rows."""
    ids = clean_ids(pd.Series(cells, dtype=dtype))
    masks = {name: np.flatnonzero(mask).tolist() for name, mask in vars(ids).items() if name != "text"}
    return ids.text.tolist(), {name: rows for name, rows in masks.items() if rows}


@pytest.mark.parametrize(
    ("cells", "dtype", "texts", "written_as_float"),
    [
        (["16.0", "16", ""], "str", ["16", "16", ""], [0]),
        (["16.", "17.00", "-3.0"], "str", ["16", "17", "-3"], [0, 1, 2]),
        (["16.0", "B00X", "16"], "str", ["16", "B00X", "16"], [0]),
        ([16.0, np.nan, 17.0], None, ["16", "", "17"], [0, 2]),
        ([16.0, None, 17.0], "Float64", ["16", "", "17"], [0, 2]),
        ([16.0, 16, "16.0", None], object, ["16", "16", "16", ""], [0, 2]),
        ([2.0**53 - 1], None, ["9007199254740991"], [0]),
        (["9007199254740991.0"], "str", ["9007199254740991"], [0]),
        (["1.234567e+6", "7"], "str", ["1234567", "7"], [0]),
        (["7.6561197E7"], "str", ["76561197"], [0]),  # Java
        (["1e+05", "99999", "100001"], "str", ["100000", "99999", "100001"], [0]),  # R
        (["1,5E+1", "16"], "str", ["15", "16"], [0]),  # a decimal comma
    ],
)
def test_integers_written_as_floats(cells, dtype, texts, written_as_float):
    found, masks = ids_of(*cells, dtype=dtype)
    assert found == texts
    assert masks.pop("written_as_float") == written_as_float
    assert not masks or list(masks) == ["of_two_types"]


@pytest.mark.parametrize(
    ("cells", "dtype", "inexact"),
    [
        ([7.65619797e16, 1], object, [0]),  # JSON
        ([1e17 + 16, 1e17 + 32, np.nan], None, [0, 1]),  # Parquet
        ([1e17, None], "Float64", [0]),
        ([16777216.0, 5.0], "float32", [0]),
        ([2048.0, 5.0], "float16", [0]),
        ([np.inf, 5.0], None, [0]),
        (["7.65611979709824e+16", "7.6561197970982403e+16"], "str", [0, 1]),
        (["76561197970982400.0", "5"], "str", [0]),
        (["7.65612E+16", "5"], "str", [0]),  # Excel
        (["7,65612E+16", "5"], "str", [0]),
        (["1.23457E+11", "12345"], "str", [0]),  # below 2**53, but with six of twelve digits
        (["1.23457e+06", "999999"], "str", [0]),
        (["1e+17", "5"], "str", [0]),
    ],
)
def test_floats_that_may_have_been_several_ids(cells, dtype, inexact):
    _, masks = ids_of(*cells, dtype=dtype)
    assert masks["inexact"] == inexact


def test_integers_are_exact_however_large():
    big = [2**53 + 1, 2**64 + 1, -(2**60) - 1]
    assert ids_of(*big, None, dtype=object) == ([*map(str, big), ""], {})
    assert ids_of(*map(str, big), dtype="str") == ([*map(str, big)], {})
    assert ids_of(Decimal(2**64 + 1), None, dtype=object) == ([str(2**64 + 1), ""], {})
    arrow = pd.array(pa.array([2**53 + 1, None], pa.uint64()), dtype=pd.ArrowDtype(pa.uint64()))
    assert clean_ids(pd.Series(arrow)).text.tolist() == [str(2**53 + 1), ""]


@pytest.mark.parametrize("name", ["12E4", "1e5", "2e-7", "1.2.3", "0x1F", "e+5", "1.5e"])
def test_names_that_only_look_like_numbers(name):
    assert ids_of(name, "x", dtype="str") == ([name, "x"], {})


def test_fractions_are_told_and_keep_text_as_it_is():
    assert ids_of("7.0", "7.5", dtype="str") == (["7.0", "7.5"], {"fractional": [1]})
    assert ids_of(7.0, 7.5) == (["7", "7.5"], {"written_as_float": [0], "fractional": [1]})
    assert ids_of(7, 7.5, dtype=object) == (["7", "7.5"], {"fractional": [1]})


def test_leading_zeros_are_told_where_they_make_a_difference():
    assert ids_of("007", "7", "08", dtype="str") == (["007", "7", "08"], {"zero_padded": [0]})


def test_text_and_number_of_the_same_digits():
    assert ids_of(16, "16", "17", dtype=object) == (["16", "16", "17"], {"of_two_types": [1]})


@pytest.mark.parametrize(
    "cell",
    [
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"], dtype=object),
        '["a","b"]',
        " ['a', 'b'] ",
        "('a', 'b')",
        "['a' 'b']",  # NumPy as text
        "['a'\n 'b']",
        "[a, b]",
    ],
)
def test_lists(cell):
    assert lists(pd.Series([cell, None], dtype=object)).tolist() == [["a", "b"], None]


@pytest.mark.parametrize("cell", ["a", "[REC]", "(500) Days", "[a, b] c", '{"a": 1}', "(a)", "[", "", 7, None, 1.5])
def test_cells_that_are_no_lists(cell):
    assert lists(pd.Series([cell, "x"], dtype=object)) is None


def test_brackets_alone_are_no_lists():
    assert lists(pd.Series(["[REC]", "[REC 2]"], dtype="str")) is None
    assert lists(pd.Series(["[a, b]", "[c]"], dtype="str")).tolist() == [["a", "b"], ["c"]]
    assert lists(pd.Series([f"[{'1' * 5000}x]", "[" * 5000], dtype="str")) is None


def test_lists_keep_large_integers():
    arrow = pa.array([[2**53 + 1, None]], pa.list_(pa.uint64()))
    assert lists(pd.Series(pd.array(arrow, dtype=pd.ArrowDtype(arrow.type)))).tolist() == [[2**53 + 1, None]]
    assert lists(pd.Series([f"[{2**53 + 1} 7]"], dtype="str")).tolist() == [[str(2**53 + 1), "7"]]


def raw_of(**columns):
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    rows = np.arange(1, len(frame) + 1)
    return RawTable("events", "e.jsonl", frame, rows, np.ones_like(rows))


def test_one_event_per_item():
    raw, source = one_event_per_item(
        raw_of(
            user_id=["u", "v", "w"],
            item_id=[["b", "a", "c"], "a", []],
            rating=[[5, 4, 3], 2, None],
            timestamp_s=[7, 8, 9],
            page=["x", "y", "z"],
        )
    )
    assert raw.frame[ITEM].tolist() == ["b", "a", "c", "a"]
    assert raw.frame["user_id"].tolist() == ["u", "u", "u", "v"]
    assert raw.frame[RATING].tolist() == [5, 4, 3, 2]
    assert raw.frame[TIMESTAMP].tolist() == [7, 7, 7, 8]
    assert raw.frame["page"].tolist() == ["x", "x", "x", "y"]
    assert raw.rows.tolist() == [1, 1, 1, 2] and source.tolist() == [0, 0, 0, 1] and len(raw.spans) == 4
    found, empty = raw.findings
    assert (found.count, found.action) == (2, "repaired")
    assert "one event for each of its items" in found.what and found.example.startswith("e.jsonl:1, column 'item_id'")
    assert (empty.what, empty.count, empty.action) == ("an empty list of items", 1, "dropped")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["a|b|c", "d|a"], [["a", "b", "c"], ["d", "a"]]),
        (["N5 N4", "N1 N5 N3", "N7"], [["N5", "N4"], ["N1", "N5", "N3"], ["N7"]]),  # MIND
        (["1,2,3", "3,1"], [["1", "2", "3"], ["3", "1"]]),
        (["p1, p2, p3", "p3 ,p1", "p2"], [["p1", "p2", "p3"], ["p3", "p1"], ["p2"]]),
        (["p1 | p2 | p3", "p3 | p1"], [["p1", "p2", "p3"], ["p3", "p1"]]),
        (["Good, Bad, Ugly", "Bad, Good"], None),  # titles
        (['{a,"b, c"}', "{d}"], [["a", "b, c"], ["d"]]),  # PostgreSQL
        (["shop|1", "shop|2"], None),  # a composite id has as many parts everywhere
        (["shop|1|x", "shop|2"], None),  # and each part at its own place
        (["Toy Story", "The Toy", "Story"], None),
        (["1,234", "234,567,100", "567,234"], None),  # thousands
        (["Smith, John", "John, Ann, Jr."], None),
    ],
)
def test_joined_lists(cells, expected):
    raw, source = one_event_per_item(raw_of(item_id=cells))
    found = raw.frame[ITEM].groupby(source).agg(list).tolist()
    assert found == (expected or [[cell] for cell in cells])


def test_parts_of_exploded_tables_keep_their_names():
    raw = dataclasses.replace(raw_of(item_id=[["a", "b"], "c"]), parts=((0, "part-0"), (1, "part-1")))
    raw, _ = one_event_per_item(raw)
    assert [raw.example(row) for row in range(3)] == ["part-0:1", "part-0:1", "part-1:2"]


def test_a_table_without_lists_stays_as_it_is():
    raw = raw_of(user_id=["u"], item_id=["a"], rating=[[1, 2]])
    assert one_event_per_item(raw)[0] is raw


def test_other_lists_are_repeated():
    raw, _ = one_event_per_item(raw_of(user_id=["u"], item_id=[["a", "b"]], tags=[["x", "y", "z"]]))
    assert raw.frame["tags"].tolist() == [["x", "y", "z"]] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["x", [["a"], ["b"]]]}, r"e\.jsonl:2, column 'item_id': .*found \['a'\]"),
        ({"item_id": [[{"id": 7}]]}, r"expected an id or a list of ids, found \{'id': 7\}"),
        ({"item_id": [{"a", "b"}]}, "found a set, which has no order"),
        ({"item_id": ["{'a', 'b'}"]}, "found a set, which has no order"),
        ({"item_id": ["['a' 'b' ... 'c']"]}, "found '...'"),
        ({"item_id": [["a", "b"]], "rating": [[1, 2, 3]]}, r"column 'rating': .*expected 2 values, .*found 3"),
        ({"item_id": ["a", ["a", "b"]], "timestamp_s": [[1, 2], 5]}, "e.jsonl:1, .*expected 1 values, .*found 2"),
    ],
)
def test_lists_that_cannot_be_taken_apart(columns, message):
    with pytest.raises(DataError, match=message):
        one_event_per_item(raw_of(**columns))


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        ("[np.int64(76561197970982401), np.int64(2)]", [76561197970982401, 2]),
        ("[np.str_('a'), numpy.str_('b c')]", ["a", "b c"]),
        ("tensor([1, 2], device='cuda:0')", [1, 2]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("deque(['a'], maxlen=5)", ["a"]),
    ],
)
def test_lists_that_libraries_print(cell, items):
    assert lists(pd.Series([cell, "['x']"]))[0] == items


def test_a_list_that_is_cut_off_is_unreadable():
    raw, source = one_event_per_item(raw_of(user_id=["u", "v"], item_id=['["a","b","c', '["a","b"]']))
    assert raw.frame[ITEM].tolist() == ["a", "b"] and source.tolist() == [1, 1] and raw.unreadable == 1
    (lost,) = [f for f in raw.findings if f.action == "dropped"]
    assert (lost.what, lost.count) == ("a list of items that is cut off", 1)


def test_numbers_are_joined_as_the_items_are():
    columns = {"user_id": ["u", "v", "w"], "item_id": ["a1 b2 c3", "b2 d4", "c3 a1"]}
    raw, _ = one_event_per_item(raw_of(**columns, rating=["5 4 3", "1 2", "4"], timestamp_s=["2014-05-26 10:11"] * 3))
    assert raw.frame[RATING].tolist() == ["5", "4", "3", "1", "2", "4", "4"]
    assert raw.frame[TIMESTAMP].tolist() == ["2014-05-26 10:11"] * 7  # a space in a date joins nothing
    with pytest.raises(DataError, match="expected 3 values, one for each item"):
        one_event_per_item(raw_of(**columns, rating=["5 4", "1 2", "4"]))
    columns["item_id"] = ["a1, b2, c3", "b2, d4", "c3, a1"]
    raw, _ = one_event_per_item(raw_of(**columns, rating=["5, 4, 3", "1,2", "4"]))
    assert raw.frame[RATING].tolist() == ["5", "4", "3", "1", "2", "4", "4"]


def test_labels_of_impressions_are_no_part_of_ids():
    columns = {"user_id": ["u", "v", "w"], "item_id": ["N1-0 N2-1 N3-0", "N2-0 N1-1", "N3-1 N1-0 N5-0 N2-0"]}
    with pytest.raises(DataError, match="seem to be labels"):
        one_event_per_item(raw_of(**columns))


def test_ids_that_look_alike_are_told():
    ids, masks = ids_of("caf\u00e9", "cafe\u0301", "u1", "u1\u200b", "\u00fc", "\uff55\uff11", dtype="str")
    assert len(set(ids)) == 6 and masks == {"look_alike": [0, 1, 3, 5]}


def test_ids_that_differ_only_in_case_are_reported():
    ids, masks = ids_of("Ada@x.com", "ada@x.com", "Bo@x.com", dtype="str")
    assert len(set(ids)) == 3 and masks == {"of_other_case": [0, 1]}

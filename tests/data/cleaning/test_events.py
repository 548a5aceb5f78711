import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from small_datasets import finding, made

from tfllmrec.columns import RATING, TIMESTAMP
from tfllmrec.config import DataConfig
from tfllmrec.data import dataset_from_frames, read_dataset
from tfllmrec.errors import DataError


def test_order_is_that_of_the_timestamp_with_ties_by_a_hash():
    data = made([("u", "a", 1, 9), ("v", "x", 1, 1), ("u", "b", 1, 5), ("u", "c", 1, 9), ("u", "d", 1, 5)])
    assert data.ordered
    # The hash of (u, c) is below that of (u, a). Another version of pandas must not change that: figures depend on it.
    assert data.events.item_id.tolist() == ["b", "d", "c", "a", "x"]
    assert data.events.order.tolist() == [0, 1, 2, 3, 0]
    assert finding(data, "tied in time with another event of the user (1 users)").count == 4
    assert data.report.tied_users == 1


def test_a_hash_breaks_ties_otherwise_for_each_user():
    rows = [(user, item, 1, time) for user in range(200) for item, time in (("a", 5), ("b", 5), ("c", 9))]
    data = made(rows)
    first = data.events.item_id[data.events.order == 0]
    assert 70 < (first == "a").sum() < 130  # half of 200, give or take four standard deviations
    assert data.report.tied_users == 200 and finding(data, "tied in time").count == 400


@pytest.mark.parametrize(
    ("columns", "tied"),
    [
        ("user item rating timestamp", {"b", "c"}),  # only the timestamp orders
        ("user item timestamp order", {"b", "d"}),  # rows with one order and one time are tied
        ("user item order other", {"b", "d"}),
        ("user item other1 other2", set()),  # nothing orders: there are no ties to speak of
    ],
)
def test_ties_are_those_of_the_columns_that_order(columns, tied):
    rows = [("u", "a", 1, 1), ("u", "b", 2, 3), ("u", "c", 3, 3), ("u", "d", 2, 3), ("u", "e", 2, 4)]
    if columns == "user item rating timestamp":
        rows[3] = ("u", "d", 2, 9)
    elif "order other" in columns:
        rows[4] = ("u", "e", 4, 4)
    data = made(rows, columns)
    assert data.report.tied_users == bool(tied)
    if tied:
        assert finding(data, "tied in time").count == len(tied)


def test_an_order_column_goes_before_the_timestamp():
    rows = [("u", "a", 2, 1), ("u", "b", 1, 2), ("u", "c", 1, 1)]
    data = made(rows, "user item order_in_user timestamp")
    assert data.events.item_id.tolist() == ["c", "b", "a"]


def test_the_report_says_which_column_orders():
    columns = "user item sequence time page"
    rows = [("u", "a", 2, 1, 7), ("u", "b", 1, 2, 7)]
    recognised = "events: events table (user_id <- user, item_id <- item, "
    assert made(rows, columns).report.sources == [
        recognised
        + "timestamp_s <- time, order <- sequence; ordered by order, not by timestamp_s; other columns: page)"
    ]
    [source] = made([("u", "a", 7, 1, 7), ("u", "b", 7, 2, 7)], columns).report.sources
    assert "; ordered by timestamp_s; " in source  # the sequence is the same everywhere
    assert made([("u", "a", 1)], "user item sequence").report.sources == [
        recognised + "order <- sequence; ordered by order)"
    ]
    assert made([("u", "a")], "user item").report.sources == [recognised.removesuffix(", ") + "; in no known order)"]


@pytest.mark.parametrize("column", ["position", "step"])
def test_a_place_in_a_list_is_no_order_of_events(column):
    data = made([("u", "a", 1, 20), ("u", "b", 2, 10)], f"user item {column} time")
    assert data.events.item_id.tolist() == ["b", "a"]
    assert f"ordered by timestamp_s; other columns: {column})" in data.report.sources[0]


@pytest.mark.parametrize(("missing", "count"), [(False, 3), (True, 2)])
def test_ratings_that_are_all_the_same_are_none(missing, count):
    data = made([("u", "a", None if missing else 1, 1), ("u", "b", 1, 2), ("v", "a", 1, 3)])
    assert np.isnan(data.events[RATING]).all() and not data.has_ratings
    found = finding(data, "the rating is 1 wherever there is one")
    assert (found.count, found.action) == (count, "repaired")
    assert found.example == f"events table:{3 - count}, column 'rating': '1{'.0' * missing}'"


def test_ratings_are_the_same_when_those_of_kept_events_are():
    # The later of the two (u, a) is kept; without the earlier one's 3 there are only 5s.
    rows = [("u", "a", 3, 1), ("u", "a", 5, 2), ("v", "a", 5, 1)]
    assert np.isnan(made(rows).events[RATING]).all()
    assert made(rows, repeats="all").events[RATING].tolist() == [3, 5, 5]


def test_ids_written_as_floats_are_integers_again():
    items = pd.DataFrame({"item_id": ["1", "-20"], "title": ["One", "Twenty"]})
    rows = [("7.0", "1.0", 5, 1), ("7.5", "-20.00", 4, 2), ("7.5", "", 4, 2)]
    data = made(rows, items=items)
    assert data.events.item_id.tolist() == ["1", "-20"] and data.n_items == 2
    assert data.events.user_id.tolist() == ["7.0", "7.5"]  # not the whole column is integral: left alone
    found = finding(data, "an integer written as a float")
    assert (found.count, found.action) == (2, "repaired")
    assert found.example == "events table:0, column 'item': '1.0'"
    back = made([("u", "1", 5, 1), ("u", "-20", 4, 2)], items=items.assign(item_id=["1.0", "-20.0"]))
    assert back.items.item_id.tolist() == ["1", "-20"]
    assert finding(back, "item_id is an integer written as a float").table == "items"


def test_without_order_a_hash_counts_and_the_data_is_unordered():
    data = made([("u", "b", 1), ("v", "a", 2), ("u", "a", 3)], "user item rating")
    assert not data.ordered
    assert sorted(data.events.item_id[:2]) == ["a", "b"] and data.events.user_id.tolist() == ["u", "u", "v"]
    assert data.events.order.tolist() == [0, 1, 0]
    assert np.isnan(data.events[TIMESTAMP]).all()


def test_rows_without_the_order_are_dropped_where_most_have_one():
    data = made([("u", "a", 1, 3), ("u", "b", 1, None), ("u", "c", 1, 2)])
    assert data.events.item_id.tolist() == ["c", "a"]
    assert finding(data, "no timestamp_s").count == 1 and finding(data, "no timestamp_s").action == "dropped"


def test_the_order_is_ignored_where_most_lack_it_or_it_says_nothing():
    data = made([("u", "a", 1, 3), ("u", "b", 1, None), ("u", "c", 1, None)])
    assert not data.ordered and len(data.events) == 3
    assert finding(data, "most rows have no timestamp_s").count == 2
    data = made([("u", "a", 1, 7), ("u", "b", 1, 7)])
    assert not data.ordered
    assert finding(data, "same in every row").action == "doubted"


@pytest.mark.parametrize(("repeats", "kept"), [("last", ["b", "a"]), ("first", ["a", "b"]), ("all", ["a", "b", "a"])])
def test_repeats(repeats, kept):
    # In the file the latest event comes first: the order in time decides, not the file's.
    data = made([("u", "a", 5, 30), ("u", "a", 1, 10), ("u", "b", 2, 20)], repeats=repeats)
    assert data.events.item_id.tolist() == kept
    assert data.report.dropped("events") == 3 - len(kept)
    rating_of_a = data.events[data.events.item_id == "a"][RATING].iloc[-1]
    assert rating_of_a == (1 if repeats == "first" else 5)


@pytest.mark.parametrize("times", [{}, {"timestamp": [7, 7, 7, 9]}])
@pytest.mark.parametrize(("repeats", "rating"), [("last", 5), ("first", 2)])
def test_repeats_at_one_time_fall_by_rating(repeats, rating, times):
    frame = pd.DataFrame({"user": ["u"] * 4, "item": ["a", "a", "a", "b"], "rating": [2, 5, 3, 4], **times})
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 0, 3]):
        data = dataset_from_frames(frame.iloc[order], config=DataConfig(repeats=repeats))
        assert data.events[RATING][data.events.item_id == "a"].tolist() == [rating]
        assert finding(data, f"the {'highest' if repeats == 'last' else 'lowest'} rating").count == 2


def test_min_user_events_counts_what_is_left():
    # u has 3 rows but 2 events once the repeated one is gone.
    rows = [("u", "a", 1, 1), ("u", "a", 1, 2), ("u", "b", 1, 3), ("v", "a", 1, 1), ("v", "b", 1, 2), ("v", "c", 1, 3)]
    data = made(rows, min_user_events=3)
    assert data.users.user_id.tolist() == ["v"]
    assert finding(data, "fewer than data.min_user_events = 3").count == 2
    assert data.report.rows_in["events"] == 6 == data.report.rows_kept["events"] + 1 + 2


@pytest.mark.parametrize(("unit", "factor"), [("milli", 10**3), ("micro", 10**6), ("nano", 10**9)])
def test_times_in_other_units_are_repaired(unit, factor):
    data = made([("u", "a", 1, 1393372800 * factor), ("u", "b", 1, 1393372801 * factor)])
    assert data.events[TIMESTAMP].tolist() == [1393372800, 1393372801]
    assert finding(data, f"{unit}seconds").count == 2


def test_milliseconds_are_told_from_seconds_as_far_back_as_1973():
    # 1e11 s would be the year 5138; 1e11 ms is March 1973.
    assert made([("u", "a", 1, 1e11), ("u", "b", 1, 1e11 + 1)]).events[TIMESTAMP].tolist() == [1e8, 1e8 + 0.001]
    assert made([("u", "a", 1, 1e11 - 2), ("u", "b", 1, 1e11 - 1)]).events[TIMESTAMP].tolist() == [1e11 - 2, 1e11 - 1]


def test_times_that_are_unknown_and_times_to_come():
    data = made([("u", "a", 1, -1), ("u", "b", 1, 1393372800), ("u", "c", 1, 9_000_000_000)])
    assert data.events.item_id.tolist() == ["b", "c"]
    assert finding(data, "the time is -1").action == "repaired"
    assert finding(data, "future").action == "kept"
    assert data.report.rows_in["events"] == data.report.rows_kept["events"] + data.report.dropped("events")


def test_times_before_1970_keep_their_order():
    data = made([("u", "a", 1, "1969-07-20"), ("u", "b", 1, "1912-04-15"), ("u", "c", 1, "2014-05-26")])
    assert data.events.item_id.tolist() == ["b", "a", "c"]


def test_a_time_format_that_does_not_fit():
    rows = [("u", "a", 1, "03/04/2014"), ("u", "b", 1, "05/06/2014"), ("u", "c", 1, "13/06/2014")]
    data = made(rows, time_format="%d/%m/%Y")
    assert data.events.item_id.tolist() == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"table:2, .*'13/06/2014': the time does not fit data.time_format = %m/%d/%Y"):
        made(rows, time_format="%m/%d/%Y", max_bad_rows=0.1)


def test_numbers_in_other_locales_are_read_and_told():
    data = made([("u", "a", "4,5", 1), ("u", "b", "3", 2)])
    assert data.events[RATING].tolist() == [4.5, 3]
    assert finding(data, "a decimal comma").example == "events table:0, column 'rating': '4,5'"


@pytest.mark.parametrize("unrated", [0, -1])
def test_ratings_outside_the_scale_are_none(unrated):
    rows = [("u", str(i), rating, i) for i, rating in enumerate([1, 2, unrated, 3, 4, unrated, 5])]
    data = made(rows)
    assert np.isnan(data.events[RATING]).tolist() == [False, False, True, False, False, True, False]
    assert finding(data, f"the rating {unrated} means 'not rated'").count == 2
    assert made(rows, unrated=[]).events[RATING].tolist()[2] == unrated
    assert np.isnan(made(rows, unrated=[5]).events[RATING]).tolist()[-1]


def test_real_scales_stay():
    for scale in ([0, *np.arange(0.5, 5.5, 0.5)], [-1, 0, 1], [0, 1], [-1, 1]):
        data = made([("u", str(i), rating, i) for i, rating in enumerate(scale)])
        assert data.events[RATING].tolist() == [*scale]
        assert not [f for f in data.report.findings if "not rated" in f.what]


@pytest.mark.parametrize("column", ["user", "item"])
def test_large_ids_stay_different_next_to_a_missing_one(column):
    ids = pa.array([76561197970982401, 76561197970982402, 76561197970982403, None], pa.uint64())
    for cells in (
        pd.array(ids, dtype=pd.ArrowDtype(pa.uint64())),
        pd.array(ids.to_pylist(), dtype="UInt64"),
        ids.to_pylist(),
    ):
        other = "item" if column == "user" else "user"
        frame = pd.DataFrame({column: pd.Series(cells, dtype=getattr(cells, "dtype", object)), other: list("abcd")})
        data = dataset_from_frames(frame, config=DataConfig(max_bad_rows=1))
        assert data.events[f"{column}_id"].tolist() == [f"7656119797098240{i}" for i in (1, 2, 3)]


def test_ids_beyond_the_precision_of_floats_are_refused():
    rows = [("u", 5.0, 1, 1), ("u", 7.65611979709824e16, 1, 2), ("u", 7.65611979709825e16, 1, 3)]
    expected = r"table:1, column 'item': .*the item_id is a rounded number, as 2 of 3 are.*Export.*data\.inexact_ids"
    with pytest.raises(DataError, match=expected):
        made(rows)
    data = made(rows, inexact_ids="accept")
    assert data.events.item_id.tolist() == ["5", "76561197970982400", "76561197970982496"]
    assert finding(data, "item_id is a rounded number").count == 2
    assert finding(data, "item_id is an integer written as a float").count == 1
    with pytest.raises(DataError, match=r"items table:0, .*the item_id is a rounded number"):
        made([("u", "a", 1, 1)], items=pd.DataFrame({"item_id": ["7.65612E+16"], "title": ["x"]}))


def test_a_float_and_an_integer_are_one_item():
    data = made([("u", "16", 1, 1), ("v", "16.0", 2, 2), ("v", "007", 3, 3), ("v", "7", 4, 4)])
    assert data.events.item_id.tolist() == ["16", "16", "007", "7"]
    assert finding(data, "item_id is an integer written as a float").count == 1
    assert finding(data, "leading zeros").count == 1


def test_ids_with_fractions_are_told():
    data = made([("u", 1.25, 1, 1), ("u", 2.5, 2, 2)])
    assert data.events.item_id.tolist() == ["1.25", "2.5"]
    assert finding(data, "item_id is a number with a fraction").count == 2


@pytest.mark.parametrize("cell", [["c", "a", "b"], '["c","a","b"]'])
def test_lists_of_items_are_events_in_their_order(cell):
    data = made([("u", cell, 5, 10), ("u", "d", 4, 10), ("u", "e", 4, 5)])
    assert data.events.item_id.tolist() == ["e", "c", "a", "b", "d"]
    assert data.events[TIMESTAMP].tolist() == [5, 10, 10, 10, 10]
    assert finding(data, "read as one event for each of its items, 3 together").count == 1
    assert data.report.rows_in["events"] == data.report.rows_kept["events"] == 5


def test_a_missing_item_in_a_list_is_dropped_and_counted():
    data = made([("u", ["a", None, "b"], 5, 10), ("u", [], 5, 11)])
    assert data.events.item_id.tolist() == ["a", "b"]
    assert finding(data, "no item_id").count == 1
    assert finding(data, "an empty list of items").count == 1
    assert data.report.rows_in["events"] == 4


def test_empty_lists_are_not_unreadable():
    data = made([("u", ["a"], 5, 1), *[("u", [], 5, 2)] * 99], max_bad_rows=0)
    assert data.events.item_id.tolist() == ["a"]


def test_one_list_for_each_user_gives_the_order():
    rows = [("u", ["c", "a", "b"]), ("v", ["z", "y"]), ("w", "x")]
    data = dataset_from_frames(pd.DataFrame(rows, columns=["user_id", "item_id"]))
    assert data.ordered and data.events.item_id.tolist() == ["c", "a", "b", "z", "y", "x"]
    assert finding(data, "ordered as the list is").count == 6
    data = dataset_from_frames(pd.DataFrame([*rows, ("u", ["d"])], columns=["user_id", "item_id"]))
    assert not data.ordered


@pytest.mark.parametrize("columns", [["user_id", "item_id"], ["user_id", "item_id", "timestamp"]])
def test_the_order_of_lists_in_the_file_does_not_matter(columns):
    rows = [("u", ["a", "b", "c"], 1), ("u", ["a", "d", "e"], 1), ("u", ["f"], 2)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])[columns]
    prints = {dataset_from_frames(frame.iloc[list(order)]).fingerprint for order in itertools.permutations(range(3))}
    assert len(prints) == 1


def test_equal_row_numbers_of_two_parts_are_no_list(tmp_path):
    for part, item in enumerate("ab"):
        frame = pd.DataFrame({"user_id": ["u"], "item_id": [item], "timestamp": [7]})  # a row each
        frame.to_parquet(tmp_path / f"part-{part}.parquet")
    pd.DataFrame({"user_id": ["v"], "item_id": ["c"], "timestamp": [8]}).to_parquet(tmp_path / "part-2.parquet")
    data = read_dataset(DataConfig(events=tmp_path))
    assert finding(data, "tied in time").count == 2


def test_lists_count_as_rows():
    with pytest.raises(DataError, match=r"found 3 rows or more; expected at most data.max_rows = 2"):
        made([("u", ["a", "b", "c"], 5, 10)], max_rows=2)


def test_records_and_pairs_of_lists_are_no_ids():
    with pytest.raises(DataError, match="expected one item_id, found a record"):
        made([("u", {"id": 5}, 5, 10)])
    with pytest.raises(DataError, match="expected one user_id, found a list"):
        made([(["u", "v"], ["a", "b"], 5, 10)])


@pytest.mark.parametrize("cell", [["a", "b"], '["a"]', ("a",)])
def test_lists_elsewhere_are_refused(cell):
    with pytest.raises(DataError, match=r"events table:1, column 'user': .*expected one user_id, found a list"):
        made([("u", "a", 1, 1), (cell, "b", 1, 2)])
    items = pd.DataFrame({"item_id": ["a", cell], "title": ["A", "B"]})
    with pytest.raises(DataError, match=r"items table:1, .*expected one item_id, found a list"):
        made([("u", "a", 1, 1)], items=items)


def test_unreadable_cells_drop_their_rows_only_where_they_are_needed():
    rows = [
        ("u", "a", "5", "1"),
        ("", "b", "5", "2"),
        ("u", None, "5", "3"),
        ("u", "c", "good", "4"),
        ("u", "d", "5", "x"),
    ]
    data = made([*rows, ("u", "e\nf", "5", "6"), ("u", "g", "1e39", "7")])
    assert (
        data.events.item_id.tolist() == ["a", "c", "g"] and data.events.rating.isna().all()
    )  # one rating says nothing
    assert finding(data, "no user_id").example == "events table:1, column 'user': ''"
    assert finding(data, "the rating is not a number: taken as unknown").count == 2
    assert finding(data, "the rating is not a number").example == "events table:3, column 'rating': 'good'"
    assert finding(data, "the time is not recognised").example == "events table:4, column 'timestamp': 'x'"
    assert finding(data, "a line break in item_id").count == 1
    assert data.report.rows_in["events"] == 7 and data.report.rows_kept["events"] == 3


def test_a_time_that_cannot_be_read_matters_only_where_it_orders():
    rows = [("u", "a", "x", 2), ("u", "b", "10", 1), ("u", "c", "30", "y")]
    data = made(rows, "user item timestamp order", max_bad_rows=1)
    assert data.events.item_id.tolist() == ["b", "a"] and np.isnan(data.events.timestamp_s.iloc[1])
    assert (finding(data, "the order is not a number").action, finding(data, "the time is not recognised").action) == (
        "dropped",
        "repaired",
    )
    with pytest.raises(DataError, match=r"the time is not recognised.*2 of 3 rows"):
        made([("u", "a", "x"), ("u", "b", "y"), ("u", "c", "3")], "user item timestamp", max_bad_rows=0.01)


@pytest.mark.parametrize("word", ["n/a", "N/A", "#N/A", "<NA>", "null", "Unknown", "-", ""])
def test_words_for_nothing_are_no_rating_and_no_fault(word):
    data = made([("u", "a", "5", 1), ("u", "b", word, 2), ("u", "c", "3", 3)])
    assert data.events.rating.fillna(-1).tolist() == [5, -1, 3]
    assert not [each for each in data.report.findings if "rating" in each.what]


def test_more_unreadable_rows_than_tolerated():
    rows = [("u", str(i), "x" if i < 3 else "1", i) for i in range(100)]
    assert len(made(rows, max_bad_rows=0.03).events) == 100
    with pytest.raises(
        DataError, match=r"events table:0, column 'rating': 'x': the rating is not a number. 3 of 100 rows"
    ):
        made(rows, max_bad_rows=0.029)


def test_a_row_with_two_unreadable_cells_counts_once():
    rows = [("u", "a", "x", "y"), ("u", "b", "5", "1"), ("u", "c", "3", "2"), ("u", "d", "4", "3")]
    assert made(rows, max_bad_rows=0.25).events.item_id.tolist() == ["b", "c", "d"]
    with pytest.raises(DataError, match=r"'x': the rating is not a number\. 1 of 4 rows"):
        made(rows, max_bad_rows=0.24)


def test_a_row_that_is_kept_counts_all_its_lines_as_unreadable(tmp_path):
    (tmp_path / "e.csv").write_text('user,item,rating,time,note\nu,a,x,1,"b\nc\nd"\nu,e,3,2,\nu,f,4,3,\n')
    assert len(read_dataset(DataConfig(events="e.csv", max_bad_rows=0.6), tmp_path).events) == 3
    with pytest.raises(DataError, match=r"the rating is not a number\. 3 of 5 rows"):
        read_dataset(DataConfig(events="e.csv", max_bad_rows=0.59), tmp_path)


def test_no_event_left():
    with pytest.raises(DataError, match=r"no event is left of 1 rows.*fewer than"):
        made([("u", "a", 1, 1)], min_user_events=2)


@pytest.mark.parametrize("word", ["none", "NONE", "Null", "-", "-1", "unknown", "00000000-0000-0000-0000-000000000000"])
def test_one_id_for_all_whose_id_is_missing_is_doubted(word):
    data = made([(word, "a"), ("v", "a"), (word, "b")], "user item")
    assert data.events.user_id.tolist().count(word) == 2
    assert [f.count for f in data.report.findings if f.action == "doubted" and "often means 'missing'" in f.what] == [2]


def test_missing_ids_are_dropped_and_not_doubted_as_well():
    assert not made([("NULL", "a"), ("v", "a")], "user item").report.doubts()

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import Field

ROWS = [[1, 2, 3], [], [4], [5, 6]]


def lists(ragged):
    return [row.tolist() for row in ragged]


def test_from_rows_and_back():
    ragged = Ragged.from_rows(ROWS, np.int64)
    assert lists(ragged) == ROWS
    assert ragged.values.tolist() == [1, 2, 3, 4, 5, 6]
    assert ragged.offsets.tolist() == [0, 3, 3, 4, 6]
    assert ragged.offsets.dtype == np.int64
    assert ragged.lengths.tolist() == [3, 0, 1, 2]
    assert ragged.row_of_value.tolist() == [0, 0, 0, 2, 3, 3]
    assert len(ragged) == 4


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_from_rows_without_values(rows):
    ragged = Ragged.from_rows(rows, np.float32)
    assert len(ragged) == len(rows)
    assert ragged.values.dtype == np.float32
    assert ragged.padded(3, 0).shape == (len(rows), 3)
    assert lists(ragged.take(np.arange(len(rows)))) == rows


def test_getitem_counts_from_the_end_and_refuses_what_is_outside():
    ragged = Ragged.from_rows(ROWS, np.int64)
    assert ragged[-1].tolist() == [5, 6]
    for outside in (4, -5):
        with pytest.raises(IndexError):
            ragged[outside]


def test_padded_keeps_the_last_values_left_aligned():
    padded = Ragged.from_rows(ROWS, np.int64).padded(2, -1)
    assert padded.tolist() == [[2, 3], [-1, -1], [4, -1], [5, 6]]
    assert padded.dtype == np.int64


def test_last_keeps_the_last_values_of_each_row():
    ragged = Ragged.from_rows(ROWS, np.int64)
    assert lists(ragged.last(2)) == [[2, 3], [], [4], [5, 6]]
    assert lists(ragged.slice(1, 4).last(1)) == [[], [4], [6]]
    assert lists(ragged.last(9)) == lists(ragged)


def test_padded_of_a_slice_starts_at_the_slice():
    assert Ragged.from_rows(ROWS, np.int64).slice(2, 4).padded(3, 0).tolist() == [[4, 0, 0], [5, 6, 0]]


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8), st.integers(0, 7))
def test_padded_equals_the_slow_way(rows, length):
    slow = [(row[len(row) - length :] if len(row) > length else row) for row in rows]
    slow = [row + [-1] * (length - len(row)) for row in slow]
    assert Ragged.from_rows(rows, np.int64).padded(length, -1).tolist() == slow


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6), st.integers(0, 8), st.integers(0, 8))
def test_slice_equals_that_of_a_list(rows, start, stop):
    assert lists(Ragged.from_rows(rows, np.int64).slice(start, stop)) == rows[start:stop]


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6), st.data())
def test_take_equals_picking_rows(rows, data):
    picked = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=8))
    taken = Ragged.from_rows(rows, np.int64).take(np.array(picked, dtype=np.int64))
    assert lists(taken) == [rows[i] for i in picked]
    assert taken.values.dtype == np.int64


def test_take_accepts_a_mask():
    ragged = Ragged.from_rows(ROWS, np.int64)
    assert lists(ragged.take(np.array([True, False, False, True]))) == [[1, 2, 3], [5, 6]]


def queries():
    return Queries.from_histories(
        [[1, 2], [], [3]], ratings=[[5, 4], [], [1]], targets=[[7], [8], []], user_ids=["a", "b", "c"]
    )


def test_from_histories_excludes_the_history_unless_told_otherwise():
    assert lists(queries().exclude) == [[1, 2], [], [3]]
    assert lists(Queries.from_histories([[1]], exclude=[[4, 5]]).exclude) == [[4, 5]]


def test_from_histories_fills_in_what_is_not_given():
    live = Queries.from_histories([[1, 2], []])
    assert live.user_ids.tolist() == ["", ""]
    assert np.isnan(live.ratings.values).all() and live.ratings.values.dtype == np.float32
    assert live.ratings.lengths.tolist() == [2, 0]
    assert lists(live.targets) == [[], []]


def test_no_queries_at_all():
    none = Queries.from_histories([])
    assert len(none) == 0 and list(none.batches(4)) == []


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 user ids but 1 rows of history"):
        Queries.from_histories([[1]], user_ids=["a", "b"])
    with pytest.raises(ValueError, match="one entry for each history entry"):
        Queries.from_histories([[1, 2]], ratings=[[5]])


def test_slice_take_and_batches_keep_the_parts_together():
    q = queries()
    for part, rows in (
        (q.slice(1, 3), [1, 2]),
        (q.take(np.array([2, 0])), [2, 0]),
        (q.take([False, True, True]), [1, 2]),
    ):
        assert part.user_ids.tolist() == [q.user_ids[i] for i in rows]
        for name in ("history", "ratings", "exclude", "targets"):
            assert lists(getattr(part, name)) == [getattr(q, name)[i].tolist() for i in rows]
    batches = list(q.batches(2))
    assert [b.user_ids.tolist() for b in batches] == [["a", "b"], ["c"]]
    assert lists(batches[1].history) == [[3]] and lists(batches[1].targets) == [[]]


FIELDS = [
    Field("kind", "event", "category", vocabulary=("view",), default="view"),
    Field("look", "event", "vector", width=2),
    Field("age", "user", "number"),
    Field("device", "request", "category", vocabulary=("tv",)),
]


def test_fields_that_are_left_out_get_their_default_or_are_missing():
    queries = Queries.from_histories([[3, 1], [], [2]], fields={"user.age": np.array([20.0, 30.0, 40.0], np.float32)})
    filled = queries.with_missing(FIELDS)
    assert filled.fields["event.kind"].values.tolist() == [2, 2, 2]  # the default
    assert filled.fields["event.kind"].offsets.tolist() == [0, 2, 2, 3]
    assert filled.fields["event.look"].values.shape == (3, 2) and np.isnan(filled.fields["event.look"].values).all()
    assert filled.fields["request.device"].tolist() == [0, 0, 0]
    assert filled.fields["user.age"].tolist() == [20, 30, 40]  # as it was
    assert filled.with_missing(FIELDS) is filled


def test_without_histories_only_the_requests_are_left():
    queries = Queries.from_histories([[3, 1], [2]], targets=[[5], [6]]).with_missing(FIELDS).without_histories()
    assert queries.history.lengths.tolist() == queries.exclude.lengths.tolist() == [0, 0]
    assert queries.targets.values.tolist() == [5, 6]
    assert queries.fields["event.look"].values.shape == (0, 2) and len(queries.fields["request.device"]) == 2


def test_queries_to_a_catalogue_that_lacks_items():
    queries = Queries.from_histories(
        [[0, 3, 1], [3]], ratings=[[5, 4, 3], [2]], targets=[[2], [0]], user_ids=["a", "b"]
    )
    queries = replace(
        queries,
        weights=Ragged(np.array([1.0, 0.5, 0.25, 2.0]), queries.history.offsets),
        candidates=np.array([True, False, True, True]),
    )
    other = queries.renumbered(np.array([1, 0, 2, -1]))  # item 3 is not there
    assert [row.tolist() for row in other.history] == [[1, 0], []]
    assert [row.tolist() for row in other.exclude] == [[1, 0], []]
    assert [row.tolist() for row in other.targets] == [[2], [1]]
    assert [row.tolist() for row in other.ratings] == [[5, 3], []]
    assert [row.tolist() for row in other.weights] == [[1.0, 0.25], []]
    assert other.candidates is None and other.user_ids.tolist() == ["a", "b"]

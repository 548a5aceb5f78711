from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfllmrec.data.pairs import item_pairs
from tfllmrec.data.queries import Ragged


def made(rows, n_items=None, **how):
    histories = Ragged.from_rows(rows, np.int64)
    return item_pairs(histories, n_items or 1 + max(max(row, default=0) for row in rows), **how)


def counted(pairs):
    return {(a, b): n for a, b, n in zip(*(x.tolist() for x in (pairs.left, pairs.right, pairs.count)), strict=True)}


def test_neighbours_within_the_window_are_pairs():
    rows = [[3, 1, 2, 0], [1, 3], [4], [], [2, 2, 1]]
    assert counted(made(rows, window=1)) == {(1, 3): 2, (1, 2): 2, (0, 2): 1}
    assert counted(made(rows, window=2)) == {(1, 3): 2, (1, 2): 3, (0, 2): 1, (2, 3): 1, (0, 1): 1}
    assert counted(made(rows, window=9, min_count=2)) == {(1, 3): 2, (1, 2): 3}


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 6), max_size=7), min_size=1, max_size=6), st.integers(1, 8), st.integers(1, 3))
def test_pairs_equal_the_slow_way(rows, window, min_count):
    slow = Counter(
        (min(row[i], row[j]), max(row[i], row[j]))
        for row in rows
        for i, j in combinations(range(len(row)), 2)
        if j - i <= window and row[i] != row[j]
    )
    pairs = made(rows, 7, window=window, min_count=min_count)
    found = counted(pairs)
    assert found == {pair: n for pair, n in slow.items() if n >= min_count}
    assert list(found) == sorted(found) and len(found) == len(pairs)
    together = pairs.read_together(np.arange(7), np.arange(7))
    assert together.tolist() == [[a == b or (min(a, b), max(a, b)) in found for b in range(7)] for a in range(7)]
    assert [p.tolist() for p in pairs.partners] == [
        [b for b in range(7) if together[a, b] and a != b] for a in range(7)
    ]


def test_weights_raise_tail_items():
    rows = [[0, 1]] * 8 + [[0, 2]]  # events: 9, 8, 1
    assert made(rows, power=0).weight == pytest.approx([8 / 9, 1 / 9])
    cosine = np.array([8 / np.sqrt(9 * 8), 1 / np.sqrt(9 * 1)])
    assert made(rows).weight == pytest.approx(cosine / cosine.sum())
    lift = np.array([8 / (9 * 8), 1 / (9 * 1)])
    assert made(rows, power=1).weight == pytest.approx(lift / lift.sum())


def test_a_slice_of_histories_counts_its_own_events():
    pairs = item_pairs(Ragged.from_rows([[0, 1], [1, 2], [1, 2]], np.int64).slice(1, 3), 3)
    assert counted(pairs) == {(1, 2): 2} and pairs.weight.tolist() == [1]


def test_items_without_text_are_in_no_pair():
    pairs = made([[0, 1, 2]], 4, readable=[True, False, True, True])
    assert counted(pairs) == {(0, 2): 1} and pairs.items.tolist() == [0, 2, 3]


def test_read_together_of_a_batch_with_repeated_items():
    pairs = made([[0, 1], [2, 3]], 5)
    mask = pairs.read_together(np.array([0, 2, 0, 4]), np.array([1, 1, 3, 4, 0]))
    assert mask.tolist() == [
        [True, True, False, False, True],
        [False, False, True, False, False],
        [True, True, False, False, True],
        [False, False, False, True, False],
    ]
    assert made([[]], 3).read_together(np.array([1, 2]), np.array([1])).tolist() == [[True], [False]]


def epoch(pairs, *arguments, **how):
    batches = list(pairs.batches(*arguments, **how))
    return np.array([left for left, _ in batches]), np.array([right for _, right in batches])


def test_an_epoch_brings_each_item_with_itself_once():
    pairs = made([[0, 1, 2, 3], [5, 6]], 8)
    left, right = epoch(pairs, 4, seed=1)
    assert left.shape == right.shape == (8 // 2, 4)
    assert sorted(left[:, 2:].ravel()) == list(range(8)) and np.array_equal(left[:, 2:], right[:, 2:])
    kinds = {
        tuple(sorted(pair)) for pair in zip(left[:, :2].ravel().tolist(), right[:, :2].ravel().tolist(), strict=True)
    }
    assert kinds == set(counted(pairs)) and len(kinds) == 7  # 8 are drawn: each of the seven before one comes again
    assert (left[:, :2] < right[:, :2]).any() and (left[:, :2] > right[:, :2]).any()  # either may be left


def test_an_epoch_of_pairs_alone_brings_each_once_and_the_rest_of_a_batch_again():
    pairs = made([[0, 1, 2], [3, 4]], 9)
    left, right = epoch(pairs, 3, seed=0, itself=0)
    drawn = Counter(tuple(sorted(pair)) for pair in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True))
    assert left.shape == (2, 3) and set(drawn) == set(counted(pairs)) and sorted(drawn.values()) == [1, 1, 2, 2]


def test_seed_and_epoch_decide():
    pairs = made([list(range(30))], 40)
    first = epoch(pairs, 8, seed=1, epoch=2)
    np.testing.assert_array_equal(first, epoch(pairs, 8, seed=1, epoch=2))
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}, {"seed": 2, "epoch": 1}):
        assert not np.array_equal(first, epoch(pairs, 8, **other))
    assert epoch(pairs, 8, seed=1, steps=3)[0].shape == (3, 8)


def test_pairs_come_by_their_weight():
    pairs = made([[0, 1]] * 6 + [[2, 3]] * 3 + [[4, 5]], power=0)
    firsts = [min(left[0], right[0]) for e in range(2000) for left, right in pairs.batches(1, 0, e, itself=0)][::3]
    for item, share in ((0, 0.6), (2, 0.3), (4, 0.1)):
        assert firsts.count(item) / 2000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 2000))


def test_the_heavier_pairs_come_earlier_in_an_epoch():
    pairs = made([row for i in range(40) for row in [[2 * i, 2 * i + 1]] * (1 + 9 * (i >= 20))], power=0)
    places = np.array([np.concatenate([np.minimum(*batch) for batch in pairs.batches(8, 0, e, itself=0)]).argsort()
                       for e in range(50)])  # fmt: skip
    assert places[:, 20:].mean() < 16 < 24 < places[:, :20].mean()


def test_without_pairs_items_meet_themselves_alone():
    left, right = epoch(made([[0], []], 3), 2, seed=0, itself=0)
    assert np.array_equal(left, right) and set(left.ravel()) == {0, 1, 2} and left.shape == (2, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: made([[0, 5]], 3), r"in \[0, 3\), got 0 to 5"),
        (lambda: made([[0, -1]], 3), "got -1 to 0"),
        (lambda: made([[0]], window=0), "window >= 1"),
        (lambda: made([[0]], power=-1), "power >= 0"),
        (lambda: next(made([[0, 1]]).batches(0, 0)), "batch_size 0"),
        (lambda: next(made([[0, 1]]).batches(2, 0, itself=1.5)), "itself 1.5"),
        (lambda: next(made([[0, 1]], readable=[False, False]).batches(2, 0)), "0 pairs and 0 items"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()

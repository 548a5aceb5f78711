import numpy as np
import pandas as pd
import pytest

from tfllmrec.data.cleaning.catalogue_match import doubts_of_match, other_spelling


def doubts(met, listed):
    return doubts_of_match(pd.Index(map(str, met)), pd.Index(map(str, listed)))


def some(share, last, seed):
    rng = np.random.default_rng(seed)
    return np.flatnonzero(rng.random(last + 1) < share)


FILMS = some(0.5, 4000, seed=1)


@pytest.mark.parametrize(
    ("met", "listed"),
    [
        (range(1, 1683), range(1, 1683)),
        (range(1, 1680), range(1, 1683)),  # the last ones have no events
        (FILMS, FILMS),
        (FILMS[::10], FILMS),
        (FILMS[:300], FILMS),
        ([f"B{i}" for i in range(500)], [f"B{i}" for i in range(5000)]),
        ([76561197970982401 + 7 * i for i in range(50)], [76561197970982401 + 7 * i for i in range(60)]),
        (["a"], ["a", "b", "c"]),
        ([*range(1, 6), "x"], [*range(1, 6), "x", "y"]),
    ],
)
def test_a_match_without_doubt(met, listed):
    assert doubts(met, listed) == []


@pytest.mark.parametrize(
    ("met", "listed", "reason"),
    [
        (range(50), range(1, 1683), "cannot be verified; they go from 0 to 49 in the events and from 1 to 1,682 in"),
        (range(1, 300), range(1, 1683), "cannot be verified"),
        (range(1682), range(1, 1683), "cannot be verified; they go from 0 to 1,681"),  # off by one
        (some(0.4, 4000, seed=2), FILMS, "match no more often than by chance"),
        (range(1, 400), FILMS, "match no more often than by chance"),
        (some(0.01, 100_000, seed=3), FILMS, "match no more often than by chance"),
        (range(1, 10_001), range(1, 4001), "the catalogue has only 4,000 of the 10,000 items with events (40.0%)"),
        ([f"B{i}" for i in range(9)], [f"B{i}" for i in range(200)],
         "only 9 of the 200 items of the catalogue have events (4.5%)"),
        (["x", "y", "z"], ["x", "a"], "the catalogue has only 1 of the 3 items with events (33.3%)"),
    ],
)  # fmt: skip
def test_a_doubtful_match(met, listed, reason):
    assert any(reason in doubt for doubt in doubts(met, listed)), doubts(met, listed)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (["0663", "7"], ["663", "8"], "1 of them differ from ids of the catalogue in leading zeros only"),
        (["B0A"], ["b0a"], "upper and lower case only"),
        (["caf\u00e9"], ["cafe\u0301"], "their Unicode form"),
        (["x"], ["y"], ""),
    ],
)
def test_ids_that_both_files_write_in_other_ways(ours, theirs, told):
    found = other_spelling(pd.Index(ours), pd.Index(theirs))
    assert told in found and bool(told) == bool(found)

import numpy as np
import pytest

from tfllmrec.data.cleaning.ratings import unrated_values

HALVES = np.arange(0.5, 5.5, 0.5).tolist()


@pytest.mark.parametrize(
    ("values", "unrated"),
    [
        ([1, 2, 3, 4, 5, 0], [0]),
        ([*range(11)], [0]),  # Book-Crossing: 0 is an implicit rating
        ([-1, *range(1, 11)], [-1]),  # MyAnimeList: watched, not rated
        ([-1, 0, *range(1, 11)], [-1, 0]),
        ([-1, *HALVES], [-1]),
        ([-1, 0, *HALVES], [-1]),
        ([0, 1, 1.5, 2, 4.5, 5], [0]),
        ([0, 3, 5], [0]),
        ([1, 2, 3, 4, 5, 99], [99]),
        ([-9.5, -0.16, 3.01, 9.9, 99], [99]),  # Jester
        ([1, 3, 5, -99, 999], [-99, 999]),
        ([1, 2, 3, 4, 5], []),
        ([0, *HALVES], []),
        ([-1, 0, 1], []),
        ([0, 1], []),
        ([-1, 1], []),
        ([0, 1, 2], []),
        ([0, 1, 2, 3, 4], []),
        ([-2, -1, 0, 1, 2], []),
        ([0, 1, 2, 17, 230], []),  # counts
        ([0, 5], []),  # a like and a dislike
        ([0, 37, 50, 100], []),
        ([], []),
    ],
)
def test_unrated_values(values, unrated):
    assert unrated_values(np.array([*values, np.nan])) == unrated

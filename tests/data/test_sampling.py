import pytest

from tfllmrec.data.sampling import evenly_spread


@pytest.mark.parametrize(
    ("size", "at_most", "rows"),
    [(7, 3, [0, 3, 6]), (3, 7, [0, 1, 2]), (5, 2, [0, 4]), (1, 9, [0]), (0, 4, [])],
)
def test_rows_are_spread_from_the_first_to_the_last(size, at_most, rows):
    assert evenly_spread(size, at_most).tolist() == rows

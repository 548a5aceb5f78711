import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.newest_events import newest_events

pytestmark = pytest.mark.tf


def slowly(rows, width, length, padding):
    kept = [row[-length:] for row in rows]
    return np.array([[*row, *[padding] * (min(width, length) - len(row))] for row in kept])


@pytest.mark.parametrize("length", [1, 2, 4, 5, 9])
@pytest.mark.parametrize(("dtype", "padding"), [(np.int32, 99), (np.float32, float("nan"))])
def test_against_slices(length, dtype, padding):
    rows = [list(range(n)) for n in (0, 1, 3, 5)]
    values = np.array([[*row, *[padding] * (5 - len(row))] for row in rows], dtype)
    out = newest_events(tf.constant(values), tf.constant([0, 1, 3, 5]), length, padding).numpy()
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, slowly(rows, 5, length, padding))


def test_nothing_at_all():
    assert newest_events(tf.zeros((2, 0), tf.int32), tf.constant([0, 0]), 4, 7).shape == (2, 0)

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.time_gaps import POWERS, TimeGaps

pytestmark = pytest.mark.tf
NAN = float("nan")


def test_gaps_of_one_power_of_two_share_a_vector():
    layer = TimeGaps(4, seed=0)
    now = 1.7e9
    gaps = [0, 1, 1.9, 2, 3.5, 4, 86_400, 2.0**29, 2.0**40, -5]
    found = layer(tf.constant([now] * len(gaps), tf.float64), tf.constant([now + gap for gap in gaps], tf.float64))
    rows = [int(np.flatnonzero((layer.table.numpy() == vector).all(1))[0]) for vector in found.numpy()]
    assert rows == [1, 1, 1, 2, 2, 3, 17, 30, POWERS, 1]  # 2^16 <= 86,400 < 2^17


@pytest.mark.parametrize(("earlier", "later"), [(NAN, 5.0), (5.0, NAN), (NAN, NAN)])
def test_an_unknown_gap_has_a_vector_of_its_own(earlier, later):
    layer = TimeGaps(4, seed=0)
    found = layer(tf.constant([earlier], tf.float64), tf.constant([later], tf.float64))
    np.testing.assert_array_equal(found[0], layer.table[0])

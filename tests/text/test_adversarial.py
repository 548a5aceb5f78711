"""Text vectors that a classifier cannot tell from those of another domain."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.evaluation.alignment import distances
from tfllmrec.text.adversarial import adversarial, reversed_gradient

pytestmark = pytest.mark.tf


def test_the_gradient_is_reversed():
    values, strength = tf.constant([1.0, 2.0]), tf.constant(0.5)
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = tf.reduce_sum(3 * reversed_gradient(values, strength))
    assert float(loss) == 9.0 and tape.gradient(loss, values).numpy().tolist() == [-1.5, -1.5]


def test_two_domains_come_nearer_and_items_keep_their_places():
    rng = np.random.default_rng(0)
    own, onto = rng.normal(size=(400, 8)) * [4, *[1] * 7] + 2, rng.normal(size=(400, 8))
    own[0] = 0
    found = adversarial(own, onto)
    before, centred, after = (distances(each, onto) for each in (own, own - own.mean(axis=0), found))
    assert after.a_distance < 0.2 * before.a_distance and after.mmd < 0.6 * centred.mmd < before.mmd
    assert all(np.corrcoef(own[1:, axis], found[1:, axis])[0, 1] > 0.8 for axis in range(8))
    assert not found[0].any() and found.dtype == np.float32


def test_few_vectors_are_only_moved_to_the_mean():
    own, onto = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [1.0, 5.0]])
    np.testing.assert_allclose(adversarial(own, onto), own - [2, 3] + [1, 5], atol=1e-5)
    assert not adversarial(own, np.zeros((3, 2))).any()

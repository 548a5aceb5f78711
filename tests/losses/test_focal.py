import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.losses.focal import FocalCrossentropy

pytestmark = pytest.mark.tf
LOGITS = np.log(np.array([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3]], np.float32))


def test_likely_targets_count_less():
    each = FocalCrossentropy(2.0, reduction="none")(np.array([0, 0]), LOGITS)
    np.testing.assert_allclose(each, [-(0.1**2) * np.log(0.9), -(0.8**2) * np.log(0.2)], rtol=1e-5)
    half = FocalCrossentropy(0.5, reduction="sum")(np.array([0, 0]), LOGITS)
    assert float(half) == pytest.approx(-(0.1**0.5) * np.log(0.9) - 0.8**0.5 * np.log(0.2), rel=1e-5)


def test_without_gamma_it_is_cross_entropy():
    plain = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(np.array([1, 2]), LOGITS)
    np.testing.assert_allclose(FocalCrossentropy(0.0, reduction="none")(np.array([1, 2]), LOGITS), plain, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_finite_for_certain_and_for_impossible_targets(gamma):
    logits = tf.constant([[80.0, 0.0], [-80.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = FocalCrossentropy(gamma, reduction="sum")(np.array([0, 0]), logits)
    assert np.isfinite(loss) and np.isfinite(tape.gradient(loss, logits)).all()


def test_it_is_saved_with_its_gamma():
    loss = FocalCrossentropy(1.5, reduction="sum")
    again = tf.keras.losses.deserialize(tf.keras.losses.serialize(loss))
    assert again.gamma == 1.5 and again.reduction == "sum"

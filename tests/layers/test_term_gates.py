import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.term_gates import GAIN, TermGates

pytestmark = pytest.mark.tf
COUNTS = tf.constant([0.0, 1, 20, 20])
RNG = np.random.default_rng(0)
DENSE, SPARSE = (tf.constant(RNG.normal(size=(3, 4)), tf.float32) for _ in range(2))


@pytest.fixture
def gates():
    gates = TermGates(np.array([True, True, True, False]), seed=1)
    gates(DENSE, SPARSE, COUNTS)
    return gates


def test_even_before_training(gates):
    assert gates.gate(COUNTS).numpy().tolist() == [0.5] * 4
    dense, sparse, offset = gates.factors(COUNTS)
    assert dense.numpy() == pytest.approx(np.full(4, 1.0 * 0.5))
    assert sparse.numpy() == pytest.approx(np.full(4, 50.0 * (1 - 0.5)), rel=1e-5)
    assert offset.numpy().tolist() == [0.0] * 4


def test_by_hand(gates):
    gates.output_map.kernel.assign(tf.constant(RNG.normal(0, 0.05, (8, 1)), tf.float32))
    gates.log_scales.assign(np.log([3.0, 7.0]) / GAIN)
    features = np.stack([np.log1p(COUNTS) / 3 - 1, [1, 0, 0, 0], [1, 1, 1, 0]], axis=1)
    hidden = np.tanh(features @ gates.hidden.kernel.numpy())
    gate = 1 / (1 + np.exp(-20 * (hidden @ gates.output_map.kernel.numpy())[:, 0]))
    np.testing.assert_allclose(gates.gate(COUNTS), gate, atol=1e-5)
    assert ((gate > 0) & (gate < 1)).all()
    assert len(np.unique(gate.round(5))) == 4  # popularity, never met, and text each tell items apart
    expected = 3 * gate * DENSE.numpy() + 7 * (1 - gate) * SPARSE.numpy()
    np.testing.assert_allclose(gates(DENSE, SPARSE, COUNTS), expected, atol=1e-4)


def test_strength_and_closing_0_leave_the_sparse_term_alone(gates):
    gates.dense_strength.assign(0.0)
    gates.closing.assign(0.0)
    np.testing.assert_allclose(gates(DENSE, SPARSE, COUNTS), 50 * SPARSE.numpy(), rtol=1e-5)
    for strength, closing in ((0.25, 1.0), (1.0, 0.5), (2.0, 0.25)):
        gates.dense_strength.assign(strength)
        gates.closing.assign(closing)
        dense, sparse, _ = gates.factors(COUNTS)
        np.testing.assert_allclose(dense, np.full(4, strength * 0.5))
        np.testing.assert_allclose(sparse, np.full(4, 50 * (1 - closing * 0.5)), rtol=1e-5)


def test_the_discount_takes_popular_items_down_in_the_dense_term(gates):
    gates.dense_strength.assign(0.25)
    before = gates(DENSE, SPARSE, COUNTS).numpy()
    gates.discount.assign(0.3)
    taken = before - gates(DENSE, SPARSE, COUNTS).numpy()
    expected = 0.25 * 0.5 * 0.3 * np.log1p([0, 1, 20, 20])  # c a_i tau log(1 + n_i), with s_d = 1
    np.testing.assert_allclose(taken, np.tile(expected, (3, 1)), atol=1e-4)


def test_the_lift_is_added_to_items_with_a_text_and_without_events_alone(gates):
    counts = tf.constant([0.0, 1, 20, 0])  # the last item has no text
    before = gates(DENSE, SPARSE, counts).numpy()
    gates.cold_lift.assign(1.5)
    np.testing.assert_allclose(gates(DENSE, SPARSE, counts) - before, [[1.5, 0, 0, 0]] * 3, atol=1e-4)
    some = tf.constant([[3, 0], [2, 0]])
    np.testing.assert_allclose(gates.factors(tf.gather(counts, some), items=some).offset, [[0, 1.5], [0, 1.5]])


@pytest.mark.parametrize(
    ("name", "value"), [("dense_strength", 0.25), ("closing", 0.5), ("discount", 0.4), ("cold_lift", 2.0)]
)
def test_training_does_not_see_the_chosen_settings(gates, name, value):
    before = gates(DENSE, SPARSE, COUNTS, training=True).numpy()
    getattr(gates, name).assign(value)
    assert np.array_equal(gates(DENSE, SPARSE, COUNTS, training=True), before)
    assert not np.array_equal(gates(DENSE, SPARSE, COUNTS), before)


def test_the_chosen_settings_are_not_trained(gates):
    assert {v.name.split("/")[-1] for v in gates.trainable_variables} == {"kernel:0", "bias:0", "log_scales:0"}


def test_half_precision_does_not_reach_the_gates():
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        gates = TermGates(np.array([True] * 4), seed=1)
        assert gates(DENSE, SPARSE, COUNTS).dtype == tf.float32
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.layers.item_vectors import ALIGNMENT, ItemVectors

pytestmark = pytest.mark.tf
RNG = np.random.default_rng(0)
N, D = 100, 12
VECTORS = (RNG.normal(size=(N, D)) * RNG.lognormal(0, 2, (N, 1))).astype(np.float32)
VECTORS[3] = 0
VECTORS[4, :4] = [1e-30, -3e38, 1 + 2**-8, -(1 + 2**-9)]  # small and large
QUERY = RNG.normal(size=(3, D)).astype(np.float32)


def test_what_is_read_is_what_was_stored():
    slots = tf.constant([[0, 4], [99, 3]])
    assert np.array_equal(ItemVectors(VECTORS).read(slots), VECTORS[slots.numpy()])


@pytest.mark.parametrize("times", [1, 20])
def test_scans_blocks(times):
    vectors = np.delete(VECTORS, 4, axis=0)
    stored = ItemVectors(vectors)
    assert stored.n_slots == 128 and not stored.read(tf.range(N - 1, 128)).numpy().any()
    queries = np.tile(QUERY, (times, 1))
    scores = stored.scan(tf.constant(queries), 64, ALIGNMENT).numpy()
    assert scores.shape == (3 * times, ALIGNMENT)
    largest = D * np.abs(queries).max(axis=1, keepdims=True) * np.abs(vectors[64:]).max(axis=1)
    assert (np.abs(scores[:, : len(vectors) - 64] - queries @ vectors[64:].T) <= 1e-6 * largest).all()
    assert not scores[:, len(vectors) - 64 :].any()


def test_reading_does_not_make_later_scans_copy():
    read = tf.function(ItemVectors(VECTORS).read).get_concrete_function(tf.TensorSpec([None], tf.int32))
    # This operation switches a variable, for as long as it lives, to being copied by whoever takes its value.
    assert "ResourceGather" not in {operation.type for operation in read.graph.get_operations()}


def test_there_is_always_a_slot_beyond_the_items():
    assert ItemVectors(np.ones((ALIGNMENT, 2))).n_slots == 2 * ALIGNMENT


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones(3), r"expected \[N, D\].*got shape \[3\]"),
        (np.ones((0, 3)), r"at least one item, got shape \[0, 3\]"),
        (np.array([[1.0], [np.nan]]), "row 1 is not finite"),
    ],
)
def test_what_cannot_be_stored_is_named(vectors, message):
    with pytest.raises(ModelError, match=message):
        ItemVectors(vectors)

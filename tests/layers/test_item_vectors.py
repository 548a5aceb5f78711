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
VECTORS[4, :4] = [1e-30, -3e38, 1 + 2**-8, -(1 + 2**-9)]  # small, large, and exactly between two bfloat16
QUERY = RNG.normal(size=(3, D)).astype(np.float32)


def test_what_is_read_is_what_was_stored():
    slots = tf.constant([[0, 4], [99, 3]])
    for storage in ("float32", "bfloat16"):
        assert np.array_equal(ItemVectors(VECTORS, storage).read(slots), VECTORS[slots.numpy()])
    read = ItemVectors(VECTORS, "int8").read(tf.range(N)).numpy()
    step = np.abs(VECTORS).max(axis=1, keepdims=True) / 127
    assert (np.abs(read - VECTORS) <= step * (0.5 + 1e-5)).all()
    assert not read[3].any()


@pytest.mark.parametrize(
    ("storage", "numbers_to"), [("float32", 1e-6), ("bfloat16", 3 * 2**-9), ("int8", 2 * 0.5 / 127 + 1e-4)]
)
@pytest.mark.parametrize("times", [1, 20])
def test_scans_blocks(storage, numbers_to, times):
    vectors = np.delete(VECTORS, 4, axis=0)
    stored = ItemVectors(vectors, storage)
    assert stored.scanned_exactly == (storage == "float32")
    assert stored.n_slots == 128 and not stored.read(tf.range(N - 1, 128)).numpy().any()
    queries = np.tile(QUERY, (times, 1))
    scores = stored.scan(tf.constant(queries), 64, ALIGNMENT).numpy()
    assert scores.shape == (3 * times, ALIGNMENT)
    expected = queries @ vectors[64:].T
    # Each product is off by a share of its row's, for bfloat16 of its own, largest number.
    largest = D * np.abs(queries).max(axis=1, keepdims=True) * np.abs(vectors[64:]).max(axis=1)
    assert (np.abs(scores[:, : len(vectors) - 64] - expected) <= numbers_to * largest).all()
    assert not scores[:, len(vectors) - 64 :].any()


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_reading_does_not_make_later_scans_copy(storage):
    stored = ItemVectors(VECTORS, storage)
    read = tf.function(stored.read).get_concrete_function(tf.TensorSpec([None], tf.int32))
    # This operation switches a variable, for as long as it lives, to being copied by whoever takes its value.
    assert "ResourceGather" not in {operation.type for operation in read.graph.get_operations()}


def test_there_is_always_a_slot_beyond_the_items():
    assert ItemVectors(np.ones((ALIGNMENT, 2)), "float32").n_slots == 2 * ALIGNMENT


def test_bytes_a_number():
    def stored(storage):
        return sum(v.dtype.size * np.prod(v.shape) for v in ItemVectors(np.ones((1000, 64)), storage).variables)

    assert stored("bfloat16") == stored("float32") == 1024 * 64 * 4
    assert stored("int8") == 1024 * (64 + 4)


@pytest.mark.parametrize(
    ("vectors", "storage", "message"),
    [
        (np.ones((2, 2)), "int4", "expected one of float32, bfloat16, int8, got 'int4'"),
        (np.ones(3), "float32", r"expected \[N, D\].*got shape \[3\]"),
        (np.ones((0, 3)), "float32", r"at least one item, got shape \[0, 3\]"),
        (np.array([[1.0], [np.nan]]), "int8", "row 1 is not finite"),
    ],
)
def test_what_cannot_be_stored_is_named(vectors, storage, message):
    with pytest.raises(ModelError, match=message):
        ItemVectors(vectors, storage)

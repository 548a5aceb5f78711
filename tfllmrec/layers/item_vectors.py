"""The item vectors of a SavedModel."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.layers.rows_of import rows_of

ALIGNMENT = 64
"""The number of slots is a multiple of this, so that a block of slots is a view of the table and not a copy."""

_BEYOND_CACHES = 1 << 24  # numbers


class ItemVectors(tf.Module):
    """Vectors in numbered slots, to be scanned in blocks or read one by one; core TensorFlow operations only.

    The vectors are float32. As bfloat16 or int8 they would need less memory, but the core operations for these types
    take longer than the reading of float32 does, and are less exact.

    Slots ``[0, N)`` contain the vectors in the given order. The other slots up to ``n_slots``, at least one, contain
    zeros.

    Args:
      vectors: Float32 ``[N, D]``, finite.

    Raises:
      ModelError: ``vectors`` does not have two dimensions, is empty, or is not finite.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(name="item_vectors")
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or not vectors.size:
            raise ModelError(f"item vectors: expected [N, D] with at least one item, got shape {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ModelError(f"item vectors: row {row} is not finite; train again with a lower learning rate")
        self.n_items, self.dim = vectors.shape
        self.n_slots = (self.n_items // ALIGNMENT + 1) * ALIGNMENT
        self._many = 12 if self.n_slots * self.dim < _BEYOND_CACHES else 4
        slots = np.zeros((self.n_slots, self.dim), np.float32)
        slots[: self.n_items] = vectors
        self.whole = tf.Variable(slots, trainable=False, name="whole")

    def scan(self, query: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """Computes inner products of float32 ``[B, D]`` and ``size`` slots from ``start`` on: float32 ``[B, size]``."""
        block = self.whole[start : start + size]
        # The transposed product is up to twice as fast for many queries, and slower for few.
        return tf.cond(
            tf.shape(query)[0] < self._many,
            lambda: tf.matmul(query, block, transpose_b=True),
            lambda: tf.transpose(tf.matmul(block, query, transpose_b=True)),
        )

    def read(self, slots: tf.Tensor) -> tf.Tensor:
        """Returns the vectors in ``slots``: int32 ``[...]`` -> float32 ``[..., D]``."""
        return rows_of(self.whole, slots)

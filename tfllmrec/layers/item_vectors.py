"""Item vectors as a SavedModel keeps them: whole, as bfloat16 with the rest beside it, or as int8."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.layers.rows_of import rows_of

Storage = Literal["float32", "bfloat16", "int8"]

ALIGNMENT = 64
"""The number of slots is a multiple of this, so that a block of them is a view of the whole and no copy."""

LARGEST_INT8 = 127

_BEYOND_CACHES = 1 << 24  # numbers


class ItemVectors(tf.Module):
    """Vectors in numbered slots, to be scanned in blocks or read one by one; core TensorFlow operations only.

    =========  =======  ============  ==============================================================================
    storage    bytes a  scanned       read one by one
               number
    =========  =======  ============  ==============================================================================
    float32    4        exactly       exactly
    bfloat16   4        to 3 digits   exactly: the 16 bits that bfloat16 leaves out are kept in a second array
    int8       1        to 2 digits   to 2 to 3 digits: a number is off by up to 1/254 of its row's largest
    =========  =======  ============  ==============================================================================

    Take float32 unless memory is short. A scan of bfloat16 touches half the bytes and one of int8 a quarter, but the
    core operations for them are slower than memory is: ``benchmarks/item_index.py`` has the figures.

    Slots ``[0, N)`` are the vectors in the given order. There is at least one more, of zeros, up to ``n_slots``.

    Args:
      vectors: float32 ``[N, D]``, finite.
      storage: see above.

    Raises:
      ModelError: ``vectors`` has not two dimensions, is empty or not finite, or ``storage`` is unknown.
    """

    def __init__(self, vectors: np.ndarray, storage: Storage = "float32") -> None:
        super().__init__(name="item_vectors")
        if storage not in get_args(Storage):
            raise ModelError(
                f"storage of item vectors: expected one of {', '.join(get_args(Storage))}, got {storage!r}"
            )
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or not vectors.size:
            raise ModelError(f"item vectors: expected [N, D] with at least one item, got shape {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ModelError(f"item vectors: row {row} is not finite; train again with a lower learning rate")
        self.storage = storage
        self.n_items, self.dim = vectors.shape
        self.n_slots = (self.n_items // ALIGNMENT + 1) * ALIGNMENT
        self._many = 12 if self.n_slots * self.dim < _BEYOND_CACHES else 4
        slots = np.zeros((self.n_slots, self.dim), np.float32)
        slots[: self.n_items] = vectors
        if storage == "float32":
            self.whole = tf.Variable(slots, trainable=False, name="whole")
        elif storage == "bfloat16":
            bits = slots.view(np.int32)
            high = (bits + 0x8000) >> 16
            self.high = tf.Variable(tf.bitcast(high.astype(np.int16), tf.bfloat16), trainable=False, name="high")
            self.low = tf.Variable((bits - (high << 16)).astype(np.int16), trainable=False, name="low")
        else:
            scale = np.abs(slots).max(axis=1) / LARGEST_INT8
            codes = np.rint(slots / np.where(scale > 0, scale, 1)[:, np.newaxis]).astype(np.int8)
            self.codes = tf.Variable(codes, trainable=False, name="codes")
            self.scale = tf.Variable(scale, trainable=False, name="scale")

    @property
    def scanned_exactly(self) -> bool:
        """Whether :meth:`scan` gives what :meth:`read` would."""
        return self.storage == "float32"

    def scan(self, query: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """Inner products of float32 ``[B, D]`` with the slots ``start`` to ``start + size``: float32 ``[B, size]``."""
        if self.storage == "float32":
            block = self.whole[start : start + size]
            # The same product from the other side is up to twice as fast for many queries, and slower for few.
            return tf.cond(
                tf.shape(query)[0] < self._many,
                lambda: tf.matmul(query, block, transpose_b=True),
                lambda: tf.transpose(tf.matmul(block, query, transpose_b=True)),
            )
        if self.storage == "bfloat16":
            half = tf.matmul(tf.cast(query, tf.bfloat16), self.high[start : start + size], transpose_b=True)
            return tf.cast(half, tf.float32)
        query_scale = tf.reduce_max(tf.abs(query), axis=1, keepdims=True) / LARGEST_INT8
        query_codes = tf.cast(tf.round(tf.math.divide_no_nan(query, query_scale)), tf.int8)
        counts = tf.raw_ops.BatchMatMulV3(x=query_codes, y=self.codes[start : start + size], Tout=tf.int32, adj_y=True)
        return tf.cast(counts, tf.float32) * self.scale[start : start + size] * query_scale

    def read(self, slots: tf.Tensor) -> tf.Tensor:
        """int32 ``[...]`` -> float32 ``[..., D]``."""
        if self.storage == "float32":
            return rows_of(self.whole, slots)
        if self.storage == "bfloat16":
            high = tf.cast(tf.bitcast(rows_of(self.high, slots), tf.int16), tf.int32)
            return tf.bitcast(high * 0x10000 + tf.cast(rows_of(self.low, slots), tf.int32), tf.float32)
        return tf.cast(rows_of(self.codes, slots), tf.float32) * rows_of(self.scale, slots)[..., tf.newaxis]

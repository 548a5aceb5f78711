"""The ids of item and user indices, saved with a model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_CHARACTERS = [b"", *(bytes([number]) for number in range(1, 256))]


@tf.keras.utils.register_keras_serializable("tfllmrec")
class IdTable(tf.keras.layers.Layer):
    """Maps indices to ids.

    The table is a weight, so that every format in which Keras saves weights contains the ids. It contains the UTF-8
    bytes of each id, padded with zeros, because HDF5 weights cannot contain strings of varying length.

    Args:
      n_ids: The number of rows of the table.
      width: The number of bytes in a row, see :func:`width_of`.
    """

    def __init__(self, n_ids: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_ids, self.width = n_ids, width
        self.table = self.add_weight(
            name="table", shape=(n_ids, width), dtype=tf.uint8, initializer="zeros", trainable=False,
            experimental_autocast=False,
        )  # fmt: skip
        self.built = True

    @classmethod
    def of(cls, ids: Sequence[str] | np.ndarray, **kwargs: Any) -> IdTable:
        """Creates a table of ``ids``."""
        table = cls(len(ids), width_of(ids), **kwargs)
        encoded = np.array([str(row).encode() for row in ids], f"S{table.width}")
        table.table.assign(encoded.view(np.uint8).reshape(table.n_ids, table.width))
        return table

    @property
    def ids(self) -> np.ndarray:
        """All ids, object ``[n_ids]``."""
        rows = np.ascontiguousarray(self.table.numpy()).view(f"S{self.width}")[:, 0]
        return np.array([row.decode() for row in rows.tolist()], object)

    def call(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the ids of ``indices``: int ``[...]`` -> string ``[...]``."""
        characters = tf.gather(_CHARACTERS, tf.cast(tf.gather(self.table, indices), tf.int32))
        return tf.strings.reduce_join(characters, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "n_ids": self.n_ids, "width": self.width}


def width_of(ids: Sequence[str] | np.ndarray) -> int:
    """Returns the number of bytes of the longest id, but at least as many as :func:`placeholder_ids` needs."""
    return max(len(str(len(ids))), *(len(str(row).encode()) for row in ids), 1)


def placeholder_ids(n_ids: int, width: int) -> np.ndarray:
    """Returns distinct ids of ``width`` bytes, object ``[n_ids]``, for a model whose ids are loaded later."""
    return np.array([f"{row:0{width}}" for row in range(n_ids)], object)

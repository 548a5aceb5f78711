"""Rows of a table that stay cheap to read as a whole: for graphs that are served."""

from __future__ import annotations

import tensorflow as tf


def rows_of(table: tf.Variable | tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """The rows ``at`` int32 ``[...]`` of a table ``[N, *]``, by value: ``[..., *]``.

    A variable that ``tf.gather`` was once given as such is, for as long as it lives, copied as a whole by each that
    reads it. Not for what is trained by sparse gradients: their updates do the same, and this is then a copy.
    """
    return tf.gather(tf.convert_to_tensor(table), at)

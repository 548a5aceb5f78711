"""The newest events of a history, as a window that every layer can read."""

from __future__ import annotations

import tensorflow as tf


def newest_events(values: tf.Tensor, lengths: tf.Tensor, length: int, padding: int | float) -> tf.Tensor:
    """The last ``length`` values of each row, left-aligned.

    Args:
      values: ``[B, L]``, left-aligned. lengths: int32 ``[B]``, how many of each row are real.
      length: of the window. padding: fills rows with fewer.

    Returns:
      ``[B, min(L, length)]``.
    """
    start = tf.maximum(lengths - length, 0)
    position = start[:, tf.newaxis] + tf.range(tf.minimum(tf.shape(values)[1], length))
    inside = position < lengths[:, tf.newaxis]
    return tf.where(inside, tf.gather(values, tf.where(inside, position, 0), batch_dims=1), padding)

"""The newest events of a history, as a window that every layer can read."""

from __future__ import annotations

import tensorflow as tf


def newest_events(values: tf.Tensor, lengths: tf.Tensor, length: int, padding: int | float | str) -> tf.Tensor:
    """The last ``length`` values of each row, left-aligned.

    Args:
      values: ``[B, L]`` or ``[B, L, width]``, left-aligned. lengths: int32 ``[B]``, how many of each row are real.
      length: of the window. padding: fills rows with fewer.

    Returns:
      ``[B, min(L, length)]``, followed by the width.
    """
    start = tf.maximum(lengths - length, 0)
    position = start[:, tf.newaxis] + tf.range(tf.minimum(tf.shape(values)[1], length))
    inside = position < lengths[:, tf.newaxis]
    newest = tf.gather(values, tf.where(inside, position, 0), batch_dims=1)
    inside = tf.reshape(inside, tf.concat([tf.shape(inside), [1] * (len(values.shape) - 2)], axis=0))
    return tf.where(inside, newest, tf.constant(padding, values.dtype))


def at_event(values: tf.Tensor, last: tf.Tensor | None, axis: int = 1) -> tf.Tensor:
    """``[B, .., L, ..]`` at one position of each row, ``[B, .., 1, ..]``.

    Args:
      last: int32 ``[B]``; ``None``: all positions stay.
      axis: the one of the positions.
    """
    return values if last is None else tf.gather(values, last[:, tf.newaxis], axis=axis, batch_dims=1)

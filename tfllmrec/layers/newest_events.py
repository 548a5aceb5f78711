"""The newest events of a history, as a window."""

from __future__ import annotations

import tensorflow as tf


def newest_events(values: tf.Tensor, lengths: tf.Tensor, length: int, padding: int | float | str) -> tf.Tensor:
    """Returns the last ``length`` values of each row, left-aligned.

    Args:
      values: ``[B, L]`` or ``[B, L, width]``, left-aligned.
      lengths: Int32 ``[B]``, the number of values of each row that are not padding.
      length: The length of the window.
      padding: The padding of rows with fewer values.

    Returns:
      ``[B, min(L, length)]`` or ``[B, min(L, length), width]``.
    """
    start = tf.maximum(lengths - length, 0)
    position = start[:, tf.newaxis] + tf.range(tf.minimum(tf.shape(values)[1], length))
    inside = position < lengths[:, tf.newaxis]
    newest = tf.gather(values, tf.where(inside, position, 0), batch_dims=1)
    inside = tf.reshape(inside, tf.concat([tf.shape(inside), [1] * (len(values.shape) - 2)], axis=0))
    return tf.where(inside, newest, tf.constant(padding, values.dtype))


def at_event(values: tf.Tensor, last: tf.Tensor | None, axis: int = 1) -> tf.Tensor:
    """Selects one position of each row: ``[B, .., L, ..]`` -> ``[B, .., 1, ..]``.

    Args:
      values: ``[B, .., L, ..]``.
      last: Int32 ``[B]``, the positions; ``None`` to keep all.
      axis: The axis of the positions.
    """
    return values if last is None else tf.gather(values, last[:, tf.newaxis], axis=axis, batch_dims=1)

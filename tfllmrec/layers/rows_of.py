"""Reads rows of a table in served graphs without making later reads of the whole table expensive."""

from __future__ import annotations

import tensorflow as tf


def rows_of(table: tf.Variable | tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """Returns the rows ``at``, int32 ``[...]``, of a table ``[N, *]``: ``[..., *]``.

    Once a variable itself has been passed to ``tf.gather``, every later read of its value copies the whole variable.
    This function passes the value instead. Do not use it for variables that are trained with sparse gradients: their
    updates have the same effect, so this function would copy the variable.
    """
    return tf.gather(tf.convert_to_tensor(table), at)

"""Scales vectors to length 1."""

from __future__ import annotations

import tensorflow as tf


def unit(vectors: tf.Tensor) -> tf.Tensor:
    """Scales vectors ``[..., D]`` to length 1, float32; zeros stay zero."""
    return tf.math.l2_normalize(tf.cast(vectors, tf.float32), axis=-1, epsilon=1e-9)

"""A lookup table with fixed content, as a TensorFlow operation."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


def static_table(numbers: Mapping[str, int], default: int) -> tf.lookup.StaticHashTable:
    """Creates a table from strings to int32 ``numbers``, at least one; other strings have the number ``default``."""
    initializer = tf.lookup.KeyValueTensorInitializer(list(numbers), list(numbers.values()), tf.string, tf.int32)
    return tf.lookup.StaticHashTable(initializer, default_value=default)

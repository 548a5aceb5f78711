"""A lookup table whose content is fixed, as a TensorFlow operation."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


def static_table(numbers: Mapping[str, int], default: int) -> tf.lookup.StaticHashTable:
    """Strings to int32 numbers; all other strings have the number ``default``. ``numbers`` has at least one string."""
    initializer = tf.lookup.KeyValueTensorInitializer(list(numbers), list(numbers.values()), tf.string, tf.int32)
    return tf.lookup.StaticHashTable(initializer, default_value=default)

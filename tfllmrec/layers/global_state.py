"""Context managers that restore global state of Python, numpy and Keras when they end."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import tensorflow as tf


@contextlib.contextmanager
def keras_policy(name: str) -> Iterator[None]:
    """Sets Keras' dtype policy to ``name`` within the block or the decorated function, and restores it afterwards."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the state of Python's and numpy's global random generators after the block or the decorated function.

    TensorFlow's global seed and its deterministic operations are not restored, because TensorFlow has no public
    function that reads the former or switches off the latter.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002

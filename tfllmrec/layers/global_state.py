"""Global state of Python, numpy and Keras that a call may change and puts back when it ends."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import tensorflow as tf


@contextlib.contextmanager
def keras_policy(name: str) -> Iterator[None]:
    """Keras' dtype policy is ``name`` within the block, or within the decorated function, and as before after it."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """The global generators of Python and numpy are after the block, or the decorated function, as they were before.

    TensorFlow's global seed and its deterministic operations cannot be put back: TensorFlow has no public function that
    reads the one or switches off the other.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002

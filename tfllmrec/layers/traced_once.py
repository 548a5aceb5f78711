"""A decorator for methods that are called by many graphs and traced only once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import tensorflow as tf


class traced_once(cached_property):
    """A method of TensorFlow operations that is traced once, and that graphs call as a function.

        class Model(tf.Module):
            @traced_once
            def vectors(self, query): ...

    Each signature of an exported model is a graph. Without this decorator, a dozen graphs would each contain the
    operations of ``vectors``, and tracing and loading these took more than half of the time. TensorFlow inlines the
    function before it runs a graph, so the run time of a request does not change.

    As with any ``tf.function``, changes of variables have an effect after the first call, and changes of Python
    attributes have none. For the same reason, a ``tf.Module`` with such methods must not be copied after the first
    call. A copy of a Keras model is not affected, because it is built anew.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        def of_object(self: Any) -> Callable[..., Any]:
            # A partial function, because TensorFlow counts the tracings of each piece of code, and would warn of
            # frequent retracing if several objects trace the same method.
            bound = partial(method, self)
            bound.__name__ = method.__name__  # type: ignore[attr-defined]
            traced = tf.function(bound, autograph=False, reduce_retracing=True)
            # Another partial function, because Keras and tf.saved_model save every tf.function among the attributes.
            return partial(traced)

        super().__init__(of_object)
        self.__doc__ = method.__doc__

"""Methods that many graphs call, and that are traced once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import tensorflow as tf


class traced_once(cached_property):
    """A method of TensorFlow operations that becomes a function of its own in each graph that calls it.

        class Model(tf.Module):
            @traced_once
            def vectors(self, query): ...

    A signature of an exported model is a graph, and a dozen of them would each hold the operations of ``vectors``: to
    trace and to load them took more than half of the time. TensorFlow puts them in place of the call before it
    runs a graph, so an answer takes as long as before.

    As with any ``tf.function``, changes of variables have an effect after the first call, and changes of Python
    attributes have none. For the same reason a ``tf.Module`` with such methods must not be copied after the first call;
    a copy of a Keras model is built anew.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        def of_object(self: Any) -> Callable[..., Any]:
            # A partial function: TensorFlow counts the tracings of each piece of code, and would warn of
            # frequent retracing where several objects trace the same method.
            bound = partial(method, self)
            bound.__name__ = method.__name__  # type: ignore[attr-defined]
            traced = tf.function(bound, autograph=False, reduce_retracing=True)
            # Another one: Keras and tf.saved_model save each tf.function among the attributes of an object.
            return partial(traced)

        super().__init__(of_object)
        self.__doc__ = method.__doc__

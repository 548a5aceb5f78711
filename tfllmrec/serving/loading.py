"""Loads an exported model into this process, for calls from any thread, and releases all of its memory."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the operations of text towers)

from tfllmrec.layers.item_scann import scann_operations


def load(folder: Path, scann: bool) -> Any:
    """Loads a SavedModel with ``tf.saved_model.load``.

    Args:
      folder: The folder of the SavedModel.
      scann: Whether it was exported by tfllmrec and contains operations of ScaNN.

    Raises:
      ModelError: The operations of ScaNN are missing.
      Exception: Nearly any exception, if the SavedModel is damaged.
    """
    if scann:
        scann_operations()
    loaded = tf.saved_model.load(str(folder), tags=["serve"])
    if scann:
        loaded.prepare()
    return loaded


def let_go_with(owner: object, loaded: Any, scann: bool) -> None:
    """Releases the resources of ``loaded`` when ``owner`` is garbage-collected.

    Without this, TensorFlow would keep lookup tables and ScaNN searchers until the process ends.

    Args:
      owner: The object with which the model is released.
      loaded: The result of :func:`load`.
      scann: As in :func:`load`.
    """
    weakref.finalize(owner, _let_go, loaded, scann).atexit = False


def _let_go(loaded: Any, scann: bool) -> None:
    """Releases the resources of ``loaded``, except variables, which TensorFlow releases itself.

    ``loaded`` must still exist: while it is garbage-collected itself, its functions may already have lost their
    variables.
    """
    # The thread that collects garbage may be tracing a function, which ``init_scope`` leaves, or building a graph,
    # which can only be avoided in another thread.
    with tf.init_scope():
        if tf.executing_eagerly():
            _give_up(loaded, scann)
        else:
            threading.Thread(target=_give_up, args=(loaded, scann), name="give up").start()


def _give_up(loaded: Any, scann: bool) -> None:
    if scann:
        loaded.release()
    for one in tf.train.TrackableView(loaded).descendants():
        if isinstance(one, tf.saved_model.experimental.TrackableResource):  # a lookup table
            tf.raw_ops.DestroyResourceOp(resource=one.resource_handle, ignore_lookup_error=True)

"""An exported model in this process: loaded for calls from any thread, and given up as a whole."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the operations of text towers)

from tfllmrec.layers.item_scann import scann_operations


def load(folder: Path, scann: bool) -> Any:
    """What ``tf.saved_model.load`` makes of a folder.

    Args:
      scann: it is an export of ours that has operations of ScaNN's.

    Raises:
      ModelError: these are missing.
      Exception: nearly any, on a damaged SavedModel.
    """
    if scann:
        scann_operations()
    loaded = tf.saved_model.load(str(folder), tags=["serve"])
    if scann:
        loaded.prepare()
    return loaded


def let_go_with(owner: object, loaded: Any, scann: bool) -> None:
    """Gives up what TensorFlow would keep of ``loaded`` for as long as the process lives, at the end of ``owner``."""
    weakref.finalize(owner, _let_go, loaded, scann).atexit = False


def _let_go(loaded: Any, scann: bool) -> None:
    """Variables go by themselves.

    While the model is still there: at its own end its functions may have lost their variables.
    """
    # Whoever collects garbage may be building a function, which a scope leaves, or a graph, which only a thread does.
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

"""Losses under ``tf.distribute``."""

from __future__ import annotations

import tensorflow as tf


def share_of_replica(loss: tf.Tensor) -> tf.Tensor:
    """Returns a replica's mean loss divided by the number of replicas; outside of a strategy, the loss itself.

    Keras adds up both the gradients and the reported losses of all replicas, so that the sum of these shares is the
    mean over replicas.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return loss / replicas if replicas > 1 else loss

"""Target attention: weighs the events of a history for each candidate."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf


@tf.keras.utils.register_keras_serializable("tfllmrec")
class TargetAttention(tf.keras.layers.Layer):
    """Weighs a history for each candidate (deep interest network, Zhou et al. 2018, arXiv:1706.06978, section 4.3).

        a_jc  = sigmoid(u . relu(U (k_j * k_c) + s <e_j, e_c> + X x_j + b) + d)     k = K e
        out_c = [sum_j a_jc [k_j, x_j] / (1 + sum_j a_jc), log(1 + sum_j a_jc)]

    As in the paper, the weights are not a softmax, so that their sum tells how much of the history supports a
    candidate. Unlike in the paper, this sum is a separate output, and the profile is divided by 1 plus the sum, so that
    long histories do not give larger values than short ones, and weak evidence gives small values.

    Args:
      keys: The width of the keys k.
      hidden: The number of hidden units that compute the weights.
      seed: Random seed of the initialisers.
    """

    def __init__(self, keys: int, hidden: int, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        glorot = tf.keras.initializers.GlorotUniform
        dense = functools.partial(tf.keras.layers.Dense, dtype="float32")
        self.key = dense(keys, use_bias=False, kernel_initializer=glorot(seed), name="key")
        self.of_event = dense(hidden, kernel_initializer=glorot(seed + 1), name="of_event")
        self.keys, self.hidden, self.seed = keys, hidden, seed
        self.of_pair = self.add_weight(name="of_pair", shape=(keys, hidden), initializer=glorot(seed + 2))
        self.of_cosine = self.add_weight(name="of_cosine", shape=(hidden,), initializer="ones")
        self.to_weight = self.add_weight(name="to_weight", shape=(hidden,), initializer=glorot(seed + 3))
        self.bias = self.add_weight(name="bias", shape=(), initializer=tf.constant_initializer(-2.0))

    def call(
        self, candidates: tf.Tensor, events: tf.Tensor, features: tf.Tensor, present: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Summarises the history for each candidate.

        Args:
          candidates: Float32 ``[B, M, D]``, item vectors of length 1.
          events: Float32 ``[B, L, D]``, the item vectors of the history, of length 1.
          features: Float32 ``[B, L, X]``, further features of each event.
          present: Bool ``[B, L]``. Where it is False, events and features are ignored, but must be finite.

        Returns:
          ``out``, float32 ``[B, M, keys + X + 1]``, and the keys of the candidates, ``[B, M, keys]``.
        """
        mine, theirs = self.key(candidates), self.key(events)
        # U (k_j * k_c) is computed as (U * k_c) k_j, which avoids a tensor of all products k_j * k_c.
        batch, n, length = tf.shape(mine)[0], tf.shape(mine)[1], tf.shape(theirs)[1]
        asked = tf.reshape(mine[:, :, tf.newaxis] * tf.transpose(self.of_pair), (batch, n * self.hidden, self.keys))
        pairs = tf.reshape(tf.matmul(asked, theirs, transpose_b=True), (batch, n, self.hidden, length))
        cosine = tf.matmul(candidates, events, transpose_b=True)[:, :, tf.newaxis] * self.of_cosine[:, tf.newaxis]
        alone = tf.transpose(self.of_event(features), (0, 2, 1))[:, tf.newaxis]
        active = tf.nn.relu(pairs + cosine + alone)
        weights = tf.sigmoid(tf.einsum("bmhl,h->bml", active, self.to_weight) + self.bias)
        weights = tf.where(present[:, tf.newaxis], weights, 0.0)
        total = tf.reduce_sum(weights, axis=-1, keepdims=True)
        profile = tf.matmul(weights, tf.concat([theirs, features], axis=-1)) / (1.0 + total)
        return tf.concat([profile, tf.math.log1p(total)], axis=-1), mine

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "keys": self.keys, "hidden": self.hidden, "seed": self.seed}

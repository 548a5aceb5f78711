"""The feedback profile ``r_u``: liked items count positively in it, and disliked items negatively."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfllmrec.layers.history_encoder import causal_mask
from tfllmrec.layers.seeded_dropout import SeededDropout


def centred_ratings(ratings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Subtracts from each rating the mean of the user's ratings so far.

    Args:
      ratings: Float32 ``[B, L]``, NaN where an event has no rating (padding included).

    Returns:
      ``centred``, float32 ``[B, L, L]``: entry (t, j) is rating j minus the mean of the ratings up to event t. It is 0
      where event j has no rating, or j > t.
      ``count``, float32 ``[B, L]``: the number of ratings up to event t.

      A single rating is centred to 0, because it does not tell which ratings are high for this user.
    """
    known = tf.cast(tf.math.is_finite(ratings), tf.float32)
    values = tf.where(known > 0, ratings, 0.0)
    count = tf.cumsum(known, axis=1)
    mean = tf.math.divide_no_nan(tf.cumsum(values, axis=1), count)
    length = tf.shape(ratings)[1]
    earlier = tf.linalg.band_part(tf.ones((length, length)), -1, 0)
    centred = (values[:, tf.newaxis, :] - mean[:, :, tf.newaxis]) * known[:, tf.newaxis, :] * earlier
    return centred, count


@tf.keras.utils.register_keras_serializable("tfllmrec")
class FeedbackProfile(tf.keras.layers.Layer):
    """``r_u(t) = BatchNorm(Dropout(sum_j softmax_j(k_j . k_t) c_j(t) e_j))`` and its gate ``b_u(t)``.

    ``c_j(t)`` are the centred ratings. The gate depends on the number and the spread of the ratings. It is exactly 0
    for a user without ratings, so that the profile then has no effect.

    Args:
      dim: The width D of the item vectors.
      dropout: The dropout rate of the profile.
      seed: Random seed of the initial weights and the dropout.
    """

    def __init__(self, dim: int, dropout: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.rate, self.seed = dim, dropout, seed
        self.key = tf.keras.layers.Dense(dim, kernel_initializer=tf.keras.initializers.GlorotUniform(seed), name="key")
        self.dropout = SeededDropout(dropout, seed + 1, name="profile_dropout")
        self.norm = tf.keras.layers.BatchNormalization(name="profile_norm")
        self.gate = tf.keras.layers.Dense(
            1,
            kernel_initializer=tf.keras.initializers.GlorotUniform(seed + 2),
            bias_initializer=tf.keras.initializers.Constant(-2.0),
            name="gate",
            dtype="float32",
        )

    def call(
        self, items: tf.Tensor, ratings: tf.Tensor, present: tf.Tensor, training: bool | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the profile and its gate after each event.

        Args:
          items: ``[B, L, D]``.
          ratings: ``[B, L]``, NaN for none.
          present: Bool ``[B, L]``, False for padding.

        Returns:
          The profile ``[B, L, D]`` and the gate ``[B, L, 1]``.
        """
        weights, centred, count = self._weights(items, ratings, present)
        profile = tf.matmul(tf.cast(weights, items.dtype), items)
        profile = self.norm(self.dropout(profile, training=training), training=training)
        return profile, self._gate(centred, count)

    def by_event(
        self, items: tf.Tensor, ratings: tf.Tensor, present: tf.Tensor, last: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Splits the profile after one event of each row into a sum over events: at inference, the norm is linear.

        Args:
          items: ``[B, L, D]``.
          ratings: ``[B, L]``, NaN for none.
          present: Bool ``[B, L]``, False for padding.
          last: Int32 ``[B]``, the position of the event.

        Returns:
          The contribution of each event, float32 ``[B, L, D]``; the constant that the norm adds for every user,
          ``[D]``; and the gate, ``[B, 1]``.
        """
        weights, centred, count = self._weights(items, ratings, present)
        scale = self.norm.gamma * tf.math.rsqrt(self.norm.moving_variance + self.norm.epsilon)
        events = tf.gather(weights, last, batch_dims=1)[..., tf.newaxis] * tf.cast(items, tf.float32) * scale
        gate = tf.gather(self._gate(centred, count), last, batch_dims=1)
        return events, self.norm.beta - self.norm.moving_mean * scale, gate

    def _weights(
        self, items: tf.Tensor, ratings: tf.Tensor, present: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns ``softmax_j(k_j . k_t) c_j(t)``, float32 ``[B, L, L]``, and the result of :func:`centred_ratings`."""
        centred, count = centred_ratings(tf.where(present, ratings, float("nan")))
        keys = self.key(items)
        logits = tf.matmul(keys, keys, transpose_b=True) * tf.cast(keys.shape[-1] ** -0.5, keys.dtype)
        attention = tf.nn.softmax(tf.cast(logits, tf.float32) + causal_mask(present)[:, 0])
        return attention * centred, centred, count

    def _gate(self, centred: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Computes ``b_u``, float32 ``[B, L, 1]``."""
        spread = tf.sqrt(tf.math.divide_no_nan(tf.reduce_sum(centred**2, axis=-1), count) + 1e-6)
        gate = tf.sigmoid(self.gate(tf.stack([tf.math.log1p(count), spread], axis=-1)))
        heard = tf.cast(count > 0, tf.float32)[..., tf.newaxis]
        return gate * heard

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "dropout": self.rate, "seed": self.seed}

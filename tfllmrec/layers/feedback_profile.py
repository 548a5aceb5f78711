"""The feedback profile ``r_u``: what was liked pulls, what was disliked pushes away."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfllmrec.layers.history_encoder import causal_mask
from tfllmrec.layers.seeded_dropout import SeededDropout


def centred_ratings(ratings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Centres each rating on the mean of what the user had rated up to then.

    Args:
      ratings: float32 ``[B, L]``, NaN where an event carries no rating (padding included).

    Returns:
      ``centred`` float32 ``[B, L, L]``: entry (t, j) is rating j minus the mean of the ratings up to t, 0 where there
      is none or j > t; ``count`` float32 ``[B, L]``: ratings known at t. One rating alone centres to 0: a user who
      has only ever given one mark has not said what a high mark is.
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

    ``c_j(t)`` are the centred ratings. The gate grows with the amount and the spread of the feedback and is exactly 0
    for a user without any, so that the profile then leaves no trace.

    Args:
      dim: D. dropout, seed: of the profile.
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
        """Items ``[B, L, D]``, ratings ``[B, L]``, present bool ``[B, L]`` -> ``[B, L, D]`` and gate ``[B, L, 1]``."""
        weights, centred, count = self._weights(items, ratings, present)
        profile = tf.matmul(tf.cast(weights, items.dtype), items)
        profile = self.norm(self.dropout(profile, training=training), training=training)
        return profile, self._gate(centred, count)

    def by_event(
        self, items: tf.Tensor, ratings: tf.Tensor, present: tf.Tensor, last: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The profile after the event ``last`` int32 ``[B]`` as a sum, because the norm is linear after training.

        Returns:
          What each event adds, float32 ``[B, L, D]``; what the norm adds for everyone, ``[D]``; the gate, ``[B, 1]``.
        """
        weights, centred, count = self._weights(items, ratings, present)
        scale = self.norm.gamma * tf.math.rsqrt(self.norm.moving_variance + self.norm.epsilon)
        events = tf.gather(weights, last, batch_dims=1)[..., tf.newaxis] * tf.cast(items, tf.float32) * scale
        gate = tf.gather(self._gate(centred, count), last, batch_dims=1)
        return events, self.norm.beta - self.norm.moving_mean * scale, gate

    def _weights(
        self, items: tf.Tensor, ratings: tf.Tensor, present: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """``softmax_j(k_j . k_t) c_j(t)``, float32 ``[B, L, L]``, and what :func:`centred_ratings` gives."""
        centred, count = centred_ratings(tf.where(present, ratings, float("nan")))
        keys = self.key(items)
        logits = tf.matmul(keys, keys, transpose_b=True) * tf.cast(keys.shape[-1] ** -0.5, keys.dtype)
        attention = tf.nn.softmax(tf.cast(logits, tf.float32) + causal_mask(present)[:, 0])
        return attention * centred, centred, count

    def _gate(self, centred: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """``b_u``, float32 ``[B, L, 1]``."""
        spread = tf.sqrt(tf.math.divide_no_nan(tf.reduce_sum(centred**2, axis=-1), count) + 1e-6)
        gate = tf.sigmoid(self.gate(tf.stack([tf.math.log1p(count), spread], axis=-1)))
        heard = tf.cast(count > 0, tf.float32)[..., tf.newaxis]
        return gate * heard

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "dropout": self.rate, "seed": self.seed}

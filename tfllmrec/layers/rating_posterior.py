"""Computes a user's factors from the history and predicts ratings with them, in the graph."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfllmrec.layers.rows_of import rows_of


@tf.keras.utils.register_keras_serializable("tfllmrec")
class RatingPosterior(tf.keras.layers.Layer):
    """Computes the expected ratings of :class:`tfllmrec.models.rating_factors.RatingFactors`, not clipped.

        x_i = [1, f_i]                                              of each rated item of the history
        z   = (P + sum_i x_i x_i' / noise)^-1 (P m + sum_i x_i (r_i - mean - b_i) / noise)
        out = mean + b_c + <x_c, z>                                 for each candidate c
        m   = M' [1, log length, sum of met_i / sqrt(length)]       over all items of the history

    :meth:`set_weights` takes the arrays of ``RatingFactors.weights``. With the initial weights, every rating is 0. The
    weights are not trained.

    Args:
      n_items: The number N of items.
      rank: The number D of factors.
      components: The number P of components of ``met_i``.
    """

    #: Number of standard deviations at which the log length is clipped.
    FAR = 2.0

    def __init__(self, n_items: int, rank: int, components: int, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        self.n_items, self.rank, self.components = n_items, rank, components
        frozen = {"initializer": "zeros", "dtype": tf.float32, "trainable": False}
        #: b_i, f_i and met_i of each item.
        self.of_items = self.add_weight(name="of_items", shape=(n_items, 1 + rank + components), **frozen)
        self.met_map = self.add_weight(name="met_map", shape=(components + 2, rank + 1), **frozen)
        self.precision = self.add_weight(name="precision", shape=(rank + 1, rank + 1), **frozen | {"initializer": _eye})
        #: The mean rating, the noise, and the mean and standard deviation of the log length.
        self.scales = self.add_weight(name="scales", shape=(4,), **frozen | {"initializer": _scales})

    def call(self, history: tf.Tensor, ratings: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Returns the expected ratings, float32 ``[B, M]``.

        Args:
          history: Int32 ``[B, L]``, N and above for padding.
          ratings: Float32 ``[B, L]``, NaN for none.
          items: Int32 ``[B, M]``. N and above stand for unknown items, whose rating is ``mean`` plus the user's bias.
        """
        mean, noise, shift, scale = tf.unstack(self.scales)
        present = history < self.n_items
        known = rows_of(self.of_items, tf.where(present, history, 0))
        there = tf.cast(present, tf.float32)
        length = tf.reduce_sum(there, axis=1, keepdims=True)
        met = tf.reduce_sum(known[..., 1 + self.rank :] * there[..., tf.newaxis], axis=1)
        log_length = tf.clip_by_value((tf.math.log1p(length) - shift) / scale, -self.FAR, self.FAR)
        features = tf.concat([tf.ones_like(length), log_length, met / tf.sqrt(tf.maximum(length, 1.0))], axis=1)
        prior = tf.matmul(features, self.met_map)

        rated = present & tf.math.is_finite(ratings)
        vectors = self._vectors(known) * tf.cast(rated, tf.float32)[..., tf.newaxis]
        above = tf.where(rated, ratings - mean - known[..., 0], 0.0)
        left = self.precision + tf.matmul(vectors, vectors, transpose_a=True) / noise
        right = tf.matmul(prior, self.precision)[..., tf.newaxis]
        right += tf.matmul(vectors, above[..., tf.newaxis], transpose_a=True) / noise
        user = tf.linalg.cholesky_solve(tf.linalg.cholesky(left), right)
        is_known = items < self.n_items
        candidates = (
            rows_of(self.of_items, tf.where(is_known, items, 0)) * tf.cast(is_known, tf.float32)[..., tf.newaxis]
        )
        return mean + candidates[..., 0] + tf.matmul(self._vectors(candidates), user)[..., 0]

    def _vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.concat([tf.ones_like(rows[..., :1]), rows[..., 1 : 1 + self.rank]], axis=-1)

    def get_config(self) -> dict[str, Any]:
        sizes = {"n_items": self.n_items, "rank": self.rank, "components": self.components}
        return {**super().get_config(), **sizes}


def _eye(shape: tf.TensorShape, dtype: tf.DType = tf.float32, **_: Any) -> tf.Tensor:
    return tf.eye(shape[0], dtype=dtype)


def _scales(shape: tf.TensorShape, dtype: tf.DType = tf.float32, **_: Any) -> tf.Tensor:
    return tf.constant([0.0, 1.0, 0.0, 1.0], dtype)

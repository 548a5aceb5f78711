"""Encodes the time between two events as a vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

#: Number of powers of two of a second that are distinguished; they cover 34 years.
POWERS = 31


@tf.keras.utils.register_keras_serializable("tfllmrec")
class TimeGaps(tf.keras.layers.Layer):
    """A learned vector for each power of two of the seconds between two times, as in TiSASRec (Li et al. 2020).

    Buckets of powers of two distinguish orders of magnitude, such as minutes, days and months; seven buckets cover a
    minute to two hours. A gap below a second, including a negative one, counts as a second. A gap is unknown if one of
    the times is unknown.

    Args:
      dim: The width D of the vectors.
      seed: Random seed of the initial vectors.
    """

    def __init__(self, dim: int, seed: int, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # seconds since 1970 need all their digits
        self.dim, self.seed = dim, seed
        normal = tf.keras.initializers.RandomNormal(stddev=0.05, seed=seed)
        self.table = self.add_weight(name="table", shape=(POWERS + 1, dim), initializer=normal)

    def call(self, earlier: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        """Encodes the gaps between two times, float64 ``[...]`` in seconds, NaN for unknown, as ``[..., D]``."""
        gap = later - earlier
        known = tf.math.is_finite(gap)
        power = tf.math.log(tf.maximum(tf.where(known, gap, 1.0), 1.0)) / np.log(2)
        bucket = tf.clip_by_value(tf.cast(power, tf.int32), 0, POWERS - 1) + 1
        return tf.gather(self.table, tf.where(known, bucket, 0))

    def missing(self) -> tf.Tensor:
        """Returns the vector of an unknown gap, ``[D]``."""
        return self.table[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "seed": self.seed}

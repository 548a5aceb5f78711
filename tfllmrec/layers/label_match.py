"""Tells how well the labels of candidates fit a user's interests."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfllmrec.layers.interest_forecast import LabelHead, distribution
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.layers.rows_of import rows_of


@tf.keras.utils.register_keras_serializable("tfllmrec")
class LabelMatch(tf.keras.layers.Layer):
    """Computes two numbers for each candidate c from its labels l with the weights w:

        counted_c = sqrt(sum_l w_cl p_l)
        learned_c = sum_l w_cl log(q_l / b_l) / sum_l w_cl

    p is the distribution of labels that is counted in the history, q the distribution of the labels of next items that
    a head has learned (:class:`~tfllmrec.layers.interest_forecast.LabelHead`), and b the one that it predicts without a
    history. Both numbers are 0 for a candidate without labels. Nothing is trained.

    Args:
      profile: Counts the labels of a history.
      head: The learned head.
    """

    WIDTH = 2

    def __init__(self, profile: InterestProfile, head: LabelHead, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.profile, self.head = profile, head
        self.built = True

    def call(self, history: tf.Tensor, ratings: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Returns ``counted`` and ``learned``, float32 ``[B, M, 2]``.

        Args:
          history: Int32 ``[B, L]``, left-aligned, padded with N, newest last.
          ratings: Float32 ``[B, L]``, NaN for none.
          items: The candidates, int32 ``[B, M]``.
        """
        profile = self.profile(history, ratings)
        slow, fast = distribution(profile.slow), distribution(profile.fast)
        ahead = tf.nn.log_softmax(self.head.logits(slow, fast)) - tf.nn.log_softmax(self.head.bias)
        labels, weights = rows_of(self.profile.columns, items), rows_of(self.profile.weights, items)
        labels = tf.where(labels < self.profile.n_labels, labels, 0)  # padding has no weight
        counted, learned = (
            tf.reduce_sum(weights * tf.gather(of_labels, labels, batch_dims=1), axis=-1) for of_labels in (slow, ahead)
        )
        learned = tf.math.divide_no_nan(learned, tf.reduce_sum(weights, axis=-1))
        return tf.stack([tf.sqrt(counted), learned], axis=-1)

    def save_own_variables(self, store: Any) -> None:
        for name, variable in self.tables.items():
            store[name] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        for name, variable in self.tables.items():
            variable.assign(store[name])

    @property
    def tables(self) -> dict[str, tf.Variable]:
        """The tables by name."""
        # Keras' files have the variables of layers alone, and those of other modules only if they are named here.
        profile, head = self.profile, self.head
        counted = {"columns": profile.columns, "weights": profile.weights}
        return counted | {"slow": head.slow, "fast": head.fast, "out": head.out, "bias": head.bias}

    def get_config(self) -> dict[str, Any]:
        profile, head = self.profile, self.head
        sizes = [profile.n_items, profile.columns.shape[1], *head.out.shape]
        counting = [profile.decay, profile.per_mark, profile.fast]
        return {**super().get_config(), "sizes": sizes, "counting": counting, "scale": head.scale}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Creates a layer of the same sizes with empty tables, which are to be loaded."""
        config = dict(config)
        config.pop("trainable", None)
        n, per_item, c, r = config.pop("sizes")
        decay, per_mark, fast = config.pop("counting")
        profile = InterestProfile(np.full((n, per_item), c), np.zeros((n, per_item)), c, decay, per_mark, 1.0, fast)
        slow, fast, out = np.zeros((3, c, r))
        head = LabelHead(slow, fast, out, np.zeros(c), config.pop("scale"))
        return cls(profile, head, **config)

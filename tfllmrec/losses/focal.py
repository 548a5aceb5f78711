"""The focal loss: cross-entropy that gives less weight to examples that are already predicted well."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


@tf.keras.utils.register_keras_serializable("tfllmrec")
class FocalCrossentropy(tf.keras.losses.Loss):
    """``-(1 - p)^gamma log p`` of each example, with ``p = softmax(logits)[target]``; gamma 0 is plain cross-entropy.

    Easy targets, such as popular items, count less in training, and hard ones relatively more (Lin et al., "Focal Loss
    for Dense Object Detection", ICCV 2017, equation 4). The model's probabilities become too low for likely targets, so
    calibrate them afterwards.

    Args:
      gamma: At least 0; 2 in the paper.
      kwargs: ``reduction`` and ``name``, as in ``tf.keras.losses.Loss``.
    """

    def __init__(self, gamma: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = gamma

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Maps targets, int ``[B]``, and logits, float32 ``[B, M]``, to losses, float32 ``[B]``."""
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y_true, tf.int32), y_pred)
        # Bounded below, because for gamma < 1 the gradient of (1 - p)^gamma is infinite at p = 1.
        missing = tf.maximum(-tf.math.expm1(-losses), 1e-7)
        return missing**self.gamma * losses

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma}

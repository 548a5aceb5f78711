"""TFRS models that compute the metrics given to ``compile``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs


class MeasuredModel(tfrs.Model):
    """A ``tfrs.Model`` whose ``fit`` and ``evaluate`` compute the metrics given to ``compile``.

    ``tfrs.Model`` itself accepts ``compile(metrics=...)`` but never updates these metrics. The loss comes from
    ``compute_loss``, so ``compile`` needs none.
    """

    _has_metrics = False

    @abstractmethod
    def targets_and_predictions(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns ``y_true`` and ``y_pred`` of one batch for the metrics; ``y_pred`` never has dropout."""

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        self._has_metrics = bool(metrics or weighted_metrics)
        super().compile(optimizer, loss, metrics, loss_weights, weighted_metrics, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model from its config, as ``tf.keras.Model`` does if ``compile`` is not overridden."""
        self.compile(**tf.keras.saving.deserialize_keras_object(config))
        if isinstance(self.optimizer, tf.keras.optimizers.Optimizer):  # legacy optimizers build themselves
            self.optimizer.build(self.trainable_variables)

    def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Trains on one batch like ``tfrs.Model``; also returns ``gradient_norm``, the norm before any clipping."""
        self._update_metrics(inputs)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
            regularization = tf.add_n(self.losses) if self.losses else tf.constant(0.0)
            total = loss + regularization
        gradients = tape.gradient(total, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients if g is not None])
        results = {metric.name: metric.result() for metric in self.metrics}
        return results | {
            "loss": loss, "regularization_loss": regularization, "total_loss": total, "gradient_norm": norm,
        }  # fmt: skip

    def test_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        self._update_metrics(inputs)
        return super().test_step(inputs)

    def _update_metrics(self, inputs: Any) -> None:
        if self._has_metrics:
            self.compiled_metrics.update_state(*self.targets_and_predictions(inputs))

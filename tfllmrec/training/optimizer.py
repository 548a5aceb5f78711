"""AdamW with linear warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

#: Variables without weight decay, by a part of their name: gates, norms, biases and positions have no scale to shrink.
UNDECAYED = ["bias", "norm", "gamma", "beta", "gate", "log_scales", "positions", "half_count"]


@tf.keras.utils.register_keras_serializable("tfllmrec")
class WarmupCosine(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to ``peak`` over ``warmup_share`` of ``total_steps``, then falls to 0 along a half cosine."""

    def __init__(self, peak: float, total_steps: int, warmup_share: float) -> None:
        self.peak, self.total_steps, self.warmup_share = peak, total_steps, warmup_share

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        done = tf.cast(step, tf.float32) / self.total_steps
        rise = (done + 1.0 / self.total_steps) / max(self.warmup_share, 1e-9)
        fall = tf.clip_by_value((done - self.warmup_share) / (1.0 - self.warmup_share), 0.0, 1.0)
        return self.peak * tf.minimum(rise, 0.5 * (1.0 + tf.cos(math.pi * fall)))

    def get_config(self) -> dict:
        return {"peak": self.peak, "total_steps": self.total_steps, "warmup_share": self.warmup_share}


@tf.keras.utils.register_keras_serializable("tfllmrec")
class AdamW(tf.keras.optimizers.AdamW):
    """Keras' ``AdamW`` with the variables that it does not decay as part of its config.

    Args:
      undecayed: a variable is not decayed if its name contains one of these.
    """

    def __init__(self, *args: Any, undecayed: Iterable[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.undecayed = tuple(undecayed)
        self.exclude_from_weight_decay(var_names=list(self.undecayed))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "undecayed": list(self.undecayed)}


def adamw(
    peak: float, total_steps: int, warmup_share: float, weight_decay: float, undecayed: Sequence[tf.Variable] = ()
) -> tf.keras.optimizers.Optimizer:
    """What every model of ours is compiled with; gradients are clipped to norm 1.

    Args:
      peak, total_steps, warmup_share: of :class:`WarmupCosine`.
      weight_decay: of all variables but those with a name of :data:`UNDECAYED`.
      undecayed: further ones without it, where names say nothing.
    """
    schedule = WarmupCosine(peak, total_steps, warmup_share)
    optimizer = AdamW(schedule, weight_decay=weight_decay, global_clipnorm=1.0, undecayed=UNDECAYED)
    optimizer.exclude_from_weight_decay(var_list=list(undecayed), var_names=UNDECAYED)
    return optimizer

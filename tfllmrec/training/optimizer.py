"""AdamW with linear warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

#: Parts of the names of variables without weight decay, which does not suit gates, norms, biases and positions.
UNDECAYED = ["bias", "norm", "gamma", "beta", "gate", "log_scales", "positions", "half_count"]


@tf.keras.utils.register_keras_serializable("tfllmrec")
class WarmupCosine(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, and then falls to 0 along half a cosine.

    Args:
      peak: The highest learning rate.
      total_steps: The number of training steps.
      warmup_share: The share of ``total_steps`` in which the rate rises.
    """

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
    """Keras' ``AdamW`` whose config includes the variables without weight decay.

    Args:
      undecayed: Parts of names. A variable whose name contains one of these has no weight decay.
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
    """Creates the optimizer of every model in this library; gradients are clipped to a global norm of 1.

    Args:
      peak: As in :class:`WarmupCosine`.
      total_steps: As in :class:`WarmupCosine`.
      warmup_share: As in :class:`WarmupCosine`.
      weight_decay: The weight decay of all variables except those whose names contain a part in :data:`UNDECAYED`.
      undecayed: Further variables without weight decay, which cannot be recognised by their names.
    """
    schedule = WarmupCosine(peak, total_steps, warmup_share)
    optimizer = AdamW(schedule, weight_decay=weight_decay, global_clipnorm=1.0, undecayed=UNDECAYED)
    optimizer.exclude_from_weight_decay(var_list=list(undecayed), var_names=UNDECAYED)
    return optimizer

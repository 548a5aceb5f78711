"""Rank allocation of AdaLoRA: a decreasing budget, spent on the most important triplets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

#: Initial rank of a kernel, as a multiple of the average final rank.
INITIAL = 1.5
# Decay of the moving averages of sensitivity and uncertainty (beta_1 and beta_2 in the paper).
_SMOOTHING = 0.85
# Shares of the steps before the budget begins to fall, and after it has fallen: roughly those of the paper's table 8.
_WARM_UP, _FINAL = 0.1, 0.5
# Number of pruning steps in a training; between two of them, singular values that were set to 0 may grow again.
_CHOICES = 100


def initial_rank(rank: int, width_in: int, width_out: int) -> int:
    """Returns the initial rank of a kernel ``[width_in, width_out]``, at most the number of its singular values."""
    return min(math.ceil(INITIAL * rank), width_in, width_out)


class RankAllocation:
    """Chooses the triplets to keep (Zhang et al. 2023, arXiv:2303.10512, sections 3.2 and 3.3).

    A triplet is a singular value with its two singular vectors. An entry w with the gradient g has the sensitivity
    ``I = |w g|``, smoothed: ``S = 0.85 S + 0.15 I``, and the uncertainty ``U = 0.85 U + 0.15 |I - S|``. The importance
    of a triplet is the ``S U`` of its singular value plus the mean of ``S U`` over each of its two vectors. The b most
    important triplets of all kernels together are kept. Of T steps, b has its initial value up to ``0.1 T``, falls to
    ``rank`` times the number of kernels by ``b_T + (b_0 - b_T) (1 - (t - 0.1 T) / (0.4 T))^3``, and stays there after
    ``0.5 T``, with the same triplets.

    Args:
      triplets: For each kernel in turn, its left singular vectors ``[out, r]``, singular values ``[r]`` and right
        singular vectors ``[r, in]``.
      rank: The average final rank of a kernel.
      steps: T, the number of calls of :meth:`observe`: one for each update of the weights.

    Attributes:
      state: The variables of the allocation's state; not trainable.
    """

    def __init__(self, triplets: Sequence[tf.Variable], rank: int, steps: int) -> None:
        self._variables = list(triplets)
        self._sizes = [values.shape[0] for values in triplets[1::3]]
        self._first, self._last = sum(self._sizes), min(sum(self._sizes), rank * len(self._sizes))
        self._fall, self._fallen = _WARM_UP * steps, (1.0 - _FINAL) * steps
        self._interval = max(1, steps // _CHOICES)
        self._step = tf.Variable(0, trainable=False, dtype=tf.int32, name="adalora/step")
        self._sensitivity, self._uncertainty = (
            [tf.Variable(tf.zeros_like(v), trainable=False, name=f"{v.name[:-2]}/{name}") for v in self._variables]
            for name in ("sensitivity", "uncertainty")
        )
        self.state = [self._step, *self._sensitivity, *self._uncertainty]

    def observe(self, gradients: Sequence[tf.Tensor]) -> None:
        """Records an update; call it before applying ``gradients``, those of ``triplets`` in the same order."""
        # No variable is read after its assignment: in a gradient function, the graph may not keep the order.
        done = tf.identity(self._step)
        learning = tf.cast(done, tf.float32) < self._fallen
        self._step.assign(done + 1)
        for variable, gradient, sensitivity, uncertainty in zip(
            self._variables, gradients, self._sensitivity, self._uncertainty, strict=True
        ):
            now, before, doubt = tf.abs(variable * gradient), tf.identity(sensitivity), tf.identity(uncertainty)
            smooth = _SMOOTHING * before + (1.0 - _SMOOTHING) * now
            spread = _SMOOTHING * doubt + (1.0 - _SMOOTHING) * tf.abs(now - smooth)
            sensitivity.assign(tf.where(learning, smooth, before))
            uncertainty.assign(tf.where(learning, spread, doubt))

    @property
    def budget(self) -> tf.Tensor:
        """b, the number of triplets to keep, int32."""
        fallen = (tf.cast(self._step, tf.float32) - self._fall) / (self._fallen - self._fall)
        left = (1.0 - tf.clip_by_value(fallen, 0.0, 1.0)) ** 3
        return self._last + tf.cast((self._first - self._last) * left, tf.int32)

    def kept(self) -> list[tf.Tensor]:
        """Returns which triplets are kept now, bool ``[r]`` for each kernel; between pruning steps, all of them."""
        important = [s * u for s, u in zip(self._sensitivity, self._uncertainty, strict=True)]
        scores = [
            of_values + tf.reduce_mean(of_left, axis=0) + tf.reduce_mean(of_right, axis=1)
            for of_left, of_values, of_right in zip(important[::3], important[1::3], important[2::3], strict=True)
        ]
        order = tf.argsort(tf.concat(scores, axis=0), direction="DESCENDING", stable=True)
        chosen = tf.argsort(order) < self.budget
        choosing = (self._step % self._interval == 0) | (tf.cast(self._step, tf.float32) >= self._fallen)
        return tf.split(chosen | ~choosing, self._sizes)

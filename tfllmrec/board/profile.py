"""The model's graph and a profile of ten training steps."""

from __future__ import annotations

import contextlib
from pathlib import Path

import tensorflow as tf

#: The profile begins after FIRST steps, because the first steps also trace and allocate, and covers STEPS steps.
FIRST, STEPS = 10, 10


class GraphAndProfile(tf.keras.callbacks.TensorBoard):
    """Keras' callback for the graph of a training step, and a profile of :data:`STEPS` steps of the first epoch.

    An epoch of fewer than :data:`FIRST` + :data:`STEPS` steps is not profiled, nor is one while another profiler runs.
    TensorBoard shows the profile if ``tensorboard-plugin-profile`` is installed. The scalars are written by
    :class:`tfllmrec.board.scoreboard.Scoreboard`.

    Args:
      log_dir: The folder of TensorBoard logs.
    """

    def __init__(self, log_dir: Path | str) -> None:
        super().__init__(str(log_dir), write_graph=True, profile_batch=0)
        self._next, self._runs = True, False

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_begin(batch, logs)
        if self._next and batch == FIRST and (self.params.get("steps") or 0) >= FIRST + STEPS:
            self._next = False
            with contextlib.suppress(tf.errors.AlreadyExistsError):  # an interrupted fit left its profiler running
                tf.profiler.experimental.start(self.log_dir)
                self._runs = True

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        if batch == FIRST + STEPS - 1:
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Overrides the writing of scalars; does nothing."""

    def on_train_end(self, logs: dict | None = None) -> None:
        self._stop()
        super().on_train_end(logs)

    def _stop(self) -> None:
        if self._runs:
            tf.profiler.experimental.stop()
            self._runs = False

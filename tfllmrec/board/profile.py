"""The model's graph and a profile of ten training steps."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

#: The steps that are profiled; the first ones also trace and allocate.
PROFILED = (11, 20)


class GraphAndProfile(tf.keras.callbacks.TensorBoard):
    """Keras' callback for the graph of a training step and a profile of the steps :data:`PROFILED`.

    Scalars are left to :class:`tfllmrec.board.scoreboard.Scoreboard`. TensorBoard shows the profile where
    ``tensorboard-plugin-profile`` is installed.

    Args:
      log_dir: of TensorBoard.
    """

    def __init__(self, log_dir: Path | str) -> None:
        super().__init__(str(log_dir), write_graph=True, profile_batch=PROFILED)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes nothing."""

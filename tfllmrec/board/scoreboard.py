"""Writes the curves of a fit: metrics after each epoch, losses, speed, and horizontal lines for baselines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfllmrec.board.tags import SELECTION, TRAINING, layout, shown
from tfllmrec.evaluation.protocol import Result, selection_value
from tfllmrec.evaluation.report import list_length
from tfllmrec.progress import Tell

#: Other names that TFRS gives to the loss, unless a layer has a loss of its own.
_SAID_TWICE = ("regularization_loss", "total_loss")


@contextlib.contextmanager
def writing_to(folder: Path | str, step: int = 0) -> Iterator[tf.summary.SummaryWriter]:
    """Yields a writer of TensorBoard's files, the default one within the block; it is closed at the block's end."""
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=step):
        yield writer
    writer.close()


def write_figures(folder: Path | str, metrics: Mapping[str, float | None], steps: tuple[int, ...]) -> None:
    """Writes the figures of one model, such as a baseline, as a TensorBoard run of its own.

    Args:
      folder: The folder of the TensorBoard run; its name is that of the line.
      metrics: :attr:`Result.metrics`.
      steps: The steps of the values; two steps give a horizontal line.
    """
    with writing_to(folder):
        for step in steps:
            for tag, value in shown(metrics).items():
                tf.summary.scalar(tag, value, step=step)


class Scoreboard(tf.keras.callbacks.Callback):
    """Measures the model after each epoch, and writes figures, losses and speed to TensorBoard.

    The figures are added to Keras' ``logs``, and the value by which epochs are compared also as ``selection``, so
    ``EarlyStopping(monitor="selection", mode="max")`` works, too. Put this callback before those that read them.

    The tags are those of :mod:`tfllmrec.board.tags`; Custom Scalars shows them in order of importance.

    Args:
      measure: A function of the model that returns a :class:`Result`; usually ``evaluate`` on (a sample of) the
        validation queries.
      log_dir: The folder of TensorBoard logs; ``None`` writes nothing.
      tell: Called with a line for each epoch.
    """

    def __init__(
        self,
        measure: Callable[[tf.keras.Model], Result],
        log_dir: Path | str | None = None,
        tell: Tell | None = None,
    ) -> None:
        super().__init__()
        self.measure = measure
        self.tell = tell
        self.writer = tf.summary.create_file_writer(str(log_dir)) if log_dir else None
        self._has_layout = False
        self._began, self._steps = 0.0, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._began, self._steps = time.monotonic(), 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._steps += 1

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = logs if logs is not None else {}
        seconds = time.monotonic() - self._began
        result = self.measure(self.model)
        training = {name: float(value) for name, value in logs.items() if name not in _SAID_TWICE}
        if self._steps:  # false if the model is measured before it is trained
            training |= {"learning_rate": self._learning_rate(), "steps_per_second": self._steps / max(seconds, 1e-9)}
        figures = {SELECTION: selection_value(result), **shown(result.metrics)}
        logs |= {"selection": figures[SELECTION], **figures}
        figures |= {f"{TRAINING}/{name}": value for name, value in training.items()}
        if self.writer is not None:
            with self.writer.as_default(step=epoch):
                if not self._has_layout:
                    tf.summary.experimental.write_raw_pb(layout(figures), step=0)
                    self._has_layout = True
                for tag, value in figures.items():
                    tf.summary.scalar(tag, value)
            self.writer.flush()
        if self.tell is not None:
            self._tell(self.tell, epoch, result, logs)

    def _learning_rate(self) -> float:
        rate = self.model.optimizer.learning_rate
        # A schedule gives the rate of the last step.
        return float(rate(self.model.optimizer.iterations) if callable(rate) else rate)

    @staticmethod
    def _tell(tell: Tell, epoch: int, result: Result, logs: Mapping[str, Any]) -> None:
        k = list_length({"": result})
        labels = (f"ndcg@{k}", f"recall@{k}", f"recall@{k}/tail")
        losses = [f"{name} {logs[name]:.3f}" for name in ("retrieval_loss", "gate_loss") if name in logs]
        figures = [(label, value) for label in labels if (value := result.metrics.get(label)) is not None]
        measured = [f"{label} {value:.4f}" for label, value in figures]
        parts = [", ".join(losses), f"validation {', '.join(measured)}"]
        tell(f"epoch {epoch + 1}: {'; '.join(filter(None, parts))}")
        for alarm in result.alarms:
            tell(f"  alarm: {alarm}")

"""Keras callbacks that report progress, and that make a run resumable after an interruption at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tensorflow as tf
from pydantic import ConfigDict

from tfllmrec.durable import read_json, sync, write_text, writing
from tfllmrec.errors import ModelError
from tfllmrec.progress import Progress


class StepProgress(tf.keras.callbacks.Callback):
    """Reports to ``progress`` how many of ``total`` steps are done, including those before a run was resumed."""

    def __init__(self, progress: Progress, total: int, done: int = 0) -> None:
        super().__init__()
        self.progress, self.total, self.done = progress, total, done

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.done += 1
        self.progress(self.done, self.total)


@dataclass
class FitState:
    """The state of a fit, from which it can continue as if it had not been interrupted."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # for files; missing keys have their defaults

    epochs_done: int = 0
    best_epoch: int = -1
    best_value: float = -1.0
    finished: bool = False
    values: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> FitState:
        """Loads the state from a folder of checkpoints; returns the initial state if there is none.

        Raises:
          ModelError: The state is damaged.
        """
        path = folder / "state.json"
        return read_json(path, cls, f"delete {folder} and fit again") if path.exists() else cls()

    def save(self, folder: Path) -> None:
        write_text(folder / "state.json", json.dumps(asdict(self), indent=1))


class EpochCheckpoint(tf.keras.callbacks.Callback):
    """Saves each epoch, keeps the best and the last one, and stops after ``patience`` epochs without improvement.

    Epochs are compared by ``logs["selection"]`` of :class:`tfllmrec.board.scoreboard.Scoreboard`.

    The weights, the optimizer and the noise counters of an epoch are written to a separate folder. Then, a JSON file
    that points to this folder is replaced by renaming. A run that is killed in between, or stops because the disk is
    full, resumes from the previous epoch. Its result is that of an uninterrupted run, because batches and noise are
    functions of seed and step.

    Args:
      folder: The folder of the checkpoints.
      patience: The number of epochs without improvement after which training stops.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.patience = patience
        self.state = FitState.load(self.folder)

    def restore_last(self, model: tf.keras.Model) -> None:
        """Loads the last finished epoch, if there is one, into a compiled model."""
        if self.state.epochs_done:
            model.optimizer.build(model.trainable_variables)
            self._read(model, self.state.epochs_done - 1)

    def restore_best(self, model: tf.keras.Model) -> None:
        """Loads the weights of the best epoch."""
        if self.state.best_epoch >= 0:
            self._read(model, self.state.best_epoch)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        value = (logs or {})["selection"]
        target = self._path(epoch)
        write_weights(target, model=self.model, optimizer=self.model.optimizer)
        state = self.state
        state.epochs_done = epoch + 1
        state.values.append(value)
        if value > state.best_value:
            state.best_epoch, state.best_value = epoch, value
        state.finished = epoch - state.best_epoch >= self.patience
        state.save(self.folder)
        for old in self.folder.glob("epoch-*"):
            if old not in (target.parent, self._path(state.best_epoch).parent):
                shutil.rmtree(old, ignore_errors=True)
        if state.finished:
            self.model.stop_training = True

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}" / "weights"

    def _read(self, model: tf.keras.Model, epoch: int) -> None:
        remedy = f"delete {self.folder} and fit again, or fit into another folder"
        read_weights(self._path(epoch), remedy, model=model, optimizer=model.optimizer)


def write_weights(prefix: Path, **objects: Any) -> None:
    """Writes a checkpoint of ``objects`` into the folder of ``prefix``, and replaces the content of the folder.

    Raises:
      WriteError: The disk is full, read-only or broken. The folder is deleted in this case.
    """
    folder = prefix.parent
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            tf.train.Checkpoint(**objects).write(str(prefix))
            for path in (*folder.iterdir(), folder):
                sync(path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a partial checkpoint is useless
            raise


def read_weights(prefix: Path, remedy: str, *, optional: Iterable[tf.Variable] = (), **objects: Any) -> None:
    """Restores ``objects`` from a checkpoint that :func:`write_weights` wrote with the same names.

    Args:
      prefix: The prefix that was passed to :func:`write_weights`.
      remedy: What the user should do if the checkpoint is damaged; part of the error message.
      optional: Variables of the objects that keep their values if the checkpoint does not contain them.
      objects: The objects by their names in the checkpoint.

    Raises:
      ModelError: The checkpoint is missing, damaged, or belongs to a model with other settings.
    """
    checkpoint, spared = tf.train.Checkpoint(**objects), {variable.ref() for variable in optional}
    try:
        checkpoint.read(str(prefix)).expect_partial()
        _, _, lacking = tf.train.CheckpointView(str(prefix)).diff(checkpoint)
        if missing := [x.name for x in lacking if isinstance(x, tf.Variable) and x.ref() not in spared]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except Exception as error:  # TensorFlow raises errors of almost any type for a damaged checkpoint
        raise ModelError(
            f"{prefix} cannot be read; it is damaged, or was written with other settings "
            f"({str(error).partition(chr(10))[0]}): {remedy}."
        ) from error


def claim(path: Path, settings: Mapping[str, Any]) -> None:
    """Records the settings of the run that owns the folder of ``path``, or checks them if they are recorded already.

    Args:
      path: A JSON file, which is created if it is missing.
      settings: All settings that affect the result of the run, as JSON values.

    Raises:
      ModelError: The file contains other settings, or is damaged.
    """
    if not path.exists():
        write_text(path, json.dumps(settings, indent=1))
        return
    there = read_json(path, dict[str, Any], f"delete {path.parent} and start again")
    if other := [name for name in settings if there.get(name) != settings[name]]:
        raise ModelError(
            f"{path.parent} belongs to a run with other {', '.join(other)}: name another folder, or delete this one"
        )

"""The figures of a fit for Weights & Biases and MLflow, where a user has them installed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfllmrec.errors import ConfigError
from tfllmrec.progress import Tell


class Tracker(tf.keras.callbacks.Callback):
    """Sends Keras' ``logs`` of each epoch, so the losses and the figures of :class:`Scoreboard`, to a run there.

    It is the run that is active, or one that begins and ends with the fit. A tracker that cannot be reached is told of
    once, and the fit goes on.

    Args:
      name: ``wandb`` or ``mlflow``.
      run: the name of a run that begins. settings: of the fit, for such a run.
      tell: called with what went wrong.

    Raises:
      ConfigError: the package is not installed.
    """

    def __init__(self, name: str, run: str, settings: Mapping[str, Any], tell: Tell) -> None:
        super().__init__()
        try:
            self.package = importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"board.trackers: {name} is not installed ({error}): pip install {name}, or leave it out."
            ) from error
        self.name, self.run, self.settings, self.tell = name, run, settings, tell
        self._works, self._began = True, False

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._try({"wandb": self._begin_wandb, "mlflow": self._begin_mlflow}[self.name])

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        if self.name == "wandb":  # not its own step, which counts all calls and only grows
            self._try(self.package.log, {**figures, "epoch": epoch})
        else:  # names there consist of letters, digits and a few signs; @ is none of them
            named = {re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_")): value for name, value in figures.items()}
            self._try(self.package.log_metrics, named, step=epoch)

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._began:
            self._try(self.package.finish if self.name == "wandb" else self.package.end_run)

    def _begin_wandb(self) -> None:
        if self.package.run is None:
            self.package.init(project="tfllmrec", name=self.run, config=dict(self.settings))
            self._began = True

    def _begin_mlflow(self) -> None:
        if self.package.active_run() is None:
            self.package.start_run(run_name=self.run)
            self._began = True
            self.package.log_params(dict(self.settings))

    def _try(self, call: Any, *given: Any, **named: Any) -> None:
        if self._works:
            try:
                call(*given, **named)
            except Exception as error:  # of a network, a login, a disk of others
                self._works = False
                self.tell(f"warning: {self.name} gets no further figures: {type(error).__name__}: {error}")

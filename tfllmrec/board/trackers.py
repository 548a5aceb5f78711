"""Sends the figures of a fit to Weights & Biases and MLflow, if installed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfllmrec.errors import ConfigError
from tfllmrec.progress import Tell


class Tracker(tf.keras.callbacks.Callback):
    """Sends Keras' ``logs`` of each epoch (the losses, and the figures of :class:`Scoreboard`) to a tracker.

    They are added to the active run of the tracker; without one, a run is started for the fit. If the tracker cannot be
    reached, this is reported once, and the fit continues.

    Args:
      name: ``wandb`` or ``mlflow``.
      run: The name of a run that is started.
      settings: The settings of the fit, for a run that is started.
      tell: Called with an error message.

    Raises:
      ConfigError: The package is not installed.
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
        if self.name == "wandb":  # without wandb's own step, which counts all calls and only grows
            self._try(self.package.log, {**figures, "epoch": epoch})
        else:  # MLflow's names consist of letters, digits and a few other characters, without @
            named = {re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_")): value for name, value in figures.items()}
            self._try(self.package.log_metrics, named, step=epoch)

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._began:  # also after a failure, or the next fit of this process would log into this run
            self._call(self.package.finish if self.name == "wandb" else self.package.end_run)

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
            self._call(call, *given, **named)

    def _call(self, call: Any, *given: Any, **named: Any) -> None:
        try:
            call(*given, **named)
        except Exception as error:  # a failing network, login or disk must not stop the fit
            if self._works:
                self.tell(f"warning: {self.name} gets no further figures: {type(error).__name__}: {error}")
            self._works = False

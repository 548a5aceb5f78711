"""The figures of a fit for Weights & Biases and MLflow, where a user has them installed.

A tracker is a function of figures by tag and the epoch, for :class:`tfllmrec.board.scoreboard.Scoreboard`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from tfllmrec.errors import ConfigError

Tracker = Callable[[Mapping[str, float], int], None]


def tracker(name: str) -> Tracker:
    """``wandb`` or ``mlflow``: writes to the run that is active there, or begins one.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"board.trackers: {name} is not installed ({error}): pip install {name}, or leave it out."
        ) from error
    return {"wandb": _to_wandb, "mlflow": _to_mlflow}[name](package)


def _to_wandb(wandb: Any) -> Tracker:
    def log(figures: Mapping[str, float], epoch: int) -> None:
        if wandb.run is None:
            wandb.init(project="tfllmrec")
        wandb.log({**figures, "epoch": epoch})  # not its own step, which counts all calls and only grows

    return log


def _to_mlflow(mlflow: Any) -> Tracker:
    def log(figures: Mapping[str, float], epoch: int) -> None:
        # Names there consist of letters, digits and a few signs; @ is none of them.
        named = {re.sub(r"[^\w\-. /]", "_", tag.replace("@", "_at_")): value for tag, value in figures.items()}
        mlflow.log_metrics(named, step=epoch)

    return log

"""The callbacks of a fit, according to the config."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from tfllmrec.board.histograms import Histograms
from tfllmrec.board.lists import RecommendationsInWords
from tfllmrec.board.profile import GraphAndProfile
from tfllmrec.board.trackers import Tracker
from tfllmrec.config import ExperimentConfig, settings_by_key
from tfllmrec.data.splits import Split
from tfllmrec.progress import Tell


def board_callbacks(
    config: ExperimentConfig, split: Split, folder: Path, tell: Tell
) -> list[tf.keras.callbacks.Callback]:
    """Returns the callbacks that write to TensorBoard, beside the curves, and to trackers while a hybrid is trained.

    Args:
      config: The config of the fit.
      split: The split; its validation users are shown.
      folder: The run folder.
      tell: Called with a line if a tracker fails.

    Raises:
      ConfigError: The package of a tracker is not installed.
    """
    settings = settings_by_key(config)
    callbacks = [Tracker(name, folder.resolve().name, settings, tell) for name in config.board.trackers]
    if config.board.details:
        logs = folder / "logs"
        callbacks += [RecommendationsInWords.of(split, logs / "lists"), Histograms(logs / "histograms")]
        if not (folder / "checkpoints" / "state.json").exists():  # a resumed fit has written them before
            callbacks.append(GraphAndProfile(logs / "profile"))
    return callbacks

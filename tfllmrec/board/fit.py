"""The callbacks of a fit, as the config asks for them."""

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
    """What is written for TensorBoard and for trackers beside the curves, while a hybrid is trained.

    Args:
      folder: of the run.

    Raises:
      ConfigError: the package of a tracker is not installed.
    """
    settings = settings_by_key(config)
    callbacks = [Tracker(name, folder.resolve().name, settings, tell) for name in config.board.trackers]
    if config.board.details:
        logs = folder / "logs"
        callbacks += [RecommendationsInWords.of(split, logs / "lists"), Histograms(logs / "histograms")]
        if not (folder / "checkpoints" / "state.json").exists():  # a resumed fit has them
            callbacks.append(GraphAndProfile(logs / "profile"))
    return callbacks

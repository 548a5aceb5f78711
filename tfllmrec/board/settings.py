"""Writes a run's settings to TensorBoard: HParams, which compares runs, and texts on the values that were chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hp

from tfllmrec.board.scoreboard import writing_to
from tfllmrec.board.tags import SELECTION, tag_of
from tfllmrec.board.words import escaped


def write_settings(folder: Path | str, settings: Mapping[str, Any], k: int = 10) -> None:
    """Writes the settings of a run into ``folder``, whose subfolders hold its figures.

    HParams shows a row for each such folder below the one that TensorBoard reads, named after the run folder and its
    parent folder. Lists and missing values are written as text, because a column has values of one type.

    Args:
      folder: The folder of the run's logs, ``.../runs/shop/logs``.
      settings: The settings of the resolved config by ``section.name``.
      k: The length of the lists whose metrics are shown beside the settings.
    """
    plain = {key: _plain(value) for key, value in settings.items()}
    run = Path(folder).resolve().parent
    labels = [f"ndcg@{k}", *(f"recall@{k}{stratum}" for stratum in ("", "/tail", "/cold"))]
    metrics = [hp.Metric(SELECTION, "validation"), *(hp.Metric(tag_of(label), "test/hybrid") for label in labels)]
    with writing_to(folder):
        hp.hparams_config([hp.HParam(key) for key in plain], metrics)
        hp.hparams(plain, trial_id=f"{run.parent.name}/{run.name}")


def write_texts(folder: Path | str, texts: Mapping[str, str], step: int = 0) -> None:
    """Writes Markdown texts, such as the config and the model card, by their display names."""
    with writing_to(folder):
        for name, text in texts.items():
            tf.summary.text(name, text, step=step)


def as_markdown(chosen: Iterable[str], config: str) -> str:
    """Formats the automatically chosen values, one per line, and the config as YAML."""
    lines = [f"- {escaped(line)}" for line in chosen]
    return "\n".join(
        ["**Chosen from the data**", "", *lines, "", "**The resolved config**", "", "```", config.strip(), "```"]
    )


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else "none" if value is None else str(value)

"""Figures as images in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from tfllmrec.board.scoreboard import writing_to
from tfllmrec.evaluation.figures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_pictures(folder: Path | str, figures: Mapping[str, Figure], step: int = 0) -> None:
    """Writes figures of :mod:`tfllmrec.evaluation.figures` by their display names."""
    with writing_to(folder, step):
        for name, figure in figures.items():
            tf.summary.image(name, tf.io.decode_png(png(figure), channels=3)[tf.newaxis])

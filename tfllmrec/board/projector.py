"""Item vectors for TensorBoard's Projector, with what is known of each item beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig

from tfllmrec.board.scoreboard import writing_to
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.durable import replacing, write_text
from tfllmrec.wording import clipped

#: The file by which the Projector finds all others; written last.
CONFIG = "projector_config.pbtxt"
#: The most items that are shown: the Projector holds them all in the browser.
MOST = 10_000
#: The most numbers of a vector; wider ones are shown by their principal components.
WIDTH = 64
#: The most characters of a value beside an item.
LONGEST = 80


def sampled(strata: Mapping[str, np.ndarray], most: int = MOST) -> np.ndarray:
    """Items evenly over strata, int64, ascending: each stratum has the same number as far as it has so many.

    Args:
      strata: bool ``[N]`` by name; an item of several belongs to the last one that is named.
      most: how many items in all.
    """
    stratum = np.zeros(len(next(iter(strata.values()))), np.int64)
    for number, mask in enumerate(strata.values(), start=1):
        stratum[mask] = number
    groups = [np.flatnonzero(stratum == number) for number in range(1 + len(strata))]
    groups = sorted((group for group in groups if len(group)), key=len)
    kept: list[np.ndarray] = []
    for place, group in enumerate(groups):
        share = (most - sum(map(len, kept))) // (len(groups) - place)
        kept.append(group[evenly_spread(len(group), share)])
    return np.sort(np.concatenate(kept))


def write_projector(folder: Path | str, vectors: Mapping[str, np.ndarray], beside: pd.DataFrame) -> None:
    """Writes vectors of items and a table of what is known of them into a run of TensorBoard.

    Keras' ``embeddings_metadata`` looks for variables by name and finds none in a subclassed model, so vectors are
    written as files of their own, and paths are relative, so that a folder of logs can be moved.

    Args:
      folder: of the run.
      vectors: float ``[M, D]`` by the name to show. More than :data:`WIDTH` numbers are replaced by as many principal
        components.
      beside: a row for each of the M items; a column for each thing known, such as the title.

    Raises:
      ValueError: a name has not one vector for each row of ``beside``.
    """
    folder = Path(folder)
    config = ProjectorConfig()
    folder.mkdir(parents=True, exist_ok=True)
    # A column alone would have no heading: the Projector takes its first line for a value.
    table = beside if beside.shape[1] > 1 else beside.assign(row=np.arange(len(beside)))
    rows: list[Iterable[object]] = [table.columns, *table.to_numpy(object)]
    lines = ["\t".join(clipped(str(cell), LONGEST) for cell in row) for row in rows]
    write_text(folder / "items.tsv", "".join(f"{line}\n" for line in lines))
    for name, values in vectors.items():
        if len(values) != len(beside):
            raise ValueError(f"{name}: expected a vector for each of {len(beside):,} items, found {len(values):,}.")
        values = np.ascontiguousarray(_components(np.asarray(values, np.float32)), "<f4")
        path = f"{name.replace(' ', '_')}.bytes"
        with replacing(folder / path) as fresh:
            fresh.write_bytes(values.tobytes())
        config.embeddings.add(tensor_name=name, tensor_path=path, tensor_shape=values.shape, metadata_path="items.tsv")
    with writing_to(folder):  # TensorBoard looks for the file below in folders with events alone
        pass
    write_text(folder / CONFIG, text_format.MessageToString(config))


def _components(vectors: np.ndarray) -> np.ndarray:
    """``[M, D]``, or where D is larger than :data:`WIDTH`, so many principal components."""
    if vectors.shape[1] <= WIDTH:
        return vectors
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, : -WIDTH - 1 : -1]

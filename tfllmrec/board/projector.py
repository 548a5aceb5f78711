"""Writes item vectors for TensorBoard's Projector, with metadata of each item."""

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

#: The config file of the Projector, which refers to all other files; written last.
CONFIG = "projector_config.pbtxt"
#: The maximum number of items: the Projector holds all of them in the browser.
MOST = 10_000
#: The maximum dimension of a vector; longer vectors are replaced by their principal components.
WIDTH = 64
#: The maximum number of characters of a metadata value.
LONGEST = 80


def sampled(strata: Mapping[str, np.ndarray], most: int = MOST) -> np.ndarray:
    """Samples items evenly over strata, int64, ascending: the same number from each stratum, as far as it has as many.

    Args:
      strata: Bool ``[N]`` by name; an item in several strata belongs to the last of them.
      most: The maximum number of items in total.
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
    """Writes vectors of items, and a table of their metadata, into a folder of TensorBoard logs.

    Keras' ``embeddings_metadata`` looks for variables by name and finds none in a subclassed model, so vectors are
    written to files of their own. Paths are relative, so that a folder of logs can be moved.

    Args:
      folder: The folder of the TensorBoard run.
      vectors: Float ``[M, D]`` by display name. If D is larger than :data:`WIDTH`, vectors are replaced by as many
        principal components.
      beside: A row for each of the M items; a column for each kind of metadata, such as the title.

    Raises:
      ValueError: The number of vectors differs from the number of rows of ``beside``.
    """
    folder = Path(folder)
    config = ProjectorConfig()
    folder.mkdir(parents=True, exist_ok=True)
    # The Projector treats the first line of a table with a single column as a value, not as a heading.
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
    with writing_to(folder):  # TensorBoard finds the config file only in folders with event files
        pass
    write_text(folder / CONFIG, text_format.MessageToString(config))


def _components(vectors: np.ndarray) -> np.ndarray:
    """Returns the vectors ``[M, D]``; if D is larger than :data:`WIDTH`, as many principal components."""
    if vectors.shape[1] <= WIDTH:
        return vectors
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, : -WIDTH - 1 : -1]

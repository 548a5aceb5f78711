"""Adds the vectors of ``.npy`` files, such as those of images, to a table as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfllmrec.config import DataConfig
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.files.size_limits import SizeMeter
from tfllmrec.data.files.tables import require_file
from tfllmrec.data.findings import Finding
from tfllmrec.errors import ConfigError, DataError

#: Rows that are converted at once.
_ROWS = 4096


def with_vectors(raw: RawTable, files: Mapping[str, Path], config: DataConfig) -> RawTable:
    """The table with a further column for each file, whose cells are as in a column of lists: ``0.25, -1.5``.

    Args:
      raw: the table.
      files: by the name of the column: a file of numbers ``[R, D]``, D at least 2, with a row for each row of the
        table, in the same order. A row with a number that is not finite, or beyond float32, is a missing vector.
      config: for the limits ``max_bytes``, ``max_rows`` and ``max_columns``.

    Raises:
      ConfigError: the table has a column of that name already.
      DataError: a file is missing, unreadable or too large, or it has another shape.
    """
    findings = list(raw.findings)
    columns: dict[str, list[str]] = {}
    for name, path in files.items():
        if name in raw.frame:
            raise ConfigError(f"data.vectors.{name}: {raw.file} has a column {name} already. Choose another name.")
        columns[name] = _cells(_opened(path, config), raw, path)
        lacking = columns[name].count("")
        if lacking:
            findings.append(Finding(raw.table, f"no vector in {path.name}", lacking, "kept"))
    return replace(raw, frame=raw.frame.assign(**columns), findings=tuple(findings))


def _opened(path: Path, config: DataConfig) -> np.ndarray:
    """The array of a file, memory-mapped; its sizes are checked, its values are not read."""
    require_file(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: expected a .npy file as numpy.save writes it: {error}") from error
    found = f"found {array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "found several arrays"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] < 2:
        raise DataError(f"{path}: expected a vector of two or more numbers in each row, [R, D]; {found}.")
    meter = SizeMeter(config)
    meter.add_rows(len(array), path)
    meter.check("max_columns", array.shape[1], path)
    meter.add_bytes(array.nbytes, path)
    return array


def _cells(array: np.ndarray, raw: RawTable, path: Path) -> list[str]:
    if len(array) != len(raw.frame):
        raise DataError(
            f"{path}: expected a vector for each of the {len(raw.frame):,} rows read from {raw.file}, in the same "
            f"order; found {len(array):,}. Make the vectors from this file again, or add a column of lists to it."
        )
    cells: list[str] = []
    for start in range(0, len(array), _ROWS):
        with np.errstate(over="ignore"):
            some = np.asarray(array[start : start + _ROWS], np.float32)
        known = np.all(np.isfinite(some), axis=1)
        cells += [", ".join(row) if given else "" for row, given in zip(some.astype(str), known, strict=True)]
    return cells

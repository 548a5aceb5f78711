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

#: How many numbers are converted at once. As text, each takes 128 bytes in numpy.
_NUMBERS = 1 << 16


def with_vectors(raw: RawTable, files: Mapping[str, Path], config: DataConfig) -> RawTable:
    """Adds a column to the table for each file, with cells as in a column of lists: ``0.25, -1.5``.

    Args:
      raw: The table.
      files: Name of the column -> file of numbers ``[R, D]``, D at least 2, with a row for each row of the table, in
        the same order. A row with a number that is not finite, or beyond float32, is a missing vector.
      config: Provides the limits ``max_bytes``, ``max_rows`` and ``max_columns``. ``max_bytes`` limits the bytes of all
        files together, and ``max_columns`` their numbers per row together.

    Raises:
      ConfigError: The table already has a column of that name.
      DataError: A file is missing, unreadable or too large, or it has another shape.
    """
    findings = list(raw.findings)
    columns: dict[str, list[str]] = {}
    meter, width = SizeMeter(config), 0
    for name, path in files.items():
        if name in raw.frame:
            raise ConfigError(f"data.vectors.{name}: {raw.file} has a column {name} already. Choose another name.")
        array = _opened(path)
        width += array.shape[1]
        meter.check("max_rows", len(array), path)
        meter.check("max_columns", width, path)
        meter.add_bytes(array.nbytes, path)
        columns[name] = _cells(array, raw, path)
        lacking = columns[name].count("")
        if lacking:
            findings.append(Finding(raw.table, f"no vector in {path.name}", lacking, "kept"))
    return replace(raw, frame=raw.frame.assign(**columns), findings=tuple(findings))


def _opened(path: Path) -> np.ndarray:
    """Opens the array of a file memory-mapped, and checks its shape without reading its values."""
    require_file(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: expected a .npy file as numpy.save writes it: {error}") from error
    found = f"found {array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "found several arrays"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] < 2:
        raise DataError(f"{path}: expected a vector of two or more numbers in each row, [R, D]; {found}.")
    return array


def _cells(array: np.ndarray, raw: RawTable, path: Path) -> list[str]:
    if len(array) != len(raw.frame):
        skipped = [finding for finding in raw.findings if finding.action == "dropped"]
        remedy = "Make the vectors from this file again, or add a column of lists to it."
        if skipped:
            count = sum(finding.count for finding in skipped)
            reasons = "; ".join(f"{finding.what}: {finding.example}" for finding in skipped)
            remedy = (
                f"{raw.file} has {len(raw.frame) + count:,} rows, of which {count:,} were skipped ({reasons}). "
                "Mend or remove these rows, and make a vector for each row of the file, or add a column of lists to it."
            )
        raise DataError(
            f"{path}: expected a vector for each of the {len(raw.frame):,} rows read from {raw.file}, in the same "
            f"order; found {len(array):,}. {remedy}"
        )
    cells: list[str] = []
    rows = max(1, _NUMBERS // array.shape[1])
    for start in range(0, len(array), rows):
        with np.errstate(over="ignore"):
            some = np.asarray(array[start : start + rows], np.float32)
        known = np.all(np.isfinite(some), axis=1)
        cells += [", ".join(row) if given else "" for row, given in zip(some.astype(str), known, strict=True)]
    return cells

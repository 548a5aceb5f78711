"""Reads tables of feedback, such as the exposure log: columns under their own names, and checked values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning import values
from tfllmrec.data.files.tables import read_table
from tfllmrec.errors import DataError
from tfllmrec.wording import nearest_hint


def read_feedback(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Reads a file, or a folder of its parts, in any format that :func:`tfllmrec.data.read_dataset` reads.

    Returns:
      The table, whose columns have the names of the file; and a line on each kind of row that was dropped or repaired.

    Raises:
      DataError: the file is missing, empty, unreadable or too large.
    """
    raw = read_table(path, path.name, DataConfig())
    return raw.frame, [str(finding) for finding in raw.findings]


def require_columns(frame: pd.DataFrame, names: Sequence[str], what: str) -> None:
    """
    Args:
      what: has the columns, such as ``the exposure log``.

    Raises:
      DataError: a column is missing.
    """
    for name in names:
        if name not in frame:
            found = list(map(str, frame.columns))
            raise DataError(
                f"Expected a column {name!r} in {what}{nearest_hint(name, found)}; found {', '.join(found)}. Rename it."
            )


def texts(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as strings; a missing value is the empty string, and a whole number has no decimal point."""
    return values.strings(frame[name])


def numbers(frame: pd.DataFrame, name: str, what: str, missing: bool = False) -> np.ndarray:
    """A column as numbers, float64 ``[n]``; true is 1. Text is read as in ratings, with a decimal comma too.

    Args:
      what: has the column, for messages. missing: whether values may be missing; they are NaN.

    Raises:
      DataError: a value is no finite number, or missing.
    """
    column = frame[name]
    if pd.api.types.infer_dtype(column) == "boolean":
        column = column.astype("boolean").astype("Float64")
    parsed, wrong = values.numbers(column)
    absent = np.isnan(parsed) & ~wrong
    if not missing:
        wrong = wrong | absent
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        found = "a missing value" if absent[row] else repr(frame[name].iloc[row])
        raise DataError(
            f"Expected a finite number in each row of the column {name!r} of {what}; found {found} in row {row + 1:,}, "
            f"and {int(wrong.sum()):,} such rows in all. Correct or leave out these rows."
        )
    return parsed

"""Reads tables of feedback, such as the exposure log, with their own column names and checked values."""

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
      The table with the column names of the file, and a line on each kind of row that was dropped or repaired.

    Raises:
      DataError: The file is missing, empty, unreadable or too large.
    """
    raw = read_table(path, path.name, DataConfig())
    return raw.frame, [str(finding) for finding in raw.findings]


def require_columns(frame: pd.DataFrame, names: Sequence[str], what: str) -> None:
    """Checks that a table has columns.

    Args:
      frame: The table.
      names: The required columns.
      what: Names the table in messages, such as ``the exposure log``.

    Raises:
      DataError: A column is missing.
    """
    for name in names:
        if name not in frame:
            found = list(map(str, frame.columns))
            raise DataError(
                f"Expected a column {name!r} in {what}{nearest_hint(name, found)}; found {', '.join(found)}. Rename it."
            )


def texts(frame: pd.DataFrame, name: str) -> pd.Series:
    """Returns a column as strings; a missing value becomes the empty string, whole numbers have no decimal point."""
    return values.strings(frame[name])


def numbers(frame: pd.DataFrame, name: str, what: str, missing: bool = False) -> np.ndarray:
    """Returns a column as numbers, float64 ``[n]``; true is 1. Text is read as in ratings, also with a decimal comma.

    Args:
      frame: The table.
      name: The column.
      what: Names the table in messages.
      missing: Whether values may be missing; they become NaN.

    Raises:
      DataError: A value is not a finite number, or missing although ``missing`` is false.
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

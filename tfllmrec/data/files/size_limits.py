"""Limits on the size of a table, so that a small file that expands to much data cannot fill the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tfllmrec.config import DataConfig
from tfllmrec.errors import DataError

Limit = Literal["max_bytes", "max_rows", "max_columns", "max_depth"]
_UNITS = {
    "max_bytes": "bytes after decompression",
    "max_rows": "rows",
    "max_columns": "columns",
    "max_depth": "levels of nested values",
}
_CELL = 8  # bytes: a table in memory has at least a pointer or a number for each cell


class SizeMeter:
    """A counter of the size of one table, which may consist of several files; it refuses to exceed a limit.

    Args:
      config: The ``data`` section with ``max_bytes``, ``max_rows``, ``max_columns`` and ``max_depth``.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self.bytes = self.rows = 0

    def add_bytes(self, count: int, path: Path) -> None:
        self.bytes += count
        self.check("max_bytes", self.bytes, path)

    def add_rows(self, count: int, path: Path) -> None:
        self.rows += count
        self.check("max_rows", self.rows, path)

    def add_cells(self, rows: int, columns: int, path: Path) -> None:
        """Counts cells that are in no file: those of columns that only other parts of the table have."""
        self.check("max_columns", columns, path)
        self.add_bytes(rows * columns * _CELL, path)

    def check_cells(self, rows: int, columns: int, path: Path) -> None:
        """Refuses a table whose cells exceed ``max_bytes``, even if most are empty because each row has new columns."""
        self.check("max_columns", columns, path)
        self.check("max_bytes", rows * columns * _CELL, path, f"bytes for {rows:,} rows of {columns:,} columns")

    def check(self, limit: Limit, found: int, path: Path, unit: str | None = None) -> None:
        """Raises DataError, which names ``path`` and ``unit``, if ``found`` exceeds the limit."""
        allowed = getattr(self.config, limit)
        if found > allowed:
            raise DataError(
                f"{path}: found {found:,} {unit or _UNITS[limit]} or more; expected at most data.{limit} = "
                f"{allowed:,}. If the file is right and the memory suffices, raise data.{limit}; otherwise give a "
                "smaller file."
            )

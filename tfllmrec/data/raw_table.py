"""A file as it was read: columns of any type, and where each row stood."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tfllmrec.data.findings import Finding


@dataclass(frozen=True)
class RawTable:
    """A file as read: columns of any type, and where each row stood.

    Attributes:
      table: its name in the report.
      file: its name in messages.
      frame: the rows that could be split into fields; columns already carry their canonical names.
      rows: int64 ``[R]``, the line (or record) number in the file.
      spans: int64 ``[R]``, the lines that each row takes up (more than 1 where a quoted field holds line breaks).
      names: canonical column -> name in the file, for messages.
      findings: rows that reading itself lost or mended.
      unreadable: how many of the dropped ones in ``findings`` were broken (as opposed to blank).
    """

    table: str
    file: str
    frame: pd.DataFrame
    rows: np.ndarray
    spans: np.ndarray
    names: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    unreadable: int = 0

    def example(self, row: int, column: str | None = None) -> str:
        """Where the frame's row ``row`` stood, and what it held."""
        place = f"{self.file}:{self.rows[row]}"
        if column is None or column not in self.frame:
            return place
        value = str(self.frame[column].iloc[row])
        value = value if len(value) <= 60 else value[:57] + "..."
        return f"{place}, column {self.names.get(column, column)!r}: {value!r}"

    def source(self, others: str, order: str = "") -> str:
        """What was recognised in the file, in a line; ``others`` says what the columns are that were not."""
        rest = [column or "''" for column in self.frame.columns if column not in self.names]
        parts = [
            ", ".join(f"{column} <- {name}" for column, name in self.names.items()),
            order,
            f"{others}: {', '.join(rest)}" if rest else "",
        ]
        return f"{self.table.partition(':')[0]}: {self.file} ({'; '.join(filter(None, parts))})"

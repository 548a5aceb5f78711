"""A table as read from a file or a folder of parts: columns of any type, and the place of each row."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tfllmrec.data.findings import Finding


@dataclass(frozen=True)
class RawTable:
    """A table as read: columns of any type, and the place of each row.

    Attributes:
      table: Name of the table in the report.
      file: Name of the file, or of the folder of parts, in messages.
      frame: The rows that could be split into fields. The columns of ``names`` have their canonical names.
      rows: Int64 ``[R]``, the number of the line (or record) of each row in the file.
      spans: Int64 ``[R]``, how many lines each row spans (more than 1 if a quoted field holds line breaks).
      names: Canonical column -> name in the file, for messages.
      findings: Findings on rows that reading dropped or repaired.
      unreadable: How many of the dropped rows in ``findings`` were broken (as opposed to blank).
      parts: For a folder, the first row of each part in ``frame`` and the name of the part, in order.
    """

    table: str
    file: str
    frame: pd.DataFrame
    rows: np.ndarray
    spans: np.ndarray
    names: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    unreadable: int = 0
    parts: tuple[tuple[int, str], ...] = ()

    def example(self, row: int, column: str | None = None) -> str:
        """Describes where row ``row`` of the frame is in the file, and its value in ``column``."""
        part = bisect.bisect_right(self.parts, row, key=lambda part: part[0]) - 1
        place = f"{self.parts[part][1] if self.parts else self.file}:{self.rows[row]}"
        if column is None or column not in self.frame:
            return place
        value = str(self.frame[column].iloc[row])
        value = value if len(value) <= 60 else value[:57] + "..."
        return f"{place}, column {self.names.get(column, column)!r}: {value!r}"

    def source(self, others: str, order: str = "") -> str:
        """Returns a line on the recognised columns, the ``order`` of events, and, after ``others``, the rest."""
        rest = [column or "''" for column in self.frame.columns if column not in self.names]
        parts = [
            ", ".join(f"{column} <- {name}" for column, name in self.names.items()),
            order,
            f"{others}: {', '.join(rest)}" if rest else "",
        ]
        return f"{self.table.partition(':')[0]}: {self.file} ({'; '.join(filter(None, parts))})"


def distinct_names(names: Sequence[str]) -> list[str]:
    """Numbers repeated column names: the first keeps its name, the next one becomes ``NAME.2``."""
    seen: set[str] = set()
    out = []
    for name in names:
        distinct, number = name, 1
        while distinct in seen or (number > 1 and distinct in names):
            number += 1
            distinct = f"{name}.{number}"
        seen.add(distinct)
        out.append(distinct)
    return out

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
      table: its name in the report.
      file: the name of the file, or of the folder of parts, in messages.
      frame: the rows that could be split into fields; columns already carry their canonical names.
      rows: int64 ``[R]``, the line (or record) number in the file.
      spans: int64 ``[R]``, the lines that each row takes up (more than 1 where a quoted field holds line breaks).
      names: canonical column -> name in the file, for messages.
      findings: rows that reading dropped or repaired.
      unreadable: how many of the dropped rows in ``findings`` were broken (as opposed to blank).
      parts: of a folder, the first row of each part in ``frame`` and the name of the part, in order.
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
        """The place of the frame's row ``row``, and its value in ``column``."""
        part = bisect.bisect_right(self.parts, row, key=lambda part: part[0]) - 1
        place = f"{self.parts[part][1] if self.parts else self.file}:{self.rows[row]}"
        if column is None or column not in self.frame:
            return place
        value = str(self.frame[column].iloc[row])
        value = value if len(value) <= 60 else value[:57] + "..."
        return f"{place}, column {self.names.get(column, column)!r}: {value!r}"

    def source(self, others: str, order: str = "") -> str:
        """A line on the recognised columns, the ``order`` of events, and the rest, which ``others`` introduces."""
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

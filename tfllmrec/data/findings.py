"""The findings of reading and cleaning, one for each kind of fault, and the report of a whole data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

Action = Literal["dropped", "repaired", "added", "replaced", "kept", "doubted"]


@dataclass(frozen=True)
class Finding:
    """One kind of fault or peculiarity that reading or cleaning found.

    Attributes:
      table: ``events``, ``items``, ``users``, ``tags`` or ``more_items:FILE``.
      what: the reason, in words.
      count: rows (or values, where ``what`` says so) concerned.
      action: ``dropped`` rows are gone; ``repaired`` and ``kept`` ones stay; ``added`` ones were in no file, or are new
        in a data set that was extended; ``replaced`` rows of such a data set have other values now; ``doubted`` ones
        stay, but figures measured on them may be wrong: reports show these as warnings.
      example: ``FILE:ROW, column 'NAME': VALUE`` of the first one. Rows of text files are lines, the header being 1.
    """

    table: str
    what: str
    count: int
    action: Action
    example: str = ""

    def __str__(self) -> str:
        return f"{self.table}: {self.count:,} {self.action}: {self.what}" + (
            f" ({self.example})" if self.example else ""
        )


@dataclass
class CleaningReport:
    """The rows read and kept, and the findings. For every table ``rows_in == rows_kept + dropped(table)``.

    Attributes:
      rows_in: rows read, a table. A broken row that swallowed several lines counts as that many.
      rows_kept: rows of the file that stand in the data set, a table.
      findings: in the order they were met.
      sources: the columns recognised, a line a file, such as ``events: log.csv (user_id <- user, item_id <- sku,
        timestamp_s <- ts; ordered by timestamp_s; not used: page)``.
      tied_users: users with events that no column separates in time, so that a hash of the ids orders them.
    """

    rows_in: dict[str, int] = field(default_factory=dict)
    rows_kept: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    tied_users: int = 0

    def add(self, table: str, what: str, count: int, action: Action, example: str = "") -> None:
        """Notes a finding; a count of 0 is none."""
        if count:
            self.findings.append(Finding(table, what, int(count), action, example))

    def followed_by(self, later: CleaningReport) -> CleaningReport:
        """The report of a data set that was read with this one, and extended with ``later``."""

        def total(rows: dict[str, int], more: dict[str, int]) -> dict[str, int]:
            return {table: rows.get(table, 0) + more.get(table, 0) for table in {**rows, **more}}

        return CleaningReport(
            total(self.rows_in, later.rows_in),
            total(self.rows_kept, later.rows_kept),
            self.findings + later.findings,
            self.sources + later.sources,
            self.tied_users + later.tied_users,
        )

    def dropped(self, table: str) -> int:
        return sum(f.count for f in self.findings if f.table == table and f.action == "dropped")

    def doubts(self) -> list[str]:
        """The reasons why figures measured on this data may be wrong, and what to do about each."""
        doubted = [f for f in self.findings if f.action == "doubted"]
        return [f"{f.what} ({f.example})" if f.example else f.what for f in doubted]

    def lines(self) -> list[str]:
        """The report as text: the sources, the rows of each table, the findings, and the doubts last as warnings."""
        rows = [f"{table}: {n:,} rows read, {self.rows_kept[table]:,} kept" for table, n in self.rows_in.items()]
        findings = [f"  {finding}" for finding in self.findings if finding.action != "doubted"]
        return [*self.sources, *rows, *findings, *(f"warning: {doubt}" for doubt in self.doubts())]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> CleaningReport:
        """The report that :meth:`as_dict` gave; reports of earlier versions lack ``sources`` and ``tied_users``.

        Raises:
          ValueError: a value has another type.
        """
        return TypeAdapter(cls).validate_python(plain)

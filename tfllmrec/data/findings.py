"""Findings of reading and cleaning, one for each kind of fault, and the report on a whole data set."""

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
      what: The reason, in words.
      count: Number of affected rows (or values, if ``what`` says so).
      action: ``dropped`` rows are removed; ``repaired`` and ``kept`` rows stay; ``added`` rows were in no file, or are
        new in an extended data set; ``replaced`` rows of an extended data set have the values of new rows; ``doubted``
        rows stay, but figures measured on them may be wrong, so reports show them as warnings.
      example: ``FILE:ROW, column 'NAME': VALUE`` of the first affected row. Rows of text files are line numbers; the
        header is line 1.
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
      rows_in: Number of rows read, by table. A broken row that spans several lines counts as that many rows.
      rows_kept: Number of rows of the file that are in the data set, by table. Rows that an extension replaced later
        stay counted: of its rows, as many are ``replaced`` known ones.
      findings: The findings, in the order in which they were made.
      sources: The recognised columns, one line for each file, such as ``events: log.csv (user_id <- user, item_id <-
        sku, timestamp_s <- ts; ordered by timestamp_s; not used: page)``.
      tied_users: Number of users with events that no column separates in time, so that a hash of the ids orders them.
    """

    rows_in: dict[str, int] = field(default_factory=dict)
    rows_kept: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    tied_users: int = 0

    def add(self, table: str, what: str, count: int, action: Action, example: str = "") -> None:
        """Adds a finding, unless the count is 0."""
        if count:
            self.findings.append(Finding(table, what, int(count), action, example))

    def followed_by(self, later: CleaningReport) -> CleaningReport:
        """Returns the report on a data set that was read with this report and extended with ``later``."""

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
        """Returns the reasons why figures measured on this data may be wrong, and what to do about each."""
        doubted = [f for f in self.findings if f.action == "doubted"]
        return [f"{f.what} ({f.example})" if f.example else f.what for f in doubted]

    def lines(self) -> list[str]:
        """Returns the report as text: sources, rows of each table, findings, and finally the doubts as warnings."""
        rows = [f"{table}: {n:,} rows read, {self.rows_kept[table]:,} kept" for table, n in self.rows_in.items()]
        findings = [f"  {finding}" for finding in self.findings if finding.action != "doubted"]
        return [*self.sources, *rows, *findings, *(f"warning: {doubt}" for doubt in self.doubts())]

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> CleaningReport:
        """Creates the report from the result of :meth:`as_dict`; earlier versions lack ``sources`` and ``tied_users``.

        Raises:
          ValueError: A value has another type.
        """
        return TypeAdapter(cls).validate_python(plain)

"""The parts of a report's page, and the sections that the reports of one run and of several runs share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.data.findings import CleaningReport
from tfllmrec.evaluation import figures
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import scoreboard_rows
from tfllmrec.explain.pages import as_is
from tfllmrec.runs.run import Run
from tfllmrec.wording import clipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The maximum number of rows of a list or table whose length depends on the data, and of a table of settings.
ROWS, SETTINGS = 30, 60
#: The maximum number of characters of a setting.
LETTERS = 120
#: With fewer targets than these, a difference is reported as a hint, not as a claim.
CLAIM_TARGETS = 500
#: A note on how to read a table of paired intervals.
SIGNIFICANT = (
    "A difference is statistically significant at 5 % if its interval excludes 0. The intervals are not adjusted "
    "for the number of comparisons."
)


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
      header: The names of the columns.
      rows: The cells of each row; the first cell names the row.
      note: A note on the table.
      numbers: Whether all cells but the first are short, so that they are not wrapped.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numbers: bool = True

    def shortened(self, most: int) -> Table:
        """Returns the table with the first ``most`` rows, and a note on the number of further rows."""
        more = len(self.rows) - most
        if more <= 0:
            return self
        return replace(self, rows=self.rows[:most], note=f"{self.note} And {more:,} more.".lstrip())


@dataclass
class Section:
    """A section of a page, with its parts in the order in which they appear."""

    title: str
    parts: list[tuple[str, Any]] = field(default_factory=list)

    def text(self, *lines: str) -> None:
        self.parts += [("text", line) for line in lines]

    def items(self, lines: Sequence[str]) -> None:
        """Adds a list; a list of more than :data:`ROWS` lines is shortened."""
        shown = [*lines[:ROWS], *([f"and {len(lines) - ROWS:,} more"] if len(lines) > ROWS else [])]
        if shown:
            self.parts.append(("items", shown))

    def code(self, *lines: str) -> None:
        self.parts.append(("code", list(lines)))

    def table(self, table: Table) -> None:
        self.parts.append(("table", table))

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        self.parts.append(("figure", {"svg": as_is(figures.svg(figure, name, caption)), "caption": caption}))

    def examples(self, title: str, examples: Sequence[Mapping[str, Any]]) -> None:
        self.parts.append(("examples", {"title": title, "examples": examples}))


def add_data(section: Section, run: Run) -> None:
    """Adds the counts of the data and of the split, and the findings of reading the data."""
    measured, split = run.metrics["data"], run.metrics["split"]
    cleaning = run.record.get("cleaning")
    report = CleaningReport.from_dict(cleaning) if cleaning else run.dataset.report
    section.table(
        Table(
            ["", ""],
            [
                ["users", count(measured.get("users"))],
                ["items", count(measured.get("items"))],
                ["events", count(measured.get("events"))],
                ["split", split["kind"]],
                ["training events", count(split.get("train_events"))],
                ["test queries", count(split["queries"])],
                ["targets", count(split.get("targets"))],
                *([f"targets: {s}", count(split.get(f"targets/{s}"))] for s in ("head", "tail", "cold")),
                ["targets that the user had already", count(split.get("targets_excluded"))],
                ["head", f"the {split['head_share']:.0%} of items with the most training events"],
            ],
            numbers=False,
        )
    )
    section.items(report.lines())
    section.items([f"split: {finding}" for finding in run.split.findings])
    section.items([f"field: {line}" for line in run.split.schema.lines()])
    if notes := run.split.schema.notes:
        section.items(notes)


def provenance(run: Run) -> list[list[str]]:
    """Returns name and value of each fact on the origin of a run: data, seed, time, versions."""
    record = run.record
    source = {role: without_folders(value) for role, value in record["source"].items() if role != "columns"}
    return [
        ["run", run.name],
        ["source", ", ".join(f"{role} {value}" for role, value in source.items()) or "–"],
        ["data fingerprint", record["data_sha256"]],
        ["seed", str(record["seed"])],
        ["date", str(record.get("date", "–"))],
        ["time", f"{record['seconds']:,.0f} s"],
        ["peak memory", f"{record['peak_memory_mb']:,.0f} MB"],
        ["versions", ", ".join(f"{name} {version or '–'}" for name, version in record["versions"].items())],
    ]


def fit_again(folder: str) -> str:
    """Returns the shell command that repeats the run in a folder."""
    return f"tfllmrec fit {shlex.quote(f'{folder}/config.yaml')} --out {shlex.quote(f'{folder}-again')}"


def ranked_items(run: Run) -> str:
    """Names the items that a test query ranks: the whole catalogue, or those of ``split.domain``."""
    candidates = run.split.test.candidates
    if candidates is None:
        return "the whole catalogue"
    return f"the {np.count_nonzero(candidates):,} items of the domain {run.config.split.domain}"


def without_folders(value: Any) -> str:
    """Formats a setting for display; of an absolute path, only the last part is kept."""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return "auto" if value is None else clipped(str(value), LETTERS)


# Cells ----------------------------------------------------------------------------------------------------------------


def score_rows(results: Mapping[str, Result], columns: Sequence[str]) -> list[list[str]]:
    """Returns the rows of a scoreboard, with the best figure of each column in bold."""
    return [
        [name, *(as_is(f"<b>{text}</b>") if best else text for text, best in cells)]
        for name, cells in scoreboard_rows(results, columns)
    ]


def interval(found: tuple[float, float, float]) -> str:
    """Formats a difference and its interval."""
    difference, low, high = found
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def plain(value: float | None) -> str:
    """Formats a figure; a dash if there is none."""
    return "–" if value is None else f"{value:.4f}"


def count(value: int | None) -> str:
    """Formats a count; empty if it is unknown."""
    return "" if value is None else f"{value:,}"

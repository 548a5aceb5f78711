"""The parts of a report's page, and the sections that the reports of one run and of several share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllmrec.data.findings import CleaningReport
from tfllmrec.evaluation import figures
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import scoreboard_rows
from tfllmrec.explain.pages import as_is
from tfllmrec.runs.run import Run
from tfllmrec.wording import clipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows of a list or table whose length depends on the data, and of a table of settings, at most.
ROWS, SETTINGS = 30, 60
#: Letters of a setting, at most.
LETTERS = 120
#: Fewer targets than these make no claim, only a hint.
CLAIM_TARGETS = 500
#: How to read a table of paired intervals.
SIGNIFICANT = (
    "A difference is statistically significant at 5 % if its interval excludes 0. The intervals are not adjusted "
    "for the number of comparisons."
)


@dataclass(frozen=True)
class Table:
    """A table of a page: the first cell of each row names it; ``numbers``: the others are short, and not broken."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numbers: bool = True

    def shortened(self, most: int) -> Table:
        """The first ``most`` rows, and a note of how many more there are."""
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
        """A list; of a long one the first :data:`ROWS`."""
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
    """The counts of the data and of the split, and what reading the data found."""
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


def provenance(run: Run) -> list[list[str]]:
    """Name and value of what a run was made of and with."""
    record = run.record
    source = {role: without_folders(value) for role, value in record["source"].items()}
    return [
        ["run", run.folder.name],
        ["source", ", ".join(f"{role} {value}" for role, value in source.items()) or "–"],
        ["data fingerprint", record["data_sha256"]],
        ["seed", str(record["seed"])],
        ["date", str(record.get("date", "–"))],
        ["time", f"{record['seconds']:,.0f} s"],
        ["peak memory", f"{record['peak_memory_mb']:,.0f} MB"],
        ["versions", ", ".join(f"{name} {version or '–'}" for name, version in record["versions"].items())],
    ]


def fit_again(folder: str) -> str:
    """The command that repeats the run in a folder, for a shell."""
    return f"tfllmrec fit {shlex.quote(f'{folder}/config.yaml')} --out {shlex.quote(f'{folder}-again')}"


def without_folders(value: Any) -> str:
    """A setting for display, with the folders of the machine left out of an absolute path."""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return "auto" if value is None else clipped(str(value), LETTERS)


# Cells ----------------------------------------------------------------------------------------------------------------


def score_rows(results: Mapping[str, Result], columns: Sequence[str]) -> list[list[str]]:
    """The rows of a scoreboard, the best figure of each column bold."""
    return [
        [name, *(as_is(f"<b>{text}</b>") if best else text for text, best in cells)]
        for name, cells in scoreboard_rows(results, columns)
    ]


def interval(found: tuple[float, float, float]) -> str:
    """A difference and its interval."""
    difference, low, high = found
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def plain(value: float | None) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def count(value: int | None) -> str:
    """A number of things; nothing where it is not known."""
    return "" if value is None else f"{value:,}"

"""Where the commands' words go: results to stdout, one JSON document or a table; everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from tfllmrec.columns import ITEM, RANK, REASON, SCORE, TITLE
from tfllmrec.wording import visible

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.text import Text

# Tables in a log file or a pipe are not folded to the 80 columns that a terminal may have.
WIDTH_ELSEWHERE = 160


def console() -> Console:
    """A rich console on stdout; for tables of :func:`cell`, and rules."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE, highlight=False, markup=False)


def cell(text: str) -> Text:
    """Text of files in a table: no markup, and with its invisible characters shown."""
    from rich.text import Text

    return Text(visible(text))


def say(line: str = "") -> None:
    """A line of the result."""
    print(visible(line), flush=True)


def note(line: str) -> None:
    """A line beside the result."""
    print(visible(line), file=sys.stderr, flush=True)


@contextmanager
def working() -> Iterator[None]:
    """While a library works, what it prints (Keras does) goes to stderr."""
    with redirect_stdout(sys.stderr):
        yield


def print_json(document: Any) -> None:
    """One JSON document, indented; NaN is refused, because other languages cannot read it."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def as_rows(found: pd.DataFrame) -> list[dict[str, Any]]:
    """The recommendations of one query as plain JSON types."""
    return found[[RANK, ITEM, TITLE, SCORE, REASON]].to_dict("records")  # type: ignore[return-value]


def print_list(found: pd.DataFrame) -> None:
    """A table of the recommendations of one query, best first; columns that say nothing are left out."""
    if found.empty:
        note("nothing is left to recommend")
        return
    shown = [name for name in (TITLE, REASON) if ((found[name] != "") & (found[name] != found[ITEM])).any()]
    rows = [
        [str(row[RANK]), row[ITEM], f"{row[SCORE]:.4f}", *(row[name] for name in shown)]
        for row in found.to_dict("records")
    ]
    print_table(None, ["rank", "item", "score", *shown], rows, words=("item", *shown))


def print_table(
    title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str]
) -> None:
    """A table: the columns named in ``words`` are on the left, all others are numbers, on the right."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, title=None if title is None else cell(title), title_justify="left")
    for label in header:
        table.add_column(cell(label), justify="left" if label in words else "right")
    for row in rows:
        table.add_row(*map(cell, row))
    console().print(table)


def print_metrics(metrics: dict[str, Any]) -> None:
    """The scoreboard and its alarms."""
    from tfllmrec.evaluation.report import groups_table, scoreboard_of

    console().print(scoreboard_of(metrics))
    for key, groups in metrics.get("groups", {}).items():
        if len(groups) > 1:
            console().print(groups_table(key, groups))
    for alarm in metrics.get("alarms", []):
        say(f"alarm: {alarm}")

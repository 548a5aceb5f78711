"""Output of the commands: results (a JSON document or a table) go to stdout, everything else to stderr."""

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

# The width of tables in a log file or a pipe, which should not be wrapped at the 80 columns of a terminal.
WIDTH_ELSEWHERE = 160


def console() -> Console:
    """Returns a rich console on stdout, for rules and tables of :func:`cell`."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE, highlight=False, markup=False)


def cell(text: str) -> Text:
    """Converts text from files to a table cell, without markup and with its invisible characters shown."""
    from rich.text import Text

    return Text(visible(text))


def say(line: str = "") -> None:
    """Prints a line of the result to stdout."""
    print(visible(line), flush=True)


def note(line: str) -> None:
    """Prints a line that is not part of the result to stderr."""
    print(visible(line), file=sys.stderr, flush=True)


@contextmanager
def working() -> Iterator[None]:
    """Redirects what libraries such as Keras print within the block to stderr."""
    with redirect_stdout(sys.stderr):
        yield


def print_json(document: Any, indent: int | None = 2) -> None:
    """Prints a JSON document, on one line if ``indent`` is ``None``.

    NaN raises a ValueError, because other languages cannot read it.
    """
    print(json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False))


def as_rows(found: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the recommendations of one query as plain JSON types."""
    return found[[RANK, ITEM, TITLE, SCORE, REASON]].to_dict("records")  # type: ignore[return-value]


def print_list(found: pd.DataFrame, k: int | None = None) -> None:
    """Prints a table of the recommendations of one query, best first; columns without information are left out.

    A list that is shorter than ``k`` is reported on stderr.
    """
    if found.empty:
        note("nothing is left to recommend")
        return
    shown = [name for name in (TITLE, REASON) if ((found[name] != "") & (found[name] != found[ITEM])).any()]
    rows = [
        [str(row[RANK]), row[ITEM], f"{row[SCORE]:.4f}", *(row[name] for name in shown)]
        for row in found.to_dict("records")
    ]
    print_table(None, ["rank", "item", "score", *shown], rows, words=("item", *shown))
    if k is not None and len(found) < k:
        note(f"{len(found):,} of {k:,}: no further candidate passes")


def print_table(
    title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str]
) -> None:
    """Prints a table; columns named in ``words`` are left-aligned, all others hold numbers and are right-aligned."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, title=None if title is None else cell(title), title_justify="left")
    for label in header:
        table.add_column(cell(label), justify="left" if label in words else "right")
    for row in rows:
        table.add_row(*map(cell, row))
    console().print(table)


def print_metrics(metrics: dict[str, Any]) -> None:
    """Prints the scoreboard and its alarms."""
    from tfllmrec.evaluation.report import groups_table, scoreboard_of

    console().print(scoreboard_of(metrics))
    for key, groups in metrics.get("groups", {}).items():
        if len(groups) > 1:
            console().print(groups_table(key, groups))
    for alarm in metrics.get("alarms", []):
        say(f"alarm: {alarm}")

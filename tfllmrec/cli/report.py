"""``tfllmrec report``: writes a page on one run or on several runs side by side, and a run's model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, say, working


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, at most eight. All others are compared with the first one."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="FILE.html: only the page, to this file; FILE.md: only the card. By default report.html and CARD.md "
            "in the run folder; of several runs comparison.html in the first one.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a report of one run, or compare several runs.

    The report is one HTML page. For a single run there is also a model card.
    """
    suffix = "" if out is None else out.suffix.lower()
    if out is not None and suffix not in (".html", ".md"):
        raise typer.BadParameter(f"--out: expected FILE.html or FILE.md, found {out}.")
    if suffix == ".md" and len(runs) > 1:
        raise typer.BadParameter(f"--out {out}: a model card has one run, found {len(runs)}.")
    from tfllmrec.explain.card import write_card
    from tfllmrec.explain.report import write_report

    written: dict[str, Any] = {}
    with working():
        if suffix != ".md":
            page = write_report(runs, out)
            written |= {"report": str(page.path), "headline": page.headline, "differences": page.differences()}
        if suffix == ".md" or (out is None and len(runs) == 1):
            written["card"] = str(write_card(runs[0], out))
    if json:
        print_json(written)
    elif "headline" in written:
        say(written["headline"])
    for name in ("report", "card"):
        if name in written:
            note(f"{name}: {written[name]}")

"""``tfllmrec export``: one SavedModel out of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, working


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    target: Annotated[Path, typer.Argument(metavar="saved_models/NAME", help="Gets the next numbered version.")],
    json: Json = False,
) -> None:
    """Write a SavedModel that answers recommend, search and similar, and print its folder."""
    from tfllmrec.serving.export import export as export_run

    with working():
        folder = export_run(run, target)
    if json:
        print_json({"folder": str(folder)})
    else:
        print(folder)
    note(f"next: tfllmrec recommend {target} --history ID,ID")

"""``tfllmrec export``: writes a SavedModel of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, say, working


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    target: Annotated[Path, typer.Argument(metavar="saved_models/NAME", help="Gets the next numbered version.")],
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with items that came after the training, with their text and fields, in any format of a "
            "catalogue. For known items, the new values replace the old ones.",
        ),
    ] = None,
    index: Annotated[
        Literal["auto", "exact", "partitioned", "scann"],
        typer.Option(
            help="How items are searched. auto: exact up to 200,000 items, partitioned beyond. scann needs pip install "
            "-e '.[scann]' for the export and for serving, and stock TF Serving cannot load it."
        ),
    ] = "auto",
    json: Json = False,
) -> None:
    """Write a SavedModel of a run, and print its folder.

    The SavedModel answers recommend, search, similar, rank and interests.
    """
    from tfllmrec.serving.export import export as export_run
    from tfllmrec.serving.layout import read_manifest

    with working():
        folder = export_run(run, target, items, index=index)
    new = read_manifest(folder)["new_items"]
    if new:
        counted = (f"{new[what]:,} {what}" for what in ("added", "replaced", "unchanged", "dropped"))
        note(f"{new['file']}: {', '.join(counted)}")
    if json:
        print_json({"folder": str(folder), "new_items": new})
    else:
        say(str(folder))
    note(f"next: tfllmrec recommend {target} --history ID,ID")

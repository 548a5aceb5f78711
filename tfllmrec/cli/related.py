"""``tfllmrec related``: lists the neighbours of an item in the graph."""

from __future__ import annotations

from typing import Annotated

import typer

from tfllmrec.cli.arguments import Json, K, SavedModelPath, open_model
from tfllmrec.cli.output import as_rows, note, print_json, print_list, working


def related(
    saved_model: SavedModelPath,
    item: Annotated[str, typer.Argument(help="An item id.")],
    k: K = 10,
    json: Json = False,
) -> None:
    """List the neighbours of an item in the graph, with reasons."""
    with working():
        found = open_model(saved_model).related([item], k)
    if json:
        print_json({"item": item, "items": as_rows(found)})
    elif found.empty:
        note("the item has no neighbours in the graph")
    else:
        print_list(found)

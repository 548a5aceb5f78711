"""``tfllmrec similar``: lists items similar to an item."""

from __future__ import annotations

from typing import Annotated

import typer

from tfllmrec.cli.arguments import Allow, Category, Json, K, SavedModelPath, filters, open_model
from tfllmrec.cli.output import as_rows, print_json, print_list, working


def similar(
    saved_model: SavedModelPath,
    item: Annotated[str, typer.Argument(help="An item id.")],
    allow: Allow = None,
    category: Category = None,
    k: K = 10,
    json: Json = False,
) -> None:
    """List the items that are most similar to an item."""
    with working():
        model = open_model(saved_model)
        found = model.similar([item], k, **filters(model, allow, category))
    if json:
        print_json({"item": item, "items": as_rows(found)})
    else:
        print_list(found, k)

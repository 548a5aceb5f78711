"""``tfllmrec search``: items for free text."""

from __future__ import annotations

from typing import Annotated

import typer

from tfllmrec.cli.arguments import (
    Allow,
    Category,
    Exclude,
    History,
    Json,
    K,
    SavedModelPath,
    filters,
    ids,
    open_model,
    unknown_ids,
)
from tfllmrec.cli.output import as_rows, print_json, print_list, working


def search(
    saved_model: SavedModelPath,
    text: Annotated[str, typer.Argument(help="What is looked for, in words.")],
    history: History = None,
    exclude: Exclude = "",
    allow: Allow = None,
    category: Category = None,
    k: K = 10,
    json: Json = False,
) -> None:
    """Find items by free text, for a user's taste if a history is given."""
    past, excluded = ids(history), ids(exclude)
    with working():
        model = open_model(saved_model)
        unknown = unknown_ids(model, past + excluded)
        asked = filters(model, allow, category)
        found = model.search([text], k, histories=[past], exclude=excluded, **asked)
    if json:
        print_json({"text": text, "history": past, "unknown": unknown, "items": as_rows(found)})
    else:
        print_list(found)

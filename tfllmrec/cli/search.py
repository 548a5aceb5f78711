"""``tfllmrec search``: finds items by free text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

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
from tfllmrec.cli.output import as_rows, note, print_json, print_list, working
from tfllmrec.client.inputs import searched_texts

if TYPE_CHECKING:
    from tfllmrec.serving.saved_model import SavedModel
    from tfllmrec.text.reading import Reading


def search(
    saved_model: SavedModelPath,
    text: Annotated[str, typer.Argument(help="The query, in words.")],
    history: History = None,
    exclude: Exclude = "",
    allow: Allow = None,
    category: Category = None,
    k: K = 10,
    json: Json = False,
) -> None:
    """Find items by free text.

    With --history, the list also depends on the user's taste.
    """
    searched_texts([text])  # before TensorFlow starts
    past, excluded = ids(history), ids(exclude)
    with working():
        model = open_model(saved_model)
        unknown = unknown_ids(model, past + excluded)
        asked = filters(model, allow, category)
        reading = model.reading(text)
        found = model.search([text], k, histories=[past], exclude=excluded, **asked)
    if reading is not None and not reading.works:
        _warn(model, reading)
    if json:
        read = None if reading is None else {"works": reading.works, **asdict(reading)}
        print_json({"text": text, "reading": read, "history": past, "unknown": unknown, "items": as_rows(found)})
    else:
        print_list(found, k)


def _warn(model: SavedModel, reading: Reading) -> None:
    """Warns on stderr that the encoder cannot read the query."""
    from tfllmrec.text.reading import advice

    encoder = (model.manifest.get("config") or {}).get("text", {}).get("encoder")
    note(
        f"warning: the text encoder {encoder or 'of the model'} cannot read the query ({reading}), so the results "
        "hardly depend on it. Write the query in another language, or fit and export the model with another encoder. "
        f"{advice(encoder)}"
    )

"""``tfllmrec rank``: ranks given items for a user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.arguments import (
    Context,
    EventFields,
    History,
    Json,
    SavedModelPath,
    User,
    ids,
    open_model,
    past_of,
    unknown_ids,
)
from tfllmrec.cli.output import print_json, print_table, working

if TYPE_CHECKING:
    from tfllmrec.client.answers import Ranked


def rank(
    saved_model: SavedModelPath,
    items: Annotated[str, typer.Option("--items", metavar="ID,ID", help="The items to rank; written like --history.")],
    user: User = None,
    history: History = None,
    event_field: EventFields = None,
    context: Context = None,
    json: Json = False,
) -> None:
    """Rank given items for a user.

    Prints how likely each one is the user's next item, and its predicted rating.
    """
    if (user is None) == (history is None):
        raise typer.BadParameter("expected one of --user ID and --history ID,ID.")
    offered = ids(items)
    if not offered:
        raise typer.BadParameter("--items: expected at least one item id.")
    with working():
        model = open_model(saved_model)
        past, ratings, fields, typed = past_of(model, user, history, event_field, context)
        unknown = unknown_ids(model, typed + offered)
        found = model.rank(past, offered, ratings, **fields)
    if json:
        rows = [vars(item) for item in found]
        print_json({"user": user, "history": past, "unknown": unknown, "items": rows})
    else:
        _print(found)


def _print(found: list[Ranked]) -> None:
    rated = any(item.rating is not None for item in found)
    rows = []
    for place, item in enumerate(found, start=1):
        rating = [] if not rated else ["" if item.rating is None else f"{item.rating:.2f}"]
        rows.append([str(place), item.item_id, f"{item.click_probability:.4f}", *rating, item.title])
    header = ["rank", "item", "probability", *(["rating"] if rated else []), "title"]
    print_table(None, header, rows, words=("item", "title"))

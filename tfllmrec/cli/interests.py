"""``tfllmrec interests``: what a user is interested in."""

from __future__ import annotations

from dataclasses import asdict

import typer

from tfllmrec.cli.arguments import History, Json, K, SavedModelPath, User, open_model, past_of, unknown_ids
from tfllmrec.cli.output import cell, console, note, print_json, working


def interests(
    saved_model: SavedModelPath,
    user: User = None,
    history: History = None,
    k: K = 10,
    json: Json = False,
) -> None:
    """List what a user is interested in, as labels.

    The user is one of the training data (--user), or anyone with a history (--history).
    """
    if (user is None) == (history is None):
        raise typer.BadParameter("expected one of --user ID and --history ID,ID.")
    with working():
        model = open_model(saved_model)
        past, ratings, _, typed = past_of(model, user, history)
        unknown = unknown_ids(model, typed)
        found = model.interests(past, ratings, k)
    if json:
        rows = [asdict(interest) for interest in found]
        print_json({"user": user, "history": past, "unknown": unknown, "interests": rows})
        return
    if not found:
        note("no interests found for this history")
        return
    from rich.table import Table

    table = Table()
    for name in ("interest", "weight", "level", "trend", "because"):
        table.add_column(name, justify="right" if name == "weight" else "left")
    for interest in found:
        because = cell(model.title(interest.because))
        table.add_row(cell(interest.label), f"{interest.weight:.3f}", interest.level, interest.trend, because)
    console().print(table)

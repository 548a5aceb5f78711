"""``tfllmrec interests``: lists a user's interests."""

from __future__ import annotations

from dataclasses import asdict

import typer

from tfllmrec.cli.arguments import EventFields, History, Json, K, SavedModelPath, User, open_model, past_of, unknown_ids
from tfllmrec.cli.output import note, print_json, print_table, working


def interests(
    saved_model: SavedModelPath,
    user: User = None,
    history: History = None,
    event_field: EventFields = None,
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
        past, ratings, fields, typed = past_of(model, user, history, event_field)
        unknown = unknown_ids(model, typed)
        found = model.interests(past, ratings, k, event_fields=fields["event_fields"])
    if json:
        told = [asdict(interest) for interest in found]
        print_json({"user": user, "history": past, "unknown": unknown, "interests": told})
        return
    if not found:
        note("no interests found for this history")
        return
    header = ["interest", "weight", "level", "trend", "because"]
    rows = [[each.label, f"{each.weight:.3f}", each.level, each.trend, model.title(each.because)] for each in found]
    print_table(None, header, rows, words=("interest", "level", "trend", "because"))

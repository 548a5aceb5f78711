"""``tfllmrec explain``: explains the scores of items for a user."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from tfllmrec.cli.output import note, print_json, print_table, say, working

if TYPE_CHECKING:
    from tfllmrec.explain.explanation import ItemExplained

#: The number of events and words that are printed.
EVENTS, WORDS = 5, 8


def explain(
    saved_model: SavedModelPath,
    item: Annotated[str, typer.Option("--item", metavar="ID,ID", help="Items to explain, at most 20.")],
    user: User = None,
    history: History = None,
    event_field: EventFields = None,
    context: Context = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with the words highlighted.")
    ] = None,
    json: Json = False,
) -> None:
    """Explain the scores of items for a user.

    Prints what each event, field and word adds to a score. Needs the run folder that the model was exported from.
    """
    if (user is None) == (history is None):
        raise typer.BadParameter("expected one of --user ID and --history ID,ID.")
    if html is not None and html.suffix.lower() != ".html":
        raise typer.BadParameter(f"--html: expected FILE.html, found {html}.")
    items = list(dict.fromkeys(ids(item)))
    if not items:
        raise typer.BadParameter("--item: expected at least one item id.")
    from tfllmrec.explain.explanation import explain, write_explanation

    with working():
        model = open_model(saved_model)
        past, ratings, fields, typed = past_of(model, user, history, event_field, context)
        unknown = unknown_ids(model, typed)
        rated = None if ratings is None else [ratings]
        given: dict[str, Any] = {name: [value] for name, value in fields.items()}
        listed = model.recommend(histories=[past], k=len(items), ratings=rated, allow=items, **given)
        for hidden in [each for each in items if each in past and each not in set(listed["item_id"])]:
            note(f"{hidden}: in the history, so recommend lists it only with --skip exclusion")
        reasons = dict(zip(listed["item_id"], listed["reason"], strict=True))
        asked: dict[str, Any] = {"user": user}
        if user is None:
            asked = {"history": past, "ratings": ratings, "event_fields": fields["event_fields"]}
        asked["context"] = fields["context"]
        found = explain(model.run, items, **asked, reasons=reasons)
    if html is not None:
        whom = f"user {user}" if user is not None else f"history {', '.join(map(model.title, past))}"
        note(f"page: {write_explanation(found, whom, html)}")
    if json:
        print_json({"user": user, "history": past, "unknown": unknown, "items": [asdict(each) for each in found]})
        return
    for each in found:
        _print(each)


def _print(each: ItemExplained) -> None:
    say(f"{each.title} ({each.item_id}): score {each.score:.4f}" + (f", {each.reason}" if each.reason else ""))
    rows: list[list[str]] = []

    def row(name: str, *values: float) -> None:
        rows.append([name, *(f"{value:+.4f}" for value in values)])

    for event in each.events[:EVENTS]:
        mark = "" if event.rating is None else f" ({event.rating:g})"
        row(event.title + mark, *event.added.values(), event.total)
    if others := each.events[EVENTS:]:
        sums = [sum(event.added[term] for event in others) for term in each.terms]
        row(f"{len(others)} other events", *sums, sum(sums))
    if each.fields:
        row("fields of the request and its user", each.fields, *[0.0] * (len(each.terms) - 1), each.fields)
    row("the same for anyone", *each.anyone.values(), sum(each.anyone.values()) + each.popularity)
    row("score", *each.terms.values(), each.score)
    print_table(None, ["part", *each.terms, "all"], rows, words=("part",))
    words = sorted(each.words, key=lambda word: -abs(word.left_out))[:WORDS]
    if words:
        say("words: " + ", ".join(f"{word.word} {word.left_out:+.4f}" for word in words))
    say()

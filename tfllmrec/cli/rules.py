"""``tfllmrec rules``: manages the business rules of an exported model, which apply from the next request on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, print_table, say, working

if TYPE_CHECKING:
    from tfllmrec.serving.rules.folder import Applied

app = typer.Typer(
    name="rules",
    help="Hide, limit, sponsor and review items of an exported model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

#: The number of ids that a message names.
SHOWN = 5

ModelFolder = Annotated[
    Path, typer.Argument(metavar="MODEL_FOLDER", help="saved_models/NAME; all its versions obey the same rules.")
]


@app.command()
def apply(
    model_folder: ModelFolder,
    rules: Annotated[Path, typer.Argument(metavar="RULES", help="The rules: YAML or JSON; see docs/rules.md.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count, but change nothing.")] = False,
    json: Json = False,
) -> None:
    """Replace the rules of a model. Servers need no restart."""
    from tfllmrec.serving.rules.folder import apply_rules

    with working():
        applied = apply_rules(model_folder, rules, note, dry_run=dry_run)
    if json:
        print_json(applied.as_dict())
    else:
        print_applied(applied)
        if dry_run:
            note("nothing was changed")


@app.command()
def show(model_folder: ModelFolder, json: Json = False) -> None:
    """Print the rules of a model, and what they do."""
    from tfllmrec.serving.rules.folder import show_rules

    with working():
        stored, applied, others = show_rules(model_folder)
    if json:
        print_json(applied.as_dict() | {"text": stored.text, "not_applied": others})
    else:
        say(stored.text.rstrip() or "no rules")
        print_applied(applied)
    for number in others:
        note(f"version {number} has other rules, because an apply was interrupted: apply the rules again")


@app.command()
def review(
    model_folder: ModelFolder,
    approve: Annotated[
        list[str] | None, typer.Option("--approve", metavar="ID", help="Show this item. May be repeated.")
    ] = None,
    reject: Annotated[
        list[str] | None, typer.Option("--reject", metavar="ID", help="Keep this item hidden. May be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Approve or reject items, and list those that wait."""
    from tfllmrec.serving.rules.folder import review_items

    with working():
        applied = review_items(model_folder, approve or (), reject or ())
    waiting = [] if applied.newest is None else applied.newest.waiting
    if json:
        print_json({"waiting": [{"item_id": item, "title": title} for item, title in waiting]})
    elif not waiting:
        note("no item waits for a review")
    else:
        print_table(None, ["item", "title"], waiting, words=("item", "title"))


@app.command()
def clear(model_folder: ModelFolder, json: Json = False) -> None:
    """Remove all rules of a model. Decisions of reviews are kept."""
    from tfllmrec.serving.rules.folder import clear_rules

    with working():
        applied = clear_rules(model_folder)
    if json:
        print_json(applied.as_dict())
    else:
        print_applied(applied)


def print_applied(applied: Applied) -> None:
    """Prints the effect of each rule in the newest version, and the names that were not found in its catalogue."""
    newest = max(applied.versions)
    if (done := applied.newest) is not None:
        rows = [[str(count.line), count.rule, f"{count.items:,}"] for count in done.counts]
        print_table(None, ["line", "rule", "items"], rows, words=("rule",))
        for count in done.counts:
            if count.not_found:
                more = f" and {len(count.not_found) - SHOWN:,} more" if len(count.not_found) > SHOWN else ""
                names = ", ".join(count.not_found[:SHOWN])
                note(f"{applied.rules}, line {count.line}: not in the catalogue: {names}{more}")
            if count.without_value:
                note(f"{applied.rules}, line {count.line}: {count.without_value:,} items have no value")
            if count.never_shown:
                other = f"{count.never_shown:,} items are never shown, because of other rules"
                note(f"{applied.rules}, line {count.line}: {other}")
        say(
            f"version {newest}: {done.hidden:,} items hidden, {len(done.waiting):,} of which wait for a review; "
            f"{done.restricted:,} more are shown to some requests only"
        )
    else:
        say(f"version {newest}: no rules")
    for number in applied.older:
        note(f"version {number} was exported before there were rules, and obeys none: export the run again")
    for reason in applied.unfit.values():
        note(f"{reason} This version is not in use, and keeps its old rules.")

"""``tfllmrec update``: makes a run from an earlier run and newer events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tfllmrec.cli.arguments import Items, Json, Overrides, Users, require, require_data
from tfllmrec.cli.output import note, print_json, print_metrics, working
from tfllmrec.cli.promote import BasePath, Canary, print_verdict, promotion_as_json, say_labels


def update(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder. It is not changed.")],
    events: Annotated[
        Path,
        typer.Option(
            "--events",
            help="New events, in any format of 'fit', or an event log. Events that the run already knows are left out.",
        ),
    ],
    items: Items = None,
    users: Users = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="NEW_RUN", help="Folder to write; by default RUN with a number.")
    ] = None,
    promote: Annotated[
        Path | None,
        typer.Option(
            "--promote",
            metavar="saved_models/NAME",
            help="Export the new run to this folder and label it stable, if it is not worse than the version in "
            "use; otherwise exit with 5.",
        ),
    ] = None,
    canary: Canary = False,
    base_path: BasePath = None,
    json: Json = False,
) -> None:
    """Make a new run from an earlier run and newer data.

    Training starts from the weights of the earlier run. To continue after an interruption, repeat the command with the
    same --out, or run 'tfllmrec fit --resume NEW_RUN'.
    """
    if promote is None and (canary or base_path):
        raise typer.BadParameter("--canary and --base-path go with --promote.")
    require(run)
    for path in filter(None, (events, items, users)):
        require_data(path)
    from tfllmrec.runs.update import update_run

    with working():
        made = update_run(run, events, items, users, out, overrides=overrides or ())
    told: dict[str, Any] = {"run": str(made.folder), "parent": made.record["parent"], "metrics": made.metrics}
    if not json:
        print_metrics(made.metrics)
    note(f"run: {made.folder}")
    if promote is None:
        note(f"next: tfllmrec promote saved_models/NAME {made.folder}")
    else:
        from tfllmrec.serving.gate import NotPromoted, promote_run

        try:
            with working():
                state, verdict = promote_run(made, promote, canary=canary, base_path=base_path)
        except NotPromoted as error:
            if json:
                print_json(told | {"gate": error.verdict.as_dict()})
            else:
                print_verdict(error.verdict)
            raise
        told |= promotion_as_json(state, verdict)
        if not json:
            print_verdict(verdict)
            say_labels(promote, state)
    if json:
        print_json(told)

"""``tfllmrec transfer``: makes a run on a new domain from runs of other domains."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tfllmrec.cli.arguments import Events, Items, Json, Overrides, Users, asked_config
from tfllmrec.cli.output import note, print_json, print_metrics, say, working


def transfer(
    source: Annotated[
        list[Path],
        typer.Option(
            "--source",
            metavar="RUN",
            help="A complete run of another domain. May be repeated; name the most similar domain first.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Argument(help="Config of an experiment on the target domain. Without it, pass the files of the domain."),
    ] = None,
    events: Events = None,
    items: Items = None,
    users: Users = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="zero_shot, align, fine_tune, distil, joint, map or auto (the default); sets transfer.method.",
        ),
    ] = None,
    same_items: Annotated[
        str | None,
        typer.Option(
            "--same-items",
            metavar="BY",
            help="How to recognise the same item in both domains: id (the default), title or none.",
        ),
    ] = None,
    same_users: Annotated[bool, typer.Option("--same-users", help="Equal user ids mean the same user.")] = False,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder to write; by default runs/NAME.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare", metavar="RUN", help="A run fitted on the target alone, with the same split, to compare with."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a run on a new domain from runs of other domains.

    Works with or without training on the new domain's events. Prints the shared items and users, the distances between
    the texts of the domains, and the scoreboard.
    """
    named = {"method": method, "same_items": same_items, "same_users": same_users or None}
    paths = "[" + ", ".join(_quoted(path.resolve()) for path in source) + "]"
    added = [f"transfer.sources={paths}"]
    added += [f"transfer.{name}={str(value).lower()}" for name, value in named.items() if value is not None]
    if config is None and events is None:
        raise typer.BadParameter(
            "expected a CONFIG, or --events FILE, of the target domain. Every method needs some events of this domain "
            "to choose settings and to test the model."
        )
    asked = asked_config(config, events, items, users, [*(overrides or []), *added])
    assert asked is not None
    from tfllmrec.runs.experiment import fit_experiment
    from tfllmrec.runs.run import Run
    from tfllmrec.runs.transfer import check_comparable, compared

    alone = None if compare is None else Run.open(compare)
    with working():
        check = None if alone is None else partial(check_comparable, alone=alone)
        run = fit_experiment(asked.config, out, base=asked.base, check=check)
    record = run.transferred
    assert record is not None
    if not json:
        for line in record.lines():
            say(line)
        print_metrics(run.metrics)
    beside = {} if alone is None else compared(run, alone)
    if json:
        print_json({
            "transfer": record.model_dump(mode="json"),
            "compared": {label: asdict(each) for label, each in beside.items()},
            **run.metrics,
        })  # fmt: skip
        return
    for label, each in beside.items():
        say(f"{label}: {each}")
    note(f"run: {run.folder}")
    note(f"next: tfllmrec export {run.folder} saved_models/{run.name}")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"

"""``tfllmrec transfer``: from runs of other domains to a run on this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import Events, Items, Json, Overrides, Users, asked_config
from tfllmrec.cli.output import note, print_json, print_metrics, say, working

if TYPE_CHECKING:
    from tfllmrec.runs.run import Run


def transfer(
    source: Annotated[
        list[Path],
        typer.Option(
            "--source", metavar="RUN", help="A complete run of another domain; may be repeated, the closest one first."
        ),
    ],
    config: Annotated[Path | None, typer.Argument(help="Experiment on the target domain; or name its files.")] = None,
    events: Events = None,
    items: Items = None,
    users: Users = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="zero_shot, align, fine_tune, joint or auto (the default): transfer.method."),
    ] = None,
    same_items: Annotated[
        str | None, typer.Option("--same-items", metavar="BY", help="id (the default), title or none.")
    ] = None,
    same_users: Annotated[bool, typer.Option("--same-users", help="Equal user ids are one user.")] = False,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder to write; by default runs/NAME.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare", metavar="RUN", help="A run that was fitted on the target alone, with the same split."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Recommend in a domain with the help of runs of other domains: with or without training on its events.

    Prints what the domains share, how far apart their texts are, and the scoreboard. The result is a run like others.
    """
    named = {"method": method, "same_items": same_items, "same_users": same_users or None}
    paths = "[" + ", ".join(_quoted(path.resolve()) for path in source) + "]"
    added = [f"transfer.sources={paths}"]
    added += [f"transfer.{name}={str(value).lower()}" for name, value in named.items() if value is not None]
    asked = asked_config(config, events, items, users, [*(overrides or []), *added])
    if asked is None or (config is None and events is None):
        raise typer.BadParameter("expected a CONFIG, or --events FILE, of the target domain.")
    from tfllmrec.runs.experiment import fit_experiment
    from tfllmrec.runs.run import Run

    alone = None if compare is None else Run.open(compare)
    with working():
        run = fit_experiment(asked.config, out, base=asked.base)
    assert run.transferred is not None
    record = run.transferred.model_dump(mode="json")
    compared = None if alone is None else _compared(run, alone)
    if json:
        print_json({"transfer": record, "compared": compared, **run.metrics})
        return
    for line in transfer_lines(record):
        say(line)
    print_metrics(run.metrics)
    for label, values in (compared or {}).items():
        say(f"{label}: {values['here']:.4f}, {values['share']:.0%} of {compare}'s {values['alone']:.4f} "
            f"({values['difference']:+.4f} [{values['low']:+.4f}, {values['high']:+.4f}])")  # fmt: skip
    note(f"run: {run.folder}")
    note(f"next: tfllmrec export {run.folder} saved_models/{run.folder.name}")


def transfer_lines(record: dict[str, Any]) -> list[str]:
    """What ``transfer.json`` says, in words."""
    from tfllmrec.data.domains import Overlap
    from tfllmrec.evaluation.alignment import Distances

    lines = [str(Overlap.from_dict(each)) for each in record["overlaps"]]
    for name, verb in (("missing", "the target lacks"), ("unread", "the source does not know")):
        if record[name]:
            lines.append(f"{verb} {', '.join(record[name])}")
    return lines + [
        f"{name} alignment: {Distances(**each)}" for name, each in record["alignment"].items() if each is not None
    ]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _compared(run: Run, alone: Run) -> dict[str, dict[str, float]]:
    """By label, the figures of the run and of the one on the target alone, on the same test queries."""
    import numpy as np

    from tfllmrec.errors import ModelError
    from tfllmrec.evaluation.protocol import paired_difference
    from tfllmrec.evaluation.report import list_length

    ours, theirs = run.results["hybrid"], alone.results["hybrid"]
    k = list_length(run.results)
    if not np.array_equal(run.per_query["user_ids"], alone.per_query["user_ids"]):
        raise ModelError(f"{alone.folder} was measured on other test queries: fit it on the same data and split.")
    compared = {}
    for label in (f"ndcg@{k}", f"recall@{k}"):
        if label not in theirs.metrics:
            raise ModelError(f"{alone.folder} has no {label}: fit it with the same evaluation.ks.")
        found, low, high = paired_difference(ours, theirs, label)
        here, there = ours.metrics[label] or 0.0, theirs.metrics[label] or 0.0
        compared[label] = {
            "here": here, "alone": there, "share": here / there if there else float("inf"),
            "difference": found, "low": low, "high": high,
        }  # fmt: skip
    return compared

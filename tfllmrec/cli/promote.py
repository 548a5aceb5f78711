"""``tfllmrec promote`` and ``tfllmrec rollback``: select the version of an exported model that is in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, print_table, say, working

if TYPE_CHECKING:
    from tfllmrec.evaluation.regression import Verdict
    from tfllmrec.serving.promotion import Promotions

Model = Annotated[Path, typer.Argument(metavar="saved_models/NAME", help="The folder with the versions.")]
Canary = Annotated[
    bool,
    typer.Option(
        "--canary",
        help="Only label the version as canary. 'promote MODEL' without a run makes the canary stable later.",
    ),
]
BasePath = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Path of the folder as TF Serving sees it, such as /models/NAME. It is stored for later calls.",
    ),
]


def promote(
    model: Model,
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Export this run, if it is not worse than the stable version; otherwise exit with 5."
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=0, help="Promote this exported version without a comparison.")
    ] = None,
    canary: Canary = False,
    base_path: BasePath = None,
    json: Json = False,
) -> None:
    """Label a run, a version or the canary as stable.

    Servers follow without a restart.
    """
    if run is not None and version is not None:
        raise typer.BadParameter("expected a RUN or --version, found both.")
    if run is None and version is None and canary:
        raise typer.BadParameter("--canary goes with a RUN or --version.")
    from tfllmrec.serving import promotion

    verdict = None
    if run is not None:
        from tfllmrec.runs.run import Run
        from tfllmrec.serving.gate import NotPromoted, promote_run

        try:
            with working():
                state, verdict = promote_run(Run.open(run), model, canary=canary, base_path=base_path)
        except NotPromoted as error:
            if json:
                print_json({"gate": error.verdict.as_dict()})
            else:
                print_verdict(error.verdict)
            raise
    else:
        _require_versions(model)
        if canary:
            assert version is not None  # checked above
            promotion.adopt(model, base_path)  # otherwise the first labelled version would become stable at once
            state = promotion.set_canary(model, version, base_path)
        else:
            state = promotion.promote(model, base_path, version=version)
    if json:
        print_json(promotion_as_json(state, verdict))
        return
    print_verdict(verdict)
    say_labels(model, state)


def rollback(model: Model, json: Json = False) -> None:
    """Withdraw the canary, or go back to the previous version.

    If there is no canary, the previous version gets the label stable again. Servers need no restart.
    """
    from tfllmrec.serving import promotion

    _require_versions(model)
    state = promotion.rollback(model)
    if json:
        print_json(promotion_as_json(state, None))
    else:
        say_labels(model, state)


def _require_versions(model: Path) -> None:
    from tfllmrec.errors import ModelError
    from tfllmrec.serving.layout import version_folders

    if not model.is_dir() or not version_folders(model):
        raise ModelError(f"{model} has no versions: expected a folder that 'tfllmrec export' wrote.")


def promotion_as_json(state: Promotions, verdict: Verdict | None) -> dict[str, Any]:
    """Returns the labels and the verdict of the gate as JSON types."""
    step = state.history[-1].model_dump() if state.history else None
    return {"labels": state.labels, "step": step, "gate": None if verdict is None else verdict.as_dict()}


def say_labels(model: Path, state: Promotions) -> None:
    for label, number in state.labels.items():
        say(f"{label}: {model}/{number}")
    if state.canary is not None:
        note(f"next: tfllmrec promote {model}, or tfllmrec rollback {model}")


def print_verdict(verdict: Verdict | None) -> None:
    """Prints a table with a row for each stratum; nothing if there was no comparison."""
    if verdict is None:
        return
    folded = any(each.with_new_items is not None for each in verdict.strata)
    header = [
        "items",
        "targets",
        "in use",
        *(["in use, with new items"] if folded else []),
        "updated",
        "difference",
        "",
    ]
    rows = []
    for each in verdict.strata:
        new = "" if each.with_new_items is None else f"{each.with_new_items:.4f}"
        rows.append(
            [
                each.stratum,
                f"{each.targets:,}",
                f"{each.in_use:.4f}",
                *([new] if folded else []),
                f"{each.updated:.4f}",
                f"{each.updated - each.in_use:+.4f} [{each.low:+.4f}, {each.high:+.4f}]",
                "worse" if each.worse else "",
            ]
        )
    print_table(f"gate: {verdict.metric} on held-out events", header, rows, words=("items", ""))
    say(f"gate: {'passed' if verdict.passed else 'not passed'}")

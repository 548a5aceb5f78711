"""``tfllmrec evaluate``: measures a run or an exported model, and prints the scoreboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfllmrec.cli.arguments import Json, require
from tfllmrec.cli.output import print_json, print_metrics, working


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_SAVED_MODEL",
            help="A run folder, or saved_models/NAME (its stable version, or else its newest).",
        ),
    ],
    json: Json = False,
    refit_baselines: Annotated[
        bool,
        typer.Option(
            "--refit-baselines", help="Fit and measure the baselines again. By default, their figures are kept."
        ),
    ] = False,
) -> None:
    """Measure on the test events, and print the scoreboard."""
    require(path)
    from tfllmrec.serving.measure import measure

    with working():
        metrics = measure(path, refit_baselines)
    if json:
        print_json(metrics)
    else:
        print_metrics(metrics)

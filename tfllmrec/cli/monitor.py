"""``tfllmrec monitor``: reports what changed in a service since a reference period, from its event log."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.arguments import Json, require, seconds_of
from tfllmrec.cli.output import note, print_json, print_table, say, working
from tfllmrec.errors import CHECK_FAILED, DataError

if TYPE_CHECKING:
    import pandas as pd

    from tfllmrec.feedback.monitoring import Report, Trial


def monitor(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Folder of the event log that 'serve --log' writes.")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="PERIOD|LOG",
            help="Lists to compare with: of a period before the newest lists, such as 7d, or of another log. By "
            "default a period as long as --since.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="SAVED_MODEL",
            help="saved_models/NAME (its stable version, or else its newest) or saved_models/NAME/1: for figures by "
            "stratum of the items, and for their popularity. saved_models/NAME also compares a canary with the stable "
            "version.",
        ),
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="PERIOD", help="How far back the newest lists go: 1h, 24h, 7d.")
    ] = "24h",
    within: Annotated[
        str,
        typer.Option(
            "--within",
            metavar="PERIOD",
            help="An event counts for a list if it came within this time; lists newer than this are left out.",
        ),
    ] = "30m",
    scene: Annotated[
        str, typer.Option("--scene", metavar="FIELD", help="Field of the request by which figures are grouped.")
    ] = "scene",
    dwell: Annotated[
        str, typer.Option("--dwell", metavar="FIELD", help="Field of events with the seconds that a user stayed.")
    ] = "dwell_s",
    until: Annotated[
        datetime.datetime | None,
        typer.Option(
            "--until", metavar="TIME", help="Report as at this time (UTC), for archived logs: 2026-05-31T18:00:00."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write an HTML page; needs pip install -e '.[report]'."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare the newest lists of an event log with earlier lists.

    Exits with 3 if the log is old. Otherwise exits with 5 if there is an alarm, and with 3 if the log has a gap or no
    lists in the period, or if too few users have tried the canary of --model.
    """
    since_s, within_s = seconds_of(since, "--since"), seconds_of(within, "--within")
    before = None if reference is None else _reference(reference)
    items, trial = (None, None) if model is None else (_items(model), _trial(model))
    until_s = None if until is None else until.replace(tzinfo=until.tzinfo or datetime.UTC).timestamp()
    from tfllmrec.feedback.monitoring import monitor as monitored

    with working():
        found = monitored(
            log, before, items, since_s=since_s, within_s=within_s, scene=scene, dwell=dwell, until_s=until_s,
            trial=trial,
        )  # fmt: skip
        if html is not None:
            from tfllmrec.explain.monitoring import write_monitoring

            write_monitoring(found, html)
    if json:
        print_json(found.as_dict())
    else:
        print_report(found)
    if html is not None:
        note(f"page: {html}")
    if found.alarms and found.state != "old":  # an old log is not caused by the model: 'watch' must not roll back
        raise typer.Exit(CHECK_FAILED)
    if found.state in ("old", "gap", "waiting"):
        raise typer.Exit(DataError.exit_code)


def print_report(report: Report) -> None:
    """Prints the figures, the drifts and the exposure as tables, then changes, notes and alarms."""
    from tfllmrec.feedback.monitoring import change_lines, drift_rows, exposure_rows, figure_rows

    for title, (header, rows) in (
        ("What users did", figure_rows(report)),
        ("Inputs and scores", drift_rows(report)),
        ("Exposure of items", exposure_rows(report)),
    ):
        if rows:
            print_table(title, header, rows, words=(header[0], "group", "largest move"))
    for line in [*change_lines(report), *report.notes]:
        say(line)
    say(report.headline)
    for alarm in report.alarms:
        say(f"alarm: {alarm.message}")


def _reference(text: str) -> float | Path:
    """Parses a period, or the folder of a log."""
    return Path(text) if Path(text).exists() else seconds_of(text, "--reference")


def _items(model: Path) -> pd.DataFrame:
    """Returns the items of an exported model with their strata.

    Raises:
      ModelError: There is no such model, or it was exported before strata were written.
    """
    require(model)
    from tfllmrec.columns import STRATUM
    from tfllmrec.errors import ModelError
    from tfllmrec.serving.layout import read_catalogue
    from tfllmrec.serving.promotion import chosen_version

    items = read_catalogue(chosen_version(model) or model)
    if STRATUM not in items:
        raise ModelError(f"{model} was exported by a version of tfllmrec that wrote no strata: export the run again.")
    return items


def _trial(model: Path) -> Trial | None:
    """Returns the canary of a model's folder; ``None`` if there is none."""
    from tfllmrec.feedback.monitoring import Trial
    from tfllmrec.serving.promotion import read_promotions

    state = read_promotions(model)
    if (since_s := state.canary_since_s) is None:
        return None
    name = model.resolve().name
    return Trial(f"{name}/{state.canary}", f"{name}/{state.stable}", since_s)

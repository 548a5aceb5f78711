"""``tfllmrec events``: fills an event log from files, exports it to files, and prints its figures."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from tfllmrec.cli.arguments import Json, Overrides, config_of_files
from tfllmrec.cli.output import note, print_json, print_table, say, working

app = typer.Typer(
    name="events", help="Append to, describe and export an event log.", no_args_is_help=True, rich_markup_mode=None
)

Log = Annotated[Path, typer.Argument(metavar="LOG", help="Folder of the event log.")]


@app.command()
def append(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Folder of the event log; created if it is missing.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Events: CSV, TSV, JSONL or Parquet, compressed too, or folders."),
    ],
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Append the events of files.

    Rows that the log already has count as duplicates. Invalid rows are refused.
    """
    if wrong := [setting for setting in overrides or () if not setting.startswith("data.")]:
        raise typer.BadParameter(f"--set {wrong[0]}: expected a setting of the section data.")
    from tfllmrec.feedback.event_files import append_file
    from tfllmrec.feedback.event_log import EventLog

    config = config_of_files(None, None, None, overrides).config.data
    results = []
    with EventLog(log) as opened:
        for file in files:
            with working():
                done = append_file(opened, file, config)
            for line in [*done.report.lines(), *(f"refused: {reason}" for reason in done.reasons)]:
                note(line)
            results.append(done.as_dict())
            if not json:
                counts = ", ".join(
                    f"{getattr(done, name):,} {name}"
                    for name in ("accepted", "duplicates", "refused", "late", "skewed")
                    if getattr(done, name) or name == "accepted"
                )
                say(f"{done.file}: {counts}")
    if json:
        print_json({"log": str(log), "files": results})


@app.command()
def describe(log: Log, json: Json = False) -> None:
    """Print the figures of an event log."""
    from tfllmrec.feedback import event_log

    figures = event_log.describe(log)
    if json:
        print_json(figures)
        return
    from rich.filesize import decimal

    title, kinds, rows = figures.pop("folder"), figures.pop("kinds"), []
    for name, value in figures.items():
        if name.endswith("_s"):
            shown = (
                "-" if value is None else f"{datetime.datetime.fromtimestamp(value, datetime.UTC):%Y-%m-%d %H:%M:%S}"
            )
            name = f"{name.removesuffix('_s')} (UTC)"
        else:
            shown = decimal(value) if name == "bytes" else f"{value:,}"
        rows.append((name.replace("_", " "), shown))
    rows.append(("kinds", "  ".join(f"{kind or '(none)'} {count:,}" for kind, count in kinds.items()) or "-"))
    print_table(title, ("figure", "value"), rows, words=("figure", "value"))


@app.command()
def export(
    log: Log,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="FILE.parquet, FILE.csv, FILE.tsv or FILE.jsonl.")],
    since: Annotated[
        int, typer.Option("--since", min=0, help="Only rows after this number, which the previous export printed.")
    ] = 0,
    exposures: Annotated[
        bool, typer.Option("--exposures", help="Write the shown items instead of the events.")
    ] = False,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="With --exposures: add a column reward, which is 1 if an event of this kind followed."
        ),
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="With --exposures: only lists of this policy, such as search; can be repeated. By default recommend "
            "and recommend_full.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write events, or shown items, to a file.

    'tfllmrec fit --events' and pandas read the file.
    """
    from tfllmrec.feedback import event_files

    told = event_files.export(log, out, since, exposures, reward, policies or ())
    if json:
        print_json(told)
    else:
        if told["left_out"]:
            note(f"{told['left_out']:,} rare fields of events have no column")
        say(f"{out}: {told['rows']:,} rows; the next export: --since {told['next']}")

"""``tfllmrec data``: look at data, and clean it once, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import Events, Items, Json, Overrides, Users, config_of_files
from tfllmrec.cli.output import cell, console, note, print_json, say, working

if TYPE_CHECKING:
    from tfllmrec.data import Dataset

app = typer.Typer(name="data", help="Look at data, and clean it once.", no_args_is_help=True, rich_markup_mode=None)

Source = Annotated[
    str | None,
    typer.Argument(help="A config (.yaml), a folder in a known format, or a registered data set (movielens-100k)."),
]


@app.command()
def describe(
    source: Source = None,
    events: Events = None,
    items: Items = None,
    users: Users = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Read and clean data; print its figures, the findings of cleaning, and warnings about order and scripts."""
    dataset = _read(source, events, items, users, overrides)
    if json:
        print_json({**dataset.describe(), "cleaning": dataset.report.as_dict()})
    else:
        print_description(dataset)


@app.command()
def prepare(
    out: Annotated[Path, typer.Option("--out", help="Folder to write: Parquet tables and a manifest.")],
    source: Source = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            "--extend",
            metavar="FOLDER",
            help="A saved data set to add the files to; its items and users keep their indices.",
        ),
    ] = None,
    events: Events = None,
    items: Items = None,
    users: Users = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Read and clean data, and save it; the folder is a data.source that loads at once."""
    dataset = _read(source, events, items, users, overrides, extend)
    dataset.save(out)
    if json:
        print_json({"folder": str(out), **dataset.describe(), "cleaning": dataset.report.as_dict()})
    else:
        print_description(dataset)
        note(f"saved: {out}")


def print_description(dataset: Dataset) -> None:
    """Prints the figures of :meth:`Dataset.describe` as a table, then the cleaning report, whose doubts come last."""
    from rich.table import Table

    table = Table(title=cell(dataset.name), title_justify="left", show_header=False)
    described = dataset.describe()
    del described["doubts"]  # the report has them in full
    fields = described.pop("schema")
    for key, value in described.items():
        table.add_row(key.replace("_", " "), cell(f"{value:.1%}" if key == "items_with_text" else _worded(value)))
    for place, field in enumerate(fields):
        table.add_row("" if place else "schema", cell(field))
    console().print(table)
    for line in dataset.report.lines():
        say(line)


def _worded(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_worded(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list):
        return " to ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(
    source: str | None,
    events: Path | None,
    items: Path | None,
    users: Path | None,
    overrides: list[str] | None,
    extend: Path | None = None,
) -> Dataset:
    named = events or (extend and (items or users))
    if (source is None) == (named is None):
        raise typer.BadParameter(
            "expected SOURCE, or else --events FILE; --extend FOLDER also goes with --items or --users alone."
        )
    if source is not None and (items or users):
        raise typer.BadParameter("SOURCE names its files: leave out --items and --users, or use --set data.items=FILE.")
    from tfllmrec.config import LoadedConfig, load_config, parse_config

    if source is not None and Path(source).suffix in (".yaml", ".yml"):
        loaded = load_config(source, overrides or [])
    elif source is not None:
        raw = {"data": {"source": source}}
        loaded = LoadedConfig(parse_config(raw, overrides or [], origin="command line"), Path())
    else:
        loaded = config_of_files(events, items, users, overrides)
    from tfllmrec.data import Dataset, read_dataset

    with working():
        known = None if extend is None else Dataset.load(extend)
        return read_dataset(loaded.config.data, loaded.base, known)

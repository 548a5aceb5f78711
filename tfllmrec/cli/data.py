"""``tfllmrec data``: examines, cleans and joins data, without training anything."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import Events, Items, Json, Overrides, Users, config_of_files
from tfllmrec.cli.output import note, print_json, print_table, say, working
from tfllmrec.errors import ConfigError
from tfllmrec.progress import show_progress

if TYPE_CHECKING:
    from tfllmrec.data import Dataset
    from tfllmrec.data.features import FeatureReport

app = typer.Typer(name="data", help="Read, clean, join and examine data.", no_args_is_help=True, rich_markup_mode=None)

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
    """Read and clean data, and print figures and findings.

    Also warns if the order of events is doubtful, or if the scripts of the texts need another encoder.
    """
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
    """Read and clean data, and save it.

    Set data.source to the folder to load the data without cleaning it again.
    """
    dataset = _read(source, events, items, users, overrides, extend)
    dataset.save(out)
    if json:
        print_json({"folder": str(out), **dataset.describe(), "cleaning": dataset.report.as_dict()})
    else:
        print_description(dataset)
        note(f"saved: {out}")


@app.command()
def join(
    domains: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=SOURCE",
            help="A domain and its data, twice or more: a saved data set, a run folder, a config or a registered data "
            "set. Name the target domain last: where events have no times, its events come last.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write: Parquet tables and a manifest.")],
    share_users: Annotated[
        bool, typer.Option("--share-users/--separate-users", help="Whether equal user ids mean the same user.")
    ] = True,
    share_items: Annotated[
        bool, typer.Option("--share-items/--separate-items", help="Whether equal item ids mean the same item.")
    ] = False,
    json: Json = False,
) -> None:
    """Join the data of several domains into one data set.

    'fit' reads the result. Prints how many users and items the domains share. For runs with the same text encoder, it
    also prints how different their item texts are.
    """
    from tfllmrec.data.dataset import MANIFEST
    from tfllmrec.data.domains import join_datasets, overlaps
    from tfllmrec.runs.run import Run
    from tfllmrec.runs.transfer import text_distances

    datasets, runs = {}, {}
    for each in domains:
        name, separator, source = each.partition("=")
        if not separator or not name or not source:
            raise ConfigError(f"Expected NAME=SOURCE, such as toys=runs/toys, found {each!r}.")
        if name in datasets:
            raise ConfigError(f"Expected each domain once, found {name!r} twice.")
        folder = Path(source)
        in_run = (folder / "data" / MANIFEST).is_file()
        if in_run:
            runs[name] = Run(folder)
        datasets[name] = _read(str(folder / "data") if in_run else source, None, None, None, None)
    joined = join_datasets(datasets, share_users=share_users, share_items=share_items)
    joined.save(out)
    apart = text_distances(runs)
    if json:
        shared = [each.as_dict() for each in overlaps(datasets, share_users, share_items)]
        print_json({
            "folder": str(out), **joined.describe(), "overlaps": shared,
            "alignment": {what: each.as_dict() for what, each in apart.items()}, "cleaning": joined.report.as_dict(),
        })  # fmt: skip
    else:
        print_description(joined)
        for what, distance in apart.items():
            say(f"{what}: {distance}")
        note(f"saved: {out}")


@app.command()
def features(
    source: Source = None,
    events: Events = None,
    items: Items = None,
    users: Users = None,
    rows: Annotated[
        int, typer.Option("--rows", min=100, help="Number of events to read; a larger log is sampled.")
    ] = 200_000,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the sample and of the permutation test.")] = 42,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Show how informative each field is, and which to leave out.

    Measures how closely each field is associated with the chosen item, its rating and its popularity.
    """
    from tfllmrec.data.features import feature_report

    dataset = _read(source, events, items, users, overrides)
    with working(), show_progress("Measuring fields", "fields") as progress:
        report = feature_report(dataset, rows, seed, progress)
    if json:
        print_json(report.as_dict())
    else:
        print_features(dataset.name, report)


def print_features(name: str, report: FeatureReport) -> None:
    """Prints a table of the fields, the pairs of associated fields, and the setting that leaves fields out."""
    words = [name for name in report.header if name not in ("missing", "distinct", "outliers")]
    print_table(f"{name}: {report.sampled:,} of {report.events:,} events", report.header, report.rows, words)
    for pair in report.pairs:
        say(pair.line())
    if report.advice:
        say(f"To {report.advice}: --set {shlex.quote(report.suggestion)}")


def print_description(dataset: Dataset) -> None:
    """Prints the figures of :meth:`Dataset.describe` as a table, then the cleaning report, and the doubts last."""
    described = dataset.describe()
    doubts = described.pop("doubts")[len(dataset.report.doubts()) :]  # the report has the others
    fields = described.pop("schema")
    rows = [
        (key.replace("_", " "), f"{value:.1%}" if key == "items_with_text" else _worded(value))
        for key, value in described.items()
    ]
    rows += [("" if place else "schema", field) for place, field in enumerate(fields)]
    print_table(dataset.name, ("figure", "value"), rows, words=("figure", "value"))
    for line in [*dataset.schema.notes, *dataset.report.lines(), *(f"warning: {doubt}" for doubt in doubts)]:
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
        alone = "" if extend is None else "; --extend also goes with --items or --users alone"
        raise typer.BadParameter(f"expected SOURCE, or else --events FILE{alone}.")
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
        return read_dataset(loaded.config.data, loaded.base, known, loaded.config.split.named_events)

"""Arguments shared by several commands, and functions that parse them."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.output import note
from tfllmrec.errors import ModelError
from tfllmrec.wording import nearest

if TYPE_CHECKING:
    from tfllmrec.config import LoadedConfig
    from tfllmrec.serving.saved_model import SavedModel

SavedModelPath = Annotated[
    Path, typer.Argument(metavar="SAVED_MODEL", help="saved_models/NAME (its newest version) or saved_models/NAME/1.")
]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="Length of the list.")]
History = Annotated[
    str | None,
    typer.Option(
        "--history",
        metavar="ID,ID",
        help="The history of any user: item ids, oldest first. Put an id that contains a comma in double quotes.",
    ),
]
User = Annotated[str | None, typer.Option("--user", metavar="ID", help="A user of the training data.")]
Exclude = Annotated[str, typer.Option("--exclude", metavar="ID,ID", help="Items to leave out; written like --history.")]
Allow = Annotated[
    str | None,
    typer.Option(
        "--allow",
        metavar="ID,ID",
        help="List only these items: ids with commas between them. Put an id that contains a comma in double quotes.",
    ),
]
Category = Annotated[
    list[str] | None,
    typer.Option(
        "--category",
        metavar="NAME",
        help="Only items of this category. May be repeated; an item then needs one of the categories.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Set a setting; C is YAML. May be repeated.")
]
Events = Annotated[
    Path | None,
    typer.Option(
        "--events",
        help="Events: a CSV, TSV, JSONL or Parquet file (may be compressed), a folder of parts, or an event log.",
    ),
]
Items = Annotated[
    Path | None, typer.Option("--items", help="Catalogue: a file, or a folder of parts, in a format of 'fit --events'.")
]
Users = Annotated[
    Path | None,
    typer.Option(
        "--users", help="Users table, in a format of 'fit --events'. The model reads its columns as fields of the user."
    ),
]


def ids(text: str | None) -> list[str]:
    """Splits a line of CSV into ids: ``'a, "b, c"'`` gives ``["a", "b, c"]``; an empty text gives none."""
    lines = csv.reader((text or "").splitlines(keepends=True), skipinitialspace=True)
    return [part.strip() for line in lines for part in line if part.strip()]


def config_of_files(
    events: Path | None, items: Path | None, users: Path | None, overrides: list[str] | None
) -> LoadedConfig:
    """Returns a config for files named on the command line; relative paths start from the current folder."""
    from tfllmrec.config import LoadedConfig, parse_config

    named = {"events": events, "items": items, "users": users}
    data = {role: str(path) for role, path in named.items() if path is not None}
    return LoadedConfig(parse_config({"data": data}, overrides or [], origin="command line"), Path())


def asked_config(
    config: Path | None, events: Path | None, items: Path | None, users: Path | None, overrides: list[str] | None
) -> LoadedConfig | None:
    """Returns the config that CONFIG, files and overrides on the command line describe; ``None`` without any."""
    if config is not None:
        if events or items or users:
            raise typer.BadParameter("a CONFIG names its files: leave out --events, --items, --users, or use --set.")
        from tfllmrec.config import load_config

        return load_config(config, overrides or [])
    if events is None and (items or users):
        raise typer.BadParameter("--items and --users go with --events FILE.")
    return config_of_files(events, items, users, overrides) if events or overrides else None


def require(path: Path) -> None:
    """Rejects a missing path before TensorFlow starts, which takes seconds."""
    if not path.exists():
        raise ModelError(f"{path} does not exist: expected the path of an existing file or folder.")


def seconds_of(text: str, option: str) -> float:
    """Converts a period such as ``90s``, ``10m``, ``1.5h`` or ``7d`` to seconds."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhd])", text.strip())
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{option} {text}: expected a period such as 90s, 30m, 24h or 7d.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def open_model(path: Path) -> SavedModel:
    """Loads the SavedModel that the user named."""
    require(path)
    from tfllmrec.serving.saved_model import SavedModel

    return SavedModel.open(path)


def unknown_ids(model: SavedModel, item_ids: list[str]) -> list[str]:
    """Returns the ids that the model does not know, which are ignored, and reports them on stderr."""
    unknown = [i for i, known in zip(item_ids, model.known(item_ids), strict=True) if not known]
    if unknown:
        note(f"not in the model's catalogue, counted as absent: {', '.join(unknown)}")
    return unknown


def past_of(
    model: SavedModel, user: str | None, history: str | None
) -> tuple[list[str], list[float] | None, dict[str, Any], list[str]]:
    """Returns the history of ``user``, or the given one, its ratings, its fields, and the ids typed by the caller.

    The fields are ``context`` and ``event_fields`` of :meth:`SavedModel.rank`.
    """
    if user is not None:
        return *model.history_of(user), model.fields_of(user), []
    typed = ids(history)
    return typed, None, {"context": None, "event_fields": None}, typed


def filters(model: SavedModel, allow: str | None, category: list[str] | None) -> dict[str, Any]:
    """Returns ``allow`` and ``categories`` for the model's methods; reports those not in the catalogue on stderr."""
    allowed = None if allow is None else ids(allow)
    unknown_ids(model, allowed or [])
    for name in category or ():
        if name not in model.categories:
            near = nearest(name, model.categories, n=3, cutoff=0.4)
            note(f"no item has the category {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return {"allow": allowed, "categories": category or []}

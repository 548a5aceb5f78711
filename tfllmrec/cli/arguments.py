"""Arguments shared by several commands, and functions that parse them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.output import note
from tfllmrec.columns import RATING
from tfllmrec.errors import DataError, ModelError, TfllmrecError
from tfllmrec.wording import nearest, nearest_hint

if TYPE_CHECKING:
    from tfllmrec.config import LoadedConfig
    from tfllmrec.data.schema import Field
    from tfllmrec.serving.saved_model import SavedModel

#: The number of names or values that a message lists.
SHOWN = 5
#: Values of fields of a request, by the kind of the field.
VALUES = {
    "number": "a number such as 12.5",
    "time": "seconds since 1970, or a date such as 2014-05-26",
    "vector": "as many numbers as the model reads",
}


def _checked_entries(entries: list[str] | None) -> list[str] | None:
    """Returns entries of ``--context``; a wrong one is refused before TensorFlow starts."""
    for entry in entries or ():
        if not entry.partition("=")[0].strip() or "=" not in entry:
            raise typer.BadParameter(f"--context {entry}: expected NAME=VALUE.")
    return entries


SavedModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="SAVED_MODEL", help="saved_models/NAME (its stable version, or else its newest) or saved_models/NAME/1."
    ),
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
EventFields = Annotated[
    list[str] | None,
    typer.Option(
        "--event-field",
        metavar="NAME=VALUE,VALUE",
        help="A field of the events of --history, such as kind=view,purchase or rating=5,3: a value for each event, "
        "empty for none. May be repeated.",
    ),
]
Context = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        metavar="NAME=VALUE",
        help="A field of the request or its user, such as device=phone or about='gritty space opera'. May be repeated.",
        callback=_checked_entries,
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
    return [part for part in _parts(text or "") if part]


def _parts(text: str) -> list[str]:
    lines = csv.reader(text.splitlines(keepends=True), skipinitialspace=True)
    return [part.strip() for line in lines for part in line]


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
    """Rejects a missing path of a model or run before TensorFlow starts, which takes seconds."""
    if not _exists(path, ModelError):
        raise ModelError(f"{path} does not exist: expected the path of an existing file or folder.")


def _exists(path: Path, kind: type[TfllmrecError]) -> bool:
    """Returns whether a path exists; raises ``kind`` if it is an unreadable folder, or lies in one."""
    try:
        if path.is_dir():
            os.scandir(path).close()
        return path.exists()
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}.") from error


def require_data(path: Path) -> None:
    """Rejects a missing file or folder of data as :func:`require` rejects one of a model."""
    if not _exists(path, DataError):
        from tfllmrec.data.files.tables import not_there

        raise not_there(path)


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
    model: SavedModel,
    user: str | None,
    history: str | None,
    event_fields: list[str] | None,
    context: list[str] | None = None,
) -> tuple[list[str], Sequence[float | None] | None, dict[str, Any], list[str]]:
    """Returns the history of ``user``, or the given one, its ratings, its fields, and the ids typed by the caller.

    The fields are ``context`` and ``event_fields`` of :meth:`SavedModel.rank`. Entries of both that the model does not
    read are reported on stderr.

    Raises:
      BadParameter: ``event_fields`` do not fit the history, or ``context`` names a field twice.
    """
    given = _by_key(context or (), model)
    _note_context(model, given)
    if user is not None:
        if event_fields:
            raise typer.BadParameter("--event-field goes with --history ID,ID.")
        past = model.history_of(user)
        known = model.fields_of(user)
        return *past, known | {"context": ((known["context"] or {}) | given) or None}, []
    typed = ids(history)
    values = _values_of_events(event_fields or [], len(typed))
    marks = values.pop(RATING, None)
    ratings = None if marks is None else [_rating(mark) for mark in marks]
    _note_unknown(model, values)
    rows = [{name: of_events[place] for name, of_events in values.items()} for place in range(len(typed))]
    return typed, ratings, {"context": given or None, "event_fields": rows if values else None}, typed


def _by_key(context: Sequence[str], model: SavedModel) -> dict[str, str]:
    """Converts entries ``NAME=VALUE`` to values by the keys of the model's fields; unknown names are kept.

    Raises:
      BadParameter: A field is given twice, for example by its name and by its key.
    """
    fields = model.schema.of_query()
    values: dict[str, str] = {}
    name_of: dict[str, str] = {}
    for name, _, value in (entry.partition("=") for entry in context):
        name = name.strip()
        for key in [field.key for field in fields if name in (field.name, field.key)] or [name]:
            if key in values:
                raise typer.BadParameter(f"--context {name}: expected each field once, found {name_of[key]} as well.")
            values[key], name_of[key] = value, name
    return values


def _note_context(model: SavedModel, given: Mapping[str, str]) -> None:
    """Reports on stderr the entries of ``context``, by the keys of the fields, that have no effect, and why."""
    fields = {field.key: field for field in model.schema.of_query()}
    reads = set(model.manifest.get("reads", []))
    ignored = sorted((given.keys() & fields.keys()) - reads)
    if not any(fields[key].kind == "text" for key in fields.keys() & reads):
        for key in [key for key in ignored if fields[key].kind == "text"]:
            note(f"this model reads no text of users: {key}")
            ignored.remove(key)
    if ignored:
        note(f"the model ranks without these fields; only business rules may read them: {', '.join(ignored)}")
    for name, value in given.items():
        if any(model.recommend(histories=[[]], k=1, context=[{name: value}]).attrs["unread"]):
            note(_why_unread(name, value, fields))


def _why_unread(name: str, value: str, fields: Mapping[str, Field]) -> str:
    """Says why an entry of ``context`` is not read: its name or its value is not one of the model's ``fields``."""
    from tfllmrec.serving.rules.compiled import CONTEXT_NAMES

    if (field := fields.get(name)) is None:
        if name.split(".")[-1] in CONTEXT_NAMES:
            return f"no rule in force reads {name}, and the model has no such field of requests and users"
        names = [known.name for known in fields.values()]
        near = nearest_hint(name, names) or f" (it has {_some(names) or 'none'})"
        return f"the model has no such field of requests and users: {name}{near}"
    if field.kind == "category":
        near = nearest_hint(value, field.vocabulary) or f" (it knows {_some(field.vocabulary) or 'none'})"
        return f"the model does not know this value of {field.name}: {value}{near}"
    return f"the model cannot read this value of {field.name}: {value} (expected {VALUES.get(field.kind, field.kind)})"


def _some(names: Sequence[str]) -> str:
    """Returns the first names, and the number of the others."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _values_of_events(entries: list[str], events: int) -> dict[str, list[str]]:
    """Returns the values of each event by the names of fields, from entries ``NAME=VALUE,VALUE``."""
    values: dict[str, list[str]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        name, found = name.strip().removeprefix("event."), _parts(text) or [""] * (events == 1)
        if not name or not equals:
            raise typer.BadParameter(f"--event-field {entry}: expected NAME=VALUE,VALUE.")
        if name in values:
            raise typer.BadParameter(f"--event-field {name}: expected each field once.")
        if len(found) != events:
            raise typer.BadParameter(
                f"--event-field {entry}: expected a value for each of the {events} items of --history, found "
                f"{len(found)}."
            )
        values[name] = found
    return values


def _rating(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise typer.BadParameter(f"--event-field {RATING}: expected numbers, found {text!r}.") from None


def _note_unknown(model: SavedModel, values: Mapping[str, list[str]]) -> None:
    """Reports on stderr the fields of events that the model does not have, and the values that it does not know."""
    from tfllmrec.data.schema import UNKNOWN_CODE

    fields = {field.name: field for field in model.schema.of_history()}
    for name, found in values.items():
        if name not in fields:
            note(f"the model has no such field of events: {name}{nearest_hint(name, list(fields))}")
        elif found and fields[name].kind == "category" and not fields[name].dropped:
            distinct = list(dict.fromkeys(found))
            codes = fields[name].encode(distinct).reshape(len(distinct), -1)
            unknown = [value for value, own in zip(distinct, codes, strict=True) if (own == UNKNOWN_CODE).any()]
            if unknown:
                note(f"the model does not know these values of {name}: {', '.join(unknown)}")


def filters(model: SavedModel, allow: str | None, category: list[str] | None) -> dict[str, Any]:
    """Returns ``allow`` and ``categories`` for the model's methods; reports those not in the catalogue on stderr."""
    allowed = None if allow is None else ids(allow)
    unknown_ids(model, allowed or [])
    for name in category or ():
        if name not in model.categories:
            near = nearest(name, model.categories, n=3, cutoff=0.4)
            note(f"no item has the category {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return {"allow": allowed, "categories": category or []}

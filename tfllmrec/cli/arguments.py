"""Arguments that several commands take, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.output import note
from tfllmrec.errors import ModelError

if TYPE_CHECKING:
    from tfllmrec.config import LoadedConfig
    from tfllmrec.serving.saved_model import SavedModel

SavedModelPath = Annotated[
    Path, typer.Argument(metavar="SAVED_MODEL", help="saved_models/NAME (its newest version) or saved_models/NAME/1.")
]
K = Annotated[int, typer.Option("--k", min=1, help="Length of the list.")]
History = Annotated[
    str | None, typer.Option("--history", metavar="ID,ID", help="What somebody had, oldest first; need not be known.")
]
Exclude = Annotated[str, typer.Option("--exclude", metavar="ID,ID", help="Items that must not come back.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Overrides a setting; C is YAML. May be repeated.")
]
Events = Annotated[Path | None, typer.Option("--events", help="Event log: CSV, TSV, JSONL or Parquet; .gz too.")]
Items = Annotated[Path | None, typer.Option("--items", help="Catalogue, in the same formats.")]
Users = Annotated[Path | None, typer.Option("--users", help="Users table, in the same formats.")]


def ids(text: str | None) -> list[str]:
    """``"a, b"`` -> ``["a", "b"]``; nothing -> no ids."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def config_of_files(
    events: Path | None, items: Path | None, users: Path | None, overrides: list[str] | None
) -> LoadedConfig:
    """A config made of files named on the command line: their paths, and the overrides', start from here."""
    from tfllmrec.config import LoadedConfig, parse_config

    named = {"events": events, "items": items, "users": users}
    data = {role: str(path) for role, path in named.items() if path is not None}
    return LoadedConfig(parse_config({"data": data}, overrides or [], origin="command line"), Path())


def newest_version(path: Path) -> Path:
    """``saved_models/NAME`` -> its highest numbered version; ``saved_models/NAME/1`` -> itself.

    Raises:
      ModelError: there is no SavedModel.
    """
    if (path / "saved_model.pb").is_file():
        return path
    versions = [p for p in path.glob("*") if p.name.isdecimal() and (p / "saved_model.pb").is_file()]
    if versions:
        return max(versions, key=lambda p: int(p.name))
    if (path / "config.yaml").is_file():
        raise ModelError(f"{path} is a run, not a SavedModel: 'tfllmrec export {path} saved_models/NAME' makes one.")
    raise ModelError(
        f"{path} is no SavedModel: expected a saved_model.pb there, or in a numbered folder below "
        f"({path / '1'}). 'tfllmrec export RUN {path}' makes one."
    )


def open_model(path: Path) -> SavedModel:
    """Loads the SavedModel that the user named."""
    folder = newest_version(path)
    from tfllmrec.serving.saved_model import SavedModel

    return SavedModel.open(folder)


def unknown_ids(model: SavedModel, item_ids: list[str]) -> list[str]:
    """Those the model does not know, which count as absent; says so on stderr."""
    unknown = [i for i, known in zip(item_ids, model.known(item_ids), strict=True) if not known]
    if unknown:
        note(f"not in the model's catalogue, counted as absent: {', '.join(unknown)}")
    return unknown

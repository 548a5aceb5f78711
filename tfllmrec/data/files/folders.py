"""Finds the files of a data set in a folder: MovieLens, RecBole, or tables by their usual names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tfllmrec.data.files.file_names import is_partition, is_table, named_folder, stem, without_compression
from tfllmrec.data.files.parts import holds_parts
from tfllmrec.errors import ConfigError, DataError

_EVENT_STEMS = ("interactions", "events", "ratings", "reviews", "purchases", "clicks")
_ITEM_STEMS = ("items", "movies", "books", "products", "articles", "catalogue", "catalog", "metadata", "meta")
_USER_STEMS = ("users",)
_PART = re.compile(r"part[-_.]|\d{6}_\d|_SUCCESS$", re.I)


@dataclass
class Files:
    """The files of a data set; ``None`` for a file that is missing."""

    events: Path | None = None
    items: Path | None = None
    users: Path | None = None
    tags: Path | None = None
    more_items: list[Path] = field(default_factory=list)


def source_folder(source: str, base: Path) -> Path:
    """Returns the folder of ``data.source``: a path relative to ``base``, or the name of a data set to be fetched.

    Raises:
      ConfigError: The source is a file, or no data set has this name.
      DataError: There is no such folder, or the data set cannot be fetched.
    """
    folder = base / source
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ConfigError(f"data.source: {source} is a file; data.source takes a folder. Give the file as data.events.")
    if "/" in source or "\\" in source or source.startswith("."):
        raise DataError(f"data.source: there is no folder {folder}.")
    from tfllmrec import assets  # imported only here: reading files must not depend on downloads

    return assets.data_set(source)


def name_of(source: str | None, events: Path) -> str:
    """Returns the name of a data set: that of its source, or else of its events file.

    If the events file has a usual name, such as ``ratings``, the name is that of its folder.
    """
    if source is not None:
        return Path(source).resolve().name
    own = stem(events.name)
    return (events.resolve().parent.name or own) if own.lower() in _EVENT_STEMS else own


def find_files(folder: Path, kind: str) -> Files:
    """Finds the files of a data set in a folder, or in its only subfolder.

    Args:
      folder: The folder.
      kind: ``movielens``, ``recbole``, ``table``, or ``auto`` for the first of these that fits.

    Raises:
      DataError: The folder has no events in that format.
    """
    finders = {"movielens": _find_movielens, "recbole": _find_recbole, "table": _find_tables}
    subfolders = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
    # Archives usually unpack into a folder of their own.
    for place in [folder, *(subfolders if len(subfolders) == 1 else [])]:
        for name, find in finders.items():
            if kind in ("auto", name):
                files = find(place)
                if files is not None:
                    return files
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
    expected = {
        "movielens": "u.data with u.item (100K), ratings.dat with movies.dat (1M, 10M) or ratings.csv with movies.csv",
        "recbole": "one NAME.inter",
        "table": f"one table named {', '.join(_EVENT_STEMS)}",
    }
    wanted = expected[kind] if kind in expected else "; or ".join(expected.values())
    known = "a known format" if kind == "auto" else f"format {kind}"
    raise DataError(
        f"{named_folder(folder)} has no events in {known}: expected {wanted}; found there: {there}. Name the files: "
        "data.events, data.items."
    )


def _find_movielens(folder: Path) -> Files | None:
    layouts = (
        ("u.data", "u.item", "u.user", None),
        ("ratings.dat", "movies.dat", "users.dat", "tags.dat"),
        ("ratings.csv", "movies.csv", None, "tags.csv"),
    )

    present = _by_plain_name(folder)
    for names in layouts:
        events, items, users, tags = (present.get(name) if name else None for name in names)
        if events and items:
            return Files(events, items, users, tags)
    return None


def _by_plain_name(folder: Path) -> dict[str, Path]:
    """Maps names without the ending of a compression to the files of a folder; an uncompressed file goes first."""
    files = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: len(p.name), reverse=True)
    return {without_compression(p.name): p for p in files}


def _find_recbole(folder: Path) -> Files | None:
    present = _by_plain_name(folder)
    inters = [name for name in present if name.endswith(".inter")]
    if len(inters) != 1:
        return None
    name = inters[0].removesuffix(".inter")
    return Files(present[inters[0]], items=present.get(f"{name}.item"), users=present.get(f"{name}.user"))


def _find_tables(folder: Path) -> Files | None:
    """Finds files and folders of parts by their usual names, or takes the folder itself as the parts of the events."""
    paths = [p for p in sorted(folder.iterdir()) if not p.name.startswith((".", "_"))]
    tables = [p for p in paths if (is_table(p) if p.is_file() else holds_parts(p) and not is_partition(p))]

    def pick(stems: tuple[str, ...]) -> Path | None:
        exact = [p for p in tables if stem(p.name).lower() in stems]
        found = exact or [p for p in tables if set(re.split(r"[^a-z0-9]+", stem(p.name).lower())) & set(stems)]
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise DataError(f"{folder}: which of {names} is it? Name the files: data.events, data.items, data.users.")
        return found[0] if found else None

    events = pick(_EVENT_STEMS)
    if events is None:
        parts = any(is_partition(p) for p in paths) or any(_PART.match(p.name) for p in paths if p.is_file())
        return Files(folder) if parts and holds_parts(folder) else None
    users = pick(_USER_STEMS) or _by_plain_name(folder).get("users.dat")
    return Files(events, pick(_ITEM_STEMS), users)

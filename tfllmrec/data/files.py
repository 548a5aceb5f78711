"""Finds the files of a data set in a folder: MovieLens, RecBole, or tables by their usual names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tfllmrec.data.tables import ATOMIC
from tfllmrec.errors import ConfigError, DataError

_TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
_EVENT_STEMS = ("interactions", "events", "ratings", "reviews", "purchases", "clicks")
_ITEM_STEMS = ("items", "movies", "books", "products", "articles", "catalogue", "catalog", "metadata", "meta")
_USER_STEMS = ("users",)


@dataclass
class Files:
    """The files that a data set is made of."""

    events: Path | None = None
    items: Path | None = None
    users: Path | None = None
    tags: Path | None = None
    more_items: list[Path] = field(default_factory=list)


def source_folder(source: str, base: Path) -> Path:
    folder = base / source
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ConfigError(f"data.source: {source} is a file; data.source takes a folder. Give the file as data.events.")
    if "/" in source or "\\" in source or source.startswith("."):
        raise DataError(f"data.source: there is no folder {folder}.")
    from tfllmrec import assets  # only here: reading files must not need the network side

    return assets.data_set(source)


def name_of(source: str | None, events: Path) -> str:
    if source is not None:
        return Path(source).resolve().name
    stem = _stem(events)
    return (events.resolve().parent.name or stem) if stem.lower() in _EVENT_STEMS else stem


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    ending = next((e for e in (*_TABLE_ENDINGS, *ATOMIC) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def find_files(folder: Path, kind: str) -> Files:
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
        "movielens": "u.data (100K), ratings.dat (1M, 10M) or ratings.csv with movies.csv (later ones)",
        "recbole": "one NAME.inter",
        "table": f"one table named {', '.join(_EVENT_STEMS)}",
    }
    wanted = expected[kind] if kind in expected else "; or ".join(expected.values())
    raise DataError(
        f"{folder} holds no events in {'a known format' if kind == 'auto' else f'format {kind}'}: expected {wanted}; "
        f"there: {there}. Name the files: data.events, data.items."
    )


def _find_movielens(folder: Path) -> Files | None:
    layouts = (
        ("u.data", "u.item", "u.user", None),
        ("ratings.dat", "movies.dat", "users.dat", "tags.dat"),
        ("ratings.csv", "movies.csv", None, "tags.csv"),
    )

    def there(name: str | None) -> Path | None:
        paths = [] if name is None else [folder / name, folder / f"{name}.gz"]
        return next((p for p in paths if p.is_file()), None)

    for names in layouts:
        events, items, users, tags = map(there, names)
        if events and items:
            return Files(events, items, users, tags)
    return None


def _find_recbole(folder: Path) -> Files | None:
    inters = [p for p in sorted(folder.iterdir()) if p.name.removesuffix(".gz").endswith(".inter")]
    if len(inters) != 1:
        return None
    found: list[Path | None] = [
        next((p for p in (folder / f"{_stem(inters[0])}{e}{z}" for z in ("", ".gz")) if p.is_file()), None)
        for e in (".item", ".user")
    ]
    return Files(inters[0], items=found[0], users=found[1])


def _find_tables(folder: Path) -> Files | None:
    tables = [
        p
        for p in sorted(folder.iterdir())
        if p.is_file() and p.name.removesuffix(".gz").lower().endswith(_TABLE_ENDINGS)
    ]

    def pick(stems: tuple[str, ...]) -> Path | None:
        exact = [p for p in tables if _stem(p).lower() in stems]
        found = exact or [p for p in tables if set(re.split(r"[^a-z0-9]+", _stem(p).lower())) & set(stems)]
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise DataError(f"{folder}: which of {names} is it? Name the files: data.events, data.items, data.users.")
        return found[0] if found else None

    events = pick(_EVENT_STEMS)
    if events is None:
        return None
    users = pick(_USER_STEMS) or next((p for p in [folder / "users.dat"] if p.is_file()), None)
    return Files(events, pick(_ITEM_STEMS), users)

"""Reads event logs and catalogues: MovieLens, RecBole atomic files, any CSV, TSV, JSONL or Parquet, saved data sets.

All formats go one way: find the files, split each into rows and fields (never losing one uncounted), recognise the
columns, clean, number users and items. Formats differ in the first step and in who names the columns.
"""

from __future__ import annotations

import ast
import csv
import difflib
import gzip
import io
import json
import re
import shlex
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tfllmrec.columns import (
    CATEGORIES,
    DESCRIPTION,
    ITEM,
    ITEM_INDEX,
    ORDER,
    RATING,
    TAG,
    TIMESTAMP,
    TITLE,
    USER,
    USER_INDEX,
)
from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning import (
    CleaningReport,
    Finding,
    RawTable,
    clean_events,
    clean_items,
    clean_users,
    join_more_items,
    join_tags,
    mend_clock,
    require_file,
    times,
)
from tfllmrec.data.dataset import MANIFEST, Dataset
from tfllmrec.errors import ConfigError, DataError

# Usual names, compared without case and punctuation; the earlier one wins where a file has several. What is an id for
# certain goes before a bare word, which may be a name; "id" alone is whatever a table of items or of users lists.
_ALIASES: dict[str, list[str]] = {
    column: names.split()
    for column, names in {
        USER: "user_id uid reviewer_id customer_id visitor_id member_id account_id person_id id "
        "user customer visitor user_name reviewer session_id session",
        ITEM: "item_id iid movie_id product_id parent_asin asin book_id isbn article_id news_id track_id song_id "
        "game_id app_id anime_id recipe_id business_id video_id course_id job_id sku id "
        "item product movie book article",
        RATING: "rating ratings overall stars score user_rating review_score rate preference",
        TIMESTAMP: "timestamp_s timestamp unix_review_time unix_time time ts event_time datetime date created_at "
        "review_time review_date rated_at date_added",
        ORDER: "order order_in_user sequence seq",
        TITLE: "title item_title movie_title product_title book_title name item_name product_name headline "
        "item product movie book article",
        DESCRIPTION: "description item_description product_description plot overview synopsis summary abstract body "
        "content text",
        CATEGORIES: "categories category genres genre class item_category topics tags",
        TAG: "tag",
    }.items()
}
_EVENT_COLUMNS = (USER, ITEM, RATING, TIMESTAMP, ORDER)
_ITEM_COLUMNS = (ITEM, TITLE, DESCRIPTION, CATEGORIES)

_GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
# MovieLens files without a header: separator and columns.
_HEADERLESS: dict[str, tuple[str, list[str]]] = {
    "u.data": ("\t", ["user_id", "item_id", "rating", "timestamp"]),
    "u.item": ("|", ["movie_id", "title", "release_date", "video_release_date", "imdb_url"]),  # then genre flags
    "u.user": ("|", ["user_id", "age", "gender", "occupation", "zip_code"]),
    "ratings.dat": ("::", ["user_id", "movie_id", "rating", "timestamp"]),
    "movies.dat": ("::", ["movie_id", "title", "genres"]),
    "users.dat": ("::", ["user_id", "gender", "age", "occupation", "zip_code"]),
    "tags.dat": ("::", ["user_id", "movie_id", "tag", "timestamp"]),
}
_ATOMIC = (".inter", ".item", ".user")  # RecBole
_TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
_EVENT_STEMS = ("interactions", "events", "ratings", "reviews", "purchases", "clicks")
_ITEM_STEMS = ("items", "movies", "books", "products", "articles", "catalogue", "catalog", "metadata", "meta")
_USER_STEMS = ("users",)
_BLANK_LINES = re.compile(rb"(?:[ \t\r]*\n)*")
_LONG_AGO = 788_918_400.0  # 1995: seconds since 1970 that are more are taken for times
_UNIT = "\x1f"  # ASCII unit separator: stands in for "::", which is no single character


@dataclass
class _Files:
    """The files that a data set is made of."""

    events: Path | None = None
    items: Path | None = None
    users: Path | None = None
    tags: Path | None = None
    more_items: list[Path] = field(default_factory=list)


def read_dataset(config: DataConfig, base: Path = Path()) -> Dataset:
    """Reads, cleans and indexes what the ``data`` section of a config names.

    ``config.source`` is a folder (its format is recognised: MovieLens, RecBole, a folder with ``interactions``,
    ``events`` or ``ratings`` and ``items``, ``movies`` or ``books`` tables, or a saved data set) or the name of a
    registered data set. ``events`` names a file instead; ``items`` and ``users`` go with it, or replace the file found
    in the source. A saved data set is taken as it is: it was cleaned when it was saved.

    Args:
      config: the ``data`` section.
      base: the folder that relative paths start from.

    Raises:
      ConfigError: neither source nor events or both, files beside a saved data set, an unknown registered name,
        encoding or canonical column.
      DataError: a file is missing, empty, unreadable, lacks a column or has too many broken rows.
    """
    _check_mapping(config.columns)
    if (config.source is None) == (config.events is None):
        came = "neither" if config.source is None else "both"
        raise ConfigError(
            "data: expected a folder or a registered data set as data.source, or else a file as data.events; "
            f"came {came}."
        )
    files = _Files()
    if config.source is not None:
        folder = _source_folder(config.source, base)
        if config.format == "tfllmrec" or (config.format == "auto" and (folder / MANIFEST).is_file()):
            if config.items or config.users or config.more_items or config.columns:
                raise ConfigError(
                    f"data.source: {config.source} is a saved data set, which has its items and users already: leave "
                    "out data.items, data.users, data.more_items and data.columns."
                )
            dataset = Dataset.load(folder)
            return replace(dataset, name=config.name) if config.name else dataset
        files = _find_files(folder, config.format)
    for role in ("events", "items", "users"):
        given = getattr(config, role)
        if given is not None:
            setattr(files, role, base / given)
    files.more_items = [base / path for path in config.more_items]
    assert files.events is not None  # given, or _find_files would have raised

    def read(path: Path, table: str, wanted: Sequence[str], required: Sequence[str]) -> RawTable:
        return _name_columns(_read_table(path, table, config), wanted, required, config.columns)

    events = read(files.events, "events", _EVENT_COLUMNS, (USER, ITEM))
    items = read(files.items, "items", _ITEM_COLUMNS, (ITEM,)) if files.items else None
    more = [read(path, f"more_items:{path.name}", _ITEM_COLUMNS, (ITEM,)) for path in files.more_items]
    users = read(files.users, "users", (USER,), (USER,)) if files.users else None
    tags = read(files.tags, "tags", (ITEM, TAG), (ITEM, TAG)) if files.tags else None
    return _assemble(events, items, users, more, tags, config, config.name or _name_of(config.source, files.events))


def read_items(path: Path, config: DataConfig) -> tuple[pd.DataFrame, CleaningReport]:
    """Reads and cleans a catalogue alone, in any format that :func:`read_dataset` takes one in.

    Args:
      path: the file.
      config: for its ``columns``, ``encoding`` and ``max_bad_rows``. A column that is mapped to a name which the file
        does not have is recognised by its usual names.

    Returns:
      The items as in :attr:`Dataset.items`, and what cleaning did.

    Raises:
      ConfigError: an unknown encoding or canonical column.
      DataError: the file is missing, empty, unreadable, lacks the ids or has too many broken rows.
    """
    _check_mapping(config.columns)
    raw = _name_columns(_read_table(path, "items", config), _ITEM_COLUMNS, (ITEM,), config.columns)
    report = CleaningReport(sources=[raw.source("other columns")])
    return clean_items(raw, config, report), report


def dataset_from_frames(
    events: pd.DataFrame,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    config: DataConfig | None = None,
) -> Dataset:
    """The Dataset of tables that are in memory already; columns and values are treated as :func:`read_dataset` does.

    Raises:
      DataError: a column is missing, no event is left, or too many rows are broken.
    """
    config = config or DataConfig()
    _check_mapping(config.columns)

    def raw(frame: pd.DataFrame, table: str, wanted: Sequence[str], required: Sequence[str]) -> RawTable:
        frame = frame.set_axis([str(c) for c in frame.columns], axis=1).reset_index(drop=True)
        rows = np.arange(len(frame), dtype=np.int64)
        table_of = RawTable(table, f"{table} table", frame, rows, np.ones_like(rows))
        return _name_columns(table_of, wanted, required, config.columns)

    return _assemble(
        raw(events, "events", _EVENT_COLUMNS, (USER, ITEM)),
        None if items is None else raw(items, "items", _ITEM_COLUMNS, (ITEM,)),
        None if users is None else raw(users, "users", (USER,), (USER,)),
        [],
        None,
        config,
        config.name or "frames",
    )


def _assemble(
    raw_events: RawTable,
    raw_items: RawTable | None,
    raw_users: RawTable | None,
    more_items: list[RawTable],
    raw_tags: RawTable | None,
    config: DataConfig,
    name: str,
) -> Dataset:
    _check_mapped(config.columns, [raw for raw in (raw_events, raw_items, raw_users, *more_items) if raw])
    report = CleaningReport()
    events, ordered_by = clean_events(raw_events, config, report)
    order = f"ordered by {ordered_by}" if ordered_by else "in no known order" + _hint_of_time(raw_events)
    if ordered_by == ORDER and TIMESTAMP in raw_events.names:
        order += f", not by {TIMESTAMP}"
    report.sources = [
        raw_events.source("not used", order),
        *(raw.source("other columns") for raw in (raw_items, *more_items, raw_users) if raw),
        *([raw_tags.source("not used")] if raw_tags else []),
    ]
    items = clean_items(raw_items, config, report) if raw_items else pd.DataFrame({ITEM: pd.Series([], dtype="str")})
    item_codes, item_ids = pd.factorize(events[ITEM])
    unlisted = pd.Index(item_ids)[~pd.Index(item_ids).isin(items[ITEM])]
    if raw_items:
        _note_unlisted(raw_events, raw_items, items, item_ids, unlisted, report)
    items = pd.concat([items, pd.DataFrame({ITEM: pd.Series(unlisted, dtype="str")})], ignore_index=True)
    items = items.fillna("").astype("str")
    for raw in more_items:
        items = join_more_items(items, clean_items(raw, config, report), raw, report)
    if raw_tags:
        items = join_tags(items, raw_tags, config, report)
    items = items[[c for c in _ITEM_COLUMNS if c in items] + [c for c in items if c not in _ITEM_COLUMNS]]
    text = [c for c in _ITEM_COLUMNS[1:] if c in items]
    if text:
        bare = (items[text] == "").all(axis=1).to_numpy()
        report.add("items", f"no text in {', '.join(text)}", int(bare.sum()), "kept", _first_id(items[ITEM], bare))

    user_codes, user_ids = pd.factorize(events[USER])
    users = clean_users(raw_users, config, report) if raw_users else pd.DataFrame({USER: pd.Series([], dtype="str")})
    idle = ~users[USER].isin(user_ids).to_numpy()
    if idle.any():
        report.add("users", "no event is theirs", int(idle.sum()), "dropped", _first_id(users[USER], idle))
        report.rows_kept["users"] -= int(idle.sum())
        users = users[~idle]
    strangers = pd.Index(user_ids)[~pd.Index(user_ids).isin(users[USER])]
    if raw_users:
        report.add("users", "met in events only", len(strangers), "added", f"{strangers[:1].tolist()}")
    users = pd.concat([users, pd.DataFrame({USER: pd.Series(strangers, dtype="str")})], ignore_index=True)
    users = users.fillna("").astype("str")

    events[USER_INDEX] = pd.Index(users[USER]).get_indexer(user_ids)[user_codes].astype(np.int64)
    events[ITEM_INDEX] = pd.Index(items[ITEM]).get_indexer(item_ids)[item_codes].astype(np.int64)
    events = events.iloc[np.lexsort((events[ORDER], events[USER_INDEX]))].reset_index(drop=True)
    events = events[[USER, ITEM, USER_INDEX, ITEM_INDEX, RATING, TIMESTAMP, ORDER]]
    return Dataset(name=name, events=events, items=items, users=users, ordered=ordered_by is not None, report=report)


def _note_unlisted(
    raw_events: RawTable,
    raw_items: RawTable,
    items: pd.DataFrame,
    met: pd.Index,
    unlisted: pd.Index,
    report: CleaningReport,
) -> None:
    """Counts the ids of events that the catalogue lacks; where it lacks all ``met`` ones, the two do not belong."""
    ours, theirs = raw_events.names[ITEM], raw_items.names[ITEM]
    remedy = "data.columns: {item_id: NAME IN THE FILE}"
    if len(unlisted) == len(met):
        listed = f"such as {items[ITEM].iloc[0]!r}" if len(items) else "which has none"
        others = [raw_items.names.get(c, c) for c in raw_items.frame.columns if c != ITEM][:20]
        raise DataError(
            f"No item of {raw_events.file} (column {ours!r}, such as {met[0]!r}) is in {raw_items.file} "
            f"(column {theirs!r}, {listed}): the two must hold the same ids. Map the wrong one: {remedy}; "
            f"other columns of {raw_items.file}: {', '.join(map(repr, others)) or 'none'}."
        )
    what = "met in events only, without text"
    if 2 * len(unlisted) > len(met):
        what += (
            f"; {raw_items.file} has fewer than half of the {len(met):,} items of {raw_events.file}: if either column, "
            f"{theirs!r} or {ours!r}, is the wrong one, map it: {remedy}"
        )
    example = f"{raw_events.file}, column {ours!r}: {unlisted[0]!r}" if len(unlisted) else ""
    report.add("items", what, len(unlisted), "added", example)


def _hint_of_time(raw: RawTable) -> str:
    """What to do where a column that nothing was made of has times; for events in no known order."""
    for name in raw.frame.columns:
        if name in raw.names:
            continue
        seconds = mend_clock(times(raw.frame[name])[0], lambda *told: None)
        if np.mean((seconds > _LONG_AGO) & (seconds < time.time() + 86_400)) > 0.9:
            mapping = shlex.quote(f"data.columns.timestamp_s={name}")
            return f" (are the times in {name!r}? --set {mapping}; without times the split is random)"
    return ""


def _check_mapping(mapping: dict[str, str]) -> None:
    known = [*_EVENT_COLUMNS, *_ITEM_COLUMNS[1:]]
    for column in mapping:
        if column not in known:
            raise ConfigError(
                f"data.columns: {column!r} is no column that tfllmrec knows; expected one of {', '.join(known)}"
                f"{_said(_nearest(column, known))}. It goes on the left: data.columns: {{canonical: name in the file}}."
            )


def _check_mapped(mapping: dict[str, str], tables: list[RawTable]) -> None:
    for column, name in mapping.items():
        if not any(raw.names.get(column) == name for raw in tables):
            seen = [c for raw in tables for c in [*raw.frame.columns, *raw.names.values()]]
            raise DataError(
                f"data.columns maps {column} to {name!r}, which no file that could hold it has"
                f"{_said(_nearest(name, seen))}."
            )


def _first_id(ids: pd.Series, mask: np.ndarray) -> str:
    return repr(ids.iloc[int(mask.argmax())]) if mask.any() else ""


# --- Finding the files -----------------------------------------------------------------------------------------------


def _source_folder(source: str, base: Path) -> Path:
    folder = base / source
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ConfigError(f"data.source: {source} is a file; data.source takes a folder. Give the file as data.events.")
    if "/" in source or "\\" in source or source.startswith("."):
        raise DataError(f"data.source: there is no folder {folder}.")
    from tfllmrec import assets  # only here: reading files must not need the network side

    return assets.data_set(source)


def _name_of(source: str | None, events: Path) -> str:
    if source is not None:
        return Path(source).resolve().name
    stem = _stem(events)
    return (events.resolve().parent.name or stem) if stem.lower() in _EVENT_STEMS else stem


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    ending = next((e for e in (*_TABLE_ENDINGS, *_ATOMIC) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _find_files(folder: Path, kind: str) -> _Files:
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


def _find_movielens(folder: Path) -> _Files | None:
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
            return _Files(events, items, users, tags)
    return None


def _find_recbole(folder: Path) -> _Files | None:
    inters = [p for p in sorted(folder.iterdir()) if p.name.removesuffix(".gz").endswith(".inter")]
    if len(inters) != 1:
        return None
    found: list[Path | None] = [
        next((p for p in (folder / f"{_stem(inters[0])}{e}{z}" for z in ("", ".gz")) if p.is_file()), None)
        for e in (".item", ".user")
    ]
    return _Files(inters[0], items=found[0], users=found[1])


def _find_tables(folder: Path) -> _Files | None:
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
    return _Files(events, pick(_ITEM_STEMS), users)


# --- Recognising columns ---------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _nearest(name: str, known: Sequence[str]) -> str | None:
    plain = {_plain(k): k for k in known if len(_plain(k)) > 2}
    close = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def _said(nearest: str | None) -> str:
    return f" (nearest: {nearest!r})" if nearest else ""


def _name_columns(raw: RawTable, wanted: Sequence[str], required: Sequence[str], mapping: dict[str, str]) -> RawTable:
    """Gives the wanted columns their canonical names: by ``mapping``, else by their usual names.

    A column that would stand in the way of one that is mapped to its name becomes ``source_NAME``.
    """
    present = list(raw.frame.columns)
    plain = {_plain(name): name for name in reversed(present)}
    names: dict[str, str] = {}
    lists_one = len(required) == 1
    for column in wanted:
        usual = [plain[_plain(a)] for a in _ALIASES[column] if _plain(a) in plain and (a != "id" or lists_one)]
        free = [name for name in usual if name not in names.values() and name not in mapping.values()]
        if mapping.get(column) in present:
            names[column] = mapping[column]
        elif free:
            names[column] = free[0]
    if missing := [column for column in required if column not in names]:
        left = [name for name in present if name not in names.values()]
        expected, nearest, flags = [], None, []
        for column in missing:
            sought = [mapping[column]] if column in mapping else _ALIASES[column]
            close = next((n for n in (_nearest(name, left) for name in sought) if n), None)
            expected.append(f"one named {' or '.join(sought[:6])}")
            nearest = nearest or close
            guess = close or "NAME_IN_THE_FILE"
            flags.append(f"--set {shlex.quote(f'data.columns.{column}={guess}')}")
        raise DataError(
            f"{raw.file}: no column for {' nor for '.join(missing)}. Expected {', and '.join(expected)}; "
            f"came {', '.join(map(repr, present[:20]))}{_said(nearest)}. "
            f"Map it: {' '.join(flags)}, or data.columns in a config."
        )
    renamed = {name: column for column, name in names.items()}
    for name in present:
        if name not in renamed and name in names:
            renamed[name] = f"source_{name}"
    return replace(raw, frame=raw.frame.rename(columns=renamed), names=names)


# --- Splitting a file into rows and fields ---------------------------------------------------------------------------


def _read_table(path: Path, table: str, config: DataConfig) -> RawTable:
    require_file(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Is the download complete?") from error
    if not content.strip():
        raise DataError(f"{path} is empty: expected a table with a header and rows.")
    if content[:4] == b"PAR1":
        return _read_parquet(path, table, content)
    name = path.name.removesuffix(".gz")
    known = name in _HEADERLESS
    content, findings = _to_utf8(content, path.name, table, config.encoding, latin_1=known)
    is_json = name.lower().endswith((".jsonl", ".ndjson", ".json")) or (
        not name.lower().endswith((".csv", ".tsv", *_ATOMIC)) and not known and content.lstrip()[:1] in (b"{", b"[")
    )
    raw = _read_json(path, table, content) if is_json else _read_delimited(path, table, content)
    if raw.frame.empty and not raw.findings:
        raise DataError(f"{path} has a header but no rows.")
    return replace(raw, findings=(*findings, *raw.findings))


def _to_utf8(content: bytes, file: str, table: str, encoding: str, latin_1: bool) -> tuple[bytes, tuple[Finding, ...]]:
    """``content`` in UTF-8. Lines that are none are taken for Windows-1252 and counted; another encoding must fit."""
    for mark, marked in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            encoding = marked
    try:
        text = content.decode(encoding)
        if "\0" in text:
            row = text[: text.index("\0")].count("\n") + 1
            raise DataError(
                f"{file}:{row}: a NUL character; expected text in {encoding}. "
                "If it is UTF-16 or the like, set data.encoding."
            )
        return (content if encoding.lower() in ("utf-8", "utf8") else text.encode("utf-8", "replace")), ()
    except LookupError as error:
        raise ConfigError(
            f"data.encoding: {encoding!r} is no encoding; expected utf-8, latin-1, cp1252 or the like."
        ) from error
    except UnicodeDecodeError as error:
        if latin_1:  # the MovieLens files are documented as Latin-1
            return content.decode("latin-1").encode(), ()
        row = content[: error.start].count(b"\n") + 1
        if encoding.lower().replace("-", "").removesuffix("sig") != "utf8":
            byte = content[error.start]
            raise DataError(
                f"{file}:{row}: byte 0x{byte:02x} is not {encoding}. Set data.encoding to what it is."
            ) from error
    lines = content.split(b"\n")
    count = 0
    for i, line in enumerate(lines):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            lines[i] = line.decode("cp1252", "replace").encode()
            count += 1
    what = "not UTF-8: read as Windows-1252 (set data.encoding if that is wrong)"
    return b"\n".join(lines).removeprefix(b"\xef\xbb\xbf"), (Finding(table, what, count, "repaired", f"{file}:{row}"),)


def _separator(path: Path, header: str) -> str:
    if path.name.removesuffix(".gz").lower().endswith((".tsv", *_ATOMIC)):
        return "\t"
    return max(("\t", ",", ";", "|", "::"), key=header.count)


def _read_delimited(path: Path, table: str, content: bytes) -> RawTable:
    name = path.name.removesuffix(".gz")
    atomic = name.lower().endswith(_ATOMIC) and name not in _HEADERLESS
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    # Leading blank lines are rows to the parser, and so keep the numbering right.
    start = len(_BLANK_LINES.match(content).group())  # type: ignore[union-attr]
    header_row = content[:start].count(b"\n")
    first = content[start:].split(b"\n", 1)[0].decode("utf-8").rstrip("\r")
    if name in _HEADERLESS:
        separator, fields = _HEADERLESS[name]
        genres = _genres_100k(path) if name == "u.item" else []
        fields = fields + genres
        header_row = -1
    else:
        separator = _separator(path, first)
        plain_split = atomic or separator == "::"
        split = first.split(separator) if plain_split else next(csv.reader([first], delimiter=separator))
        fields = _distinct([name.strip() for name in split])
    quoted = not atomic and name not in _HEADERLESS and separator != "::"
    if separator == "::":
        content, separator = content.replace(b"::", _UNIT.encode()), _UNIT

    frame, rows, spans, findings, unreadable = _parse(
        content, separator, quoted, len(fields), header_row, path.name, table
    )
    if quoted and separator == "\t" and (unreadable or (spans > 1).any()):
        # Many tools write TSV without quoting, and then a title may begin with a quotation mark.
        bare = _parse(content, separator, False, len(fields), header_row, path.name, table)
        if bare[4] <= unreadable:
            frame, rows, spans, findings, unreadable = bare
    frame.columns = pd.Index(fields)
    if atomic:
        frame = _atomic_columns(frame)
    elif name == "u.item":
        flags = frame[genres].to_numpy(dtype=object) == "1"
        frame = frame.drop(columns=genres)
        frame[CATEGORIES] = [[g for g, on in zip(genres, row, strict=True) if on and g != "unknown"] for row in flags]
    return RawTable(table, path.name, frame, rows, spans, findings=tuple(findings), unreadable=unreadable)


def _parse(
    content: bytes, separator: str, quoted: bool, width: int, header_row: int, file: str, table: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, list[Finding], int]:
    """Splits text into ``width`` columns: the frame (str), row numbers, spans, findings, how many were unreadable."""
    broken: list[tuple[int, int, str]] = []

    def note_broken(row: pa.csv.InvalidRow) -> str:
        broken.append((row.number, row.actual_columns, row.text))
        return "skip"

    columns = [str(i) for i in range(width)]
    try:
        parsed = pa.csv.read_csv(
            io.BytesIO(content),
            pa.csv.ReadOptions(use_threads=False, column_names=columns, block_size=min(len(content) + 1, 1 << 30)),
            pa.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                ignore_empty_lines=False,
                invalid_row_handler=note_broken,
            ),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} cannot be split into {width} columns by {separator!r}: {error}") from error
    frame = parsed.to_pandas(types_mapper={pa.string(): pd.StringDtype(na_value=np.nan)}.get)

    # The parser counts records from 1; where quoted fields hold line breaks, lines run ahead of records.
    numbers = np.arange(1, len(frame) + len(broken) + 1)
    is_broken = np.zeros(len(numbers), dtype=bool)
    is_broken[[n - 1 for n, _, _ in broken]] = True
    spans = np.ones(len(numbers), dtype=np.int64)
    if quoted and b'"' in content:
        breaks = sum(
            (frame[c].str.count("\n").to_numpy(dtype=np.int64) for c in columns), np.zeros(len(frame), np.int64)
        )
        spans[~is_broken] += breaks
        spans[is_broken] += np.array([text.count("\n") for _, _, text in broken], dtype=np.int64)
    lines = np.cumsum(spans) - spans + 1

    findings, unreadable = [], 0
    wrong = [(n, fields, text) for n, fields, text in broken if text.strip() and n - 1 != header_row]
    if wrong:
        number, came, text = wrong[0]
        unreadable = int(sum(spans[n - 1] for n, _, _ in wrong))
        example = f"{file}:{lines[number - 1]}, {text[:60]!r}"
        findings.append(Finding(table, f"{came} fields came, {width} expected", unreadable, "dropped", example))
    blank = (frame == "").all(axis=1).to_numpy() if width > 1 else np.zeros(len(frame), bool)
    good = numbers[~is_broken]
    is_row = ~blank & (good - 1 != header_row)
    gone = [*good[blank], *(n for n, _, text in broken if not text.strip())]
    if gone:
        findings.append(Finding(table, "blank row", len(gone), "dropped", f"{file}:{lines[min(gone) - 1]}"))
    return (
        frame[is_row].reset_index(drop=True),
        lines[~is_broken][is_row],
        spans[~is_broken][is_row],
        findings,
        unreadable,
    )


def _genres_100k(item_file: Path) -> list[str]:
    path = item_file.with_name("u.genre")
    if not path.is_file():
        return _GENRES_100K.split("|")
    lines = path.read_text(encoding="latin-1").splitlines()
    return [line.split("|")[0] for line in lines if line.strip()]


def _atomic_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Takes ``field:type`` apart; a ``token_seq`` that names categories is a list, any other one is running text."""
    category_names = {_plain(a) for a in _ALIASES[CATEGORIES]}
    columns = {}
    for header in frame.columns:
        name, _, kind = header.partition(":")
        values = frame[header]
        if kind == "token_seq" and _plain(name) in category_names:
            values = pd.Series([_tokens(v) for v in values], dtype=object)
        columns[name] = values
    return pd.DataFrame(columns)


def _tokens(text: str) -> list[str]:
    return [t.strip(" '\"") for t in (text.split(",") if "," in text else text.split())]


def _distinct(names: list[str]) -> list[str]:
    """A header that names a column twice keeps the first; later ones get a number."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return out


def _read_json(path: Path, table: str, content: bytes) -> RawTable:
    """JSON lines, or one JSON array of objects; Python literals (the Amazon 2014 files) are read too, and counted."""
    records: list[dict] = []
    rows: list[int] = []
    lost: list[tuple[int, str]] = []
    literals: list[int] = []
    blank: list[int] = []

    def take(row: int, value: object, shown: str) -> None:
        if isinstance(value, dict):
            records.append(value)
            rows.append(row)
        else:
            lost.append((row, shown))

    if content.lstrip()[:1] == b"[":
        try:
            values = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path} begins as a JSON array but is none: {error}.") from error
        for row, element in enumerate(values, start=1):
            take(row, element, str(element)[:60])
    else:
        lines = content.split(b"\n")
        for row, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
            if not line.strip():
                blank.append(row)
                continue
            value: object = None
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                try:
                    value = ast.literal_eval(line.decode("utf-8").strip())
                    literals.append(row)
                except (ValueError, SyntaxError, RecursionError, MemoryError):
                    pass
            take(row, value, line[:60].decode("utf-8", "replace"))
    findings = []
    if lost:
        example = f"{path.name}:{lost[0][0]}, {lost[0][1]!r}"
        findings.append(Finding(table, "no JSON object", len(lost), "dropped", example))
    if blank:
        findings.append(Finding(table, "blank row", len(blank), "dropped", f"{path.name}:{blank[0]}"))
    if literals:
        what = "not JSON but a Python literal: read as one"
        findings.append(Finding(table, what, len(literals), "repaired", f"{path.name}:{literals[0]}"))
    if not records:
        raise DataError(f"{path} holds no JSON object: expected one a line. {findings[0] if findings else ''}")
    names = dict.fromkeys(key for record in records for key in record)
    frame = pd.DataFrame({str(n): pd.Series([r.get(n) for r in records], dtype=object) for n in names})
    numbers = np.array(rows, dtype=np.int64)
    return RawTable(
        table, path.name, frame, numbers, np.ones_like(numbers), findings=tuple(findings), unreadable=len(lost)
    )


def _read_parquet(path: Path, table: str, content: bytes) -> RawTable:
    # Nullable integers: an id above 2**53 must not pass through a float because its neighbour is missing.
    mapper = {
        pa.string(): pd.StringDtype(na_value=np.nan),
        pa.large_string(): pd.StringDtype(na_value=np.nan),
        pa.int64(): pd.Int64Dtype(),
        pa.int32(): pd.Int32Dtype(),
    }
    try:
        frame = pa.parquet.read_table(io.BytesIO(content)).to_pandas(types_mapper=mapper.get)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error
    if frame.empty:
        raise DataError(f"{path} has columns but no rows.")
    frame = frame.set_axis(_distinct([str(c) for c in frame.columns]), axis=1).reset_index(drop=True)
    rows = np.arange(1, len(frame) + 1, dtype=np.int64)
    return RawTable(table, path.name, frame, rows, np.ones_like(rows))

"""Reads event logs and catalogues: MovieLens, RecBole atomic files, any CSV, TSV, JSONL or Parquet, saved data sets.

All formats take the same steps: find the files, split each into rows and fields (counting every row that is lost),
recognise the columns, clean, number users and items. Formats differ in the first step, and in how columns get their
names.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    DOMAIN,
    EVENT_TYPES,
    ITEM,
    ITEM_INDEX,
    ORDER,
    TAG,
    TIMESTAMP,
    TITLE,
    USER,
    USER_INDEX,
)
from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.catalogue_match import doubts_of_match, other_spelling
from tfllmrec.data.cleaning.event_kinds import weights_of_kinds
from tfllmrec.data.cleaning.events import clean_events
from tfllmrec.data.cleaning.items import clean_items, clean_users, join_more_items
from tfllmrec.data.cleaning.order_checks import order_doubts
from tfllmrec.data.cleaning.recognition import (
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    TAG_COLUMNS,
    check_mapped,
    check_mapping,
    name_columns,
)
from tfllmrec.data.cleaning.tags import clean_tags, no_tags
from tfllmrec.data.cleaning.times import EARLY_S, times
from tfllmrec.data.cleaning.titles import usable_titles
from tfllmrec.data.dataset import MANIFEST, Dataset
from tfllmrec.data.domains import item_domains, note_without_domain, with_domains
from tfllmrec.data.extension import (
    extended_entities,
    extended_events,
    extended_tags,
    known_occurrences,
    note_extension,
)
from tfllmrec.data.files.column_names import is_known_name
from tfllmrec.data.files.folders import Files, find_files, name_of, source_folder
from tfllmrec.data.files.raw_table import RawTable, distinct_names
from tfllmrec.data.files.tables import read_table
from tfllmrec.data.files.vector_files import with_vectors
from tfllmrec.data.findings import CleaningReport
from tfllmrec.data.held_out import is_row_range, mark_events, note_marked, rows_of_range
from tfllmrec.data.schema import TABLES, have_units, unreadable
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.wording import shown

_EVENTS = ("events", EVENT_COLUMNS, (USER, ITEM))


def read_dataset(
    config: DataConfig,
    base: Path = Path(),
    known: Dataset | None = None,
    test_events: str | None = None,
    log_since: int = 0,
) -> Dataset:
    """Reads and cleans the files that the ``data`` section of a config names, and returns a Dataset.

        dataset = read_dataset(DataConfig(events="events.csv", items="items.csv"))

    ``config.source`` is a folder or the name of a registered data set. The format of a folder is recognised: MovieLens,
    RecBole, a folder with a table ``interactions``, ``events`` or ``ratings`` and a table ``items``, ``movies`` or
    ``books``, or a saved data set. Instead of a source, ``config.events`` names a file. ``items`` and ``users`` belong
    to it, or replace the file found in the source. ``vectors`` names files with one vector for each row of the items. A
    saved data set is not cleaned again.

    Args:
      config: The ``data`` section.
      base: The folder that relative paths refer to.
      known: A data set that the files extend, see :meth:`Dataset.extend`. Any table may then be missing.
      test_events: The test events of a ``fixed`` split, ``split.test_events`` of the config: rows of the file of events
        (``0:20000``), or a file of events, whose relative path also refers to ``base``. The report counts test events
        that are not among the cleaned events. With ``known`` this is ignored, because extended data sets keep their
        test events.
      log_since: If ``data.events`` is an event log, its events up to this number are not read.

    Raises:
      ConfigError: There is neither a source nor events, or there are both; files are given in addition to a saved data
        set; a saved data set would extend another one; a registered name, encoding or column name is unknown; test
        events are named by rows, but the data is a saved data set; there are vectors without items, or vectors with the
        name of a column.
      DataError: A file is missing, empty, unreadable, lacks a column or has too many broken rows; the number of vectors
        differs from the number of item rows; or none of the test events is among the cleaned events.
    """
    check_mapping(config.columns)
    found = "both" if config.source is not None and config.events is not None else "neither"
    alone = known is None or not (config.items or config.users)
    if found == "both" or (config.source is None and config.events is None and alone):
        raise ConfigError(
            "data: expected a folder or a registered data set as data.source, or else a file as data.events; "
            f"found {found}."
        )

    def read(path: Path, table: str, wanted: Sequence[str], required: Sequence[str], log_since: int = 0) -> RawTable:
        return name_columns(read_table(path, table, config, log_since=log_since), wanted, required, config.columns)

    files = Files()
    if config.source is not None:
        folder = source_folder(config.source, base)
        if config.format == "tfllmrec" or (config.format == "auto" and (folder / MANIFEST).is_file()):
            if config.items or config.users or config.more_items or config.vectors or config.columns:
                raise ConfigError(
                    f"data.source: {config.source} is a saved data set, which has its items and users already: leave "
                    "out data.items, data.users, data.more_items, data.vectors and data.columns."
                )
            if known is not None:
                raise ConfigError(
                    f"data.source: expected files that extend a data set, found a saved data set, {config.source}: "
                    "name the files that it was made of."
                )
            dataset = Dataset.load(folder)
            fields = {**dataset.fields, **config.fields}
            dataset = replace(dataset, name=config.name or dataset.name, fields=fields)
            if test_events is not None and test_events != dataset.test_events:
                if dataset.test_events is not None or is_row_range(test_events):
                    raise ConfigError(
                        f"split.test_events: expected {dataset.test_events or 'a file'} for the saved data set "
                        f"{config.source}, found {test_events}: read the files that it was made of again."
                    )
                dataset = _with_test_events(dataset, test_events, read(base / test_events, *_EVENTS), config)
            return _checked(dataset)
        files = find_files(folder, config.format)
    for role in ("events", "items", "users"):
        given = getattr(config, role)
        if given is not None:
            setattr(files, role, base / given)
    files.more_items = [base / path for path in config.more_items]

    events = read(files.events, *_EVENTS, log_since) if files.events else None
    items = read(files.items, "items", ITEM_COLUMNS, (ITEM,)) if files.items else None
    if config.vectors:
        if items is None:
            raise ConfigError(
                "data.vectors: expected a file of items, whose rows the vectors belong to. Set data.items."
            )
        items = with_vectors(items, {name: base / path for name, path in config.vectors.items()}, config)
    more = [read(path, f"more_items:{path.name}", ITEM_COLUMNS, (ITEM,)) for path in files.more_items]
    users = read(files.users, "users", (USER,), (USER,)) if files.users else None
    tags = read(files.tags, "tags", TAG_COLUMNS, (ITEM, TAG)) if files.tags else None
    if known is None:
        assert files.events is not None  # set by the config, or by find_files, which raises otherwise
        name = name_of(config.source, files.events)
    else:
        name = known.name
    rows = test_events if known is None and test_events is not None and is_row_range(test_events) else None
    dataset = _assemble(events, items, users, more, tags, config, config.name or name, known, rows)
    if known is None and test_events is not None and rows is None:
        dataset = _with_test_events(dataset, test_events, read(base / test_events, *_EVENTS), config)
    return dataset


def read_items(
    path: Path, config: DataConfig, known: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, CleaningReport]:
    """Reads and cleans a catalogue without events, in any format that :func:`read_dataset` reads.

    Args:
      path: The file.
      config: The ``data`` section; only ``columns``, ``encoding`` and ``max_bad_rows`` are used. If the file lacks the
        name that a column is mapped to, the column is recognised by its usual names.
      known: Clean items that the file belongs to, see :func:`tfllmrec.data.cleaning.items.clean_items`.

    Returns:
      The items as in :attr:`Dataset.items`, and the cleaning report.

    Raises:
      ConfigError: The encoding or a canonical column is unknown.
      DataError: The file is missing, empty or unreadable, lacks the ids, or has too many broken rows.
    """
    check_mapping(config.columns)
    raw = name_columns(read_table(path, "items", config), ITEM_COLUMNS, (ITEM,), config.columns)
    report = CleaningReport(sources=[raw.source("other columns")])
    return clean_items(raw, config, report, known), report


def read_ids(path: Path, config: DataConfig) -> tuple[list[str], CleaningReport]:
    """Reads the distinct user ids of a file, in its order, in any format that :func:`read_dataset` reads.

    The column is found by its usual names. A file of one column needs no header; in formats that always name their
    columns, such as Parquet, the only column may have any name except that of another known column.

    Args:
      path: The file.
      config: The ``data`` section; only ``columns``, ``encoding`` and ``max_bad_rows`` are used.

    Returns:
      The ids, and the cleaning report.

    Raises:
      ConfigError: The encoding or a canonical column is unknown.
      DataError: The file is missing, empty or unreadable, lacks the ids, or has too many broken rows.
    """
    check_mapping(config.columns)
    raw = read_table(path, "users", config, only=USER)
    names = list(raw.frame.columns)
    only_column = len(names) == 1 and not is_known_name(names[0], config.columns)
    raw = name_columns(raw, (USER,), (USER,), {USER: names[0]} if only_column else config.columns)
    report = CleaningReport(sources=[raw.source("not used")])
    ids = clean_users(replace(raw, frame=raw.frame[[USER]]), config, report)[USER].tolist()
    if not ids:
        raise DataError(f"{raw.file}: no user id is left of {len(raw.frame):,} rows. " + " ".join(report.lines()))
    return ids, report


def dataset_from_frames(
    events: pd.DataFrame | None,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    config: DataConfig | None = None,
    tags: pd.DataFrame | None = None,
    known: Dataset | None = None,
    test_events: str | pd.DataFrame | None = None,
) -> Dataset:
    """Creates a Dataset from tables in memory. Columns and values are treated as in :func:`read_dataset`.

    Args:
      events: The events; may be ``None`` only with ``known``.
      items: The catalogue.
      users: The users.
      config: The ``data`` section.
      tags: Tags that users gave to items.
      known: A data set that the tables extend, see :meth:`Dataset.extend`.
      test_events: The test events of a ``fixed`` split: rows of ``events`` (``"0:20000"``), or a table with some of the
        events.

    Raises:
      DataError: The events are missing, a column is missing, no event is left, too many rows are broken, or none of the
        test events is among the clean events.
    """
    config = config or DataConfig()
    check_mapping(config.columns)
    if events is None and known is None:
        raise DataError("Expected a table of events, found none: a catalogue alone can only extend a data set.")

    def raw(frame: pd.DataFrame, table: str, wanted: Sequence[str], required: Sequence[str]) -> RawTable:
        named = [level for level, name in enumerate(frame.index.names) if name is not None]
        frame = frame.reset_index(level=named, allow_duplicates=True).reset_index(drop=True)  # as for Parquet files
        frame = frame.set_axis(distinct_names([str(c) for c in frame.columns]), axis=1)
        rows = np.arange(len(frame), dtype=np.int64)
        table_of = RawTable(table, f"{table} table", frame, rows, np.ones_like(rows))
        return name_columns(table_of, wanted, required, config.columns)

    dataset = _assemble(
        None if events is None else raw(events, *_EVENTS),
        None if items is None else raw(items, "items", ITEM_COLUMNS, (ITEM,)),
        None if users is None else raw(users, "users", (USER,), (USER,)),
        [],
        None if tags is None else raw(tags, "tags", TAG_COLUMNS, (ITEM, TAG)),
        config,
        config.name or ("frames" if known is None else known.name),
        known,
        test_events if isinstance(test_events, str) else None,
    )
    if isinstance(test_events, pd.DataFrame):
        dataset = _with_test_events(dataset, "table", raw(test_events, *_EVENTS), config)
    return dataset


def _assemble(
    raw_events: RawTable | None,
    raw_items: RawTable | None,
    raw_users: RawTable | None,
    more_items: list[RawTable],
    raw_tags: RawTable | None,
    config: DataConfig,
    name: str,
    known: Dataset | None,
    test_rows: str | None,
) -> Dataset:
    """Assembles the Dataset from the tables. A first reading extends an empty one, and may mark rows as test events."""
    check_mapped(config.columns, [raw for raw in (raw_events, raw_items, raw_users, *more_items) if raw])
    report = CleaningReport()
    known = known or Dataset.empty(name)
    events, ordered_by, tied = known.events.iloc[:0], None, np.empty(0, dtype=bool)
    if raw_events:
        marked, n_marked = (None, 0) if test_rows is None else rows_of_range(raw_events, test_rows)
        events, ordered_by, tied = clean_events(raw_events, config, report, known.events, marked)
        if test_rows is not None:
            note_marked(events, test_rows, n_marked, report)
        if ordered_by is None:
            _note_other_times(raw_events, report)
        order = f"ordered by {ordered_by}" if ordered_by else "in no known order"
        if ordered_by == ORDER and TIMESTAMP in raw_events.names:
            order += f", not by {TIMESTAMP}"
        report.sources.append(raw_events.source("other columns", order))
    report.sources += [
        *(raw.source("other columns") for raw in (raw_items, *more_items, raw_users) if raw),
        *([raw_tags.source("not used")] if raw_tags else []),
    ]

    no_items = pd.DataFrame({ITEM: pd.Series([], dtype="str")})
    items = clean_items(raw_items, config, report, known.items) if raw_items else no_items
    item_codes, item_ids = pd.factorize(events[ITEM])
    listed = pd.concat([items[ITEM], known.items[ITEM]]).drop_duplicates()
    unlisted = pd.Index(item_ids)[~pd.Index(item_ids).isin(listed)]
    if raw_events and raw_items:
        met = pd.Index(item_ids).append(pd.Index(known.events[ITEM])).unique()
        _note_unlisted(raw_events, raw_items, listed, met, unlisted, report)
    items = pd.concat([items, pd.DataFrame({ITEM: pd.Series(unlisted, dtype="str")})], ignore_index=True).fillna("")
    ids_in_file = pd.Index(items[ITEM])
    # The order of rows, and in JSON of columns, in a file must change neither the fingerprint nor a fitted model.
    items = extended_entities(known.items, items, ITEM)
    for raw in more_items:
        items = join_more_items(items, clean_items(raw, config, report, known=items), raw, report)
    items = items[[c for c in ITEM_COLUMNS if c in items] + list(items.columns.difference([*ITEM_COLUMNS]))]
    rows_by_id = ids_in_file.get_indexer(items[ITEM])  # -1: a known item that is not in the file
    tags = clean_tags(raw_tags, items, config, report) if raw_tags else no_tags()
    _note_texts(items, rows_by_id >= 0, report)

    user_codes, user_ids = pd.factorize(events[USER])
    users = clean_users(raw_users, config, report) if raw_users else pd.DataFrame({USER: pd.Series([], dtype="str")})
    active = pd.Index(user_ids).append(pd.Index(known.users[USER]))
    in_file = pd.Index(users[USER])
    idle = ~users[USER].isin(active).to_numpy()
    if idle.any():
        report.add("users", "the user has no events", int(idle.sum()), "dropped", _first_id(users[USER], idle))
        report.rows_kept["users"] -= int(idle.sum())
        users = users[~idle]
    strangers = active[~active.isin(pd.concat([users[USER], known.users[USER]]))]
    if raw_users:
        alike = other_spelling(strangers, in_file, "the users")
        if raw_events and len(strangers) == len(active) and len(in_file):
            raise _no_common_id("user", raw_events, raw_users, strangers[0], in_file[0], alike)
        what = "only in the events, not in the file of users" + (f"; {alike}" if alike else "")
        report.add("users", what, len(strangers), "added", f"{strangers[:1].tolist()}")
    users = pd.concat([users, pd.DataFrame({USER: pd.Series(strangers, dtype="str")})], ignore_index=True).fillna("")
    users = extended_entities(known.users, users, USER)
    users = users[[USER, *users.columns.drop(USER).sort_values()]]

    events[USER_INDEX] = pd.Index(users[USER]).get_indexer(user_ids)[user_codes].astype(np.int64)
    events[ITEM_INDEX] = pd.Index(items[ITEM]).get_indexer(item_ids)[item_codes].astype(np.int64)
    by_user = np.lexsort((events[ORDER], events[USER_INDEX]))
    events = events.iloc[by_user].reset_index(drop=True)
    if ordered_by:
        item_orders = {"the row of the item in the catalogue": rows_by_id} if raw_items else {}
        if np.count_nonzero(np.diff(item_codes)) + 1 == len(item_ids):
            first_row = pd.Index(item_ids).get_indexer(items[ITEM])
            item_orders["the row of the event in the file, which lists the events item by item"] = first_row
        report.findings += order_doubts(events, tied[by_user], items, item_orders)
    events = events[[*EVENT_TYPES, *(column for column in events if column not in EVENT_TYPES)]]
    fields = {**known.fields, **config.fields}
    if known.events.empty:
        first = Dataset(
            name,
            events,
            items,
            users,
            tags,
            ordered=ordered_by is not None,
            repeats=config.repeats == "all",
            test_events=test_rows,
            fields=fields,
            report=report,
        )
        return _checked(first)
    note_extension("items", known.items, items, report)
    note_extension("users", known.users, users, report)
    report = known.report.followed_by(report)
    if raw_events:
        events = extended_events(
            known.events,
            events,
            ordered=known.ordered,
            came_ordered=ordered_by is not None,
            known_repeats=known.repeats,
            repeats=config.repeats,
            weights=weights_of_kinds(fields),
            report=report,
        )
    else:
        events = known.events
    if DOMAIN in known.items and item_domains(known.items, known.schema) is not None:
        events = with_domains(events, items, report)
        note_without_domain(known.items, items, report)
    tags = extended_tags(known.tags, tags, report)
    grown = replace(known, name=name, events=events, items=items, users=users, tags=tags, fields=fields, report=report)
    return _checked(grown, known)


def _with_test_events(dataset: Dataset, name: str, named: RawTable, config: DataConfig) -> Dataset:
    """Returns the data set with the events that the table ``named`` contains marked as test events."""
    of_reading, report = CleaningReport(), CleaningReport()
    every_row = config.model_copy(update={"repeats": "all", "min_user_events": 1})
    events = mark_events(dataset.events, clean_events(named, every_row, of_reading, dataset.events)[0])
    note_marked(events, name, of_reading.rows_in["events"], report)
    return replace(dataset, events=events, test_events=name, report=dataset.report.followed_by(report))


def _checked(dataset: Dataset, known: Dataset | None = None) -> Dataset:
    """Returns the data set, after a check that ``data.fields`` fit it: errors then appear before hours of training.

    The report has a finding for each column with unreadable cells, and another one for those that an extension of
    ``known`` adds. It names columns of numbers with units. If a saved data set is read again, the finding replaces the
    earlier one.
    """
    found = CleaningReport()
    for field in dataset.schema:
        name, table = field.name, TABLES[field.owner]
        cells = getattr(dataset, table)[name]
        odd = cells[unreadable(field, cells)]
        if known is not None and name in getattr(known, table):
            before = getattr(known, table)[name]
            odd = odd[~known_occurrences(odd, before[unreadable(field, before)])]
        expected = f"vector of {field.length} numbers" if field.kind == "vector" else field.kind
        what = f"column {name!r}: not a {expected}, so read as missing; data.fields.{name}.kind sets another kind"
        found.add(table, what, len(odd), "kept", "".join(odd[:1].map(shown)))
        if known is None and (with_unit := cells[have_units(field, cells)]).any():
            what = (
                f"column {name!r}: numbers with a unit, so read as {field.kind} and not as a number; write the numbers"
            )
            found.add(table, f"{what} alone, all in one unit", len(with_unit), "kept", shown(with_unit.iloc[0]))
    again = {(finding.table, finding.what) for finding in found.findings if known is None}
    earlier = [finding for finding in dataset.report.findings if (finding.table, finding.what) not in again]
    return replace(dataset, report=replace(dataset.report, findings=earlier + found.findings))


def _note_texts(items: pd.DataFrame, came: np.ndarray, report: CleaningReport) -> None:
    """Reports the number of items without text, and of items without a usable title, among the rows in ``came``.

    A catalogue whose other columns have other names is reported as a whole.
    """
    text = [c for c in ITEM_COLUMNS[1:] if c in items]
    if not text:
        if others := ", ".join(map(repr, items.columns.drop(ITEM)[:20])):
            what = (
                f"the catalogue has no column recognised as {', '.join(ITEM_COLUMNS[1:-1])} or {ITEM_COLUMNS[-1]}; if "
                f"one of {others} holds them, map it so that models can read it: --set "
                f"data.columns.{TITLE}=NAME_IN_THE_FILE"
            )
            report.add("items", what, int(came.sum()), "kept")
        return
    bare = (items[text] == "").all(axis=1).to_numpy() & came
    report.add("items", f"no text in {', '.join(text)}", int(bare.sum()), "kept", _first_id(items[ITEM], bare))
    untitled = ~usable_titles(items) & came
    report.add(
        "items",
        "no usable title (empty, a fragment of HTML, code or JSON, an address, a price, the id, or shared by many "
        "items): lists show the beginning of the description, else brand and category, else the id",
        int(untitled.sum()),
        "kept",
        _first_id(items[ITEM], untitled),
    )


def _note_unlisted(
    raw_events: RawTable,
    raw_items: RawTable,
    listed: pd.Series,
    met: pd.Index,
    unlisted: pd.Index,
    report: CleaningReport,
) -> None:
    """Reports item ids of events that the catalogue lacks, and reasons to doubt that the two files belong together.

    Args:
      raw_events: The file of events.
      raw_items: The file of items.
      listed: The ids of the catalogue.
      met: The ids of the items with events.
      unlisted: The ids in ``raw_events`` that are not in ``listed``.
      report: The report that receives the findings.

    Raises:
      DataError: The catalogue contains none of the items with events.
    """
    ours, theirs = raw_events.names[ITEM], raw_items.names[ITEM]
    remedy = "data.columns: {item_id: NAME IN THE FILE}"
    alike = other_spelling(unlisted, pd.Index(listed))
    if len(unlisted) == len(met):
        raise _no_common_id("item", raw_events, raw_items, met[0], next(iter(listed), None), alike)
    what = "only in the events, so without text"
    if alike:
        what += f"; {alike}"
    elif 2 * len(unlisted) > len(met):
        what += (
            f"; {raw_items.file} has fewer than half of the {len(met):,} items of {raw_events.file}: if either column, "
            f"{theirs!r} or {ours!r}, is the wrong one, map it: {remedy}"
        )
    example = f"{raw_events.file}, column {ours!r}: {unlisted[0]!r}" if len(unlisted) else ""
    report.add("items", what, len(unlisted), "added", example)
    if doubts := doubts_of_match(met, pd.Index(listed)):
        report.add(
            "items",
            f"{raw_items.file} may be the catalogue of other events, although these items match: {'; '.join(doubts)}. "
            f"Check a few titles of items with events; if a column is the wrong one, map it: {remedy}",
            len(met) - len(unlisted),
            "kept",
            f"{raw_events.file}, column {ours!r}, and {raw_items.file}, column {theirs!r}",
        )


def _no_common_id(
    of: str, raw_events: RawTable, raw_other: RawTable, ours: str, theirs: str | None, alike: str
) -> DataError:
    """Returns the error on two files that have no item or no user in common.

    Args:
      of: *item* or *user*.
      raw_events: The file of events.
      raw_other: The file of items or users.
      ours: An id of the events.
      theirs: An id of the other file; ``None`` if it has none.
      alike: How ids of the two differ although they are similar, see :func:`other_spelling`.
    """
    column = {"item": ITEM, "user": USER}[of]
    names = raw_events.names[column], raw_other.names[column]
    if alike:
        return DataError(
            f"No {of} of {raw_events.file} (column {names[0]!r}) is in {raw_other.file} (column {names[1]!r}): {alike}."
        )
    example = "which has none" if theirs is None else f"such as {theirs!r}"
    others = [raw_other.names.get(c, c) for c in raw_other.frame.columns if c != column][:20]
    return DataError(
        f"No {of} of {raw_events.file} (column {names[0]!r}, such as {ours!r}) is in {raw_other.file} "
        f"(column {names[1]!r}, {example}): the two must hold the same ids. Map the wrong one: data.columns: "
        f"{{{column}: NAME IN THE FILE}}; other columns of {raw_other.file}: {', '.join(map(repr, others)) or 'none'}."
    )


def _note_other_times(raw: RawTable, report: CleaningReport) -> None:
    """Reports the column with the most distinct times that is not used, of events that have no known order."""
    distinct = {}
    for name in raw.frame.columns.difference([*raw.names], sort=False):
        seconds = times(raw.frame[name])[0]
        if np.mean((seconds > EARLY_S) & (seconds < time.time() + 86_400)) > 0.9:
            distinct[name] = len(np.unique(seconds))
    if distinct:
        name = max(distinct, key=distinct.__getitem__)
        mapping = shlex.quote(f"data.columns.timestamp_s={name}")
        what = (
            f"the events have no known order, so the test events are drawn at random; {name!r} seems to be their "
            f"time: --set {mapping}"
        )
        report.add("events", what, len(raw.frame), "doubted", raw.example(0, name))


def _first_id(ids: pd.Series, mask: np.ndarray) -> str:
    return repr(ids.iloc[int(mask.argmax())]) if mask.any() else ""

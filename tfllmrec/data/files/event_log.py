"""Defines the tables of an event log on disk, and reads them; :mod:`tfllmrec.feedback.event_log` writes them.

A log is a folder with one SQLite file. Rows are read a page at a time, each page in its own transaction, so that a
writer can reuse the space of its write-ahead log in the meantime. Only queries over all rows, such as the one that
finds the columns of a table, hold a transaction for longer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tfllmrec.columns import (
    ARM,
    BEST_SCORE,
    CONTEXT,
    EVENT_KIND,
    EXPERIMENT,
    HISTORY_IDS,
    ITEM,
    LETTERS,
    LISTED,
    MEAN_SCORE,
    MODEL,
    POLICY,
    POSITION,
    PROPENSITY,
    RATING,
    RECEIVED,
    REQUEST_ID,
    SCRIPT,
    TIME_S,
    TIMESTAMP,
    UNKNOWN_IDS,
    USER,
    VERSION,
)
from tfllmrec.errors import DataError, WriteError

#: Name of the file in the folder of a log.
LOG_FILE = "events.sqlite3"
#: The tables of events, of shown items, and of the requests for their lists; and their column ``number``, which counts
#: rows in the order in which they were written. A log of an earlier version has no table of requests until a writer
#: opens it.
EVENTS, EXPOSURES, REQUESTS, NUMBER = "events", "exposures", "requests", "number"
#: The column that identifies an event: text, the ``event_id`` from its sender, or bytes derived from its content.
KEY = "key"
#: The columns for the claimed time of an event whose clock was ahead, and for the further fields of an event as one
#: JSON object.
CLAIMED, FIELDS = "claimed_s", "fields"
#: ``PRAGMA application_id`` of a log ("tfel"), and ``PRAGMA user_version``, the version of the tables below.
APPLICATION, LAYOUT = 0x7466656C, 1
#: Columns that may be empty in an event.
OPTIONAL = (RATING, EVENT_KIND, REQUEST_ID)
#: Columns of exposures that may be empty. A log of an earlier version has none of them until a writer opens it.
ARMS = (EXPERIMENT, ARM)
#: Number of rows that are read at once.
PAGE = 10_000
#: Lists are written within this time after they were made, unless a disk hung or a clock was set.
WRITTEN_WITHIN_S = 600.0
#: Maximum number of columns from further fields. If there are more fields, the most frequent ones get a column.
MOST_FURTHER = 1000

TABLES = f"""
CREATE TABLE {EVENTS} (
  {NUMBER} INTEGER PRIMARY KEY AUTOINCREMENT, {KEY} ANY NOT NULL,
  {USER} TEXT NOT NULL, {ITEM} TEXT NOT NULL, {RATING} REAL, {EVENT_KIND} TEXT, {REQUEST_ID} TEXT,
  {TIMESTAMP} REAL NOT NULL, {RECEIVED} REAL NOT NULL, {CLAIMED} REAL, {FIELDS} TEXT) STRICT;
CREATE UNIQUE INDEX events_by_key ON {EVENTS} ({KEY});
CREATE INDEX events_by_time ON {EVENTS} ({TIMESTAMP});
CREATE TABLE {EXPOSURES} (
  {NUMBER} INTEGER PRIMARY KEY AUTOINCREMENT, {REQUEST_ID} TEXT NOT NULL, {TIME_S} REAL NOT NULL, {USER} TEXT,
  {MODEL} TEXT NOT NULL, {VERSION} INTEGER NOT NULL, {POLICY} TEXT NOT NULL, {ITEM} TEXT NOT NULL,
  {POSITION} INTEGER NOT NULL, {PROPENSITY} REAL NOT NULL) STRICT;
CREATE UNIQUE INDEX exposures_by_place ON {EXPOSURES} ({REQUEST_ID}, {POSITION});
"""
TABLE_OF_REQUESTS = f"""
CREATE TABLE IF NOT EXISTS {REQUESTS} (
  {NUMBER} INTEGER PRIMARY KEY AUTOINCREMENT, {REQUEST_ID} TEXT NOT NULL UNIQUE, {TIME_S} REAL NOT NULL, {USER} TEXT,
  {MODEL} TEXT NOT NULL, {VERSION} INTEGER NOT NULL, {POLICY} TEXT NOT NULL, {LISTED} INTEGER NOT NULL,
  {HISTORY_IDS} INTEGER NOT NULL, {UNKNOWN_IDS} INTEGER NOT NULL, {BEST_SCORE} REAL, {MEAN_SCORE} REAL,
  {LETTERS} INTEGER, {SCRIPT} TEXT, {CONTEXT} TEXT) STRICT
"""
_LIST_TYPES = {
    REQUEST_ID: pa.string(),
    TIME_S: pa.float64(),
    USER: pa.string(),
    MODEL: pa.string(),
    VERSION: pa.int64(),
    POLICY: pa.string(),
}
#: Columns of the table of exposures, in order.
EXPOSURE_TYPES = {
    **_LIST_TYPES,
    ITEM: pa.string(),
    POSITION: pa.int64(),
    PROPENSITY: pa.float64(),
    **dict.fromkeys(ARMS, pa.string()),
}
#: Columns of the table of requests, in order.
REQUEST_TYPES = {
    **_LIST_TYPES,
    LISTED: pa.int64(),
    HISTORY_IDS: pa.int64(),
    UNKNOWN_IDS: pa.int64(),
    BEST_SCORE: pa.float64(),
    MEAN_SCORE: pa.float64(),
    LETTERS: pa.int64(),
    SCRIPT: pa.string(),
    CONTEXT: pa.string(),
}
_EVENT_TYPES = {
    USER: pa.string(),
    ITEM: pa.string(),
    RATING: pa.float64(),
    EVENT_KIND: pa.string(),
    REQUEST_ID: pa.string(),
    TIMESTAMP: pa.float64(),
}
#: SQLite's JSON types in a column -> type of the column; all other combinations become text.
_JSON_TYPES = {
    frozenset({"integer"}): pa.int64(),
    frozenset({"real"}): pa.float64(),
    frozenset({"integer", "real"}): pa.float64(),  # if float64 represents all the integers, see _EXACT
    frozenset({"true", "false"}): pa.bool_(),
    frozenset({"true"}): pa.bool_(),
    frozenset({"false"}): pa.bool_(),
}
_EXACT = 1 << 53  # float64 represents all integers up to here
# Lowest eight bits of SQLite's error code -> error number of the operating system.
_OF_DISKS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}


@dataclass(frozen=True)
class LogPlace:
    """A place up to which a log was read: the number of the newest event, and its key, which identifies the log."""

    number: int
    key: str


def is_event_log(path: Path) -> bool:
    """Returns whether a path is the folder of an event log."""
    return (path / LOG_FILE).is_file()


@contextlib.contextmanager
def sqlite_errors(folder: Path) -> Iterator[None]:
    """Converts SQLite's errors about its file to errors of the library.

    Raises:
      OSError: The disk is full, broken or read-only; :func:`tfllmrec.durable.writing` says what to do.
      WriteError: Another process held the log for too long.
      DataError: The file is damaged, or not an event log.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _OF_DISKS:
            number = _OF_DISKS[code]
            raise OSError(number, os.strerror(number), str(folder / LOG_FILE)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise WriteError(f"{folder} is busy: another process has held it for too long.", "Try again.") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DataError(
                f"{folder / LOG_FILE} is damaged ({error}): restore it from a backup, or save what can be read with "
                "'sqlite3 events.sqlite3 .recover'."
            ) from error
        raise


def require_layout(connection: sqlite3.Connection, folder: Path) -> None:
    """Raises DataError unless the open file is an event log of this layout."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise DataError(
            f"{folder / LOG_FILE} is not an event log: expected a folder that 'tfllmrec events append' made."
        )
    if layout != LAYOUT:
        raise DataError(
            f"{folder} is an event log of layout {layout}; this version of tfllmrec reads {LAYOUT}: use the version "
            "that wrote it."
        )


class LogReader:
    """A reader of an event log, which may have writers at the same time; close it, or use it in a ``with`` block.

    The reader sees only committed rows. Reading in the order of receipt misses no row, because SQLite commits one
    writer after the other: no row with a smaller number appears later.

    Raises:
      DataError: The folder holds no event log, or a damaged one, or is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_event_log(folder):
            raise DataError(f"{folder} is not an event log: expected a folder with {LOG_FILE} in it.")
        # Not mode=ro: the first reader of a log whose writer was killed has to recover the write-ahead log.
        with self._errors():
            self._connection = sqlite3.connect(
                folder.absolute().joinpath(LOG_FILE).as_uri() + "?mode=rw", timeout=30, uri=True, isolation_level=None
            )
            try:
                self._connection.execute("PRAGMA query_only = 1")
                require_layout(self._connection, folder)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Returns the rows of a short query."""
        with self._errors():
            return self._connection.execute(sql, values).fetchall()

    def last(self, table: str = EVENTS) -> int:
        """Returns the number of the newest row; 0 if there is none."""
        return int(self.rows(f"SELECT coalesce(max({NUMBER}), 0) FROM {table}")[0][0])

    def place(self) -> LogPlace | None:
        """Returns the place of the newest event; ``None`` for a log without events."""
        found = self.rows(f"SELECT {NUMBER}, quote({KEY}) FROM {EVENTS} ORDER BY {NUMBER} DESC LIMIT 1")
        return LogPlace(*found[0]) if found else None

    def holds(self, place: LogPlace) -> bool:
        """Returns whether the log has the event at ``place``; if so, the later rows are those with larger numbers."""
        return self.rows(f"SELECT quote({KEY}) FROM {EVENTS} WHERE {NUMBER} = ?", place.number) == [(place.key,)]

    def pages(
        self, table: str, columns: Sequence[str], since: int = 0, upto: int | None = None, by_time: bool = False
    ) -> Iterator[list[Any]]:
        """Yields the rows after number ``since`` up to ``upto`` (default: the newest row now), a page at a time.

        Rows that are written in the meantime are left out.

        Args:
          table: The table.
          columns: The columns to read.
          since: The number after which rows are read.
          upto: The number of the last row to read.
          by_time: Whether rows come in the order of the events' times, and of receipt for equal times; by default in
            the order of receipt.
        """
        upto = self.last(table) if upto is None else upto
        absent = () if self.has_arms() else ARMS
        names = ("NULL" if name in absent else name for name in columns)
        listed = ", ".join((*names, NUMBER, TIMESTAMP if by_time else NUMBER))
        after: tuple[float, int] = (float("-inf"), 0)
        while True:
            if by_time:
                found = self.rows(
                    f"SELECT {listed} FROM {table} WHERE ({TIMESTAMP}, {NUMBER}) > (?, ?) AND +{NUMBER} > ? AND "
                    f"+{NUMBER} <= ? ORDER BY {TIMESTAMP}, {NUMBER} LIMIT {PAGE}",
                    *after, since, upto,
                )  # fmt: skip
            else:
                found = self.rows(
                    f"SELECT {listed} FROM {table} WHERE {NUMBER} > ? AND {NUMBER} <= ? ORDER BY {NUMBER} LIMIT {PAGE}",
                    since, upto,
                )  # fmt: skip
            if not found:
                return
            if by_time:
                after = (found[-1][-1], found[-1][-2])
            else:
                since = found[-1][-2]
            yield [row[:-2] for row in found]

    def has_requests(self) -> bool:
        """Returns whether the log has the table of requests."""
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", REQUESTS))

    def has_arms(self) -> bool:
        """Returns whether the table of exposures has the columns :data:`ARMS`."""
        return any(column[1] == ARM for column in self.rows(f"PRAGMA table_info({EXPOSURES})"))

    def between(self, table: str, columns: Sequence[str], after_s: float, upto_s: float) -> Iterator[list[Any]]:
        """Yields the rows whose time is above ``after_s`` and at most ``upto_s``, a page at a time.

        Events are found by an index. Lists are written within :data:`WRITTEN_WITHIN_S` after they were made, so their
        first and last rows are found by bisection, and the rows in between are read and filtered.

        Args:
          table: The table.
          columns: The columns to read; the first one is the time: ``timestamp_s`` of events, otherwise ``time_s``.
          after_s: The time after which rows are read, in seconds since 1970.
          upto_s: The time up to which rows are read, in seconds since 1970.
        """
        if table == EVENTS:
            at, number = after_s, 1 << 62  # excludes events at after_s itself
            while found := self.rows(
                f"SELECT {', '.join(columns)}, {NUMBER} FROM {table} WHERE ({TIMESTAMP}, {NUMBER}) > (?, ?) AND "
                f"{TIMESTAMP} <= ? ORDER BY {TIMESTAMP}, {NUMBER} LIMIT {PAGE}",
                at, number, upto_s,
            ):  # fmt: skip
                at, number = found[-1][0], found[-1][-1]
                yield [row[:-1] for row in found]
            return
        for page in self.pages(
            table, columns, self._number_at(table, after_s), self._number_at(table, upto_s + 2 * WRITTEN_WITHIN_S)
        ):
            if rows := [row for row in page if after_s < row[0] <= upto_s]:
                yield rows

    def count_between(self, table: str, after_s: float, upto_s: float) -> int:
        """Returns about how many rows :meth:`between` reads."""
        if table == EVENTS:
            sql = f"SELECT count(*) FROM {table} WHERE {TIMESTAMP} > ? AND {TIMESTAMP} <= ?"
            return int(self.rows(sql, after_s, upto_s)[0][0])
        return self._number_at(table, upto_s + 2 * WRITTEN_WITHIN_S) - self._number_at(table, after_s)

    def ends(self, table: str, upto_s: float) -> tuple[float, float] | None:
        """Returns when the first and the newest list up to ``upto_s`` were made; ``None`` if there are none."""
        newest = self.rows(
            f"SELECT {TIME_S} FROM {table} WHERE {NUMBER} <= ? AND {TIME_S} <= ? ORDER BY {NUMBER} DESC LIMIT 1",
            self._number_at(table, upto_s + 2 * WRITTEN_WITHIN_S), upto_s,
        )  # fmt: skip
        if not newest:
            return None
        first = self.rows(f"SELECT {TIME_S} FROM {table} ORDER BY {NUMBER} LIMIT 1")
        return min(first[0][0], newest[0][0]), newest[0][0]

    def _number_at(self, table: str, time_s: float) -> int:
        """Finds by bisection a number such that all rows up to it are from before ``time_s``."""
        low, high = 0, self.last(table)
        while low < high:
            middle = (low + high + 1) // 2
            found = self.rows(f"SELECT {TIME_S} FROM {table} WHERE {NUMBER} >= ? ORDER BY {NUMBER} LIMIT 1", middle)
            if found and found[0][0] < time_s - WRITTEN_WITHIN_S:
                low = middle
            else:
                high = middle - 1
        return low

    def table(self, name: str = EVENTS, since: int = 0, upto: int | None = None) -> LogTable:
        """Returns the rows with a number above ``since`` as a table in the order of receipt, read batch by batch.

        Events have ``user_id``, ``item_id`` and ``timestamp_s``; rating, kind and ``request_id`` if any row has one;
        and at most :data:`MOST_FURTHER` further fields. A field holds numbers or truth values if all its values are
        such, otherwise text. Exposures have ``experiment`` and ``arm`` if any row has an arm.
        """
        upto = self.last(name) if upto is None else upto
        (count,) = self.rows(f"SELECT count(*) FROM {name} WHERE {NUMBER} > ? AND {NUMBER} <= ?", since, upto)[0]
        if name != EVENTS:
            types = dict(EXPOSURE_TYPES if name == EXPOSURES else REQUEST_TYPES)
            within = f"{NUMBER} > ? AND {NUMBER} <= ? AND {ARM} IS NOT NULL"
            if name == EXPOSURES and not (
                self.has_arms() and self.rows(f"SELECT 1 FROM {EXPOSURES} WHERE {within} LIMIT 1", since, upto)
            ):
                types = {column: kind for column, kind in types.items() if column not in ARMS}
            return LogTable(self, name, pa.schema(types), (), 0, since, upto, count)
        present = self.rows(
            f"SELECT {', '.join(f'count({column})' for column in OPTIONAL)} FROM {EVENTS} WHERE {NUMBER} > ? AND "
            f"{NUMBER} <= ?",
            since, upto,
        )[0]  # fmt: skip
        absent = {column for column, times in zip(OPTIONAL, present, strict=True) if not times}
        types = {column: kind for column, kind in _EVENT_TYPES.items() if column not in absent}
        found = self.rows(
            "SELECT json_each.key, group_concat(DISTINCT json_each.type), max(json_each.type = 'integer' AND "
            f"json_each.value NOT BETWEEN -{_EXACT} AND {_EXACT}), count(*) OVER () "
            f"FROM {EVENTS}, json_each({EVENTS}.{FIELDS}) WHERE {EVENTS}.{NUMBER} > ? AND {EVENTS}.{NUMBER} <= ? "
            f"GROUP BY json_each.key ORDER BY count(*) DESC, json_each.key LIMIT {MOST_FURTHER}",
            since, upto,
        )  # fmt: skip
        further = {key: _field_type(set(kinds.split(",")), inexact) for key, kinds, inexact, _ in sorted(found)}
        left_out = found[0][-1] - len(found) if found else 0
        return LogTable(self, name, pa.schema(types | further), tuple(further), left_out, since, upto, count)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with sqlite_errors(self.folder):
                yield
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be read: {error.strerror}. Expected a folder that this user may write to: "
                "SQLite shares memory there with the log's writers. Or read a copy."
            ) from error


class LogTable(NamedTuple):
    """Rows of a log as a table.

    Attributes:
      reader: The reader of the log.
      name: The name of the table in the log.
      schema: The columns.
      further: The columns that come from further fields of events.
      left_out: How many other further fields the events have.
      since: The number after which the rows begin.
      upto: The number of the last row.
      rows: How many rows there are.
    """

    reader: LogReader
    name: str
    schema: pa.Schema
    further: tuple[str, ...]
    left_out: int
    since: int
    upto: int
    rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows, at most :data:`PAGE` at a time."""
        own = [column for column in self.schema.names if column not in self.further]
        columns = [*own, *([FIELDS] if self.further else [])]
        for page in self.reader.pages(self.name, columns, self.since, self.upto):
            values: dict[str, list[Any]] = dict(zip(columns, map(list, zip(*page, strict=True)), strict=True))
            if self.further:
                fields = [json.loads(text) if text else {} for text in values.pop(FIELDS)]
                for column in self.further:
                    cells = [given.get(column) for given in fields]
                    text = self.schema.field(column).type == pa.string()
                    values[column] = [_text(cell) for cell in cells] if text else cells
            yield pa.record_batch(
                [pa.array(values[field.name], field.type) for field in self.schema], schema=self.schema
            )


def _field_type(kinds: set[str], inexact: bool) -> pa.DataType:
    """Returns the type of a column.

    Args:
      kinds: SQLite's types of its values.
      inexact: Whether it has an integer that float64 may not represent exactly.
    """
    if inexact and "real" in kinds:
        return pa.string()
    return _JSON_TYPES.get(frozenset(kinds), pa.string())


def _text(cell: str | float | bool | None) -> str | None:
    """Converts a value to text as the reader of a table does: ``True``, or ``1`` for ``1.0``, in any column."""
    if cell is None or isinstance(cell, str):
        return cell
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)

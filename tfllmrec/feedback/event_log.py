"""An append-only, durable log of events and of the lists that were shown.

**Why SQLite.** A log has four requirements: an acknowledged event survives a kill and a power failure; an event that is
sent twice counts once; several processes can write (a server, the command line); and a reader that remembers its
position misses nothing. SQLite, which comes with Python, meets all four: a write-ahead log that is synchronised at each
commit (``journal_mode=WAL, synchronous=FULL``), a unique index, locks between processes, and sequential commits, so
that row numbers appear in order. Parquet segments would need an index of keys beside them, a log in front of them (a
segment with a footer for each small batch is slow and large), and rules for compaction and recovery, which amounts to a
database. Parquet is better at reading columns: export the log for that.

SQLite has costs: only one writer at a time, which group commit (:mod:`tfllmrec.feedback.event_writer`) makes up for; an
index of keys, in which each event of a commit changes a page of its own if keys come in random order; and no network
file systems, where the shared memory of WAL does not work. Keys computed from content begin with the time, and so do
UUIDv7 ids, so neighbouring keys share pages.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfllmrec.client.answers import Receipt
from tfllmrec.columns import EVENT_ID, EVENT_KIND, ITEM, POSITION, RATING, RECEIVED, REQUEST_ID, TIMESTAMP, USER
from tfllmrec.data.files.event_log import (
    APPLICATION,
    ARMS,
    CLAIMED,
    EVENTS,
    EXPOSURE_TYPES,
    EXPOSURES,
    FIELDS,
    KEY,
    LAYOUT,
    LOG_FILE,
    NUMBER,
    REQUEST_TYPES,
    REQUESTS,
    TABLE_OF_REQUESTS,
    TABLES,
    LogReader,
    require_layout,
    sqlite_errors,
)
from tfllmrec.durable import sync, writing
from tfllmrec.errors import DataError
from tfllmrec.feedback.events import LATE_S, Batch, Row, check

#: The maximum number of events per call of :meth:`EventLog.append`.
MOST_EVENTS = 10_000
# The maximum time that a writer waits for another process.
_BUSY_S = 30.0
# The write-ahead log is truncated to this size after its content was moved to the main file.
_WAL_BYTES = 64 << 20

_INSERT_EVENT = (
    f"INSERT INTO {EVENTS} ({', '.join(Row._fields)}) "
    f"VALUES ({', '.join('?' * len(Row._fields))}) ON CONFLICT ({KEY}) DO NOTHING"
)
_INSERT_EXPOSURE = (
    f"INSERT INTO {EXPOSURES} ({', '.join(EXPOSURE_TYPES)}) VALUES ({', '.join('?' * len(EXPOSURE_TYPES))}) "
    f"ON CONFLICT ({REQUEST_ID}, {POSITION}) DO NOTHING"
)
_LAST_EXPOSURE = f"SELECT COALESCE(MAX({NUMBER}), 0) FROM {EXPOSURES}"
_EXPOSURES_AFTER = f"SELECT {', '.join(EXPOSURE_TYPES)} FROM {EXPOSURES} WHERE {NUMBER} > ? ORDER BY {NUMBER}"
_INSERT_REQUEST = (
    f"INSERT INTO {REQUESTS} ({', '.join(REQUEST_TYPES)}) VALUES ({', '.join('?' * len(REQUEST_TYPES))}) "
    f"ON CONFLICT ({REQUEST_ID}) DO NOTHING"
)
_REPLAYED = (NUMBER, KEY, USER, ITEM, RATING, EVENT_KIND, REQUEST_ID, TIMESTAMP, RECEIVED, CLAIMED, FIELDS)


class Exposure(NamedTuple):
    """A shown item of a list.

    Attributes:
      request_id: The id of the list. Within a list, each position has one item.
      time_s: The time in seconds since 1970.
      user_id: The user, if known.
      model: The model that answered.
      version: The version of the model.
      policy: The policy that ordered the list.
      item_id: The shown item.
      position: The position in the list, from 0.
      propensity: The probability with which the policy puts this item at this position; 1 without randomness.
      experiment: The experiment, if the server assigned the request to an arm: ``MODEL/VERSION`` of the canary.
      arm: The arm, ``stable`` or ``canary``, if there is an experiment.
    """

    request_id: str
    time_s: float
    user_id: str | None
    model: str
    version: int
    policy: str
    item_id: str
    position: int
    propensity: float = 1.0
    experiment: str | None = None
    arm: str | None = None


class RequestRecord(NamedTuple):
    """The request of a list; empty lists have one, too.

    Attributes:
      request_id: See :class:`Exposure`.
      time_s: See :class:`Exposure`.
      user_id: See :class:`Exposure`.
      model: See :class:`Exposure`.
      version: See :class:`Exposure`.
      policy: See :class:`Exposure`.
      listed: The number of items in the list.
      history_ids: The number of ids in the history.
      unknown_ids: The number of ids in the history that the model does not know.
      best_score: The best score of the list; ``None`` if the list is empty or has no scores.
      mean_score: The mean score of the list; ``None`` if the list is empty or has no scores.
      letters: The length of the free text; ``None`` without a text. The text itself is not stored.
      script: The script of most letters of the text, such as ``LATIN``; ``None`` without a text.
      context: The fields of the request as one JSON object; ``None`` without fields.
    """

    request_id: str
    time_s: float
    user_id: str | None
    model: str
    version: int
    policy: str
    listed: int
    history_ids: int = 0
    unknown_ids: int = 0
    best_score: float | None = None
    mean_score: float | None = None
    letters: int | None = None
    script: str | None = None
    context: str | None = None


class EventLog:
    """The event log in a folder, which is created if it is missing; safe to share between the threads of a process.

        with EventLog(Path("log")) as log:
            receipt = log.append([{"user_id": "42", "item_id": "A17", "kind": "click", "timestamp_s": 1790000000.0}])
            for event in log.replay(since=0): ...

    Several processes may write and read at the same time.

    Args:
      folder: The folder of the log.
      clock: Returns the time in seconds since 1970; for tests.

    Raises:
      WriteError: The folder cannot be written.
      DataError: The file in the folder is damaged, or not an event log.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with sqlite_errors(folder):
                self._connection = sqlite3.connect(
                    folder / LOG_FILE, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
                )
                try:
                    self._prepare()
                except BaseException:
                    self._connection.close()
                    raise
            for path in (folder, folder.absolute().parent):
                sync(path)

    def _prepare(self) -> None:
        """Creates the tables in a new file, and configures durable commits."""
        connection = self._connection
        self._is_new()  # raises for another program's file, before anything is changed
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        with self._transaction():
            if self._is_new():
                for statement in filter(str.strip, TABLES.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {LAYOUT}")
            connection.execute(TABLE_OF_REQUESTS)
            there = {column[1] for column in connection.execute(f"PRAGMA table_info({EXPOSURES})")}
            for column in ARMS:
                if column not in there:
                    connection.execute(f"ALTER TABLE {EXPOSURES} ADD COLUMN {column} TEXT")

    def _is_new(self) -> bool:
        """Returns whether the file has no tables yet, for example after a kill during its creation.

        Raises:
          DataError: The tables are not those of an event log.
        """
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            require_layout(self._connection, self.folder)
        return not tables

    # --- Writing ------------------------------------------------------------------------------------------------------

    def check(self, events: Iterable[Any]) -> Batch:
        """Checks events with :func:`tfllmrec.feedback.events.check`, with the current time as time of receipt."""
        return check(events, self._clock())

    def append(self, events: Sequence[Any]) -> Receipt:
        """Writes events durably: when the method returns, they are on the disk.

        Args:
          events: At most :data:`MOST_EVENTS`, in the format of :func:`tfllmrec.feedback.events.check`.

        Raises:
          DataError: There are too many events.
          WriteError: The disk is full or broken; none of the events is in the log.
        """
        if len(events) > MOST_EVENTS:
            raise DataError(f"{len(events):,} events at once: expected at most {MOST_EVENTS:,}. Append them in parts.")
        (receipt,), _ = self.write([self.check(events)])
        return receipt

    def write(
        self,
        batches: Sequence[Batch],
        exposures: Sequence[Exposure] = (),
        requests: Sequence[RequestRecord] = (),
    ) -> tuple[list[Receipt], list[Exposure]]:
        """Writes checked batches, shown items, and the requests of their lists in one durable commit.

        Returns:
          A receipt for each batch, and the shown items that were written. A shown item is left out if its list already
          has an item at that position.

        Raises:
          WriteError: The disk is full or broken; nothing was written.
        """
        accepted, shown = [], list(exposures)
        with self._lock, writing(self.folder, _ADVICE), sqlite_errors(self.folder):
            if exposures or requests or any(batch.rows for batch in batches):
                with self._transaction():
                    for batch in batches:
                        found = self._connection.executemany(_INSERT_EVENT, batch.rows).rowcount if batch.rows else 0
                        accepted.append(found)
                    if exposures:
                        (last,) = self._connection.execute(_LAST_EXPOSURE).fetchone()
                        if self._connection.executemany(_INSERT_EXPOSURE, exposures).rowcount < len(exposures):
                            rows = self._connection.execute(_EXPOSURES_AFTER, (last,))
                            shown = [Exposure(*row) for row in rows]
                    if requests:
                        self._connection.executemany(_INSERT_REQUEST, requests)
            else:
                accepted = [0] * len(batches)
        receipts = [
            Receipt(new, len(batch.rows) - new, tuple(batch.refused), batch.late, batch.skewed)
            for batch, new in zip(batches, accepted, strict=True)
        ]
        return receipts, shown

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        # Immediate, because another process may write between the first read of a transaction and its first write.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    # --- Reading ------------------------------------------------------------------------------------------------------

    def replay(self, since: int = 0, *, by_time: bool = False) -> Iterator[dict[str, Any]]:
        """Yields the events as mappings, in constant memory.

        Args:
          since: Events up to this ``number`` are left out. A reader that passes the last number it saw, or an earlier
            :meth:`last`, gets each later event exactly once.
          by_time: Whether events come in the order of event time; by default in the order of receipt.

        Yields:
          ``number``, ``user_id``, ``item_id``, ``timestamp_s``, ``received_s``, and if present, ``rating``, ``kind``,
          ``event_id``, ``request_id``, ``claimed_s`` (the time given by an event whose clock was ahead) and further
          fields. Events that are written during the iteration may be left out.
        """
        with LogReader(self.folder) as reader:
            for page in reader.pages(EVENTS, _REPLAYED, since, by_time=by_time):
                for row in page:
                    event = {name: value for name, value in zip(_REPLAYED, row, strict=True) if value is not None}
                    if isinstance(key := event.pop(KEY), str):
                        event[EVENT_ID] = key
                    yield {**json.loads(event.pop(FIELDS, "{}")), **event}

    def size(self) -> int:
        """Returns the size of the log's files in bytes."""
        return log_bytes(self.folder)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ADVICE = "Make room: no event was lost that the log has acknowledged, and the others may be sent again."


def log_bytes(folder: Path) -> int:
    """Returns the size of a log's files in bytes."""
    return sum(path.stat().st_size for path in folder.glob(f"{LOG_FILE}*"))


def describe(folder: Path) -> dict[str, Any]:
    """Returns summary statistics of a log.

    Returns:
      ``folder``, ``events``, ``users``, ``items``, ``kinds`` (the count of each kind), ``first_s`` and ``last_s``
      (event times), ``received_first_s`` and ``received_last_s``, ``late``, ``skewed``, ``last_number``, ``lists`` and
      ``shown_items`` (of the exposures), ``bytes`` (of the files).

    Raises:
      DataError: There is no event log, or it is damaged.
    """
    with LogReader(folder) as reader:
        events, users, items, first, last, got_first, got_last, late, skewed = reader.rows(
            f"SELECT count(*), count(DISTINCT {USER}), count(DISTINCT {ITEM}), min({TIMESTAMP}), max({TIMESTAMP}), "
            f"min({RECEIVED}), max({RECEIVED}), coalesce(sum({TIMESTAMP} < {RECEIVED} - {LATE_S}), 0), "
            f"count({CLAIMED}) FROM {EVENTS}"
        )[0]
        kinds = reader.rows(f"SELECT {EVENT_KIND}, count(*) FROM {EVENTS} GROUP BY 1 ORDER BY 2 DESC, 1")
        shown, lists = reader.rows(f"SELECT count(*), count(DISTINCT {REQUEST_ID}) FROM {EXPOSURES}")[0]
        return {
            "folder": str(folder),
            "events": events,
            "users": users,
            "items": items,
            "kinds": {kind or "": count for kind, count in kinds},
            "first_s": first,
            "last_s": last,
            "received_first_s": got_first,
            "received_last_s": got_last,
            "late": late,
            "skewed": skewed,
            "last_number": reader.last(),
            "lists": lists,
            "shown_items": shown,
            "bytes": log_bytes(folder),
        }

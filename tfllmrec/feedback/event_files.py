"""Imports events from files into a log, and exports a log to files that ``tfllmrec fit --events`` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tfllmrec.client.answers import Receipt
from tfllmrec.columns import EVENT_ID, EVENT_KIND, ITEM, POLICY, RATING, REQUEST_ID, REWARD, TIMESTAMP, USER
from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.recognition import name_columns
from tfllmrec.data.cleaning.rows import Rows
from tfllmrec.data.cleaning.times import times
from tfllmrec.data.cleaning.values import numbers, strings
from tfllmrec.data.files.event_log import EVENTS, EXPOSURES, LogReader, is_event_log
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.files.table_writer import check_suffix, writing_table
from tfllmrec.data.files.tables import read_table
from tfllmrec.data.findings import CleaningReport
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.event_log import MOST_EVENTS, EventLog
from tfllmrec.feedback.events import Unreadable
from tfllmrec.progress import show_progress
from tfllmrec.wording import shown

#: The number of refused rows of a file that are listed with their reasons; all are counted.
NAMED = 10
#: Policies whose exposures are exported by default, because experiments and estimates are about recommendations.
RECOMMENDED = ("recommend", "recommend_full")


@dataclass
class Imported:
    """The outcome of the import of a file; the counts add up those of :class:`~tfllmrec.client.answers.Receipt`.

    Attributes:
      file: The name of the file.
      accepted: The number of new events.
      duplicates: The number of events that the log already had.
      refused: The number of refused rows.
      late: The number of events that arrived late.
      skewed: The number of events whose clock was ahead.
      reasons: The reasons of the first :data:`NAMED` refused rows, with their places in the file.
      report: What was repaired or dropped when the file was read.
    """

    file: str
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    late: int = 0
    skewed: int = 0
    reasons: list[str] = field(default_factory=list)
    report: CleaningReport = field(default_factory=CleaningReport)

    def add(self, receipt: Receipt, place_of: Callable[[int], str]) -> None:
        self.accepted += receipt.accepted
        self.duplicates += receipt.duplicates
        self.late += receipt.late
        self.skewed += receipt.skewed
        self.refused += len(receipt.refused)
        for refused in receipt.refused[: NAMED - len(self.reasons)]:
            self.reasons.append(f"{place_of(refused.event)}: {refused.reason}")

    def as_dict(self) -> dict[str, Any]:
        names = ("file", "accepted", "duplicates", "refused", "late", "skewed", "reasons")
        return {name: getattr(self, name) for name in names}


def append_file(log: EventLog, path: Path, config: DataConfig) -> Imported:
    """Appends the events of a file, or of a folder of parts, in any format supported by ``data.events``.

    Columns are recognised by their usual names or by ``data.columns``; numbers and times are read as in
    :func:`tfllmrec.read_dataset`, and a rating that is not a number is left out. Columns ``event_id`` and
    ``request_id`` become the ids of the events. There is no further cleaning: the log keeps repeats, which a data set
    created from it treats according to ``data.repeats``. Rows are refused individually. A file may be appended again
    after an interruption: rows that the log already has count as duplicates.

    Raises:
      DataError: The file is missing or unreadable, or lacks the columns of users and items; or it is an event log; or
        more than ``config.max_bad_rows`` of its rows are broken or have an unreadable rating, and nothing was appended;
        or every row was refused.
      WriteError: The disk is full; the events of earlier parts are in the log.
    """
    if is_event_log(path):
        raise DataError(
            f"{path} is an event log, whose events lose their {EVENT_ID} when it is read as a file: different events "
            "could count as one. To move a log, copy its folder. To train on several logs, export each into one folder "
            "and give that folder to 'tfllmrec fit --events'."
        )
    required = (USER, ITEM)
    raw = name_columns(
        read_table(path, "events", config), (*required, RATING, TIMESTAMP, EVENT_KIND), required, config.columns
    )
    done = Imported(path.name)
    events = _Events(raw, config, done.report)
    with show_progress(f"appending {path.name}", "events") as progress:
        for start in range(0, len(raw.frame), MOST_EVENTS):
            part = events.part(start, start + MOST_EVENTS)
            done.add(log.append(part), partial(_place, raw, start))
            progress(start + len(part), len(raw.frame))
    if done.refused and not done.accepted + done.duplicates:
        raise DataError(f"{path}: none of its {done.refused:,} rows is an event. {done.reasons[0]}")
    return done


def _place(raw: RawTable, start: int, event: int) -> str:
    return raw.example(start + event)


class _Events:
    """Converts the rows of a table to events; whatever depends on a whole column is computed once."""

    def __init__(self, raw: RawTable, config: DataConfig, report: CleaningReport) -> None:
        rows = Rows(raw, config, report)
        frame, nothing = raw.frame, pd.Series(np.full(len(raw.frame), np.nan))
        self._frame = frame
        self._ids = {name: rows.ids(name) for name in (USER, ITEM)}
        self._rating, bad = numbers(frame.get(RATING, nothing))
        self._rating = np.where(bad, np.nan, self._rating)
        rows.take_as_unknown(bad, "the rating is not a number", RATING)
        rows.check_unreadable(config.max_bad_rows)
        self._seconds, self._no_time = times(frame.get(TIMESTAMP, nothing), config.time_format, rows.note)
        self._texts = {name: strings(frame[name]) for name in (EVENT_KIND, EVENT_ID, REQUEST_ID) if name in frame}
        own = {USER, ITEM, RATING, TIMESTAMP, *self._texts}
        self._further = {str(name): frame[name] for name in frame.columns if name not in own}

    def part(self, start: int, end: int) -> list[Any]:
        part = slice(start, end)
        columns: dict[str, list[Any]] = {name: values[part].tolist() for name, values in self._ids.items()}
        columns |= {name: values[part].tolist() for name, values in self._texts.items()}
        for name, numeric in ((RATING, self._rating), (TIMESTAMP, self._seconds)):
            columns[name] = [None if value != value else value for value in numeric[part].tolist()]
        for name, cells in self._further.items():
            columns[name] = list(map(_plain, cells[part].tolist()))
        events: list[Any] = [
            {name: value for name, value in zip(columns, row, strict=True) if value is not None and value != ""}
            for row in zip(*columns.values(), strict=True)
        ]
        for place in np.flatnonzero(self._no_time[part]):
            events[place] = Unreadable(f"expected a time, found {shown(self._frame[TIMESTAMP][start + place])}")
        return events


def _plain(value: Any) -> Any:
    """Converts a cell to a JSON value: text, a number, a boolean or ``None``."""
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, (str, bool, int, float)):
        return value
    return strings(pd.Series([value], dtype=object))[0]


def export(
    folder: Path,
    out: Path,
    since: int = 0,
    exposures: bool = False,
    reward: str | None = None,
    policies: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the events of a log, or the shown items, as CSV, TSV, JSON lines or Parquet.

    Events have the columns of :meth:`tfllmrec.data.files.event_log.LogReader.table`, in the order of receipt;
    ``event_id`` and ``received_s`` are left out, because a model should not read them. Exposures have a row for each
    item of each list.

    Args:
      folder: The folder of the log.
      out: A file name that ends in ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
      since: Rows up to this number are left out.
      exposures: Whether to write the shown items instead of the events.
      reward: A kind of events, only for exposures. Adds the column ``reward``: 1 if an event of this kind has the item
        and the ``request_id`` of the list, else 0. ``REQUEST/N``, the id of a list of a request with several rows, also
        matches events with the id ``REQUEST``.
      policies: Only lists of these policies are written, only for exposures; by default those of :data:`RECOMMENDED`,
        without searches.

    Returns:
      ``file``, ``rows``, ``next`` (the ``since`` of the next export) and ``left_out`` (the number of further fields
      without a column, because the events have more than :data:`~tfllmrec.data.files.event_log.MOST_FURTHER` of them).

    Raises:
      ConfigError: The suffix is not supported, or a reward or policies are given for events.
      DataError: There is no log, it has no rows after ``since`` or none of the policies, or no events of the kind have
        a ``request_id``.
      WriteError: The file cannot be written; an existing file is left unchanged.
    """
    check_suffix(out)
    if reward is not None and not exposures:
        raise ConfigError("Events have no reward: add --exposures.")
    if policies and not exposures:
        raise ConfigError("Events have no policy: add --exposures.")
    name, policies = EXPOSURES if exposures else EVENTS, policies or RECOMMENDED
    with LogReader(folder) as reader:
        table = reader.table(name, since)
        if not table.rows:
            what = "shown items" if exposures else "events"
            raise DataError(f"{folder} has no {what} after number {since} (the last one is {table.upto}).")
        schema, rewarded = table.schema, None
        if reward is not None:
            rewarded = _rewarded(reader, reward)
            schema = schema.append(pa.field(REWARD, pa.float64()))
        with writing_table(out, schema) as write, show_progress(f"writing {out.name}", "rows") as progress:
            rows = done = 0
            for batch in table.batches():
                done += len(batch)
                if exposures:
                    batch = batch.filter(pc.is_in(batch[POLICY], pa.array(policies)))
                if rewarded is not None:
                    batch = pa.record_batch([*batch.columns, _rewards(batch, rewarded)], schema)
                write(batch)
                rows += len(batch)
                progress(done, table.rows)
            if not rows:
                raise _no_list_of(policies, reader, since)
    return {"file": str(out), "rows": rows, "next": table.upto, "left_out": table.left_out}


def _no_list_of(policies: Sequence[str], reader: LogReader, since: int) -> DataError:
    there = [name for (name,) in reader.rows(f"SELECT DISTINCT {POLICY} FROM {EXPOSURES} ORDER BY {POLICY}")]
    return DataError(
        f"{reader.folder} has no items that were shown by the policies {', '.join(map(shown, policies))} after number "
        f"{since}; its policies are {', '.join(map(shown, there))}. Name one with --policy."
    )


def _rewarded(reader: LogReader, kind: str) -> set[tuple[str, str]]:
    """Returns the request id and item of each event of a kind that has both."""
    found = reader.rows(
        f"SELECT DISTINCT {REQUEST_ID}, {ITEM} FROM {EVENTS} WHERE {EVENT_KIND} = ? AND {REQUEST_ID} IS NOT NULL", kind
    )
    if not found:
        raise DataError(
            f"{reader.folder} has no events of kind {shown(kind)} with a {REQUEST_ID}: look up the kinds with "
            f"'tfllmrec events describe', and send the {REQUEST_ID} of the answer with each event."
        )
    return set(found)


def _rewards(batch: pa.RecordBatch, rewarded: set[tuple[str, str]]) -> pa.Array:
    rewards = []
    for list_id, item in zip(batch[REQUEST_ID].to_pylist(), batch[ITEM].to_pylist(), strict=True):
        request, _, row = list_id.rpartition("/")
        rewards.append(float((list_id, item) in rewarded or (row.isdigit() and (request, item) in rewarded)))
    return pa.array(rewards, pa.float64())

"""Marks the events that ``split.test_events`` names: rows of the file of events, or the events of another file."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from tfllmrec.columns import EVENT_TYPES, ITEM, TEST_EVENT, TIMESTAMP, USER
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.findings import CleaningReport
from tfllmrec.errors import ConfigError, DataError

_RANGE = re.compile(r"([0-9]*):([0-9]*)")
#: The name of the test events in reports.
TABLE = "test_events"


def is_row_range(test_events: str) -> bool:
    """Whether ``split.test_events`` names rows, such as ``0:20000``, and not a file."""
    return _RANGE.fullmatch(test_events) is not None


def rows_of_range(raw: RawTable, test_events: str) -> tuple[np.ndarray, int]:
    """The rows of a table that a range such as ``0:20000``, ``80000:`` or ``:100`` names.

    The first row below the header has the number 0. Lines that were dropped in reading because they are blank or
    broken count, those before the first row that can be read excepted. The parts of a folder count one after another.

    Args:
      raw: the events, as they were read.
      test_events: the range; its end does not belong to it.

    Returns:
      bool ``[R]``, whether the row is in the range, and the number of rows that the range asks for; of an
      empty table 0.

    Raises:
      ConfigError: the range is empty.
    """
    if not len(raw.rows):  # which the cleaning of events will say
        return np.zeros(0, dtype=bool), 0
    start, stop = (int(text) if text else None for text in _RANGE.fullmatch(test_events).groups())  # type: ignore[union-attr]
    # The place of a row in its file says how many were dropped before it; it falls where a new part begins.
    dropped = np.maximum(np.diff(raw.rows) - raw.spans[:-1], 0)
    number = np.arange(len(raw.rows)) + np.concatenate([[0], np.cumsum(dropped)])[: len(raw.rows)]
    start, stop = start or 0, int(number[-1]) + 1 if stop is None else stop
    if stop <= start:
        raise ConfigError(
            f"split.test_events: expected rows such as 0:20000, with the start below the stop, found {test_events}; "
            f"the events have the rows 0 to {int(number[-1]):,}."
        )
    return (number >= start) & (number < stop), stop - start


def note_marked(events: pd.DataFrame, test_events: str, given: int, report: CleaningReport) -> None:
    """Counts the test events that are asked for, and those that are among the clean events.

    Args:
      events: with the column ``test_event``.
      test_events: ``split.test_events``.
      given: the number of rows that it names.
      report: takes the counts.

    Raises:
      DataError: none of them is there.
    """
    found = int(events[TEST_EVENT].sum())
    if not found:
        raise DataError(
            f"None of the {given:,} events of split.test_events = {test_events} is among the {len(events):,} clean "
            "events: expected rows of the file of events, or a file with some of its events."
        )
    report.rows_in[TABLE], report.rows_kept[TABLE] = given, found
    what = f"named by split.test_events = {test_events}, but not among the clean events"
    report.add(TABLE, what, given - found, "dropped")


def mark_events(events: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """The events with the column ``test_event``: whether the event is in a table of test events.

    An event is found by its user and item and, where both tables have times, by its time. Where events of a user and
    item repeat, the other columns that both tables have must be the same, too (not rating and kind). Several equal rows
    name as many events.

    Args:
      events: clean ones, as in :attr:`tfllmrec.data.dataset.Dataset.events`.
      named: the table, cleaned in the same way.
    """
    columns = [USER, ITEM]
    if not (events[TIMESTAMP].isna().all() or named[TIMESTAMP].isna().all()):
        columns.append(TIMESTAMP)
    if events.duplicated([USER, ITEM]).any():
        columns += events.columns.intersection(named.columns).difference([*EVENT_TYPES, TEST_EVENT]).tolist()
    both = pd.concat([events[columns], named[columns]], ignore_index=True)
    alike = both.groupby(columns, dropna=False, sort=False).ngroup().to_numpy()
    is_named = np.arange(len(both)) >= len(events)
    number = both.groupby([alike, is_named]).cumcount().to_numpy()
    place = pd.MultiIndex.from_arrays([alike, number])  # the third of several equal rows names the third such event
    return events.assign(**{TEST_EVENT: place[~is_named].isin(place[is_named])})

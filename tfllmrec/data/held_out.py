"""Marks the events that ``split.test_events`` names: rows of the file of events, or the events in another file."""

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
    """Returns whether ``split.test_events`` names rows, such as ``0:20000``, and not a file."""
    return _RANGE.fullmatch(test_events) is not None


def rows_of_range(raw: RawTable, test_events: str) -> tuple[np.ndarray, int]:
    """Selects the rows of a table that a range such as ``0:20000``, ``80000:`` or ``:100`` names.

    The first row below the header has the number 0. Blank or broken lines that were dropped in reading are counted,
    except those before the first readable row. The numbering continues over the parts of a folder.

    Args:
      raw: The events, as they were read.
      test_events: The range; its end is exclusive.

    Returns:
      Bool ``[R]``, whether the row is in the range, and the number of rows in the range; 0 for an empty table.

    Raises:
      ConfigError: The range is empty.
    """
    if not len(raw.rows):  # the cleaning of events reports the empty table
        return np.zeros(0, dtype=bool), 0
    start, stop = (int(text) if text else None for text in _RANGE.fullmatch(test_events).groups())  # type: ignore[union-attr]
    # Gaps between row positions are dropped rows. The position decreases at the start of a new part: no dropped rows.
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
    """Reports the number of requested test events, and how many of them are among the clean events.

    Args:
      events: Clean events with the column ``test_event``.
      test_events: The setting ``split.test_events``.
      given: Number of rows that it names.
      report: The report that receives the counts.

    Raises:
      DataError: None of the test events is among the clean events.
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
    """Returns the events with the column ``test_event``: whether the event is in a table of test events.

    Events are matched by user and item and, if both tables have times, by time. If a user has several events with an
    item, the other columns that both tables have must match as well, except rating and kind. Several equal rows mark
    the same number of events.

    Args:
      events: Clean events, as in :attr:`tfllmrec.data.dataset.Dataset.events`.
      named: The table of test events, cleaned in the same way.
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
    place = pd.MultiIndex.from_arrays([alike, number])  # the third of several equal rows marks the third such event
    return events.assign(**{TEST_EVENT: place[~is_named].isin(place[is_named])})

"""Collects the lists shown in a period, their requests, and the users' reactions, from a log or from tables."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    CONTEXT,
    EVENT_KIND,
    ITEM,
    LISTED,
    MODEL,
    POLICY,
    REQUEST_ID,
    STRATUM,
    TIME_S,
    TIMESTAMP,
    TRAIN_EVENTS,
    USER,
    VERSION,
)
from tfllmrec.data.cleaning.event_kinds import kind_strength, kind_weight
from tfllmrec.data.files.event_log import EVENTS, EXPOSURES, FIELDS, REQUEST_TYPES, REQUESTS, LogReader
from tfllmrec.errors import DataError
from tfllmrec.feedback.tables import require_columns, texts
from tfllmrec.progress import show_progress

#: Maximum number of shown items, events and requests read for a period; beyond it, an even sample of requests is read.
MOST_ROWS = 1_000_000
#: Maximum number of request fields that are compared, the most frequent ones.
MOST_FIELDS = 16
#: The prefix of columns of lists that hold fields of the request.
FIELD = "context."
#: An event of this strength, such as a purchase, counts as ``bought``.
_TOOK = kind_strength("purchase")
#: Policies of searches, such as ``search_full``, start with this prefix.
_SEARCH = "search"
_SHOWN = (TIME_S, REQUEST_ID, USER, MODEL, VERSION, POLICY, ITEM)


@dataclass(frozen=True)
class Observed:
    """The lists of a period, and the events that followed them.

    Attributes:
      after_s: Lists were made after this time.
      upto_s: Lists were made at or before this time.
      shown: A row for each recommended item: ``time_s``, ``list`` (row of ``lists``), ``user`` (a number; a request
        without a user id counts as a user of its own), ``version`` (``MODEL/VERSION``), ``item_id``, ``used`` (a click
        or a stronger event followed), ``bought``, ``dwell_s`` (NaN if unknown), ``train_events`` (NaN if unknown) and
        ``stratum`` (empty if unknown).
      lists: A row for each list, also for empty ones: the columns of requests, ``user``, ``version``, ``searched``,
        ``used``, and fields of the request as ``context.NAME``.
      events: ``user`` and ``item_id`` of all events of users, in lists or elsewhere, with ``train_events``.
      found: The same as ``shown`` for each item that a search listed.
      one_in: One request in this many was read.
    """

    after_s: float
    upto_s: float
    shown: pd.DataFrame
    lists: pd.DataFrame
    events: pd.DataFrame
    found: pd.DataFrame
    one_in: int = 1


def read_period(
    log: Path,
    after_s: float,
    upto_s: float,
    within_s: float,
    dwell: str,
    items: pd.DataFrame | None = None,
) -> Observed:
    """Reads the lists of a log that were made in a period, and the events that followed them.

    Args:
      log: The folder of the log.
      after_s: Lists made after this time are read.
      upto_s: Lists made at or before this time are read.
      within_s: An event belongs to a list if it came within this time after it.
      dwell: The field of events with the seconds that the user stayed with the item.
      items: The items of the model, with ``item_id``, ``train_events`` and ``stratum``; ``None``: no strata.

    Raises:
      DataError: There is no log, or it is damaged.
    """
    with LogReader(log) as reader, show_progress("Reading the log", "rows") as progress:
        done = 0

        def rows(table: str, columns: Sequence[str], end_s: float, key: int | None) -> Iterator[tuple[Any, ...]]:
            nonlocal done
            for page in reader.between(table, columns, after_s, end_s):
                done += len(page)
                progress(done, None)
                yield from (row for row in page if key is None or _kept(row[key], one_in))

        tables = (EXPOSURES, EVENTS, *([REQUESTS] if reader.has_requests() else []))
        most = max(reader.count_between(table, after_s, upto_s) for table in tables)
        one_in = -(-most // MOST_ROWS) or 1
        shown = pd.DataFrame(rows(EXPOSURES, _SHOWN, upto_s, 1), columns=list(_SHOWN))
        names = [TIME_S, *(name for name in REQUEST_TYPES if name != TIME_S)]
        asked = rows(REQUESTS, names, upto_s, 1) if reader.has_requests() else ()
        requests = pd.DataFrame(asked, columns=names)
        columns = [TIMESTAMP, USER, ITEM, EVENT_KIND, REQUEST_ID, FIELDS]
        found = []
        for time_s, user, item, kind, request, fields in rows(EVENTS, columns, upto_s + within_s, None):
            if _kept(user if request is None else request, one_in):
                found.append((time_s, user, item, kind, request, _dwell(fields, dwell)))
        events = pd.DataFrame(found, columns=[*columns[:-1], "dwell_s"])
    return observed(shown, events, requests, after_s, upto_s, within_s, items, one_in)


def observed(
    shown: pd.DataFrame,
    events: pd.DataFrame,
    requests: pd.DataFrame | None,
    after_s: float,
    upto_s: float,
    within_s: float,
    items: pd.DataFrame | None = None,
    one_in: int = 1,
) -> Observed:
    """Collects a period from tables, such as those that ``tfllmrec events export`` writes.

    Args:
      shown: The exposures.
      events: The events with ``timestamp_s``, ``user_id``, ``item_id``, ``request_id`` and optionally ``kind`` and
        ``dwell_s``.
      requests: The requests of the log; ``None``: lists are derived from their items alone.
      after_s: See :func:`read_period`.
      upto_s: See :func:`read_period`.
      within_s: See :func:`read_period`.
      items: See :func:`read_period`.
      one_in: One request in this many is in the tables.

    Raises:
      DataError: A column is missing.
    """
    require_columns(shown, _SHOWN, "the shown items")
    require_columns(events, (TIMESTAMP, USER, ITEM, REQUEST_ID), "the events")
    shown = shown[(shown[TIME_S] > after_s) & (shown[TIME_S] <= upto_s)].reset_index(drop=True)
    lists = _lists(shown, requests, after_s, upto_s)
    shown["list"] = lists.index.get_indexer(pd.Index(shown[REQUEST_ID]))
    shown[VERSION] = lists[VERSION].to_numpy()[shown["list"]]
    shown["user"] = lists["user"].to_numpy()[shown["list"]]
    _add_outcomes(shown, events, within_s)
    lists["used"] = np.bincount(shown["list"], shown["used"], minlength=len(lists)) > 0
    events = events[(events[TIMESTAMP] > after_s) & (events[TIMESTAMP] <= upto_s)]
    done = pd.DataFrame({"user": pd.factorize(texts(events, USER))[0], ITEM: texts(events, ITEM).to_numpy()})
    for table in (shown, done):
        table[TRAIN_EVENTS], table[STRATUM] = np.nan, ""
        if items is not None:
            of_item = items.drop_duplicates(ITEM).set_index(ITEM)
            table[TRAIN_EVENTS] = of_item[TRAIN_EVENTS].reindex(table[ITEM]).to_numpy(np.float64)
            table[STRATUM] = of_item[STRATUM].reindex(table[ITEM]).fillna("").to_numpy()
    searched = lists["searched"].to_numpy()[shown["list"]]
    found, shown = shown[searched].reset_index(drop=True), shown[~searched].reset_index(drop=True)
    return Observed(after_s, upto_s, shown, lists.reset_index(drop=True), done, found, one_in)


def _lists(shown: pd.DataFrame, requests: pd.DataFrame | None, after_s: float, upto_s: float) -> pd.DataFrame:
    """Returns the lists by request id; lists without a recorded request (as in older logs) come from their items."""
    columns = [REQUEST_ID, TIME_S, USER, MODEL, VERSION, POLICY]
    first = shown.drop_duplicates(REQUEST_ID)[columns].assign(**{LISTED: 0})
    first[LISTED] = shown.groupby(REQUEST_ID, sort=False).size().to_numpy()
    if requests is not None and len(requests):
        within = (requests[TIME_S] > after_s) & (requests[TIME_S] <= upto_s)
        given = requests[within].drop_duplicates(REQUEST_ID)
        first = pd.concat([given, first[~first[REQUEST_ID].isin(given[REQUEST_ID])]] if len(first) else [given])
    else:
        first = first.reindex(columns=list(REQUEST_TYPES))
    lists = first.sort_values(TIME_S, kind="stable").set_index(REQUEST_ID, drop=False)
    lists["searched"] = lists[POLICY].astype(str).str.startswith(_SEARCH)
    lists[VERSION] = lists[MODEL].astype(str) + "/" + lists[VERSION].astype("int64").astype(str)
    users, base = texts(lists, USER), lists[REQUEST_ID].map(_base)
    lists["user"] = pd.factorize(("u" + users).where(users != "", "r" + base))[0]
    fields = pd.DataFrame(
        [json.loads(text) if isinstance(text, str) else {} for text in lists[CONTEXT]], index=lists.index
    )
    for name in fields.notna().sum().sort_values(ascending=False, kind="stable").index[:MOST_FIELDS]:
        lists[f"{FIELD}{name}"] = fields[name]
    return lists


def _add_outcomes(shown: pd.DataFrame, events: pd.DataFrame, within_s: float) -> None:
    """Adds ``used``, ``bought`` and ``dwell_s`` from the events that belong to each shown item."""
    kinds = events[EVENT_KIND].fillna("").astype(str) if EVENT_KIND in events else pd.Series("", index=events.index)
    weight = {kind: kind_weight(kind) for kind in kinds.unique()}
    took = {kind: kind_weight(kind) > 0 and kind_strength(kind) == _TOOK for kind in kinds.unique()}
    done = pd.DataFrame(
        {
            "at": events[TIMESTAMP],
            "request": events[REQUEST_ID],
            ITEM: events[ITEM],
            "liked": kinds.map(weight) > 0,
            "took": kinds.map(took).astype(bool),
            "stay": events.get("dwell_s", np.nan),
        }
    ).dropna(subset=["request"])
    keyed = pd.DataFrame({"row": shown.index, "made": shown[TIME_S], ITEM: shown[ITEM], "request": shown[REQUEST_ID]})
    base = shown[REQUEST_ID].map(_base)
    several = base != shown[REQUEST_ID]  # lists of requests with several rows; events may have the plain request id
    keyed = pd.concat([keyed, keyed[several].assign(request=base[several])])
    found = keyed.merge(done, on=["request", ITEM])
    # Clocks of clients may be somewhat behind, so events may also precede their list by up to within_s.
    found = found[(found["at"] > found["made"] - within_s) & (found["at"] <= found["made"] + within_s)]
    by_row = found.groupby("row")
    shown["used"] = by_row["liked"].any().reindex(shown.index, fill_value=False).to_numpy(bool)
    shown["bought"] = by_row["took"].any().reindex(shown.index, fill_value=False).to_numpy(bool)
    shown["dwell_s"] = by_row["stay"].sum(min_count=1).reindex(shown.index).to_numpy(np.float64)


def _base(list_id: str) -> str:
    """Returns the request id of a list id: ``REQUEST`` for ``REQUEST/0``."""
    base, _, row = str(list_id).rpartition("/")
    return base if row.isdigit() else str(list_id)


def _kept(request_id: str, one_in: int) -> bool:
    return one_in == 1 or zlib.crc32(_base(request_id).encode()) % one_in == 0


def _dwell(fields: str | None, name: str) -> float:
    if fields is None or name not in fields:
        return np.nan
    value = json.loads(fields).get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else np.nan


def ends_of(log: Path, upto_s: float = math.inf) -> tuple[float, float]:
    """Returns the times of the first and the newest list of a log.

    Args:
      log: The folder of the log.
      upto_s: Lists after this time are ignored.

    Raises:
      DataError: The log has no lists, or none up to that time.
    """
    with LogReader(log) as reader:
        tables = [EXPOSURES, *([REQUESTS] if reader.has_requests() else [])]
        found = [end for table in tables if (end := reader.ends(table, upto_s))]
        later = any(reader.last(table) for table in tables)
    if not found:
        if later:
            raise DataError(f"{log} has no lists from before --until: expected some. Give a later time.")
        raise DataError(
            f"{log} has no lists: expected those that 'tfllmrec serve --log' writes when 'recommend' is asked."
        )
    return min(first for first, _ in found), max(newest for _, newest in found)


def newest_event_s(log: Path, upto_s: float) -> float | None:
    """Returns the time of the last event of a log up to a time; ``None`` if there is none."""
    with LogReader(log) as reader:
        ((newest,),) = reader.rows(f"SELECT max({TIMESTAMP}) FROM {EVENTS} WHERE {TIMESTAMP} <= ?", upto_s)
    return None if newest is None else float(newest)

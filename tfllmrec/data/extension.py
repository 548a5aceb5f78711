"""Adds further items, users, events and tags to the clean tables of a data set.

Known rows keep their places, and so their indices; new ones follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    EVENT_KIND,
    EVENT_TYPES,
    ITEM,
    ITEM_INDEX,
    ORDER,
    RATING,
    TAG,
    TEST_EVENT,
    TIMESTAMP,
    USER,
    USER_INDEX,
)
from tfllmrec.data.cleaning.event_kinds import event_kinds
from tfllmrec.data.cleaning.events import hash_of_pairs
from tfllmrec.data.cleaning.order_checks import by_id
from tfllmrec.data.findings import CleaningReport
from tfllmrec.errors import ConfigError, DataError


def extended_entities(known: pd.DataFrame, came: pd.DataFrame, key: str) -> pd.DataFrame:
    """A table of items or users, updated by another one: values of known rows are replaced, new rows appended.

    Args:
      known: clean, all str; each ``key`` once. Its rows stay where they are.
      came: the same. A value replaces that of the known row with the same ``key``; an empty value replaces nothing.
      key: the column of ids.

    Returns:
      The known rows, then the new ones in natural order of ``key``; the columns of both, ``""`` for nothing.
    """
    columns = [*known.columns, *came.columns.difference(known.columns, sort=False)]
    known, came = (table.reindex(columns=columns, fill_value="").astype("str") for table in (known, came))
    row = pd.Index(known[key]).get_indexer(came[key])
    table = known.copy()
    same, old = came[row >= 0], known.iloc[row[row >= 0]]
    table.iloc[row[row >= 0]] = same.where(same != "", old.set_axis(same.index)).to_numpy()
    new = came[row < 0]
    return pd.concat([table, new.iloc[by_id(new[key])]], ignore_index=True)


def note_extension(table: str, known: pd.DataFrame, extended: pd.DataFrame, report: CleaningReport) -> None:
    """Counts the new rows of a table of items or users, and the known rows whose values changed."""
    new = extended[len(known) :].iloc[:, 0]
    report.add(table, "new, after the known ones", len(new), "added", repr(new.iloc[0]) if len(new) else "")
    before = known.reindex(columns=extended.columns, fill_value="")
    changed = (extended[: len(known)].to_numpy() != before.to_numpy()).any(axis=1)
    example = repr(known.iloc[int(changed.argmax()), 0]) if changed.any() else ""
    report.add(table, "known, with other values now", int(changed.sum()), "replaced", example)


def extended_tags(known: pd.DataFrame, came: pd.DataFrame, report: CleaningReport) -> pd.DataFrame:
    """Adds tags; a new tag that equals a known one in every column is dropped."""
    tags = pd.concat([known, came], ignore_index=True)
    is_new = np.arange(len(tags)) >= len(known)
    again = _known_rows(tags, is_new)
    if again.any():
        report.add("tags", "the tag is known already", int(again.sum()), "dropped")
        report.rows_kept["tags"] -= int(again.sum())
    return tags[~again].sort_values([ITEM, USER, TAG, TIMESTAMP]).reset_index(drop=True)


def known_occurrences(keys: pd.Series, known: pd.Series) -> np.ndarray:
    """bool ``[E]``: the ``keys`` that are known; of equal ones the first, as many as there are known ones."""
    return keys.groupby(keys).cumcount().to_numpy() < known.value_counts().reindex(keys, fill_value=0).to_numpy()


def _known_rows(table: pd.DataFrame, is_new: np.ndarray) -> np.ndarray:
    """bool ``[R]``: the new rows that equal a known one in every column."""
    row = table.groupby(list(table.columns), dropna=False, sort=False).ngroup().to_numpy()
    return is_new & np.isin(row, row[~is_new])


def extended_events(
    known: pd.DataFrame,
    came: pd.DataFrame,
    *,
    ordered: bool,
    came_ordered: bool,
    known_repeats: bool,
    repeats: Literal["last", "first", "all"],
    weights: Mapping[str, float],
    report: CleaningReport,
) -> pd.DataFrame:
    """Adds events, merged by the rules of :func:`tfllmrec.data.cleaning.events.clean_events`.

    Events ordered by time are sorted again, ties by the hash of ids. Where an order column or the place in a list
    orders them, its values are not kept, so a user's new events follow the known ones of the same time, or all known
    ones if the times contradict the order. A new event that equals a known one in every column is dropped. ``repeats``
    decides which of several events of a user and item stay.

    Args:
      known: as in :attr:`Dataset.events`, with the indices that the users and items have now.
      came: the new events, cleaned on their own.
      ordered: whether the known events have an order.
      came_ordered: whether a column orders the new ones.
      known_repeats: whether the known events were read with ``repeats: all``.
      repeats: ``data.repeats``.
      weights: of the kinds of events, as set in ``data.fields``.
      report: of the known and the new events; takes the findings, and the number of users with ties where the times
        and the hash decide.

    Raises:
      ConfigError: the known events were read with ``repeats: all``, and the new ones were not, or the other way round.
      DataError: the known events have an order, and no column says where the new ones belong.
    """
    if (repeats == "all") != known_repeats:
        expected = "all" if known_repeats else "first or last"
        raise ConfigError(f"data.repeats: expected {expected}, as for the known events, found {repeats}: set it.")
    if TEST_EVENT in known:
        came = came.assign(**{TEST_EVENT: False})
    others = sorted({*known.columns, *came.columns} - {*EVENT_TYPES})
    columns = [*EVENT_TYPES, *others]
    events = pd.concat([table.reindex(columns=columns, fill_value="") for table in (known, came)], ignore_index=True)
    is_new = np.arange(len(events)) >= len(known)
    user, item = events[USER_INDEX].to_numpy(), events[ITEM_INDEX].to_numpy()

    # ``order`` is a rank within one table. Where the columns that are kept explain it, they explain that of all events.
    def explain_order(*keys: np.ndarray) -> bool:
        tables = (np.flatnonzero(~is_new), np.flatnonzero(is_new))
        return all((np.lexsort([key[rows] for key in (*keys, user)]) == np.arange(len(rows))).all() for rows in tables)

    time = events[TIMESTAMP].to_numpy()
    timed = ordered and not np.isnan(time).any() and explain_order(time)
    if not timed:
        if ordered and not came_ordered:
            raise DataError(
                "The known events have an order, and no column says where the new ones belong in it: expected times "
                "(or an order) in each new event. Name the column under data.columns."
            )
        time = np.zeros(len(events))
    ids = [pd.factorize(events[column]) for column in (USER, ITEM)]
    by_hash = [np.nan_to_num(events[RATING], nan=-np.inf), hash_of_pairs(*ids[0], *ids[1]), time]
    hashed = (timed or not ordered) and explain_order(*by_hash)
    place = np.lexsort([*(by_hash if hashed else [events[ORDER].to_numpy(), is_new, time]), user])
    events, is_new, user, time = events.iloc[place], is_new[place], user[place], time[place]

    # A table that lacks a column says nothing of it: it does not replace what is known.
    compared = [column for column in came if column not in (USER, ITEM, ORDER, TEST_EVENT)]
    again = _known_rows(events[compared], is_new)
    report.add("events", "the event is known already", int(again.sum()), "dropped")
    # By the order that was found: an event with others of its user after it that are known.
    known_after = pd.Series(~is_new)[::-1].groupby(user[::-1]).cumsum()[::-1].to_numpy() > 0
    late = is_new & ~again & known_after
    report.add("events", "late: before events of the user that are known", int(late.sum()), "kept")
    kept = ~again
    if repeats != "all":
        pair = pd.Series(user * (int(item.max(initial=0)) + 1) + events[ITEM_INDEX].to_numpy())
        strength = pd.Series(np.where(kept, event_kinds(events[EVENT_KIND], weights)[1], -1))
        kept &= (strength == strength.groupby(pair).transform("max")).to_numpy()
        kept[kept] = ~pair[kept].duplicated(keep=repeats).to_numpy()
        merged = int((~kept & ~again).sum())
        what = f"the same user and item in known and new events (kept: the strongest kind, then the {repeats})"
        report.add("events", what, merged, "dropped")
    report.add("events", "new, among the known ones", int(is_new[kept].sum()), "added")
    report.rows_kept["events"] -= int((~kept).sum())
    events, user, time = events[kept].reset_index(drop=True), user[kept], time[kept]
    if hashed and timed:
        tied = (np.diff(user) == 0) & (np.diff(time) == 0)
        report.tied_users = len(np.unique(user[1:][tied]))
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    events[ORDER] = np.arange(len(user)) - np.repeat(starts, np.diff(starts, append=len(user)))
    return events

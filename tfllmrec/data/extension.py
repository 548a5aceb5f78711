"""Adds further items, users, events and tags to the clean tables of a data set.

Known items and users keep their rows, and therefore their indices; new ones follow.
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
from tfllmrec.data.cleaning.event_kinds import before_a_refusal, event_kinds
from tfllmrec.data.cleaning.events import hash_of_pairs
from tfllmrec.data.cleaning.order_checks import by_id
from tfllmrec.data.findings import CleaningReport
from tfllmrec.errors import ConfigError, DataError


def extended_entities(known: pd.DataFrame, came: pd.DataFrame, key: str) -> pd.DataFrame:
    """Updates a table of items or users by another one: replaces values of known rows and appends new rows.

    Args:
      known: The clean table, all str; each ``key`` occurs once. Its rows keep their positions.
      came: The update, in the same form. A value replaces that of the known row with the same ``key``; an empty value
        replaces nothing.
      key: Name of the id column.

    Returns:
      The known rows, then the new ones in natural order of ``key``; with the columns of both tables, ``""`` for no
      value.
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
    """Reports the number of new rows of a table of items or users, and of known rows whose values changed."""
    new = extended[len(known) :].iloc[:, 0]
    report.add(table, "new, after the known ones", len(new), "added", repr(new.iloc[0]) if len(new) else "")
    before = known.reindex(columns=extended.columns, fill_value="")
    changed = (extended[: len(known)].to_numpy() != before.to_numpy()).any(axis=1)
    example = repr(known.iloc[int(changed.argmax()), 0]) if changed.any() else ""
    report.add(table, "known, with other values now", int(changed.sum()), "replaced", example)


def extended_tags(known: pd.DataFrame, came: pd.DataFrame, report: CleaningReport) -> pd.DataFrame:
    """Returns the known and the new tags; a new tag that equals a known one in every column is dropped."""
    tags = pd.concat([known, came], ignore_index=True)
    is_new = np.arange(len(tags)) >= len(known)
    again = _known_rows(tags, is_new)
    if again.any():
        report.add("tags", "the tag is known already", int(again.sum()), "dropped")
        report.rows_kept["tags"] -= int(again.sum())
    return tags[~again].sort_values([ITEM, USER, TAG, TIMESTAMP]).reset_index(drop=True)


def known_occurrences(keys: pd.Series, known: pd.Series) -> np.ndarray:
    """Returns bool ``[E]``: which ``keys`` are known. A key that is known n times marks its first n occurrences."""
    return keys.groupby(keys).cumcount().to_numpy() < known.value_counts().reindex(keys, fill_value=0).to_numpy()


def _known_rows(table: pd.DataFrame, is_new: np.ndarray) -> np.ndarray:
    """Returns bool ``[R]``: which new rows equal a known one in every column."""
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
    """Returns the known and the new events, merged by the rules of :func:`tfllmrec.data.cleaning.events.clean_events`.

    Events ordered by time are sorted again; ties are broken by the hash of the ids. If an order column or the position
    in a list orders them, its values are not stored, so a user's new events follow the known ones of the same time, or
    all known ones if the times contradict the order. A new event that equals a known one in every column is dropped.
    ``repeats`` decides which of several events of a user and item are kept.

    Args:
      known: The known events, as in :attr:`Dataset.events`, with the current indices of users and items.
      came: The new events, cleaned on their own.
      ordered: Whether the known events have an order.
      came_ordered: Whether a column orders the new events.
      known_repeats: Whether the known events were read with ``repeats: all``.
      repeats: The setting ``data.repeats``.
      weights: Weights of the kinds of events, as set in ``data.fields``.
      report: The report on the known and the new events. It receives the findings, and the number of users with ties if
        events are ordered by time and hash.

    Raises:
      ConfigError: Only one of the known and the new events was read with ``repeats: all``.
      DataError: The known events have an order, and no column tells where the new ones belong.
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

    # ``order`` is a rank within one table. If the stored columns explain the order of both tables, they order all
    # events.
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

    # Compare only columns of the new table: a column that it lacks does not make an event different from a known one.
    compared = [column for column in came if column not in (USER, ITEM, ORDER, TEST_EVENT)]
    again = _known_rows(events[compared], is_new)
    report.add("events", "the event is known already", int(again.sum()), "dropped")
    # In the new order: whether known events of the same user follow.
    known_after = pd.Series(~is_new)[::-1].groupby(user[::-1]).cumsum()[::-1].to_numpy() > 0
    late = is_new & ~again & known_after
    report.add("events", "late: before events of the user that are known", int(late.sum()), "kept")
    kept, replaced = ~again, 0
    if repeats != "all":
        pair = pd.Series(user * (int(item.max(initial=0)) + 1) + events[ITEM_INDEX].to_numpy())
        _, strength, weight = event_kinds(events[EVENT_KIND], weights)
        if ordered and repeats == "last":
            kept &= ~before_a_refusal(pair.to_numpy(), np.where(kept, weight, 0))
        present = pd.Series(np.where(kept, strength, -1))
        kept &= (present == present.groupby(pair).transform("max")).to_numpy()
        kept[kept] = ~pair[kept].duplicated(keep=repeats).to_numpy()
        rule = f"(kept: {'the strongest kind, then ' if strength.any() else ''}the {repeats})"
        merged = int((is_new & ~kept & ~again).sum())
        report.add("events", f"the same user and item in a known event, which stays {rule}", merged, "dropped")
        replaced = int((~is_new & ~kept).sum())  # each by one new event
        report.add("events", f"known events, by new ones of the same user and item {rule}", replaced, "replaced")
    report.add("events", "new, among the known ones", int(is_new[kept].sum()) - replaced, "added")
    report.rows_kept["events"] -= int((is_new & ~kept).sum())
    events, user, time = events[kept].reset_index(drop=True), user[kept], time[kept]
    if hashed and timed:
        tied = (np.diff(user) == 0) & (np.diff(time) == 0)
        report.tied_users = len(np.unique(user[1:][tied]))
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    events[ORDER] = np.arange(len(user)) - np.repeat(starts, np.diff(starts, append=len(user)))
    return events

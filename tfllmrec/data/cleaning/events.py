"""Cleans the events: their ids, ratings, times and kinds, their order within each user, and repeats."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.columns import EVENT_KIND, ITEM, ITEM_INDEX, ORDER, RATING, TEST_EVENT, TIMESTAMP, USER, USER_INDEX
from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.event_kinds import (
    UNKNOWN_WEIGHT,
    AskedWeights,
    are_event_kinds,
    before_a_refusal,
    count_kinds,
    event_kinds,
    is_known_kind,
    weights_of_kinds,
)
from tfllmrec.data.cleaning.ids import one_event_per_item
from tfllmrec.data.cleaning.order_checks import numbers_the_rows
from tfllmrec.data.cleaning.ratings import unrated_values
from tfllmrec.data.cleaning.recognition import EVENT_COLUMNS
from tfllmrec.data.cleaning.rows import Rows
from tfllmrec.data.cleaning.times import times
from tfllmrec.data.cleaning.values import MISSING, is_row_number, numbers, strings
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.files.size_limits import SizeMeter
from tfllmrec.data.findings import CleaningReport
from tfllmrec.errors import DataError

_TIME_OF_DAY = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp]\.?[Mm]\.?)?"
_HASH_KEY = "tfllmrec-ties-01"  # 16 characters; another key would order ties differently and change published figures


def clean_events(
    raw: RawTable,
    config: DataConfig,
    report: CleaningReport,
    known: pd.DataFrame | None = None,
    test_rows: np.ndarray | None = None,
) -> tuple[pd.DataFrame, str | None, np.ndarray]:
    """Drops the event rows that cannot be used, and puts each user's events in order.

    A row whose item is a list counts as one event for each item of the list. The order of the list is used if nothing
    else orders events and no user has a second row. Ratings that mean "not rated" become NaN.

    A user's events are ordered by the order column, or else by the timestamp. A row whose cell in that column cannot be
    read is dropped; unreadable cells in the other column are taken as unknown. Ties are broken by timestamp, then by a
    hash of user and item ids, then by position in a list of items, then by rating, lower first: the order never depends
    on the positions of rows in the file. Rows without a value in the column are dropped if most rows have one. If most
    rows have none, or all rows have the same, the column is ignored. If no column is left, the hash alone determines
    ``order``, and the data counts as unordered.

    Ratings that are the same in every event, as in logs of clicks, carry no information and become NaN. With ``known``
    events they stay, because ratings may arrive one at a time. If repeated events of a user and item are merged, the
    strongest kind of event is kept, and among equally strong events the last or the first one. If the last one is kept,
    a rejection also replaces all earlier events.

    Args:
      raw: The file.
      config: The ``data`` section.
      report: Receives the findings.
      known: Clean events that these are added to. Decisions that depend on all values of a column, or on all events of
        a user, take both into account.
      test_rows: Bool ``[R]``, the rows of ``raw`` that are test events.

    Returns:
      Three values. The events, in file order: user_id, item_id (str), rating (float32), timestamp_s (float64), kind
      (str), order (int64), with ``test_rows`` also test_event (bool), and the file's other columns (str), sorted by
      name. The column that orders them: ``order``, ``timestamp_s`` or None. And bool ``[E]``, whether only the hash or
      the rating separates an event from the user's previous one; all False if no column orders events.

    Raises:
      DataError: More than ``config.max_bad_rows`` of the rows are unreadable, or no event is left.
    """
    raw, source = one_event_per_item(raw)
    SizeMeter(config).add_rows(len(source), Path(raw.file))
    rows = Rows(raw, config, report)
    ids = {}
    for column in (USER, ITEM):
        ids[column] = rows.ids(column)
        rows.drop_unreadable(ids[column].isin(MISSING).to_numpy(), f"no {column}", column)
        rows.drop_unreadable(ids[column].str.contains("\n").to_numpy(dtype=bool), f"a line break in {column}", column)
    nothing = pd.Series(np.full(len(raw.frame), np.nan))
    rating, bad = numbers(raw.frame.get(RATING, nothing), partial(rows.note, column=RATING))
    bad |= np.abs(rating) > np.finfo(np.float32).max
    what = "the rating is not a number"
    if bad.any() and are_event_kinds(raw.frame[RATING]):
        what += f", but a kind of event: map it with --set {shlex.quote(f'data.columns.kind={raw.names[RATING]}')}"
    rows.take_as_unknown(bad, what, RATING)
    order, no_order = numbers(raw.frame.get(ORDER, nothing), partial(rows.note, column=ORDER))
    at = raw.frame.get(TIMESTAMP, nothing)
    seconds, no_time = times(at, config.time_format, partial(rows.note, column=TIMESTAMP))
    what = f"the time does not fit data.time_format = {config.time_format}"
    if config.time_format == "auto":
        what = (
            "the time is not recognised; write it like 2014-05-26 10:11:12, or describe it in data.time_format, such "
            "as %d/%m/%Y, %d%m%Y or epoch_s"
        )
        if no_time.any() and strings(at[no_time]).str.fullmatch(_TIME_OF_DAY).all():
            what = (
                "the time has no date; write date and time into one column, or map the column of the dates: --set "
                "data.columns.timestamp_s=NAME_IN_THE_FILE"
            )
    rating, order, seconds = (
        np.where(bad, np.nan, each) for bad, each in ((bad, rating), (no_order, order), (no_time, seconds))
    )

    # The items of a list are consecutive rows, which stay together and in order.
    first_of_list = np.searchsorted(source, source)
    place_in_list = np.arange(len(source)) - first_of_list
    if np.isnan(order).all() and np.isnan(seconds).all() and place_in_list.any():
        order = _order_of_lists(ids[USER], first_of_list, place_in_list, rows, order)
    keys = {ORDER: (order, no_order, "the order is not a number"), TIMESTAMP: (seconds, no_time, what)}
    alone = known is None or known.empty
    ordered_by = _order_column(keys, rows, alone)
    rows.check_unreadable(config.max_bad_rows)
    known_ratings = np.empty(0) if known is None else known[RATING].to_numpy()
    rating = _without_unrated(rating, known_ratings, config, rows)
    no_kind = pd.Series("", index=raw.frame.index, dtype="str")
    weights = weights_of_kinds(config.fields)
    kind, strength, weight = event_kinds(raw.frame.get(EVENT_KIND, no_kind), weights)
    if EVENT_KIND in raw.names:
        _note_weakest_kinds(kind, strength, weights, rows)

    user, user_ids = pd.factorize(ids[USER])
    item, item_ids = pd.factorize(ids[ITEM])
    time = np.nan_to_num(seconds, nan=-np.inf)
    by_user = np.flatnonzero(rows.keep)
    moment = {None: [], TIMESTAMP: [time], ORDER: [time, order]}[ordered_by]
    of_pair = hash_of_pairs(user, user_ids, item, item_ids)
    of_list = np.zeros(len(source), dtype=np.uint64)
    # Lists may begin with the same item, so all items of a list, in their order, tell it from others.
    np.add.at(of_list, first_of_list, pd.util.hash_array(of_pair + place_in_list.astype(np.uint64), categorize=False))
    ties = [np.nan_to_num(rating, nan=-np.inf), place_in_list, of_list[first_of_list], of_pair[first_of_list]]
    by_user = by_user[np.lexsort([key[by_user] for key in (*ties, *moment, user)])]
    if config.repeats != "all":
        pair = user.astype(np.int64) * len(item_ids) + item
        if ordered_by and config.repeats == "last":
            refused = by_user[before_a_refusal(pair[by_user], weight[by_user])]
            _drop_refused_events(refused, kind, rows)
        if strength.any():
            _drop_weaker_events(pair, kind, strength, rows)
        by_user = by_user[rows.keep[by_user]]
        repeated = np.zeros(len(user), dtype=bool)
        repeated[by_user[pd.Series(pair[by_user]).duplicated(keep=config.repeats).to_numpy()]] = True
        of_ties = f"the {'highest' if config.repeats == 'last' else 'lowest'} rating"
        if np.isnan(rating[rows.keep]).all():
            kept = f"the {config.repeats}" if ordered_by else "one of them"
        else:
            kept = f"the {config.repeats}; among ties in time, {of_ties}" if ordered_by else of_ties
        rows.drop(repeated, f"the same user and item again (kept: {kept})")
    events_of_user = np.bincount(user[rows.keep], minlength=len(user) and user.max() + 1)
    few = events_of_user[user] < config.min_user_events
    if known is not None:
        few &= ~ids[USER].isin(known[USER]).to_numpy()
    rows.drop(few, f"the user has fewer than data.min_user_events = {config.min_user_events} events", USER)
    rows.finish()
    if not rows.keep.any():
        raise DataError(f"{raw.file}: no event is left of {rows.rows_in:,} rows. " + " ".join(report.lines()))

    by_user = by_user[rows.keep[by_user]]
    starts = np.flatnonzero(np.diff(user[by_user], prepend=-1))
    rank = np.zeros(len(user), dtype=np.int64)
    rank[by_user] = np.arange(len(by_user)) - np.repeat(starts, np.diff(starts, append=len(by_user)))
    keep = rows.keep
    tied = np.zeros(len(user), dtype=bool)
    if moment:
        tied = _note_ties(by_user, [*moment, user], first_of_list, rows)
    rated = keep & ~np.isnan(rating)
    given = rating[rated].astype(np.float32)
    # With known events, ratings may arrive one at a time: they differ only when taken together.
    if alone and len(given) and np.ptp(given) == 0:
        what = f"the rating is {given[0]:g} wherever there is one: it says nothing and is taken as none"
        rows.note(rated, what, "repaired", RATING)
        rating = np.full_like(rating, np.nan)
    events = pd.DataFrame(
        {
            USER: ids[USER][keep].to_numpy(),
            ITEM: ids[ITEM][keep].to_numpy(),
            RATING: rating[keep].astype(np.float32),
            TIMESTAMP: seconds[keep],
            EVENT_KIND: kind[keep].to_numpy(),
            ORDER: rank[keep],
            **({} if test_rows is None else {TEST_EVENT: test_rows[source][keep]}),
            **{name: values[keep].to_numpy() for name, values in _other_columns(raw, rows).items()},
        }
    )
    return events, ordered_by, tied[keep]


def _other_columns(raw: RawTable, rows: Rows) -> dict[str, pd.Series]:
    """Returns the columns other than :data:`EVENT_COLUMNS` and row numbers, as text, sorted by name."""
    others = {}
    for column in sorted(map(str, raw.frame.columns.difference([*EVENT_COLUMNS]))):
        if is_row_number(column, raw.frame[column]):
            what = f"column {column!r} holds row numbers, as pandas writes them: left out"
            rows.note(rows.keep, what, "kept", column)
        else:
            ours = column in (USER_INDEX, ITEM_INDEX, TEST_EVENT)
            others[f"source_{column}" if ours else column] = rows.texts(raw.frame[column], column)
    return others


def _without_unrated(rating: np.ndarray, known_ratings: np.ndarray, config: DataConfig, rows: Rows) -> np.ndarray:
    """Sets ratings that mean "not rated" to NaN: those of ``data.unrated``, or else those outside the scale."""
    kept = np.where(rows.keep, rating, np.nan)
    recognised = config.unrated is None
    why = (
        "it is not on the scale of all others; if the scale includes it, data.unrated: [] keeps it"
        if recognised
        else "by data.unrated"
    )
    for value in unrated_values(np.append(kept, known_ratings)) if config.unrated is None else config.unrated:
        rows.note(kept == value, f"the rating {value:g} means 'not rated' ({why})", "repaired", RATING)
        rating = np.where(rating == value, np.nan, rating)
    return rating


def _order_of_lists(
    user: pd.Series, first_of_list: np.ndarray, place_in_list: np.ndarray, rows: Rows, unknown: np.ndarray
) -> np.ndarray:
    """Returns the position of each item in its list if no user has events from two rows; otherwise ``unknown``."""
    lists_of_user = pd.Series(first_of_list[rows.keep]).groupby(user[rows.keep].to_numpy()).nunique()
    if len(lists_of_user) and lists_of_user.max() > 1:
        return unknown
    what = "each user has one list of items and no times: events are ordered as the list is"
    rows.note(place_in_list >= 0, what, "kept", ITEM)
    return place_in_list.astype(np.float64)


def _note_weakest_kinds(kind: pd.Series, strength: np.ndarray, weights: Mapping[str, float], rows: Rows) -> None:
    """Reports events whose kind is unknown or missing, or known only by one of its words."""
    missing = (kind == "").to_numpy()
    unknown = (strength == 0) & ~missing
    what = (
        f"the kind of event is not known: it counts as a weak choice, with weight {UNKNOWN_WEIGHT}, and an event of a "
        f"known kind, of the same user and item, replaces it ({count_kinds(kind[unknown & rows.keep])}); "
        "data.fields.kind.weights can say how much each kind counts"
    )
    rows.note(unknown, what, "kept", EVENT_KIND)
    asked = AskedWeights(weights)
    as_a_whole = [k for k in kind.unique() if asked.of(k) is not None or is_known_kind(k)]
    by_word = (strength > 0) & ~kind.isin(as_a_whole).to_numpy()
    if by_word.any():
        said = ", ".join(f"{name!r} {asked.weight(name):g}" for name in kind[by_word].unique()[:10])
        what = (
            f"the kind of event is not known as a whole, only by one of its words ({count_kinds(kind[by_word])}); "
            f"weights: {said}; data.fields.kind.weights can set others"
        )
        rows.note(by_word, what, "kept", EVENT_KIND)
    rows.note(missing, "no kind of event: of a user and item, an event of a known kind replaces it", "kept", EVENT_KIND)


def _drop_refused_events(refused: np.ndarray, kind: pd.Series, rows: Rows) -> None:
    """Drops the rows ``refused``: a dislike replaces what the user did with the item before, even a purchase."""
    gone = np.zeros(len(kind), dtype=bool)
    gone[refused] = True
    if gone.any():
        what = f"the same user refused the item later ({count_kinds(kind[gone])})"
        rows.drop(gone, f"{what}: merged into the rejection", EVENT_KIND)


def _drop_weaker_events(pair: np.ndarray, kind: pd.Series, strength: np.ndarray, rows: Rows) -> None:
    """Drops each event whose user and item (``pair``) have a stronger one: a view never replaces a purchase."""
    strongest = pd.Series(np.where(rows.keep, strength, 0)).groupby(pair).transform("max").to_numpy()
    weaker = rows.keep & (strength < strongest)
    if weaker.any():
        what = f"a weaker event than another one of the same user and item ({count_kinds(kind[weaker])})"
        rows.drop(weaker, f"{what}: merged into the stronger one", EVENT_KIND)


def _order_column(keys: dict[str, tuple[np.ndarray, np.ndarray, str]], rows: Rows, alone: bool) -> str | None:
    """Returns the first column that can order events, or None; drops the rows without a value in it.

    Args:
      keys: For each column its values, which of its cells cannot be read (bool ``[R]``), and the words of the report
        for these cells.
      rows: The rows so far.
      alone: Whether there are no known events; if so, a column with the same value in all rows orders nothing.
    """
    chosen = None
    for column, (key, unreadable, what_unreadable) in keys.items():
        if chosen is not None or not _orders(column, key, rows, alone):
            rows.take_as_unknown(unreadable, what_unreadable, column)
            continue
        chosen = column
        rows.drop_unreadable(unreadable, what_unreadable, column)
        rows.drop(np.isnan(key), f"no {column}, though most rows have one", column)
        if numbers_the_rows(key[rows.keep], np.flatnonzero(rows.keep)):
            what = (
                f"{column} grows by the same step from row to row, as a row number does: events are ordered as the "
                "file lists them. If the file is not sorted by time, the last event of a user means nothing: name "
                "the column with the real time under data.columns, or set split.kind to leave_random_out"
            )
            rows.note(rows.keep, what, "doubted", column)
    return chosen


def _orders(column: str, key: np.ndarray, rows: Rows, alone: bool) -> bool:
    """Returns whether a column can order events; if it has values but cannot, the report says why."""
    present = ~np.isnan(key) & rows.keep
    missing = ~present & rows.keep
    if missing.sum() > present.sum() > 0:
        rows.note(missing, f"most rows have no {column}: it is ignored as an order", "kept", column)
        return False
    if alone and present.sum() > 1 and np.ptp(key[present]) == 0:
        what = (
            f"{column} is the same in every row: it is ignored as an order. If another column has the real time or "
            "order, name it under data.columns"
        )
        rows.note(present, what, "doubted", column)
        return False
    return bool(present.any())


def hash_of_pairs(user: np.ndarray, user_ids: pd.Index, item: np.ndarray, item_ids: pd.Index) -> np.ndarray:
    """Returns uint64 ``[R]``: a hash of each user and item, which depends on their ids alone, on any machine."""
    of_user, of_item = (
        pd.util.hash_array(ids.to_numpy(dtype=object), hash_key=_HASH_KEY, categorize=False)
        for ids in (user_ids, item_ids)
    )
    return pd.util.hash_array(of_user[user] + of_item[item], categorize=False)


def _note_ties(by_user: np.ndarray, moment: list[np.ndarray], first_of_list: np.ndarray, rows: Rows) -> np.ndarray:
    """Counts ties, and returns bool ``[R]``: rows with the user and moment of the previous row in ``by_user``.

    Items of one list are not tied, because the list orders them.

    Args:
      by_user: The rows, sorted by user and order.
      moment: The time, the order if there is one, and last the user of each row.
      first_of_list: The first row of the list that each row belongs to.
      rows: The rows so far.
    """
    same = first_of_list[by_user[1:]] != first_of_list[by_user[:-1]]
    for key in moment:
        same &= key[by_user[1:]] == key[by_user[:-1]]
    tied, concerned = np.zeros(len(rows.keep), dtype=bool), np.zeros(len(rows.keep), dtype=bool)
    tied[by_user[1:][same]] = True
    concerned[by_user[1:][same]] = concerned[by_user[:-1][same]] = True
    users = moment[-1]
    rows.report.tied_users = len(np.unique(users[tied]))
    what = f"tied in time with another event of the user ({rows.report.tied_users:,} users): ordered by a hash of ids"
    rows.note(concerned, what, "kept", TIMESTAMP)
    return tied

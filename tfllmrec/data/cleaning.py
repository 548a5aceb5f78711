"""From raw tables to clean ones: every row is kept, or dropped under one counted reason."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from tfllmrec.columns import CATEGORIES, DESCRIPTION, ITEM, ORDER, RATING, TAG, TAGS, TIMESTAMP, TITLE, USER
from tfllmrec.config import DataConfig
from tfllmrec.data.findings import Action, CleaningReport
from tfllmrec.data.ids import lists, one_event_per_item, read_ids
from tfllmrec.data.item_text import category_text, strip_html
from tfllmrec.data.ratings import unrated_values
from tfllmrec.data.raw_table import RawTable
from tfllmrec.data.times import times
from tfllmrec.data.values import MISSING, numbers, strings
from tfllmrec.errors import DataError

TEXT_COLUMNS = (TITLE, DESCRIPTION, CATEGORIES, TAGS)
TAGS_PER_ITEM = 20


class _Rows:
    """The rows of a raw table that are kept so far; each dropped row is counted once, under its first reason."""

    def __init__(self, raw: RawTable, config: DataConfig, report: CleaningReport):
        self.raw, self.config, self.report = raw, config, report
        self.keep = np.ones(len(raw.frame), dtype=bool)
        self.rows_in = len(raw.frame)
        self.unreadable = raw.unreadable
        self.first_unreadable = next((f"{f.example}: {f.what}" for f in raw.findings if f.action == "dropped"), "")
        for f in raw.findings:
            report.add(f.table, f.what, f.count, f.action, f.example)
            self.rows_in += f.count if f.action == "dropped" else 0

    def ids(self, column: str) -> pd.Series:
        """A column of ids as strings; integers that a program wrote as floats (``7.0``) are integers again.

        Raises:
          DataError: a cell is a list, or an id is too large a float to be exact and ``data.inexact_ids`` is refuse.
        """
        values = self.raw.frame[column]
        if (cells := lists(values)) is not None:
            row = next(i for i, cell in enumerate(cells) if cell is not None)
            raise DataError(
                f"{self.raw.example(row, column)}: expected one {column}, found a list. Write one in each row."
            )
        ids = read_ids(values)
        if ids.inexact.any() and self.config.inexact_ids == "refuse":
            raise DataError(
                f"{self.raw.example(int(ids.inexact.argmax()), column)}: the {column} is a rounded number, as "
                f"{int(ids.inexact.sum()):,} of {len(values):,} are. A float is exact only below 2**53 and to the "
                "digits shown, so different ids may have become one when the file was written. Export the ids as text "
                "or as integers, or set data.inexact_ids to accept to read them as they are."
            )
        findings: tuple[tuple[np.ndarray, str, Action], ...] = (
            (ids.inexact, "is a rounded number: different ids may have become one", "kept"),
            (ids.written_as_float, "is an integer written as a float", "repaired"),
            (ids.fractional, "is a number with a fraction; if ids are no numbers, export them as text", "kept"),
            (ids.zero_padded, "differs from another one in leading zeros only: they stay different", "kept"),
            (ids.of_two_types, "is text here and a number elsewhere: taken for the same", "kept"),
        )
        for mask, what, action in findings:
            self.note(mask, f"{column} {what}", action, column)
        return ids.text

    def drop(self, mask: np.ndarray, what: str, column: str | None = None) -> None:
        mask = mask & self.keep
        if mask.any():
            first = int(mask.argmax())
            self.report.add(self.raw.table, what, int(mask.sum()), "dropped", self.raw.example(first, column))
            self.keep &= ~mask

    def drop_unreadable(self, mask: np.ndarray, what: str, column: str) -> None:
        """Drops rows that cannot be read; a row that takes up several lines of the file counts as that many."""
        mask = mask & self.keep
        if mask.any():
            example = self.raw.example(int(mask.argmax()), column)
            count = int(self.raw.spans[mask].sum())
            self.report.add(self.raw.table, what, count, "dropped", example)
            self.first_unreadable = self.first_unreadable or f"{example}: {what}"
            self.rows_in += count - int(mask.sum())
            self.unreadable += count
            self.keep &= ~mask

    def note(self, mask: np.ndarray, what: str, action: Action, column: str | None = None) -> None:
        mask = mask & self.keep
        if mask.any():
            example = self.raw.example(int(mask.argmax()), column)
            self.report.add(self.raw.table, what, int(mask.sum()), action, example)

    def check_unreadable(self, max_bad_rows: float) -> None:
        if self.unreadable > max_bad_rows * self.rows_in:
            raise DataError(
                f"{self.first_unreadable}. {self.unreadable:,} of {self.rows_in:,} rows of {self.raw.file} cannot be "
                f"read, more than data.max_bad_rows = {max_bad_rows:g} allows. Mend the file, name its columns under "
                "data.columns, or raise data.max_bad_rows."
            )

    def finish(self) -> None:
        self.report.rows_in[self.raw.table] = self.rows_in
        self.report.rows_kept[self.raw.table] = int(self.keep.sum())


def clean_events(raw: RawTable, config: DataConfig, report: CleaningReport) -> tuple[pd.DataFrame, str | None]:
    """The event rows that can be used, and the column that says in which order they happened.

    A row whose item is a list counts as one event for each item of the list. Ratings that mean "not rated" become NaN.
    The order within a user is that of an order column, else of the timestamp; ties fall by timestamp, then by file
    position. Rows that lack the key are dropped where most have it; where most lack it, or it is the same everywhere,
    the key is ignored, file position fills ``order`` and the data counts as unordered. Ratings that are the same in
    every event, as in logs of clicks, say nothing and become NaN.

    Returns:
      user_id, item_id (str), rating (float32), timestamp_s (float64), order (int64), in file order; and ``order``,
      ``timestamp_s``, or None where no column orders them.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows are unreadable, or none is left.
    """
    raw = one_event_per_item(raw)
    rows = _Rows(raw, config, report)
    ids = {}
    for column in (USER, ITEM):
        ids[column] = rows.ids(column)
        rows.drop_unreadable(ids[column].isin(MISSING).to_numpy(), f"no {column}", column)
        rows.drop_unreadable(ids[column].str.contains("\n").to_numpy(dtype=bool), f"a line break in {column}", column)
    nothing = pd.Series(np.full(len(raw.frame), np.nan))
    rating, bad = numbers(raw.frame.get(RATING, nothing), partial(rows.note, column=RATING))
    rows.drop_unreadable(bad | (np.abs(rating) > np.finfo(np.float32).max), "the rating is no number", RATING)
    order, bad = numbers(raw.frame.get(ORDER, nothing), partial(rows.note, column=ORDER))
    rows.drop_unreadable(bad, "the order is no number", ORDER)
    at = raw.frame.get(TIMESTAMP, nothing)
    seconds, bad = times(at, config.time_format, partial(rows.note, column=TIMESTAMP))
    what = f"the time does not fit data.time_format = {config.time_format}"
    what = "the time is neither a number nor a date" if config.time_format == "auto" else what
    rows.drop_unreadable(bad, what, TIMESTAMP)
    rows.check_unreadable(config.max_bad_rows)

    rating = _without_unrated(rating, config, rows)
    key, ordered_by = _order_key(order, seconds, rows)

    user, _ = pd.factorize(ids[USER])
    item, item_ids = pd.factorize(ids[ITEM])
    position = np.arange(len(user))
    time_tie = np.nan_to_num(seconds, nan=-1.0)
    by_user = np.lexsort((position, user) if key is None else (position, time_tie, key, user))
    by_user = by_user[rows.keep[by_user]]
    if config.repeats != "all":
        pair = pd.Series(user[by_user].astype(np.int64) * len(item_ids) + item[by_user])
        repeated = np.zeros(len(user), dtype=bool)
        repeated[by_user[pair.duplicated(keep=config.repeats).to_numpy()]] = True
        rows.drop(repeated, f"the same user and item again (kept: the {config.repeats})")
    events_of_user = np.bincount(user[rows.keep], minlength=len(user) and user.max() + 1)
    few = events_of_user[user] < config.min_user_events
    rows.drop(few, f"the user has fewer than data.min_user_events = {config.min_user_events} events", USER)
    rows.finish()
    if not rows.keep.any():
        raise DataError(f"{raw.file}: no event is left of {rows.rows_in:,} rows. " + " ".join(report.lines()))

    by_user = by_user[rows.keep[by_user]]
    starts = np.flatnonzero(np.diff(user[by_user], prepend=-1))
    rank = np.zeros(len(user), dtype=np.int64)
    rank[by_user] = np.arange(len(by_user)) - np.repeat(starts, np.diff(starts, append=len(by_user)))
    keep = rows.keep
    rated = keep & ~np.isnan(rating)
    given = rating[rated].astype(np.float32)
    if len(given) and np.ptp(given) == 0:
        what = f"the rating is {given[0]:g} wherever there is one: it says nothing and is taken as none"
        rows.note(rated, what, "repaired", RATING)
        rating = np.full_like(rating, np.nan)
    events = pd.DataFrame(
        {
            USER: ids[USER][keep].to_numpy(),
            ITEM: ids[ITEM][keep].to_numpy(),
            RATING: rating[keep].astype(np.float32),
            TIMESTAMP: seconds[keep],
            ORDER: rank[keep],
        }
    )
    return events, ordered_by


def _without_unrated(rating: np.ndarray, config: DataConfig, rows: _Rows) -> np.ndarray:
    """``rating`` with NaN for values that mean "not rated", by ``data.unrated`` or because they leave the scale."""
    kept = np.where(rows.keep, rating, np.nan)
    recognised = config.unrated is None
    why = "it is not on the scale of all others; data.unrated: [] keeps it" if recognised else "by data.unrated"
    for value in unrated_values(kept) if config.unrated is None else config.unrated:
        rows.note(kept == value, f"the rating {value:g} means 'not rated' ({why})", "repaired", RATING)
        rating = np.where(rating == value, np.nan, rating)
    return rating


def _order_key(order: np.ndarray, seconds: np.ndarray, rows: _Rows) -> tuple[np.ndarray | None, str | None]:
    for key, column in ((order, ORDER), (seconds, TIMESTAMP)):
        present = ~np.isnan(key) & rows.keep
        if not present.any():
            continue
        missing = ~present & rows.keep
        if missing.sum() > present.sum():
            rows.note(missing, f"most rows have no {column}: it is ignored as an order", "kept", column)
        elif np.ptp(key[present]) == 0 and present.sum() > 1:
            rows.note(present, f"{column} is the same in every row: it is ignored as an order", "kept", column)
        else:
            rows.drop(missing, f"no {column}, though most rows have one", column)
            return key, column
    return None, None


def clean_items(raw: RawTable, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """The catalogue: ``item_id``, then title, description, categories where present, then the other columns, all str.

    Of several rows with one id the first stays. HTML is stripped from text and counted.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows have no id or cannot be read.
    """
    return _clean_entities(raw, ITEM, config, report)


def clean_users(raw: RawTable, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """The users table: ``user_id``, then its other columns, all str; as :func:`clean_items`."""
    return _clean_entities(raw, USER, config, report)


def _clean_entities(raw: RawTable, key: str, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    rows = _Rows(raw, config, report)
    ids = rows.ids(key)
    rows.drop_unreadable(ids.isin(MISSING).to_numpy(), f"no {key}", key)
    rows.drop_unreadable(ids.str.contains("\n").to_numpy(dtype=bool), f"a line break in {key}", key)
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(ids.duplicated().to_numpy(), f"the {key} is there already (kept: the first)", key)
    rows.finish()

    text_columns = [c for c in TEXT_COLUMNS if c in raw.frame and key == ITEM]
    columns = {key: ids}
    for column in text_columns:
        values = raw.frame[column]
        before = strings(values, separator=" ")
        before = before.mask(before.isin(MISSING), "")
        if column == CATEGORIES:
            after = pd.Series([category_text(v) for v in values.astype(object)], dtype="str")
        else:
            after = before.copy()
        marked = before.str.contains(r"[<&]|/>").to_numpy(dtype=bool)
        if marked.any():
            stripped = np.array([strip_html(v) for v in before[marked]], dtype=object)
            changed = np.zeros(len(before), dtype=bool)
            changed[marked] = stripped != before[marked].to_numpy(dtype=object)
            rows.note(changed, f"HTML in {column}", "repaired", column)
            if column != CATEGORIES:
                after = after.astype(object)
                after[marked] = stripped
        columns[column] = after.astype("str")
    for column in raw.frame.columns:
        if column not in columns:
            columns[column] = strings(raw.frame[column])
    clean = pd.DataFrame({name: values.to_numpy() for name, values in columns.items()})
    return clean[rows.keep].reset_index(drop=True).astype("str")


def join_more_items(items: pd.DataFrame, more: pd.DataFrame, raw: RawTable, report: CleaningReport) -> pd.DataFrame:
    """``items`` with the columns of ``more`` added by id; of a column that both have, only the gaps are filled.

    Rows of ``more`` that name no item of the catalogue are dropped and counted.
    """
    index = pd.Index(more[ITEM]).get_indexer(items[ITEM])
    unknown = ~more[ITEM].isin(items[ITEM]).to_numpy()
    if unknown.any():
        example = f"{raw.file}, column {raw.names.get(ITEM, ITEM)!r}: {more[ITEM].iloc[int(unknown.argmax())]!r}"
        report.add(raw.table, "the item is not in the catalogue", int(unknown.sum()), "dropped", example)
        report.rows_kept[raw.table] -= int(unknown.sum())
    joined = items.copy()
    for column in more.columns.drop(ITEM):
        values = np.where(index >= 0, more[column].to_numpy(dtype=object)[index] if len(more) else "", "")
        own = joined[column].to_numpy(dtype=object) if column in joined else ""
        joined[column] = pd.Series(np.where(np.equal(own, ""), values, own), dtype="str")
    return joined


def join_tags(items: pd.DataFrame, raw: RawTable, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """``items`` with a text column ``tags``: what people called the item, most frequent first, at most 20.

    Tags that differ only in case are one, in the spelling that came first; ties stay in file order.
    """
    rows = _Rows(raw, config, report)
    tagged = pd.DataFrame({ITEM: rows.ids(ITEM).to_numpy(), TAG: strings(raw.frame[TAG]).to_numpy()})
    rows.drop_unreadable(tagged[ITEM].isin(MISSING).to_numpy(), f"no {ITEM}", ITEM)
    rows.drop(tagged[TAG].isin(MISSING).to_numpy(), "no tag", TAG)
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(~tagged[ITEM].isin(items[ITEM]).to_numpy(), "the tagged item is not in the catalogue", ITEM)
    rows.finish()
    tagged = tagged[rows.keep]
    tagged["key"] = tagged[TAG].str.lower()
    counted = tagged.groupby([ITEM, "key"], sort=False)[TAG].agg(["first", "size"]).reset_index()
    counted = counted.sort_values("size", ascending=False, kind="stable")
    best = counted.groupby(ITEM, sort=False).head(TAGS_PER_ITEM).groupby(ITEM, sort=False)["first"].agg(", ".join)
    joined = items.copy()
    joined[TAGS] = items[ITEM].map(best).fillna("").map(strip_html).astype("str")
    return joined

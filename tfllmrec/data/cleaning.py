"""From raw tables to clean ones: every row is kept, or dropped under one counted reason."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from tfllmrec.columns import CATEGORIES, DESCRIPTION, EVENT_KIND, ITEM, ORDER, RATING, TAG, TAGS, TIMESTAMP, TITLE, USER
from tfllmrec.config import DataConfig
from tfllmrec.data.event_kinds import count_kinds, event_kinds
from tfllmrec.data.findings import Action, CleaningReport
from tfllmrec.data.item_text import category_text, strip_html
from tfllmrec.data.raw_table import RawTable
from tfllmrec.data.recognition import plain_name
from tfllmrec.data.tags import MAY_LEAK, TAG_TYPES
from tfllmrec.data.values import MISSING, mend_clock, numbers, strings, times
from tfllmrec.errors import DataError

TEXT_COLUMNS = (TITLE, DESCRIPTION, CATEGORIES, TAGS)
_INTEGRAL_FLOAT = re.compile(r"-?[0-9]+\.0+")


class _Rows:
    """The rows of a raw table that are still kept; a dropped row is counted once, under its first reason."""

    def __init__(self, raw: RawTable, report: CleaningReport):
        self.raw, self.report = raw, report
        self.keep = np.ones(len(raw.frame), dtype=bool)
        self.rows_in = len(raw.frame)
        self.unreadable = raw.unreadable
        # Blank rows are dropped, too, but are not unreadable; they are counted after the broken rows.
        dropped = [f for f in raw.findings if f.action == "dropped"]
        self.first_unreadable = f"{dropped[0].example}: {dropped[0].what}" if raw.unreadable else ""
        for f in raw.findings:
            report.add(f.table, f.what, f.count, f.action, f.example)
            self.rows_in += f.count if f.action == "dropped" else 0

    def ids(self, column: str) -> pd.Series:
        """A column of ids as strings. Where a tool wrote every one as a float (``7.0``), it is an integer again."""
        ids = strings(self.raw.frame[column])
        present = ~ids.isin(MISSING)
        distinct = pd.Series(ids[present].unique(), dtype="str")
        if len(distinct) and distinct.str.fullmatch(_INTEGRAL_FLOAT).all():
            self.note(present.to_numpy(), f"{column} is an integer written as a float", "repaired", column)
            ids = ids.mask(present, ids.str.partition(".")[0])
        return ids

    def drop(self, mask: np.ndarray, what: str, column: str | None = None) -> None:
        mask = mask & self.keep
        if mask.any():
            first = int(mask.argmax())
            self.report.add(self.raw.table, what, int(mask.sum()), "dropped", self.raw.example(first, column))
            self.keep &= ~mask

    def drop_unreadable(self, mask: np.ndarray, what: str, column: str) -> None:
        """Drops rows that no reader could make sense of; they count with all the lines that they swallowed."""
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
    """The event rows that can be used, and the column that orders them.

    The order within a user is that of an order column, else of the timestamp; ties fall by timestamp, then by file
    position. Rows that lack the key are dropped where most have it; where most lack it, or it is the same everywhere,
    the key is ignored, file position fills ``order`` and the data counts as unordered. Ratings that are the same in
    every event, as in logs of clicks, say nothing and become NaN. Where repeated events of a user and item are merged,
    the strongest kind of event stays, and among events of that strength the last or first one.

    Returns:
      user_id, item_id (str), rating (float32), timestamp_s (float64), kind (str), order (int64), in file order; and
      ``order``, ``timestamp_s``, or None where no column orders them.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows are unreadable, or none is left.
    """
    rows = _Rows(raw, report)
    ids = {}
    for column in (USER, ITEM):
        ids[column] = rows.ids(column)
        rows.drop_unreadable(ids[column].isin(MISSING).to_numpy(), f"no {column}", column)
        rows.drop_unreadable(ids[column].str.contains("\n").to_numpy(dtype=bool), f"a line break in {column}", column)
    nothing = pd.Series(np.full(len(raw.frame), np.nan))
    rating, bad = numbers(raw.frame.get(RATING, nothing))
    rows.drop_unreadable(bad | (np.abs(rating) > np.finfo(np.float32).max), "the rating is no number", RATING)
    order, bad = numbers(raw.frame.get(ORDER, nothing))
    rows.drop_unreadable(bad, "the order is no number", ORDER)
    seconds, bad = times(raw.frame.get(TIMESTAMP, nothing))
    rows.drop_unreadable(bad, "the time is neither a number nor a date", TIMESTAMP)
    rows.check_unreadable(config.max_bad_rows)

    seconds = mend_clock(seconds, rows.note)
    key, ordered_by = _order_key(order, seconds, rows)
    kind, strength = event_kinds(raw.frame.get(EVENT_KIND, pd.Series("", index=raw.frame.index, dtype="str")))
    if EVENT_KIND in raw.names:
        _note_weakest_kinds(kind, strength, rows)

    user, _ = pd.factorize(ids[USER])
    item, item_ids = pd.factorize(ids[ITEM])
    position = np.arange(len(user))
    time_tie = np.nan_to_num(seconds, nan=-1.0)
    by_user = np.lexsort((position, user) if key is None else (position, time_tie, key, user))
    by_user = by_user[rows.keep[by_user]]
    if config.repeats != "all":
        if strength.any():
            _drop_weaker_events(user.astype(np.int64) * len(item_ids) + item, kind, strength, rows)
            by_user = by_user[rows.keep[by_user]]
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
            EVENT_KIND: kind[keep].to_numpy(),
            ORDER: rank[keep],
        }
    )
    return events, ordered_by


def _note_weakest_kinds(kind: pd.Series, strength: np.ndarray, rows: _Rows) -> None:
    """Reports events whose kind is unknown or missing; both count as weaker than every known kind."""
    missing = (kind == "").to_numpy()
    unknown = (strength == 0) & ~missing
    what = "the kind of event is not known: it counts as weaker than every known kind"
    if unknown.any():
        what += f" ({count_kinds(kind[unknown & rows.keep])})"
    rows.note(unknown, what, "kept", EVENT_KIND)
    rows.note(missing, "no kind of event: it counts as weaker than every known kind", "kept", EVENT_KIND)


def _drop_weaker_events(pair: np.ndarray, kind: pd.Series, strength: np.ndarray, rows: _Rows) -> None:
    """Drops each event whose user and item (``pair``) have a stronger one: a view never replaces a purchase."""
    strongest = pd.Series(np.where(rows.keep, strength, 0)).groupby(pair).transform("max").to_numpy()
    weaker = rows.keep & (strength < strongest)
    if weaker.any():
        what = f"a weaker event than another one of the same user and item ({count_kinds(kind[weaker])})"
        rows.drop(weaker, f"{what}: merged into the stronger one", EVENT_KIND)


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

    Of several rows with one id the first stays. HTML is stripped from text and counted. Tags in the catalogue have no
    times, which is reported.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows have no id or cannot be read.
    """
    items = _clean_entities(raw, ITEM, config, report)
    for column in (CATEGORIES, TAGS):
        if column in items and plain_name(raw.names.get(column, column)) == TAGS:
            tagged = int((items[column] != "").sum())
            report.add(raw.table, f"tags without a time: {MAY_LEAK}", tagged, "kept")
    return items


def clean_users(raw: RawTable, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """The users table: ``user_id``, then its other columns, all str; as :func:`clean_items`."""
    return _clean_entities(raw, USER, config, report)


def _clean_entities(raw: RawTable, key: str, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    rows = _Rows(raw, report)
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


def clean_tags(raw: RawTable, items: pd.DataFrame, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """The tags that can be used: user_id (``""``: none), item_id, tag (str), timestamp_s (float64, NaN: none).

    HTML is stripped and counted. Tags without an item of the catalogue are dropped.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows have no item or cannot be read.
    """
    rows = _Rows(raw, report)
    nothing = pd.Series("", index=raw.frame.index, dtype="str")
    user = rows.ids(USER) if USER in raw.frame else nothing
    item, tag = rows.ids(ITEM), strings(raw.frame[TAG])
    rows.drop_unreadable(item.isin(MISSING).to_numpy(), f"no {ITEM}", ITEM)
    stripped = tag.map(strip_html).astype("str")
    rows.drop(stripped.isin(MISSING).to_numpy(), "no tag", TAG)
    seconds, bad = times(raw.frame.get(TIMESTAMP, nothing))
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(~item.isin(items[ITEM]).to_numpy(), "the tagged item is not in the catalogue", ITEM)
    rows.note((stripped != tag).to_numpy(), f"HTML in {TAG}", "repaired", TAG)
    rows.note(bad, "the time is neither a number nor a date: taken as unknown", "repaired", TIMESTAMP)
    seconds = mend_clock(np.where(bad, np.nan, seconds), rows.note)
    if not np.isfinite(seconds[rows.keep]).any():
        rows.note(rows.keep, f"no tag has a time: {MAY_LEAK}", "kept")
    rows.finish()
    tags = pd.DataFrame({USER: user.mask(user.isin(MISSING), ""), ITEM: item, TAG: stripped, TIMESTAMP: seconds})
    return tags[rows.keep].reset_index(drop=True).astype(TAG_TYPES)

"""From raw tables to clean ones: every row is kept, or dropped under one counted reason."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    CATEGORIES,
    DESCRIPTION,
    EVENT_KIND,
    ITEM,
    NAME_COLUMNS,
    ORDER,
    RATING,
    TAG,
    TAGS,
    TIMESTAMP,
    TITLE,
    USER,
)
from tfllmrec.config import DataConfig
from tfllmrec.data.event_kinds import count_kinds, event_kinds
from tfllmrec.data.findings import Action, CleaningReport
from tfllmrec.data.ids import lists, one_event_per_item, read_ids
from tfllmrec.data.item_text import strip_html, words_for_nothing
from tfllmrec.data.names import category_names, names_in, read_name_column, structured_text
from tfllmrec.data.order_checks import numbers_the_rows
from tfllmrec.data.ratings import unrated_values
from tfllmrec.data.raw_table import RawTable
from tfllmrec.data.recognition import plain_name
from tfllmrec.data.tags import MAY_LEAK, TAG_TYPES
from tfllmrec.data.times import times
from tfllmrec.data.values import MISSING, numbers, strings
from tfllmrec.errors import DataError

TEXT_COLUMNS = (TITLE, DESCRIPTION, CATEGORIES, TAGS)
_HASH_KEY = "tfllmrec-ties-01"  # 16 characters; another key orders ties otherwise, and so changes published figures


class _Rows:
    """The rows of a raw table that are kept so far; each dropped row is counted once, under its first reason."""

    def __init__(self, raw: RawTable, config: DataConfig, report: CleaningReport):
        self.raw, self.config, self.report = raw, config, report
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


def clean_events(
    raw: RawTable, config: DataConfig, report: CleaningReport
) -> tuple[pd.DataFrame, str | None, np.ndarray]:
    """Drops the event rows that cannot be used, and puts each user's events in order.

    A row whose item is a list counts as one event for each item of the list. Ratings that mean "not rated" become NaN.
    The order column, else the timestamp, orders a user's events. Ties fall by timestamp, then by a hash of user and
    item id, then by place in a list of items, then by rating, lower first: the order never depends on the rows' places
    in the file. Rows that lack the key are dropped where most rows have it. Where most lack it, or it is the same
    everywhere, the key is ignored, the hash alone fills ``order`` and the data counts as unordered. Ratings that are
    the same in every event, as in logs of clicks, say nothing and become NaN. Where repeated events of a user and item
    are merged, the strongest kind of event stays, and among events of that strength the last or first one.

    Returns:
      user_id, item_id (str), rating (float32), timestamp_s (float64), kind (str), order (int64), in file order;
      ``order``, ``timestamp_s``, or None where no column orders them; and bool ``[E]``, whether only the hash or the
      rating separates an event from the one before it (all False where no column orders events).

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
    ordered_by = _order_column({ORDER: order, TIMESTAMP: seconds}, rows)
    kind, strength = event_kinds(raw.frame.get(EVENT_KIND, pd.Series("", index=raw.frame.index, dtype="str")))
    if EVENT_KIND in raw.names:
        _note_weakest_kinds(kind, strength, rows)

    user, user_ids = pd.factorize(ids[USER])
    item, item_ids = pd.factorize(ids[ITEM])
    time = np.nan_to_num(seconds, nan=-np.inf)
    by_user = np.flatnonzero(rows.keep)
    moment = {None: [], TIMESTAMP: [time], ORDER: [time, order]}[ordered_by]
    # The items of a list are rows that follow each other: they stay together, in their order.
    rows_so_far = np.arange(len(user))
    first_of_list = np.maximum.accumulate(np.where(np.diff(raw.rows, prepend=-1) != 0, rows_so_far, 0))
    ties = [
        np.nan_to_num(rating, nan=-np.inf),
        rows_so_far - first_of_list,
        _hash(user, user_ids, item, item_ids)[first_of_list],
    ]
    by_user = by_user[np.lexsort([key[by_user] for key in (*ties, *moment, user)])]
    if config.repeats != "all":
        if strength.any():
            _drop_weaker_events(user.astype(np.int64) * len(item_ids) + item, kind, strength, rows)
            by_user = by_user[rows.keep[by_user]]
        pair = pd.Series(user[by_user].astype(np.int64) * len(item_ids) + item[by_user])
        repeated = np.zeros(len(user), dtype=bool)
        repeated[by_user[pair.duplicated(keep=config.repeats).to_numpy()]] = True
        kept = f"{'highest' if config.repeats == 'last' else 'lowest'} rating"
        if ordered_by:
            kept = f"{config.repeats}; among ties in time, the {kept}"
        rows.drop(repeated, f"the same user and item again (kept: the {kept})")
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
    tied = np.zeros(len(user), dtype=bool)
    if moment:
        tied = _note_ties(by_user, [*moment, user], first_of_list, rows)
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
    return events, ordered_by, tied[keep]


def _without_unrated(rating: np.ndarray, config: DataConfig, rows: _Rows) -> np.ndarray:
    """``rating`` with NaN for values that mean "not rated", by ``data.unrated`` or because they leave the scale."""
    kept = np.where(rows.keep, rating, np.nan)
    recognised = config.unrated is None
    why = "it is not on the scale of all others; data.unrated: [] keeps it" if recognised else "by data.unrated"
    for value in unrated_values(kept) if config.unrated is None else config.unrated:
        rows.note(kept == value, f"the rating {value:g} means 'not rated' ({why})", "repaired", RATING)
        rating = np.where(rating == value, np.nan, rating)
    return rating


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


def _order_column(keys: dict[str, np.ndarray], rows: _Rows) -> str | None:
    """The first of the columns that can order events; rows without it are dropped."""
    for column, key in keys.items():
        present = ~np.isnan(key) & rows.keep
        if not present.any():
            continue
        missing = ~present & rows.keep
        if missing.sum() > present.sum():
            rows.note(missing, f"most rows have no {column}: it is ignored as an order", "kept", column)
        elif np.ptp(key[present]) == 0 and present.sum() > 1:
            what = (
                f"{column} is the same in every row: it is ignored as an order. If another column has the real time or "
                "order, name it under data.columns"
            )
            rows.note(present, what, "doubted", column)
        else:
            rows.drop(missing, f"no {column}, though most rows have one", column)
            if numbers_the_rows(key[rows.keep], np.flatnonzero(rows.keep)):
                what = (
                    f"{column} grows by the same step from row to row, as a row number does: events are ordered as the "
                    "file lists them. If the file is not sorted by time, the last event of a user means nothing: name "
                    "the column with the real time under data.columns, or set split.kind to random"
                )
                rows.note(rows.keep, what, "doubted", column)
            return column
    return None


def _hash(user: np.ndarray, user_ids: pd.Index, item: np.ndarray, item_ids: pd.Index) -> np.ndarray:
    """uint64 ``[R]``: a number for a user and item that depends on their ids alone, the same on every machine."""
    of_user, of_item = (
        pd.util.hash_array(ids.to_numpy(dtype=object), hash_key=_HASH_KEY, categorize=False)
        for ids in (user_ids, item_ids)
    )
    return pd.util.hash_array(of_user[user] + of_item[item], categorize=False)


def _note_ties(by_user: np.ndarray, moment: list[np.ndarray], first_of_list: np.ndarray, rows: _Rows) -> np.ndarray:
    """Counts ties, and returns as bool ``[R]`` which rows have the user and moment of the row before in ``by_user``.

    Items of one list are no tie: the list orders them.
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


def clean_items(
    raw: RawTable, config: DataConfig, report: CleaningReport, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The catalogue: ``item_id``, then title, description, categories where present, then the other columns, all str.

    Of several rows with one id the one with the most filled cells stays, then the one with the most text, so that the
    order of the rows does not matter. HTML is stripped from text and counted. Tags in the catalogue have no times,
    which is reported. Cells of categories, tags and authors (:data:`tfllmrec.columns.NAME_COLUMNS`) hold names,
    separated as :mod:`tfllmrec.data.names` says.

    Args:
      raw: the file.
      config: for ``max_bad_rows``.
      report: takes the findings.
      known: clean items from elsewhere, whose names help to tell commas inside of names from commas between them.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows have no id or cannot be read.
    """
    rows, columns = _clean_entities(raw, ITEM, config, report)
    others = [column for column in map(str, raw.frame) if column not in (ITEM, *TEXT_COLUMNS)]
    for column in [*(c for c in TEXT_COLUMNS if c in raw.frame), *others]:
        values = raw.frame[column]
        if column in NAME_COLUMNS:
            names_known = set() if known is None or column not in known else _names_of(known[column])
            columns[column] = _name_cells(values, column, rows, names_known)
        elif column in TEXT_COLUMNS:
            columns[column] = _running_text(values, column, rows)
        else:
            columns[column] = strings(_structures(values, ", "))
    items = _finished(rows, columns)
    for column in (CATEGORIES, TAGS):
        if column in items and plain_name(raw.names.get(column, column)) == TAGS:
            tagged = int((items[column] != "").sum())
            report.add(raw.table, f"tags without a time: {MAY_LEAK}", tagged, "kept")
    return items


def clean_users(raw: RawTable, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """The users table: ``user_id``, then its other columns, all str. Of several rows with one id the first stays.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows have no id or cannot be read.
    """
    rows, columns = _clean_entities(raw, USER, config, report)
    columns |= {column: strings(raw.frame[column]) for column in map(str, raw.frame) if column != USER}
    return _finished(rows, columns)


def _clean_entities(
    raw: RawTable, key: str, config: DataConfig, report: CleaningReport
) -> tuple[_Rows, dict[str, pd.Series]]:
    """The rows of a table of items or users with a readable id of their own, and the column of ids."""
    rows = _Rows(raw, config, report)
    ids = rows.ids(key)
    rows.drop_unreadable(ids.isin(MISSING).to_numpy(), f"no {key}", key)
    rows.drop_unreadable(ids.str.contains("\n").to_numpy(dtype=bool), f"a line break in {key}", key)
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(_lesser_copies(raw.frame, ids, rows.keep), f"the {key} is there already (kept: the fullest row)", key)
    rows.finish()
    return rows, {key: ids}


def _lesser_copies(frame: pd.DataFrame, ids: pd.Series, keep: np.ndarray) -> np.ndarray:
    """bool ``[R]``: rows whose id another row has that is fuller, or as full and sorts first."""
    lesser = np.zeros(len(ids), dtype=bool)
    copies = np.flatnonzero(keep & (ids[keep].duplicated(keep=False).reindex(ids.index, fill_value=False)).to_numpy())
    if len(copies):
        cells = [strings(frame[column].iloc[copies]) for column in frame]
        lengths = np.array([cell.str.len() for cell in cells])
        codes = [pd.factorize(cell, sort=True)[0] for cell in cells]
        fullest = copies[np.lexsort([*codes, -lengths.sum(axis=0), -(lengths > 0).sum(axis=0)])]
        lesser[fullest[ids.iloc[fullest].duplicated().to_numpy()]] = True
    return lesser


def _finished(rows: _Rows, columns: dict[str, pd.Series]) -> pd.DataFrame:
    clean = pd.DataFrame({name: values.to_numpy() for name, values in columns.items()})
    return clean[rows.keep].reset_index(drop=True).astype("str")


def _running_text(values: pd.Series, column: str, rows: _Rows) -> pd.Series:
    """A column of titles or descriptions, without HTML and without words that stand for "nothing"."""
    text = strings(_structures(values, " "), separator=" ")
    text = text.mask(text == r"\N", "")  # how MySQL exports its null
    nothing = words_for_nothing(text)
    rows.note(nothing, f"{column} is a word for nothing that recurs as no {column} does: blanked", "repaired", column)
    text = text.mask(nothing, "").astype(object)
    marked = _has_markup(text)
    stripped = np.array([strip_html(v) for v in text[marked]], dtype=object)
    changed = np.zeros(len(text), dtype=bool)
    changed[marked] = stripped != text[marked].to_numpy(dtype=object)
    rows.note(changed, f"HTML in {column}", "repaired", column)
    text[marked] = stripped
    return text.astype("str")


def _name_cells(values: pd.Series, column: str, rows: _Rows, known: set[str]) -> pd.Series:
    """A column of names as clean cells; what had to be decided or was left out is noted."""
    read = read_name_column(values, known)
    text = strings(values)
    marked = _has_markup(text)
    changed = np.zeros(len(text), dtype=bool)
    changed[marked] = [strip_html(v) != v for v in text[marked]]
    rows.note(changed, f"HTML in {column}", "repaired", column)
    rows.note(read.nameless, f"{column}: records without a name or words such as 'null' left out", "repaired", column)
    rows.note(
        read.commas & read.split_at_commas,
        f"{column}: commas are taken to separate names; if they belong to the names, write '|' between names",
        "kept",
        column,
    )
    rows.note(
        read.commas & ~np.bool_(read.split_at_commas),
        f"{column}: commas are taken to belong to the names; if they separate names, write '|' instead",
        "kept",
        column,
    )
    rows.note(read.slashes, f"{column}: slashes are taken to separate the names of a path", "kept", column)
    return read.cells


def _structures(values: pd.Series, separator: str) -> pd.Series:
    """The column with lists and named records as text, whether they are written in strings or are objects."""
    if isinstance(values.dtype, pd.StringDtype):
        written = values.str.contains(r"^\s*[\[{(]").fillna(False).to_numpy(dtype=bool)
    elif values.dtype == object:
        written = np.array([not isinstance(v, (float, int)) for v in values], dtype=bool)
    else:
        return values
    if not written.any():
        return values
    text = values.astype(object)
    text[written] = [structured_text(value, separator) for value in text[written]]
    return text


def _has_markup(text: pd.Series) -> np.ndarray:
    return text.str.contains(r"[<&]|/>").to_numpy(dtype=bool)


def _names_of(cells: pd.Series) -> set[str]:
    return {name for cell in cells.unique() for name in category_names(cell)}


def join_more_items(items: pd.DataFrame, more: pd.DataFrame, raw: RawTable, report: CleaningReport) -> pd.DataFrame:
    """``items`` with the columns of ``more`` added by id; of a column that both have, only the gaps are filled.

    Rows of ``more`` that name no item of the catalogue are dropped and counted.
    """
    index = pd.Index(more[ITEM]).get_indexer(items[ITEM])
    unknown = ~more[ITEM].isin(items[ITEM]).to_numpy()
    if unknown.any():
        example = f"{raw.file}, column {raw.names.get(ITEM, ITEM)!r}: {more[ITEM].iloc[int(unknown.argmax())]!r}"
        what = "the item is not in the catalogue"
        if 2 * unknown.sum() > len(more):
            what += (
                f"; only {len(more) - int(unknown.sum()):,} of {len(more):,} rows name one: if the column is the wrong "
                f"one, map another: data.columns: {{{ITEM}: NAME IN THE FILE}}"
            )
        report.add(raw.table, what, int(unknown.sum()), "dropped", example)
        report.rows_kept[raw.table] -= int(unknown.sum())
    joined = items.copy()
    for column in more.columns.drop(ITEM):
        values = np.where(index >= 0, more[column].to_numpy(dtype=object)[index] if len(more) else "", "")
        own = joined[column].to_numpy(dtype=object) if column in joined else ""
        joined[column] = pd.Series(np.where(np.equal(own, ""), values, own), dtype="str")
    return joined


def clean_tags(raw: RawTable, items: pd.DataFrame, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """The tags that can be used: user_id (``""``: none), item_id, tag (str), timestamp_s (float64, NaN: none).

    A cell may hold several tags in any shape that :func:`tfllmrec.data.names.names_in` reads; its commas belong to the
    tag. HTML is stripped and counted. Tags without an item of the catalogue are dropped. The rows are sorted, so that
    their order in the file does not matter.

    Raises:
      DataError: more than ``config.max_bad_rows`` of the rows have no item or cannot be read.
    """
    rows = _Rows(raw, config, report)
    nothing = pd.Series("", index=raw.frame.index, dtype="str")
    user = rows.ids(USER) if USER in raw.frame else nothing
    item = rows.ids(ITEM)
    names = pd.Series([names_in(value, commas=False) for value in raw.frame[TAG].astype(object)], dtype=object)
    rows.drop_unreadable(item.isin(MISSING).to_numpy(), f"no {ITEM}", ITEM)
    rows.drop(~names.astype(bool).to_numpy(), "no tag", TAG)
    at = raw.frame.get(TIMESTAMP, nothing)
    seconds, bad = times(at, config.time_format, partial(rows.note, column=TIMESTAMP))
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(~item.isin(items[ITEM]).to_numpy(), "the tagged item is not in the catalogue", ITEM)
    text = strings(raw.frame[TAG])
    rows.note((text.map(strip_html) != text).to_numpy(), f"HTML in {TAG}", "repaired", TAG)
    rows.note(bad, "the time is neither a number nor a date: taken as unknown", "repaired", TIMESTAMP)
    if not np.isfinite(seconds[rows.keep]).any():
        rows.note(rows.keep, f"no tag has a time: {MAY_LEAK}", "kept")
    rows.finish()
    tags = pd.DataFrame({USER: user.mask(user.isin(MISSING), ""), ITEM: item, TAG: names, TIMESTAMP: seconds})
    tags = tags[rows.keep].explode(TAG).astype(TAG_TYPES)
    return tags.sort_values([ITEM, USER, TAG, TIMESTAMP]).reset_index(drop=True)

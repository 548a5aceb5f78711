"""From raw tables to clean ones: every row is kept, or dropped under one counted reason."""

from __future__ import annotations

import ast
import html
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from tfllmrec.columns import CATEGORIES, DESCRIPTION, ITEM, ORDER, RATING, TAG, TAGS, TIMESTAMP, TITLE, USER
from tfllmrec.config import DataConfig
from tfllmrec.errors import DataError

TEXT_COLUMNS = (TITLE, DESCRIPTION, CATEGORIES, TAGS)
TAGS_PER_ITEM = 20

# Spellings of "nothing" that exports leave behind. "NA" is one only where a number belongs: it can be an id or a title.
_MISSING = ["", "nan", "NaN", "null", "NULL", "None", "\\N"]
_MISSING_NUMBER = [*_MISSING, "NA", "N/A"]
_DATE_FORMATS = (
    "ISO8601",
    "%m %d, %Y",  # 02 26, 2014
    "%d-%b-%Y",  # 01-Jan-1995
    "%b %d, %Y",
    "%B %d, %Y",
    "%a %b %d %H:%M:%S %z %Y",  # Thu Mar 29 00:04:52 +0000 2012
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
)
# Only tags that HTML knows: "<untitled>" and "5 < 6" are text.
_HTML_NAMES = (
    "a|abbr|article|aside|audio|b|big|blockquote|body|br|button|caption|center|cite|code|dd|del|details|div|dl|dt|em|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|li|link|meta|nav|"
    "noscript|object|ol|option|p|picture|pre|s|script|section|select|small|source|span|strike|strong|style|sub|summary|"
    "sup|svg|table|tbody|td|textarea|tfoot|th|thead|tr|tt|u|ul|video|wbr"
)
_HTML_BLOCKS = [(re.compile(rf"<{name}\b", re.I), re.compile(rf"</{name}\s*>", re.I)) for name in ("script", "style")]
_HTML_TAG = re.compile(rf"</?(?:{_HTML_NAMES})\b[^<>]*(?:>|$)|<!--.*?(?:-->|$)", re.I | re.S)
_HTML_TAIL = re.compile(r'^[^<>]*"\s*/>')  # what is left where a scraper cut a tag in two
# No code point has more digits, and Python refuses to read a number of thousands of them.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]*);")
_SPACES = re.compile(r"\s+")
_INTEGRAL_FLOAT = re.compile(r"-?[0-9]+\.0+")

Action = Literal["dropped", "repaired", "added", "kept"]


@dataclass(frozen=True)
class Finding:
    """One kind of thing that cleaning met.

    Attributes:
      table: ``events``, ``items``, ``users``, ``tags`` or ``more_items:FILE``.
      what: the reason, in words.
      count: rows (or values, where ``what`` says so) concerned.
      action: ``dropped`` rows are gone; ``repaired`` and ``kept`` ones stay; ``added`` ones were in no file.
      example: ``FILE:ROW, column 'NAME': VALUE`` of the first one. Rows of text files are lines, the header being 1.
    """

    table: str
    what: str
    count: int
    action: Action
    example: str = ""

    def __str__(self) -> str:
        return f"{self.table}: {self.count:,} {self.action}: {self.what}" + (
            f" ({self.example})" if self.example else ""
        )


@dataclass
class CleaningReport:
    """What was read, kept, dropped and repaired. For every table ``rows_in == rows_kept + dropped(table)``.

    Attributes:
      rows_in: rows read, a table. A broken row that swallowed several lines counts as that many.
      rows_kept: rows of the file that stand in the data set, a table.
      findings: in the order they were met.
      sources: what was recognised, a line a file, such as ``events: log.csv (user_id <- user, item_id <- sku,
        timestamp_s <- ts; ordered by timestamp_s; not used: page)``.
    """

    rows_in: dict[str, int] = field(default_factory=dict)
    rows_kept: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, table: str, what: str, count: int, action: Action, example: str = "") -> None:
        """Notes a finding; a count of 0 is none."""
        if count:
            self.findings.append(Finding(table, what, int(count), action, example))

    def dropped(self, table: str) -> int:
        return sum(f.count for f in self.findings if f.table == table and f.action == "dropped")

    def lines(self) -> list[str]:
        """The report for people, a line an entry: the sources, the rows of each table, the findings."""
        rows = [f"{table}: {n:,} rows read, {self.rows_kept[table]:,} kept" for table, n in self.rows_in.items()]
        return [*self.sources, *rows, *(f"  {finding}" for finding in self.findings)]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> CleaningReport:
        """What :meth:`as_dict` gave; reports that were written before there were ``sources`` have none."""
        findings = [Finding(**f) for f in plain["findings"]]
        return cls(plain["rows_in"], plain["rows_kept"], findings, plain.get("sources", []))


@dataclass(frozen=True)
class RawTable:
    """A file as read: columns of any type, and where each row stood.

    Attributes:
      table: its name in the report.
      file: its name in messages.
      frame: the rows that could be split into fields; columns already carry their canonical names.
      rows: int64 ``[R]``, the line (or record) number in the file.
      spans: int64 ``[R]``, the lines that each row takes up (more than 1 where a quoted field holds line breaks).
      names: canonical column -> name in the file, for messages.
      findings: rows that reading itself lost or mended.
      unreadable: how many of the dropped ones in ``findings`` were broken (as opposed to blank).
    """

    table: str
    file: str
    frame: pd.DataFrame
    rows: np.ndarray
    spans: np.ndarray
    names: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    unreadable: int = 0

    def example(self, row: int, column: str | None = None) -> str:
        """Where the frame's row ``row`` stood, and what it held."""
        place = f"{self.file}:{self.rows[row]}"
        if column is None or column not in self.frame:
            return place
        value = str(self.frame[column].iloc[row])
        value = value if len(value) <= 60 else value[:57] + "..."
        return f"{place}, column {self.names.get(column, column)!r}: {value!r}"

    def source(self, others: str, order: str = "") -> str:
        """What was recognised in the file, in a line; ``others`` says what the columns are that were not."""
        rest = [column or "''" for column in self.frame.columns if column not in self.names]
        parts = [
            ", ".join(f"{column} <- {name}" for column, name in self.names.items()),
            order,
            f"{others}: {', '.join(rest)}" if rest else "",
        ]
        return f"{self.table.partition(':')[0]}: {self.file} ({'; '.join(filter(None, parts))})"


class _Rows:
    """Which rows of a raw table still stand; a row that falls is counted once, under its first reason."""

    def __init__(self, raw: RawTable, report: CleaningReport):
        self.raw, self.report = raw, report
        self.keep = np.ones(len(raw.frame), dtype=bool)
        self.rows_in = len(raw.frame)
        self.unreadable = raw.unreadable
        self.first_unreadable = next((f"{f.example}: {f.what}" for f in raw.findings if f.action == "dropped"), "")
        for f in raw.findings:
            report.add(f.table, f.what, f.count, f.action, f.example)
            self.rows_in += f.count if f.action == "dropped" else 0

    def ids(self, column: str) -> pd.Series:
        """A column of ids as strings. Where a tool wrote every one as a float (``7.0``), it is an integer again."""
        ids = strings(self.raw.frame[column])
        present = ~ids.isin(_MISSING)
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


def as_text(value: Any, separator: str = ", ") -> str:
    """One value of any kind as a string; ``""`` for nothing, ``7`` for ``7.0``, lists joined, objects as JSON."""
    if isinstance(value, str):
        # A lone surrogate (JSON can spell one) has no UTF-8 form and could be neither hashed nor stored.
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return ""
    if isinstance(value, (list, tuple, set)):
        return separator.join(filter(None, (as_text(v, separator).strip() for v in value)))
    if isinstance(value, dict):
        return as_text(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))
    if isinstance(value, (float, np.floating)) and value == np.floor(value) and np.isfinite(value):
        return str(int(value))
    return str(value)


def strings(values: pd.Series, separator: str = ", ") -> pd.Series:
    """Any column as strings, stripped, ``""`` where there is nothing."""
    if isinstance(values.dtype, pd.StringDtype):
        return values.fillna("").str.strip()
    if pd.api.types.is_integer_dtype(values.dtype):
        return values.astype("str").fillna("")
    plain = [v.tolist() if isinstance(v, np.ndarray) else v for v in values.astype(object)]
    return pd.Series([as_text(v, separator) for v in plain], index=values.index, dtype="str").str.strip()


def numbers(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Any column as float64 ``[R]`` (NaN: nothing there), and bool ``[R]``: something is, but no finite number."""
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        plain = values.to_numpy(dtype=np.float64, na_value=np.nan)
        return plain, np.isinf(plain)
    codes, distinct = _distinct(values)
    parsed = pd.to_numeric(distinct, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    plain = _spread(parsed, codes)
    return plain, (codes >= 0) & ~np.isfinite(plain)


def _distinct(values: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Codes ``[R]`` (-1: nothing there) into the distinct strings: parsing each once is what makes it fast."""
    codes, distinct = pd.factorize(strings(values))
    texts = pd.Series(distinct, dtype="str")
    missing = np.append(texts.isin(_MISSING_NUMBER).to_numpy(), True)
    return np.where(missing[codes], -1, codes), texts


def _spread(parsed: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.append(parsed, np.nan)[codes]  # code -1 is the NaN at the end


def times(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """A column of numbers, dates or date strings as float64 ``[R]`` seconds since 1970 (UTC), and where it is neither.

    Date strings are read by the one format that explains most of the column, so that 03/04/2014 never means March in
    one row and April in the next; where both fit, the month comes first.
    """
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _seconds(values), np.zeros(len(values), dtype=bool)
    plain, bad = numbers(values)
    present = bad | ~np.isnan(plain)
    if bad.sum() * 2 <= present.sum():
        return plain, bad
    codes, distinct = _distinct(values)
    used = np.zeros(len(distinct), dtype=bool)
    used[codes[codes >= 0]] = True
    best = np.full(len(distinct), np.nan)
    for pattern in _DATE_FORMATS:
        parsed = _seconds(pd.to_datetime(distinct, format=pattern, errors="coerce", utc=True))
        if np.isfinite(parsed[used]).sum() > np.isfinite(best[used]).sum():
            best = parsed
        if np.isfinite(best[used]).all():
            break
    plain = _spread(best, codes)
    return plain, (codes >= 0) & np.isnan(plain)


def _seconds(dates: pd.Series) -> np.ndarray:
    micros = pd.to_datetime(dates, utc=True).dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    return np.where(np.isnat(micros), np.nan, micros.astype(np.int64) / 1e6)


def category_text(value: Any) -> str:
    """Categories in any shape as one readable string.

    >>> category_text([["Beauty", "Makeup"], ["Beauty", "Face"]])
    'Beauty, Makeup, Face'
    >>> category_text("Action|Sci-Fi")
    'Action, Sci-Fi'

    Takes nested lists, JSON or Python literals of them, mappings (their keys), and strings separated by ``|``, ``;``,
    `` > `` or commas. Repeated names are named once; MovieLens' "(no genres listed)" is no category.
    """
    names: dict[str, None] = {}

    def collect(part: Any) -> None:
        if isinstance(part, np.ndarray):
            part = part.tolist()
        if isinstance(part, (list, tuple, set, dict)):
            for inner in part:
                collect(inner)
            return
        text = strip_html(as_text(part)).strip()
        if text[:1] in "[{" and text:
            literal = _literal(text)
            if literal is not None:
                return collect(literal)
        separator = next((s for s in ("|", ";", " > ") if s in text), None)
        if separator:
            return collect(text.split(separator))
        if text and text not in _MISSING and text != "(no genres listed)":
            names[text] = None

    if isinstance(value, str) and value.strip()[:1] not in ("[", "{"):
        value = strip_html(value)  # before splitting: an entity ends in ";"
        if not re.search(r"\||;| > ", value):
            value = value.split(",")
    collect(value)
    return ", ".join(names)


def category_names(text: str) -> list[str]:
    """The categories of a cleaned ``categories`` cell, as :func:`category_text` writes it.

    >>> category_names("Action, Sci-Fi")
    ['Action', 'Sci-Fi']

    A name with a comma counts as its parts. Each is named once.
    """
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _literal(text: str) -> list | dict | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, (list, dict, tuple)) else None  # type: ignore[return-value]
    return None


def strip_html(text: str) -> str:
    """``text`` without HTML tags (broken ones too) and with its entities resolved; other text comes back unchanged."""
    if "<" not in text and "&" not in text and "/>" not in text:
        return text
    clean = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    clean = _ENTITY.sub(lambda match: html.unescape(match.group()), clean)  # &amp;quot; is met in the wild
    clean = _HTML_TAIL.sub(" ", _HTML_TAG.sub(" ", _without_blocks(clean)))
    return text if clean == text else _SPACES.sub(" ", clean).strip()


def _without_blocks(text: str) -> str:
    """``text`` without scripts and style sheets; one that is not closed stays, for it may be a word in a title.

    In linear time, which one regular expression for both ends is not where many open and none closes.
    """
    for opening, closing in _HTML_BLOCKS:
        kept, end = [], 0
        while (start := opening.search(text, end)) and (stop := closing.search(text, start.end())):
            kept.append(text[end : start.start()])
            end = stop.end()
        text = " ".join([*kept, text[end:]])
    return text


def clean_events(raw: RawTable, config: DataConfig, report: CleaningReport) -> tuple[pd.DataFrame, str | None]:
    """The event rows that can be used, and the column that says in which order they happened.

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
    rows = _Rows(raw, report)
    ids = {}
    for column in (USER, ITEM):
        ids[column] = rows.ids(column)
        rows.drop_unreadable(ids[column].isin(_MISSING).to_numpy(), f"no {column}", column)
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


def mend_clock(seconds: np.ndarray, note: Callable[[np.ndarray, str, Action, str], object]) -> np.ndarray:
    """Milli-, micro- and nanoseconds become seconds, negative times unknown; times to come are only counted.

    Args:
      seconds: float64 ``[R]``, as :func:`times` returns them.
      note: told which rows (bool ``[R]``) are so, what is with them, what was done, and the column.
    """
    # 1e11 s is the year 5138, 1e11 ms is 1973: no event log reaches either.
    for unit, factor in (("nanoseconds", 1e9), ("microseconds", 1e6), ("milliseconds", 1e3)):
        wrong = seconds >= 1e8 * factor
        note(wrong, f"the time is in {unit}: divided by {factor:g}", "repaired", TIMESTAMP)
        seconds = np.where(wrong, seconds / factor, seconds)
    note(seconds < 0, "the time is negative: taken as unknown", "repaired", TIMESTAMP)
    seconds = np.where(seconds < 0, np.nan, seconds)
    note(seconds > time.time() + 86_400, "the time lies in the future", "kept", TIMESTAMP)
    return seconds


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
    rows = _Rows(raw, report)
    ids = rows.ids(key)
    rows.drop_unreadable(ids.isin(_MISSING).to_numpy(), f"no {key}", key)
    rows.drop_unreadable(ids.str.contains("\n").to_numpy(dtype=bool), f"a line break in {key}", key)
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(ids.duplicated().to_numpy(), f"the {key} is there already (kept: the first)", key)
    rows.finish()

    text_columns = [c for c in TEXT_COLUMNS if c in raw.frame and key == ITEM]
    columns = {key: ids}
    for column in text_columns:
        values = raw.frame[column]
        before = strings(values, separator=" ")
        before = before.mask(before.isin(_MISSING), "")
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
    rows = _Rows(raw, report)
    tagged = pd.DataFrame({ITEM: rows.ids(ITEM).to_numpy(), TAG: strings(raw.frame[TAG]).to_numpy()})
    rows.drop_unreadable(tagged[ITEM].isin(_MISSING).to_numpy(), f"no {ITEM}", ITEM)
    rows.drop(tagged[TAG].isin(_MISSING).to_numpy(), "no tag", TAG)
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


def require_file(path: Path) -> None:
    """Raises DataError with the names that are there instead, unless ``path`` is a file."""
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{path} is a folder where a file was expected: give it as data.source, or name a file in it.")
    there = sorted(p.name for p in path.parent.iterdir())[:10] if path.parent.is_dir() else []
    hint = f"{path.parent} holds: {', '.join(there) or 'nothing'}." if path.parent.is_dir() else "Nor is its folder."
    raise DataError(f"{path} is not there. {hint}")

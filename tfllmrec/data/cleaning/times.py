"""Reads times from cells of any type: numbers since an epoch, numbers that spell a date, and dates as text."""

from __future__ import annotations

import re
import time
import zoneinfo
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tfllmrec.data.cleaning.values import Note, decoded, distinct_texts, ignore, numbers, spread
from tfllmrec.errors import ConfigError


class TimeUnit(NamedTuple):
    """A way of counting time in numbers: ``seconds since 1970 = number / per_second + zero_s``."""

    name: str
    per_second: float
    zero_s: float


#: The units that ``data.time_format`` accepts by name, in the order in which they are tried on a column.
TIME_UNITS = {
    "epoch_s": TimeUnit("seconds since 1970", 1, 0),
    "epoch_ms": TimeUnit("milliseconds since 1970", 1e3, 0),
    "epoch_us": TimeUnit("microseconds since 1970", 1e6, 0),
    "epoch_ns": TimeUnit("nanoseconds since 1970", 1e9, 0),
    "epoch_d": TimeUnit("days since 1970", 1 / 86_400, 0),
    "excel": TimeUnit("days as Excel counts them (from 1899-12-30)", 1 / 86_400, -2_209_161_600),
    "dotnet": TimeUnit("ticks of .NET (1e-7 s since the year 1)", 1e7, -62_135_596_800),
    "filetime": TimeUnit("ticks of Windows (1e-7 s since 1601)", 1e7, -11_644_473_600),
    "webkit": TimeUnit("microseconds since 1601 (Chrome, WebKit)", 1e6, -11_644_473_600),
}
_DAY_S, _YEAR_S = 86_400.0, 366 * 86_400.0
_FIRST_S, _LAST_S = -2_208_988_800.0, 4_133_980_800.0  # 1900 and 2101: the range of numbers that spell dates
EARLY_S = 788_918_400.0  # 1995: event logs are rarely older
_MOST = 0.9  # share of a column's numbers that an interpretation must fit
#: Number of digits of a number that spells a date -> digits of its year, month, day, hour, minute, second, fraction.
_SPELT = {
    4: (4,),
    6: (4, 2),
    8: (4, 2, 2),
    10: (4, 2, 2, 2),
    12: (4, 2, 2, 2, 2),
    14: (4, 2, 2, 2, 2, 2),
    17: (4, 2, 2, 2, 2, 2, 3),
}
_LAYOUT = ("YYYY", "MM", "DD", "hh", "mm", "ss", "fff")
_OTHER_SPELLINGS = ("%d%m%Y", "%m%d%Y", "%y%m%d", "%d%m%y", "%m%d%y")  # read only if data.time_format is set
_DIGITS = {"Y": 4, "j": 3, "f": 6} | dict.fromkeys("mdHMSyI", 2)  # number of digits by directive of strptime
_SINCE_1970 = ("epoch_s", "epoch_ms", "epoch_us", "epoch_ns")
_SCIENTIFIC = r"^[0-9][.,]([0-9]+)[eE]\+?(?:0?9|1[0-9])$"
_FEW_DIGITS = 5  # after the point, as spreadsheets and %g show them
# Days that programs write for "unknown": epochs of databases and languages, and the limits of their calendars.
_PLACEHOLDERS = np.array(
    [
        *("0001-01-01", "1601-01-01", "1677-09-21", "1753-01-01", "1899-12-30", "1899-12-31", "1900-01-01"),
        *("1901-12-13", "1904-01-01", "1969-12-31", "1970-01-01", "2038-01-19", "2099-12-31", "2100-01-01"),
        *("2262-04-11", "2999-12-31", "3000-01-01", "9999-12-31"),
    ],
    dtype="datetime64[D]",
).astype(np.float64)

# Time zone -> hours ahead of UTC. Names that several zones share (IST, BST) are not read; CST and the like mean what
# RFC 2822 says.
_ZONES = dict.fromkeys(("", "z", "ut", "utc", "gmt", "wet"), 0) | {
    name: hours
    for hours, names in {
        -10: "hst",
        -9: "akst",
        -8: "pst akdt",
        -7: "mst pdt",
        -6: "cst mdt",
        -5: "est cdt",
        -4: "edt",
        1: "cet west",
        2: "cest eet",
        3: "eest msk",
        8: "awst sgt hkt",
        9: "jst kst",
        10: "aest",
        11: "aedt",
        12: "nzst",
        13: "nzdt",
    }.items()
    for name in names.split()
}
_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTHS = {name[:n]: i for i, name in enumerate(_MONTH_NAMES, 1) for n in (3, len(name))} | {"sept": 9}

_CLOCK = (
    r"(?P<h>\d{1,2})(?:[:.]?(?P<mi>\d{2})(?:[:.]?(?P<s>\d{2})(?:[.,:](?P<f>\d+))?)?)?(?: ?(?P<half>[ap])\.? ?m\b\.?)?"
)
_ZONE = r" ?(?P<zone>(?:[a-z_]+(?:/[a-z_]+)*)?(?:[+-]\d{1,2}(?::?\d{2})?)?)"
_REST = r"(?: ?\(.*\)|\[.*\]| [a-z]{3,5}(?: m=\S+)?)?"  # JavaScript, Java and Go repeat the zone's name
_MONTH = r"(?P<mon>[a-z]{3,9})\.?"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?"
_DATES = (
    r"(?P<y>\d{4})[-/.年] ?(?P<m>\d{1,2})(?:[-/.月] ?(?P<d>\d{1,2})日?)?",  # 2014-05-26
    r"(?P<a>\d{1,2})(?P<dot>[-/., ]) ?(?P<b>\d{1,2})[-/., ] ?(?P<y>\d{4}|\d{2})",  # 05/26/2014, 26.05.14, 02 26, 2014
    rf"{_DAY}[-/., ]{{0,2}}(?:of )?{_MONTH}[-/., ]{{0,2}}(?P<y>\d{{4}}|\d{{2}})",  # 26 May 2014, 01-Jan-95
    rf"{_MONTH}[-/ ]?{_DAY}[-/., ]{{1,2}}(?P<y>\d{{4}})",  # May 26, 2014
    rf"(?P<y>\d{{4}})[-/ ]{_MONTH}[-/ ]{_DAY}",  # 2014-May-26
    rf"{_MONTH}[-/, ]{{1,2}}(?P<y>\d{{4}})",  # May 2014
    r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})",  # 20140526T101112Z
)
_WEEKDAY = r"^\[?(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? )?"
_PATTERNS = [
    *(rf"{_WEEKDAY}{date}(?:(?:[t:_-]|,? (?:at )?){_CLOCK})?{_ZONE}{_REST}\]?$" for date in _DATES),
    rf"{_WEEKDAY}{_MONTH} {_DAY} {_CLOCK}{_ZONE} (?P<y>\d{{4}})$",  # Thu Mar 29 00:04:52 +0000 2012
]


def times(values: pd.Series, time_format: str = "auto", note: Note = ignore) -> tuple[np.ndarray, np.ndarray]:
    """Reads a column of numbers, dates or text as times.

    The column as a whole decides how its numbers are read (as which unit, or as digits that spell a date) and whether
    03/04/2014 is in March or in April, so that rows never contradict each other. In a column of numbers since 1970, a
    number that is a time of 1995 or later only in another unit, such as milliseconds among seconds, is read in that
    unit and counted. Numbers that spell dates in an ambiguous order of day, month and year (``26052014``) are read only
    with a ``time_format``. Dates without a time zone are UTC.

    Days that stand for "unknown" (1970-01-01, 1900-01-01, 9999-12-31) become NaN if they lie more than a year from
    every other time. All other times stay, however early or late.

    Args:
      values: The column.
      time_format: ``data.time_format``.
      note: Receives the findings on values that were recognised, repaired or doubted.

    Returns:
      float64 ``[R]``, seconds since 1970 (UTC), NaN: unknown; and bool ``[R]``, which cells cannot be read as a time.

    Raises:
      ConfigError: ``time_format`` is neither a unit nor a pattern that strptime reads.
    """
    if time_format not in ("auto", *TIME_UNITS) and "%" not in time_format:
        units = ", ".join(TIME_UNITS)
        raise ConfigError(f"data.time_format: expected auto, {units} or a strptime pattern, got {time_format!r}.")
    values = decoded(values)
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        seconds, bad = _seconds(values), np.zeros(len(values), dtype=bool)
    elif time_format in TIME_UNITS:
        plain, bad = numbers(values, note)
        seconds = _of_unit(_without_codes(plain, note), time_format)
    elif time_format != "auto":
        seconds, bad = _by_pattern(values, time_format, note)
    else:
        seconds, bad = _recognised(values, note)
    seconds = _without_placeholders(seconds, note)
    note(seconds > time.time() + _DAY_S, "the time lies in the future", "kept")
    note(seconds < _FIRST_S, "the time lies before 1900; if it is a date of another calendar, convert it", "kept")
    return seconds, bad


def _recognised(values: pd.Series, note: Note) -> tuple[np.ndarray, np.ndarray]:
    plain, bad = numbers(values, note)
    _note_rounded(values, note)
    if not bad.any():
        return _of_numbers(plain, note)
    codes, distinct = distinct_texts(values.where(bad))
    dates = spread(_of_texts(distinct, codes, note), codes)
    zero = spread(distinct.str.startswith("0000-00-00").to_numpy(dtype=np.float64), codes) == 1
    note(zero, "the date is 0000-00-00, which stands for 'unknown'", "repaired")
    among_dates = bool(np.isfinite(dates).any())
    seconds, no_time = _of_numbers(np.where(bad, np.nan, plain), note, among_dates)
    return np.where(bad, dates, seconds), np.where(bad, np.isnan(dates) & ~zero, no_time)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _of_numbers(plain: np.ndarray, note: Note, among_dates: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns seconds since 1970, and bool ``[R]``: which numbers should spell a date but do not.

    Args:
      plain: Float64 ``[R]``, NaN where there is no number.
      note: As in :func:`times`.
      among_dates: Whether the column also has dates as text, so that every number is reported.
    """
    plain = _without_codes(plain, note)
    given = ~np.isnan(plain) & (plain != 0)
    if not given.any():
        return plain, np.zeros(len(plain), dtype=bool)
    typical = float(np.median(np.abs(plain[given])))
    digits = len(str(int(typical)))
    if digits in _SPELT:
        spelt = _of_digits(plain, digits)
        if np.mean(((spelt >= _FIRST_S) & (spelt < _LAST_S) | _is_placeholder(spelt))[given]) >= _MOST:
            layout = "".join(_LAYOUT[: len(_SPELT[digits])])
            note(np.isfinite(spelt), f"the time is a number that spells a date ({layout}): read as one", "repaired")
            note(plain == 0, "the time is 0, which stands for 'unknown'", "repaired")
            return spelt, given & np.isnan(spelt)

    def plausible(unit: str) -> np.ndarray:
        seconds = _of_unit(plain, unit)
        return given & (seconds >= EARLY_S) & (seconds < time.time() + _YEAR_S)

    def fits(unit: str) -> bool:
        return plausible(unit).sum() >= _MOST * given.sum()

    # 1e11 is the year 5138 in seconds, but 1973 in milliseconds: the times of event logs lie in between.
    by_size = next(
        (u for u, top in (("epoch_s", 1e11), ("epoch_ms", 1e14), ("epoch_us", 1e17)) if typical < top), "epoch_ns"
    )
    unit = next(filter(fits, TIME_UNITS), by_size)
    name, per_second, _ = TIME_UNITS[unit]
    seconds = _of_unit(plain, unit)
    in_unit = given.copy()
    if unit in _SINCE_1970:  # a number is plausible in at most one of these units
        for other in _SINCE_1970:
            strays = plausible(other) & ~plausible(unit)
            what = f"the time is in {TIME_UNITS[other].name}, unlike the rest of the column: read in that unit"
            note(strays, f"{what}; data.time_format sets one unit for all", "repaired")
            seconds = np.where(strays, _of_unit(plain, other), seconds)
            in_unit &= ~strays
    if unit == "epoch_s" and (seconds[given] < EARLY_S).all() and _spells_otherwise(plain[given]):
        return np.full(len(plain), np.nan), given
    if unit != "epoch_s":
        how = f"divided by {per_second:g}" if per_second > 1 else f"multiplied by {1 / per_second:g}"
        note(in_unit, f"the time is in {name}: {how}", "repaired")
    elif among_dates:
        note(in_unit, f"the time is a number among dates: read as {name}", "kept")
    early = given & (seconds < EARLY_S)
    note(early, f"the time lies before 1995 if it is in {name}; set data.time_format if it is not", "kept")
    return seconds, np.zeros(len(plain), dtype=bool)


def _of_unit(plain: np.ndarray, unit: str) -> np.ndarray:
    return np.round(plain / TIME_UNITS[unit].per_second, 6) + TIME_UNITS[unit].zero_s


def _without_codes(plain: np.ndarray, note: Note) -> np.ndarray:
    """Sets codes for "unknown" to NaN: -1 if no other number is negative, and numbers beyond the range of int64."""
    edge = np.abs(plain) >= 2.0**63
    codes = edge | (plain == -1) if not ((plain < 0) & ~edge & (plain != -1)).any() else edge
    if codes.any():
        note(codes, f"the time is {plain[codes][0]:.0f}, which stands for 'unknown'", "repaired")
    return np.where(codes, np.nan, plain)


def _spells_otherwise(plain: np.ndarray) -> bool:
    """Returns whether nearly all of several distinct numbers are dates in one of :data:`_OTHER_SPELLINGS`."""
    distinct = pd.Series(np.unique(plain))
    if len(distinct) < 2 or (distinct % 1 != 0).any() or not distinct.between(1e4, 1e8).all():
        return False
    texts = distinct.astype(np.int64).astype("str")

    def share(pattern: str) -> float:
        dates = pd.to_datetime(_padded(texts, pattern), format=pattern, errors="coerce", utc=True)
        return float(dates.between("1995-01-01", pd.Timestamp.now("UTC") + pd.Timedelta(days=366)).mean())

    return any(share(pattern) >= _MOST for pattern in _OTHER_SPELLINGS)


def _padded(texts: pd.Series, pattern: str) -> pd.Series:
    """Adds the leading zeros that numbers lack to texts of digits, for a pattern such as ``%d%m%Y``."""
    directives = re.fullmatch("(?:%[YjfmdHMSyI])+", pattern)
    return texts.str.zfill(sum(_DIGITS[letter] for letter in pattern[1::2])) if directives else texts


def _note_rounded(values: pd.Series, note: Note) -> None:
    """Reports numbers that a spreadsheet rounded to so few digits (``1.40106E+12``) that different times became one."""
    if not isinstance(values.dtype, pd.StringDtype) and values.dtype != object:
        return
    codes, distinct = distinct_texts(values)
    shown = distinct.str.extract(_SCIENTIFIC)[0].str.len()
    if not shown.max() <= _FEW_DIGITS:  # the shortest exact form, as in Java, has more if needed
        return
    what = (
        "the time is a number rounded to a few digits, as spreadsheets show it: different times have become one, and "
        "the order of events is lost. Export the column as text or as whole numbers"
    )
    note(spread(shown.notna().to_numpy(np.float64), codes) == 1, what, "doubted")


def _of_digits(plain: np.ndarray, digits: int) -> np.ndarray:
    """Converts numbers such as 20140526 to seconds; NaN for other lengths and for dates that do not exist."""
    whole = np.floor(plain) == plain
    rest = np.where(whole & (plain >= 10.0 ** (digits - 1)) & (plain < 10.0**digits), plain, np.nan)
    parts: list[np.ndarray] = []
    for width in reversed(_SPELT[digits]):
        parts.insert(0, np.mod(rest, 10.0**width))
        rest = np.floor(rest / 10.0**width)
    first = [np.full(len(plain), value) for value in (1970.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)]
    year, month, day, hour, minute, second, milli = parts + first[len(parts) :]
    return _moment(year, month, day, hour, minute, second + milli / 1000)


def _moment(
    year: np.ndarray, month: np.ndarray, day: np.ndarray, hour: np.ndarray, minute: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Converts parts of dates (float64 ``[R]`` each) to seconds since 1970; NaN for dates that do not exist."""
    known = np.isfinite(year + month + day + hour + minute + second)
    known &= (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1) & (minute < 60) & (second < 61)
    known &= (hour < 24) | ((hour == 24) & (minute == 0) & (second == 0))  # midnight at the end of the day, by ISO 8601
    months = np.where(known, (year - 1970) * 12 + month - 1, 0).astype(np.int64).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + np.where(known, day - 1, 0).astype(np.int64)
    known &= days.astype("datetime64[M]") == months  # False for 31 April
    seconds = days.astype(np.int64) * _DAY_S + hour * 3600 + minute * 60 + second
    return np.where(known, seconds, np.nan)


# --- Text -------------------------------------------------------------------------------------------------------------


def _by_pattern(values: pd.Series, pattern: str, note: Note) -> tuple[np.ndarray, np.ndarray]:
    codes, distinct = distinct_texts(values)
    unknown = spread((distinct.isin(["0", "-1"]) | distinct.str.startswith("0000-00-00")).to_numpy(float), codes) == 1
    note(unknown, "the time is 0, -1 or 0000-00-00, which stands for 'unknown'", "repaired")
    try:
        parsed = _seconds(pd.to_datetime(_padded(distinct, pattern), format=pattern, errors="coerce", utc=True))
    except ValueError as error:
        raise ConfigError(f"data.time_format: {pattern!r} is not a pattern that strptime can read: {error}.") from error
    seconds = spread(parsed, codes)
    return seconds, (codes >= 0) & np.isnan(seconds) & ~unknown


def _of_texts(texts: pd.Series, codes: np.ndarray, note: Note) -> np.ndarray:
    """Converts dates in text to seconds, NaN for other texts; ``codes`` maps each row of the column to its text."""
    seconds = np.full(len(texts), np.nan)

    def tell(rows: np.ndarray, what: str) -> None:
        told = np.zeros(len(texts))
        told[rows] = 1
        note(spread(told, codes) == 1, what, "kept")

    left = pc.utf8_lower(pc.replace_substring_regex(pa.array(texts, pa.string()), r"[\s\x{a0}\x{202f}]+", " "))
    rows = np.arange(len(texts))
    for pattern in _PATTERNS:
        found = pc.extract_regex(left, pattern)
        fits = pc.is_valid(found)
        fitting = fits.to_numpy(zero_copy_only=False)
        if fitting.any():
            seconds[rows[fitting]] = _of_fields(found.filter(fits), rows[fitting], tell)
            left, rows = left.filter(pc.invert(fits)), rows[~fitting]
        if not len(rows):
            break
    return seconds


def _of_fields(found: pa.StructArray, rows: np.ndarray, tell: Callable[[np.ndarray, str], None]) -> np.ndarray:
    """Converts the parts that a pattern found to seconds; NaN for dates that do not exist and unknown time zones."""
    names = [field.name for field in found.type]

    def field(name: str) -> pa.Array:
        return found.field(name) if name in names else pa.array(np.full(len(rows), ""))

    def number(name: str, default: float, prefix: str = "") -> np.ndarray:
        digits = field(name)
        filled = pc.if_else(pc.equal(digits, ""), str(default), pc.binary_join_element_wise(prefix, digits, ""))
        return filled.cast(pa.float64()).to_numpy()

    def coded(name: str, meaning: Callable[[str], float]) -> np.ndarray:
        encoded = field(name).dictionary_encode()
        return np.array([meaning(v) for v in encoded.dictionary.to_pylist()])[encoded.indices.to_numpy()]

    year, month, day = number("y", 0), number("m", 1), number("d", 1)
    if "mon" in names:
        month = coded("mon", lambda name: _MONTHS.get(name, np.nan))
    if "a" in names:
        month, day = _month_and_day(number("a", 0), number("b", 0), field("dot"), rows, tell)
    short = pc.equal(pc.utf8_length(field("y")), 2).to_numpy(zero_copy_only=False)
    tell(rows[short], "the year has two digits: 69 to 99 were read as 1969 to 1999, 00 to 68 as 2000 to 2068")
    year = np.where(short, year + np.where(year < 69, 2000, 1900), year)
    hour = number("h", 0)
    half = coded("half", lambda letter: {"": np.nan, "a": 0.0, "p": 12.0}[letter])
    wrong = np.isfinite(half) & ((hour < 1) | (hour > 12))
    hour = np.where(wrong, np.nan, np.where(np.isnan(half), hour, hour % 12 + half))
    seconds = _moment(year, month, day, hour, number("mi", 0), number("s", 0) + number("f", 0, prefix="0."))

    on_clock, zones = seconds.copy(), field("zone").dictionary_encode()
    for code, zone in enumerate(zones.dictionary.to_pylist()):
        here = zones.indices.to_numpy() == code
        seconds[here], said = _to_utc(on_clock[here], zone)
        if said:
            tell(rows[here], said)
    if (np.abs(seconds - on_clock) > 0).any():
        without = pc.equal(field("zone"), "").to_numpy(zero_copy_only=False)
        tell(rows[without], "the time has no time zone, unlike others of the column: read as UTC")
    return seconds


def _month_and_day(
    first: np.ndarray, second: np.ndarray, dots: pa.Array, rows: np.ndarray, tell: Callable[[np.ndarray, str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns months and days of dates such as 03/04/2014, by one decision for all of them.

    The decision is reported if it matters for any date.
    """
    day_first, month_first = int((first > 12).sum()), int((second > 12).sum())
    dotted = pc.equal(dots, ".").to_numpy(zero_copy_only=False).all()
    takes_day_first = day_first > month_first or (day_first == month_first and dotted)
    taken, other, pattern = ("day", "month", "%m/%d/%Y") if takes_day_first else ("month", "day", "%d/%m/%Y")
    if max(day_first, month_first):
        why = f"{max(day_first, month_first):,} distinct dates of the column fit no other way"
    elif dotted:
        why = "neither number exceeds 12 in any row, and dates with dots usually are"
    else:
        why = "neither number exceeds 12 in any row, so that this is a guess"
    unclear = (first <= 12) & (second <= 12) & (first != second)
    what = f"day and month cannot be told apart: read with the {taken} first ({why}); "
    tell(rows[unclear], what + f"if the {other} comes first, set data.time_format, such as {pattern}")
    return (second, first) if takes_day_first else (first, second)


def _to_utc(local: np.ndarray, zone: str) -> tuple[np.ndarray, str]:
    """Converts seconds on the clock of a time zone to UTC; NaN if the zone is unknown.

    Returns:
      The seconds, and a message to report, or ``""``.
    """
    name, offset = re.fullmatch(r"(.*?)([+-][0-9:]+)?", zone).groups()  # type: ignore[union-attr]
    if offset:
        digits = offset[1:].replace(":", "")
        hours, minutes = (int(digits[:-2]), int(digits[-2:])) if len(digits) > 2 else (int(digits), 0)
        if _ZONES.get(name) != 0:
            return np.full_like(local, np.nan), ""
        return local - (hours * 3600 + minutes * 60) * (-1 if offset[0] == "-" else 1), ""
    if name in _ZONES:
        hours = _ZONES[name]
        return local - hours * 3600, f"the time zone {name.upper()} was read as UTC{hours:+d}" if hours else ""
    known = {key.lower(): key for key in zoneinfo.available_timezones() if "/" in key}
    if name not in known:
        return np.full_like(local, np.nan), ""
    clock = pd.DatetimeIndex(np.where(np.isnan(local), np.nan, local * 1e6).astype("datetime64[us]"))
    utc = clock.tz_localize(known[name], ambiguous=np.ones(len(clock), bool), nonexistent="shift_forward")
    return _seconds(pd.Series(utc)), ""


# --- All --------------------------------------------------------------------------------------------------------------


def _seconds(dates: pd.Series) -> np.ndarray:
    micros = pd.to_datetime(dates, utc=True).dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    return np.where(np.isnat(micros), np.nan, micros.astype(np.int64) / 1e6)


def _is_placeholder(seconds: np.ndarray) -> np.ndarray:
    return np.isin(np.floor(seconds / _DAY_S), _PLACEHOLDERS)


def _without_placeholders(seconds: np.ndarray, note: Note) -> np.ndarray:
    """Sets days that stand for "unknown" to NaN if they are more than a year from every other time."""
    suspects = _is_placeholder(seconds)
    others = seconds[~suspects & ~np.isnan(seconds)]
    if not suspects.any() or not len(others):
        return seconds
    others = np.sort(others)
    after = np.searchsorted(others, seconds).clip(max=len(others) - 1)
    gap = np.minimum(np.abs(others[after] - seconds), np.abs(others[(after - 1).clip(min=0)] - seconds))
    alone = suspects & (gap > _YEAR_S)
    for day in np.unique(np.floor(seconds[alone] / _DAY_S)):
        date = np.datetime64(int(day), "D")
        rows = alone & (np.floor(seconds / _DAY_S) == day)
        note(rows, f"the date is {date}, far from all others: it stands for 'unknown'", "repaired")
    return np.where(alone, np.nan, seconds)

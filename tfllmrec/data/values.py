"""From cells of any type to strings, numbers and times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import TIMESTAMP
from tfllmrec.data.findings import Action

# Spellings of "nothing" that exports leave behind. "NA" is one only where a number belongs: it can be an id or a title.
MISSING = ["", "nan", "NaN", "null", "NULL", "None", "\\N"]
MISSING_NUMBER = [*MISSING, "NA", "N/A"]
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
    missing = np.append(texts.isin(MISSING_NUMBER).to_numpy(), True)
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

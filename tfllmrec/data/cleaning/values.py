"""Converts cells of any type to strings and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tfllmrec.data.findings import Action

#: Spellings of a missing value in exported files.
MISSING = ["", "nan", "NaN", "null", "NULL", "None", "\\N", "<NA>", "#N/A"]
#: Spellings of a missing value that can also be ids, or titles of films, songs and books; compared without case.
WORDS_FOR_NOTHING = (
    "none", "null", "nan", "nil", "na", "n/a", "#n/a", "n.a.", "undefined", "unknown", "untitled", "-", "--", "?",
    "tbd", "tba", "no title", "no description", "not available", "not found",
)  # fmt: skip
#: Spellings of a missing number, time or vector; compared without case.
NO_NUMBER = frozenset(["", "\\n", "<na>", "nat", *WORDS_FOR_NOTHING])
_ROW_NUMBER = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # names that pandas gives to an unnamed index
_SCALAR = re.compile(r"\b(?:np|numpy)\.(?:str|bytes|bool|u?int|float)[0-9]*_?\(((?:'[^']*'|\"[^\"]*\"|[^()'\"])*)\)")
_ARRAY = re.compile(
    r"(?:\w+\.)?(?:array|tensor|list|tuple|deque|Index)\((\[.*\]|\(.*\))(?:,\s*\w+=[^()\[\]]*)?\)", re.DOTALL
)
_GROUP_MARKS = "'’ \u00a0\u202f"  # separators of thousands other than the comma and the dot
# How locales write numbers: name, example, pattern, separators of thousands, decimal mark.
_LOCALES = (
    (
        "thousands separated by commas",
        "1,234.5",
        rf"[+-]?(?:[1-9][0-9]{{0,2}}(?:[,{_GROUP_MARKS}][0-9]{{2,3}})*[,{_GROUP_MARKS}][0-9]{{3}}|[0-9]+)(?:\.[0-9]+)?",
        f"[,{_GROUP_MARKS}]",
        ".",
    ),
    (
        "a decimal comma",
        "4,5",
        rf"[+-]?(?:[1-9][0-9]{{0,2}}(?:[.{_GROUP_MARKS}][0-9]{{3}})+|[0-9]+)(?:,[0-9]+)?",
        f"[.{_GROUP_MARKS}]",
        ",",
    ),
)

#: Receives a finding: the rows concerned (bool ``[R]``), a description, and the action.
Note = Callable[[np.ndarray, str, Action], object]


def ignore(rows: np.ndarray, what: str, action: Action) -> None:
    """Discards a finding; a :data:`Note`."""


def as_text(value: Any, separator: str = ", ") -> str:
    """Converts any value to a string: ``""`` for a missing one, ``7`` for ``7.0``, lists joined, mappings as JSON."""
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
        if {*map(type, value)} == {float}:  # vectors are long
            return separator.join([str(int(v)) if v.is_integer() else repr(v) for v in value if v == v])
        return separator.join(filter(None, (as_text(v, separator).strip() for v in value)))
    if isinstance(value, dict):
        return as_text(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))
    if isinstance(value, Decimal) and value.is_finite():
        return str(int(value)) if value == value.to_integral_value() else format(value, "f")
    if isinstance(value, (float, np.floating)) and value == np.floor(value) and np.isfinite(value):
        return str(int(value))
    return str(value)


def without_calls(text: str) -> str:
    """Removes from ``text`` the calls that Python prints around values of other libraries.

    >>> without_calls("[np.int64(1), np.str_('a')]"), without_calls("tensor([1, 2], device='cuda:0')")
    ("[1, 'a']", '[1, 2]')
    """
    if "(" not in text:
        return text
    text = _SCALAR.sub(r"\1", text)
    return array.group(1) if (array := _ARRAY.fullmatch(text.strip())) else text


def decoded(values: pd.Series) -> pd.Series:
    """Undoes dictionary encoding, and converts nested Arrow values and Arrow decimals to Python objects.

    The conversions of pandas are not used: they convert integers next to a missing value to float64, which is exact
    only up to 2**53.
    """
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categories = np.array([*decoded(pd.Series(dtype.categories)), None], dtype=object)
        return pd.Series(categories[values.cat.codes], index=values.index, dtype=object)
    if isinstance(dtype, pd.ArrowDtype):
        arrow = dtype.pyarrow_dtype
        if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
            return values.astype("str")
        if pa.types.is_dictionary(arrow) or pa.types.is_nested(arrow) or pa.types.is_decimal(arrow):
            cells = np.empty(len(values), dtype=object)
            cells[:] = pa.array(values).to_pylist()
            return pd.Series(cells, index=values.index, dtype=object)
    return values


def strings(values: pd.Series, separator: str = ", ") -> pd.Series:
    """Converts any column to stripped strings, ``""`` for a missing value; integers of every type keep all digits."""
    values = decoded(values)
    if isinstance(values.dtype, pd.StringDtype):
        return values.fillna("").str.strip()
    if pd.api.types.is_integer_dtype(values.dtype):
        return values.astype("str").fillna("")
    plain = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
    return pd.Series([as_text(v, separator) for v in plain], index=values.index, dtype="str").str.strip()


def numbers(values: pd.Series, note: Note = ignore) -> tuple[np.ndarray, np.ndarray]:
    """Converts any column to numbers.

    Text with a decimal comma (``4,5``, ``1.234,5``) or commas between thousands (``1,234.5``) is read, too. The column
    as a whole decides: the notation that fits most distinct cells is used for every cell, and plain numbers win a tie.
    ``1,234`` fits both notations; if nothing else in the column decides, it is 1234.

    Args:
      values: The column.
      note: Receives the cells that are not plain numbers, and how they were read.

    Returns:
      float64 ``[R]``, NaN: missing or not a number; and bool ``[R]``, which cells have a value but no finite number.
    """
    values = decoded(values)
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        plain = values.to_numpy(dtype=np.float64, na_value=np.nan)
        return plain, np.isinf(plain)
    codes, distinct = distinct_texts(values)
    parsed = best = pd.to_numeric(distinct, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    written = ""
    for name, example, pattern, group_mark, decimal_mark in _LOCALES if np.isnan(parsed).any() else ():
        fits = distinct.str.fullmatch(pattern)
        if fits.sum() > np.isfinite(best).sum():
            texts = distinct.where(fits).str.replace(group_mark, "", regex=True)
            texts = texts.str.replace(decimal_mark, ".", regex=False)
            best = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            written = f"a number with {name} (as in {example})"
    note(spread(np.where(np.isfinite(best) & (best != parsed), 1.0, 0.0), codes) == 1, written, "repaired")
    plain = spread(best, codes)
    return plain, (codes >= 0) & ~np.isfinite(plain)


def distinct_texts(values: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Returns codes ``[R]`` (-1: missing) that index the distinct strings, and these, so that each is parsed once."""
    codes, found = pd.factorize(strings(values))
    distinct = pd.Series(found, dtype="str")
    there = ~distinct.str.lower().isin(NO_NUMBER).to_numpy(dtype=bool)
    return np.where(there, np.cumsum(there) - 1, -1)[codes], distinct[there].reset_index(drop=True)


def spread(parsed: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the value of each row from the values of the distinct strings; NaN for a missing cell."""
    return np.append(parsed, np.nan)[codes]  # code -1 selects the NaN at the end


def is_row_number(name: str, values: pd.Series) -> bool:
    """Returns whether a column is an index that pandas wrote: it has no name of its own, and distinct integers."""
    if not _ROW_NUMBER.fullmatch(name):
        return False
    text = strings(values)
    return bool(text.is_unique and text.str.fullmatch("[0-9]+").all())

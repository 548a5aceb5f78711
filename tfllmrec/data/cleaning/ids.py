"""Reads ids from cells of any type, including integers that a program wrote as floats, and cells with lists of ids."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM, ORDER, RATING, TIMESTAMP, USER
from tfllmrec.data.cleaning.values import MISSING, decoded, spread, strings, without_calls
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.findings import Finding
from tfllmrec.errors import DataError

_EXACT = 2.0**53  # float64 represents every integer below this exactly
_DECIMAL = r"-?[0-9]+\.[0-9]*"
# Programs print floats with a fraction or a plus sign; 12E4 may be a name.
_SCIENTIFIC = r"-?[0-9](?:[.,]([0-9]+)[eE]\+?|[eE]\+)([0-9]{1,3})"
_LISTS, _OPEN, _CLOSE = (list, tuple, set, np.ndarray), ("[", "(", "{"), ("]", ")", "}")
_LIST_TEXT = re.compile(r"\s*(?:[\[({]|(?:\w+\.)?(?:array|tensor|list|tuple|deque|Index)\()")
_BARE = re.compile(r"\[(.*)\]|\{([^:=]*)\}", re.DOTALL)  # PostgreSQL writes the braces
_BARE_ITEM = re.compile(r'"(?:[^"\\]|\\.)*"|[^,]+')
_JOINTS = ("|", ";", ",", "^", "\x02", " ")  # Hive joins items by the control character
# NumPy prints an array without commas, and a long one with an ellipsis.
_NUMPY_ITEM = r"'[^']*'|\"[^\"]*\"|-?[0-9]+|\.\.\."
_NUMPY_LIST = re.compile(rf"\[\s*(?:{_NUMPY_ITEM})(?:\s+(?:{_NUMPY_ITEM}))*\s*\]")


@dataclass(frozen=True)
class Ids:
    """A column of ids, and bool ``[R]`` masks of the ids that were changed or may be wrong.

    Attributes:
      text: Str ``[R]``, the ids; ``""`` for an empty cell. Words such as "null" stay.
      written_as_float: Integers that a program wrote as floats (``16.0``, ``1e+05``); ``text`` holds the integers.
      inexact: Floats so large, or printed with so few digits, that several ids may have become one.
      fractional: Numbers with a fraction.
      zero_padded: Ids with leading zeros that the column also has without these zeros.
      of_other_case: Ids that differ from another id only in upper and lower case.
      look_alike: Ids that differ from another id only in the Unicode form or in invisible characters; never ASCII.
      of_two_types: Text that the column also has as a number.
    """

    text: pd.Series
    written_as_float: np.ndarray
    inexact: np.ndarray
    fractional: np.ndarray
    zero_padded: np.ndarray
    of_other_case: np.ndarray
    look_alike: np.ndarray
    of_two_types: np.ndarray


def clean_ids(values: pd.Series) -> Ids:
    """Reads a column of any type as ids.

    Integers keep all their digits. A float that is an integer becomes that integer. So does text such as ``16.0``,
    unless text with a fraction (``7.5``) in the same column shows that the part after the dot is significant.
    """
    values = decoded(values)
    floats, limit, is_text = _floats(values)
    typed = ~np.isnan(floats)
    text = strings(values)
    codes, distinct = pd.factorize(text.mask(text.isin(MISSING)))
    texts = pd.Series(distinct, dtype="str")
    integers, is_whole, is_inexact, is_fractional = _float_texts(texts)

    def rows(of_texts: np.ndarray) -> np.ndarray:
        return spread(of_texts.astype(np.float64), codes) == 1

    whole = ~typed & rows(is_whole)
    fractional = rows(is_fractional)
    if (fractional & ~typed).any():
        whole[:] = False
    elif whole.any():
        text = text.mask(whole, pd.Series(np.append(integers, "")[codes], index=text.index, dtype="str"))
    inexact = (typed & (np.abs(floats) >= limit)) | (~typed & rows(is_inexact))
    padded = texts.str.fullmatch("0[0-9]+").to_numpy(bool, copy=True)
    if padded.any():
        known = set(texts)
        padded[padded] = [(t.lstrip("0") or "0") in known for t in texts[padded]]
    of_two_types = is_text & (codes >= 0)
    if of_two_types.any():
        of_two_types &= np.isin(codes, codes[~is_text])
    written_as_float = (whole | (typed & (floats == np.floor(floats)))) & ~inexact
    lower = texts.str.lower()
    of_other_case = rows(lower.isin(lower[lower.duplicated()]).to_numpy(bool))
    look_alike = rows(_look_alike(texts))
    return Ids(text, written_as_float, inexact, fractional, rows(padded), of_other_case, look_alike, of_two_types)


def _look_alike(texts: pd.Series) -> np.ndarray:
    """Returns which of the distinct texts are not ASCII and have the same :func:`usual_form` as another one."""
    found = ~texts.map(str.isascii).to_numpy(bool)
    if found.any():
        plain = texts.where(~found, texts.map(usual_form))
        found &= plain.isin(plain[plain.duplicated()]).to_numpy(bool)
    return found


def usual_form(text: str) -> str:
    """Returns ``text`` in the usual Unicode form (NFKC), without invisible characters such as a zero-width space.

    Full-width letters and ligatures become plain ones.
    """
    composed = unicodedata.normalize("NFKC", text)
    return "".join(c for c in composed if unicodedata.category(c) != "Cf").strip()


def _floats(values: pd.Series) -> tuple[np.ndarray, float, np.ndarray]:
    """Finds floats and text in a column.

    Returns:
      The floats, float64 ``[R]``, NaN for other cells; the size from which they are inexact; and bool ``[R]``, which
      cells are text, all False if every cell is.
    """
    nowhere = np.zeros(len(values), dtype=bool)
    if values.dtype == object:
        floats = [v if isinstance(v, (float, np.floating)) else np.nan for v in values]
        is_text = np.array([isinstance(v, str) for v in values], dtype=bool)
        return np.array(floats, dtype=np.float64), _EXACT, nowhere if is_text.all() else is_text
    if values.dtype.kind == "f":
        exponent = np.finfo(getattr(values.dtype, "numpy_dtype", values.dtype)).nmant + 1
        return values.to_numpy(dtype=np.float64, na_value=np.nan), 2.0**exponent, nowhere
    return np.full(len(values), np.nan), _EXACT, nowhere


def _float_texts(texts: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns distinct texts as integers (object), and which texts are whole, inexact or fractional floats (bool)."""
    scientific = texts.str.fullmatch(_SCIENTIFIC).to_numpy(bool)
    is_float = scientific | texts.str.fullmatch(_DECIMAL).to_numpy(bool)
    size = np.zeros(len(texts))
    size[is_float] = pd.to_numeric(texts[is_float].str.replace(",", ".", regex=False)).abs()
    whole = is_float & (size == np.floor(size))
    inexact = whole & (size >= _EXACT)
    integers = texts.str.replace(r"\..*", "", regex=True).to_numpy(dtype=object)
    if scientific.any():
        parts = texts[scientific].str.extract(_SCIENTIFIC)
        shown = parts[0].fillna("").str.len().to_numpy()
        exponent = pd.to_numeric(parts[1]).to_numpy()
        # If the program prints more digits elsewhere, missing digits are zeros that it left out (R: 1e+05).
        most = max(texts[texts.str.fullmatch("-?[0-9]+")].str.lstrip("-").str.len().max(), 1 + shown.max())
        inexact[scientific] |= (exponent > shown) & ~((1 + shown < most) & (exponent <= most))
        inexact &= whole
        integers[scientific] = strings(pd.to_numeric(texts[scientific].str.replace(",", ".", regex=False)))
    return integers, whole, inexact, is_float & ~whole


# --- Lists ------------------------------------------------------------------------------------------------------------


def lists(values: pd.Series) -> np.ndarray | None:
    """Returns the lists in a column (object ``[R]``, None for a cell without one), or None if the column has no list.

    Text is a list if it is a JSON or Python list, or a NumPy array as NumPy prints it. ``[a, b]``, without quotation
    marks, and PostgreSQL's ``{a,b}`` are lists only if every filled cell of the column is a list or has such brackets,
    and at least one cell with such brackets has a comma.
    """
    values = decoded(values)
    if isinstance(values.dtype, pd.StringDtype):
        possible = values.fillna("").str.match(_LIST_TEXT).to_numpy(bool)
    elif values.dtype == object:
        possible = np.array(
            [isinstance(v, _LISTS) or (isinstance(v, str) and bool(_LIST_TEXT.match(v))) for v in values]
        )
    else:
        return None
    if not possible.any():
        return None
    cells, found = values.to_numpy(dtype=object), np.full(len(values), None, dtype=object)
    bare: dict[int, list] = {}
    for row in np.flatnonzero(possible).tolist():
        found[row] = _as_list(cells[row])
        if found[row] is None and (inner := _BARE.fullmatch(cells[row].strip())):
            bare[row] = [
                part.strip(" \t\r\n'\"") for part in _BARE_ITEM.findall(inner.group(1) or inner.group(2) or "")
            ]
    n_lists = sum(cell is not None for cell in found)
    every_cell = len(bare) + n_lists == (~strings(values).isin(MISSING)).sum()
    if every_cell and any(len(parts) > 1 for parts in bare.values()):
        for row, parts in bare.items():
            found[row] = parts
        n_lists += len(bare)
    return found if n_lists else None


def _as_list(cell: Any) -> list | None:
    if isinstance(cell, np.ndarray):
        return cell.tolist()
    if not isinstance(cell, str):
        return list(cell)
    cell = without_calls(cell)
    if _NUMPY_LIST.fullmatch(cell.strip()):
        return [part.strip("'\"") for part in re.findall(_NUMPY_ITEM, cell)]
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(value) if isinstance(value, (list, tuple)) else None
    return None


def _joined(values: pd.Series) -> tuple[np.ndarray, str] | None:
    """Returns the lists in a text column whose items are joined by a separator (``a|b|c``), and the separator, or None.

    A separator joins items if most distinct cells contain it, the number of items varies, and at least half of the
    recurring items occur at different positions, unlike the parts of a composite id such as ``shop|product``. Items
    must not contain spaces. If spaces join the items or surround the separator, each item must contain a digit, unlike
    the words of a title.
    """
    values = decoded(values)
    if values.dtype != object and not isinstance(values.dtype, pd.StringDtype):
        return None
    if not strings(values.head(1000)).str.contains(f"[{''.join(_JOINTS)}]").any():
        return None
    text = strings(values)
    distinct = pd.Series(text[~text.isin(MISSING)].unique(), dtype="str")
    for joint in _JOINTS:
        if not len(distinct) or distinct.str.contains(joint, regex=False).mean() <= 0.5:
            continue
        spaced = distinct.str.contains(r"\s").any()
        if joint == "," and distinct.str.fullmatch("[0-9]{1,3}(?:,[0-9]{3})*").all():  # commas between thousands
            continue
        lengths = set()
        places: dict[str, set[int]] = {}
        cells_with: Counter[str] = Counter()
        for cell in distinct:
            parts = _parts(cell, joint)
            lengths.add(len(parts))
            cells_with.update(set(parts))
            for place, part in enumerate(parts):
                places.setdefault(part, set()).add(place)
        recurring = [part for part, count in cells_with.items() if count > 1]
        moving = sum(len(places[part]) > 1 for part in recurring)
        are_ids = not spaced or all(re.fullmatch(r"\S*\d\S*", part) for part in places)
        if len(lengths) > 1 and recurring and 2 * moving >= len(recurring) and are_ids and "" not in places:
            found = np.full(len(text), None, dtype=object)
            for row, cell in enumerate(text):
                if joint in cell:
                    found[row] = _parts(cell, joint)
            return found, joint
    return None


def _parts(cell: str, joint: str) -> list[str]:
    return cell.split() if joint == " " else [part.strip() for part in cell.strip(joint).split(joint)]


def _joined_numbers(texts: pd.Series, joint: str, is_list: np.ndarray) -> np.ndarray | None:
    """Returns the numbers joined by ``joint`` in the rows of lists (object ``[R]``, None elsewhere).

    Returns None if any of these rows holds something other than numbers, or if none of them contains ``joint``.
    """
    numbers = rf"-?[0-9]+(?:\.[0-9]+)?(?:\s*{re.escape(joint)}\s*-?[0-9]+(?:\.[0-9]+)?)*"
    if not texts[is_list].str.fullmatch(numbers).all() or not texts[is_list].str.contains(joint, regex=False).any():
        return None
    cells = np.full(len(texts), None, dtype=object)
    for row in np.flatnonzero(is_list & texts.str.contains(joint, regex=False).to_numpy(bool)).tolist():
        cells[row] = _parts(texts.iloc[row], joint)
    return cells


def _refuse_labels(found: np.ndarray, raw: RawTable) -> None:
    """Raises DataError for impressions in the format of MIND, ``N1-0 N2-1``, where a label follows each item."""
    items = [item for cell in found if cell is not None for item in cell]
    if {item[-2:] for item in items} == {"-0", "-1"}:
        row = next(row for row, cell in enumerate(found) if cell is not None)
        raise DataError(
            f"{raw.example(row, ITEM)}: expected a list of ids, found items that end in -0 and -1, which seem to be "
            "labels (1: the user clicked). Keep the clicked items, without the labels."
        )


def one_event_per_item(raw: RawTable) -> tuple[RawTable, np.ndarray]:
    """Splits each row whose item is a list into one row for each item, in the order of the list.

    Lists of the same length in another column (ratings, times) are split in the same way; all other cells are repeated.
    Rows with an empty or a truncated list are dropped; those with a truncated list count as unreadable.

    Returns:
      The table, and int64 ``[R]``: for each of its rows, the row of ``raw`` that it comes from.

    Raises:
      DataError: An item of a list is not an id, or a list of ratings, times or orders has another length.
    """
    found, joint, how = lists(raw.frame[ITEM]), "", ""
    cut_off = np.zeros(len(raw.frame), dtype=bool)
    if found is not None:
        texts = [str(cell).strip() for cell in raw.frame[ITEM]]
        cut_off = np.array(
            [f is None and t[:1] in _OPEN and t[-1:] not in _CLOSE for f, t in zip(found, texts, strict=True)],
            dtype=bool,
        )
        for row in np.flatnonzero(cut_off).tolist():
            found[row] = []
    elif (joined := _joined(raw.frame[ITEM])) is not None:
        found, joint = joined
        how = f" (its items are joined by {joint!r}; if that belongs to the ids, replace it by another character)"
        _refuse_labels(found, raw)
    if found is None:
        return raw, np.arange(len(raw.frame))
    is_list = np.array([cell is not None for cell in found]) & ~cut_off
    for row in np.flatnonzero(is_list).tolist():
        wrong = next((repr(v) for v in found[row] if isinstance(v, (*_LISTS, dict)) or v == "..."), None)
        cell = raw.frame[ITEM].iloc[row]
        is_set = isinstance(cell, set) or (isinstance(cell, str) and cell.lstrip().startswith("{'"))
        wrong = "a set, which has no order" if is_set else wrong
        if wrong:
            raise DataError(
                f"{raw.example(row, ITEM)}: expected an id or a list of ids, found {wrong}. Write the ids alone, as a "
                "list or one in each row."
            )
    sizes = np.array([len(cell) if cell is not None else 1 for cell in found])
    source = np.repeat(np.arange(len(found)), sizes)
    frame = raw.frame.iloc[source].reset_index(drop=True)
    for column in raw.frame.columns.drop(USER, errors="ignore"):  # a list of users is refused later
        numeric = column in (RATING, TIMESTAMP, ORDER)
        cells = found if column == ITEM else lists(raw.frame[column])
        if cells is None and joint and numeric:
            cells = _joined_numbers(strings(raw.frame[column]), joint, is_list)
        if cells is None:
            continue
        differs = np.array([c is not None and len(c) != size for c, size in zip(cells, sizes, strict=True)])
        if differs.any() and numeric:
            row = int(differs.argmax())
            raise DataError(
                f"{raw.example(row, column)}: expected {sizes[row]} values, one for each item of the row's list, "
                f"found {len(cells[row])}. Give each item its own value, or the row a single one."
            )
        if not differs.any():
            values = zip(cells, raw.frame[column], sizes, strict=True)
            flat = [v for cell, value, size in values for v in ([value] * size if cell is None else cell)]
            frame[column] = pd.Series(flat, dtype=object)
    what = f"{ITEM} is a list: read as one event for each of its items, {sizes[is_list].sum():,} together{how}"
    findings = [Finding(raw.table, what, int(is_list.sum()), "repaired", raw.example(int(is_list.argmax()), ITEM))]
    reasons = {"an empty list of items": (sizes == 0) & ~cut_off, "a list of items that is cut off": cut_off}
    for reason, of_rows in reasons.items():
        if of_rows.any():
            example = raw.example(int(of_rows.argmax()), ITEM)
            findings.append(Finding(raw.table, reason, int(of_rows.sum()), "dropped", example))
    starts = np.searchsorted(source, [start for start, _ in raw.parts])
    exploded = replace(
        raw,
        frame=frame,
        rows=raw.rows[source],
        spans=np.ones_like(source),
        findings=(*raw.findings, *findings),
        unreadable=raw.unreadable + int(cut_off.sum()),
        parts=tuple((int(start), name) for start, (_, name) in zip(starts, raw.parts, strict=True)),
    )
    return exploded, source

"""Splits JSON into rows and fields: one object per line, or one array of objects."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM, USER
from tfllmrec.data.files.column_names import ALIASES, plain_name
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.files.size_limits import SizeMeter
from tfllmrec.data.findings import Finding
from tfllmrec.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_KEYS = {plain_name(alias) for column in (USER, ITEM) for alias in ALIASES[column]}
_ROWS_BETWEEN_CHECKS = 1 << 16


class _Columns:
    """Columns that grow row by row; a field that a row lacks is None."""

    def __init__(self, meter: SizeMeter, path: Path):
        self.meter, self.path = meter, path
        self.columns: dict[str, list] = {}
        self.rows: list[int] = []

    def append(self, row: int, record: dict) -> None:
        for name, value in record.items():
            column = self.columns.get(name)
            if column is None:
                self._check(len(self.columns) + 1)
                column = self.columns[name] = []
            if len(column) < len(self.rows):
                column.extend([None] * (len(self.rows) - len(column)))
            column.append(value)
        self.rows.append(row)
        if len(self.rows) % _ROWS_BETWEEN_CHECKS == 0:
            self._check(len(self.columns))

    def frame(self) -> pd.DataFrame:
        self._check(len(self.columns))
        for column in self.columns.values():
            column.extend([None] * (len(self.rows) - len(column)))
        return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in self.columns.items()})

    def _check(self, columns: int) -> None:
        self.meter.check_cells(len(self.rows), columns, self.path)


def read_json(path: Path, file: str, table: str, content: bytes, meter: SizeMeter, only: str | None = None) -> RawTable:
    """Reads JSON lines, or one JSON array of objects.

    MongoDB's ``{"$oid": "5f"}``, ``{"$date": ...}`` and the like become their values. Lines that are Python literals
    (as in the Amazon 2014 files) are read, too, and counted. Lines without an object are dropped and counted. If
    ``only`` is set, bare strings and numbers in place of objects are values of that column.

    Raises:
      DataError: There is no object, the array is broken, or a limit of the ``data`` section is exceeded.
    """
    columns = _Columns(meter, path)
    lost: list[tuple[int, str]] = []
    literals: list[int] = []
    blank: list[int] = []
    is_array = content.lstrip()[:1] == b"["
    is_extended = b'"$' in content
    rows = _array_elements(content, meter, path) if is_array else _lines(content, meter, path, blank, literals)
    for row, value, shown in rows:
        if only is not None and isinstance(value, str | int | float) and not isinstance(value, bool):
            value = {only: value}
        if isinstance(value, dict):
            columns.append(row, {name: _untyped(inner) for name, inner in value.items()} if is_extended else value)
        else:
            lost.append((row, shown))
    findings = []
    if lost:
        example = f"{file}:{lost[0][0]}, {lost[0][1]!r}"
        findings.append(Finding(table, "no JSON object", len(lost), "dropped", example))
    if blank:
        findings.append(Finding(table, "blank row", len(blank), "dropped", f"{file}:{blank[0]}"))
    if literals:
        what = "not JSON but a Python literal: read as one"
        findings.append(Finding(table, what, len(literals), "repaired", f"{file}:{literals[0]}"))
    if len(columns.rows) <= 1 and not is_array:
        _refuse_document(content, path)
    if not columns.rows:
        raise DataError(
            f"{path} contains no JSON object: expected one per line, or an array of them. "
            f"{findings[0] if findings else 'The array is empty.'}"
        )
    numbers = np.array(columns.rows, dtype=np.int64)
    return RawTable(
        table, file, columns.frame(), numbers, np.ones_like(numbers), findings=tuple(findings), unreadable=len(lost)
    )


def _refuse_document(content: bytes, path: Path) -> None:
    """Raises DataError if the file is a single object that holds the whole table."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    nested = {name for name, value in document.items() if isinstance(value, dict | list)}
    if any(plain_name(name) in _KEYS for name in document.keys() - nested):
        return  # a table with one row
    holders = [name for name, value in document.items() if _holds_records(value)]
    if holders:
        raise DataError(
            f"{path} is one JSON object, whose field {holders[0]!r} holds the rows: write that list alone, or one "
            "object on each line."
        )
    if document and len(nested) == len(document):
        raise DataError(
            f"{path} is one JSON object for the whole table, as pandas writes it by default: expected an object for "
            "each row. In pandas, write it with to_json(path, orient='records', lines=True)."
        )


def _holds_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _untyped(value: Any) -> Any:
    """Replaces typed values of MongoDB's Extended JSON by plain ones; dates in milliseconds become text."""
    if isinstance(value, list):
        return [_untyped(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {name: _untyped(inner) for name, inner in value.items()}
    ((name, inner),) = value.items()
    inner = _untyped(inner)
    is_number = isinstance(inner, int) or (isinstance(inner, str) and re.fullmatch("-?[0-9]{1,15}", inner))
    return str(np.datetime64(int(inner), "ms")) if name == "$date" and is_number else inner


def _lines(
    content: bytes, meter: SizeMeter, path: Path, blank: list[int], literals: list[int]
) -> Iterator[tuple[int, object, str]]:
    """Yields the number, value and beginning of each line that is not blank; the value of a broken line is None."""
    for row, line in enumerate(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=None), start=1):
        meter.add_rows(1, path)
        if not line.strip():
            blank.append(row)
            continue
        value: object = None
        try:
            value = json.loads(line)
        except RecursionError as error:
            raise _too_deep(meter, path, row) from error
        except ValueError:
            try:
                value = ast.literal_eval(line.strip())
                if isinstance(value, dict):
                    value = {str(name): inner for name, inner in value.items()}
                literals.append(row)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                pass
        if line.count("[") + line.count("{") + line.count("(") > meter.config.max_depth:
            _check_depth(value, meter, path, row)
        yield row, value, line.rstrip("\n")[:60]


def _array_elements(content: bytes, meter: SizeMeter, path: Path) -> Iterator[tuple[int, object, str]]:
    """Yields the number, value and beginning of each element of an array, one at a time to limit the memory."""
    text = content.decode()
    decode = json.JSONDecoder().raw_decode
    start = end = _after_space(text, text.index("[") + 1)
    row = 0
    try:
        closed = text.startswith("]", start)
        while not closed:
            row += 1
            value, end = decode(text, start)
            meter.add_rows(1, path)
            if text.count("[", start, end) + text.count("{", start, end) > meter.config.max_depth:
                _check_depth(value, meter, path, row)
            yield row, value, text[start : min(end, start + 60)]
            end = _after_space(text, end)
            closed = text.startswith("]", end)
            if not closed and not text.startswith(",", end):
                raise ValueError(f"expected ',' or ']', found {text[end : end + 20]!r}")
            start = _after_space(text, end + 1)
        if rest := text[text.index("]", end) + 1 :].strip():
            raise ValueError(f"expected the end of the file after ']', found {rest[:20]!r}")
    except RecursionError as error:
        raise _too_deep(meter, path, row) from error
    except ValueError as error:
        raise DataError(f"{path} begins as a JSON array but is not valid: element {row}: {error}.") from error


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _check_depth(value: object, meter: SizeMeter, path: Path, row: int) -> None:
    level = [value]
    for _ in range(meter.config.max_depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list, tuple))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise _too_deep(meter, path, row)


def _too_deep(meter: SizeMeter, path: Path, row: int) -> DataError:
    return DataError(
        f"{path}:{row}: expected at most data.max_depth = {meter.config.max_depth} levels of nested values, found "
        "more. Remove the row, or raise data.max_depth if the row is right (Python reads at most about 900 levels)."
    )

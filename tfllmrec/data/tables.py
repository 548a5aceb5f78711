"""Splits a file into rows and fields: CSV, TSV, JSON, Parquet, MovieLens, RecBole. No row is lost uncounted."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tfllmrec.columns import CATEGORIES
from tfllmrec.config import DataConfig
from tfllmrec.data.findings import Finding
from tfllmrec.data.raw_table import RawTable
from tfllmrec.data.recognition import ALIASES, is_known_name, plain_name
from tfllmrec.errors import ConfigError, DataError

_GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
# MovieLens files without a header: separator and columns.
_HEADERLESS: dict[str, tuple[str, list[str]]] = {
    "u.data": ("\t", ["user_id", "item_id", "rating", "timestamp"]),
    "u.item": ("|", ["movie_id", "title", "release_date", "video_release_date", "imdb_url"]),  # then genre flags
    "u.user": ("|", ["user_id", "age", "gender", "occupation", "zip_code"]),
    "ratings.dat": ("::", ["user_id", "movie_id", "rating", "timestamp"]),
    "movies.dat": ("::", ["movie_id", "title", "genres"]),
    "users.dat": ("::", ["user_id", "gender", "age", "occupation", "zip_code"]),
    "tags.dat": ("::", ["user_id", "movie_id", "tag", "timestamp"]),
}
ATOMIC = (".inter", ".item", ".user")  # RecBole
_BLANK_LINES = re.compile(rb"(?:[ \t\r]*\n)*")
_UNIT = "\x1f"  # ASCII unit separator: stands in for "::", which is no single character


def require_file(path: Path) -> None:
    """Raises DataError with the names that are there instead, unless ``path`` is a file."""
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{path} is a folder where a file was expected: give it as data.source, or name a file in it.")
    there = sorted(p.name for p in path.parent.iterdir())[:10] if path.parent.is_dir() else []
    hint = f"{path.parent} holds: {', '.join(there) or 'nothing'}." if path.parent.is_dir() else "Nor is its folder."
    raise DataError(f"{path} is not there. {hint}")


def read_table(path: Path, table: str, config: DataConfig, only: str | None = None) -> RawTable:
    """Reads a file into rows and columns of any type.

    Args:
      path: of any format and name.
      table: the table's name in the report.
      config: for ``encoding`` and ``columns``.
      only: the column that a file of one column holds. Such a file needs no header: its first line is a value unless
        it is a known column name.

    Raises:
      ConfigError: an unknown encoding.
      DataError: the file is missing, empty or cannot be read.
    """
    require_file(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Is the download complete?") from error
    if not content.strip():
        raise DataError(f"{path} is empty: expected a table with a header and rows.")
    if content[:4] == b"PAR1":
        return _read_parquet(path, table, content)
    name = path.name.removesuffix(".gz")
    known = name in _HEADERLESS
    content, findings = _to_utf8(content, path.name, table, config.encoding, latin_1=known)
    is_json = name.lower().endswith((".jsonl", ".ndjson", ".json")) or (
        not name.lower().endswith((".csv", ".tsv", *ATOMIC)) and not known and content.lstrip()[:1] in (b"{", b"[")
    )
    if is_json:
        raw = _read_json(path, table, content, only)
    else:
        raw = _read_delimited(path, table, content, only, config.columns)
    if raw.frame.empty and not raw.findings:
        raise DataError(f"{path} has a header but no rows.")
    return replace(raw, findings=(*findings, *raw.findings))


def _to_utf8(content: bytes, file: str, table: str, encoding: str, latin_1: bool) -> tuple[bytes, tuple[Finding, ...]]:
    """``content`` in UTF-8. Lines that are none are taken for Windows-1252 and counted; another encoding must fit."""
    for mark, marked in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            encoding = marked
    try:
        text = content.decode(encoding)
        if "\0" in text:
            row = text[: text.index("\0")].count("\n") + 1
            raise DataError(
                f"{file}:{row}: a NUL character; expected text in {encoding}. "
                "If it is UTF-16 or the like, set data.encoding."
            )
        return (content if encoding.lower() in ("utf-8", "utf8") else text.encode("utf-8", "replace")), ()
    except LookupError as error:
        raise ConfigError(
            f"data.encoding: {encoding!r} is no encoding; expected utf-8, latin-1, cp1252 or the like."
        ) from error
    except UnicodeDecodeError as error:
        if latin_1:  # the MovieLens files are documented as Latin-1
            return content.decode("latin-1").encode(), ()
        row = content[: error.start].count(b"\n") + 1
        if encoding.lower().replace("-", "").removesuffix("sig") != "utf8":
            byte = content[error.start]
            raise DataError(
                f"{file}:{row}: byte 0x{byte:02x} is not {encoding}. Set data.encoding to what it is."
            ) from error
    lines = content.split(b"\n")
    count = 0
    for i, line in enumerate(lines):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            lines[i] = line.decode("cp1252", "replace").encode()
            count += 1
    what = "not UTF-8: read as Windows-1252 (set data.encoding if that is wrong)"
    return b"\n".join(lines).removeprefix(b"\xef\xbb\xbf"), (Finding(table, what, count, "repaired", f"{file}:{row}"),)


def _separator(path: Path, header: str) -> str:
    if path.name.removesuffix(".gz").lower().endswith((".tsv", *ATOMIC)):
        return "\t"
    return max(("\t", ",", ";", "|", "::"), key=header.count)


def _read_delimited(path: Path, table: str, content: bytes, only: str | None, mapping: dict[str, str]) -> RawTable:
    """CSV, TSV and the like; ``only`` and ``mapping`` as :func:`read_table` takes them."""
    name = path.name.removesuffix(".gz")
    atomic = name.lower().endswith(ATOMIC) and name not in _HEADERLESS
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    # Leading blank lines are rows to the parser, and so keep the numbering right.
    start = len(_BLANK_LINES.match(content).group())  # type: ignore[union-attr]
    header_row = content[:start].count(b"\n")
    first = content[start:].split(b"\n", 1)[0].decode("utf-8").rstrip("\r")
    if name in _HEADERLESS:
        separator, fields = _HEADERLESS[name]
        genres = _genres_100k(path) if name == "u.item" else []
        fields = fields + genres
        header_row = -1
    else:
        separator = _separator(path, first)
        plain_split = atomic or separator == "::"
        split = first.split(separator) if plain_split else next(csv.reader([first], delimiter=separator))
        fields = _distinct([name.strip() for name in split])
    headless = only is not None and len(fields) == 1 and not is_known_name(fields[0], mapping)
    if only is not None and headless:
        fields, header_row = [only], -1
    quoted = not atomic and name not in _HEADERLESS and separator != "::"
    if separator == "::":
        content, separator = content.replace(b"::", _UNIT.encode()), _UNIT

    frame, rows, spans, findings, unreadable = _parse(
        content, separator, quoted, len(fields), header_row, path.name, table
    )
    if quoted and separator == "\t" and (unreadable or (spans > 1).any()):
        # Many tools write TSV without quoting, and then a title may begin with a quotation mark.
        bare = _parse(content, separator, False, len(fields), header_row, path.name, table)
        if bare[4] <= unreadable:
            frame, rows, spans, findings, unreadable = bare
    frame.columns = pd.Index(fields)
    if headless:
        what = f"the first line is no known column name, so it is read as a {only}"
        findings.append(Finding(table, what, 1, "kept", f"{path.name}:{rows[0]}, {first[:60]!r}"))
    if atomic:
        frame = _atomic_columns(frame)
    elif name == "u.item":
        flags = frame[genres].to_numpy(dtype=object) == "1"
        frame = frame.drop(columns=genres)
        frame[CATEGORIES] = [[g for g, on in zip(genres, row, strict=True) if on and g != "unknown"] for row in flags]
    return RawTable(table, path.name, frame, rows, spans, findings=tuple(findings), unreadable=unreadable)


def _parse(
    content: bytes, separator: str, quoted: bool, width: int, header_row: int, file: str, table: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, list[Finding], int]:
    """Splits text into ``width`` columns: the frame (str), row numbers, spans, findings, how many were unreadable."""
    broken: list[tuple[int, int, str]] = []

    def note_broken(row: pa.csv.InvalidRow) -> str:
        broken.append((row.number, row.actual_columns, row.text))
        return "skip"

    columns = [str(i) for i in range(width)]
    try:
        parsed = pa.csv.read_csv(
            io.BytesIO(content),
            pa.csv.ReadOptions(use_threads=False, column_names=columns, block_size=min(len(content) + 1, 1 << 30)),
            pa.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                ignore_empty_lines=False,
                invalid_row_handler=note_broken,
            ),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} cannot be split into {width} columns by {separator!r}: {error}") from error
    frame = parsed.to_pandas(types_mapper={pa.string(): pd.StringDtype(na_value=np.nan)}.get)

    # The parser counts records from 1; where quoted fields hold line breaks, lines run ahead of records.
    numbers = np.arange(1, len(frame) + len(broken) + 1)
    is_broken = np.zeros(len(numbers), dtype=bool)
    is_broken[[n - 1 for n, _, _ in broken]] = True
    spans = np.ones(len(numbers), dtype=np.int64)
    if quoted and b'"' in content:
        breaks = sum(
            (frame[c].str.count("\n").to_numpy(dtype=np.int64) for c in columns), np.zeros(len(frame), np.int64)
        )
        spans[~is_broken] += breaks
        spans[is_broken] += np.array([text.count("\n") for _, _, text in broken], dtype=np.int64)
    lines = np.cumsum(spans) - spans + 1

    findings, unreadable = [], 0
    wrong = [(n, fields, text) for n, fields, text in broken if text.strip() and n - 1 != header_row]
    if wrong:
        number, came, text = wrong[0]
        unreadable = int(sum(spans[n - 1] for n, _, _ in wrong))
        example = f"{file}:{lines[number - 1]}, {text[:60]!r}"
        findings.append(Finding(table, f"{came} fields came, {width} expected", unreadable, "dropped", example))
    blank = (frame == "").all(axis=1).to_numpy()
    good = numbers[~is_broken]
    is_row = ~blank & (good - 1 != header_row)
    gone = [*good[blank], *(n for n, _, text in broken if not text.strip())]
    if gone:
        findings.append(Finding(table, "blank row", len(gone), "dropped", f"{file}:{lines[min(gone) - 1]}"))
    return (
        frame[is_row].reset_index(drop=True),
        lines[~is_broken][is_row],
        spans[~is_broken][is_row],
        findings,
        unreadable,
    )


def _genres_100k(item_file: Path) -> list[str]:
    path = item_file.with_name("u.genre")
    if not path.is_file():
        return _GENRES_100K.split("|")
    lines = path.read_text(encoding="latin-1").splitlines()
    return [line.split("|")[0] for line in lines if line.strip()]


def _atomic_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Takes ``field:type`` apart; a ``token_seq`` that names categories is a list, any other one is running text."""
    category_names = {plain_name(a) for a in ALIASES[CATEGORIES]}
    columns = {}
    for header in frame.columns:
        name, _, kind = header.partition(":")
        values = frame[header]
        if kind == "token_seq" and plain_name(name) in category_names:
            values = pd.Series([_tokens(v) for v in values], dtype=object)
        columns[name] = values
    return pd.DataFrame(columns)


def _tokens(text: str) -> list[str]:
    return [t.strip(" '\"") for t in (text.split(",") if "," in text else text.split())]


def _distinct(names: list[str]) -> list[str]:
    """A header that names a column twice keeps the first; later ones get a number."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return out


def _read_json(path: Path, table: str, content: bytes, only: str | None) -> RawTable:
    """Reads JSON lines or one JSON array of objects.

    Python literals (the Amazon 2014 files) are read, too, and counted. Bare strings and integers in the place of
    objects are values of the column ``only``.
    """
    records: list[dict] = []
    rows: list[int] = []
    lost: list[tuple[int, str]] = []
    literals: list[int] = []
    blank: list[int] = []

    def take(row: int, value: object, shown: str) -> None:
        if only is not None and isinstance(value, str | int) and not isinstance(value, bool):
            value = {only: value}
        if isinstance(value, dict):
            records.append(value)
            rows.append(row)
        else:
            lost.append((row, shown))

    if content.lstrip()[:1] == b"[":
        try:
            values = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path} begins as a JSON array but is none: {error}.") from error
        for row, element in enumerate(values, start=1):
            take(row, element, str(element)[:60])
    else:
        lines = content.split(b"\n")
        for row, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
            if not line.strip():
                blank.append(row)
                continue
            value: object = None
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                try:
                    value = ast.literal_eval(line.decode("utf-8").strip())
                    literals.append(row)
                except (ValueError, SyntaxError, RecursionError, MemoryError):
                    pass
            take(row, value, line[:60].decode("utf-8", "replace"))
    findings = []
    if lost:
        example = f"{path.name}:{lost[0][0]}, {lost[0][1]!r}"
        findings.append(Finding(table, "no JSON object", len(lost), "dropped", example))
    if blank:
        findings.append(Finding(table, "blank row", len(blank), "dropped", f"{path.name}:{blank[0]}"))
    if literals:
        what = "not JSON but a Python literal: read as one"
        findings.append(Finding(table, what, len(literals), "repaired", f"{path.name}:{literals[0]}"))
    if not records:
        raise DataError(f"{path} holds no JSON object: expected one a line. {findings[0] if findings else ''}")
    names = dict.fromkeys(key for record in records for key in record)
    frame = pd.DataFrame({str(n): pd.Series([r.get(n) for r in records], dtype=object) for n in names})
    numbers = np.array(rows, dtype=np.int64)
    return RawTable(
        table, path.name, frame, numbers, np.ones_like(numbers), findings=tuple(findings), unreadable=len(lost)
    )


def _read_parquet(path: Path, table: str, content: bytes) -> RawTable:
    def dtype(kind: pa.DataType) -> Any:
        # Arrow's own values: an integer must not pass through a float because its neighbour is missing.
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return pd.StringDtype(na_value=np.nan) if is_text else pd.ArrowDtype(kind)

    try:
        frame = pa.parquet.read_table(io.BytesIO(content)).to_pandas(types_mapper=dtype)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error
    if frame.empty:
        raise DataError(f"{path} has columns but no rows.")
    frame = frame.set_axis(_distinct([str(c) for c in frame.columns]), axis=1).reset_index(drop=True)
    rows = np.arange(1, len(frame) + 1, dtype=np.int64)
    return RawTable(table, path.name, frame, rows, np.ones_like(rows))

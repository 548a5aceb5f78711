"""Splits delimited text (CSV, TSV, MovieLens, RecBole) into rows and fields; every row is kept, or its loss counted."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tfllmrec.columns import CATEGORIES, ITEM
from tfllmrec.data.files.column_names import ALIASES, is_known_name, plain_name
from tfllmrec.data.files.file_names import ATOMIC
from tfllmrec.data.files.raw_table import RawTable, distinct_names
from tfllmrec.data.files.size_limits import SizeMeter
from tfllmrec.data.findings import Finding
from tfllmrec.errors import DataError

_GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
# MovieLens files without a header -> separator and columns.
HEADERLESS: dict[str, tuple[str, list[str]]] = {
    "u.data": ("\t", ["user_id", "item_id", "rating", "timestamp"]),
    "u.item": ("|", ["movie_id", "title", "release_date", "video_release_date", "imdb_url"]),  # followed by genre flags
    "u.user": ("|", ["user_id", "age", "gender", "occupation", "zip_code"]),
    "ratings.dat": ("::", ["user_id", "movie_id", "rating", "timestamp"]),
    "movies.dat": ("::", ["movie_id", "title", "genres"]),
    "users.dat": ("::", ["user_id", "gender", "age", "occupation", "zip_code"]),
    "tags.dat": ("::", ["user_id", "movie_id", "tag", "timestamp"]),
}
_SEPARATORS = ("\t", ",", ";", "|", "::", "\x01")  # the last one is Hive's
_RULE = r"\s*:?[-=]+:?\s*"  # a cell of the line that sqlcmd, psql and Markdown draw below the header
_ESCAPED = r"\\(?:[\\'tnr]|x[0-9a-f]{2})"  # as in the bytes that Python prints
#: Marks around whole cells: bytes without which the file has none, the pattern of a marked cell, the text of the
#: finding, and a function that removes the marks.
_WRAPPED: tuple[tuple[tuple[bytes, ...], str, str, Callable[[str], str]], ...] = (
    (
        (b'="',),
        r'="[^"]*"',
        'cells written as ="00123", so that Excel keeps them as text: read without these marks',
        lambda cell: cell[2:-1],
    ),
    (
        (b"b'", b'b"'),
        rf"""b'(?:[ -&(-\[\]-~]|{_ESCAPED})*'|b"(?:[ !#-\[\]-~]|{_ESCAPED})*\"""",
        "cells written as b'00123', as Python prints bytes: read without these marks",
        lambda cell: ast.literal_eval(cell).decode("utf-8", "backslashreplace"),  # ids stay different
    ),
)
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANK_LINES = re.compile(rb"(?:[ \t]*(?:\r\n|\r|\n))*")
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?(?:\r\n|\r|\n)', re.I)  # as Excel writes it
_BLOCK = 1 << 26  # bytes that are parsed at once
_LARGE_BLOCK = 1 << 30  # for rows that are longer than _BLOCK
_SAMPLE = 1 << 16
_KNOWN_NAMES = {plain_name(alias) for aliases in ALIASES.values() for alias in aliases}


@dataclass(frozen=True)
class _Dialect:
    """The way in which cells are written.

    Attributes:
      separator: One character, or ``::``.
      quote: The quotation mark; None: quotation marks are text.
      escaped: Whether a backslash makes a quotation mark or separator after it part of the text.
    """

    separator: str
    quote: str | None = None
    escaped: bool = False


@dataclass(frozen=True)
class _Sample:
    """The first rows of a file split by one dialect: the header, and the count of rows below it by number of fields."""

    dialect: _Dialect
    header: list[str]
    widths: Counter[int]

    @property
    def agreement(self) -> float:
        """The share of rows with as many fields as the header."""
        return self.widths[len(self.header)] / self.widths.total() if self.widths else 1.0

    @property
    def usual_width(self) -> tuple[int, int]:
        """The most frequent number of fields below the header, and how many rows have it."""
        return self.widths.most_common(1)[0] if self.widths else (0, 0)


def read_delimited(
    path: Path,
    file: str,
    table: str,
    content: bytes,
    meter: SizeMeter,
    only: str | None = None,
    mapping: Mapping[str, str] | None = None,
) -> RawTable:
    """Splits UTF-8 text into rows and fields.

    A ``sep=;`` line above the header names the separator. Without one, the separator is the one that splits most of the
    first rows into as many fields as the header. Cells may be quoted by ``"``, or by ``'`` if the header is; a
    quotation mark within a cell is doubled or escaped by a backslash. Rows end in LF, CRLF or CR, even mixed in one
    file.

    Args:
      path: The file, for messages.
      file: Its name without the ending of a compression, which identifies the MovieLens and RecBole files.
      table: The name of the table in the report.
      content: The text.
      meter: Checks the number of rows and columns.
      only: As in :func:`tfllmrec.data.files.tables.read_table`.
      mapping: ``data.columns``, whose names are known column names, too.

    Raises:
      DataError: The first line is not a header, or a limit of the ``data`` section is exceeded.
    """
    atomic = file.lower().endswith(ATOMIC) and file not in HEADERLESS
    meter.add_rows(_count_lines(content) - (file not in HEADERLESS), path)
    start = _BLANK_LINES.match(content).end()  # type: ignore[union-attr]
    findings: tuple[Finding, ...] = ()
    genres: list[str] = []
    has_header = file not in HEADERLESS
    if file in HEADERLESS:
        separator, fields = HEADERLESS[file]
        genres = _genres_100k(path) if file == "u.item" else []
        fields, dialect = fields + genres, _Dialect(separator)
    else:
        given = _SEPARATOR_LINE.match(content, start)
        start = given.end() if given else start
        candidates = (given.group(1).decode("latin-1"),) if given else ("\t",) if atomic else _SEPARATORS
        sample, findings = _sniff(content, start, candidates, not atomic, path, table, meter)
        dialect = sample.dialect
        fields = distinct_names([name.strip() for name in sample.header])
        if only is not None and len(fields) == 1 and not is_known_name(fields[0], mapping or {}):
            what = f"the first line is not a known column name, so it is read as a {only}"
            row = 1 + len(_LINE_END.findall(content, 0, start))
            findings += (Finding(table, what, 1, "kept", f"{file}:{row}, {fields[0][:60]!r}"),)
            fields, has_header = [only], False
        if file.lower().endswith(".tsv") and len(fields) > 1 and dialect.separator != "\t":
            what = f"the file is named .tsv, but its separator is {dialect.separator!r}"
            findings += (Finding(table, what, 1, "kept", path.name),)
    first_line = 1 + len(_LINE_END.findall(content, 0, start))
    if dialect.separator == "::":
        content, dialect = _single_character(content, dialect)

    raw, used = _best_split(content, start, first_line, dialect, fields, has_header, path, table)
    frame = raw.frame
    if atomic:
        frame = _atomic_columns(frame)
    elif genres:
        flags = frame[genres].to_numpy(dtype=object) == "1"
        frame = frame.drop(columns=genres)
        frame[CATEGORIES] = [[g for g, on in zip(genres, row, strict=True) if on and g != "unknown"] for row in flags]
    return replace(
        raw, frame=frame, findings=(*findings, *_dialect_findings(used, dialect, content, path, table), *raw.findings)
    )


def _count_lines(content: bytes) -> int:
    return max(content.count(b"\n"), content.count(b"\r")) + (content[-1:] not in (b"\n", b"\r"))


def _single_character(content: bytes, dialect: _Dialect) -> tuple[bytes, _Dialect]:
    """Replaces ``::`` by a control character that the text does not contain, as the parser needs a single character."""
    unused = next((mark for mark in "\x1f\x1e\x1d\x1c" if mark.encode() not in content), "\x01")
    return content.replace(b"::", unused.encode()), replace(dialect, separator=unused)


def _sniff(
    content: bytes, start: int, separators: tuple[str, ...], quoted: bool, path: Path, table: str, meter: SizeMeter
) -> tuple[_Sample, tuple[Finding, ...]]:
    """Chooses the separator and the quotation mark from the header and the rows in the first part of the file."""
    line_end = _LINE_END.search(content, start)
    first = content[start : line_end.start() if line_end else len(content)]
    last_end = _LINE_END.search(content, start + len(first) + _SAMPLE)
    sample_text = content[start : last_end.start() if last_end else len(content)]
    line = 1 + len(_LINE_END.findall(content, 0, start))
    place = f"{path.name}:{line}"

    present = [s for s in separators if s.encode() in sample_text] or [separators[0] if len(separators) == 1 else ","]
    # Checked before the parser runs, which takes minutes for a million columns.
    meter.check("max_columns", max(first.count(s.encode()) + 1 for s in present), path)
    try:
        samples = [_split_sample(sample_text, first, separator, quoted) for separator in present]
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}:{line}: expected a header, found {_shown(first)}, which cannot be split: {error}. Check the "
            "quotation marks."
        ) from error
    fitting = [s for s in samples if len(s.header) > 1]

    def fit(sample: _Sample) -> tuple[float, int, int]:
        known = sum(plain_name(name) in _KNOWN_NAMES for name in sample.header)
        return sample.agreement, known, len(sample.header)

    best = max(fitting, key=fit) if fitting else next((s for s in samples if s.dialect.separator == ","), samples[0])
    if any(name.startswith(' "') for name in best.header):
        raise DataError(
            f"{path}:{line}: expected quotation marks right after the separator, found {_shown(first)}. Remove the "
            "spaces before the quotation marks, or the quotation marks."
        )
    if best.agreement == 0 or len(best.header) == 1:
        _refuse_preamble(samples, first, sample_text, path, line)
    elif "" in best.header and not any(plain_name(name) in _KNOWN_NAMES for name in best.header):
        _refuse_title(best, first, sample_text, path, line)
    if len(fitting) < 2:
        return best, ()
    others = " or ".join(repr(s.dialect.separator) for s in fitting if s is not best)
    what = (
        f"the header can be split by {best.dialect.separator!r} or {others}: read with {best.dialect.separator!r}, "
        f"which splits {best.agreement:.0%} of the first rows into as many fields as the header"
    )
    return best, (Finding(table, what, 1, "kept", f"{place}, {_shown(first)}"),)


def _split_sample(text: bytes, first_line: bytes, separator: str, quoted: bool) -> _Sample:
    """Splits the first part of a file by one separator, with backslashes as text or escapes, whichever fits better."""
    by_single = re.fullmatch(rb"'[^']*'(?:%b'[^']*')*" % re.escape(separator.encode()), first_line)
    plain = _Dialect(separator, ("'" if by_single else '"') if quoted and separator != "::" else None)
    names = [f"f{i}" for i in range(first_line.count(separator.encode()) + 1)]

    def split(dialect: _Dialect) -> _Sample:
        widths: Counter[int] = Counter()

        def count_broken(row: pa.csv.InvalidRow) -> str:
            if row.text.strip():
                widths[row.actual_columns] += 1
            return "skip"

        single, used = _single_character(text, dialect) if separator == "::" else (text, dialect)
        parsed = _read_csv(single + b"\n", used, names, len(single) + 2, count_broken, autogenerate_column_names=True)
        below = parsed.slice(1)
        widths[parsed.num_columns] += below.num_rows - int(_blank_rows(below).sum())
        header = ["" if column[0].as_py() is None else str(column[0].as_py()) for column in parsed.columns]
        return _Sample(plain, header, +widths)

    with_escapes = plain.quote is not None and b"\\" in text
    return max((split(d) for d in (plain, *([replace(plain, escaped=True)] * with_escapes))), key=lambda s: s.agreement)


def _refuse_preamble(samples: list[_Sample], first: bytes, text: bytes, path: Path, line: int) -> None:
    """Raises DataError if the first line is a comment or title: most rows below it share another number of fields."""
    below = max(samples, key=lambda s: (s.usual_width[1] if s.usual_width[0] > 1 else 0, s.usual_width[0]))
    width, count = below.usual_width
    if width < 2 or count < 2 or 2 * count < below.widths.total():
        return
    raise DataError(
        f"{path}:{line}: expected a header of {width} columns, as the rows below it have {width} fields separated by "
        f"{below.dialect.separator!r}; found {_shown(first)}.{_header_below(text, line, below.dialect, width, 1)} If "
        f"line {line} is the header, give each column a name; if it is a comment or a title, delete it."
    )


def _refuse_title(sample: _Sample, first: bytes, text: bytes, path: Path, line: int) -> None:
    """Raises DataError if the first line is a title that a spreadsheet filled up with empty cells."""
    if header := _header_below(text, line, sample.dialect, len(sample.header), 2):
        raise DataError(f"{path}:{line}: expected the names of the columns, found {_shown(first)}.{header}")


def _header_below(text: bytes, line: int, dialect: _Dialect, width: int, least_known: int) -> str:
    """Returns a hint that the header is further down; ``""`` if it is not.

    It names the first row of ``width`` cells with at least ``least_known`` usual names of columns.

    Args:
      text: The first part of the file.
      line: The number of its first line.
      dialect: The way in which its cells are written.
      width: The number of columns.
      least_known: The least number of usual names.
    """
    for i, row in enumerate(_LINE_END.split(text)):
        cells = row.decode().split(dialect.separator)
        if len(cells) == width and sum(plain_name(cell) in _KNOWN_NAMES for cell in cells) >= least_known:
            return f" Is the header line {line + i}, {_shown(row)}? Then delete the lines above it."
    return ""


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "replace"))


def _best_split(
    content: bytes,
    start: int,
    first_line: int,
    dialect: _Dialect,
    fields: list[str],
    has_header: bool,
    path: Path,
    table: str,
) -> tuple[RawTable, _Dialect]:
    """Splits the text by the dialect, or by a related one that leaves fewer rows unreadable."""
    dialects = [dialect]
    if dialect.quote:
        escaped = replace(dialect, escaped=True)
        if _escapes_quotes(content, dialect):
            dialects = [escaped, dialect]
        elif b"\\" in content:
            dialects = [dialect, escaped]
        if dialect.separator == "\t":
            # Many tools write TSV without quoting, and then a title may begin with a quotation mark.
            dialects.append(replace(dialect, quote=None))
    best: tuple[tuple[int, bool], RawTable, _Dialect] | None = None
    lines_inside = 0
    for tried in dialects:
        raw = _parse(content, start, first_line, tried, fields, has_header, path, table)
        swallowed = _rows_in_cells(raw, tried)
        doubt = (raw.unreadable + swallowed, dialect.separator == "\t" and bool((raw.spans > 1).any()))
        if best is None or doubt < best[0]:
            best, lines_inside = (doubt, raw, tried), swallowed
        if best[0] == (0, False):
            break
        if swallowed and replace(dialect, quote=None) not in dialects:
            dialects.append(replace(dialect, quote=None))
    assert best is not None
    raw = best[1]
    if lines_inside:
        what = "a quoted cell holds a line that looks like a row of the table: check that each quotation mark is closed"
        row = int((raw.spans > 1).argmax())
        raw = replace(raw, findings=(*raw.findings, Finding(table, what, lines_inside, "doubted", raw.example(row))))
    return raw, best[2]


def _rows_in_cells(raw: RawTable, dialect: _Dialect) -> int:
    """Counts the lines within quoted cells that have as many fields as the table, as after an unclosed quote."""
    long = raw.spans > 1
    separators = raw.frame.shape[1] - 1
    if dialect.quote is None or not long.any() or not separators:
        return 0
    text = raw.frame[long]
    count = 0
    for column in text:
        cells = text[column][text[column].str.contains(r"[\r\n]")]
        for cell in cells:
            count += sum(line.count(dialect.separator) == separators for line in re.split(r"\r\n|\r|\n", cell)[1:])
    return count


def _escapes_quotes(content: bytes, dialect: _Dialect) -> bool:
    r"""Returns whether a quoted cell holds ``\"`` before ordinary text, so that the mark cannot end the cell."""
    assert dialect.quote
    quote, separator = dialect.quote.encode(), re.escape(dialect.separator.encode())
    if b"\\" + quote not in content:
        return False
    pattern = rb"(?:^|[%b\r\n])%b(?:[^%b\\]|\\[^%b]|%b%b)*+\\%b[^%b%b\r\n]"
    return re.search(pattern % (separator, *[quote] * 7, separator), content) is not None


def _without_plain_backslashes(content: bytes, dialect: _Dialect) -> bytes:
    r"""Doubles each backslash that escapes nothing, as in ``\N`` or ``C:\games``, so that the parser keeps it."""
    special = re.escape(f"{dialect.separator}{dialect.quote}".encode())
    return re.sub(rb"\\([\\\r\n%b])?" % special, lambda found: found.group() if found.group(1) else rb"\\", content)


def _dialect_findings(
    used: _Dialect, expected: _Dialect, content: bytes, path: Path, table: str
) -> tuple[Finding, ...]:
    """Reports a dialect other than the expected one, with the number of marks concerned."""
    if used.escaped:
        mark = b"\\" + (used.quote or "").encode()
        what = "a backslash escapes quotation marks and separators: read without it"
    elif expected.quote and used.quote is None:
        mark, what = b'"', "quotation marks do not enclose cells: read as part of the text"
    else:
        return ()
    at = max(content.find(mark), 0)
    line = 1 + len(_LINE_END.findall(content, 0, at))
    return (Finding(table, what, max(content.count(mark), 1), "repaired", f"{path.name}:{line}"),)


def _read_csv(
    text: bytes | pa.Buffer,
    dialect: _Dialect,
    columns: list[str],
    block_size: int,
    note_broken: Callable[[Any], str],
    **reading: Any,
) -> pa.Table:
    """Splits text into string columns, in one thread; ``note_broken`` receives rows with another number of fields."""
    return pa.csv.read_csv(
        pa.BufferReader(text),
        pa.csv.ReadOptions(use_threads=False, block_size=block_size, **reading),
        pa.csv.ParseOptions(
            delimiter=dialect.separator,
            quote_char=dialect.quote or False,
            escape_char="\\" if dialect.escaped else False,
            newlines_in_values=dialect.quote is not None,
            ignore_empty_lines=False,
            invalid_row_handler=note_broken,
        ),
        pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False),
    )


def _parse(
    content: bytes,
    start: int,
    first_line: int,
    dialect: _Dialect,
    fields: list[str],
    has_header: bool,
    path: Path,
    table: str,
) -> RawTable:
    """Splits the text from ``start`` on, which is line ``first_line``, into cells (str) of the columns ``fields``."""
    text = pa.py_buffer(content).slice(start)
    if dialect.escaped:
        text = pa.py_buffer(_without_plain_backslashes(content[start:], dialect))
    broken: list[tuple[int, int, str]] = []

    def note_broken(row: pa.csv.InvalidRow) -> str:
        broken.append((row.number, row.actual_columns, row.text))
        return "skip"

    width = len(fields)
    columns = [str(i) for i in range(width)]

    def split(block_size: int) -> pa.Table:
        broken.clear()
        block_size = min(text.size + 1, block_size)
        return _read_csv(text, dialect, columns, block_size, note_broken, column_names=columns)

    try:
        try:
            parsed = split(_BLOCK)
        except pa.ArrowInvalid:  # a row is longer than a block, as after a quotation mark that is never closed
            parsed = split(_LARGE_BLOCK)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: expected rows of {width} columns separated by {dialect.separator!r}, found text that cannot be "
            f"split: {error}. Check the quotation marks."
        ) from error

    # The parser counts records from 1; if quoted cells hold line breaks, line numbers run ahead of record numbers.
    numbers = np.arange(1, parsed.num_rows + len(broken) + 1)
    is_broken = np.zeros(len(numbers), dtype=bool)
    is_broken[[number - 1 for number, _, _ in broken]] = True
    spans = np.ones(len(numbers), dtype=np.int64)
    if dialect.quote and dialect.quote.encode() in content:
        for column in parsed.columns:
            spans[~is_broken] += _count_breaks(column, b"\r" in content)
        spans[is_broken] += np.array([len(_LINE_END.findall(row.encode())) for _, _, row in broken], dtype=np.int64)
    lines = np.cumsum(spans) - spans + first_line
    header = np.zeros(len(numbers), dtype=bool)
    header[:1] = has_header

    findings, unreadable = [], 0
    wrong = [row for row in broken if row[2].strip() and not header[row[0] - 1]]
    if wrong:
        number, came, row = wrong[0]
        unreadable = int(sum(spans[n - 1] for n, _, _ in wrong))
        example = f"{path.name}:{lines[number - 1]}, {row[:60]!r}"
        findings.append(Finding(table, f"found {came} fields, expected {width}", unreadable, "dropped", example))
    good = ~is_broken
    blank = _blank_rows(parsed) & ~header[good]
    gone = [*numbers[good][blank], *(n for n, _, row in broken if not row.strip())]
    if gone:
        findings.append(Finding(table, "blank row", len(gone), "dropped", f"{path.name}:{lines[min(gone) - 1]}"))
    keep = ~blank & ~header[good]
    for what, of_rows in {"the header again": _header_rows(parsed, fields), "a line of dashes": _rules(parsed)}.items():
        if (of_rows := of_rows & keep).any():
            example = f"{path.name}:{lines[good][int(of_rows.argmax())]}"
            findings.append(Finding(table, what, int(of_rows.sum()), "dropped", example))
            keep &= ~of_rows
    # Slicing is free, filtering copies the table.
    first = int(header[good].sum())
    kept = parsed.slice(first) if keep[first:].all() else parsed.filter(pa.array(keep))
    del parsed
    frame = kept.to_pandas(types_mapper={pa.string(): pd.StringDtype(na_value=np.nan)}.get, self_destruct=True)
    for marks, pattern, what, inside in _WRAPPED:
        if not any(mark in content for mark in marks):
            continue
        of_rows = np.zeros(len(frame), dtype=bool)
        for column in frame:
            wrapped = frame[column].str.fullmatch(pattern).to_numpy(dtype=bool)
            if wrapped.any():
                frame[column] = frame[column].mask(wrapped, frame[column][wrapped].map(inside))
                of_rows |= wrapped
        if of_rows.any():
            example = f"{path.name}:{lines[good][keep][int(of_rows.argmax())]}"
            findings.append(Finding(table, what, int(of_rows.sum()), "repaired", example))
    return RawTable(
        table,
        path.name,
        frame.set_axis(fields, axis=1),
        lines[good][keep],
        spans[good][keep],
        findings=tuple(findings),
        unreadable=unreadable,
    )


def _blank_rows(table: pa.Table) -> np.ndarray:
    blank = np.ones(table.num_rows, dtype=bool)
    for column in table.columns:
        if not blank.any():
            break
        blank &= pc.equal(column.cast(pa.string()), "").fill_null(True).to_numpy()
    return blank


def _header_rows(table: pa.Table, fields: list[str]) -> np.ndarray:
    """Returns bool ``[R]``: rows that repeat the header, as in concatenated files."""
    same = np.ones(table.num_rows, dtype=bool)
    for column, name in zip(table.columns, fields, strict=True):
        if not same.any():
            break
        same &= pc.equal(column.cast(pa.string()), name).fill_null(False).to_numpy()
    return same & (len(fields) > 1)


def _rules(table: pa.Table) -> np.ndarray:
    """Returns bool ``[R]``: the first row below the header, if it is a line of dashes."""
    rule = np.zeros(table.num_rows, dtype=bool)
    for row in range(min(2, table.num_rows)):
        cells = [str(column[row].as_py()) for column in table.columns]
        rule[row] = any(cells) and all(re.fullmatch(_RULE, cell) or not cell for cell in cells)
    return rule


def _count_breaks(column: pa.ChunkedArray, with_cr: bool) -> np.ndarray:
    """Counts the line breaks (LF, CRLF or CR) in each cell."""
    breaks = pc.count_substring(column, "\n")
    if with_cr:
        breaks = pc.add(breaks, pc.subtract(pc.count_substring(column, "\r"), pc.count_substring(column, "\r\n")))
    return breaks.to_numpy()


def _genres_100k(item_file: Path) -> list[str]:
    path = item_file.with_name("u.genre")
    if not path.is_file():
        return _GENRES_100K.split("|")
    return [line.split("|")[0] for line in path.read_text(encoding="latin-1").split("\n") if line.strip()]


def _atomic_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Removes the types of headers ``field:type``; a ``token_seq`` of categories or item ids becomes a list.

    Any other ``token_seq`` stays running text.
    """
    lists = {plain_name(a) for a in ALIASES[CATEGORIES]} | {plain_name(a) for a in ALIASES[ITEM] if a.endswith("id")}
    columns = {}
    for header in frame.columns:
        name, _, kind = header.partition(":")
        values = frame[header]
        if kind == "token_seq" and plain_name(name) in lists:
            values = pd.Series([_tokens(v) for v in values], dtype=object)
        columns[name] = values
    return pd.DataFrame(columns)


def _tokens(text: str) -> list[str]:
    return [t.strip(" '\"") for t in (text.split(",") if "," in text else text.split())]

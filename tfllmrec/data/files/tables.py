"""Reads a table: a file of any supported format, or a folder of parts. No row is lost without being counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tfllmrec.config import DataConfig
from tfllmrec.data.files.decompression import read_content
from tfllmrec.data.files.delimited import HEADERLESS, read_delimited
from tfllmrec.data.files.event_log import LogReader, is_event_log
from tfllmrec.data.files.file_names import ATOMIC, JSON_ENDINGS, named_folder, without_compression
from tfllmrec.data.files.json_records import read_json
from tfllmrec.data.files.parts import add_folder_columns, find_parts, join_parts
from tfllmrec.data.files.raw_table import RawTable, distinct_names
from tfllmrec.data.files.size_limits import SizeMeter
from tfllmrec.data.findings import Finding
from tfllmrec.errors import ConfigError, DataError

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_JSON_START = re.compile(rb'\s*(?:\[\s*)?\{\s*"')  # a header never begins like this
_FOREIGN = re.compile(rb"[\x80-\xff]{3}")  # words in Windows-1252 rarely have so many letters beyond ASCII in a row
_CONTROL_CHARACTERS = re.compile(rb"[\x02-\x08\x0e-\x1a]")


def require_file(path: Path) -> None:
    """Raises DataError, which lists the files in the folder, unless ``path`` is a file."""
    if path.is_dir():
        raise DataError(f"{path} is a folder where a file was expected: give it as data.source, or name a file in it.")
    if not path.is_file():
        raise not_there(path)


def not_there(path: Path) -> DataError:
    """Returns the error for a missing file, which lists the files in its folder."""
    hint = "Its folder does not exist either."
    if path.parent.is_dir():
        there = sorted(p.name for p in path.parent.iterdir())[:10]
        hint = f"{named_folder(path.parent)} holds: {', '.join(there) or 'nothing'}."
    return DataError(f"{path} does not exist. {hint}")


def read_table(path: Path, table: str, config: DataConfig, only: str | None = None, log_since: int = 0) -> RawTable:
    """Reads a file, a folder of files that are parts of one table, or the events of an event log.

    Formats are CSV and its relatives, JSON lines, a JSON array, Parquet, MovieLens and RecBole; each may be
    compressed. Names of folders such as ``day=2024-01-01`` become columns. The folder of an event log
    (:mod:`tfllmrec.feedback.event_log`) is the table of its events.

    Args:
      path: The file or folder.
      table: The name of the table in the report.
      config: Provides ``encoding``, ``columns``, and the limits ``max_bytes``, ``max_rows``, ``max_columns`` and
        ``max_depth``, which apply to all parts together.
      only: The column that a file of one column holds. Such a file needs no header: its first line is a value unless
        it is a known column name.
      log_since: The number up to which the events of a log are left out.

    Raises:
      DataError: The table is missing, empty, unreadable or larger than a limit, or the folder holds several tables.
    """
    meter = SizeMeter(config)
    if is_event_log(path):
        raw = _read_log(path, table, meter, log_since)
    elif path.is_dir():
        files, findings = find_parts(path, table)
        parts = [(file, add_folder_columns(_read_file(file, table, config, meter, only), file, path)) for file in files]
        # An empty part has no columns to compare; Spark writes one for each empty partition.
        parts = [(file, raw) for file, raw in parts if len(raw.frame) or raw.findings] or parts[:1]
        names = {name for _, raw in parts for name in raw.frame}
        for _, raw in parts:
            meter.add_cells(len(raw.frame), len(names) - len(raw.frame.columns), path)
        raw = join_parts(parts, path, table)
        raw = replace(raw, findings=(*findings, *raw.findings))
    else:
        require_file(path)
        raw = add_folder_columns(_read_file(path, table, config, meter, only), path)
    if raw.frame.empty and not any(finding.action == "dropped" for finding in raw.findings):
        if not len(raw.frame.columns):
            raise DataError(f"{path} is empty: expected a table with a header and rows.")
        raise DataError(f"{path} has a header but no rows.")
    return raw


def _read_log(path: Path, table: str, meter: SizeMeter, since: int) -> RawTable:
    """Reads the events of a log after number ``since``; rows are numbered in the order of receipt.

    The log's own columns are named already, so that no further field, such as a client's ``score``, is taken for one.
    """
    with LogReader(path) as reader:
        log = reader.table(since=since)
        meter.add_rows(log.rows, path)
        meter.check("max_columns", len(log.schema), path)
        batches = []
        for batch in log.batches():
            meter.add_bytes(batch.nbytes, path)
            batches.append(batch)
    frame, findings = _to_frame(pa.Table.from_batches(batches, log.schema), table, path)
    if log.left_out:
        what = f"fields left out: only the {len(log.further):,} most frequent fields of events are columns"
        findings = (*findings, Finding(table, what, log.left_out, "repaired"))
    rows = np.arange(1, len(frame) + 1, dtype=np.int64)
    names = {column: column for column in log.schema.names if column not in log.further}
    return RawTable(table, path.name, frame, rows, np.ones_like(rows), names, findings)


def _read_file(path: Path, table: str, config: DataConfig, meter: SizeMeter, only: str | None) -> RawTable:
    name, content = read_content(path, meter)
    if content[:4] == b"PAR1":
        return _read_parquet(path, table, content, meter)
    name = without_compression(name)
    known = name in HEADERLESS
    content, findings = _to_utf8(content, path.name, table, config.encoding, latin_1=known)
    if not content.strip():
        none = np.array([], dtype=np.int64)
        return RawTable(table, path.name, pd.DataFrame(), none, none)
    is_delimited = known or name.lower().endswith((".csv", ".tsv", *ATOMIC))
    is_json = (
        name.lower().endswith(JSON_ENDINGS)
        or (not is_delimited and content.lstrip()[:1] in (b"{", b"["))
        or _JSON_START.match(content) is not None
    )
    if is_json:
        raw = read_json(path, name, table, content, meter, only)
    else:
        raw = read_delimited(path, name, table, content, meter, only, config.columns)
    return replace(raw, findings=(*findings, *raw.findings))


def _to_utf8(content: bytes, file: str, table: str, encoding: str, latin_1: bool) -> tuple[bytes, tuple[Finding, ...]]:
    """Converts text to UTF-8. Lines that are not UTF-8 are read as Windows-1252 and counted.

    An ``encoding`` other than UTF-8 must fit the whole text; a byte order mark takes precedence over the setting.
    """
    encoding = next((marked for mark, marked in _BYTE_ORDER_MARKS if content.startswith(mark)), encoding)
    is_utf8 = encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")
    if is_utf8:
        content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        if not is_utf8:
            content = content.decode(encoding).encode("utf-8", "replace")
        elif not _is_utf8(content):
            content.decode("utf-8")  # the error says where
    except LookupError as error:
        raise ConfigError(
            f"data.encoding: {encoding!r} is not an encoding; expected utf-8, latin-1, cp1252 or the like."
        ) from error
    except UnicodeDecodeError as error:
        if latin_1:  # the MovieLens files are documented as Latin-1
            return content.decode("latin-1").encode(), ()
        row = _line_of(content, error.start)
        if not is_utf8:
            byte = content[error.start]
            raise DataError(
                f"{file}:{row}: byte 0x{byte:02x} is not {encoding}. Set data.encoding to the encoding of the file."
            ) from error
        if _CONTROL_CHARACTERS.search(content[:4096]):
            raise DataError(
                f"{file}: expected text, or Parquet, or a file compressed by gzip, bzip2, xz, zip, zstd or lz4; found "
                f"other data, which begins with {content[:12]!r}."
            ) from error
        _refuse_nul(content, file, encoding)
        content, count, foreign = _repaired(content)
        what = "not UTF-8: read as Windows-1252 (set data.encoding if that is wrong)"
        findings = [Finding(table, what, count, "repaired", f"{file}:{row}")]
        if foreign:
            what = (
                "lines with bytes that Windows-1252 does not have, or with three letters beyond ASCII in a row, so the "
                "text may have another encoding: set data.encoding, such as cp1251, shift_jis, gbk or euc_kr"
            )
            findings.append(Finding(table, what, foreign, "doubted"))
        return content, tuple(findings)
    _refuse_nul(content, file, encoding)
    return content, ()


def _is_utf8(content: bytes) -> bool:
    """Returns whether the text is UTF-8, without decoding it, which would take up to four times its memory."""
    try:
        pa.array([content], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def _refuse_nul(content: bytes, file: str, encoding: str) -> None:
    if b"\0" in content:
        row = _line_of(content, content.index(b"\0"))
        raise DataError(
            f"{file}:{row}: a NUL character; expected text in {encoding}. If it is UTF-16 or the like, set "
            "data.encoding. If it is not text, export the table as CSV, JSON or Parquet."
        )


def _repaired(content: bytes) -> tuple[bytes, int, int]:
    """Reads the lines that are not UTF-8 as Windows-1252.

    Returns:
      The text, the number of these lines, and how many of them seem to have another encoding. Bytes that Windows-1252
      does not define become different control characters, so that no two ids become one.
    """
    lines = content.split(b"\n")
    count = foreign = 0
    for i, line in enumerate(lines):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            text = line.decode("cp1252", "surrogateescape")
            bare = re.sub("[\udc80-\udcff]", lambda byte: chr(ord(byte.group()) - 0xDC00), text)
            foreign += bare != text or _FOREIGN.search(line) is not None
            count += 1
            lines[i] = bare.encode()
    return b"\n".join(lines), count, foreign


def _line_of(content: bytes, at: int) -> int:
    return content.count(b"\n", 0, at) + 1


def _read_parquet(path: Path, table: str, content: bytes, meter: SizeMeter) -> RawTable:
    """Reads a Parquet file; its size is checked in the metadata first, then batch by batch.

    A named pandas index becomes a column, like any other column. Nested values become dicts and lists, as from JSON.
    Dates, and decimals beyond the precision of a number, become strings; durations become seconds.
    """
    try:
        # In nanoseconds, the unit of INT96 by default, years after 2262 would overflow.
        file = pa.parquet.ParquetFile(pa.BufferReader(content), coerce_int96_timestamp_unit="us")
        meter.add_rows(file.metadata.num_rows, path)
        meter.check("max_columns", file.metadata.num_columns, path)
        meter.check("max_depth", 1 + max((_depth(field.type) for field in file.schema_arrow), default=0), path)
        arrow = _index_as_columns(_batches(file, meter, path))
        frame, findings = _to_frame(arrow, table, path)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    rows = np.arange(1, len(frame) + 1, dtype=np.int64)
    return RawTable(table, path.name, frame, rows, np.ones_like(rows), findings=findings)


def _depth(kind: pa.DataType) -> int:
    """Returns the number of levels of a nested type; 0 for numbers and strings."""
    if not pa.types.is_nested(kind):
        return 0
    return 1 + max((_depth(kind.field(i).type) for i in range(kind.num_fields)), default=0)


def _batches(file: pa.parquet.ParquetFile, meter: SizeMeter, path: Path) -> pa.Table:
    """Reads in batches to check the size: a value stored once for many rows takes its full size for each in memory."""
    batches = []
    for batch in file.iter_batches():
        # A batch holds dictionaries in full, whether it uses their values or not.
        columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        batch = pa.record_batch(columns, batch.schema.names)
        meter.add_bytes(batch.nbytes, path)
        batches.append(batch)
    if not batches:
        return file.schema_arrow.empty_table()
    return pa.Table.from_batches(batches).replace_schema_metadata(file.schema_arrow.metadata)


def _index_as_columns(table: pa.Table) -> pa.Table:
    """Adds a named range index of pandas, which is stored only as metadata; makes any other index a plain column.

    An unnamed range index, which pandas gives to each table, carries no information and is left out.
    """
    metadata = table.schema.pandas_metadata
    if not metadata:
        return table
    for level in metadata.get("index_columns", []):
        if isinstance(level, dict) and level.get("name") is not None:
            values = np.arange(level["start"], level["stop"], level["step"])
            if len(values) == table.num_rows:
                table = table.append_column(str(level["name"]), pa.array(values))
    # Nullable integers of pandas keep their type, as floats would lose digits; no other entry is needed.
    nullable = [c for c in metadata.get("columns", []) if re.fullmatch(r"U?Int\d+", str(c.get("numpy_type")))]
    kept = {"index_columns": [], "column_indexes": [], "columns": nullable}
    return table.replace_schema_metadata({b"pandas": json.dumps(kept)})


def _pandas_type(kind: pa.DataType) -> Any:
    # Other values stay in Arrow's types, because pandas would convert integers next to a missing value to floats.
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pd.StringDtype(na_value=np.nan) if is_text else pd.ArrowDtype(kind)


def _to_frame(table: pa.Table, name: str, path: Path) -> tuple[pd.DataFrame, tuple[Finding, ...]]:
    findings: list[Finding] = []
    columns: list[pd.Series] = []
    for label, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(column.type):
            columns.append(pd.Series(_python_values(_plain_nested(column).combine_chunks()), dtype=object))
            continue
        plain = _plain(column)
        if _is_binary(column.type) and not pa.types.is_string(plain.type):
            plain = pa.chunked_array([[v if v is None else v.hex() for v in column.to_pylist()]], pa.string())
            what = f"bytes in {label!r} that are not text: written in hexadecimal"
            findings.append(Finding(name, what, len(column) - column.null_count, "repaired", path.name))
        one = pa.table({label: plain}).replace_schema_metadata(table.schema.metadata)
        columns.append(one.to_pandas(types_mapper=_pandas_type).iloc[:, 0])
    names = distinct_names([str(label) for label in table.column_names])
    return pd.DataFrame(dict(zip(names, columns, strict=True))), tuple(findings)


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return any(test(kind) for test in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)) or (
        types.is_binary_view(kind)
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Casts a column to a type of pandas without loss of precision; returns bytes that are not text unchanged."""
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return pa.chunked_array([[None if v is None else str(v) for v in column.to_pylist()]], pa.string())
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(column.cast(kind.storage_type))
    if pa.types.is_duration(kind):
        per_second = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        return pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), per_second)
    if pa.types.is_decimal(kind):
        return _plain_decimal(column)
    try:
        return column.cast(_plain_type(kind))
    except pa.ArrowInvalid:
        return column


def _plain_decimal(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Converts decimals to integers or floats if these are exact, otherwise to strings without an exponent."""
    kind = column.type
    if kind.scale == 0:
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            pass
    elif kind.precision <= 15:
        return column.cast(pa.float64())
    values = column.to_pylist()
    if all(v is None or v == v.to_integral_value() for v in values):  # BigQuery's NUMERIC has nine decimals
        return pa.chunked_array([[None if v is None else str(int(v)) for v in values]], pa.string())
    return pa.chunked_array([[None if v is None else format(v, "f") for v in values]], pa.string())


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type to which values are cast: string for text, bytes and dates, otherwise the same type."""
    types = pa.types
    is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_date)
    return pa.string() if _is_binary(kind) or any(test(kind) for test in is_text) else kind


def _plain_nested(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Casts nested values to plain types at every level; returns them unchanged if Arrow cannot cast them."""

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_struct(kind):
            return pa.struct([field.with_type(plain(field.type)) for field in kind])
        if pa.types.is_map(kind):
            return pa.map_(plain(kind.key_type), plain(kind.item_type))
        if pa.types.is_nested(kind):
            return pa.large_list(plain(kind.value_type))
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        return pa.float64() if pa.types.is_decimal(kind) else _plain_type(kind)

    try:
        return column.cast(plain(column.type))
    except pa.ArrowException:
        return column


def _python_values(array: pa.Array) -> list:
    """Converts values to Python objects: dicts for structs and maps, lists for lists."""
    if pa.types.is_string(array.type) or (pa.types.is_integer(array.type) and not array.null_count):
        return array.to_numpy(zero_copy_only=False).tolist()
    if pa.types.is_float32(array.type):  # 0.1, not 0.10000000149011612
        array = array.cast(pa.string()).cast(pa.float64())
    if not pa.types.is_large_list(array.type):
        return array.to_pylist(maps_as_pydicts="strict")
    # Converting all elements at once is several times faster than list by list.
    elements = iter(_python_values(array.flatten()))
    return [None if n is None else list(islice(elements, n)) for n in pc.list_value_length(array).to_pylist()]

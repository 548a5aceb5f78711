"""Reads and decompresses a file; the compression is recognised by the first bytes, not by the name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa

from tfllmrec.data.files.size_limits import SizeMeter
from tfllmrec.errors import DataError

_CHUNK = 1 << 22
_MAX_LAYERS = 3  # a compressed file inside a zip inside a gz; the limit stops a zip that contains itself
_OPENERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Any]], ...] = (
    (re.compile(rb"\x1f\x8b"), lambda stream: gzip.GzipFile(fileobj=stream)),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.BZ2File),
    (re.compile(rb"\xfd7zXZ\x00|\x5d\x00\x00"), lzma.LZMAFile),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), lambda stream: pa.input_stream(stream, "zstd")),
    (re.compile(rb"\x04\x22\x4d\x18"), lambda stream: pa.input_stream(stream, "lz4")),
)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_OTHER_FORMATS = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\xff\x06\x00\x00sNaPpY": "a Snappy file",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel workbook",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x04\x95": "a pickle file",
    b"\x80\x05\x95": "a pickle file",
    b"Obj\x01": "an Avro file",
    b"ORC\x08": "an ORC file",
    b"ARROW1": "an Arrow or Feather file",
    b"FEA1": "a Feather file",
    b"PARE": "an encrypted Parquet file",
    b"%PDF-": "a PDF document",
    b"insert into": "an SQL script",
    b"create table": "an SQL script",
    b"-- mysql dump": "an SQL script",
    b"-- postgresql database dump": "an SQL script",
    b"%%matrixmarket": "a Matrix Market file",
    b"@relation": "an ARFF file",
    b"\x1f\x9d": "a file compressed by compress (decompress it)",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML file",
}


def read_content(path: Path, meter: SizeMeter) -> tuple[str, bytes]:
    """Returns the name and the decompressed bytes of a file; for a zip archive, those of its only member.

    Decompression runs in chunks and stops as soon as ``data.max_bytes`` is exceeded.

    Raises:
      DataError: The file cannot be read or decompressed, exceeds the limit, has a format that is not supported, or is
        an archive of several files.
    """
    name = path.name
    try:
        with path.open("rb") as file:
            stream: BinaryIO = file
            for _ in range(_MAX_LAYERS):
                head = stream.read(512)
                stream.seek(0)
                opener = next((opener for magic, opener in _OPENERS if magic.match(head)), None)
                if head.startswith(_ZIP):
                    with zipfile.ZipFile(stream) as archive:
                        member = _only_member(archive, path)
                        meter.check("max_bytes", meter.bytes + member.file_size, path)
                        name = Path(member.filename).name
                        with archive.open(member) as opened:
                            stream = _drained(opened, meter, path)
                elif opener is not None:
                    stream = _drained(opener(stream), meter, path)
                else:
                    _refuse_other_formats(head, path)
                    if stream is file:
                        meter.check("max_bytes", meter.bytes + path.stat().st_size, path)
                        stream = _drained(file, meter, path)
                    return name, stream.getvalue()  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}. Is the download complete?") from error
    raise DataError(f"{path} is compressed more than {_MAX_LAYERS} times: decompress it first.")


def _drained(stream: IO[bytes], meter: SizeMeter, path: Path) -> io.BytesIO:
    content = io.BytesIO()
    while chunk := stream.read(_CHUNK):
        meter.add_bytes(len(chunk), path)
        content.write(chunk)
    content.seek(0)
    return content


def _only_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not any(p.startswith((".", "__MACOSX")) for p in Path(member.filename).parts)
    ]
    names = [member.filename for member in members]
    if "[Content_Types].xml" in names:
        raise DataError(f"{path} is an Office file: expected a table. Export the sheet as CSV.")
    if len(members) != 1:
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")
        raise DataError(
            f"{path} is a zip archive of {len(members):,} files ({shown or 'none'}): expected one. Unpack it and name "
            "the files (data.events, data.items), or give the folder as data.source."
        )
    return members[0]


def _refuse_other_formats(head: bytes, path: Path) -> None:
    text = head.lstrip().lower()
    found = next((w for m, w in _OTHER_FORMATS.items() if head.startswith(m) or text.startswith(m)), None)
    if head[257:262] == b"ustar":
        found = "a tar archive (unpack it)"
    if found:
        raise DataError(f"{path} is {found}: expected CSV, TSV, JSON or Parquet. Export the table as one of these.")

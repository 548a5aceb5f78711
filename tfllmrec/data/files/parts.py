"""Finds and joins the parts of a table that is a folder of files, as Spark, Hive, Dask and others write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.data.files.file_names import (
    DELIMITED_ENDINGS,
    JSON_ENDINGS,
    PARQUET_ENDINGS,
    is_partition,
    is_table,
    partition_values,
    stem,
    without_compression,
)
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.findings import Finding
from tfllmrec.errors import DataError

#: The column that holds a part's folder, if the name of the folder is not ``column=value``.
FOLDER = "folder"
_FORMATS = (DELIMITED_ENDINGS, JSON_ENDINGS, PARQUET_ENDINGS)
_CHECKSUMS = (".crc", ".md5", ".sha1", ".sha256")
_TABLE_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.I)
_REMEDY = "Name one file (data.events, data.items), or give a folder that holds the parts of one table alone."


def holds_parts(folder: Path) -> bool:
    """Returns whether the files in a folder look like parts of one table.

    They do if there is a file ``_SUCCESS``, if there are partitions, or if their names differ only in numbers.
    """
    if (folder / "_SUCCESS").is_file() or any(is_partition(p) for p in folder.iterdir() if p.is_dir()):
        return True
    patterns = {_words(p) for p in folder.iterdir() if p.is_file() and not _is_hidden(p, folder) and is_table(p)}
    return len(patterns) == 1


def find_parts(folder: Path, table: str) -> tuple[list[Path], tuple[Finding, ...]]:
    """Returns the parts of the table in a folder, in the order of their numbers, and findings on other files.

    Files whose names begin with ``_`` or ``.``, and checksums, are not parts. If any file has the ending of a table,
    files without one are not read, which is reported.

    Raises:
      DataError: There is no part, the parts have several formats, a part exists twice (compressed and not), or the
        folder is managed by Delta Lake or Hudi, where only a log tells outdated files from current ones.
    """
    for name, system in _TABLE_LOGS.items():
        if (folder / name).is_dir():
            raise DataError(
                f"{folder} is a {system} table: its folder also holds outdated files. Export the table as Parquet "
                "or CSV and give that."
            )
    files = [p for p in folder.rglob("*") if p.is_file() and not _is_hidden(p, folder)]
    named = [p for p in files if is_table(p)]
    parts = sorted(named or files, key=_by_number)
    if not parts:
        raise DataError(f"{folder} contains no file to read: expected a table, or the parts of one.")
    formats = {next((f[0] for f in _FORMATS if without_compression(p.name).lower().endswith(f)), "") for p in parts}
    if len(formats) > 1:
        raise DataError(f"{folder} holds several formats ({', '.join(sorted(formats))}): expected one table. {_REMEDY}")
    seen: dict[str, Path] = {}
    for part in parts:
        plain = str(part.with_name(without_compression(part.name)))
        if plain in seen:
            raise DataError(f"{folder} holds {seen[plain].name} and {part.name}, the same file twice. Delete one.")
        seen[plain] = part
    others = sorted(p.name for p in files if p not in set(parts))
    if not others:
        return parts, ()
    what = f"files beside the parts, not read: {', '.join(others[:10])}"
    return parts, (Finding(table, what, len(others), "kept", folder.name),)


def add_folder_columns(raw: RawTable, file: Path, root: Path | None = None) -> RawTable:
    """Adds the columns that the names of the folders hold to ``raw``; a column of the file itself takes precedence.

    Folders below ``root`` that are not ``column=value`` (``2024/01/31/``) make up the column ``folder``.
    """
    values = partition_values(file)
    inner = [] if root is None else [p for p in file.relative_to(root).parts[:-1] if not is_partition(Path(p))]
    if inner:
        values[FOLDER] = "/".join(inner)
    findings = []
    columns = {}
    for name, value in values.items():
        if name not in raw.frame:
            columns[name] = pd.Series(value, index=raw.frame.index, dtype=pd.StringDtype(na_value=np.nan))
        elif name != FOLDER and (differs := int((raw.frame[name].astype("str") != str(value)).sum())):
            what = f"the folder says {name}={value}, the column {name!r} something else: the column is used"
            findings.append(Finding(raw.table, what, differs, "kept", raw.file))
    return replace(raw, frame=raw.frame.assign(**columns), findings=(*raw.findings, *findings))


def join_parts(parts: Sequence[tuple[Path, RawTable]], folder: Path, table: str) -> RawTable:
    """Joins parts into one table. Columns that a part lacks are empty in its rows, which is reported.

    Raises:
      DataError: The parts are several tables: their columns differ, and so do their names, or they share no column.
    """
    first_path, first = parts[0]
    names = dict.fromkeys(str(name) for _, part in parts for name in part.frame)
    for path, part in parts:
        same_columns = set(part.frame) == set(first.frame)
        same_name = _words(path) == _words(first_path) or is_partition(path.parent)
        if not same_columns and not (same_name and set(part.frame) & set(first.frame)):
            raise DataError(
                f"{folder} holds several tables: {_inside(first_path, folder)} has the columns {_listed(first)}, "
                f"{_inside(path, folder)} has {_listed(part)}. Expected parts with the same columns, each with a "
                f"header. {_REMEDY}"
            )
    findings: dict[tuple[str, str], Finding] = {}
    for _, part in parts:
        for f in part.findings:
            earlier = findings.get((f.what, f.action))
            findings[f.what, f.action] = replace(earlier, count=earlier.count + f.count) if earlier else f
    for name in names:
        lacking = [(path, part) for path, part in parts if name not in part.frame]
        if lacking:
            what = f"the column {name!r} is missing in {len(lacking):,} of {len(parts):,} parts: empty there"
            rows = sum(len(part.frame) for _, part in lacking)
            findings[what, "kept"] = Finding(table, what, rows, "kept", _inside(lacking[0][0], folder))
    starts = np.cumsum([0, *(len(part.frame) for _, part in parts)])
    return RawTable(
        table,
        folder.name,
        _concatenated([part.frame for _, part in parts], list(names)),
        np.concatenate([part.rows for _, part in parts]),
        np.concatenate([part.spans for _, part in parts]),
        findings=tuple(findings.values()),
        unreadable=sum(part.unreadable for _, part in parts),
        parts=tuple((int(start), _inside(path, folder)) for start, (path, _) in zip(starts, parts, strict=False)),
    )


def _concatenated(frames: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """Concatenates the rows; columns of different types become objects, because integers must not become floats."""
    columns = {}
    for name in names:
        found = [frame[name] if name in frame else pd.Series(None, frame.index, dtype=object) for frame in frames]
        if len({str(values.dtype) for values in found}) > 1:
            found = [values.astype(object) for values in found]
        columns[name] = pd.concat(found, ignore_index=True)
    return pd.DataFrame(columns)


def _is_hidden(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).parts
    hidden = any(p.startswith((".", "_")) and not is_partition(Path(p)) for p in inside)
    return hidden or path.name.lower().endswith(_CHECKSUMS)


def _words(path: Path) -> tuple[str, ...]:
    """Returns the words of a file's name without those with digits and UUIDs, in which parts of a table differ."""
    words = re.split(r"[^a-z0-9]+", _UUID.sub("", stem(path.name)).lower())
    return tuple(word for word in words if word and not re.search(r"\d", word))


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(text), "") if text.isdecimal() else (0, text) for text in re.split(r"(\d+)", str(path))]


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _listed(raw: RawTable) -> str:
    names = [repr(str(name)[:40]) for name in raw.frame]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")

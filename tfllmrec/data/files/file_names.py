"""Names of table files: their endings, their compression, and the columns that folder names hold."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

ATOMIC = (".inter", ".item", ".user")  # RecBole
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
DELIMITED_ENDINGS = (".csv", ".tsv", ".txt")
PARQUET_ENDINGS = (".parquet", ".parq", ".pq")
TABLE_ENDINGS = (*DELIMITED_ENDINGS, *JSON_ENDINGS, *PARQUET_ENDINGS)
_COMPRESSED = (".gz", ".gzip", ".bgz", ".bz2", ".xz", ".lzma", ".zip", ".zst", ".zstd", ".lz4")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def without_compression(name: str) -> str:
    """Returns ``name`` without the ending of a compression: ``ratings.csv`` for ``ratings.csv.gz``."""
    ending = next((e for e in _COMPRESSED if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def stem(name: str) -> str:
    """Returns ``name`` without the endings of a table and of a compression: ``ratings`` for ``ratings.csv.gz``."""
    plain = without_compression(name)
    ending = next((e for e in (*TABLE_ENDINGS, *ATOMIC) if plain.lower().endswith(e)), "")
    return plain[: len(plain) - len(ending)]


def named_folder(folder: Path) -> str:
    """Returns the folder as the subject of a sentence: ``This folder`` for ``.``."""
    return "This folder" if folder == Path() else str(folder)


def is_table(path: Path) -> bool:
    return without_compression(path.name).lower().endswith(TABLE_ENDINGS)


def is_partition(folder: Path) -> bool:
    """Returns whether the folder's name is ``column=value``, as Hive and Spark write it."""
    key, equals, _ = folder.name.partition("=")
    return bool(key and equals)


def partition_values(file: Path) -> dict[str, str | None]:
    """Returns the columns that the folders directly above a file such as ``day=2024-01-01/part-0.parquet`` hold.

    Names and values are URL-decoded, because their writers encode them; Hive's name for a missing value becomes None.
    """
    values: dict[str, str | None] = {}
    for folder in file.absolute().parents:
        if not is_partition(folder):
            break
        key, _, value = folder.name.partition("=")
        values[unquote(key)] = None if value == _HIVE_NULL else unquote(value)
    return dict(reversed(values.items()))

"""Writes a table part by part, in the format that the ending of the file's name states."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa

from tfllmrec.durable import replacing
from tfllmrec.errors import ConfigError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def check_suffix(path: Path) -> None:
    """Checks the ending of a file's name; call it before the work whose result the file will hold.

    Raises:
      ConfigError: The name ends in none of :data:`SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}.")


@contextmanager
def writing_table(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch | pa.Table], None]]:
    """Yields a function that adds rows to a new file, which appears as ``path`` if the block succeeds.

    Args:
      path: A name with one of :data:`SUFFIXES`.
      schema: The columns of all rows.

    Raises:
      WriteError: The file cannot be written; an earlier file of that name is unchanged.
    """
    with replacing(path) as fresh:
        if path.suffix == ".parquet":
            from pyarrow.parquet import ParquetWriter

            with ParquetWriter(fresh, schema) as table:
                yield table.write
            return
        with fresh.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                yield lambda rows: file.writelines(
                    json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows.to_pylist()
                )
                return
            separator = "," if path.suffix == ".csv" else "\t"
            schema.empty_table().to_pandas().to_csv(file, sep=separator, index=False)
            yield lambda rows: rows.to_pandas(types_mapper=_exact).to_csv(
                file, sep=separator, index=False, header=False
            )


def _exact(kind: pa.DataType) -> pd.ArrowDtype | None:
    """Keeps Arrow's integers and truth values, which pandas would convert to floats next to a missing value."""
    return pd.ArrowDtype(kind) if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else None

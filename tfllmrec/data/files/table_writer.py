"""Writes a table part by part, in the format of the file's name."""

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
    """Checks the name of a file before the work whose result it will hold.

    Raises:
      ConfigError: the name ends in none of :data:`SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}.")


@contextmanager
def writing_table(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch | pa.Table], None]]:
    """Yields a function that adds rows to a new file, which gets its name if the block succeeds.

    Args:
      path: a name with one of :data:`SUFFIXES`.
      schema: of all rows.

    Raises:
      WriteError: the file cannot be written; one that was there before is as it was.
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
    """Arrow's own integers and truth values, which must not become floats because a neighbour is missing."""
    return pd.ArrowDtype(kind) if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else None

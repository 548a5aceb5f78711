"""``tfllmrec recommend``: items for somebody, or for a whole file of people."""

from __future__ import annotations

import csv
import json as json_format
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import (
    Allow,
    Category,
    Exclude,
    History,
    Json,
    K,
    SavedModelPath,
    User,
    filters,
    ids,
    open_model,
    past_of,
    unknown_ids,
)
from tfllmrec.cli.output import as_rows, note, print_json, print_list, working
from tfllmrec.columns import ITEM, RANK, SCORE, USER
from tfllmrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tfllmrec.serving.saved_model import Recommendation, SavedModel

BATCH = 1000
SHOWN = 20


def recommend(
    saved_model: SavedModelPath,
    user: User = None,
    history: History = None,
    users: Annotated[
        Path | None,
        typer.Option("--users", help="For many: user ids, one a line, or CSV, TSV or JSONL with a user column."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --users: FILE.parquet or FILE.jsonl.")] = None,
    exclude: Exclude = "",
    allow: Allow = None,
    category: Category = None,
    k: K = 10,
    json: Json = False,
) -> None:
    """Recommend items to a known user, to somebody never seen (by history), or to a file of users."""
    if sum(given is not None for given in (user, history, users)) != 1:
        raise typer.BadParameter("expected one of --user ID, --history ID,ID and --users FILE.")
    if (users is None) != (out is None):
        raise typer.BadParameter("--users FILE and --out FILE go together.")
    excluded = ids(exclude)
    if users is not None and out is not None:
        if out.suffix not in (".parquet", ".jsonl"):
            raise typer.BadParameter(f"--out {out}: expected a name that ends in .parquet or .jsonl.")
        people = read_user_ids(users)
        with working():
            model = open_model(saved_model)
            summary = recommend_to_file(model, people, out, excluded, k, **filters(model, allow, category))
        if json:
            print_json(summary)
        return
    with working():
        model = open_model(saved_model)
        past, ratings, typed = past_of(model, user, history)
        unknown = unknown_ids(model, typed + excluded)
        items = model.recommend(past, ratings, excluded, k, **filters(model, allow, category))
    if json:
        print_json({"user": user, "history": past, "unknown": unknown, "items": as_rows(items)})
    else:
        print_list(items)


def read_user_ids(path: Path) -> list[str]:
    """The ids of a file, in its order, each once.

    ``.csv``, ``.tsv`` and ``.jsonl`` need a column ``user`` or ``user_id``; any other file has an id a line.

    Raises:
      DataError: the file cannot be read, a row has no id, or there are no ids at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    found = []
    for row, value in _user_cells(path, lines):
        if isinstance(value, bool | float | list | dict | None) or not str(value).strip():
            raise DataError(f"{path}, row {row}: expected a user id, got {value!r}.")
        found.append(str(value).strip())
    if not found:
        raise DataError(f"{path} holds no user ids.")
    unique = list(dict.fromkeys(found))
    if len(unique) < len(found):
        note(f"{path}: {len(found) - len(unique):,} repeated user ids are answered once")
    return unique


def _user_cells(path: Path, lines: list[str]) -> Iterator[tuple[int, Any]]:
    """Row number, from 1, and what stands where the user id should."""
    ending = path.suffix.lower()
    filled = [(row, line) for row, line in enumerate(lines, start=1) if line.strip()]
    if ending in (".csv", ".tsv"):
        rows = csv.reader([line for _, line in filled], delimiter="," if ending == ".csv" else "\t")
        header = [name.strip() for name in next(rows, [])]
        if filled:
            column = header.index(_user_column(path, header))
            for (row, _), cells in zip(filled[1:], rows, strict=False):
                yield row, cells[column] if column < len(cells) else None
    elif ending in (".jsonl", ".ndjson"):
        for row, line in filled:
            try:
                record = json_format.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, row {row}: expected a JSON object, got {line[:60]!r} ({error}).") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}, row {row}: expected a JSON object, got {line[:60]!r}.")
            yield row, record[_user_column(path, list(record))]
    else:
        yield from filled


def _user_column(path: Path, names: list[str]) -> str:
    for name in (USER, "user"):
        if name in names:
            return name
    raise DataError(f"{path}: expected a column {USER} or user, got {', '.join(names) or 'none'}.")


def recommend_to_file(
    model: SavedModel,
    people: Sequence[str],
    out: Path,
    exclude: list[str],
    k: int,
    allow: Sequence[str] | None = None,
    categories: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes a row for each recommendation: user_id, rank (from 1), item_id, score; wholly or not at all.

    Returns:
      ``file``, ``users`` (answered), ``rows``, ``without_data`` (the ids of those the training data does not have) and
      ``unknown`` (excluded ids that are not in the catalogue).

    Raises:
      DataError: nobody has data.
      ConfigError: the file cannot be written.
    """
    unknown = unknown_ids(model, exclude)
    histories: dict[str, tuple[list[str], list[float] | None]] = {}
    refusals: dict[str, DataError] = {}
    for person in people:
        try:
            histories[person] = model.history_of(person)
        except DataError as error:
            refusals[person] = error
    if not histories:
        raise DataError(f"none of the {len(people):,} users can be answered; the first one: {refusals[people[0]]}")

    answered = list(histories)
    rows = 0
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with _writer(partial, parquet=out.suffix == ".parquet") as write:
            for start in range(0, len(answered), BATCH):
                some = answered[start : start + BATCH]
                past, ratings = zip(*(histories[person] for person in some), strict=True)
                # Either the data has ratings, and everybody has a list of them, or nobody has.
                rated = None if ratings[0] is None else ratings
                n = len(some)
                lists = model.recommend_many(past, k, [exclude] * n, rated, [allow] * n, [categories] * n)
                rows += write(some, lists)
                if len(answered) > BATCH:
                    note(f"{start + n:,} of {len(answered):,} users")
        partial.replace(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    note(f"{out}: {rows:,} rows for {len(answered):,} users")
    if refusals:
        more = f" and {len(refusals) - SHOWN:,} more (--json lists all)" if len(refusals) > SHOWN else ""
        note(f"without data, not answered: {len(refusals):,} users: {', '.join(list(refusals)[:SHOWN])}{more}")
    return {
        "file": str(out),
        "users": len(answered),
        "rows": rows,
        "without_data": list(refusals),
        "unknown": unknown,
    }


@contextmanager
def _writer(path: Path, parquet: bool) -> Iterator[Callable[[list[str], list[list[Recommendation]]], int]]:
    """Yields what writes the lists of some users, and returns how many rows that were."""
    if parquet:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        schema = pa.schema([(USER, pa.string()), (RANK, pa.int32()), (ITEM, pa.string()), (SCORE, pa.float32())])
        with ParquetWriter(path, schema) as file:

            def write(people: list[str], lists: list[list[Recommendation]]) -> int:
                rows = _rows(people, lists)
                file.write_table(pa.Table.from_pylist(rows, schema))
                return len(rows)

            yield write
    else:
        with path.open("w", encoding="utf-8") as lines:

            def write(people: list[str], lists: list[list[Recommendation]]) -> int:
                rows = _rows(people, lists)
                lines.writelines(json_format.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
                return len(rows)

            yield write


def _rows(people: list[str], lists: list[list[Recommendation]]) -> list[dict[str, Any]]:
    return [
        {USER: person, RANK: rank, ITEM: item.item_id, SCORE: float(item.score)}
        for person, items in zip(people, lists, strict=True)
        for rank, item in enumerate(items, start=1)
    ]

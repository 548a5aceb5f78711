"""``tfllmrec recommend``: items for one user, or for a file of users."""

from __future__ import annotations

import json as json_format
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
    config_of_files,
    filters,
    ids,
    open_model,
    past_of,
    unknown_ids,
)
from tfllmrec.cli.output import as_rows, note, print_json, print_list, working
from tfllmrec.columns import ITEM, RANK, SCORE, USER
from tfllmrec.durable import replacing
from tfllmrec.errors import DataError

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
        typer.Option("--users", help="A file of user ids: one a line, or a table in the formats of --events of fit."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --users: FILE.parquet or FILE.jsonl.")] = None,
    exclude: Exclude = "",
    allow: Allow = None,
    category: Category = None,
    k: K = 10,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.B=C", help="With --users: how the file is read, as in a config."),
    ] = None,
    json: Json = False,
) -> None:
    """Recommend items to a known user, to an unknown user by history, or to each user of a file."""
    if sum(given is not None for given in (user, history, users)) != 1:
        raise typer.BadParameter("expected one of --user ID, --history ID,ID and --users FILE.")
    if (users is None) != (out is None):
        raise typer.BadParameter("--users FILE and --out FILE go together.")
    if overrides and (users is None or not all(setting.startswith("data.") for setting in overrides)):
        raise typer.BadParameter("--set goes with --users FILE and takes settings of the section data.")
    excluded = ids(exclude)
    if users is not None and out is not None:
        if out.suffix not in (".parquet", ".jsonl"):
            raise typer.BadParameter(f"--out {out}: expected a name that ends in .parquet or .jsonl.")
        if not out.parent.is_dir():
            raise typer.BadParameter(f"--out {out}: the folder {out.parent} does not exist; make it first.")
        from tfllmrec.data.readers import read_ids

        user_ids, report = read_ids(users, config_of_files(None, None, None, overrides).config.data)
        for line in report.lines():
            note(line)
        with working():
            model = open_model(saved_model)
            summary = recommend_to_file(model, user_ids, out, excluded, k, **filters(model, allow, category))
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


def recommend_to_file(
    model: SavedModel,
    user_ids: Sequence[str],
    out: Path,
    exclude: list[str],
    k: int,
    allow: Sequence[str] | None = None,
    categories: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes a row for each recommendation: user_id, rank (from 1), item_id, score; wholly or not at all.

    Returns:
      ``file``, ``users`` (number of answered users), ``rows``, ``without_data`` (ids of users that the training data
      does not have) and ``unknown`` (excluded ids that are not in the catalogue).

    Raises:
      DataError: none of the users is in the training data.
      WriteError: the file cannot be written.
    """
    unknown = unknown_ids(model, exclude)
    histories = model.histories_of(user_ids)
    without_data = [user for user in user_ids if user not in histories]
    if not histories:
        raise DataError(
            f"none of the {len(user_ids):,} users is in the data that the model was trained on: {_first(user_ids)}. "
            "Expected user ids as in its events; for other users give their items, one user at a time: --history ID,ID."
        )

    answered = list(histories)
    rows = 0
    with replacing(out) as fresh, _writer(fresh, parquet=out.suffix == ".parquet") as write:
        for start in range(0, len(answered), BATCH):
            some = answered[start : start + BATCH]
            past, ratings = zip(*(histories[user] for user in some), strict=True)
            # Either the data has ratings, and every user has a list of them, or no user has.
            rated = None if ratings[0] is None else ratings
            n = len(some)
            lists = model.recommend_many(past, k, [exclude] * n, rated, [allow] * n, [categories] * n)
            rows += write(some, lists)
            if len(answered) > BATCH:
                note(f"{start + n:,} of {len(answered):,} users")
    note(f"{out}: {rows:,} rows for {len(answered):,} users")
    if without_data:
        note(f"without data, not answered: {len(without_data):,} users: {_first(without_data, '--json lists all')}")
    return {
        "file": str(out),
        "users": len(answered),
        "rows": rows,
        "without_data": without_data,
        "unknown": unknown,
    }


def _first(user_ids: Sequence[str], hint: str = "") -> str:
    """The first ids, and the number of the others with a hint where to find them."""
    more = f" and {len(user_ids) - SHOWN:,} more{f' ({hint})' if hint else ''}" if len(user_ids) > SHOWN else ""
    return f"{', '.join(user_ids[:SHOWN])}{more}"


@contextmanager
def _writer(path: Path, parquet: bool) -> Iterator[Callable[[list[str], list[list[Recommendation]]], int]]:
    """Yields what writes the lists of some users, and returns how many rows that were."""
    if parquet:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        schema = pa.schema([(USER, pa.string()), (RANK, pa.int32()), (ITEM, pa.string()), (SCORE, pa.float32())])
        with ParquetWriter(path, schema) as file:

            def write(user_ids: list[str], lists: list[list[Recommendation]]) -> int:
                rows = _rows(user_ids, lists)
                file.write_table(pa.Table.from_pylist(rows, schema))
                return len(rows)

            yield write
    else:
        with path.open("w", encoding="utf-8") as lines:

            def write(user_ids: list[str], lists: list[list[Recommendation]]) -> int:
                rows = _rows(user_ids, lists)
                lines.writelines(json_format.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
                return len(rows)

            yield write


def _rows(user_ids: list[str], lists: list[list[Recommendation]]) -> list[dict[str, Any]]:
    return [
        {USER: user, RANK: rank, ITEM: item.item_id, SCORE: float(item.score)}
        for user, items in zip(user_ids, lists, strict=True)
        for rank, item in enumerate(items, start=1)
    ]

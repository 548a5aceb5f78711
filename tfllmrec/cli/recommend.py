"""``tfllmrec recommend``: recommends items to one user, or to a file of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import (
    Allow,
    Category,
    Context,
    EventFields,
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
from tfllmrec.client.inputs import STAGES
from tfllmrec.columns import ITEM, RANK, REASON, SCORE, TITLE, USER
from tfllmrec.errors import DataError
from tfllmrec.progress import show_progress

if TYPE_CHECKING:
    import pandas as pd

    from tfllmrec.serving.saved_model import SavedModel

BATCH = 1000
SHOWN = 20


def recommend(
    saved_model: SavedModelPath,
    user: User = None,
    history: History = None,
    event_field: EventFields = None,
    users: Annotated[
        Path | None,
        typer.Option("--users", help="A file of user ids: one per line, or a table in the formats of 'fit --events'."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --users: FILE.csv, FILE.tsv, FILE.jsonl or FILE.parquet.")
    ] = None,
    exclude: Exclude = "",
    allow: Allow = None,
    category: Category = None,
    k: K = 10,
    diversity: Annotated[
        float,
        typer.Option("--diversity", min=0, max=1, help="From 0 (the best items) to 1 (the most different ones)."),
    ] = 0.0,
    pin: Annotated[str, typer.Option("--pin", metavar="ID,ID", help="Items to list first, in this order.")] = "",
    category_cap: Annotated[
        int, typer.Option("--category-cap", min=0, help="Maximum number of items from one category; 0: no limit.")
    ] = 0,
    tail_share: Annotated[
        float,
        typer.Option(
            "--tail-share",
            min=0,
            max=1,
            help="Minimum share of tail items. By default, these are all items except the 20 % with the most "
            "training events.",
        ),
    ] = 0.0,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="STAGE",
            help="Stage to skip. exclusion: items of the history may come back; ranking: keep the order of retrieval.",
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--more", metavar="LABEL", help="More items with this label. 'tfllmrec interests' shows labels."),
    ] = None,
    less: Annotated[
        list[str] | None, typer.Option("--less", metavar="LABEL", help="Fewer items with this label.")
    ] = None,
    context: Context = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.B=C", help="With --users: a data setting for reading the file."),
    ] = None,
    json: Json = False,
) -> None:
    """Recommend items to one user, or to each user of a file.

    The user is one of the training data (--user), or anyone with a history (--history).
    """
    if sum(given is not None for given in (user, history, users)) != 1:
        raise typer.BadParameter("expected one of --user ID, --history ID,ID and --users FILE.")
    if (users is None) != (out is None):
        raise typer.BadParameter("--users FILE and --out FILE go together.")
    if overrides and (users is None or not all(setting.startswith("data.") for setting in overrides)):
        raise typer.BadParameter("--set goes with --users FILE and takes settings of the section data.")
    if unknown_stages := sorted(set(skip or ()) - set(STAGES)):
        raise typer.BadParameter(f"--skip {unknown_stages[0]}: expected {', '.join(STAGES)}.")
    if both := sorted(set(more or ()) & set(less or ())):
        raise typer.BadParameter(f"--more and --less {both[0]}: expected one of them.")
    if event_field and users is not None:
        raise typer.BadParameter("--event-field goes with --history ID,ID.")
    if context and users is not None:
        raise typer.BadParameter("--context goes with --user ID or --history ID,ID.")
    excluded, pinned = ids(exclude), ids(pin)
    rules = {
        "diversity": diversity,
        "pinned": pinned,
        "category_cap": category_cap,
        "tail_share": tail_share,
        "skip": skip or [],
        "label_weights": dict.fromkeys(more or (), 1.0) | dict.fromkeys(less or (), -1.0),
    }
    if users is not None and out is not None:
        from tfllmrec.data.files.table_writer import check_suffix

        check_suffix(out)
        if not out.parent.is_dir():
            raise typer.BadParameter(f"--out {out}: the folder {out.parent} does not exist; make it first.")
        from tfllmrec.data.readers import read_ids

        user_ids, report = read_ids(users, config_of_files(None, None, None, overrides).config.data)
        for line in report.lines():
            note(line)
        with working():
            model = open_model(saved_model)
            asked = filters(model, allow, category) | rules
            summary = recommend_to_file(model, user_ids, out, excluded, k, asked)
        _note_ignored(model, category_cap)
        if json:
            print_json(summary)
        return
    with working():
        model = open_model(saved_model)
        past, ratings, fields, typed = past_of(model, user, history, event_field, context)
        unknown = unknown_ids(model, typed + excluded + pinned)
        rated = None if ratings is None else [ratings]
        asked = filters(model, allow, category) | rules
        asked |= {name: [value] for name, value in fields.items()}
        found = model.recommend(histories=[past], k=k, ratings=rated, exclude=excluded, **asked)
    _note_ignored(model, category_cap)
    _note_unread(model, found, asked)
    if json:
        print_json({"user": user, "history": past, "unknown": unknown, "items": as_rows(found)})
    else:
        print_list(found, k)


def recommend_to_file(
    model: SavedModel,
    user_ids: Sequence[str],
    out: Path,
    exclude: list[str],
    k: int,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the rows of :meth:`SavedModel.recommend` for each user; on an error, no file is written.

    Args:
      model: The model.
      user_ids: The ids of the users.
      out: A file name with one of :data:`tfllmrec.data.files.table_writer.SUFFIXES`.
      exclude: Ids of items to exclude.
      k: The length of the lists.
      asked: Other arguments of :meth:`SavedModel.recommend`.

    Returns:
      ``file``, ``users`` (number of answered users), ``rows``, ``without_data`` (ids of users that the training data
      does not have) and ``unknown`` (excluded and pinned ids that are not in the catalogue).

    Raises:
      DataError: None of the users is in the training data.
      WriteError: The file cannot be written.
    """
    import pyarrow as pa

    from tfllmrec.data.files.table_writer import writing_table

    unknown = unknown_ids(model, [*exclude, *asked["pinned"]])
    known = model.known_users(user_ids)
    answered = [user for user, there in zip(user_ids, known, strict=True) if there]
    without_data = [user for user, there in zip(user_ids, known, strict=True) if not there]
    if not answered:
        raise DataError(
            f"none of the {len(user_ids):,} users is in the data that the model was trained on: {_first(user_ids)}. "
            "Expected user ids as in its events; for other users give their items, one user at a time: --history ID,ID."
        )

    rows = short = 0
    types = {name: pa.string() for name in (USER, RANK, ITEM, TITLE, SCORE, REASON)}
    schema = pa.schema(types | {RANK: pa.int32(), SCORE: pa.float32()})
    with (
        writing_table(out, schema) as write,
        show_progress("recommending", "users") as progress,
    ):
        for start in range(0, len(answered), BATCH):
            some = answered[start : start + BATCH]
            found = model.recommend(some, k, exclude=exclude, **asked)
            write(pa.Table.from_pandas(found, schema, preserve_index=False))
            if not rows:
                _note_unread(model, found, asked)
            rows += len(found)
            short += len(some) - int((found[RANK] == k).sum())
            progress(start + len(some), len(answered))
    note(f"{out}: {rows:,} rows for {len(answered):,} users")
    if short:
        note(f"fewer than {k:,} rows, because no further candidate passes: {short:,} users")
    if without_data:
        note(f"without data, not answered: {len(without_data):,} users: {_first(without_data, '--json lists all')}")
    return {
        "file": str(out),
        "users": len(answered),
        "rows": rows,
        "without_data": without_data,
        "unknown": unknown,
    }


def _note_ignored(model: SavedModel, category_cap: int) -> None:
    """Reports on stderr that a cap has no effect."""
    if category_cap and not model.categories:
        note("no item has a category, so --category-cap has no effect")


def _note_unread(model: SavedModel, found: pd.DataFrame, asked: Mapping[str, Any]) -> None:
    """Reports on stderr the labels with weights that the model does not have.

    ``unread`` of an answer counts other things, too; so each label is requested alone.
    """
    if not any(found.attrs["unread"]):
        return
    lacking = [
        label
        for label in asked["label_weights"]
        if any(model.recommend(histories=[[]], k=1, label_weights={label: 1.0}).attrs["unread"])
    ]
    if lacking:
        note(f"the model does not have these labels ('tfllmrec interests' shows some): {_first(lacking)}")


def _first(user_ids: Sequence[str], hint: str = "") -> str:
    """Returns the first ids, and the number of the others with a hint where to find them."""
    more = f" and {len(user_ids) - SHOWN:,} more{f' ({hint})' if hint else ''}" if len(user_ids) > SHOWN else ""
    return f"{', '.join(user_ids[:SHOWN])}{more}"

"""Makes a run from an earlier run (its parent) and newer data, without training from scratch.

Known items and users keep their indices; new ones follow (:meth:`Dataset.extend`). The data is split again: events that
were held out before become training events, and the newest events are held out. No event that the parent was trained on
is held out. Settings and vocabularies of fields are the parent's: a value that the parent has not seen counts as
unknown until the next fit. Only new texts are encoded. The item-item weights are solved again, from exact statistics
(:mod:`tfllmrec.runs.warm_start`). Dense side, gates, ranking and interests are trained further from the parent's state;
the parent's choices on validation change only if the gain is beyond chance.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM_INDEX, TIMESTAMP, USER_INDEX
from tfllmrec.config import DataConfig, ExperimentConfig, dump_config, parse_config
from tfllmrec.data.cleaning.recognition import EVENT_COLUMNS, ITEM_COLUMNS
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.extension import known_occurrences
from tfllmrec.data.files.event_log import LogPlace, LogReader, is_event_log
from tfllmrec.data.findings import CleaningReport
from tfllmrec.data.readers import read_dataset
from tfllmrec.durable import absolute, locked, read_json, replacing, write_text
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.progress import Tell, to_stderr
from tfllmrec.runs.experiment import continue_run, data_beside, free_folder, has_trained, log_place, note_log_place
from tfllmrec.runs.run import PARENT, READ_LOG, SCHEMA, TAKEN_OVER, TRAINED, UPDATE, Parent, Run, Update, unfinished

#: Settings that determine the meaning of the parent's weights.
KEPT = ("split", "text", "tuning", "distillation", "model", "item_weights", "seed")


class NothingNew(DataError):
    """The files contain no event that the run does not know."""


def update_run(
    parent: Path | str,
    events: Path | str,
    items: Path | str | None = None,
    users: Path | str | None = None,
    out: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    tell: Tell = to_stderr,
) -> Run:
    """Makes a complete run from an earlier one and newer tables.

        update_run("runs/shop", "june.csv", "new_items.csv", out="runs/shop-june")

    An interrupted update continues where it stopped if it is called again with the same ``out`` and files, or by
    ``tfllmrec fit --resume OUT``.

    Args:
      parent: The folder of a complete run; it is only read.
      events: New events, in any format that :func:`tfllmrec.data.read_dataset` reads, or the folder of an event log.
        Events that the run already has are dropped and counted.
      items: New items, and new values of known ones.
      users: New users, and new values of known ones.
      out: The folder of the new run; by default that of the parent with a number.
      overrides: Settings such as ``update.epochs=5``. Settings that determine the meaning of the parent's weights
        cannot be changed, and a continued update keeps the settings that it was started with.
      tell: Called with a line of text for each step.

    Returns:
      The new run. Its ``run.json`` names the parent.

    Raises:
      ConfigError: A setting cannot be changed, or the settings differ from those of the started update; the parent was
        made by a transfer; or ``out`` is taken, or in use by another process.
      NothingNew: The files contain no event that the run does not know.
      DataError: The files cannot be read, or do not fit the run's data.
      ModelError: The parent is incomplete or damaged.
      WriteError: The disk is full, read-only or broken.
    """
    run, out = Run.open(parent), None if out is None else Path(out)
    if run.config.transfer.sources:
        raise ConfigError(
            f"{run.folder} was made by 'tfllmrec transfer': an update would not know the events of its sources. "
            "Transfer again, with a table of all events: tfllmrec transfer --source RUN --events FILE --items FILE."
        )
    config = _config(run, overrides)
    came = _data_section(run, events, items, users)
    source = came.model_dump(mode="json", exclude_defaults=True)
    if out is not None and (begun := _begun(out, run, source)) is not None:
        assert begun.update is not None
        if overrides and list(overrides) != begun.update.overrides:
            began_with = " ".join(f"--set {each}" for each in begun.update.overrides) or "no --set"
            raise ConfigError(
                f"{out} was started with {began_with}: expected the same settings, found "
                f"{' '.join(f'--set {each}' for each in overrides)}. Leave them out, or name another folder with --out."
            )
        if begun.complete:
            tell(f"{out} is already complete: nothing was read. For newer events, name another folder with --out")
            return begun
        tell(f"continuing {out}")
        with locked(out):
            return continue_run(begun, begun.config, tell)
    said = f"{run.folder}: the run already knows every event in the files: nothing was updated."
    if items:
        said += " To serve new items, or new values of known ones such as prices, export the run with them: tfllmrec"
        said += f" export {run.folder} saved_models/NAME --items {items}"
    place, since = log_place(Path(events)), _log_since(run, Path(events))
    if place is not None and place == _log_place_of(run):
        raise NothingNew(said)
    tell("reading the data" if not since else f"reading the data: events of the log after number {since:,}")
    dataset = read_dataset(_with_columns_there(came, since), known=run.dataset, log_since=since)
    dataset = replace(dataset, report=_of_this_reading(dataset.report, run.dataset.report))
    for line in dataset.report.lines():
        tell(f"data: {line}")
    if _is_known(dataset, run.dataset):
        raise NothingNew(said)
    own = absolute(run.folder)
    with free_folder(out, own.name, own.parent) as folder:
        tell(f"run folder: {folder}")
        _begin(run, config, source, dataset, folder, overrides, tell)
        note_log_place(folder, place or _log_place_of(run))
        return continue_run(Run(folder, config.tuning.paraphrase), config, tell)


def _config(run: Run, overrides: Sequence[str]) -> ExperimentConfig:
    own = run.config.model_dump(mode="json")
    config = parse_config(json.loads(json.dumps(own)), overrides, origin=str(run.folder / "config.yaml"))
    asked = config.model_dump(mode="json")
    if changed := [name for name in ("data", *KEPT) if asked[name] != own[name]]:
        raise ConfigError(
            f"--set: expected settings of an update, such as update.epochs; found {', '.join(changed)}, which the run "
            f"in {run.folder} was made with: leave them out, or fit again."
        )
    config.model, config.item_weights = config.model.settled(), config.item_weights.settled()
    return config


def _data_section(run: Run, events: Path | str, items: Path | str | None, users: Path | str | None) -> DataConfig:
    """Returns the settings for the new tables: the run's own, with all its mapped columns, which later updates need."""
    named = {"events": events, "items": items, "users": users}
    own = run.config.data.model_dump(mode="json", exclude={"source", "format", "name", "more_items", "vectors"})
    files = {role: None if path is None else str(path) for role, path in named.items()}
    return DataConfig.model_validate({**own, **files, "columns": run.record["source"].get("columns", {})})


def _with_columns_there(came: DataConfig, since: int) -> DataConfig:
    """Returns ``came`` without the mapped columns that its tables cannot have, or that no event of a log has.

    A log has its own column names, whatever those of the run's files were, and its events after ``since`` may all lack
    a field.
    """
    assert came.events is not None
    of_items = ITEM_COLUMNS if came.items else ()
    columns = {name: column for name, column in came.columns.items() if name in (*EVENT_COLUMNS, *of_items)}
    if columns and is_event_log(Path(came.events)):
        with LogReader(Path(came.events)) as reader:
            there = set(reader.table(since=since).schema.names)
        columns = {name: column for name, column in columns.items() if column in there or name in of_items}
    return came.model_copy(update={"columns": columns})


def _log_place_of(run: Run) -> LogPlace | None:
    """Returns how far the run and its parents have read an event log; ``None`` if they have read none."""
    path = run.folder / READ_LOG
    return read_json(path, LogPlace, "delete it: then the whole log is read") if path.is_file() else None


def _log_since(run: Run, events: Path) -> int:
    """Returns the number of the newest event of the log ``events`` that the run has read; 0 to read the whole log.

    A log numbers events in the order of receipt, so events that happened earlier and arrived late have larger numbers.
    The whole log is read if the run has read another one, or if ``data.min_user_events`` is above 1: events of users
    who had too few were dropped, and may count now.
    """
    place = _log_place_of(run)
    if place is None or not is_event_log(events) or run.config.data.min_user_events > 1:
        return 0
    with LogReader(events) as reader:
        return place.number if reader.holds(place) else 0


def _begun(out: Path, parent: Run, source: dict[str, Any]) -> Run | None:
    """Returns the update in ``out`` of the same parent with the same files, if its training began."""
    if not (out / UPDATE).is_file() or not has_trained(out):
        return None
    run = Run(out)
    assert run.update is not None
    same = read_json(out / "source.json", dict[str, Any], "start again in another folder") == source
    return run if same and Path(run.update.parent) == parent.folder.resolve() else None


def _of_this_reading(report: CleaningReport, earlier: CleaningReport) -> CleaningReport:
    """Returns the new findings and the earlier doubts, each once, so that the report does not grow with each update."""
    found = report.findings[len(earlier.findings) :]
    doubts = [finding for finding in earlier.findings if finding.action == "doubted" and finding not in found]
    rows_in = {table: n - earlier.rows_in.get(table, 0) for table, n in report.rows_in.items()}
    rows_kept = {table: n - earlier.rows_kept.get(table, 0) for table, n in report.rows_kept.items()}
    return CleaningReport(
        {table: n for table, n in rows_in.items() if n},
        {table: rows_kept[table] for table, n in rows_in.items() if n},
        doubts + found,
        report.sources[len(earlier.sources) :],
        report.tied_users,
    )


def _is_known(dataset: Dataset, known: Dataset) -> bool:
    return len(dataset.events) == len(known.events) and dataset.events[list(known.events)].equals(known.events)


def _begin(
    parent: Run,
    config: ExperimentConfig,
    source: dict[str, Any],
    dataset: Dataset,
    folder: Path,
    overrides: Sequence[str],
    tell: Tell,
) -> None:
    """Writes the starting point of the update into its folder, which must be free."""
    from tfllmrec.training.text.query_encoder import MADE_FROM

    write_text(folder / "source.json", json.dumps(source, indent=1))
    lineage = Parent(folder=parent.folder.resolve().name, data_sha256=parent.dataset.fingerprint)
    write_text(folder / PARENT, lineage.model_dump_json(indent=1))
    trained = trained_rows(dataset, parent.split.train)
    with replacing(folder / TRAINED) as fresh, fresh.open("wb") as stream:
        np.save(stream, trained)
    write_text(folder / SCHEMA, json.dumps(parent.split.schema.as_dict(), indent=1, ensure_ascii=False))
    dataset.save(folder / "data")
    known = parent.dataset
    record = Update(
        parent=str(parent.folder.resolve()),
        new_events=len(dataset.events) - len(known.events),
        new_items=dataset.n_items - known.n_items,
        new_users=dataset.n_users - known.n_users,
        overrides=list(overrides),
    )
    write_text(folder / UPDATE, record.model_dump_json(indent=1))
    for name in TAKEN_OVER:
        if (parent.folder / name).is_dir():
            ignored = [path.name for path in (parent.folder / name).iterdir() if unfinished(path)]
            ignore = shutil.ignore_patterns("checkpoints", *ignored)
            shutil.copytree(parent.folder / name, folder / name, ignore=ignore)
    for claimed in (folder / "query_encoder").glob(f"*/{MADE_FROM}"):
        claimed.unlink()  # the update may have other texts
    config.data = data_beside(config.data, dataset.name)
    # Written last: with this file, the folder is a run that can be continued.
    write_text(folder / "config.yaml", dump_config(config))


def trained_rows(dataset: Dataset, train: pd.DataFrame) -> np.ndarray:
    """Returns int64 ``[T]``: the rows of ``dataset.events`` that are training events of an earlier split.

    Args:
      dataset: A data set.
      train: The training events, with the indices of users and items in ``dataset``.
    """
    key = [USER_INDEX, ITEM_INDEX, TIMESTAMP]
    groups = pd.concat([train[key], dataset.events[key]]).groupby(key, dropna=False, sort=False).ngroup()
    trained, there = groups[: len(train)], groups[len(train) :]
    return np.flatnonzero(known_occurrences(there, trained))

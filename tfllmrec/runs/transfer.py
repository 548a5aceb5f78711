"""Prepares runs that start from complete runs of other domains, and records what they use in a file.

The sources are read when the target run is started and when it is fitted; a complete run no longer needs them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM, USER
from tfllmrec.config import ExperimentConfig, TransferConfig, transfer_without_effect
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.domains import SEPARATOR, Overlap, join_datasets
from tfllmrec.data.same_items import same_items, titles_differ
from tfllmrec.data.schema import TABLES, Schema
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.evaluation.protocol import paired_differences, shown_length
from tfllmrec.progress import Tell
from tfllmrec.runs.run import Run, SourceRun, Transferred
from tfllmrec.text.template import ItemTemplate

if TYPE_CHECKING:
    from tfllmrec.evaluation.alignment import Distances
    from tfllmrec.training.transfer import Source


#: Kinds of split whose queries can be restricted to one domain of joined data.
_KINDS_WITH_DOMAIN = ("auto", "leave_last_out", "leave_random_out", "cold_domain")


@dataclass(frozen=True, eq=False)
class Begun:
    """The starting point of a run with sources.

    Attributes:
      dataset: The target's data set, or with ``joint`` and ``map`` that of all domains.
      config: The config with absolute paths of the sources, and with the settings that come from them.
      schema: The schema of the first source; ``None`` with ``joint`` and ``map``.
    """

    dataset: Dataset
    config: ExperimentConfig
    schema: Schema | None


def begin_transfer(dataset: Dataset, config: ExperimentConfig, base: Path, out: Path, tell: Tell) -> Begun:
    """Compares the target with its sources, writes ``transfer.json``, and prepares data, config and schema.

    Args:
      dataset: The data set of the target.
      config: A config with ``transfer.sources``; it is not changed.
      base: The folder that relative paths refer to.
      out: The folder of the new run.
      tell: Called with a line of text for each overlap and column.

    Raises:
      ConfigError: Two domains have the same name, ids may be equal by chance, ``data.repeats`` of the source differs,
        the source has no texts to read those of the target with, or the method is ``map`` and there are no shared
        users.
      ModelError: A source is not complete.
    """
    config = config.model_copy(deep=True)
    asked = config.transfer
    runs = [Run.open((base / path).resolve()) for path in asked.sources]
    asked.sources = [run.folder for run in runs]
    names = [*(run.dataset.name for run in runs), dataset.name]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"Expected a name of its own for each domain, found {', '.join(names)}: set data.name of the target."
        )
    rows = [same_items(dataset.items, run.dataset.items, asked.same_items) for run in runs]
    if asked.same_items == "id":
        for run, matched in zip(runs, rows, strict=True):
            _check_ids(dataset, run, matched, "same_items" in asked.model_fields_set, tell)
    shared = [_overlap(dataset, run, each, asked.same_users) for run, each in zip(runs, rows, strict=True)]
    for each in shared:
        tell(f"transfer: {each}")
    if asked.method == "auto" and asked.same_users:
        asked.method = "joint"
    sources = [SourceRun(folder=run.folder, name=run.dataset.name, data_sha256=run.dataset.fingerprint) for run in runs]
    record = Transferred(sources=sources, overlaps=[each.as_dict() for each in shared])
    if asked.method in ("joint", "map"):
        if asked.method == "map":
            if not any(each.users for each in shared):
                raise ConfigError(
                    "transfer.method=map: expected users of both domains to learn a map from, found none. Pass "
                    "--same-users if equal user ids mean the same user, or use zero_shot or fine_tune."
                )
            config.item_weights.map = True
        record.write(out)
        datasets = {
            run.dataset.name: _renamed(run.dataset, each, dataset, asked.same_users)
            for run, each in zip(runs, rows, strict=True)
        }
        joined = join_datasets({**datasets, dataset.name: dataset}, share_users=True, share_items=True)
        if config.split.domain is None and config.split.kind in _KINDS_WITH_DOMAIN:
            config.split.domain = dataset.name
        for line in transfer_without_effect(asked):
            tell(f"warning: {line}")
        config.transfer = TransferConfig()  # the joined data no longer needs the sources
        return Begun(joined, config, None)
    first = runs[0]
    if first.dataset.repeats != dataset.repeats:
        raise ConfigError(
            "data.repeats: expected the value of the source, found another one: set data.repeats as in the source's "
            "config.yaml."
        )
    if first.encoder_fingerprint is None and _has_text(dataset.items, first.config.text.template):
        raise ConfigError(
            f"{first.folder} was fitted without texts, and {dataset.name} has texts, which its model cannot read. Fit "
            "the source with the titles of its items (--items), or use transfer.method=joint, which fits a new model."
        )
    replaced = ["text", "tuning", "distillation", "model"]
    replaced += ["item_weights", "training"] if asked.method in ("zero_shot", "align") else []
    for name in replaced:
        if (section := getattr(config, name)) != type(section)():
            tell(f"warning: {name}: these settings have no effect, because those of the source are used")
    config.text = first.config.text.model_copy(deep=True)
    config.model = first.config.model.model_copy(deep=True)
    config.tuning, config.distillation = first.config.tuning, first.config.distillation
    schema = first.split.schema
    prepared, record.missing = _with_columns(dataset, schema, config.text.template)
    known = {f"{field.owner}.{field.name}" for field in schema}
    record.unread = [
        f"{field.owner}.{field.name}"
        for field in dataset.schema
        if field.has_encoder and f"{field.owner}.{field.name}" not in known
    ]
    if record.missing:
        tell(f"transfer: the target lacks {', '.join(record.missing)}, which the source reads: taken as missing")
    if record.unread:
        tell(f"transfer: the source does not know {', '.join(record.unread)}: not read")
    record.write(out)  # before the folder ``text``, which may be removed only if this file exists
    if (first.folder / "text").is_dir():  # the source trained its text tower
        shutil.copytree(first.folder / "text", out / "text")
    return Begun(prepared, config, schema)


def read_source(run: Run, config: ExperimentConfig) -> Source:
    """Returns what the fit of a run needs from its sources.

    Raises:
      ModelError: A source is missing, or its data changed after the run was started.
    """
    from tfllmrec.training.transfer import Source, histories_among, together

    record = run.transferred
    assert record is not None
    runs = [Run.open(path) for path in config.transfer.sources]
    for source, then in zip(runs, record.sources, strict=True):
        if source.dataset.fingerprint != then.data_sha256:
            raise ModelError(
                f"The data of {source.folder} changed after {run.folder} was started: start {run.folder} again."
            )
    rows = [same_items(run.dataset.items, source.dataset.items, config.transfer.same_items) for source in runs]
    histories = [source.split.train_queries().choices for source in runs]
    shared = [
        histories_among(past, each, source.dataset.n_items)
        for past, each, source in zip(histories, rows, runs, strict=True)
    ]
    return Source(runs[0].load_model(), rows[0], np.asarray(runs[0].text), together(shared), histories[0])


@dataclass(frozen=True)
class Compared:
    """A figure of a transferred run compared with that of a run that was fitted on the target alone.

    Attributes:
      here: The figure of the transferred run.
      alone: The figure of the run on the target alone.
      difference: ``here`` minus ``alone``.
      low: Lower end of the paired 95 % interval of the difference over users.
      high: Upper end of the interval.
    """

    here: float
    alone: float
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        share = f"{self.here / self.alone:.0%} of the {self.alone:.4f}" if self.alone else "beside the 0"
        return (
            f"{self.here:.4f}, {share} of a fit on the target alone "
            f"({self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}])"
        )


def compared(run: Run, alone: Run) -> dict[str, Compared]:
    """Compares ndcg and recall of the models of two runs on the same test queries, by label.

    Raises:
      ModelError: The runs have different test queries, or lists of different lengths.
    """
    check_comparable(run, alone)
    ours, theirs, labels = run.results["hybrid"], alone.results["hybrid"], _compared_labels(run)
    differences = paired_differences(ours, theirs, labels)
    return {
        label: Compared(ours.metrics[label] or 0.0, theirs.metrics[label] or 0.0, *difference)
        for label, difference in differences.items()
    }


def check_comparable(run: Run, alone: Run) -> None:
    """Checks that :func:`compared` can compare a run, which need not be fitted yet, with a complete one.

    Raises:
      ModelError: The runs have different test queries, or lists of different lengths.
    """
    labels = _compared_labels(run)
    if _asked(run) != _asked(alone) or any(label not in alone.results["hybrid"].per_query for label in labels):
        raise ModelError(
            f"{alone.folder}: expected {' and '.join(labels)} on the test queries of {run.folder}, found others. Fit "
            "it on the same data, with the same split and evaluation.ks."
        )


def _compared_labels(run: Run) -> list[str]:
    k = shown_length(run.config.evaluation.ks)
    return [f"ndcg@{k}", f"recall@{k}"]


def _asked(run: Run) -> list[tuple[str, list[str]]]:
    """Returns the user and the target items of each test query."""
    items, test = run.dataset.items[ITEM].to_numpy(object), run.split.test
    return [(user, items[rows].tolist()) for user, rows in zip(test.user_ids, test.targets, strict=True)]


def text_distances(runs: Mapping[str, Run]) -> dict[str, Distances]:
    """Returns the distances between the item texts of each pair of runs, by a label of the comparison.

    Each pair is compared twice: with the vectors of the encoder, and after each domain is centred on its own mean. Runs
    without text, and pairs of runs with different encoders, are left out.
    """
    from tfllmrec.evaluation.alignment import distances
    from tfllmrec.text.centring import centred_unit

    found = {}
    for (a, first), (b, second) in combinations(runs.items(), 2):
        if first.encoder_fingerprint and first.encoder_fingerprint == second.encoder_fingerprint:
            texts = np.asarray(first.text), np.asarray(second.text)
            centred = tuple(centred_unit(text, widths=first.text_widths) for text in texts)
            for how, (x, y) in (("", texts), (", centred", centred)):
                if (each := distances(x, y)) is not None:
                    found[f"item texts of {a} and {b}{how}"] = each
    return found


def note_alignment(run: Run, found: Mapping[str, Distances | None], tell: Tell) -> None:
    """Adds the distances between the domains to ``transfer.json``, and reports them."""
    record = run.transferred
    assert record is not None
    record.alignment = {name: None if each is None else each.as_dict() for name, each in found.items()}
    record.write(run.folder)
    for name, each in found.items():
        if each is not None:
            tell(f"transfer: {name} alignment: {each}")


def _check_ids(dataset: Dataset, run: Run, rows: np.ndarray, asked: bool, tell: Tell) -> None:
    """Checks by their titles that items of the target and of a source with the same id are the same.

    Args:
      dataset: The data set of the target.
      run: The source.
      rows: The result of :func:`same_items` for the ids.
      asked: Whether the config says that equal ids are the same item; the titles may then be in other languages.
      tell: Called with a warning.

    Raises:
      ConfigError: Most titles differ, and the config does not say that the items are the same.
    """
    differ = titles_differ(dataset.items, run.dataset.items, rows)
    of_both = f"that {dataset.name} and {run.dataset.name} share by id"
    if differ and asked:
        tell(f"warning: transfer.same_items=id: most items {of_both} have different titles")
    elif differ:
        raise ConfigError(
            f"transfer.same_items: most items {of_both} have different titles, so their ids may be equal by chance. "
            "Set it to title or none; or to id if the same items have titles in two languages."
        )
    elif differ is None and not asked and (n := int((rows >= 0).sum())):
        tell(
            f"warning: transfer.same_items: the {n:,} items {of_both} are taken as the same, and too few have titles "
            "to check this: set it to none if their ids are equal by chance"
        )


def _overlap(dataset: Dataset, run: Run, rows: np.ndarray, same_users: bool) -> Overlap:
    other, items = run.dataset, int((rows >= 0).sum())
    users = np.intersect1d(other.users[USER], dataset.users[USER]) if same_users else np.empty(0, object)
    return Overlap(
        (other.name, dataset.name),
        len(users),
        items,
        len(users) / min(other.n_users, dataset.n_users),
        items / min(other.n_items, dataset.n_items),
        (int(other.events[USER].isin(users).sum()), int(dataset.events[USER].isin(users).sum())),
    )


def _renamed(source: Dataset, rows: np.ndarray, target: Dataset, same_users: bool) -> Dataset:
    """Returns a source in which shared items have the target's ids; other item ids are prefixed with the source's name.

    User ids are prefixed, too, unless equal ids mean one user.
    """
    ids = (source.name + SEPARATOR + source.items[ITEM].astype("str")).to_numpy(object)
    ids[rows[rows >= 0]] = target.items[ITEM].to_numpy(object)[rows >= 0]
    new = pd.Series(ids, index=source.items[ITEM])
    tables = {
        name: table.assign(**{ITEM: table[ITEM].map(new).astype("str")})
        for name in ("events", "items", "tags")
        if len(table := getattr(source, name))
    }
    if not same_users:
        for name in ("events", "users", "tags"):
            table = tables.get(name, getattr(source, name))
            own = table[USER].where(table[USER] == "", source.name + SEPARATOR + table[USER].astype("str"))
            tables[name] = table.assign(**{USER: own.astype("str")})
    return replace(source, **tables)


def _has_text(items: pd.DataFrame, template: str | None) -> bool:
    try:
        ItemTemplate.from_items(items, template)
    except ConfigError:
        return False
    return True


def _with_columns(dataset: Dataset, schema: Schema, template: str | None) -> tuple[Dataset, list[str]]:
    """Adds an empty column for each one that schema or template read and the data lacks; also returns their names."""
    wanted = [(TABLES[field.owner], field.name) for field in schema if field.has_encoder]
    wanted += [("items", name) for name in (ItemTemplate(template).columns if template else ())]
    missing = list(dict.fromkeys(key for key in wanted if key[1] not in getattr(dataset, key[0])))
    return dataset.with_columns(missing), [f"{table}.{name}" for table, name in missing]

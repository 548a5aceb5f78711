"""The gate before promotion: compares a run with the stable version, on events that neither was trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM, ITEM_INDEX, TIMESTAMP, USER, USER_INDEX
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import Schema
from tfllmrec.data.splits import Split
from tfllmrec.durable import write_text
from tfllmrec.errors import CHECK_FAILED, ModelError, TfllmrecError
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.regression import OfEarlierCatalogue, Verdict, verdict_of, without_queries
from tfllmrec.evaluation.report import exported_of
from tfllmrec.models.hybrid import Catalogue
from tfllmrec.progress import Tell, to_stderr
from tfllmrec.runs.run import GATE, Run
from tfllmrec.runs.scoreboard import measure_one
from tfllmrec.runs.update import trained_rows
from tfllmrec.serving.export import export
from tfllmrec.serving.layout import read_manifest, version_folders
from tfllmrec.serving.promotion import Promotions, adopt, folder_of_version, promote, read_promotions, set_canary
from tfllmrec.serving.saved_model import SavedModel


class NotPromoted(TfllmrecError):
    """A run did not pass the gate; the stable version stays in use.

    Args:
      verdict: The verdict of the gate.
      lines: The lines of the message.
    """

    exit_code = CHECK_FAILED

    def __init__(self, verdict: Verdict, *lines: str) -> None:
        super().__init__(*lines)
        self.verdict = verdict


def promote_run(
    run: Run, model: Path, *, canary: bool = False, base_path: str | None = None, tell: Tell = to_stderr
) -> tuple[Promotions, Verdict | None]:
    """Exports a run that passes the gate, labels the version ``canary``, and then ``stable``.

    A run that was already exported to the folder with its present data and graph is not exported again, so another call
    completes an interrupted promotion.

    Args:
      run: A complete run.
      model: The folder of the versions, such as ``saved_models/shop``; it is created if it does not exist.
      canary: Whether to stop at the label ``canary``; :func:`tfllmrec.serving.promotion.promote` does the rest.
      base_path: See :func:`tfllmrec.serving.promotion.adopt`.
      tell: Called with a line for each step.

    Returns:
      The state of the model's folder; and the verdict of the gate, ``None`` if no comparison was made, because no
        version was stable or the stable version was exported from this run.

    Raises:
      NotPromoted: The run did not pass the gate; nothing was exported.
      ModelError: The folder of the stable version is missing, or another version became stable in the meantime; or see
        the functions for the steps.
      DataError, WriteError: See the functions for the steps.
    """
    state = adopt(model, base_path)
    version, verdict = _exported(run, model), None
    if state.stable is not None and version == state.stable:
        tell(f"{model}: version {version}, which is stable, was exported from {run.folder} already")
        return state, None
    if state.stable is None:
        tell("gate: no comparison is made, because no version is stable yet")
    else:
        verdict = compare_with_version(run, folder_of_version(model, state.stable), tell)
        if not verdict.passed:
            raise NotPromoted(
                verdict,
                f"{run.folder} does not pass the gate; version {state.stable} of {model} stays stable:",
                *(f"  {reason}" for reason in verdict.reasons),
            )
    if version is None:
        tell("exporting")
        version = int(export(run.folder, model, tell=tell).name)
    if canary:
        return set_canary(model, version, base_path, judged=state), verdict
    return promote(model, base_path, version=version, judged=state), verdict


def _exported(run: Run, model: Path) -> int | None:
    """Returns the newest version that was exported with the run's present data and graph; ``None`` if there is none.

    Versions with new items, and versions that were withdrawn or rolled back, do not count.
    """
    if not model.is_dir():
        return None
    history = read_promotions(model).history
    # The step of a withdrawal names the canary; that of a rollback names the version that became stable again.
    withdrawn = {step.version for step in history if step.action == "withdraw"}
    rolled_back = withdrawn.union(step.stable_before for step in history if step.action == "rollback")
    for number, folder in sorted(version_folders(model).items(), reverse=True):
        manifest = read_manifest(folder)
        if (
            manifest.get("run") == str(run.folder.resolve())
            and not manifest.get("new_items")
            and number not in rolled_back
            and manifest.get("data_sha256") == run.record["data_sha256"]
            and manifest.get("graph_sha256") == (None if (graph := run.graph) is None else graph.fingerprint)
        ):
            return number
    return None


def compare_with_version(run: Run, version: Path, tell: Tell = to_stderr) -> Verdict:
    """Measures a version on the test queries of a run, and judges the run; the verdict is saved in the run's folder.

    The version is measured as it is served: by its ``score`` signature, over its own items. It ignores items of a
    history that it does not know, and cannot recommend them. Test events that the version was trained on are left out.

    Args:
      run: A complete run; its own metrics are read from its folder.
      version: The folder of a version that was exported from a run.
      tell: Called with a line for each step.

    Raises:
      ModelError: The version or its run is missing or damaged; the version was not exported from a run; the data of its
        run has changed; or the version reads different fields, so that the test queries differ.
    """
    manifest = read_manifest(version)
    if not manifest.get("run"):
        raise ModelError(
            f"{version} was not exported from a run, so it is not known what it was trained on: expected a run to "
            "compare with. Promote without the gate: tfllmrec export, and tfllmrec promote MODEL --version N."
        )
    used = Run.open(manifest["run"])
    if used.record["data_sha256"] != manifest.get("data_sha256"):
        raise ModelError(
            f"{used.folder} has other data than when {version} was exported from it: expected the run of the version. "
            "Copy that run back, or promote without the gate: tfllmrec export, and tfllmrec promote MODEL --version N."
        )
    saved = SavedModel.open(version)
    tell(f"gate: {run.folder} beside {version}, on {len(run.split.test):,} test queries")
    split = _split_by(run, Schema.from_dict(manifest["schema"]))
    queries = split.test
    places = pd.Index(saved.item_ids).get_indexer(pd.Index(run.split.items[ITEM]))
    left_out = _trained_on(run, used, queries)
    strata = run.split.strata(run.config.evaluation.head_share)
    kept = queries.targets.take(~left_out).values
    targets = {"targets": len(kept), **{f"targets/{name}": int(mask[kept].sum()) for name, mask in strata.items()}}
    if left_out.any():
        tell(f"gate: {int(left_out.sum()):,} test queries are left out: {used.folder} was trained on their targets")

    def measured(model: Recommender) -> Result:
        return without_queries(measure_one(model, queries, run.split, run.config), left_out, targets)

    grown = _with_new_items(run, split.items, used, tell)
    verdict = verdict_of(
        without_queries(exported_of(run.results), left_out, targets),
        measured(OfEarlierCatalogue(saved, places)),
        run.config.update.tolerance,
        None if grown is None else measured(grown),
    )
    verdict = _without_lost_items(verdict, run, version, pd.Index(saved.item_ids), tell)
    content = {"version": str(version), "run_of_version": manifest["run"], **verdict.as_dict()}
    write_text(run.folder / GATE, json.dumps(content, indent=1))
    return verdict


def _without_lost_items(verdict: Verdict, run: Run, version: Path, items: pd.Index, tell: Tell) -> Verdict:
    """Adds a reason against an update without some of the version's items; of another run, these are only reported.

    An update keeps all items of its parent, so it lacks only those that ``export --items`` or another update added. A
    fit has the catalogue that it was given.
    """
    lost = items[~items.isin(run.split.items[ITEM])]
    if lost.empty:
        return verdict
    found = f"{len(lost):,} items of {version} are not in {run.folder} (such as {lost[0]!r})"
    if run.update is None:
        tell(f"gate: {found} and will no longer be served")
        return verdict
    remedy = (
        "update the run of the version, with their file: --items FILE. If they are to go, promote without the gate: "
        "tfllmrec export, and tfllmrec promote MODEL --version N"
    )
    return replace(verdict, passed=False, reasons=[*verdict.reasons, f"{found}: {remedy}"])


def _split_by(run: Run, schema: Schema) -> Split:
    """Returns the split of a run with the fields of ``schema``; those that its data lacks are missing in every row."""
    own = run.split
    split = own if schema.as_dict() == own.schema.as_dict() else run.split_by(schema)
    if not (
        np.array_equal(split.test.user_ids, own.test.user_ids)
        and np.array_equal(split.test.targets.values, own.test.targets.values)
    ):
        raise ModelError(
            f"{run.folder}: the version in use reads different fields of requests, so the same events make different "
            "test queries: expected the same fields. Promote without the gate: tfllmrec promote MODEL --version N."
        )
    return split


def _trained_on(run: Run, used: Run, queries: Queries) -> np.ndarray:
    """bool ``[B]``: the queries with a target that the exported model of another run was trained on."""
    users, items = run.dataset.users[USER], run.dataset.items[ITEM]
    train = used.split.train_and_validation_events if used.is_refit else used.split.train
    known = pd.DataFrame({
        USER_INDEX: pd.Index(users).get_indexer(used.dataset.users[USER])[train[USER_INDEX]],
        ITEM_INDEX: pd.Index(items).get_indexer(used.dataset.items[ITEM])[train[ITEM_INDEX]],
        TIMESTAMP: train[TIMESTAMP].to_numpy(),
    })  # fmt: skip
    known = known[(known[USER_INDEX] >= 0) & (known[ITEM_INDEX] >= 0)]
    if run.dataset.repeats:  # an item that a user had before may be a new event
        test = run.split.test_events
        assert test is not None
        known = test[test.index.isin(trained_rows(run.dataset, known))]
    row = queries.targets.row_of_value
    asked = pd.Index(users).get_indexer(pd.Index(queries.user_ids))[row] * len(items) + queries.targets.values
    seen = np.isin(asked, known[USER_INDEX] * len(items) + known[ITEM_INDEX])
    return np.bincount(row, seen, len(queries)) > 0


def _with_new_items(run: Run, items: pd.DataFrame, used: Run, tell: Tell) -> Recommender | None:
    """Adds the run's new items to the model of the stable version, without training; returns ``None`` if it cannot.

    It cannot if there are no new items, if the order of the other items differs, or if the run ``used`` has no text or
    another text encoder. ``items`` are the run's items, with all columns that the model reads.
    """
    known, now = used.split.items[ITEM], items[ITEM]
    if len(now) <= len(known) or not np.array_equal(now[: len(known)], known) or not np.any(used.text):
        return None
    if run.encoder_fingerprint != used.encoder_fingerprint:
        return None
    model, schema = used.load_model(), used.split.schema
    text, graph = np.asarray(run.text), used.training_data.graph
    catalogue = Catalogue.of(items, text, schema, used.text_widths, model.config, graph=graph)
    return model.extend(catalogue, np.asarray(used.text), used.exported_histories, tell)

"""The gate before promotion, with models that are fitted."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tfllmrec.columns import ITEM
from tfllmrec.data.queries import Ragged
from tfllmrec.evaluation.regression import OfEarlierCatalogue
from tfllmrec.evaluation.report import REFIT
from tfllmrec.runs.run import GATE, Run
from tfllmrec.runs.scoreboard import measure_one, save_per_query
from tfllmrec.serving.gate import NotPromoted, _trained_on, promote_run
from tfllmrec.serving.layout import version_folders
from tfllmrec.serving.promotion import read_promotions

pytestmark = [pytest.mark.tf, pytest.mark.slow]


def quietly(line):
    pass


@pytest.fixture(scope="module")
def model(chain_run, tmp_path_factory):
    """A model whose stable version is that of the ring."""
    folder = tmp_path_factory.mktemp("models") / "chain"
    state, verdict = promote_run(chain_run[0], folder, tell=quietly)
    assert state.stable == 1 and verdict is None
    return folder


@pytest.fixture
def copies(model, updated, tmp_path):
    """The model and the update, to be changed."""
    run = shutil.copytree(updated.folder, tmp_path / "run")
    return shutil.copytree(model, tmp_path / model.name), Run.open(run)


def test_a_run_that_is_no_worse_is_exported_and_stable(copies, chain_run):
    model, run = copies
    state, verdict = promote_run(run, model, canary=True, tell=quietly)
    assert state.labels == {"stable": 1, "canary": 2} and verdict.passed
    assert json.loads((run.folder / GATE).read_text())["passed"]
    # The version in use is measured as it is served, which is what its run measures.
    parent = chain_run[0]
    places = pd.Index(parent.split.items[ITEM]).get_indexer(run.split.items[ITEM])
    served = OfEarlierCatalogue(parent.load_model(refit=True), places)
    result = measure_one(served, run.split.test, run.split, run.config)
    # Users come back to items that they had, although the data keeps the last use alone.
    kept = ~_trained_on(run, parent, run.split.test)
    every = verdict.strata[0]
    assert every.stratum == "all" and len(kept) > every.targets == kept.sum() > len(kept) - 10
    assert every.in_use == pytest.approx(result.per_query["ndcg@10"][kept].mean(), abs=1e-4)
    assert every.updated == pytest.approx(run.results[REFIT].per_query["ndcg@10"][kept].mean(), abs=1e-9)
    assert every.with_new_items is not None
    # Again: nothing is exported twice, and the canary is promoted.
    state, _ = promote_run(run, model, tell=quietly)
    assert state.labels == {"stable": 2} and list(version_folders(model)) == [1, 2]


@pytest.mark.long
def test_a_run_that_is_worse_is_not_exported(copies):
    model, run = copies
    results = run.results
    for values in results[REFIT].per_query.values():
        values[~np.isnan(values)] = 0.0
    save_per_query(run.folder / "per_query.npz", run.split.test, results)
    with pytest.raises(NotPromoted, match="worse beyond chance") as stopped:
        promote_run(Run.open(run.folder), model, tell=quietly)
    assert stopped.value.exit_code == 5 and not stopped.value.verdict.passed
    assert list(version_folders(model)) == [1] and read_promotions(model).labels == {"stable": 1}


def test_a_version_was_trained_on_the_training_and_validation_events_of_its_run(chain_run):
    run, _ = chain_run
    assert not _trained_on(run, run, run.split.test).any()
    assert _trained_on(run, run, run.split.validation).all()
    last = Ragged.from_rows([row[-1:] for row in run.split.train_queries().history], np.int64)
    assert _trained_on(run, run, replace(run.split.test, targets=last)).all()


@pytest.mark.long
def test_targets_that_the_version_was_trained_on_are_left_out(copies, monkeypatch):
    model, run = copies
    told = []
    seen = np.arange(len(run.split.test)) < 10
    monkeypatch.setattr("tfllmrec.serving.gate._trained_on", lambda *args: seen)
    _, verdict = promote_run(run, model, canary=True, tell=told.append)
    assert verdict.strata[0].targets == len(run.split.test) - 10
    assert any("10 test queries are left out" in line for line in told)

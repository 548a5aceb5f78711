import json

import pytest

from tfllmrec.config import dump_config
from tfllmrec.errors import ModelError
from tfllmrec.explain.epochs import Epochs, epochs_of


def test_values_of_the_checkpoints(plain_run):
    epochs = epochs_of(plain_run)
    assert (epochs.selection, epochs.best, epochs.strata) == ([0.2, 0.6, 0.3], 1, {})
    (plain_run.folder / "checkpoints" / "state.json").write_text("[")
    with pytest.raises(ModelError, match=r"state\.json is damaged"):
        epochs_of(plain_run)


def test_strata_are_those_of_the_lengths_that_were_measured(plain_run, monkeypatch):
    path = plain_run.folder / "config.yaml"
    config = plain_run.config
    config.evaluation.ks = [5, 20]
    path.write_text(dump_config(config))
    logged = {"accuracy/ndcg@20": {0: 0.1, 1: 0.2, 2: 0.3}, "tail/ndcg@20": {0: 0.1}, "accuracy/ndcg@5": {0: 0.4}}
    monkeypatch.setattr("tfllmrec.explain.epochs.logged_scalars", lambda folder: logged)
    assert epochs_of(plain_run).strata == {"all": [0.1, 0.2, 0.3]}


def test_a_run_without_training_has_none(plain_run):
    path = plain_run.folder / "checkpoints" / "state.json"
    path.write_text(json.dumps({"epochs_done": 0, "best_epoch": -1, "values": []}))
    assert epochs_of(plain_run) == Epochs()
    path.unlink()
    assert epochs_of(plain_run) == Epochs()

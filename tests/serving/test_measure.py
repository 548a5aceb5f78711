import shutil
from dataclasses import replace

import pytest

from tfllmrec.errors import DataError, ModelError
from tfllmrec.runs.run import Run
from tfllmrec.serving.measure import measure
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]


def test_a_run_and_its_saved_model_give_the_same_figures(chain_run, chain_version):
    recorded = chain_run[0].metrics
    for measured in (measure(chain_run[0].folder), measure(chain_version), measure(str(chain_version.parent))):
        assert list(measured["results"]) == list(recorded["results"])
        for name, figures in recorded["results"].items():
            assert measured["results"][name] == pytest.approx(figures, abs=1e-9)
        for name in ("hybrid", "hybrid_refit"):
            for label, interval in recorded["intervals"][name].items():
                assert measured["intervals"][name][label] == pytest.approx(interval, abs=1e-9)
        assert measured["data"] == recorded["data"] and measured["split"] == recorded["split"]


def test_the_figures_are_computed_now(chain_run, tmp_path):
    """A run whose weights are another model's gets that model's figures, and keeps its baselines'."""
    import tensorflow as tf

    copy = Run(shutil.copytree(chain_run[0].folder, tmp_path / "copy"))
    model = copy.load_model()
    model.behaviour.weights_.assign(-model.behaviour.weights_)
    model.gates.dense_strength.assign(0.0)
    tf.train.Checkpoint(model=model).write(str(copy.folder / "model" / "weights"))
    measured, recorded = measure(copy.folder), chain_run[0].metrics
    assert measured["results"]["hybrid"]["ndcg@10"] < 0.5 * recorded["results"]["hybrid"]["ndcg@10"]
    assert measured["results"]["popularity"] == recorded["results"]["popularity"]
    # And alarms of its own, which compare it with every recorded baseline.
    assert any("hybrid: markov is ahead of it" in line for line in measured["alarms"]) and not recorded["alarms"]


def test_data_that_changed_is_refused(chain_run, chain_version, tmp_path, monkeypatch):
    copy = Run(shutil.copytree(chain_run[0].folder, tmp_path / "copy"))
    dataset = copy.dataset
    replace(dataset, events=dataset.events.assign(rating=1.0).astype(dataset.events.dtypes)).save(copy.folder / "data")
    with pytest.raises(DataError, match="has changed since the run: fit again"):
        measure(copy.folder)
    saved = SavedModel.open(chain_version)
    saved.manifest["run"] = str(copy.folder)
    monkeypatch.setattr(SavedModel, "open", lambda path: saved)
    with pytest.raises(DataError, match=r"is not that which .* was trained on.*export the run again"):
        measure(chain_version)


def test_another_split_is_refused(chain_version, monkeypatch):
    """Its test queries may have been training events."""
    saved = SavedModel.open(chain_version)
    saved.manifest["config"]["seed"] += 1
    monkeypatch.setattr(SavedModel, "open", lambda path: saved)
    with pytest.raises(DataError, match="may have been training events: export the run again"):
        measure(chain_version)


def test_a_run_that_is_gone_is_named(chain_version, monkeypatch):
    saved = SavedModel.open(chain_version)
    saved.manifest["run"] = "/nowhere/at/all"
    monkeypatch.setattr(SavedModel, "open", lambda path: saved)
    with pytest.raises(DataError, match="/nowhere/at/all"):
        measure(chain_version)


def test_neither_run_nor_model(tmp_path):
    with pytest.raises(ModelError, match="contains no SavedModel"):
        measure(tmp_path)


def test_baselines_can_be_fitted_again(chain_run, monkeypatch):
    asked = []
    monkeypatch.setattr("tfllmrec.serving.measure.fit_all_baselines", lambda *args: asked.append(args) or {})
    measure(chain_run[0].folder, refit_baselines=True)
    assert len(asked) == 1

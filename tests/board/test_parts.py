"""Texts, precision and recall, trackers."""

import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.pr_curve import metadata

from tfllmrec.board.lists import RecommendationsInWords
from tfllmrec.board.profile import FIRST, STEPS, GraphAndProfile
from tfllmrec.board.ranking_curves import THRESHOLDS, write_pr_curves
from tfllmrec.board.settings import as_markdown, write_settings
from tfllmrec.board.trackers import Tracker
from tfllmrec.errors import ConfigError

pytestmark = pytest.mark.tf


def tensors(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {tag: tf.make_ndarray(events.Tensors(tag)[-1].tensor_proto) for tag in events.Tags()["tensors"]}


def test_lists_in_words(tmp_path):
    found = pd.DataFrame(
        [(0, "Alien <b>", "reads like | Aliens"), (1, "Heat", "")], columns=["query", "title", "reason"]
    )
    callback = RecommendationsInWords(lambda model: found, [["Aliens", "The\nAbyss"], []], tmp_path)
    callback.set_model(None)
    callback.on_epoch_end(0)
    texts = {tag: values.item().decode() for tag, values in tensors(tmp_path).items()}
    assert r"| Alien \<b\> | reads like \| Aliens |" in texts["recommendations/user 1"]
    assert texts["recommendations/user 1"].startswith("After: Aliens; The\\\\nAbyss\n")
    second = texts["recommendations/user 2"]
    assert second.startswith("After: nothing yet\n") and "| Heat |" in second


def test_chosen_settings_are_shown_as_they_are():
    shown = as_markdown(["decay_x 0.6: *best*"], "seed: 42\n")
    assert r"- decay\_x 0.6: \*best\*" in shown and shown.endswith("```\nseed: 42\n```")


def test_trials_are_named_by_the_folders_of_their_runs(tmp_path):
    def name(run):
        write_settings(tmp_path / "runs" / run / "logs", {"model.blocks": 2})
        events = EventAccumulator(str(tmp_path / "runs" / run / "logs")).Reload()
        content = events.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
        return hparams_metadata.parse_session_start_info_plugin_data(content).group_name

    assert [name("shop"), name("other")] == ["runs/shop", "runs/other"]


def test_settings_are_shown_beside_the_metrics_that_were_measured(tmp_path):
    write_settings(tmp_path / "shop" / "logs", {"model.blocks": 2}, k=20)
    events = EventAccumulator(str(tmp_path / "shop" / "logs")).Reload()
    content = events.SummaryMetadata(hparams_metadata.EXPERIMENT_TAG).plugin_data.content
    metrics = hparams_metadata.parse_experiment_plugin_data(content).metric_infos
    assert [(metric.name.group, metric.name.tag) for metric in metrics] == [
        ("validation", "accuracy/selection"),
        ("test/hybrid", "accuracy/ndcg@20"),
        *(("test/hybrid", f"{group}/recall@20") for group in ("accuracy", "tail", "cold")),
    ]


def test_precision_and_recall_of_candidates(tmp_path):
    rng = np.random.default_rng(1)
    probability = rng.random(1000) ** 4
    chosen = rng.random(1000) < probability
    strata = {"tail": np.arange(1000) % 2 == 0, "cold": np.zeros(1000, bool)}
    write_pr_curves(tmp_path, probability, chosen, strata)
    curves = tensors(tmp_path)
    assert set(curves) == {"clicks/all/pr_curves", "clicks/tail/pr_curves"}  # no candidate is cold
    found, wrong, right, missed, precision, recall = curves["clicks/all/pr_curves"]
    assert len(recall) == THRESHOLDS
    assert np.all(found + missed == chosen.sum()) and np.all(wrong + right == (~chosen).sum())
    middle = np.quantile(probability, 0.5)
    assert precision[50] == pytest.approx(chosen[probability >= middle].mean())
    assert recall[50] == pytest.approx(chosen[probability >= middle].sum() / chosen.sum())
    assert recall[0] == 1 and np.all(np.diff(recall) <= 0)
    about = EventAccumulator(str(tmp_path)).Reload().summary_metadata["clicks/all/pr_curves"]
    assert about.plugin_data.plugin_name == metadata.PLUGIN_NAME


def test_a_fit_beside_a_running_profiler_is_not_profiled(tmp_path):
    def fit(batches):
        callback = GraphAndProfile(tmp_path / "logs")
        callback.set_model(tf.keras.Sequential([tf.keras.layers.Dense(1)]))
        callback.set_params({"steps": FIRST + STEPS})
        callback.on_train_begin()
        for batch in range(batches):
            callback.on_train_batch_begin(batch)
            callback.on_train_batch_end(batch)
        return callback

    interrupted = fit(FIRST + 1)
    fit(FIRST + STEPS).on_train_end()
    assert not list(tmp_path.rglob("*.xplane.pb"))
    interrupted.on_train_end()  # it has its own profile still
    assert list(tmp_path.rglob("*.xplane.pb"))


class Log:
    """A stand-in of a tracking service: what was called."""

    def __init__(self, active=None, fails=lambda name: False):
        self.run, self.called, self.fails = active, [], fails

    def __getattr__(self, name):
        def call(*given, **named):
            self.called.append((name, *given, named))
            if self.fails(name):
                raise OSError("no network")
            return self.run if name == "active_run" else None

        return call


def track(name, service, monkeypatch):
    """What a fit of one epoch told, with the service in place of the package."""
    monkeypatch.setitem(sys.modules, name, service)
    told = []
    tracker = Tracker(name, "shop", {"model.blocks": 2}, told.append)
    tracker.on_train_begin()
    tracker.on_epoch_end(3, {"loss": 1.5, "accuracy/ndcg@10": 0.5})
    tracker.on_train_end()
    return told


def test_mlflow_gets_the_figures_of_each_epoch(monkeypatch):
    assert track("mlflow", service := Log(), monkeypatch) == []
    assert service.called == [
        ("active_run", {}),
        ("start_run", {"run_name": "shop"}),
        ("log_params", {"model.blocks": 2}, {}),
        ("log_metrics", {"loss": 1.5, "accuracy/ndcg_at_10": 0.5}, {"step": 3}),
        ("end_run", {}),
    ]


def test_wandb_gets_the_figures_of_each_epoch(monkeypatch):
    assert track("wandb", service := Log(), monkeypatch) == []
    assert service.called == [
        ("init", {"project": "tfllmrec", "name": "shop", "config": {"model.blocks": 2}}),
        ("log", {"loss": 1.5, "accuracy/ndcg@10": 0.5, "epoch": 3}, {}),
        ("finish", {}),
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_of_the_caller_is_used_and_not_ended(monkeypatch, name):
    track(name, service := Log(active="theirs"), monkeypatch)
    assert [call[0] for call in service.called if call[0] != "active_run"] == [
        {"wandb": "log"}.get(name, "log_metrics")
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_cannot_be_reached_is_told_of_once(monkeypatch, name):
    (said,) = track(name, service := Log(fails=lambda name: True), monkeypatch)
    assert name in said and "no network" in said and len(service.called) == 1


@pytest.mark.parametrize(("name", "end"), [("wandb", "finish"), ("mlflow", "end_run")])
@pytest.mark.parametrize("ends", [True, False])
def test_a_run_is_ended_even_if_figures_could_not_be_sent(monkeypatch, name, end, ends):
    service = Log(fails=lambda called: called.startswith("log") or (called == end and not ends))
    (said,) = track(name, service, monkeypatch)
    assert "no network" in said and service.called[-1] == (end, {})


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="mlflow is not installed"):
        Tracker("mlflow", "shop", {}, print)

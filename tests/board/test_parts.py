"""Texts, precision and recall, trackers."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.pr_curve import metadata

from tfllmrec.board.lists import RecommendationsInWords
from tfllmrec.board.ranking_curves import THRESHOLDS, write_pr_curves
from tfllmrec.board.settings import as_markdown
from tfllmrec.board.trackers import tracker
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


def test_trackers(monkeypatch):
    logged = []
    mlflow = SimpleNamespace(log_metrics=lambda figures, step: logged.append((figures, step)))
    wandb = SimpleNamespace(run=None, log=lambda figures: logged.append(figures))
    wandb.init = lambda project: setattr(wandb, "run", project)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker("mlflow")({"accuracy/ndcg@10": 0.5, "training/steps per second": 2.0}, 3)
    tracker("wandb")({"accuracy/ndcg@10": 0.5}, 3)
    assert logged == [
        ({"accuracy/ndcg_at_10": 0.5, "training/steps per second": 2.0}, 3),
        {"accuracy/ndcg@10": 0.5, "epoch": 3},
    ]
    assert wandb.run == "tfllmrec"
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="mlflow is not installed"):
        tracker("mlflow")

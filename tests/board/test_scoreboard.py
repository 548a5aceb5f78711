import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from tfllmrec.board.scoreboard import Scoreboard, write_figures
from tfllmrec.evaluation.protocol import Result

pytestmark = pytest.mark.tf


def result(value, alarms=()):
    metrics = {"ndcg@10": value, "ndcg@5": 0.9, "recall@10/tail": value / 2, "recall@10/cold": None, "gini@10": 0.6}
    return Result(metrics, {}, {}, {"ndcg@10": np.array([value])}, list(alarms))


def fit(callbacks, epochs):
    made = tf.keras.Sequential([tf.keras.layers.Dense(1, kernel_initializer="ones")])
    made.compile(optimizer=tf.keras.optimizers.SGD(0.1), loss="mse", run_eagerly=True)
    return made.fit(tf.ones((4, 2)), tf.zeros((4, 1)), 2, epochs=epochs, callbacks=callbacks, verbose=0).history


def written(folder):
    """Scalars and other tensors by tag and step."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag: {event.step: tf.make_ndarray(event.tensor_proto).tolist() for event in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }


def test_the_figures_at_10_are_written_under_tags_that_are_sorted_as_one_needs_them(tmp_path):
    values, told = iter([0.2, 0.3]), []
    history = fit([Scoreboard(lambda _: result(next(values), ["odd"]), tmp_path, told.append)], epochs=2)
    found = written(tmp_path)
    layout = layout_pb2.Layout.FromString(found.pop("custom_scalars__config__")[0])
    assert list(found) == [
        *("accuracy/selection", "accuracy/ndcg@10", "tail/recall@10", "lists/gini@10"),
        *("training/loss", "training/learning_rate", "training/steps_per_second"),
    ]
    assert found["accuracy/ndcg@10"] == pytest.approx({0: 0.2, 1: 0.3})
    assert found["tail/recall@10"] == pytest.approx({0: 0.1, 1: 0.15})
    assert found["accuracy/selection"] == pytest.approx(dict(enumerate(history["selection"])))
    assert found["training/loss"] == pytest.approx(dict(enumerate(history["loss"])))
    assert found["tail/recall@10"] == pytest.approx(dict(enumerate(history["tail/recall@10"])))
    assert found["training/learning_rate"] == pytest.approx({0: 0.1, 1: 0.1})
    assert min(found["training/steps_per_second"].values()) > 0
    assert told[0] == "epoch 1: validation ndcg@10 0.2000, recall@10/tail 0.1000" and told[1] == "  alarm: odd"

    shown = [chart.multiline.tag[0] for category in layout.category for chart in category.chart]
    assert sorted(shown) == sorted(f"^{tag.replace('/', chr(92) + '/')}$" for tag in found)
    assert [category.title for category in layout.category] == ["How good", "How good: tail items", "Training", "Lists"]


def test_the_line_of_an_epoch_has_the_longest_lists_if_none_are_of_10():
    told = []
    measured = Result({"ndcg@5": 0.1, "ndcg@20": 0.2, "recall@20": 0.4}, {}, {}, {"ndcg@20": np.array([0.2])}, [])
    fit([Scoreboard(lambda _: measured, tell=told.append)], epochs=1)
    assert told == ["epoch 1: validation ndcg@20 0.2000, recall@20 0.4000"]


def test_a_baseline_is_a_level_line(tmp_path):
    write_figures(tmp_path / "knn", {"ndcg@20": 0.1, "ndcg@5": 0.3, "ndcg@20/cold": None}, steps=(0, 7))
    assert written(tmp_path / "knn") == {"accuracy/ndcg@20": pytest.approx({0: 0.1, 7: 0.1})}


def test_early_stopping_can_watch_the_selection_value():
    early = tf.keras.callbacks.EarlyStopping("selection", mode="max", patience=1)
    values = iter([0.3, 0.2, 0.1])
    assert fit([Scoreboard(lambda _: result(next(values))), early], 3)["selection"] == [0.3, 0.2]

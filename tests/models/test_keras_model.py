"""Models behave like any Keras model: saved, loaded in a fresh process, measured, interrupted, continued."""

import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import tfllmrec.layers
import tfllmrec.models
import tfllmrec.training.optimizer
from tfllmrec.columns import ITEM_INDEX, USER_INDEX
from tfllmrec.config import ItemWeightSettings, ModelConfig, RankingConfig
from tfllmrec.data import dataset_from_frames
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.errors import DataError
from tfllmrec.layers.interest_forecast import LabelHead
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.models.hybrid import Catalogue, Hybrid, Negatives
from tfllmrec.models.item_weights import PrunedWeights
from tfllmrec.models.ranking import RankingModel, RatingScale
from tfllmrec.models.two_tower import TwoTower
from tfllmrec.training.optimizer import adamw

pytestmark = pytest.mark.tf
ROOT = Path(__file__).parents[2]
N, NAN = 12, float("nan")
ITEM_WEIGHTS = ItemWeightSettings(decay=0.7, neighbours=5)
IDS = np.array([f"item-{i}é" for i in range(N)], object)
COUNTS = np.array([5, 3, 0, 8, 1, 2, 2, 9, 4, 0, 1, 6])
HISTORIES, RATINGS = [[3, 0, 7, 1, 5], [4], [], [8, 2]], [[5, NAN, 3.3, 1, 4], [3.7], [], [NAN, NAN]]
SCHEMA = Schema(
    (
        Field("brand", "item", "category", vocabulary=("a", "b")),
        Field("released", "item", "time"),
        Field("image", "item", "vector", width=3),
    )
)
#: Nothing is known of the times when items were released.
ITEM_FIELDS = {
    "item.brand": (np.arange(N) % 4).astype(np.int32),
    "item.image": np.vstack([np.random.default_rng(3).normal(size=(N - 1, 3)), [[NAN] * 3]]).astype(np.float32),
}
QUERIES = Queries.from_histories(HISTORIES, RATINGS, user_ids=["u0", "u2", "nobody", "u1"])


def made_hybrid(negatives=None, seed=42, **changes):
    settings = {
        "embedding_dim": 8,
        "blocks": 1,
        "heads": 2,
        "history_length": 4,
        "dropout": 0.2,
        "item_fields": "all",
    } | changes
    generator = np.random.default_rng(2)
    text = generator.normal(size=(N, 6)).astype(np.float32)
    text[-1] = 0
    model = Hybrid(
        Catalogue(IDS, text, fields=ITEM_FIELDS), COUNTS, ModelConfig(**settings), ITEM_WEIGHTS, negatives, seed, SCHEMA
    )
    if model.items.fields:
        model.items.strengths.assign([0.5, -0.7])
    weights = [
        PrunedWeights(generator.integers(0, N, (N, 5)), generator.random((N, 5)).astype(np.float32)) for _ in range(2)
    ]
    model.set_item_weights(weights[0])
    model.set_holdout(weights[1], np.maximum(COUNTS - 1, 0))
    model.gates.discount.assign(0.4)
    model.gates.cold_lift.assign(0.8)
    return model


def one_batch():
    rows = {
        "history": [[3, 0, 7, 1], [4, 2, N, N], [8, N, N, N], [6, 7, 8, N]],
        RATING_KEY: [[5, NAN, 3.3, 1], [3.7, 2, NAN, NAN], [NAN] * 4, [1, 2, 5, NAN]],
        "targets": [[0, 7, 1, 5], [2, 10, N, N], [3, N, N, N], [7, 8, 11, N]],
        "held_out": [[False] * 3 + [True], [False] * 4, [False] * 4, [False, False, True, False]],
    }
    return {name: np.array(values, np.float32 if name == RATING_KEY else None) for name, values in rows.items()} | {
        name: np.array(rows[name], np.int32) for name in ("history", "targets")
    }


def compiled(model, **changes):
    """Eager steps: tracing takes longer than the few steps of a test."""
    top3 = tf.keras.metrics.SparseTopKCategoricalAccuracy(3, name="top3")
    model.compile(adamw(0.02, 20, 0.2, 0.1), **{"metrics": [top3], "run_eagerly": True} | changes)
    return model


def fitted(model, epochs=1, **options):
    return model.fit(tf.data.Dataset.from_tensors(one_batch()), epochs=epochs, verbose=0, **options).history


@pytest.fixture(scope="module")
def hybrid():
    model = compiled(made_hybrid())
    fitted(model)
    return model


def scores_of(model):
    """``model.score(QUERIES)``; the hybrid's without tracing a function."""
    if not isinstance(model, Hybrid):
        return model.score(QUERIES)
    return model({key: tf.constant(values) for key, values in QUERIES.inputs(N, Hybrid.reads).items()}).numpy()


def same_scores(model, other):
    np.testing.assert_array_equal(scores_of(model), scores_of(other))


def blank(model):
    """A model of the same config, which scores otherwise as long as it has no weights."""
    other = type(model).from_config(json.loads(json.dumps(model.get_config())))
    assert not np.allclose(scores_of(other), scores_of(model), atol=1e-3)
    return other


def load_weights(model, path):
    if (status := model.load_weights(path)) is not None:  # of TensorFlow's format: there is an optimizer in it, too
        status.expect_partial()


# Config and summary ---------------------------------------------------------------------------------------------------


def own_classes():
    for package in (tfllmrec.layers, tfllmrec.models):
        for found in pkgutil.iter_modules(package.__path__):
            yield from inspect.getmembers(importlib.import_module(f"{package.__name__}.{found.name}"), inspect.isclass)
    yield from inspect.getmembers(tfllmrec.training.optimizer, inspect.isclass)


def test_everything_that_keras_saves_is_registered():
    kinds = (tf.keras.layers.Layer, tf.keras.optimizers.Optimizer, tf.keras.optimizers.schedules.LearningRateSchedule)
    found = {
        kind.__name__: kind
        for _, kind in own_classes()
        if kind.__module__.startswith("tfllmrec.") and issubclass(kind, kinds) and not inspect.isabstract(kind)
    }
    assert {"Hybrid", "TwoTower", "RankingModel", "RankingNetwork", "IdTable", "WarmupCosine", "AdamW"} <= set(found)
    losses = {"CatalogueRetrieval", "SampledRetrieval", "MeasuredModel"}  # made by their model; an abstract one
    names = {name: tf.keras.saving.get_registered_name(kind) for name, kind in found.items() if name not in losses}
    assert names == {name: f"tfllmrec>{name}" for name in names}


def test_the_summary_counts_every_weight_from_the_start():
    model, lines = made_hybrid(), []
    model.summary(print_fn=lines.append)
    text = "\n".join(lines)
    count = sum(int(np.prod(variable.shape)) for variable in model.weights)
    assert f"Total params: {count}" in text
    for layer in model.layers:
        assert re.search(rf"^ {layer.name}\s", text, re.M)
    unused = [line for line in lines if "unused" in line]
    assert not any(layer.name in line for line in unused for layer in model.layers if layer.weights)


def test_large_data_is_not_in_the_config():
    n_items = 12_000
    ids = np.array([f"a-long-item-id-{i}" for i in range(n_items)], object)
    text = np.random.default_rng(0).normal(size=(n_items, 8)).astype(np.float32)
    config = ModelConfig(embedding_dim=8, heads=2, blocks=0)
    model = Hybrid(Catalogue(ids, text), np.arange(n_items), config, ItemWeightSettings(neighbours=4))
    assert len(json.dumps(tf.keras.saving.serialize_keras_object(model))) < 100_000
    assert list(model.item_ids[[0, -1]]) == ["a-long-item-id-0", "a-long-item-id-11999"]


@pytest.mark.parametrize("negatives", [None, Negatives(5, 0.5)])
def test_the_config_makes_the_same_model(negatives):
    model = made_hybrid(negatives, seed=7, terms=["meaning", "behaviour"])
    for other in (blank(model), tf.keras.models.clone_model(model)):
        assert other.get_config() == model.get_config()
        assert (other.seed, other.negatives) == (7, model.negatives)
        assert [v.shape for v in other.weights] == [v.shape for v in model.weights]
        assert len(other.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("negatives", [None, Negatives(5, 0.5)])
def test_losses_need_nothing_but_the_weights(negatives):
    model = made_hybrid(negatives)
    other = blank(model)
    other.set_weights(model.get_weights())
    batch = {name: tf.constant(values) for name, values in one_batch().items()}
    assert float(other.compute_loss(batch)) == float(model.compute_loss(batch))


# Formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "prefix"])
def test_weights_are_loaded_into_a_model_of_the_config(hybrid, tmp_path, name):
    hybrid.save_weights(tmp_path / name)
    other = blank(hybrid)
    load_weights(other, tmp_path / name)
    same_scores(other, hybrid)
    assert list(other.item_ids) == list(IDS)


LOAD = """
import json, sys
from pathlib import Path
import numpy as np
import tfllmrec
import tensorflow as tf

folder = Path(sys.argv[1])
asked = json.loads((folder / "asked.json").read_text())
queries = tfllmrec.Queries.from_histories(asked["histories"], asked["ratings"], user_ids=asked["users"])
batch = {name: tf.constant(np.load(folder / f"batch-{name}.npy")) for name in asked["batch"]}
results = {}


def add(name, model):
    results[name] = model.score(queries)
    return model


add("two_tower.keras", tf.keras.models.load_model(folder / "two_tower.keras"))
hybrid = add("m.keras", tf.keras.models.load_model(folder / "m.keras"))  # finds the class by its module
results["ids"] = hybrid.item_ids.astype(str)
hybrid.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
add("continued", hybrid)
add("saved", tf.keras.models.load_model(folder / "saved"))
for name in ("w.h5", "w.weights.h5", "prefix"):
    model = tfllmrec.Hybrid.from_config(asked["config"])
    model.load_weights(folder / name)
    add(name, model)
ranking = tf.keras.models.load_model(folder / "ranking.keras")
inputs = {key: tf.constant(values) for key, values in queries.inputs(ranking.n_items, ranking.hybrid.reads).items()}
items = tf.constant(asked["items"])
results["ranking.keras"] = np.stack(ranking.rank(ranking.item_vectors, inputs, items))
np.savez(folder / "results.npz", **results)
"""


def made_ranking(hybrid):
    scale = RatingScale.of(np.array([0, 0, 1, 3, 3, 3]), np.array([5, 3, 1, 4, NAN, 4], np.float32), N)
    generator = np.random.default_rng(4)
    profile = InterestProfile(generator.integers(0, 5, (N, 2)), generator.random((N, 2)), 5, 0.9, 0.5, 2.0, 0.6)
    labels = LabelMatch(profile, LabelHead(*generator.normal(size=(3, 5, 2)), generator.normal(size=5)))
    config = RankingConfig(history_length=3, keys=4, hidden=5)
    model = RankingModel(hybrid, config, scale, seed=3, labels=labels)
    for variable in model.network.trainable_variables:
        variable.assign(variable + generator.normal(size=variable.shape))
    return model


def ranked(model):
    inputs = {key: tf.constant(values) for key, values in QUERIES.inputs(N, Hybrid.reads).items()}
    return np.stack(model.rank(model.item_vectors, inputs, tf.constant(ITEMS)))


ITEMS = np.array([[2, 6, 11, 0], [N, 3, 3, 8], [1, 7, 2, 9], [10, N, N, N]], np.int32)


def made_two_tower():
    return TwoTower(np.array(["u0", "u1", "u2"], object), N, dim=4, seed=3)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """(expected, found): what is saved here gives in this process and in another one, by name."""
    folder, model = tmp_path_factory.mktemp("saved"), compiled(made_hybrid())
    fitted(model)
    two_tower, ranking = made_two_tower(), made_ranking(model)
    model.save(folder / "m.keras")
    model.save(folder / "saved")
    two_tower.save(folder / "two_tower.keras")
    ranking.save(folder / "ranking.keras")
    for name in ("w.h5", "w.weights.h5", "prefix"):
        model.save_weights(folder / name)
    batch = one_batch()
    for name, values in batch.items():
        np.save(folder / f"batch-{name}.npy", values)
    asked = {"histories": HISTORIES, "ratings": RATINGS, "users": list(QUERIES.user_ids), "batch": [*batch],
             "config": model.get_config(), "items": ITEMS.tolist()}  # fmt: skip
    (folder / "asked.json").write_text(json.dumps(asked))
    expected = dict.fromkeys(("m.keras", "saved", "w.h5", "w.weights.h5", "prefix"), model.score(QUERIES))
    expected |= {"two_tower.keras": two_tower.score(QUERIES), "ranking.keras": ranked(ranking), "ids": IDS}
    fitted(model)
    expected["continued"] = model.score(QUERIES)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return expected, dict(np.load(folder / "results.npz"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["m.keras", "saved", "w.h5", "w.weights.h5", "prefix", "two_tower.keras", "ranking.keras", "ids", "continued"],
)
def test_a_fresh_process_gives_the_same(fresh, name):
    expected, found = fresh
    if name == "ids":
        assert list(found[name]) == list(expected[name])
    else:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_training_goes_on_after_loading(fresh):
    expected, _ = fresh
    assert np.abs(expected["continued"] - expected["m.keras"]).max() > 1e-3


@pytest.mark.slow
def test_a_two_tower_is_saved_as_a_saved_model(tmp_path):
    model = made_two_tower()
    model.save(tmp_path / "saved")
    loaded = tf.keras.models.load_model(tmp_path / "saved")
    assert isinstance(loaded, TwoTower)
    same_scores(loaded, model)


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "prefix"])
def test_weights_of_a_two_tower_have_the_users(tmp_path, name):
    model = made_two_tower()
    model.save_weights(tmp_path / name)
    other = blank(model)
    load_weights(other, tmp_path / name)
    same_scores(other, model)


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "prefix"])
def test_weights_of_a_ranking_model_go_with_its_hybrid(hybrid, tmp_path, name):
    model = made_ranking(hybrid)
    model.save_weights(tmp_path / name)
    scale = RatingScale(model.mean, model.low, model.high, *np.zeros((2, N), "f4"))
    other = RankingModel(hybrid, model.config, scale, labels=LabelMatch.from_config(model.labels.get_config()))
    assert np.abs(ranked(other) - ranked(model)).max() > 0.01
    load_weights(other, tmp_path / name)
    np.testing.assert_array_equal(ranked(other), ranked(model))


def test_a_ranking_model_is_no_saved_model(hybrid, tmp_path):
    with pytest.raises(ValueError, match="forward pass of the model is not defined"):
        made_ranking(hybrid).save(tmp_path / "saved")


def test_the_precision_is_part_of_the_config(tmp_path):
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = made_hybrid()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    model.save(tmp_path / "m.keras")
    loaded = tf.keras.models.load_model(tmp_path / "m.keras")
    assert loaded.history_encoder.dtype_policy.name == "mixed_bfloat16"
    same_scores(loaded, model)
    inputs = QUERIES.inputs(N, Hybrid.reads)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), model.score(QUERIES), atol=1e-5)


# Callbacks ------------------------------------------------------------------------------------------------------------


def loaded_from(path, model):
    if str(path).endswith(".keras"):
        return tf.keras.models.load_model(path)
    other = blank(model)
    load_weights(other, path)
    return other


@pytest.mark.parametrize("name", ["best.keras", "best.h5", "prefix"])
def test_model_checkpoint_keeps_the_best_epoch(tmp_path, name):
    model, scores = compiled(made_hybrid(), metrics=None), []
    values = iter([1.0, 3.0, 2.0])

    class Watch(tf.keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["planted"] = next(values)
            scores.append(scores_of(self.model))

    keep = tf.keras.callbacks.ModelCheckpoint(
        str(tmp_path / name), monitor="planted", mode="max", save_best_only=True, save_weights_only=name != "best.keras"
    )
    fitted(model, epochs=3, callbacks=[Watch(), keep])
    np.testing.assert_array_equal(scores_of(loaded_from(tmp_path / name, model)), scores[1])
    assert np.abs(scores[2] - scores[1]).max() > 1e-3


@pytest.mark.slow
def test_an_interrupted_fit_continues(tmp_path):
    def stop(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    backup = tf.keras.callbacks.BackupAndRestore(tmp_path / "backup")
    whole, first, second = (compiled(made_hybrid(), metrics=None) for _ in range(3))
    fitted(whole, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        fitted(first, epochs=4, callbacks=[backup, tf.keras.callbacks.LambdaCallback(on_epoch_begin=stop)])
    again = tf.keras.callbacks.BackupAndRestore(tmp_path / "backup")
    assert len(fitted(second, epochs=4, callbacks=[again])["loss"]) == 2
    for variable, right in zip(second.weights, whole.weights, strict=True):
        np.testing.assert_allclose(variable, right, rtol=1e-6, atol=1e-7, err_msg=variable.name)


# Metrics --------------------------------------------------------------------------------------------------------------


def test_metrics_compare_the_scores_with_the_next_item(hybrid):
    """As many of the three best as numpy finds, in evaluate; and the last row of a padded batch does not count."""
    batch = one_batch()
    batch["targets"][2, 0] = N
    lengths = (batch["history"] < N).sum(axis=1)
    rows = [0, 1, 3]
    histories, marks = ([batch[key][row, : lengths[row]] for row in rows] for key in ("history", RATING_KEY))
    asked = Queries.from_histories(histories, marks)
    scores, targets = hybrid.score(asked), batch["targets"][rows, lengths[rows] - 1]
    best = np.argsort(-scores, axis=1)[:, :3]
    expected = np.mean([target in row for target, row in zip(targets, best, strict=True)])
    figures = hybrid.evaluate(tf.data.Dataset.from_tensors(batch), verbose=0, return_dict=True)
    assert figures["top3"] == pytest.approx(expected)
    assert {"loss", "retrieval_loss", "gate_loss"} <= set(figures)

    everything = {name: tf.constant(values) for name, values in batch.items()}
    found_targets, found_scores = hybrid.targets_and_predictions(everything)
    assert found_targets.numpy().tolist() == targets.tolist()
    np.testing.assert_allclose(found_scores, scores, atol=1e-5)


def test_metrics_leave_no_trace_in_the_fitted_weights():
    plain, measured = compiled(made_hybrid(), metrics=None), compiled(made_hybrid())
    history, figures = fitted(plain), fitted(measured)
    assert set(figures) - set(history) == {"top3"} and 0 <= figures["top3"][0] <= 1
    for variable, right in zip(measured.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(variable, right)


def test_metrics_of_a_two_tower():
    model = made_two_tower()
    model.compile("sgd", metrics=["accuracy"], run_eagerly=True)
    events = {USER_INDEX: np.array([0, 1, 2], np.int32), ITEM_INDEX: np.array([4, 5, 6], np.int32)}
    scores = model.score(Queries.from_histories([[], [], []], user_ids=["u0", "u1", "u2"]))
    events[ITEM_INDEX][:2] = scores.argmax(axis=1)[:2]
    events[ITEM_INDEX][2] = scores[2].argmin()
    figures = model.evaluate(tf.data.Dataset.from_tensors(events), verbose=0, return_dict=True)
    assert figures["accuracy"] == pytest.approx(2 / 3)
    np.testing.assert_allclose(model.predict(events, verbose=0), scores, atol=1e-6)


def test_metrics_of_a_ranking_model(hybrid):
    model = made_ranking(hybrid)
    model.compile("sgd", metrics=["accuracy"], run_eagerly=True)
    query = {key: tf.constant(values) for key, values in QUERIES.inputs(N, Hybrid.reads).items()}
    items = tf.constant(np.tile(np.arange(4, dtype=np.int32), (4, 1)))
    lists = model.given(model.item_vectors, query, items)
    logits, _ = model.learned(model.item_vectors, **lists)
    label = np.argmax(logits, axis=1).astype(np.int32)
    label[0] = np.argmin(logits[0])
    rated = {name: values[:, :1] if name in ("items", "terms", "scores", "prior") else values
             for name, values in lists.items()}  # fmt: skip
    batch = {
        "lists": lists | {"label": label, "log_times": np.zeros((4, 4), np.float32), "weight": np.ones(4, np.float32)},
        "rated": rated | {"rating": np.ones(4, np.float32)},
    }
    figures = model.evaluate(tf.data.Dataset.from_tensors(batch), verbose=0, return_dict=True)
    assert figures["accuracy"] == pytest.approx(3 / 4)
    assert set(figures) >= {"click_loss", "rating_loss"}


def test_a_prediction_is_the_score_of_every_item(hybrid):
    """Of batches with any further fields."""
    batch = one_batch()
    histories, marks = [[3, 0, 7, 1], [4, 2], [8], [6, 7, 8]], [[5, NAN, 3.3, 1], [3.7, 2], [NAN], [1, 2, 5]]
    asked = Queries.from_histories(histories, marks)
    scores = hybrid.predict(tf.data.Dataset.from_tensors(batch).repeat(2), verbose=0)
    np.testing.assert_allclose(scores, np.tile(hybrid.score(asked), (2, 1)), atol=1e-5)


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset():
    events = pd.DataFrame(
        [("u1", IDS[3], 5, 1), ("u1", IDS[0], 2, 2), ("u2", IDS[7], 4, 1)],
        columns=["user", "item", "rating", "timestamp"],
    )
    items = pd.DataFrame({"item": IDS[:-1], "title": [f"The title of {item}" for item in IDS[:-1]]})
    return dataset_from_frames(events, items)


def test_recommendations_are_the_best_new_items_with_their_reasons(hybrid):
    table = hybrid.recommend(
        histories=[[IDS[3], "unknown", IDS[0]], []], ratings=[[5, 1, None], []], k=4, exclude=[IDS[7], "nothing"]
    )
    assert list(table.columns) == ["query", "rank", "item_id", "title", "score", "reason"]
    asked = Queries.from_histories([[3, 0], []], [[5, NAN], []], exclude=[[3, 0, 7], [7]])
    scores = hybrid.score(asked)
    explained = hybrid.explain(asked, np.tile(np.arange(N), (2, 1)))
    for query, excluded in enumerate([[3, 0, 7], [7]]):
        own = table[table["query"] == query]
        order = [item for item in np.argsort(-scores[query], kind="stable") if item not in excluded][:4]
        assert own["item_id"].tolist() == own["title"].tolist() == [IDS[item] for item in order]
        assert own["rank"].tolist() == [1, 2, 3, 4]
        np.testing.assert_allclose(own["score"], scores[query, order], atol=1e-6)
        for item, why in zip(order, own["reason"], strict=True):
            behind = [f" {IDS[[3, 0][event]]}" for event in explained["behind"][query, item] if event >= 0]
            assert any(each in f"{why} " for each in behind) if behind else why in ("", "popular with all users"), why


def test_users_have_their_history_in_the_dataset(hybrid, dataset):
    table = hybrid.recommend(["u2", "u1"], 2, dataset=dataset)
    same = hybrid.recommend(histories=[[IDS[7]], [IDS[3], IDS[0]]], ratings=[[4], [5, 2]], k=2, dataset=dataset)
    assert table["user_id"].tolist() == ["u2", "u2", "u1", "u1"]
    pd.testing.assert_frame_equal(table.drop(columns="user_id"), same.drop(columns="query"))
    titled = table[table["item_id"] != IDS[-1]]
    assert titled["title"].tolist() == [f"The title of {item}" for item in titled["item_id"]]
    assert table["reason"].str.contains("The title of ").all()
    assert len(hybrid.recommend(["u1"], 100, dataset=dataset)) == N - 2


def test_similar_items_are_the_nearest_vectors(hybrid, dataset):
    table = hybrid.similar([IDS[4], IDS[0]], k=3, dataset=dataset)
    vectors = hybrid.item_vectors().numpy()
    for query, item in enumerate([4, 0]):
        cosines = vectors @ vectors[item]
        order = [other for other in np.argsort(-cosines) if other != item][:3]
        own = table[table["query"] == query]
        assert own["item_id"].tolist() == [IDS[other] for other in order]
        np.testing.assert_allclose(own["score"], cosines[order], atol=1e-6)
    assert set(table["reason"]) == {""} and "The title of " in table["title"].iloc[0]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.recommend(), "either users or histories, found both or neither"),
        (lambda model: model.recommend(["u1"]), "Expected dataset="),
        (lambda model: model.recommend("u1"), r"users as a list, got the string 'u1': write \['u1'\]"),
        (lambda model: model.recommend(histories=["ab"]), "a history as a list, got the string 'ab'"),
        (lambda model: model.recommend(histories=[["a"]], ratings=[[1, 2]]), "a rating for each item"),
        (lambda model: model.similar(["item-1"]), "No item 'item-1' in this model's catalogue. Near: item-1é"),
    ],
)
def test_questions_that_have_no_answer(hybrid, ask, message):
    with pytest.raises(DataError, match=message):
        ask(hybrid)


def test_unknown_users_are_named(hybrid, dataset):
    with pytest.raises(DataError, match=r"1 of 2 users are not in .*'nobody'"):
        hybrid.recommend(["u1", "nobody"], dataset=dataset)

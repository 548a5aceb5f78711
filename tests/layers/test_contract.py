"""Every Keras layer in ``tfllmrec.layers`` is found here, and must be saved and loaded like any other."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec import layers
from tfllmrec.data.schema import Field
from tfllmrec.layers.feedback_profile import FeedbackProfile
from tfllmrec.layers.field_encoder import FieldEncoder, FieldsEncoder, TextFieldEncoder, TextFieldsEncoder
from tfllmrec.layers.history_encoder import HistoryBlock, HistoryEncoder, SelfAttention, causal_mask
from tfllmrec.layers.id_table import IdTable
from tfllmrec.layers.interest_forecast import LabelHead
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.layers.item_field import ItemField
from tfllmrec.layers.item_fusion import ItemFusion
from tfllmrec.layers.item_propagation import Edges, ItemPropagation
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.layers.neighbour_scores import NeighbourScores
from tfllmrec.layers.query_fusion import EventFusion, QueryFusion
from tfllmrec.layers.rating_posterior import RatingPosterior
from tfllmrec.layers.scene_experts import SceneExperts
from tfllmrec.layers.seeded_dropout import SeededDropout
from tfllmrec.layers.target_attention import TargetAttention
from tfllmrec.layers.term_gates import TermGates
from tfllmrec.layers.time_gaps import TimeGaps

pytestmark = pytest.mark.tf
RNG = np.random.default_rng(0)
B, L, N, D, M = 2, 3, 5, 4, 2
VECTORS = RNG.normal(size=(B, L, D)).astype(np.float32)
PRESENT = np.array([[True, True, False], [True, True, True]])
RATINGS = np.array([[5, np.nan, np.nan], [1, 4, 3.3]], np.float32)
HISTORY = np.array([[1, 4, N], [0, 2, 3]], np.int32)
CODES = Field("kind", "event", "category", vocabulary=("view", "purchase"))
PRICE = Field("price", "item", "number", edges=(1.0, 5.0, 9.0), median=4.0, spread=2.0)
TIMES = np.array([[1.6e9, 1.7e9, np.nan], [1.5e9, 1.5e9, 1.6e9]])
REVIEW, ABOUT = Field("review", "event", "text", width=6), Field("about", "user", "text", width=6)
EVENT_FIELDS = [CODES, Field("timestamp_s", "event", "time"), REVIEW]
QUERY_FIELDS = [Field("timestamp_s", "request", "time"), Field("age", "user", "number", edges=(1.0, 5.0, 9.0)), ABOUT]
REVIEWS = np.where(PRESENT[..., np.newaxis], RNG.normal(size=(B, L, 6)), np.nan).astype(np.float32)
TEXT_MAP = (RNG.normal(size=(6, D)).astype(np.float32),)
TEXT = RNG.normal(size=(N, 6)).astype(np.float32)
LINKS = Edges(np.array([0, 1], np.int32), np.array([3, 4], np.int32), np.array([1, 0.5], np.float32))
LOOK = Field("look", "item", "vector", width=6)
BRAND = Field("brand", "item", "category", vocabulary=("a", "b", "c"))

#: By class: a layer, and the arrays that it is called with; (array,) is a tensor without a batch dimension.
ENROLLED = {
    "EventFusion": lambda: (
        EventFusion(EVENT_FIELDS, D, seed=1),
        [
            {
                CODES.key: np.array([[0, 2, 0], [3, 2, 2]], np.int32),
                "event.timestamp_s": TIMES,
                REVIEW.key: REVIEWS,
            },
            TEXT_MAP,
        ],
    ),
    "FeedbackProfile": lambda: (FeedbackProfile(D, 0.3, seed=1), [VECTORS, RATINGS, PRESENT]),
    "FieldEncoder": lambda: (FieldEncoder(PRICE, D), [RATINGS[1]]),
    "FieldsEncoder": lambda: (
        FieldsEncoder([CODES, PRICE], D),
        [{CODES.key: np.array([0, 2], np.int32), PRICE.key: np.array([3, np.nan], np.float32)}],
    ),
    "HistoryBlock": lambda: (HistoryBlock(D, 2, 0.3, seed=1), [VECTORS, causal_mask(PRESENT).numpy()]),
    "HistoryEncoder": lambda: (HistoryEncoder(D, 2, 2, 0.3, max_length=L, seed=1), [VECTORS, PRESENT]),
    "IdTable": lambda: (IdTable.of(["a", "bcd", "é", "0", "x y"]), [np.array([4, 2, 1], np.int32)]),
    "ItemField": lambda: (ItemField(LOOK, TEXT, D), [np.array([4, 2], np.int32)]),
    "ItemFusion": lambda: (
        ItemFusion(TEXT, D, 0.3, 1, [LOOK, BRAND], {LOOK.key: TEXT, BRAND.key: np.arange(N, dtype=np.int32)}),
        [np.array([3, 0], np.float32), np.array([4, 2], np.int32)],
    ),
    "ItemPropagation": lambda: (
        ItemPropagation(N, D, {"author": LINKS, "sequel": LINKS}),
        [(TEXT[:, :D],), (np.array([0, 1, 2, 3, 9], np.float32),)],
    ),
    "LabelMatch": lambda: (
        LabelMatch(
            InterestProfile(RNG.integers(0, N, (N, 2)), RNG.random((N, 2)), N, 0.9, 0.5, 2.0, 0.6),
            LabelHead(*RNG.normal(size=(3, N, 2)), RNG.normal(size=N), scale=4.0),
        ),
        [HISTORY, RATINGS, HISTORY],
    ),
    "NeighbourScores": lambda: (NeighbourScores(N, 3, 0.5), [HISTORY]),
    "QueryFusion": lambda: (
        QueryFusion(QUERY_FIELDS, D, 2, 0.3, seed=1),
        [
            VECTORS,
            VECTORS[..., ::-1].copy(),
            PRESENT,
            {
                "request.timestamp_s": TIMES[:, 0],
                "user.age": RATINGS[:, 0],
                "event.timestamp_s": TIMES,
                ABOUT.key: REVIEWS[:, 2],
            },
            TEXT_MAP,
        ],
    ),
    "RatingPosterior": lambda: (
        RatingPosterior(N, D, 3),
        [HISTORY, RATINGS, np.array([[1, N, 4], [0, 0, 2]], np.int32)],
    ),
    "SceneExperts": lambda: (SceneExperts(4, D, 2, seed=1), [VECTORS, np.array([[1], [3]], np.int32)]),
    "SeededDropout": lambda: (SeededDropout(0.3, seed=1, noise_shape=(None, 1)), [VECTORS[:, 0]]),
    "SelfAttention": lambda: (SelfAttention(D, 2, 0.3, seed=1), [VECTORS, causal_mask(PRESENT).numpy()]),
    "TargetAttention": lambda: (TargetAttention(D, 6, seed=1), [VECTORS[:, :M], VECTORS, VECTORS[..., :2], PRESENT]),
    "TextFieldEncoder": lambda: (TextFieldEncoder(REVIEW, D, widths=[4, 2]), [REVIEWS, TEXT_MAP]),
    "TextFieldsEncoder": lambda: (
        TextFieldsEncoder([REVIEW, CODES, ABOUT], D),
        [{REVIEW.key: REVIEWS, ABOUT.key: REVIEWS[:, ::-1].copy()}, TEXT_MAP],
    ),
    "TimeGaps": lambda: (TimeGaps(D, seed=1), [TIMES[:, 1:], TIMES[:, :-1]]),
    "TermGates": lambda: (
        TermGates(np.any(TEXT > 1, axis=1), seed=1),
        [TEXT[:2, :N], TEXT[2:4, :N], (np.array([0, 1, 2, 3, 9], np.float32),)],
    ),
}


def discovered():
    for found in pkgutil.iter_modules(layers.__path__):
        module = importlib.import_module(f"{layers.__name__}.{found.name}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and issubclass(kind, tf.keras.layers.Layer):
                yield name


def test_every_layer_is_enrolled():
    # A text tower needs an encoder on disk; tests/layers/test_text_tower.py saves and loads it in every format.
    assert sorted(discovered()) == sorted([*ENROLLED, "TextTower"])


def changed(layer):
    """The layer with other weights than those that it starts with; ids stay ids, and neighbours items."""
    for variable in layer.weights:
        if variable.dtype.is_floating:
            variable.assign(variable + RNG.uniform(0.1, 1.0, variable.shape))
        elif variable.dtype == tf.int32:
            variable.assign(RNG.integers(0, N, variable.shape))


def functional(layer, values):
    """A functional model of the layer alone."""

    def symbolic(value):
        if isinstance(value, dict):
            return {key: symbolic(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return tf.keras.Input(batch_shape=value[0].shape, dtype=value[0].dtype)
        return tf.keras.Input(value.shape[1:], dtype=value.dtype)

    inputs = [symbolic(value) for value in values]
    return tf.keras.Model(inputs, layer(*inputs))


def outputs(model, values):
    answers = model([value[0] if isinstance(value, tuple) else value for value in values])
    return [np.asarray(answer) for answer in tf.nest.flatten(answers)]


@pytest.fixture(scope="module", params=sorted(ENROLLED))
def example(request):
    """(layer, values, functional model)."""
    layer, values = ENROLLED[request.param]()
    model = functional(layer, values)
    changed(layer)
    return layer, values, model


def test_the_config_makes_the_same_layer(example):
    layer, _, model = example
    assert tf.keras.saving.get_registered_name(type(layer)) == f"tfllmrec>{type(layer).__name__}"
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    twin = tf.keras.models.clone_model(model)
    assert [v.shape for v in twin.weights] == [v.shape for v in model.weights]


def test_a_model_with_the_layer_is_saved_and_loaded(example, tmp_path):
    _, values, model = example
    expected = outputs(model, values)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "w.h5")
    with_weights = tf.keras.models.clone_model(model)
    if any(variable.dtype.is_floating or variable.dtype == tf.uint8 for variable in model.weights):
        assert any(not np.array_equal(a, b) for a, b in zip(outputs(with_weights, values), expected, strict=True))
    with_weights.load_weights(tmp_path / "w.h5")
    for loaded in (tf.keras.models.load_model(tmp_path / "m.keras"), with_weights):
        for answer, right in zip(outputs(loaded, values), expected, strict=True):
            np.testing.assert_array_equal(answer, right)


@pytest.mark.slow
def test_a_model_with_the_layer_is_saved_as_a_saved_model(example, tmp_path):
    _, values, model = example
    model.save(tmp_path / "saved")
    loaded = tf.keras.models.load_model(tmp_path / "saved")
    for answer, right in zip(outputs(loaded, values), outputs(model, values), strict=True):
        np.testing.assert_array_equal(answer, right)

"""Random models and histories, whose parts must add up; and models in which the event behind a score is planted."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ItemWeightSettings, ModelConfig
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.errors import DataError
from tfllmrec.models.contributions import MOST_ITEMS, contributions_of
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.item_weights import PrunedWeights

pytestmark = [pytest.mark.tf, pytest.mark.slow]
N, NAN = 12, float("nan")
SCHEMA = Schema(
    (
        Field("device", "request", "category", vocabulary=("phone", "tv")),
        Field("timestamp", "request", "time"),
        Field("country", "user", "category", vocabulary=("de", "fr")),
    )
)
TERMS = ("meaning", "feedback", "behaviour")


def random_model(terms=TERMS, schema=SCHEMA, seed=0, scene=None):
    """Every variable that training or validation sets is random, so that no part is zero by its initial value."""
    rng = np.random.default_rng(seed)
    config = ModelConfig(
        embedding_dim=16, blocks=1, heads=2, dropout=0.1, history_length=4, terms=list(terms), scene=scene
    )
    ids = np.arange(N).astype(str).astype(object)
    counts = rng.integers(0, 9, N)
    text = rng.normal(size=(N, 12)).astype(np.float32)
    model = Hybrid(Catalogue(ids, text), counts, config, ItemWeightSettings(neighbours=4), seed=seed, schema=schema)
    for variable in model._learned_variables:
        if "dense_strength" not in variable.name and "text_vectors" not in variable.name:
            drawn = rng.normal(0, 0.2, variable.shape)
            variable.assign(variable + (np.abs(drawn) if "variance" in variable.name else drawn))
    if model.query_fusion is not None:
        model.query_fusion.reads.assign(1.0)
        model.query_fusion.alone.assign(0.7)
    model.gates.discount.assign(0.3)
    model.gates.cold_lift.assign(0.5)
    neighbours = np.stack([rng.permutation(N)[:4] for _ in range(N)])
    model.set_item_weights(PrunedWeights(neighbours, rng.normal(size=(N, 4)).astype(np.float32)))
    return model


def ask(history, ratings=None, **fields):
    codes = {name.replace("_", "."): np.array([value], np.int32) for name, value in fields.items()}
    return Queries.from_histories([history], None if ratings is None else [ratings], fields=codes)


ASKED = {
    "ratings": ask([3, 5, 3, 7], [1, 5, NAN, 4]),
    "longer than the encoder reads": ask([1, 2, 3, 4, 5, 6, 7], [5, 1, 2, 3, 4, NAN, 1]),
    "one event": ask([8]),
    "fields": ask([3, 5, 7], request_device=2, user_country=3),
    "nothing": ask([]),
    "fields alone": ask([], request_device=3),
}


@pytest.fixture(scope="module", params=[None, "device"])
def model(request):
    """Without and with experts of scenes."""
    return random_model(scene=request.param)


@pytest.mark.parametrize("asked", ASKED)
def test_the_parts_add_up_to_the_score(model, asked):
    query = ASKED[asked]
    parts = model.contributions(query, np.arange(N))
    assert parts.events.shape == (len(query.history[0]), N, 3)
    np.testing.assert_allclose(parts.scores, model.score(query)[0], rtol=1e-5, atol=1e-4)
    explained = model.explain(query, np.arange(N)[np.newaxis])
    told = np.stack([explained[term][0] for term in TERMS], axis=-1)
    np.testing.assert_allclose(parts.terms, told, rtol=1e-5, atol=1e-4)
    assert (np.abs(parts.fields).max() > 1e-3) == ("fields" in asked)
    assert (parts.popularity.max() > 0) == (not len(query.history[0]))


def test_what_is_left_over_is_what_a_query_without_content_would_get(model, monkeypatch):
    """So the integrated gradients of 32 steps are those of many, and the other two terms are exact sums."""
    query = ASKED["fields"]
    few = model.contributions(query, np.arange(N))
    monkeypatch.setattr("tfllmrec.models.contributions.STEPS", 1000)
    inputs = {key: tf.constant(values) for key, values in model.query_inputs(query).items()}
    items = tf.constant(np.arange(N)[np.newaxis], tf.int32)
    events, fields, anyone, _ = contributions_of(model, model.item_vectors(), inputs, items)
    spread = np.abs(few.terms[:, 0]).max()
    np.testing.assert_allclose(few.events, events[0], atol=0.02 * spread)
    np.testing.assert_allclose(few.fields, fields[0], atol=0.02 * spread)
    np.testing.assert_allclose(few.anyone[:, 0], anyone[0, :, 0], atol=0.02 * spread)
    assert np.abs(few.anyone[:, 2]).max() < 1e-6 * np.abs(few.events[..., 2]).max()
    # No event, no field: the state of the encoder at positions alone.
    nothing = tf.zeros((1, 3, 16))
    state = model.meaning(nothing, tf.ones((1, 3), tf.bool), _newest(model, query), fields_given=tf.zeros(1))[:, -1]
    cosines = tf.linalg.matvec(model.item_vectors(), tf.linalg.l2_normalize(state, -1)[0])
    factors = model.item_factors()
    expected = cosines / model.config.temperature * factors.dense + factors.offset
    np.testing.assert_allclose(few.anyone[:, 0], expected, atol=0.05 * spread)


def _newest(model, query):
    return {key: tf.constant(values) for key, values in model.query_inputs(query).items()}


def test_the_feedback_term_is_a_sum_over_events():
    """Without the norm's offset nothing is left over; an event without a rating adds nothing."""
    model = random_model()
    norm = model.feedback.norm
    norm.beta.assign(norm.moving_mean * norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon))
    parts = model.contributions(ask([3, 5, 3, 7], [1, 5, NAN, 4]), np.arange(N))
    assert np.abs(parts.anyone[:, 1]).max() < 1e-5 and np.abs(parts.events[[0, 1, 3], :, 1]).max() > 1e-3
    assert not parts.events[2, :, 1].any()


def test_the_planted_event_is_found():
    """Item 9 is bought with item 5 alone; item 2 reads as item 7 does; and 4, disliked, speaks against its like."""
    rng = np.random.default_rng(4)
    text = rng.normal(size=(N, 12)).astype(np.float32)
    text[2], text[6] = text[7], text[4]
    config = ModelConfig(embedding_dim=16, blocks=0, dropout=0.0, history_length=6, id_dropout=1.0)
    ids = np.arange(N).astype(str).astype(object)
    model = Hybrid(Catalogue(ids, text), np.full(N, 5), config, ItemWeightSettings(neighbours=1), seed=1)
    weights = np.zeros((N, 1), np.float32)
    weights[5] = 1.0
    model.set_item_weights(PrunedWeights(np.full((N, 1), 9), weights))
    parts = model.contributions(ask([7, 5, 4, 7], [5, 5, 1, 4]), np.array([9, 2, 6]))
    assert parts.events[..., 2].argmax() == 1 * 3 + 0 and (parts.events[..., 2] != 0).sum() == 1
    assert parts.events[:, 1, 0].argmax() == 3
    assert parts.events[:, 2, 1].argmin() == 2 and parts.events[2, 2, 1] < 0
    # The events that reasons name: liked and alike, or disliked and unlike.
    explained = model.explain(ask([7, 5, 4, 7], [5, 5, 1, 4]), np.arange(N)[np.newaxis])
    closest, rated, followed = explained["behind"][0].T
    assert closest[[2, 6]].tolist() == [0, 2] and followed.tolist() == [1 if item == 9 else -1 for item in range(N)]
    vectors, marks = model.item_vectors().numpy(), np.array([5, 5, 1, 4]) - 3.75
    cosines = vectors[[7, 5, 4, 7]] @ vectors.T
    for item, event in enumerate(rated):
        assert event < 0 or marks[event] * cosines[event, item] > 0
    assert 2 in rated and {0, 1, 3} & set(rated)
    nothing = model.explain(ask([]), np.array([[9, N]]))["behind"]
    assert (nothing == -1).all()


@pytest.mark.parametrize("terms", [["meaning"], ["behaviour"], ["feedback", "behaviour"]])
def test_models_with_fewer_terms(terms):
    model = random_model(terms)
    parts = model.contributions(ASKED["ratings"], np.arange(N))
    np.testing.assert_allclose(parts.scores, model.score(ASKED["ratings"])[0], rtol=1e-5, atol=1e-4)
    for place, term in enumerate(TERMS):
        assert bool(parts.events[..., place].any()) == (term in terms)


def test_what_is_asked_at_once_is_bounded():
    model = random_model(["behaviour"], schema=None)
    with pytest.raises(DataError, match="at most 100 items, found 2 and 1"):
        model.contributions(Queries.from_histories([[1], [2]]), np.array([0]))
    with pytest.raises(DataError, match="found 1 and 101"):
        model.contributions(ask([1]), np.zeros(MOST_ITEMS + 1, int))
    with pytest.raises(DataError, match="from 0 to 11, found 3 to 12"):
        model.contributions(ask([1]), np.array([3, N]))
    assert model.contributions(ask([1]), np.zeros(0, int)).scores.shape == (0,)
    assert model.contributions(ask([1] * 1200), np.array([2])).events.shape[0] == 1000
    assert RATING_KEY in model.reads

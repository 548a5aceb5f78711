import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.schema import Field
from tfllmrec.layers.global_state import keras_policy
from tfllmrec.layers.query_fusion import HIDDEN_FIELDS, HIDDEN_HISTORIES, EventFusion, QueryFusion

pytestmark = pytest.mark.tf
D, L = 4, 5
NAN = float("nan")
DEVICE = Field("device", "request", "category", vocabulary=("phone", "tv"))
AT = Field("timestamp_s", "request", "time")
AGE = Field("age", "user", "number", edges=(0.0, 30.0, 60.0))
LOOK = Field("look", "request", "vector", width=2)
RNG = np.random.default_rng(0)
STATE, EVENTS = RNG.normal(size=(2, 3, L, D)).astype(np.float32)
PRESENT = np.arange(L) < np.array([5, 3, 0])[:, np.newaxis]
TIMES = 1.6e9 + np.cumsum(RNG.uniform(1, 1e5, size=(3, L)), axis=1)


def speaking(layer):
    """The layer with weights that let everything speak."""
    for variable in layer.trainable_variables:
        variable.assign(variable + 0.5 * RNG.normal(size=variable.shape))
    return layer


def asked(device=(2, 3, 2), age=(20.0, NAN, 50.0), times=(1.7e9, NAN, 1.7e9), look=((1, 2), (NAN, NAN), (0, 1))):
    return {
        "request.device": tf.constant(device, tf.int32),
        "request.timestamp_s": tf.constant(times, tf.float64),
        "request.look": tf.constant(look, tf.float32),
        "user.age": tf.constant(age, tf.float32),
        "event.timestamp_s": tf.constant(TIMES),
    }


@pytest.fixture(scope="module")
def fusion():
    made = QueryFusion([DEVICE, AT, AGE, LOOK], D, 2, 0.0, seed=1)
    made(STATE, EVENTS, PRESENT, asked())
    return speaking(made)


def test_no_position_sees_a_later_event_or_state(fusion):
    before = fusion(STATE, EVENTS, PRESENT, asked()).numpy()
    state, events = STATE.copy(), EVENTS.copy()
    state[:, 3:] += 1
    events[:, 3:] += 1
    after = fusion(state, events, PRESENT, asked()).numpy()
    np.testing.assert_allclose(after[:, :3], before[:, :3], rtol=1e-5, atol=1e-6)
    assert np.abs(after[0, 3:] - before[0, 3:]).max() > 0.01


def test_one_position_alone_is_as_among_all(fusion):
    last = np.array([4, 2, 0])
    rows = np.arange(3)
    alone = fusion(STATE[rows, last][:, np.newaxis], EVENTS, PRESENT, asked(), last=tf.constant(last, tf.int32))
    assert alone.shape == (3, 1, D)
    every = fusion(STATE, EVENTS, PRESENT, asked()).numpy()
    np.testing.assert_allclose(alone[:, 0], every[rows, last], rtol=1e-5, atol=1e-6)
    nobody = {key: values[:0] for key, values in asked().items()}
    none = fusion(STATE[:0, :1], EVENTS[:0], PRESENT[:0], nobody, last=tf.constant(last[:0], tf.int32))
    assert none.shape == (0, 1, D)


def test_what_is_behind_absent_positions_does_not_matter(fusion):
    state, events = STATE.copy(), EVENTS.copy()
    state[2], events[2] = 100.0, 100.0  # of the empty history
    np.testing.assert_allclose(
        fusion(state, events, PRESENT, asked())[2], fusion(STATE, EVENTS, PRESENT, asked())[2], rtol=1e-5, atol=1e-5
    )


def test_a_request_for_each_target_is_read_at_its_place(fusion):
    one = fusion(STATE, EVENTS, PRESENT, asked()).numpy()
    wide = asked()
    for key in ("request.device", "request.timestamp_s", "request.look"):
        values = wide[key].numpy()
        wide[key] = tf.constant(np.repeat(values[:, np.newaxis], L, axis=1))
    np.testing.assert_allclose(fusion(STATE, EVENTS, PRESENT, wide), one, rtol=1e-5, atol=1e-6)
    device = wide["request.device"].numpy()
    device[0, 2] = 3
    moved = np.abs(fusion(STATE, EVENTS, PRESENT, wide | {"request.device": tf.constant(device)}) - one).max(axis=-1)
    assert moved[0, 2] > 0.01 and np.delete(moved.ravel(), 2).max() < 1e-6


@pytest.mark.parametrize("field", ["device", "age", "times", "look"])
def test_every_field_speaks_and_an_unknown_value_is_a_missing_one(fusion, field):
    one = fusion(STATE, EVENTS, PRESENT, asked()).numpy()
    other = {"device": (3, 3, 3), "age": (40, NAN, 50), "times": (1.65e9, NAN, 1.7e9), "look": ((3, 2), (1, 1), (0, 1))}
    assert np.abs(fusion(STATE, EVENTS, PRESENT, asked(**{field: other[field]}))[0] - one[0]).max() > 1e-3
    np.testing.assert_array_equal(
        fusion(STATE, EVENTS, PRESENT, asked(device=(1, 1, 1))), fusion(STATE, EVENTS, PRESENT, asked(device=(0, 0, 0)))
    )


def test_given_is_any_known_value(fusion):
    nothing = {"device": (0, 1, 0), "age": (NAN,) * 3, "times": (NAN,) * 3, "look": ((NAN, NAN),) * 3}
    assert not fusion.given(asked(**nothing)).numpy().any()
    assert fusion.given(asked(**nothing | {"age": (NAN, 3, NAN)})).numpy().tolist() == [False, True, False]
    fusion.reads.assign(0.0)
    assert not fusion.given(asked()).numpy().any()
    one, other = (fusion(STATE, EVENTS, PRESENT, values) for values in (asked(), asked(**nothing)))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    fusion.reads.assign(1.0)


def test_training_hides_histories_and_fields():
    layer = QueryFusion([AGE], D, 2, 0.0, seed=1)
    state, events = np.ones((400, 2, D), np.float32), np.ones((400, 2, D), np.float32)
    present, query = np.ones((400, 2), bool), {"user.age": tf.fill([400], 20.0)}
    layer(state, events, present, query)
    speaking(layer)
    out = layer(state, events, present, query, training=True).numpy().reshape(-1, D).round(4)
    whole = layer(state, events, present, query).numpy()[0, 0].round(4)
    no_history = layer(state, events, np.zeros_like(present), query).numpy()[0, 0].round(4)
    no_fields = layer(state, events, present, {"user.age": tf.fill([400], NAN)}).numpy()[0, 0].round(4)
    shares = [np.isclose(out, kind, atol=2e-4).all(axis=1).mean() for kind in (whole, no_history, no_fields)]
    expected = [
        (1 - HIDDEN_HISTORIES) * (1 - HIDDEN_FIELDS), HIDDEN_HISTORIES * (1 - HIDDEN_FIELDS),
        (1 - HIDDEN_HISTORIES) * HIDDEN_FIELDS,
    ]  # fmt: skip
    np.testing.assert_allclose(shares, expected, atol=0.04)


def test_half_precision_keeps_the_seconds():
    with keras_policy("mixed_bfloat16"):
        layer = QueryFusion([AT], D, 2, 0.0, seed=1)
    near = asked() | {"request.timestamp_s": tf.constant(TIMES[:, -1] + 5)}
    far = asked() | {"request.timestamp_s": tf.constant(TIMES[:, -1] + 5000)}
    state, events = tf.cast(STATE, tf.bfloat16), tf.cast(EVENTS, tf.bfloat16)
    layer(state, events, PRESENT, near)
    speaking(layer)
    one, other = (layer(state, events, PRESENT, query) for query in (near, far))
    assert one.dtype == tf.bfloat16 and np.abs(tf.cast(one - other, tf.float32)[0, -1]).max() > 0.01


def test_events_start_from_their_items_and_gaps_speak():
    kind = Field("kind", "event", "category", vocabulary=("view", "buy"))
    layer = EventFusion([kind, Field("timestamp_s", "event", "time")], D, seed=1)
    query = {"event.kind": tf.constant([[2, 3, 0]]), "event.timestamp_s": tf.constant([[0.0, 10.0, NAN]], tf.float64)}
    assert not layer(query).numpy().any()
    layer.strength.assign(1.0)
    before = layer(query).numpy()
    expected = layer.encoder(query) + tf.gather(layer.gaps.table, [[0, 4, 0]])  # 2^3 <= 10 < 2^4
    np.testing.assert_allclose(before, expected, rtol=1e-5)

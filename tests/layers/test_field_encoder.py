from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.schema import Field
from tfllmrec.layers.field_encoder import (
    DAY_S,
    FieldEncoder,
    FieldsEncoder,
    TextFieldEncoder,
    TextFieldsEncoder,
    is_given,
)
from tfllmrec.text.centring import centred_unit

pytestmark = pytest.mark.tf
NAN = float("nan")
COLOUR = Field("colour", "event", "category", vocabulary=("red", "blue"))
GENRES = Field("genres", "item", "category", vocabulary=("a", "b"), width=2)
PRICE = Field("price", "item", "number", median=10.0, spread=5.0, edges=(0.0, 10.0, 20.0))
AT = Field("at", "request", "time")
LOOK = Field("look", "item", "vector", width=2)
FIELDS = [COLOUR, GENRES, PRICE, AT, LOOK]


def encoded(field, cells, shape=None):
    values = field.encode(cells)
    return FieldEncoder(field, 4)(tf.constant(values.reshape(shape + values.shape[1:]) if shape else values)).numpy()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_kind_has_vectors_of_one_width_for_single_values_and_for_histories(field):
    cells = {"number": ["1", "", "7"], "time": ["1e9", "", "2e9"], "vector": ["0.5 1", "", "2 3"]}.get(
        field.kind, [*field.vocabulary[:1], "", *field.vocabulary[1:]]
    )
    flat = encoded(field, cells)
    assert flat.shape == (3, 4) and np.isfinite(flat).all()
    np.testing.assert_array_equal(encoded(field, cells, (1, 3))[0], flat)
    assert np.abs(flat[0] - flat[1]).max() > 1e-3 and np.abs(flat[0] - flat[2]).max() > 1e-3


def test_a_number_is_how_far_it_has_come_through_each_bin():
    encoder = FieldEncoder(PRICE, 4)
    encoder.build(tf.TensorShape([None]))
    numbers = encoder._numbers(tf.constant([[-5.0], [5.0], [15.0], [1e9]])).numpy()
    np.testing.assert_allclose(numbers, [[-3, 0, 0], [-1, 0.5, 0], [1, 1, 0.5], [5, 1, 1]])


def test_a_time_of_items_has_a_place_on_a_scale_too():
    released = Field("released", "item", "time", edges=(0.0, 4 * DAY_S, 5 * DAY_S), median=2 * DAY_S, spread=DAY_S)
    layer = FieldEncoder(released, 3)
    got = layer(tf.constant([DAY_S, np.nan, 1e9], tf.float64)).numpy()
    angles = 2 * np.pi * np.array([1.0, 1 / 7])  # a whole day, a seventh of a week
    told = [*np.sin(angles), *np.cos(angles), -1.0, 1 / 4, 0.0]
    np.testing.assert_allclose(got[0], told @ layer.kernel.numpy(), atol=1e-5)
    assert not got[1].any()  # where missing starts
    far = layer(tf.constant([1e9 + 7 * DAY_S], tf.float64))[0]  # beyond the last edge, and clipped
    np.testing.assert_allclose(far, got[2], atol=1e-4)


def test_a_time_comes_round_each_day_and_each_week():
    encoder = FieldEncoder(AT, 4)
    day, week = 86_400.0, 7 * 86_400.0
    numbers = encoder._numbers(
        tf.constant([[1.6e9], [1.6e9 + day], [1.6e9 + week], [1.6e9 + day / 4]], tf.float64)
    ).numpy()
    np.testing.assert_allclose(numbers[0], numbers[2], atol=1e-6)
    np.testing.assert_allclose(numbers[0][[0, 2]], numbers[1][[0, 2]], atol=1e-6)
    assert np.abs(numbers[0] - numbers[1]).max() > 0.1 and np.abs(numbers[0] - numbers[3])[0] > 0.1


def test_names_of_a_cell_are_averaged():
    encoder = FieldEncoder(GENRES, 4)
    one, other, both, none = encoder(tf.constant(GENRES.encode(["a", "b", "a|b", ""]))).numpy()
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-7)
    np.testing.assert_array_equal(none, encoder.table[0])


def test_a_missing_value_gives_no_gradient_but_its_own():
    encoder = FieldEncoder(LOOK, 4)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(encoder(tf.constant([[NAN, NAN]])))
    kernel, missing = tape.gradient(total, [encoder.kernel, encoder.missing])
    assert not np.any(kernel) and np.all(missing.numpy() == 1)


def test_texts_and_ids_have_no_encoder():
    with pytest.raises(ValueError, match="expected a category, number, time or vector, found text"):
        FieldEncoder(Field("note", "event", "text"), 4)
    with pytest.raises(ValueError, match=r"among \['event.note'\]"):
        FieldsEncoder([Field("note", "event", "text")], 4)


def test_fields_are_summed_and_the_layer_survives_its_config():
    fields = [COLOUR, Field("note", "event", "text"), PRICE]
    layer = FieldsEncoder(fields, 4)
    assert layer.keys == ["event.colour", "item.price"]
    inputs = {"event.colour": tf.constant([2, 0]), "item.price": tf.constant([1.0, NAN])}
    out = layer(inputs).numpy()
    np.testing.assert_allclose(out, sum(e(inputs[e.field.key]) for e in layer.encoders))
    again = FieldsEncoder.from_config(layer.get_config())
    np.testing.assert_array_equal(again(inputs), out)  # the seed is in the config
    assert np.abs(FieldsEncoder(fields, 4, seed=1)(inputs) - out).max() > 1e-3


def test_columns_of_any_name_and_times_in_any_precision():
    fields = [Field("Device Type (app) é", "request", "category", vocabulary=("a",)), AT]
    inputs = {field.key: tf.keras.Input((), dtype=field.dtype, name=f"x{i}") for i, field in enumerate(fields)}
    model = tf.keras.Model(inputs, FieldsEncoder(fields, 4)(inputs))
    hour = 3600.0
    at = np.array([1.6e9, 1.6e9 + hour])
    out = model({fields[0].key: np.array([2, 2]), AT.key: at}).numpy()
    expected = FieldEncoder(AT, 4, seed=43)(tf.constant(at)).numpy()
    np.testing.assert_allclose(out[1] - out[0], expected[1] - expected[0], atol=1e-6)
    assert np.abs(out[1] - out[0]).max() > 0.05
    low = FieldEncoder(AT, 4, dtype="mixed_float16")(tf.constant(at)).numpy()
    np.testing.assert_allclose(low, FieldEncoder(AT, 4)(tf.constant(at)), atol=0.01)


@pytest.mark.parametrize("field", [COLOUR, GENRES], ids=lambda field: field.name)
def test_an_unknown_value_is_a_missing_one_unless_training_has_some(field):
    unknown, missing = encoded(field, ["new", ""])
    np.testing.assert_array_equal(unknown, missing)
    unknown, missing = encoded(replace(field, dropped=3), ["new", ""])
    assert np.abs(unknown - missing).max() > 1e-3


def test_a_kind_of_event_that_only_requests_have_is_a_missing_one():
    kind = Field("kind", "event", "category", ("view", "buy"), weights={"view": 0.5, "buy": 1.0})
    rejected, missing, view, seen = encoded(kind, ["Disliked", "", "view", "seen"])
    np.testing.assert_array_equal(rejected, missing)
    np.testing.assert_array_equal(view, seen)
    codes = tf.constant(kind.encode(["Disliked", "", "seen"]))
    assert is_given(kind, codes).numpy().tolist() == [False, False, True]


ABOUT = Field("about", "user", "text", width=5)


def test_a_text_goes_where_the_items_texts_go_and_has_a_map_of_its_own():
    rng = np.random.default_rng(0)
    texts, text_map = rng.normal(1, 1, size=(4, 5)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    texts[2] = NAN
    layer = TextFieldEncoder(ABOUT, 3, widths=[3, 2])
    layer(texts, text_map)
    layer.mean.assign(rng.normal(1, 1, size=5))
    layer.missing.assign([7.0, 8.0, 9.0])
    centred = texts[[0, 1, 3]] - layer.mean.numpy()
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (centred[:, :3], centred[:, 3:])]
    unit = np.hstack(units) / 2**0.5
    for kernel in (np.zeros((5, 3)), rng.normal(size=(5, 3))):
        layer.kernel.assign(kernel)
        found = layer(texts, text_map).numpy()
        np.testing.assert_allclose(found[[0, 1, 3]], unit @ (text_map + kernel), atol=1e-5)
        np.testing.assert_array_equal(found[2], [7, 8, 9])
    assert is_given(ABOUT, tf.constant(texts)).numpy().tolist() == [True, True, False, True]


def test_a_text_is_centred_as_those_of_the_items_are():
    texts = np.random.default_rng(0).normal(1, 1, size=(9, 5)).astype(np.float32)
    layer = TextFieldEncoder(ABOUT, 5)
    layer(texts, np.eye(5, dtype=np.float32))
    layer.mean.assign(texts.mean(axis=0))
    np.testing.assert_allclose(layer(texts, np.eye(5, dtype=np.float32)), centred_unit(texts), atol=1e-6)
    equal = np.broadcast_to(layer.mean.numpy(), (2, 5))  # nothing is left of it
    np.testing.assert_array_equal(layer(equal, np.eye(5, dtype=np.float32)), np.zeros((2, 5)))


def test_texts_without_a_width_have_no_encoder():
    unread = replace(ABOUT, width=0)
    assert TextFieldsEncoder.of([unread, COLOUR], 4, None) is None and FieldsEncoder.of([unread, ABOUT], 4, 1) is None
    assert TextFieldsEncoder.of([unread, ABOUT, COLOUR], 4, None).fields == [ABOUT]
    assert FieldsEncoder.of([ABOUT, COLOUR], 4, 1).fields == [COLOUR]
    for field in (unread, COLOUR):
        with pytest.raises(ValueError, match="expected a text with a width"):
            TextFieldEncoder(field, 4)
    with pytest.raises(ValueError, match="expected a category, number, time or vector, found text"):
        FieldEncoder(ABOUT, 4)

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.schema import Field
from tfllmrec.layers.item_fusion import ItemFusion

pytestmark = pytest.mark.tf
TEXT = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)


def vectors(layer, counts, **kwargs):
    return layer(tf.constant(counts, tf.float32), **kwargs).numpy()


def text_part(layer):
    return TEXT @ layer.maps["text"].numpy()


def test_by_hand():
    layer = ItemFusion(TEXT, 5, id_dropout=0.3, seed=1)
    half = np.log(1 + np.exp(1.0))  # softplus of where it starts
    counts = np.array([0, 1, 7, 100])
    expected = text_part(layer) + (counts / (counts + half))[:, None] * layer.id_embedding.numpy()
    np.testing.assert_allclose(vectors(layer, counts), expected, atol=1e-6)


def test_a_cold_item_is_its_text_and_the_id_fades_in():
    layer = ItemFusion(TEXT, 5, id_dropout=0.3, seed=1)
    before = vectors(layer, [0, 1, 10, 0])
    layer.id_embedding.assign_add(tf.ones((4, 5)))
    moved = np.abs(vectors(layer, [0, 1, 10, 0]) - before).max(axis=1)
    assert moved[0] == moved[3] == 0
    assert 0 < moved[1] < moved[2] < 1
    np.testing.assert_allclose(before[0], text_part(layer)[0], atol=1e-6)
    assert not before[3].any()  # neither text nor events


def test_rows_of_ids_are_hidden_in_training():
    layer = ItemFusion(np.tile(TEXT, (100, 1)), 5, id_dropout=0.3, seed=1)
    layer.maps["text"].assign(tf.zeros((3, 5)))
    out = layer(tf.fill((400,), 10.0), training=True).numpy()
    hidden = (out == 0).all(axis=1)
    assert np.array_equal(hidden, (out == 0).any(axis=1))
    assert hidden.mean() == pytest.approx(0.3, abs=0.1)
    assert (layer(tf.fill((400,), 10.0)).numpy() != 0).all()


def test_id_dropout_1_leaves_ids_out():
    layer = ItemFusion(TEXT, 5, id_dropout=1.0, seed=1)
    assert [v.name for v in layer.trainable_variables] == ["text_map:0"]
    np.testing.assert_allclose(vectors(layer, [9, 9, 9, 9]), text_part(layer), atol=1e-6)


BRAND = Field("brand", "item", "category", vocabulary=("a", "b"))
TAGS = Field("tags", "item", "category", vocabulary=("x", "y", "z"), width=2)
PRICE = Field("price", "item", "number", edges=(1.0, 5.0, 9.0), median=4.0, spread=2.0)
IMAGE = Field("image", "item", "vector", width=2)
FIELDS = [BRAND, TAGS, PRICE, IMAGE]
NAN = np.nan
#: Item 1 has none of them, item 2 some, item 3 has no text; brand 1 is one that training did not have.
VALUES = {
    "item.brand": np.array([2, 1, 0, 3], np.int32),
    "item.tags": np.array([[2, 3], [0, 0], [4, 0], [2, 4]], np.int32),
    "item.price": np.array([2, NAN, NAN, 30], np.float32),
    "item.image": np.array([[3, 1], [NAN, NAN], [5, 5], [1, 0]], np.float32),
}


def with_fields(values=VALUES, fields=FIELDS, speak=True, **kwargs):
    """A layer whose fields have learned something, unless they are not to ``speak`` yet."""
    layer = ItemFusion(TEXT, 5, 0.3, 1, fields, values, **kwargs)
    layer.content()  # makes the encoders' weights
    if speak:
        rng = np.random.default_rng(4)
        layer.strengths.assign(rng.normal(size=len(fields)))
        layer.keys.assign(rng.normal(size=layer.keys.shape))
    return layer


def slow_content(layer):
    """In numpy, item by item."""
    image = VALUES["item.image"] - np.array([3.0, 2.0])  # the mean of the three that are there
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    brand, tags, price, looks = (field.encoder for field in layer.fields)
    bins = {2: [-1.0, 1 / 4, 0.0], 30: [5.0, 1.0, 1.0]}  # in spreads from the median, at most 5; through each bin
    every = np.zeros((4, 5))
    for item in range(4):
        told = {}
        if TEXT[item].any():
            told[0] = TEXT[item] @ layer.maps["text"].numpy()
        if VALUES["item.brand"][item] > 1:
            told[1] = brand.table.numpy()[VALUES["item.brand"][item]]
        if VALUES["item.tags"][item].any():
            codes = VALUES["item.tags"][item]
            told[2] = tags.table.numpy()[codes[codes > 0]].mean(axis=0)
        if np.isfinite(VALUES["item.price"][item]):
            told[3] = np.array(bins[int(VALUES["item.price"][item])]) @ price.kernel.numpy()
        if np.isfinite(image[item]).all():
            told[4] = image[item] @ looks.kernel.numpy()
        likes = np.exp([told[m] @ layer.keys.numpy()[m] for m in told])
        strengths = [1.0, *layer.strengths.numpy()]
        for m, weight in zip(told, len(told) * likes / likes.sum(), strict=True):
            every[item] += weight * strengths[m] * told[m]
    return every


def test_attention_over_text_and_fields_by_hand():
    layer = with_fields()
    np.testing.assert_allclose(layer.content().every, slow_content(layer), atol=1e-5)
    counts, half = np.array([0, 1, 7, 100]), np.log(1 + np.exp(1.0))
    ids = (counts / (counts + half))[:, np.newaxis] * layer.id_embedding.numpy()
    np.testing.assert_allclose(vectors(layer, counts), slow_content(layer) + ids, atol=1e-5)


def test_training_starts_from_text_and_id():
    plain = ItemFusion(TEXT, 5, id_dropout=0.3, seed=1)
    np.testing.assert_array_equal(vectors(with_fields(speak=False), [0, 1, 7, 100]), vectors(plain, [0, 1, 7, 100]))
    with tf.GradientTape() as tape:
        layer = with_fields(speak=False)
        loss = tf.reduce_sum(layer(tf.ones(4)) * tf.range(5.0))
    assert np.abs(tape.gradient(loss, layer.strengths)).min() > 0  # and fields can begin to speak


def test_a_missing_modality_is_as_if_there_were_none():
    every, without_image = with_fields(), with_fields(fields=FIELDS[:3])
    for field, same in zip(every.fields[:3], without_image.fields, strict=True):
        same.encoder.set_weights(field.encoder.get_weights())
    without_image.strengths.assign(every.strengths[:3])
    without_image.keys.assign(every.keys[:4])
    there = np.array([True, False, True, True])
    moved = np.abs(every.content().every - without_image.content().every).max(axis=1)
    assert (moved > 1e-3).tolist() == there.tolist() and moved[1] == 0
    np.testing.assert_array_equal(every.content().every[1], text_part(every)[1].astype(np.float32))


def test_fields_that_are_not_read_are_as_if_there_were_none():
    layer = with_fields()
    assert layer.fields_read == FIELDS
    layer.reads.assign(0.0)
    assert layer.fields_read == ItemFusion(TEXT, 5, 0.3, 1).fields_read == []
    np.testing.assert_allclose(layer.content().every, text_part(layer), atol=1e-6)


def test_the_fields_of_some_items_are_hidden_in_training():
    many = {key: np.repeat(values[:1], 2000, axis=0) for key, values in VALUES.items()}
    layer = ItemFusion(np.repeat(TEXT[:1], 2000, axis=0), 5, 1.0, 1, FIELDS[:3], many)
    layer.content()
    layer.strengths.assign(tf.ones(3))
    content, out = layer.content(), layer(tf.zeros(2000), training=True).numpy()
    hidden = (out == content.text.numpy()).all(axis=1)
    assert hidden.mean() == pytest.approx(0.1, abs=0.03)
    np.testing.assert_array_equal(out[~hidden], content.every.numpy()[~hidden])


def test_the_fields_of_items_without_text_are_not_hidden():
    many = {key: np.repeat(values[:1], 200, axis=0) for key, values in VALUES.items()}
    layer = ItemFusion(np.zeros((200, 3), np.float32), 5, 1.0, 1, FIELDS[:3], many)
    layer.content()
    layer.strengths.assign(tf.ones(3))
    assert layer.content().every.numpy().any(axis=1).all()
    np.testing.assert_array_equal(layer(tf.zeros(200), training=True), layer.content().every)


def test_new_values_are_read_without_the_mean_of_the_old_ones():
    layer = with_fields()
    before = layer.content().every.numpy()
    image = layer.fields[3]
    image.set_values(np.array([[3, 1], [4, 2], [NAN, NAN], [1, 0]], np.float32))
    now = layer.content().every.numpy()
    assert (np.abs(now - before).max(axis=1) > 1e-3).tolist() == [False, True, True, False]
    np.testing.assert_allclose(image.values[1], [1, 0], atol=1e-6)  # [4, 2] - [3, 2]


def test_a_catalogue_without_any_text_leans_on_ids():
    layer = ItemFusion(np.zeros((4, 1)), 5, id_dropout=0.3, seed=1)
    out = vectors(layer, [0, 5, 5, 5])
    assert not out[0].any() and out[1:].any(axis=1).all()


def test_some_of_the_items_in_any_order():
    layer = with_fields()
    some = layer(tf.constant([7.0, 3.0]), tf.constant([2, 0])).numpy()
    np.testing.assert_allclose(some, vectors(layer, [3, 0, 7, 0])[[2, 0]], atol=1e-6)


def test_half_precision_computes_in_bfloat16_and_counts_in_float32():
    layer = with_fields(dtype="mixed_bfloat16")
    out = layer(tf.constant([0.0, 1, 1001, 3]), content=layer.content())
    assert out.dtype == tf.bfloat16 and layer.id_embedding.dtype == tf.float32
    np.testing.assert_allclose(tf.cast(out, tf.float32), with_fields()(tf.constant([0.0, 1, 1001, 3])), atol=0.03)

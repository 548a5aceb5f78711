import numpy as np
import pytest
import tensorflow as tf

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


def test_further_features_are_added():
    flags = np.array([[1.0], [0], [0], [1]], np.float32)
    layer = ItemFusion(TEXT, 5, id_dropout=1.0, seed=1, features={"flags": flags})
    np.testing.assert_allclose(
        vectors(layer, [0] * 4), text_part(layer) + flags @ layer.maps["flags"].numpy(), atol=1e-6
    )


def test_a_catalogue_without_any_text_leans_on_ids():
    layer = ItemFusion(np.zeros((4, 1)), 5, id_dropout=0.3, seed=1)
    out = vectors(layer, [0, 5, 5, 5])
    assert not out[0].any() and out[1:].any(axis=1).all()


def test_some_of_the_items_in_any_order():
    layer = ItemFusion(TEXT, 5, id_dropout=0.3, seed=1)
    some = layer(tf.constant([7.0, 3.0]), tf.constant([2, 0])).numpy()
    np.testing.assert_allclose(some, vectors(layer, [3, 0, 7, 0])[[2, 0]], atol=1e-6)


def test_half_precision_computes_in_bfloat16_and_counts_in_float32():
    layer = ItemFusion(TEXT, 5, id_dropout=0.3, seed=1, dtype="mixed_bfloat16")
    out = layer(tf.constant([0.0, 1, 1001, 3]), content=layer.content())
    assert out.dtype == tf.bfloat16 and layer.id_embedding.dtype == tf.float32
    whole = ItemFusion(TEXT, 5, id_dropout=0.3, seed=1)
    np.testing.assert_allclose(tf.cast(out, tf.float32), whole(tf.constant([0.0, 1, 1001, 3])), atol=0.02)

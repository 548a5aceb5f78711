import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.scene_experts import SceneExperts

pytestmark = pytest.mark.tf
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(2, 3, 8)).astype(np.float32)
SCENES = np.array([[1, 2, 3], [2, 2, 0]], np.int32)


def filled():
    layer = SceneExperts(4, 8, 3, seed=1)
    layer(QUERY, SCENES)
    for weight in (layer.narrow, layer.gate_map, layer.widen.bias):
        weight.assign(np.random.default_rng(2).normal(size=weight.shape))
    return layer


def oracle(layer, query, scene):
    """One query [D] and its scene, step by step."""
    normed = (query - query.mean()) / np.sqrt(query.var() + 1e-6)
    gate_map = layer.gate_map.numpy()[scene]
    logits = normed @ gate_map + layer.gate_bias.numpy()[scene]
    gates = np.exp(logits) / np.exp(logits).sum()
    hidden = tf.nn.gelu(normed @ layer.widen.kernel.numpy() + layer.widen.bias.numpy()).numpy().reshape(3, 8)
    return query + sum(gates[k] * hidden[k] @ layer.narrow.numpy()[k] for k in range(3))


def test_each_query_is_mixed_by_the_gate_of_its_scene():
    layer = filled()
    found = layer(QUERY, SCENES).numpy()
    for row in range(2):
        for at in range(3):
            np.testing.assert_allclose(found[row, at], oracle(layer, QUERY[row, at], SCENES[row, at]), atol=1e-4)
    of_rows = layer(QUERY, np.array([2, 3], np.int32)).numpy()
    np.testing.assert_allclose(of_rows[1, 2], oracle(layer, QUERY[1, 2], 3), atol=1e-4)
    assert np.abs(layer(QUERY, SCENES * 0).numpy() - found)[0].max() > 0.1  # scenes have gates of their own


def test_it_starts_from_the_query_and_hides_some_scenes_in_training():
    layer = SceneExperts(4, 8, 3, seed=1)
    np.testing.assert_array_equal(layer(QUERY, SCENES), QUERY)
    layer = filled()
    many = np.repeat(QUERY[:1, :1], 400, axis=1)
    scenes = np.full((1, 400), 3, np.int32)
    differs = np.abs(layer(many, scenes, training=True).numpy() - layer(many, scenes).numpy()).max(axis=2) > 1e-3
    assert 0.04 < differs.mean() < 0.2

"""Planted data in which users stay within a hidden group of items that the graph tells, and texts do not."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from hidden_groups import GROUPS, IDS, N, cold_hits, fit, histories

from tfllmrec.config import ItemWeightSettings, ModelConfig
from tfllmrec.data.graph import ItemGraph, Relation
from tfllmrec.errors import ModelError
from tfllmrec.models.hybrid import Catalogue, Hybrid, Negatives

pytestmark = pytest.mark.tf
CONFIG = ModelConfig(embedding_dim=16, blocks=1, heads=2, dropout=0.1, history_length=6, terms=["meaning"])
TEXT = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)


def relation(name, far, kind="value"):
    """Each item and the one ``far`` on."""
    heads = np.arange(N - far, dtype=np.int32)
    return Relation(name, kind, heads, heads + np.int32(far), np.ones(N - far, np.float32))


#: Authors and series keep to one group, colours do not.
TELLING = (relation("author", GROUPS), relation("series", 3 * GROUPS))
GRAPH, MIXED = ItemGraph(N, TELLING), ItemGraph(N, (*TELLING, relation("colour", 7)))
MISLEADING = ItemGraph(N, (relation("use", GROUPS, "use"),))


def made(graph=GRAPH, negatives=None, item_weights=None, **settings):
    counts = np.bincount(histories().values, minlength=N)
    weights = item_weights or ItemWeightSettings(neighbours=4)
    config = CONFIG.model_copy(update=settings)
    return Hybrid(Catalogue(IDS, TEXT, graph=graph), counts, config, weights, negatives, seed=3)


@functools.cache
def fitted(propagation, negatives):
    graph = MIXED if propagation == "relations" else GRAPH
    model = made(graph, Negatives(negatives), propagation=propagation)
    return fit(model)


@pytest.mark.parametrize(
    ("propagation", "negatives", "least"),
    [("lightgcn", 0, 0.75), ("relations", 0, 0.75), pytest.param("lightgcn", 20, 0.5, marks=pytest.mark.slow)],
)
def test_a_cold_item_is_found_by_its_neighbours(propagation, negatives, least):
    model = fitted(propagation, negatives)
    assert cold_hits(model) > least
    model.propagation.reads.assign(0.0)
    assert cold_hits(model) < least - 0.1
    model.propagation.reads.assign(1.0)


def test_attention_learns_which_relation_to_follow():
    model = fitted("relations", 0)
    assert model.propagation.names == ["author", "series", "colour"]
    weights = tf.nn.softmax(model.propagation.biases).numpy()
    assert weights.argmin() == 2


@pytest.mark.parametrize("propagation", ["lightgcn", "relations"])
def test_training_starts_as_without_a_graph(propagation):
    np.testing.assert_allclose(made(propagation=propagation).item_vectors(), made().item_vectors(), atol=1e-6)


def test_without_edges_that_a_model_reads_there_is_nothing_to_pass_on():
    assert made(None, propagation="lightgcn").propagation is None
    assert made(MISLEADING, propagation="relations").propagation is None
    with pytest.raises(ModelError, match=r"expected a graph of 48 items, found one of 47\. Build it"):
        made(ItemGraph(N - 1, ()))


@pytest.mark.parametrize("propagation", ["lightgcn", "relations"])
def test_saved_and_loaded(propagation, tmp_path):
    model = fitted(propagation, 0)
    model.save(tmp_path / "m.keras")
    loaded = tf.keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.item_vectors(), model.item_vectors(), atol=1e-6)
    blank = Hybrid.from_config(json.loads(json.dumps(model.get_config())))
    assert [v.shape for v in blank.weights] == [v.shape for v in model.weights]


def test_some_of_the_items_and_other_texts():
    model, some = fitted("relations", 0), tf.constant([40, 3])
    np.testing.assert_allclose(model.item_vectors(items=some), tf.gather(model.item_vectors(), some), atol=1e-6)
    own = model.item_vectors_of_texts(40, tf.constant(model.text_vectors[[40, 3]]))
    np.testing.assert_allclose(own[0], model.item_vectors()[40], atol=1e-5)
    assert np.abs(own[1] - own[0]).max() > 0.01


def test_new_items_have_no_neighbours_and_old_ones_keep_theirs():
    model = made(propagation="relations")
    for variable in model.propagation.trainable_variables:
        variable.assign(tf.ones_like(variable))
    catalogue = Catalogue(np.append(IDS, "new"), np.vstack([TEXT, TEXT[:1]]), graph=ItemGraph(N + 1, GRAPH.relations))
    grown = model.extend(catalogue, TEXT, histories(), lambda line: None)
    np.testing.assert_allclose(grown.item_vectors()[:N], model.item_vectors(), atol=1e-5)
    by_text = tf.math.l2_normalize(grown.items.content().text[N])
    np.testing.assert_allclose(grown.item_vectors()[N], by_text, atol=1e-5)

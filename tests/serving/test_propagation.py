"""Item vectors that read their neighbours, in an export: what is served is what the Keras model says."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ModelConfig
from tfllmrec.data.graph import ItemGraph, Relation
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.serving.export import export
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.long]


def test_scores_are_those_of_the_model(chain_split, tmp_path):
    n_items, rng = chain_split.dataset.n_items, np.random.default_rng(0)

    def relation(name, far):
        heads = np.arange(n_items - far, dtype=np.int32)
        return Relation(name, "value", heads, heads + np.int32(far), np.ones(len(heads), np.float32))

    text = rng.normal(size=(n_items, 8)).astype(np.float32)
    graph = ItemGraph(n_items, (relation("author", 2), relation("series", 5)))
    catalogue = Catalogue.of(chain_split.dataset.items, text, chain_split.schema, graph=graph)
    settings = {"embedding_dim": 8, "blocks": 1, "heads": 2, "history_length": 6}
    config = ModelConfig(**settings, propagation="relations")
    model = Hybrid(catalogue, chain_split.train_counts, config, schema=chain_split.schema)
    for variable in model.propagation.trainable_variables:
        variable.assign(tf.constant(1 + rng.random(variable.shape), tf.float32))
    queries = chain_split.test
    served = SavedModel.open(export(model, chain_split, tmp_path / "chain", tell=lambda line: None)).score(queries)
    np.testing.assert_allclose(served, model.score(queries), rtol=1e-4, atol=1e-4)
    model.propagation.reads.assign(0.0)
    assert np.abs(served - model.score(queries)).max() > 1e-2

"""One inner product and a sparse sum are the hybrid's score; an index on them gives the hybrid's lists."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ItemWeightSettings, ModelConfig
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.layers.item_cells import Cells
from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.models import folding
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.item_weights import PrunedWeights

pytestmark = pytest.mark.tf
N, P = 50, 6
RNG = np.random.default_rng(3)
SIZES = {"embedding_dim": 8, "blocks": 1, "heads": 2, "dropout": 0.1, "history_length": 4}
HISTORY = tf.constant(RNG.integers(0, N, (6, 7)) * (np.arange(7) < np.array([[0], [1], [3], [7], [7], [5]])), tf.int32)
HISTORY = tf.where(np.arange(7) < np.array([[0], [1], [3], [7], [7], [5]]), HISTORY, N)
QUERY = {"history": HISTORY, RATING_KEY: tf.constant(RNG.integers(1, 6, (6, 7)), tf.float32)}


def model(terms, offsets=True):
    """Random weights and gates: every factor differs from item to item."""
    text = RNG.normal(size=(N, 5)).astype(np.float32)
    text[::7] = 0
    counts = np.arange(N) % 9
    config = ModelConfig(**SIZES, terms=terms)
    weights = ItemWeightSettings(decay=0.5, neighbours=P)
    made = Hybrid(Catalogue(np.arange(N).astype(str).astype(object), text), counts, config, weights)
    made.gates.output_map.kernel.assign(RNG.normal(0, 0.05, (8, 1)))
    made.gates.dense_strength.assign(0.7)
    made.gates.closing.assign(0.6)
    made.gates.discount.assign(0.3 * offsets)
    made.gates.cold_lift.assign(1.5 * offsets)
    neighbours = np.array([RNG.permutation(N)[:P] for _ in range(N)], np.int32)
    made.set_item_weights(PrunedWeights(neighbours, RNG.normal(size=(N, P)).astype(np.float32)))
    return made


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize(
    "terms", [("meaning", "feedback", "behaviour"), ("meaning", "behaviour"), ("meaning",), ("behaviour",)]
)
def test_lists_and_scores_are_the_hybrids(terms, offsets, monkeypatch):
    monkeypatch.setattr(folding, "_ROWS_AT_ONCE", 16)
    hybrid = model(terms, offsets)
    items = hybrid.item_vectors()
    expected = hybrid.score_items(items, QUERY).numpy()
    folded = hybrid.fold()
    assert folded.dim == 8 + (offsets and len(terms) > 1)  # a number more where there are offsets to add
    index = ItemIndex(folded.vectors, prior=folded.prior)
    found, scores = index.top_k(k=tf.constant([N]), **folded.requests(items, QUERY))
    assert np.sort(found, axis=1).tolist() == [list(range(N))] * 6
    np.testing.assert_allclose(scores, np.take_along_axis(expected, found.numpy(), axis=1), rtol=1e-5, atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    # The first request is not scored like this.
    request = folded.requests(items, QUERY)
    cells = Cells(RNG.normal(size=(3, folded.dim)).astype(np.float32), np.arange(N) % 3, 3, 1.0)
    for made in (index, ItemIndex(folded.vectors, cells)):
        mean, variance = folded.moments(made, request["query"], request["pairs"])
        np.testing.assert_allclose(mean[1:], expected[1:].mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance[1:], expected[1:].var(axis=1), rtol=1e-4, atol=1e-5)
    # Nobody knows the first person: by popularity, equal counts in the order of the items.
    assert found[0].numpy().tolist() == np.argsort(-(np.arange(N) % 9), kind="stable").tolist()


def test_without_gates_the_sum_would_be_another():
    hybrid = model(("meaning", "behaviour"))
    dense, sparse, offset = hybrid.gates.factors(hybrid.train_counts)
    assert all(len(np.unique(factor)) > 5 for factor in (dense, sparse, offset))
    folded = hybrid.fold()
    lengths = np.linalg.norm(folded.vectors[:, :-1], axis=1)
    assert lengths[0] == 0  # neither text nor events: a vector of zeros
    np.testing.assert_allclose(lengths[1:], dense[1:], rtol=1e-5)
    np.testing.assert_allclose(folded.vectors[:, -1], hybrid.config.temperature * offset.numpy(), rtol=1e-6)


def test_queries_without_the_offset_of_the_items():
    for offsets in (True, False):
        hybrid = model(("meaning", "behaviour"), offsets)
        folded = hybrid.fold()
        queries = folded.queries(hybrid.item_vectors(), QUERY).numpy()
        kept = folded.without_offset(queries).numpy()
        assert queries[1:, :8].any() and np.array_equal(kept[:, :8], queries[:, :8])
        assert not kept[:, 8:].any() and queries.shape[1] == 8 + offsets

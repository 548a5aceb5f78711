"""Candidates by ScaNN: whatever it fetches, the answer is that of a full sort where it is to be."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.layers import item_index
from tfllmrec.layers.item_cells import exact_best
from tfllmrec.layers.item_index import ItemIndex, build_index
from tfllmrec.layers.item_scann import Scann, recall_of_lists

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.long]
N, D = 3000, 16
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(100, D))
VECTORS = (CENTRES[RNG.integers(0, 100, N)] + 0.3 * RNG.normal(size=(N, D))).astype(np.float32)
VECTORS *= np.exp(RNG.normal(-4, 0.5, (N, 1))).astype(np.float32)  # lengths differ, and are far from 1
QUERIES = (CENTRES[RNG.integers(0, 100, 120)] + 0.3 * RNG.normal(size=(120, D))).astype(np.float32)


# Measuring, for which nothing is installed ----------------------------------------------------------------------------


def test_recall_of_lists():
    lists = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    mean, error = recall_of_lists(lists, np.zeros((3, 3)), np.array([3, 3, 3]), np.array([[3, 1], [4, 0], [1, 2]]))
    assert mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert error == pytest.approx(np.sqrt((0.25 + 0 + 0.25) / 3) / np.sqrt(3))


def test_what_is_not_fetched_and_what_fills_up_is_not_found():
    lists = np.array([[1, 2, 3], [1, 2, 3], [0, 4, 0], [4, 0, 0]])
    scores = np.array([[3, 2, 1], [3, 2, 1], [3, 2, np.nan], [3, np.nan, np.nan]])
    best = np.array([[3, 1], [3, 1], [0, 4], [0, 4]])
    mean, _ = recall_of_lists(lists, scores, np.array([3, 2, 3, 3]), best)
    assert mean == (1 + 0.5 + 1 + 0.5) / 4


def test_scann_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    with pytest.raises(ModelError, match=r"pip install -e '\.\[scann\]', or export with another --index"):
        build_index(VECTORS, QUERIES, "scann")


def test_few_items_are_scanned_without_it():
    assert build_index(VECTORS[:999], QUERIES, "scann").about == {"form": "exact", "recall": 1.0}


# With ScaNN -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index():
    pytest.importorskip("scann", reason="pip install tfllmrec[scann]")
    return build_index(VECTORS, QUERIES, "scann", categories=[np.arange(0, N, 2)], prior=np.arange(N) % 97)


def ask(index, k, query=QUERIES, **more):
    items, scores = tf.function(index.top_k)(tf.constant(query), tf.constant([k]), **more)  # eagerly it takes seconds
    return items.numpy(), scores.numpy()


def recall(items, wanted):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(items, wanted, strict=True)])


def test_has_the_recall_that_it_says_and_exact_scores(index):
    items, scores = ask(index, 10)
    best = np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :10]
    assert index.about == {"form": "scann", "recall": pytest.approx(recall(items, best), abs=0.002)}
    assert index.cells.recall >= 0.95 and index.cells.probes < index.cells.cells / 2
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", VECTORS[items], QUERIES), rtol=1e-4, atol=1e-5)
    assert (np.diff(scores) <= 0).all()


def test_longer_lists_and_more_exclusions_fetch_more(index):
    order = np.argsort(-(QUERIES @ VECTORS.T), axis=1)
    items, _ = ask(index, 60)
    assert recall(items, order[:, :60]) > 0.8
    items, _ = ask(index, 10, exclude=order[:, :150].astype(np.int32))
    assert not any(set(row) & set(out[:150]) for row, out in zip(items, order, strict=True))
    # Of a list that was not made longer, all would be excluded and the answer be any others.
    assert recall(items, order[:, 150:160]) > 0.3


def test_the_choice_is_made_on_what_may_come_back():
    pytest.importorskip("scann", reason="pip install tfllmrec[scann]")
    excluded = np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :20].astype(np.int32)
    made = Scann(VECTORS, QUERIES, excluded)
    items, _ = ask(ItemIndex(VECTORS, made), 10, exclude=excluded)
    assert made.recall >= 0.95
    assert recall(items, exact_best(VECTORS, QUERIES, excluded)) == pytest.approx(made.recall, abs=0.01)


def test_one_long_list_of_exclusions_flatters_nobody_else():
    pytest.importorskip("scann", reason="pip install tfllmrec[scann]")
    rng = np.random.default_rng(1)
    vectors, queries = (rng.normal(size=(rows, 32)).astype(np.float32) for rows in (10_000, 120))  # no clusters: hard
    excluded = np.full((120, 1500), len(vectors), np.int32)
    excluded[0] = np.argsort(-(vectors @ queries[0]))[:1500]
    made = Scann(vectors, queries, excluded)
    items, _ = ask(ItemIndex(vectors, made), 10, queries, exclude=excluded)
    assert made.recall >= 0.95
    assert recall(items, exact_best(vectors, queries, excluded)) == pytest.approx(made.recall, abs=0.005)


def test_more_than_the_cells_hold_is_not_filled_up(index):
    for query in QUERIES[:20]:
        found = index.cells.near(tf.constant(query), 1, N).numpy()
        assert 0 < len(set(found)) == len(found) < N / 10


def test_filters_pairs_and_unknown(index, monkeypatch):
    scores = QUERIES @ VECTORS.T
    even = np.argsort(-scores[:, ::2], axis=1)[:, :10] * 2
    items, _ = ask(index, 10, categories=np.zeros((120, 1), np.int32))
    assert recall(items, even) == 1.0  # 1,500 are left: each is looked at
    monkeypatch.setattr(item_index, "LISTED", 10)
    items, _ = ask(index, 10, categories=np.zeros((120, 1), np.int32))
    assert (items % 2 == 0).all() and recall(items, even) > 0.9
    far = np.argmin(scores, axis=1).astype(np.int32)[:, np.newaxis]
    items, found = ask(index, 3, pairs=(tf.constant(far), tf.fill((120, 1), 100.0)))
    assert (items[:, :1] == far).all()
    np.testing.assert_allclose(found[:, 0], 100 + scores.min(axis=1), rtol=1e-5)
    items, _ = ask(index, 2, np.zeros_like(QUERIES), unknown=np.ones(120, bool))
    assert items.tolist() == [[96, 193]] * 120  # the first two of the highest prior
    items, _ = ask(index, 2, unknown=np.ones(120, bool))
    assert np.array_equal(items, np.argsort(-(scores + np.arange(N) % 97), axis=1)[:, :2])


def test_all_that_there_is(index):
    items, _ = ask(index, N, QUERIES[:2])
    assert (np.sort(items, axis=1) == np.arange(N)).all()


def test_a_saved_one_answers_the_same_and_is_made_once(index, tmp_path):
    class Served(tf.Module):
        def __init__(self):
            super().__init__()
            self.index = index

        @tf.function(input_signature=[tf.TensorSpec([None, D])])
        def first(self, query):
            return {"items": self.index.top_k(query, [10])[0]}

        @tf.function(input_signature=[tf.TensorSpec([None, D])])
        def second(self, query):
            return {"items": self.index.top_k(query, [10], exclude=tf.zeros((tf.shape(query)[0], 1), tf.int32))[0]}

        @tf.function(input_signature=[])
        def prepare(self):
            self.index.cells.prepare()

        @tf.function(input_signature=[])
        def release(self):
            self.index.cells.release()

    served = Served()
    tf.saved_model.save(served, str(tmp_path), {"first": served.first, "second": served.second})
    one, other = (tf.saved_model.load(str(tmp_path)) for _ in range(2))
    expected = ask(index, 10)[0]
    one.prepare()  # or these calls would each make the one that they share
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(one.signatures[name], query=tf.constant(QUERIES)) for name in ("first", "second") * 8]
        for answer in asked[::2]:
            np.testing.assert_array_equal(answer.result()["items"], expected)
    graph = one.signatures["first"].graph.as_graph_def()
    names = {
        node.attr["shared_name"].s
        for function in graph.library.function
        for node in function.node_def
        if node.op == "Scann>TensorsToScann"
    }
    assert len(names) == 1 and names != {b""}
    np.testing.assert_array_equal(one.signatures["first"](query=tf.constant(QUERIES))["items"], expected)
    without_0 = ask(index, 10, exclude=np.zeros((120, 1), np.int32))[0]
    np.testing.assert_array_equal(one.signatures["second"](query=tf.constant(QUERIES))["items"], without_0)
    one.release()
    np.testing.assert_array_equal(other.signatures["first"](query=tf.constant(QUERIES))["items"], expected)


def test_what_it_was_made_of_is_not_kept():
    pytest.importorskip("scann", reason="pip install tfllmrec[scann]")
    made = Scann(VECTORS, QUERIES)
    assert sum(variable.shape.num_elements() for variable in made.variables) < N * D

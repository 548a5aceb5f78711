"""Whatever is asked, the answer is that of a full sort in numpy."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.layers import item_index
from tfllmrec.layers.item_cells import Cells
from tfllmrec.layers.item_index import NOTHING, ItemIndex, build_index

pytestmark = pytest.mark.tf
N, D, B = 300, 8, 9
RNG = np.random.default_rng(0)
# Small whole numbers: scores are exact, and many are equal.
VECTORS = RNG.integers(-2, 3, (N, D)).astype(np.float32)
QUERY = RNG.integers(-2, 3, (B, D)).astype(np.float32)
PRIOR = np.log1p(np.arange(N) % 11).astype(np.float32)
CATEGORIES = [np.arange(0, N, 2), np.arange(0, N, 3), np.array([5]), np.array([], int)]


def cells(probes):
    """Cells that say nothing about the vectors, one of them empty: only looking into all finds the best."""
    cell_of = RNG.integers(0, 12, N).astype(np.int32)
    return Cells(RNG.normal(size=(13, D)).astype(np.float32), cell_of, probes, 1.0)


ALL_CELLS = {"cells": cells(13)}
FORMS = {
    "exact": {},
    "exact, many blocks": {"blocks": True},
    "all cells": ALL_CELLS,
    "all cells, many blocks": ALL_CELLS | {"blocks": True},
}


@pytest.fixture(params=FORMS)
def index(request, monkeypatch):
    settings = dict(FORMS[request.param])
    if settings.pop("blocks", False):
        monkeypatch.setattr(item_index, "_SCORES_AT_ONCE", 64 * B)
        monkeypatch.setattr(item_index, "_NUMBERS_AT_ONCE", 50 * D)
    return made(**settings)


def made(**settings):
    return ItemIndex(VECTORS, prior=PRIOR, categories=CATEGORIES, **settings)


def oracle(k, query=QUERY, exclude=(), pairs=None, allowed=None, categories=None, unknown=None, domains=None):
    """Rows of (item, score)."""
    rows = []
    for row, q in enumerate(query):
        scores = VECTORS.astype(float) @ q
        for item, value in zip(*(part[row] for part in pairs), strict=True) if pairs is not None else ():
            if item < N:
                scores[item] += value
        if unknown is not None and unknown[row]:
            scores += PRIOR
        left = set(range(N)) - set(exclude[row] if len(exclude) else ())
        if allowed is not None and any(entry != NOTHING for entry in allowed[row]):
            left &= set(allowed[row])
        for numbers in (categories, domains):
            if numbers is not None and any(entry != NOTHING for entry in numbers[row]):
                known = [c for c in numbers[row] if 0 <= c < len(CATEGORIES)]
                left &= {item for c in known for item in CATEGORIES[c].tolist()}
        rows.append(sorted(((item, scores[item]) for item in left), key=lambda pair: (-pair[1], pair[0]))[:k])
    return rows


def ask(index, k, query=QUERY, **inputs):
    types = {"exclude": tf.int32, "allowed": tf.int32, "categories": tf.int32, "domains": tf.int32, "unknown": tf.bool}
    given = {name: tf.constant(value, types[name]) for name, value in inputs.items() if name != "pairs"}
    if inputs.get("pairs") is not None:
        given["pairs"] = tf.constant(inputs["pairs"][0], tf.int32), tf.constant(inputs["pairs"][1], tf.float32)
    items, scores = index.top_k(tf.constant(query), tf.constant(np.atleast_1d(k), tf.int32), **given)
    return items.numpy(), scores.numpy()


def agrees(index, k, same_order=True, **inputs):
    """Asserts that items and scores are the oracle's; items of equal score may swap unless ``same_order``."""
    items, scores = ask(index, k, **inputs)
    assert items.shape == scores.shape == (len(inputs.get("query", QUERY)), min(k, N))
    inputs.pop("query", None)
    everything = oracle(N, **inputs)
    for row, expected in enumerate(oracle(k, **inputs)):
        n = len(expected)
        np.testing.assert_allclose(scores[row, :n], [score for _, score in expected], rtol=1e-5, atol=1e-5)
        assert not scores[row, n:].any() and (items[row, n:] == N).all()
        assert len(set(items[row, :n])) == n
        if same_order:
            assert items[row, :n].tolist() == [item for item, _ in expected]
        own = dict(everything[row])
        np.testing.assert_allclose([own[item] for item in items[row, :n]], scores[row, :n], rtol=1e-5, atol=1e-5)


EXCLUDE = RNG.integers(0, N + 1, (B, 40))
PAIRS = RNG.integers(0, N + 1, (B, 60)), RNG.integers(-3, 4, (B, 60)).astype(np.float32) * (np.arange(60) < 50)
PAIRS[0][:, 10:20] = PAIRS[0][:, :10]  # twice the same: they add up
ALLOWED = np.full((B, 5), NOTHING)
ALLOWED[0] = [7, 7, N, 250, NOTHING]
ALLOWED[1] = N
ALLOWED[2, 2] = EXCLUDE[2, 0]
WANTED = np.full((B, 2), NOTHING)
WANTED[0, 0], WANTED[3], WANTED[4], WANTED[5, 1], WANTED[6] = 0, [1, 0], [2, 3], 4, [3, 0]
UNKNOWN = np.arange(B) % 4 == 0
CASES = {
    "plain": {},
    "exclusions": {"exclude": EXCLUDE},
    "sparse part": {"pairs": PAIRS, "exclude": EXCLUDE},
    "allow-lists": {"allowed": ALLOWED, "exclude": EXCLUDE},
    "categories": {"categories": WANTED},
    "domains": {"domains": WANTED},
    "categories in domains": {"categories": WANTED, "domains": WANTED[::-1]},
    "all at once": {
        "exclude": EXCLUDE, "pairs": PAIRS, "allowed": ALLOWED, "categories": WANTED, "unknown": UNKNOWN,
    },
    "nothing known": {"exclude": EXCLUDE, "unknown": UNKNOWN},
    "few remain": {"exclude": np.tile(np.delete(np.arange(N), [3, 99, 298]), (B, 1))},
    "none remains": {"exclude": np.tile(np.arange(N), (B, 1))},
}  # fmt: skip


def ordered(index):
    """Equal scores come in the order of the items."""
    return index.cells is None


@pytest.mark.parametrize("case", CASES)
def test_is_a_full_sort(index, case):
    agrees(index, 10, ordered(index), **CASES[case])


@pytest.mark.parametrize("k", [1, N + 5])
def test_one_and_more_than_there_is(index, k):
    agrees(index, k, ordered(index), exclude=EXCLUDE)


def test_reads_vectors_by_item(index):
    read = index.read(tf.constant([[3, N], [0, N - 1]])).numpy()
    np.testing.assert_allclose(read, [[VECTORS[3], 0 * VECTORS[0]], [VECTORS[0], VECTORS[N - 1]]])


@pytest.mark.parametrize("case", CASES)
def test_the_scores_of_some_items_are_those_of_a_list(index, case):
    some = np.concatenate([RNG.integers(0, N + 1, (B, 30)), ALLOWED.clip(0), EXCLUDE[:, :2]], axis=1)
    types = {"exclude": tf.int32, "allowed": tf.int32, "categories": tf.int32, "domains": tf.int32, "unknown": tf.bool}
    inputs = {name: tf.constant(value, types[name]) for name, value in CASES[case].items() if name != "pairs"}
    if "pairs" in CASES[case]:
        inputs["pairs"] = tf.constant(PAIRS[0], tf.int32), tf.constant(PAIRS[1])
    found = index.scores_of(tf.constant(some, tf.int32), tf.constant(QUERY), **inputs).numpy()
    for row, expected in enumerate(map(dict, oracle(N, **CASES[case]))):
        np.testing.assert_allclose(found[row], [expected.get(item, -np.inf) for item in some[row]], rtol=1e-5)
    assert index.scores_of(tf.zeros((0, 3), tf.int32), tf.constant(QUERY[:0])).shape == (0, 3)


def test_k_of_each_row():
    for settings in ({}, ALL_CELLS):
        items, scores = ask(made(**settings), [3, 0, -2, 7, 1, 1, 1, 1, 1])
        assert items.shape == (B, 7)
        assert (items < N).sum(axis=1).tolist() == [3, 0, 0, 7, 1, 1, 1, 1, 1]
        assert not scores[items == N].any()
        assert ask(made(**settings), 0)[0].shape == (B, 0)
        assert ask(made(**settings), 4, QUERY[:0], exclude=EXCLUDE[:0])[0].shape == (0, 0)


def test_a_scan_never_holds_more_than_a_block(monkeypatch):
    monkeypatch.setattr(item_index, "_SCORES_AT_ONCE", 64 * B)
    index, sizes = made(), []
    scan = index.vectors.scan
    monkeypatch.setattr(
        index.vectors, "scan", lambda query, start, size: sizes.append(size) or scan(query, start, size)
    )
    tf.config.run_functions_eagerly(True)
    try:
        agrees(index, 10)
    finally:
        tf.config.run_functions_eagerly(False)
    assert [int(size) for size in sizes] == [64] * 5


# Partitions -----------------------------------------------------------------------------------------------------------

PLANTED = Cells(np.eye(4, D, dtype=np.float32), np.repeat(np.arange(4, dtype=np.int32), N // 4), 1, 1.0)
"""Items 0 to 74 in the cell of the first axis, and so on."""
FIRST = np.eye(1, D, dtype=np.float32)


def test_probes_the_nearest_cells_only():
    items, _ = ask(ItemIndex(VECTORS, PLANTED), 75, FIRST)
    assert sorted(items[0]) == list(range(75))
    items, _ = ask(ItemIndex(VECTORS, PLANTED), 75, FIRST, pairs=([[200, 200, 100]], [[500.0, 500, 0]]))
    assert items[0, 0] == 200 and 100 not in items  # its value is 0: no pair
    assert set(items[0, 1:]) < set(range(75))


def test_cells_that_hold_too_few_lead_to_an_exact_answer():
    index = ItemIndex(VECTORS, PLANTED)
    for k, exclude in ((76, [[]]), (70, [list(range(6))])):
        items, scores = ask(index, k, FIRST, exclude=exclude)
        all_scores = np.delete(VECTORS, exclude[0], axis=0) @ FIRST[0]
        np.testing.assert_allclose(scores[0], np.sort(all_scores)[::-1][:k])
        assert not set(exclude[0]) & set(items[0])


def test_a_strong_filter_sets_the_cells_aside_and_a_weak_one_probes_more(monkeypatch):
    items, _ = ask(ItemIndex(VECTORS, PLANTED), 3, FIRST, allowed=[[80, 160, 240]])
    assert set(items[0]) == {80, 160, 240}
    monkeypatch.setattr(item_index, "LISTED", 10)
    index = ItemIndex(VECTORS, PLANTED, categories=[np.arange(0, N, 2)])
    # Half of the items are left, so 2 cells of 4 are looked into; the second nearest is the last one.
    items, _ = ask(index, 75, FIRST + 0.5 * np.eye(4, D, dtype=np.float32)[3:], categories=[[0]])
    assert set(items[0]) <= {*range(0, 75, 2), *range(225, N), N}
    assert set(items[0]) & set(range(225, N))


# Choosing and building ------------------------------------------------------------------------------------------------


def test_auto_is_exact_for_a_small_catalogue_and_partitioned_for_a_large_one(monkeypatch):
    assert build_index(VECTORS, QUERY).cells is None
    monkeypatch.setattr(item_index, "EXACT_ITEMS", N - 1)
    assert build_index(VECTORS, QUERY).cells is not None
    assert build_index(VECTORS, QUERY, form="exact").cells is None


def test_where_the_nearest_items_are_lowered_others_are_looked_for():
    """Cells on a ring, of which the nearest are lowered: the best are in cells that would not be looked into."""
    angle = np.repeat(np.arange(8) * np.pi / 8, 20) + np.tile(np.linspace(0, 0.01, 20), 8)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    cell_of = np.repeat(np.arange(8), 20).astype(np.int32)
    ring = Cells(vectors[::20].copy(), cell_of, 1, 1.0)
    asked = {
        "query": tf.constant([[1.0, 0.0], [1.0, 0.0]]),
        "k": tf.constant([5]),
        "pairs": (tf.tile(tf.range(60)[tf.newaxis], (2, 1)), tf.constant([[-2.0] * 60, [0.0] * 60])),
    }
    exact, probing = (ItemIndex(vectors, one).top_k(**asked) for one in (None, ring))
    assert exact[0].numpy()[0].min() >= 60
    assert probing[0].numpy().tolist() == exact[0].numpy().tolist()


def test_a_built_partition_has_the_recall_that_it_says():
    vectors = RNG.normal(size=(1000, 6)).astype(np.float32)
    queries = RNG.normal(size=(60, 6)).astype(np.float32)
    queries[::20] = 0  # of people without history: no direction
    gone = np.argsort(-(queries @ vectors.T), axis=1)[:, :12]  # as people's own items are
    index = build_index(vectors, queries, form="partitioned", exclude=gone)
    some = np.any(queries != 0, axis=1)
    asked = queries[some]
    items, _ = ask(index, 10, asked, exclude=gone[some])
    best = np.argsort(-(asked @ vectors.T), axis=1)[:, 12:22]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(items, best, strict=True)])
    assert index.cells.probes < len(index.cells.centroids)
    assert recall == pytest.approx(index.cells.recall, abs=0.002) and recall >= 0.95


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"form": "best"}, "expected one of auto, exact, partitioned, scann, got 'best'"),
        ({"form": "partitioned", "queries": np.zeros((3, D))}, r"queries \[Q, 8\], not only zeros"),
        ({"form": "partitioned", "queries": np.ones((3, 2))}, r"got shape \[3, 2\]; give some, or take form=exact"),
        ({"categories": [np.array([N])]}, f"from 0 to {N - 1}, got {N}"),
        ({"categories": [np.array([3, -1])]}, f"from 0 to {N - 1}, got -1"),
    ],
)
def test_what_is_wrong_is_named(inputs, message):
    with pytest.raises(ModelError, match=message):
        build_index(VECTORS, **({"queries": QUERY} | inputs))


# What stock TF Serving can load ---------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

model = saved_model_pb2.SavedModel()
with open(sys.argv[1] + "/saved_model.pb", "rb") as file:
    model.ParseFromString(file.read())
ops = set()
for graph in (meta.graph_def for meta in model.meta_graphs):
    ops |= {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    ops -= {function.signature.name for function in graph.library.function}
python = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
loaded = tf.saved_model.load(sys.argv[1])
answers = {}
for name in ("exact", "cells"):
    out = loaded.signatures[name](**{
        key: tf.constant(value, tf.float32 if key in ("query", "values") else tf.int32)
        for key, value in json.loads(sys.argv[2]).items()
    })
    answers[name] = {key: value.numpy().tolist() for key, value in out.items()}
foreign = sorted(op for op in ops if not op_def_registry.get(op) or op in python)
print(json.dumps({"answers": answers, "foreign": foreign, "ops": len(ops)}))
"""


class Served(tf.Module):
    def __init__(self):
        super().__init__()
        self.indexes = {"exact": made(), "cells": made(**ALL_CELLS)}

    def save(self, folder):
        integers = tf.TensorSpec([None, None], tf.int32)
        specs = dict.fromkeys(("exclude", "paired", "allowed", "categories"), integers) | {
            "query": tf.TensorSpec([None, D], tf.float32),
            "k": tf.TensorSpec([None], tf.int32),
            "values": tf.TensorSpec([None, None], tf.float32),
        }
        signatures = {}
        for name, index in self.indexes.items():

            def top(query, k, exclude, paired, values, allowed, categories, index=index):
                items, scores = index.top_k(
                    query, k, exclude, (paired, values), allowed, categories, tf.reduce_all(query == 0, axis=1)
                )
                return {"items": items, "scores": scores}

            signatures[name] = tf.function(top).get_concrete_function(
                **{key: tf.TensorSpec(spec.shape, spec.dtype, key) for key, spec in specs.items()}
            )
        tf.saved_model.save(self, folder, signatures)


@pytest.mark.slow
def test_a_fresh_process_loads_core_operations_and_answers_the_same(tmp_path):
    served = Served()
    served.save(str(tmp_path))
    request = {
        "query": QUERY.tolist(), "k": [7], "exclude": EXCLUDE.tolist(), "paired": PAIRS[0].tolist(),
        "values": PAIRS[1].tolist(), "allowed": ALLOWED.tolist(), "categories": WANTED.tolist(),
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(request)],
        env=environment, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["foreign"] == [] and told["ops"] > 30
    for name, index in served.indexes.items():
        items, scores = ask(
            index, 7, exclude=EXCLUDE, pairs=PAIRS, allowed=ALLOWED, categories=WANTED,
            unknown=(QUERY == 0).all(axis=1),
        )  # fmt: skip
        assert told["answers"][name]["items"] == items.tolist()
        np.testing.assert_allclose(told["answers"][name]["scores"], scores, rtol=1e-5, atol=1e-5)

import numpy as np
import pytest
from item_pairs import as_dense
from scipy import sparse

from tfllmrec.config import DataConfig, GraphConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.domains import join_datasets
from tfllmrec.data.graph import ItemGraph, Relation, shared_values
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.models import graph as graph_module
from tfllmrec.models.graph import build_graph, similarity_of, text_relation, use_relation, view_of
from tfllmrec.models.item_weights import (
    ItemWeightSettings,
    ItemWeightStatistics,
    solve,
    solve_item_weights,
)


def unit(n_items, width=8, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n_items, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pairs(relation):
    return set(zip(relation.heads.tolist(), relation.tails.tolist(), strict=True))


def test_texts_are_joined_where_each_is_among_the_nearest_of_the_other():
    vectors, k = unit(60), 4
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    near = {i: set(np.argsort(-cosines[i])[:k].tolist()) for i in range(60)}
    expected = {(i, j) for i in range(60) for j in near[i] if i < j and i in near[j] and cosines[i, j] > 0}
    found = text_relation(vectors, k)
    assert pairs(found) == expected
    scale = max(cosines[i, j] for i, j in expected)
    np.testing.assert_allclose(found.weights, cosines[found.heads, found.tails] / scale, rtol=1e-5)


def test_items_without_text_have_no_edges_by_text():
    vectors = unit(20)
    vectors[3] = 0
    assert all(3 not in pair for pair in pairs(text_relation(vectors, 5)))


def test_cells_find_nearly_all_that_comparing_everything_finds(monkeypatch):
    vectors = unit(600)
    exact = pairs(text_relation(vectors, 8))
    monkeypatch.setattr(graph_module, "EXACT_ITEMS", 10)
    found = pairs(text_relation(vectors, 8))
    assert len(exact & found) > 0.95 * len(exact) and len(found) < 1.1 * len(exact)


def test_use_together_is_a_cosine_with_enough_users():
    histories = [[0, 1], [1, 0, 2], [0, 3], [0, 3], [2]]
    offsets = np.cumsum([0, *map(len, histories)])
    found = use_relation(Ragged(np.concatenate(histories).astype(np.int64), offsets), 5, 9, 2)
    both, one, three = 2, 2, 4  # users of 0 and 1, of 1, and of 0; those of 3 are two as well
    assert pairs(found) == {(0, 1), (0, 3)}
    np.testing.assert_allclose(found.weights, [1, 1])
    loose = use_relation(Ragged(np.concatenate(histories).astype(np.int64), offsets), 5, 9, 1)
    of_0_2, of_1_2 = 1 / np.sqrt(4 * 2), 1 / np.sqrt(2 * 2)
    strongest = both / np.sqrt(one * three)
    expected = {(0, 1): 1, (0, 2): of_0_2 / strongest, (0, 3): 1, (1, 2): of_1_2 / strongest}
    assert {pair: pytest.approx(w) for pair, w in zip(sorted(pairs(loose)), loose.weights, strict=True)} == expected


def test_equal_use_counts_in_the_order_of_the_items():
    rng = np.random.default_rng(0)
    n, k = 12, 2
    for _ in range(10):
        x = (rng.random((6, n)) < 0.4).astype(np.float32)
        counts = x.T @ x
        scale = 1 / np.sqrt(np.maximum(counts.diagonal(), 1))
        alike = (counts * scale[:, np.newaxis] * scale).astype(np.float32)
        np.fill_diagonal(alike, 0)
        nearest = {i: [j for j in np.argsort(-alike[i], kind="stable")[:k].tolist() if alike[i, j]] for i in range(n)}
        expected = {(min(i, j), max(i, j)) for i, found in nearest.items() for j in found}
        rows = [np.flatnonzero(row) for row in x]
        assert pairs(use_relation(Ragged.from_rows(rows, np.int64), n, k, 1)) == expected


def chain(n_items=4):
    """0 - 1 - 2, and 3 alone."""
    matrix = sparse.coo_array((np.ones(2, np.float32), ([0, 1], [1, 2])), shape=(n_items, n_items))
    return ItemGraph(n_items, (Relation.of("cites", "link", matrix, 9),))


def test_the_view_is_positive_semidefinite_and_empty_without_edges():
    near = text_relation(unit(40), 5)
    view = similarity_of(ItemGraph(40, (near,)).adjacency()).toarray()
    assert np.linalg.eigvalsh(view).min() > -1e-6
    np.testing.assert_allclose(view, view.T, rtol=1e-6)
    alone = similarity_of(chain().adjacency()).toarray()
    np.testing.assert_allclose(alone[3], 0)
    np.testing.assert_allclose(alone[0], [0.5, 0.5 / np.sqrt(2), 0, 0], rtol=1e-6)


def test_the_view_leaves_use_together_out():
    graph = chain()
    use = Relation("use", "use", np.array([2], np.int32), np.array([3], np.int32), np.ones(1, np.float32))
    both = ItemGraph(4, (*graph.relations, use))
    np.testing.assert_allclose(view_of(both).toarray(), view_of(graph).toarray())


SETTINGS = ItemWeightSettings(decay=0.8, l2=1.0, co_occurrence=0.5, text=2.0, next_item=1.0, popularity=0.0, graph=3.0)


def all_weights(statistics, settings, text, view):
    """``[N, N]``: the rank leaves nothing out, and all neighbours are kept."""
    return as_dense(solve(statistics, settings, text, view))


def histories(n_items=30, users=40):
    rng = np.random.default_rng(1)
    rows = [rng.choice(n_items - 2, 5, replace=False) for _ in range(users)]  # nobody has met the last two
    return Ragged(np.concatenate(rows), np.arange(0, 5 * users + 1, 5))


@pytest.mark.parametrize("next_item", [1.0, 0.0])
def test_the_graph_is_one_more_view_of_the_regression(next_item):
    settings = SETTINGS.model_copy(update={"next_item": next_item})
    text, view = unit(30), similarity_of(ItemGraph(30, (text_relation(unit(30, seed=5), 4),)).adjacency())
    statistics = ItemWeightStatistics.of(histories(), 30, settings)
    more = settings.graph * view.toarray() + settings.text * text @ text.T
    known = more + 0.5 * statistics.co_occurrence.toarray()
    target = known.copy()
    if next_item:
        known, target = known + statistics.known.toarray(), target + statistics.target.toarray()
    inverse = np.linalg.inv(known + np.eye(30))
    solved = inverse @ target
    expected = solved - inverse * (np.diag(solved) / np.diag(inverse))
    np.testing.assert_allclose(all_weights(statistics, settings, text, view), expected, atol=2e-4)


def test_a_cold_item_is_reached_by_the_graph_alone():
    """Item 29 has no events and no text: only an edge leads to it, and without the view nothing does."""
    shared = shared_values("author", ["x" if i in (0, 29) else "" for i in range(30)], 9)
    view, settings = similarity_of(ItemGraph(30, (shared,)).adjacency()), SETTINGS.model_copy(update={"text": 0.0})
    statistics = ItemWeightStatistics.of(histories(), 30, settings)
    weights = all_weights(statistics, settings, None, view)
    assert weights[0, 29] > 0 and weights[:, 29].argmax() == 0 and not weights[:, 28].any()
    assert not all_weights(statistics, settings.model_copy(update={"graph": 0.0}), None, view)[:, 29].any()


def test_a_strength_without_a_graph_is_refused():
    with pytest.raises(ModelError, match=r"Expected a graph of 30 items because item_weights.graph is 3.0, got none"):
        solve_item_weights(histories(), 30, SETTINGS, unit(30))


@pytest.fixture
def split():
    return split_of()


def split_of(fields=None, **columns):
    """A split of six items; ``columns`` are further columns of the items, and ``fields`` their declared kinds."""
    import pandas as pd

    events = pd.DataFrame(
        [(f"u{u}", f"i{i}", t) for u in range(12) for t, i in enumerate([u % 6, (u + 1) % 6, (u + 2) % 6, 5 - u % 6])],
        columns=["user", "item", "timestamp"],
    ).drop_duplicates(["user", "item"])
    items = pd.DataFrame(
        {
            "item": [f"i{i}" for i in range(6)],
            "title": list("abcdef"),
            "categories": ["Toys|Cars", "Toys|Cars", "Toys|Dolls", "Toys|Dolls", "Toys|Cars", "Toys|Dolls"],
            **columns,
        }
    )
    config = DataConfig(name="toys", fields={name: {"kind": kind} for name, kind in (fields or {}).items()})
    return make_split(dataset_from_frames(events, items, config=config), SplitConfig(), seed=42)


def test_a_graph_of_a_split_has_the_relations_that_are_asked_for(split, tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("head,relation,tail\ni0,sequel,i5\n")
    text = unit(6)
    graph = build_graph(split, text, GraphConfig(relations=["text", "use", "values"], edges=path), DataConfig())
    assert [(each.name, each.kind) for each in graph.relations] == [
        ("text", "text"),
        ("use", "use"),
        ("category", "value"),
        ("sequel", "link"),
    ]
    by_name = {each.name: pairs(each) for each in graph.relations}
    assert by_name["category"] == {(0, 1), (0, 4), (1, 4), (2, 3), (2, 5), (3, 5)} and by_name["sequel"] == {(0, 5)}
    only = build_graph(split, text, GraphConfig(relations=["use"]), DataConfig())
    assert [each.name for each in only.relations] == ["use"]


def test_ids_and_lists_of_names_join_items_and_other_columns_are_named():
    kinds = {"director_id": "id", "cast": "text", "remarks": "text", "price": "number"}
    split = split_of(
        kinds,
        director_id=["d1", "d2", "d1", "d3", "d4", "d5"],
        cast=["A B|C D", "E F|A B", "G H|I J", "K L|M N", "", "O P"],
        remarks=["One | two", "Three four", "Five six", "Seven eight", "Seven eight", ""],
        price=[1.5, 1.5, 2.5, 3.5, 4.5, 5.5],
    )
    told = []
    graph = build_graph(split, unit(6), GraphConfig(relations=["values"]), DataConfig(), tell=told.append)
    assert {each.name: pairs(each) for each in graph.relations if each.name != "category"} == {
        "cast": {(0, 1)},
        "director_id": {(0, 2)},
    }
    assert told == [
        "columns without a relation: price (number), remarks (text). To join items by such a column, fit with "
        "data.fields.NAME.kind=category"
    ]


def test_items_of_one_domain_of_joined_data_are_not_joined_by_it(split):
    joined = join_datasets({"shop": split.dataset, "outlet": split.dataset})
    both = make_split(joined, SplitConfig(), seed=42)
    assert "domain" in [field.name for field in both.schema.of("item") if field.kind == "category"]
    graph = build_graph(both, unit(12), GraphConfig(relations=["values"]), DataConfig())
    assert [each.name for each in graph.relations] == ["category"]


def test_held_out_events_are_not_in_the_graph(split):
    counts = np.zeros((6, 6), int)
    for row in split.train_queries().choices:
        for i in set(row.tolist()):
            for j in set(row.tolist()) - {i}:
                counts[i, j] += 1
    graph = build_graph(split, unit(6), GraphConfig(relations=["use"], support=1), DataConfig())
    assert pairs(graph.relations[0]) == {(i, j) for i in range(6) for j in range(i + 1, 6) if counts[i, j]}


def test_relations_with_one_name_are_refused(split, tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("head,relation,tail\ni0,use,i5\n")
    with pytest.raises(ConfigError, match=r"found 'use' twice\. Rename it in the file"):
        build_graph(split, unit(6), GraphConfig(relations=["use"], edges=path), DataConfig())

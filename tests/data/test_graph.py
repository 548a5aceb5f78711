import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tfllmrec.config import DataConfig
from tfllmrec.data import graph as graph_module
from tfllmrec.data.graph import ItemGraph, Relation, edges_of_file, shared_values
from tfllmrec.errors import DataError, ModelError


def edges(relation):
    return {
        (int(head), int(tail)): pytest.approx(float(weight))
        for head, tail, weight in zip(relation.heads, relation.tails, relation.weights, strict=True)
    }


def relation(name, pairs, n_items=4, kind="link", neighbours=9, mutual=False):
    rows, columns, weights = zip(*pairs, strict=True)
    matrix = sparse.coo_array((np.float32(weights), (rows, columns)), shape=(n_items, n_items))
    return Relation.of(name, kind, matrix, neighbours, mutual)


def test_an_edge_has_the_larger_of_its_two_weights_and_the_strongest_has_1():
    assert edges(relation("a", [(0, 1, 2), (1, 0, 4), (2, 1, 1), (3, 3, 9), (2, 3, -1)])) == {(0, 1): 1, (1, 2): 0.25}


def test_the_strongest_edges_of_each_item_stay():
    star = [(0, 1, 4), (0, 2, 3), (0, 3, 2), (2, 3, 1)]
    # Of 0 the best is 1. 2 and 3 keep 0, which is their best; of both, only 0 and 1 are each other's best.
    assert set(edges(relation("a", star, neighbours=1))) == {(0, 1), (0, 2), (0, 3)}
    assert set(edges(relation("a", star, neighbours=1, mutual=True))) == {(0, 1)}


def test_popular_values_weigh_less_and_shared_ones_add_up():
    found = shared_values("author", ["x|y", "x|y|z", "z", "z", "alone"], 9)
    pair, three = 1.0, 1 / np.log2(3)
    strongest = pair + pair
    assert edges(found) == {(0, 1): 1, (1, 2): three / strongest, (1, 3): three / strongest, (2, 3): three / strongest}
    assert (found.name, found.kind, found.words) == ("author", "value", "same author")


def test_of_a_path_the_last_level_counts():
    assert edges(shared_values("category", ["Toys|Cars", "Toys|Dolls", "Cars"], 9, last_only=True)) == {(0, 2): 1}


def test_huge_groups_join_nothing(monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST_GROUP", 2)
    assert edges(shared_values("author", ["x|y", "x|y", "x"], 9)) == {(0, 1): 1}


def written(tmp_path, text):
    path = tmp_path / "edges.csv"
    path.write_text(text)
    return path


def test_a_file_joins_items_and_what_shares_a_value(tmp_path):
    path = written(
        tmp_path,
        "head,relation,tail,weight\na,cites,b,2\nc,cites,d,1\na,director,Kim,1\nc,director,Kim,1\nKim,born,Seoul,1\n",
    )
    cites, director = [each for each in edges_of_file(path, ["a", "b", "c", "d"], DataConfig(), 9) if len(each)]
    assert (cites.name, cites.kind, edges(cites)) == ("cites", "link", {(0, 1): 1, (2, 3): 0.5})
    assert (director.name, director.kind, edges(director)) == ("director", "value", {(0, 2): 1})


def test_rows_that_join_nothing_are_counted_with_the_first_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST_GROUP", 2)
    rows = "a,sequel,b\nA,sequel,B\nc,director,Kim\nKim,born,Seoul\nc,sequel,c\nd,sequel,\nc,series,\n"
    rows += "a,type,film\nb,type,film\nc,type,film\na,series,X\nb,series,X\n1,2,3,4,5\n"
    path, told = written(tmp_path, f"head,relation,tail\n{rows}"), []
    found = edges_of_file(path, ["a", "b", "c", "d"], DataConfig(), 9, told.append)
    assert {each.name: edges(each) for each in found if len(each)} == {"sequel": {(0, 1): 1}, "series": {(0, 1): 1}}
    assert told == [
        "edges: 1 dropped: found 5 fields, expected 3 (edges.csv:14, '1,2,3,4,5')",
        "edges.csv: 9 of 12 rows join nothing: 2 with no item of the catalogue (first: 'A', 'B'); 2 with an item alone "
        "(first: 'd', ''); 1 with the same item twice (first: 'c', 'c'); 1 with a value of one item only "
        "(first: 'c', 'Kim'); 3 with a value of more than 2 items (first: 'a', 'film')",
    ]


def test_a_file_whose_rows_all_join_items_is_read_without_a_word(tmp_path):
    told = []
    edges_of_file(written(tmp_path, "head,tail\na,b\na,X\nb,X\n"), ["a", "b"], DataConfig(), 9, told.append)
    assert not told


def test_of_rows_that_are_there_again_the_largest_weight_counts(tmp_path):
    path = written(tmp_path, "head,tail,weight\na,b,2\na,b,1\nb,a,2\nc,d,1\n")
    (found,) = edges_of_file(path, ["a", "b", "c", "d"], DataConfig(), 9)
    assert edges(found) == {(0, 1): 1, (2, 3): 0.5}


def test_pairs_need_no_relation(tmp_path):
    (found,) = edges_of_file(written(tmp_path, "head,tail\na,b\n"), ["a", "b"], DataConfig(), 9)
    assert (found.name, edges(found)) == ("link", {(0, 1): 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from,tail\na,b\n", "expected the columns head, relation, tail"),
        ("heads,tail\na,b\n", "head .nearest: 'heads'. missing"),
        ("head,tail\nx,y\n", "expected item ids of the catalogue among head and tail, found none .'x' and 'y'."),
        ("head,tail,weight\na,b,1\na,b,-2\n", "expected a weight above 0, found '-2' in row 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        edges_of_file(written(tmp_path, text), ["a", "b"], DataConfig(), 9)


@pytest.fixture
def graph():
    author = shared_values("author", ["x", "x", "y", "y"], 9)
    return ItemGraph(4, (relation("cites", [(0, 1, 1), (1, 2, 0.5)]), author))


def test_a_graph_is_what_was_saved(graph, tmp_path):
    graph.save(tmp_path / "graph")
    again = ItemGraph.load(tmp_path / "graph")
    assert again.n_items == 4 and [each.kind for each in again.relations] == ["link", "value"]
    pd.testing.assert_frame_equal(again.frame(), graph.frame())
    np.testing.assert_allclose(again.adjacency().toarray(), graph.adjacency().toarray())
    assert again.fingerprint == graph.fingerprint


def test_another_graph_has_another_fingerprint(graph):
    cites, author = graph.relations
    heavier = replace(cites, weights=np.sqrt(cites.weights))
    others = [(), (cites,), (author, cites), (heavier, author), (replace(cites, kind="use"), author)]
    graphs = [graph, ItemGraph(5, graph.relations), *(ItemGraph(4, relations) for relations in others)]
    assert len({each.fingerprint for each in graphs}) == len(graphs)


def test_a_damaged_graph_says_what_to_do(graph, tmp_path):
    graph.save(tmp_path / "graph")
    graph.frame().iloc[1:].to_parquet(tmp_path / "graph" / "edges.parquet")
    with pytest.raises(ModelError, match=r"edges of cites.*build it again with 'tfllmrec graph RUN'"):
        ItemGraph.load(tmp_path / "graph")


def test_the_adjacency_is_the_sum_of_the_relations_and_symmetric(graph):
    expected = [[0, 2, 0, 0], [2, 0, 0.5, 0], [0, 0.5, 0, 1], [0, 0, 1, 0]]
    np.testing.assert_allclose(graph.adjacency().toarray(), expected)
    np.testing.assert_allclose(graph.adjacency(["value"]).toarray()[0], [0, 1, 0, 0])


def test_neighbours_are_strongest_first_with_what_joins_them(graph):
    near = graph.strongest(1)
    words, place = near.words()
    assert near.items.tolist() == [1, 0, 3, 2] and near.offsets.tolist() == [0, 1, 2, 3, 4]
    assert [words[at] for at in place] == ["cites, same author"] * 2 + ["same author"] * 2
    assert graph.strongest(9).items.tolist() == [1, 0, 2, 3, 1, 2]


def test_graphml_is_read_back_by_an_xml_parser(graph, tmp_path):
    titles = ['<A> & "b"', "bell \x07", "é", ""]
    graph.write_graphml(tmp_path / "graph.xml", ["a&1", "b", "c", "d"], titles)
    root = ElementTree.parse(tmp_path / "graph.xml").getroot()
    space = "{http://graphml.graphdrawing.org/xmlns}"
    nodes = {node.get("id"): node.find(f"{space}data").text for node in root.iter(f"{space}node")}
    assert nodes == {"a&1": '<A> & "b"', "b": "bell \ufffd", "c": "é", "d": None}
    found = [(e.get("source"), e.get("target"), [d.text for d in e]) for e in root.iter(f"{space}edge")]
    assert found[:2] == [("a&1", "b", ["cites", "1"]), ("b", "c", ["cites", "0.5"])] and len(found) == 4

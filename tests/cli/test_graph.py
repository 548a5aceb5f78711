import json

import pytest

from tfllmrec.data.graph import ItemGraph, shared_values
from tfllmrec.errors import ModelError


@pytest.fixture
def asked(monkeypatch):
    """What the library was asked for; it gives a graph of one relation."""
    from tfllmrec.runs import graph as library

    calls = []

    def graph_of(folder, settings, tell, graphml):
        calls.append((folder, settings))
        if settings is None and folder.name == "bare":
            raise ModelError("bare has no graph: make one with 'tfllmrec graph bare'.")
        if graphml is not None:
            graphml.write_text("<graphml/>")
        tell("graph: e.csv: 1 of 3 rows join nothing")
        return ItemGraph(3, (shared_values("author", ["x", "x", "y"], 5),))

    monkeypatch.setattr(library, "graph_of", graph_of)
    return calls


def test_builds_all_relations_and_prints_them(program, asked, tmp_path):
    answer = program("graph", tmp_path / "run")
    assert answer.out == "author (value): 1 edges, 2 of 3 items\n"
    assert "graph: e.csv: 1 of 3 rows join nothing\n" in answer.err
    assert asked[0][1].relations == ["text", "use", "values"] and asked[0][1].edges is None


def test_some_relations_a_file_and_graphml(program, asked, tmp_path):
    more = ["--relation", "use", "--edges", tmp_path / "e.csv", "--neighbours", "5", "--graphml", tmp_path / "g.xml"]
    answer = program("graph", tmp_path / "run", *more, "--json")
    assert json.loads(answer.out) == {"items": 3, "relations": [{"name": "author", "kind": "value", "edges": 1}]}
    settings = asked[0][1]
    assert (settings.relations, settings.edges, settings.neighbours) == (["use"], tmp_path / "e.csv", 5)
    assert (tmp_path / "g.xml").is_file()


def test_keeps_the_graph_that_is_there(program, asked, tmp_path):
    assert program("graph", tmp_path / "run", "--keep").code == 0 and asked[0][1] is None
    assert program("graph", tmp_path / "bare", "--keep").code == 4
    answer = program("graph", tmp_path / "run", "--keep", "--relation", "use")
    assert answer.code == 2 and "--keep takes the graph as it is" in answer.err


def test_an_unknown_kind_is_refused(program, asked, tmp_path):
    answer = program("graph", tmp_path / "run", "--relation", "friends")
    assert answer.code == 2 and "graph.relations" in answer.err and not asked

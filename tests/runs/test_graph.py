import numpy as np
import pytest
from plain_runs import write_run

from tfllmrec.config import GraphConfig
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.runs.graph import graph_of, make_graph, write_graphml
from tfllmrec.runs.run import Run


@pytest.fixture
def run(chain_split, tmp_path):
    made = write_run(tmp_path / "plain", chain_split)
    rng = np.random.default_rng(0)
    np.save(made.folder / "vectors.npy", rng.standard_normal((made.dataset.n_items, 8)).astype(np.float32))
    return Run(made.folder)


def test_a_complete_run_gets_a_graph(run):
    assert run.graph is None
    with pytest.raises(ModelError, match=r"has no graph: make one with 'tfllmrec graph "):
        graph_of(run.folder, None)
    told = []
    made = graph_of(run.folder, GraphConfig(relations=["text", "use"]), told.append)
    assert [each.name for each in made.relations] == ["text", "use"] and len(told) == 2
    assert graph_of(run.folder, None).lines() == run.graph.lines() == made.lines()
    assert run.training_data.graph_view.shape == (run.dataset.n_items,) * 2


def test_graphml_has_every_item(run, tmp_path):
    graph = graph_of(run.folder, GraphConfig(relations=["use"]), lambda line: None)
    write_graphml(run.folder, graph, tmp_path / "graph.xml")
    text = (tmp_path / "graph.xml").read_text()
    assert text.count("<node ") == run.dataset.n_items and text.count("<edge ") == sum(map(len, graph.relations))


def test_nothing_asked_for_is_refused(run):
    with pytest.raises(ConfigError, match=r"expected graph.relations or graph.edges"):
        make_graph(run, GraphConfig())


def test_the_graph_that_item_weights_were_solved_with_stays(run):
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("  graph: null", "  graph: 10.0"))
    with pytest.raises(ModelError, match=r"item_weights.graph 10\), so the graph stays"):
        make_graph(run, GraphConfig(relations=["use"]))

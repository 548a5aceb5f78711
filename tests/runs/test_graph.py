import numpy as np
import pytest
from item_pairs import as_dense
from plain_runs import write_run

from tfllmrec.config import GraphConfig
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.models.item_weights import solve
from tfllmrec.runs.graph import graph_of, make_graph
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
    (run.folder / "edges.csv").write_text("head,relation,tail\ni0,director,Kim\n")
    told, edges = [], run.folder / "edges.csv"
    made = graph_of(run.folder, GraphConfig(relations=["text", "use"], edges=edges), told.append)
    assert [each.name for each in made.relations] == ["text", "use"]
    assert told == [
        "graph: edges.csv: 1 of 1 rows join nothing: 1 with a value of one item only (first: 'i0', 'Kim')",
        "graph: relations without edges: director",
    ]
    assert graph_of(run.folder, None).lines() == run.graph.lines() == made.lines()


def test_graphml_has_every_item(run, tmp_path):
    graph = graph_of(run.folder, GraphConfig(relations=["use"]), lambda line: None, tmp_path / "graph.xml")
    text = (tmp_path / "graph.xml").read_text()
    assert text.count("<node ") == run.dataset.n_items and text.count("<edge ") == sum(map(len, graph.relations))


def test_nothing_asked_for_is_refused(run):
    with pytest.raises(ConfigError, match=r"expected graph.relations or graph.edges"):
        make_graph(run, GraphConfig())


@pytest.mark.parametrize(
    ("line", "changed", "told"),
    [
        ("  graph: null", "  graph: 10.0", r"item_weights\.graph 10\.0"),
        ("  propagation: none", "  propagation: lightgcn", r"model\.propagation lightgcn"),
    ],
)
def test_the_graph_that_a_model_was_fitted_with_stays(run, line, changed, told):
    config = run.folder / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace(line, changed).replace("  relations: []", "  relations: [text]"))
    with pytest.raises(ModelError, match=rf"was fitted with its graph \({told}\), so the graph stays"):
        make_graph(Run(run.folder), GraphConfig(relations=["use"]))


@pytest.mark.parametrize("relations", ["[]", "[use]"])
def test_a_model_does_not_read_a_graph_that_was_made_after_its_fit(run, relations):
    """It was told to read one, and there was none, or none that models read."""
    config = run.folder / "config.yaml"
    text = config.read_text().replace("  propagation: none", "  propagation: lightgcn")
    config.write_text(text.replace("  relations: []", f"  relations: {relations}"))
    assert [each.name for each in graph_of(run.folder, GraphConfig(relations=["text"])).relations] == ["text"]
    later = Run(run.folder)
    assert later.graph is not None and later.training_data.graph is None


def test_a_damaged_graph_is_made_again_unless_the_model_read_it(run):
    graph_of(run.folder, GraphConfig(relations=["text"]), lambda line: None)
    (run.folder / "graph" / "edges.parquet").write_bytes(b"damaged")
    with pytest.raises(
        ModelError, match=r"copy it back, build it again with 'tfllmrec graph RUN', or, if .*, fit again"
    ):
        graph_of(run.folder, None)
    assert len(graph_of(run.folder, GraphConfig(relations=["text"]), lambda line: None).relations) == 1


@pytest.mark.slow
@pytest.mark.tf
def test_a_fit_builds_the_graph_and_solves_its_item_weights_with_it(chain_config, cache, tmp_path):
    """The edges of the file say that each item of the ring goes with the one four steps on, which no event does."""
    from tfllmrec.runs.experiment import fit_experiment

    rows = [f"i{i},goes_with,i{(i + 4) % 36}" for i in range(36)]
    (tmp_path / "edges.csv").write_text("\n".join(["head,relation,tail", *rows]))
    config = chain_config.model_copy(deep=True)
    config.graph = GraphConfig(edges=tmp_path / "edges.csv")
    config.item_weights.graph, config.model.terms = 300.0, ["behaviour"]
    config.ranking.epochs, config.evaluation.baselines = 0, ["popularity"]
    told = []
    run = fit_experiment(config, tmp_path / "run", tell=told.append)
    assert any(line.startswith("graph: goes_with (link): 36 edges") for line in told)
    data, settings = run.training_data, run.config.item_weights
    with_graph, without = (
        as_dense(solve(data.item_weight_statistics(each), each, data.unit_text, data.graph_view))
        for each in (settings, settings.model_copy(update={"graph": 0.0}))
    )
    row = {item: index for index, item in enumerate(run.dataset.items.item_id)}
    heads, tails = ([row[f"i{(i + far) % 36}"] for i in range(36)] for far in (0, 4))
    assert with_graph[heads, tails].mean() > without[heads, tails].mean() + 0.1
    solved = np.sort(run.load_model().behaviour.weights_.numpy()[:-1], axis=1)
    np.testing.assert_allclose(solved, np.sort(with_graph, axis=1), atol=1e-4)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.tf
def test_item_vectors_of_a_run_and_of_its_update_read_the_graph(
    chain_config, newer_tables, cache, tmp_path, monkeypatch
):
    from tfllmrec.runs.experiment import fit_experiment
    from tfllmrec.runs.update import update_run
    from tfllmrec.training import fit

    monkeypatch.setattr(fit, "choose_graph_use", lambda model, data: "graph: asked")  # it stays on
    rows = [f"i{i},{name},i{(i + far) % 36}" for name, far in (("goes_with", 4), ("sequel", 1)) for i in range(36)]
    (tmp_path / "edges.csv").write_text("\n".join(["head,relation,tail", *rows]))
    config = chain_config.model_copy(deep=True)
    config.graph = GraphConfig(relations=["text"], edges=tmp_path / "edges.csv")
    config.model.propagation = "relations"
    config.training.epochs, config.ranking.epochs, config.interests.learned = 1, 0, False
    config.evaluation.baselines = ["popularity"]
    run = fit_experiment(config, tmp_path / "run", tell=lambda line: None)
    assert "graph: asked" in run.record["chosen"]
    updated = update_run(run.folder, *newer_tables, out=tmp_path / "updated", tell=lambda line: None)
    for each in (run, updated):
        model = each.load_model()
        assert model.propagation.names == ["text", "goes_with", "sequel"] and float(model.propagation.strength) != 0
    assert updated.graph.n_items > run.graph.n_items
    (tmp_path / "run" / "graph").rename(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"graph is missing, and the model reads it: copy it back"):
        Run.open(run.folder).load_model()

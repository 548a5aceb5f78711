"""The graph of a run's items: made in a fit where the config asks for it, or for a complete run."""

from __future__ import annotations

from pathlib import Path

from tfllmrec.columns import ITEM
from tfllmrec.config import GraphConfig
from tfllmrec.data.cleaning.titles import display_titles
from tfllmrec.data.graph import ItemGraph
from tfllmrec.durable import locked, writing
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.progress import Tell, to_stderr
from tfllmrec.runs.run import GRAPH, Run


def make_graph(run: Run, settings: GraphConfig, tell: Tell = to_stderr) -> ItemGraph:
    """Builds the graph of a run that has its text vectors, and writes it into the run's folder ``graph``.

    Args:
      run: its training events, catalogue and text vectors are read.
      settings: relations, file of edges, neighbours.
      tell: called with a line for each relation.

    Raises:
      ConfigError: two relations have the same name, or no relation is asked for.
      DataError: the file of edges cannot be used.
      ModelError: the run's model was fitted with its graph.
      WriteError: the disk is full, read-only or broken.
    """
    from tfllmrec.models.graph import build_graph

    if not settings.wanted:
        raise ConfigError("graph: expected graph.relations or graph.edges, found neither.")
    config = run.config
    read = {
        "item_weights.graph": config.item_weights.graph,
        "model.propagation": config.model.propagation if config.model.propagation != "none" else None,
    }
    if run.complete and config.graph.wanted and (used := [f"{name} {value}" for name, value in read.items() if value]):
        raise ModelError(
            f"{run.folder}: its model was fitted with its graph ({', '.join(used)}), so the graph stays. "
            "Fit again with other settings of graph."
        )
    graph = build_graph(run.split, run.text, settings, run.config.data, run.text_widths)
    graph.save(run.folder / GRAPH)
    for line in graph.lines():
        tell(f"graph: {line}")
    return graph


def graph_of_fit(run: Run, settings: GraphConfig, tell: Tell = to_stderr) -> ItemGraph | None:
    """The graph that a fit reads: that of an interrupted fit, or made now; ``None`` where none is asked for.

    Args:
      run: it has its text vectors.
      settings: of the fit.

    Raises:
      ModelError: that of an interrupted fit is damaged.
      ConfigError, DataError, WriteError: see :func:`make_graph`.
    """
    if not settings.wanted:
        return None
    return run.graph or make_graph(run, settings, tell)


def graph_of(
    folder: Path, settings: GraphConfig | None, tell: Tell = to_stderr, graphml: Path | None = None
) -> ItemGraph:
    """The graph of a complete run: made now if ``settings`` are given, else the one that is there.

    Args:
      graphml: file that the graph is also written to, as GraphML with the items' ids and titles.

    Raises:
      ModelError: the run is not complete, or it has no graph and ``settings`` are ``None``.
      ConfigError, DataError, WriteError: see :func:`make_graph`.
    """
    run = Run.open(folder)
    if settings is not None:
        with writing(run.folder), locked(run.folder):
            graph = make_graph(run, settings, tell)
    elif run.graph is not None:
        graph = run.graph
    else:
        raise ModelError(f"{run.folder} has no graph: make one with 'tfllmrec graph {run.folder}'.")
    if graphml is not None:
        items = run.split.items
        graph.write_graphml(graphml, items[ITEM].tolist(), display_titles(items).tolist())
    return graph

"""Builds the graph of a run's items, in a fit if the config asks for it, or for a complete run."""

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
    """Builds the graph of a run that has its text vectors, and writes it into the folder ``graph`` of the run.

    Args:
      run: The run; its training events, catalogue and text vectors are read.
      settings: The relations, the file of edges and the number of neighbours.
      tell: Called with a line for each thing that is left out, as in :func:`tfllmrec.models.graph.build_graph`.

    Raises:
      ConfigError: Two relations have the same name, or no relation is configured.
      DataError: The file of edges cannot be used.
      ModelError: The run's model was fitted with its graph.
      WriteError: The disk is full, read-only or broken.
    """
    from tfllmrec.models.graph import build_graph

    if not settings.wanted:
        raise ConfigError("graph: expected graph.relations or graph.edges, found neither.")
    config = run.config
    read = {
        "item_weights.graph": config.item_weights.graph,
        "model.propagation": config.model.propagation if config.model.propagation != "none" else None,
    }
    used = [f"{name} {value}" for name, value in read.items() if value]
    if run.complete and config.graph.says_more_than_events and used:
        raise ModelError(
            f"{run.folder}: its model was fitted with its graph ({', '.join(used)}), so the graph stays. "
            "Fit again with other settings of graph."
        )
    graph = build_graph(
        run.split, run.text, settings, run.config.data, run.text_widths, lambda line: tell(f"graph: {line}")
    )
    graph.save(run.folder / GRAPH)
    return graph


def graph_of_fit(run: Run, settings: GraphConfig, tell: Tell = to_stderr) -> ItemGraph | None:
    """Returns the graph of a fit, that of an interrupted fit or a new one; ``None`` if no graph is configured.

    Args:
      run: A run that has its text vectors.
      settings: The graph settings of the fit.
      tell: Called with a line for each relation, and for each thing that is left out.

    Raises:
      ModelError: The graph of an interrupted fit is damaged.
      ConfigError, DataError, WriteError: See :func:`make_graph`.
    """
    if not settings.wanted:
        return None
    graph = run.graph or make_graph(run, settings, tell)
    for line in graph.lines():
        tell(f"graph: {line}")
    return graph


def graph_of(
    folder: Path, settings: GraphConfig | None, tell: Tell = to_stderr, graphml: Path | None = None
) -> ItemGraph:
    """Returns the graph of a complete run: a new one if ``settings`` are given, else the existing one.

    Args:
      folder: The run folder.
      settings: The graph settings; ``None`` to read the existing graph.
      tell: As in :func:`make_graph`.
      graphml: File to which the graph is also written, as GraphML with the items' ids and titles.

    Raises:
      ModelError: The run is not complete, or it has no graph and ``settings`` are ``None``.
      ConfigError, DataError, WriteError: See :func:`make_graph`.
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

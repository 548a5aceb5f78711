"""``tfllmrec graph``: builds the graph of a run's items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import note, print_json, say, working


def graph(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    relations: Annotated[
        list[str] | None,
        typer.Option(
            "--relation",
            metavar="KIND",
            help="Use only this kind of relation: text (similar texts), use (the same users), values (a shared "
            "value in the catalogue). May be repeated; by default all.",
        ),
    ] = None,
    edges: Annotated[
        Path | None,
        typer.Option("--edges", metavar="FILE", help="Add the edges of a file: head, relation, tail, weight."),
    ] = None,
    neighbours: Annotated[
        int, typer.Option("--neighbours", min=1, max=1000, help="Strongest neighbours of an item in each relation.")
    ] = 20,
    graphml: Annotated[
        Path | None,
        typer.Option("--graphml", metavar="FILE", help="Write the graph as GraphML for Gephi, Cytoscape or networkx."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Use the graph that the run already has, and do not build it again.")
    ] = False,
    json: Json = False,
) -> None:
    """Build the graph of a run's items, and print its relations.

    'report' shows the graph. A later 'export' adds a signature, 'related', to the SavedModel.
    """
    if keep and (relations or edges):
        raise typer.BadParameter("--keep takes the graph as it is: leave out --relation and --edges.")
    from tfllmrec.config import parse_config
    from tfllmrec.runs.graph import graph_of

    with working():
        named = {"relations": relations or ["text", "use", "values"], "edges": edges, "neighbours": neighbours}
        settings = None if keep else parse_config({"graph": named}, origin="command line").graph
        built = graph_of(run, settings, note, graphml)
    if json:
        found = [{"name": each.name, "kind": each.kind, "edges": len(each)} for each in built.relations]
        print_json({"items": built.n_items, "relations": found})
    else:
        for line in built.lines() or ["no relation has edges"]:
            say(line)
    if graphml is not None:
        note(f"GraphML: {graphml}")
    note(f"next: tfllmrec export {run} saved_models/{run.name}")

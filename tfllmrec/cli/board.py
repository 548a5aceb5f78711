"""``tfllmrec board``: TensorBoard over runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfllmrec.cli.output import note


def board(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN ...]", help="Run folders, or a folder of them. Default: runs.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback show the runs to anyone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 6006,
) -> None:
    """Start TensorBoard over runs, and print its address.

    What it shows of complete runs is written first where it is missing.
    """
    from tfllmrec.board.server import folders_of, serve_board
    from tfllmrec.explain.board import is_written, write_board
    from tfllmrec.runs.run import Run

    folders = folders_of(runs or [Path("runs")])
    for folder in folders:
        run = Run(folder)
        if run.complete and not is_written(run):
            note(f"{folder}: writing what TensorBoard shows")
            write_board(run)
    serve_board(folders, host, port)

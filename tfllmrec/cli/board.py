"""``tfllmrec board``: TensorBoard over runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def board(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN ...]", help="Run folders, or a folder of them. Default: runs.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback show the runs to anyone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 6006,
) -> None:
    """Starts TensorBoard over runs, and prints its address."""
    from tfllmrec.board.server import serve_board

    serve_board(runs or [Path("runs")], host, port)

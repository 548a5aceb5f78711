"""``tfllmrec board``: starts TensorBoard for runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.output import note
from tfllmrec.errors import TfllmrecError

if TYPE_CHECKING:
    from tfllmrec.runs.run import Run


def board(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Run folders, or a folder of them. Default: runs.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. With any address other than loopback, other machines can read the runs."
        ),
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free port.")] = 6006,
) -> None:
    """Start TensorBoard for runs, and print its address.

    If a complete run lacks data for TensorBoard, the data is written while the server is running.
    """
    from tfllmrec.board.server import folders_of, is_written, serve_board
    from tfllmrec.runs.run import Run

    folders = folders_of(runs or [Path("runs")])

    def write_missing() -> None:
        for run in map(Run, folders):
            if run.complete and not is_written(run.folder):
                write_or_note(run)

    serve_board(folders, host, port, write_missing)


def write_or_note(run: Run) -> None:
    """Writes the TensorBoard data of a complete run; a failure is only reported, so that other runs can follow."""
    from tfllmrec.cli.output import working
    from tfllmrec.explain.board import write_board

    note(f"{run.folder}: writing what TensorBoard shows")
    try:
        with working():
            write_board(run)
    except TfllmrecError as error:
        note(f"{run.folder}: TensorBoard shows only its curves: {error}")

"""Starts TensorBoard for run folders."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tensorboard.program import TensorBoard, TensorBoardServerException

from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.progress import to_stderr
from tfllmrec.wording import distinct_names

LOGS = "logs"
#: This file in a run's logs means that all its data for TensorBoard is written.
WRITTEN = "board.json"


def folders_of(named: Sequence[Path]) -> list[Path]:
    """Returns the folders with logs among the given folders and directly below them.

    Raises:
      ModelError: A folder does not exist, or contains no logs.
    """
    found: list[Path] = []
    for folder in named:
        if not folder.is_dir():
            raise ModelError(f"There is no folder {folder}: name runs, such as 'tfllmrec board runs/shop'.")
        own = [folder] if (folder / LOGS).is_dir() else sorted(path.parent for path in folder.glob(f"*/{LOGS}"))
        if not own:
            raise ModelError(f"{folder} contains no logs: expected the folder of a run, of a search, or of several.")
        found += own
    return list({folder.resolve(): folder for folder in found}.values())


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns the folders by display name; equal names are preceded by parent folders, or a number."""
    names = [name.replace("/", "-") for name in distinct_names(folders)]
    return {
        name if names.index(name) == at else f"{at + 1} {name}": folder
        for at, (name, folder) in enumerate(zip(names, folders, strict=True))
    }


@contextlib.contextmanager
def board_of(runs: Sequence[Path], host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Runs TensorBoard for run folders in a thread that ends with this process; yields its address.

    Raises:
      ConfigError: The port is taken, or the host is unknown.
    """
    with _folder_to_read(runs) as folder:
        program = TensorBoard()
        program.configure(argv=[None, "--logdir", str(folder), "--host", host, "--port", str(port)])
        try:
            yield program.launch()
        except TensorBoardServerException as error:
            raise ConfigError(f"TensorBoard cannot listen on {host}:{port}: {error.msg}") from error


@contextlib.contextmanager
def _folder_to_read(runs: Sequence[Path]) -> Iterator[Path]:
    """Yields the logs of a single run; for several, a folder of links, in which the Profile dashboard finds nothing."""
    if len(runs) == 1:
        yield runs[0].resolve() / LOGS
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, run in _names(runs).items():
            (Path(folder) / name).symlink_to((run / LOGS).resolve(), target_is_directory=True)
        yield Path(folder)


def is_written(run: Path) -> bool:
    """Returns whether the logs of a complete run have all its data for TensorBoard."""
    return (run / LOGS / WRITTEN).is_file()


def serve_board(runs: Sequence[Path], host: str, port: int, meanwhile: Callable[[], None]) -> None:
    """Runs :func:`board_of` until the process is interrupted or terminated (SIGTERM).

    Args:
      runs: The run folders.
      host: The address to listen on.
      port: The port; 0 for any free port.
      meanwhile: Called once TensorBoard answers.

    Raises:
      KeyboardInterrupt: Ctrl-C was pressed.
    """

    def end(*_: object) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    with board_of(runs, host, port) as address:
        to_stderr(f"TensorBoard: {address} (Ctrl-C ends it)")
        meanwhile()
        while True:
            signal.pause()

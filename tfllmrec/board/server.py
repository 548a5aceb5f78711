"""TensorBoard over run folders."""

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

LOGS = "logs"
#: In the logs of a run, once all that TensorBoard shows of it is there.
WRITTEN = "board.json"


def folders_of(named: Sequence[Path]) -> list[Path]:
    """The folders with logs among and directly below those that are named.

    Raises:
      ModelError: a folder is not there, or contains no logs.
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
    """The folders by the name to show: their own, or where two have the same one, all that leads to them."""
    own = [folder.resolve().name for folder in folders]
    return {
        name if own.count(name) == 1 else str(folder.resolve()).strip("/").replace("/", "-"): folder
        for name, folder in zip(own, folders, strict=True)
    }


@contextlib.contextmanager
def board_of(runs: Sequence[Path], host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """TensorBoard over run folders, in a thread that ends with this process; gives its address.

    Raises:
      ConfigError: the port is taken, or the host unknown.
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
    """The logs of a single run; of several, a folder of links, in which the Profile dashboard finds nothing."""
    if len(runs) == 1:
        yield runs[0].resolve() / LOGS
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, run in _names(runs).items():
            (Path(folder) / name).symlink_to((run / LOGS).resolve(), target_is_directory=True)
        yield Path(folder)


def is_written(run: Path) -> bool:
    """Whether all that TensorBoard shows of a complete run is in its logs."""
    return (run / LOGS / WRITTEN).is_file()


def serve_board(runs: Sequence[Path], host: str, port: int, meanwhile: Callable[[], None]) -> None:
    """As :func:`board_of`, until the process is interrupted or told to end (SIGTERM).

    Args:
      meanwhile: called once TensorBoard answers.

    Raises:
      KeyboardInterrupt: Ctrl-C.
    """

    def end(*_: object) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    with board_of(runs, host, port) as address:
        to_stderr(f"TensorBoard: {address} (Ctrl-C ends it)")
        meanwhile()
        while True:
            signal.pause()

"""TensorBoard over run folders."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tensorboard.program import TensorBoard, TensorBoardServerException

from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.progress import to_stderr


def logs_of(runs: Sequence[Path]) -> dict[str, Path]:
    """The logs of runs by the name to show; ``runs`` may be run folders, folders of them, or of any logs.

    Raises:
      ModelError: a folder is not there, or holds no logs.
    """
    found: dict[str, Path] = {}
    for folder in runs:
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder: name runs, such as 'tfllmrec board runs/shop'.")
        own = [folder / "logs"] if (folder / "logs").is_dir() else sorted(folder.glob("*/logs"))
        if not own and not any(folder.rglob("*tfevents*")):
            raise ModelError(f"{folder} holds no logs: expected the folder of a run or of several runs.")
        for logs in own or [folder]:
            name = (logs.parent if logs.name == "logs" else logs).resolve().name
            # Two folders of one name, such as those of two searches, are told apart by what they are in.
            found[name if name not in found else str(logs.resolve().parent)] = logs
    return found


@contextlib.contextmanager
def board_of(runs: Sequence[Path], host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """TensorBoard over ``runs`` in a thread of this process, until the block ends; gives its address.

    Raises:
      ConfigError: the port is taken, or the host unknown. ModelError: see :func:`logs_of`.
    """
    logs = logs_of(runs)
    with _folder_of_links(logs) as folder:
        program = TensorBoard()
        program.configure(argv=[None, "--logdir", str(folder), "--host", host, "--port", str(port)])
        try:
            yield program.launch()
        except TensorBoardServerException as error:
            raise ConfigError(f"TensorBoard cannot listen on {host}:{port}: {error.msg}") from error


@contextlib.contextmanager
def _folder_of_links(logs: Mapping[str, Path]) -> Iterator[Path]:
    """One folder for TensorBoard, in which each of ``logs`` has its name; more than one can only be read so."""
    with tempfile.TemporaryDirectory() as folder:
        for name, target in logs.items():
            (Path(folder) / name.strip("/").replace("/", "-")).symlink_to(target.resolve(), target_is_directory=True)
        yield Path(folder)


def serve_board(runs: Sequence[Path], host: str, port: int) -> None:
    """As :func:`board_of`, until the process is interrupted or told to end."""
    with board_of(runs, host, port) as address:
        to_stderr(f"TensorBoard: {address} (Ctrl-C ends it)")
        ended = signal.sigwait({signal.SIGINT, signal.SIGTERM})
        if ended == signal.SIGINT:
            raise KeyboardInterrupt

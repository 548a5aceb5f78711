"""Starts ``tfllmrec serve`` and reads the memory and CPU time of its processes from /proc, so on Linux only."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tfllmrec.client.client import Client

ENDS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Served:
    """A server whose models are available.

    Attributes:
      process: The process of the server.
      addresses: The addresses by protocol.
      seconds: The time from the start until the models were available.
    """

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    seconds: float

    def processes(self) -> list[int]:
        """Returns the ids of the server's process and of all its descendants, such as those of its models."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def megabytes(self) -> float:
        """Returns the memory of all processes without file pages, in millions of bytes; 0 once they have ended.

        A page that several processes share counts once (PSS). Pages of files, such as libraries, are left out, because
        their share depends on which other programs use them.
        """
        kilobytes = 0
        for pid in self.processes():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                        kilobytes += int(line.split()[1])
        return kilobytes * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Returns the processor time of all processes that are running."""
        return sum(map(cpu_seconds, self.processes()))


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process; 0 if it does not exist."""
    with suppress(OSError):
        ticks = map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextmanager
def served(models: Path, names: Sequence[str], *options: str) -> Iterator[Served]:
    """Runs ``tfllmrec serve`` on a folder of models with further options; yields when all ``names`` are available."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "tfllmrec", "serve", str(models), "--rest-port", "0", "--grpc-port", "0"]
    command += options
    # A new session keeps Ctrl-C from reaching the server before it is told to stop.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        ports = {}
        while len(ports) < 2:
            if told := re.match(r"(REST|gRPC) .*?(127\.0\.0\.1:\d+)", answer(process)):
                ports[told[1]] = told[2]
        addresses = {"REST": f"http://{ports['REST']}", "gRPC": f"grpc://{ports['gRPC']}"}
        for name in names:
            with Client(addresses["gRPC"], name) as client:
                while all(version.state != "AVAILABLE" for version in client.status()):
                    if wrong := [version.error for version in client.status() if version.error]:
                        raise SystemExit(f"{name} cannot be served: {wrong[0]}")
                    time.sleep(0.01)
        yield Served(process, addresses, time.perf_counter() - begun)
    finally:
        stop(process)


def answer(process: subprocess.Popen[str]) -> str:
    """Returns the next line that a process prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{shlex.join(map(str, process.args))} ended with {process.wait()}")  # type: ignore[arg-type]
    return line


def stop(process: subprocess.Popen[str]) -> int | None:
    """Stops a process and returns its exit code; ``None`` if it had to be killed."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(ENDS_WITHIN_S)
        return None
    finally:
        process.kill()
        process.wait()

"""``tfllmrec serve`` as a program, and the memory and time of its processes; Linux only, they are read in /proc."""

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
    """A server whose models answer; ``addresses`` by protocol, ``seconds`` until they did."""

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    seconds: float

    def processes(self) -> list[int]:
        """The server and the processes of its models."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def megabytes(self) -> float:
        """Memory of all processes without pages of files, in millions of bytes; 0 once they have ended.

        A page that several processes share counts once (PSS). Pages of files, such as the libraries, are left out: how
        much of them is ours depends on which other programs use them, too.
        """
        kilobytes = 0
        for pid in self.processes():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                        kilobytes += int(line.split()[1])
        return kilobytes * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Processor time of all processes that run now."""
        return sum(map(cpu_seconds, self.processes()))


def cpu_seconds(pid: int) -> float:
    """Processor time of a process; 0 if there is none."""
    with suppress(OSError):
        ticks = map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextmanager
def served(models: Path, names: Sequence[str], *options: str) -> Iterator[Served]:
    """``tfllmrec serve`` on the folder with further ``options``, from when all ``names`` are available."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "tfllmrec", "serve", str(models), "--rest-port", "0", "--grpc-port", "0"]
    command += options
    # In a session of its own, or Ctrl-C would reach it too, before it is told to stop.
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
    """The next line of what it prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{shlex.join(map(str, process.args))} ended with {process.wait()}")  # type: ignore[arg-type]
    return line


def stop(process: subprocess.Popen[str]) -> int | None:
    """Its exit code; ``None`` where it had to be killed."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(ENDS_WITHIN_S)
        return None
    finally:
        process.kill()
        process.wait()

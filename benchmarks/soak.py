"""Measures failures, response times and memory of the embedded server under load while its versions are swapped.

    python benchmarks/soak.py saved_models/movielens
    python benchmarks/soak.py saved_models/movielens --minutes 1

starts ``tfllmrec serve`` on a copy of the newest version and sends requests with tfllmrec's client, over REST and gRPC,
without retries. Every 20 s, or as soon as the previous swap is done, the same version is added under the next number,
as ``export`` does it (written to a temporary name, then renamed), and the old one is removed once the new one answers.
Writes a section of RESULTS.md. The exit code is 1 if a request or a swap failed, a version never answered, or the
server's memory grew beyond the bound. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from sections import made_by, replace_section
from served_process import Served, served, stop

from tfllmrec.client.client import Client
from tfllmrec.columns import ITEM, TITLE
from tfllmrec.errors import ModelError, TfllmrecError
from tfllmrec.serving.layout import EXTRA, ITEMS, version_folders

K = 10
MINUTES = 10.0
SWAPPED_S = 120.0  # time limit for a version to replace the previous one
SETTLES_S = 2.0  # wait until the process of an unloaded version has ended
DURING = "during a swap"
DEADLINE_S = 30.0
#: How much the server may grow from after the first swap to the end. At its start, libraries and two versions at once
#: have already been in memory.
GROWTH_MB = 100


@dataclass
class Figures:
    """The figures of a soak.

    Attributes:
      minutes: Its length.
      clients: The number of clients.
      pause_s: A client's pause between an answer and the next request.
      swap_s: The time between swaps.
      bound_mb: The bound for the growth of the server's memory.
      items: The number of items in the catalogue.
      seconds: The time of each answer, by the kind of request, such as ``recommend, REST``.
      versions: The number of answers by the version that was the newest one both before and after the request, or
        ``during a swap``.
      swaps: The number of successful swaps.
      failures: The errors of failed requests.
      troubles: Errors of swaps or of the server.
      memory_mb: The server's memory, once per second.
      settled_mb: The server's memory after each swap, when the process of the old version has ended.
      load: The load average of the machine before the soak.
    """

    minutes: float
    clients: int
    pause_s: float
    swap_s: float
    bound_mb: float
    items: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    swaps: int = 0
    failures: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    settled_mb: list[float] = field(default_factory=list)
    load: float = 0.0

    @property
    def answers(self) -> int:
        return sum(map(len, self.seconds.values()))

    @property
    def growth_mb(self) -> float:
        """The growth of the memory from after the first swap to after the last one; 0 without a swap."""
        return self.settled_mb[-1] - self.settled_mb[0] if self.settled_mb else 0.0

    def problems(self) -> list[str]:
        """Returns the reasons why the soak is not passed; empty if it is."""
        found = list(self.troubles)
        if self.failures:
            asked = self.answers + len(self.failures)
            found.insert(0, f"{len(self.failures):,} of {asked:,} requests failed, the first: {self.failures[0]}")
        silent = [str(number) for number in range(1, self.swaps + 2) if not self.versions[str(number)]]
        if silent:
            found.append(f"no answers from version {', '.join(silent)}")
        if self.growth_mb > self.bound_mb:
            found.append(f"memory grew by {self.growth_mb:.0f} MB, more than {self.bound_mb:.0f} MB")
        return found


class Course:
    """State that all threads share.

    Attributes:
      newest: The number of the newest version that answers.
      stop: Whether the threads are to stop.
    """

    def __init__(self) -> None:
        self.newest = 1
        self.stop = threading.Event()


class Asker(threading.Thread):
    """A client that sends requests until told to stop; it records failures and goes on.

    Args:
      address: The address of the server.
      model: The name of the model.
      items: The items of the model.
      kinds: The kinds of requests: ``recommend`` alone, or also ``search``.
      seed: The seed of the random requests.
      course: The shared state.
      pause_s: The pause between an answer and the next request.
    """

    def __init__(
        self,
        address: str,
        model: str,
        items: pd.DataFrame,
        kinds: list[str],
        seed: int,
        course: Course,
        pause_s: float,
    ) -> None:
        super().__init__(daemon=True)
        self.client = Client(address, model, deadline_s=DEADLINE_S, retries=0)
        self.seconds: dict[str, list[float]] = {}
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._items, self._kinds, self._course, self._pause_s = items, kinds, course, pause_s
        self._by = "REST" if address.startswith("http") else "gRPC"
        self._random = random.Random(seed)

    def run(self) -> None:
        ids, titles = self._items[ITEM].tolist(), self._items[TITLE if TITLE in self._items else ITEM].tolist()
        draw = self._random
        while not self._course.stop.is_set():
            kind, before, begun = draw.choice(self._kinds), self._course.newest, time.perf_counter()
            try:
                if kind == "search":
                    answer = self.client.search(draw.choice(titles), draw.sample(ids, draw.randrange(3)), k=K)
                else:
                    history = draw.sample(ids, draw.randint(1, min(20, len(ids) // 2)))
                    answer = self.client.recommend(history, k=K)
                if not len(answer):
                    raise ModelError("an answer without items")
            except Exception as error:  # any error counts as a failure
                self.failures.append(f"{kind}, {self._by}: {type(error).__name__}: {error}")
                time.sleep(0.05)  # avoids a flood of requests to a server that has ended
                continue
            self.seconds.setdefault(f"{kind}, {self._by}", []).append(time.perf_counter() - begun)
            self.versions[str(before) if before == self._course.newest else DURING] += 1
            time.sleep(self._pause_s)


class Memory(threading.Thread):
    """Records the memory of the server once per second."""

    def __init__(self, server: Served, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.memory_mb = [server.megabytes()]
        self._server, self._stop_asked = server, stop

    def run(self) -> None:
        while not self._stop_asked.wait(1):
            self.look()

    def look(self) -> None:
        if megabytes := self._server.megabytes():  # 0: the server has ended, which is reported elsewhere
            self.memory_mb.append(megabytes)


def put(version: Path, base: Path, number: int) -> None:
    """Copies a version to ``base/number``, which appears atomically."""
    copy = base / f".{number}"
    shutil.copytree(version, copy)
    copy.rename(base / str(number))


def swap(base: Path, version: Path, client: Client, course: Course, within_s: float) -> str:
    """Adds the next version, waits until it answers, and removes the old one; returns an error message or ``""``."""
    number = course.newest + 1
    put(version, base, number)
    ends = time.monotonic() + within_s
    while True:  # checks at least once, even on a slow machine
        states = {told.version: told.state for told in client.status()}
        if states.get(number) == "AVAILABLE":
            course.newest = number
            if states.get(number - 1) == "END":
                shutil.rmtree(base / str(number - 1))
                return ""
        if time.monotonic() >= ends:
            break
        time.sleep(0.05)
    return f"version {number} was not in the place of version {number - 1} within {within_s:.0f} s: {states}"


def soak(
    version: Path, minutes: float, clients: int, pause_s: float, swap_s: float, bound_mb: float, seed: int
) -> Figures:
    """Runs the soak on a version's folder and returns its figures."""
    items = pd.read_parquet(version / EXTRA / ITEMS)
    figures = Figures(minutes, clients, pause_s, swap_s, bound_mb, len(items), load=os.getloadavg()[0])
    course = Course()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / version.parent.name
        put(version, base, course.newest)
        with (
            served(Path(folder), [base.name]) as server,
            Client(server.addresses["REST"], base.name, deadline_s=DEADLINE_S) as watch,
        ):
            kinds = [name for name in ("recommend", "search") if name in watch.metadata().signatures]
            memory = Memory(server, course.stop)
            addresses = list(server.addresses.values())
            askers = [
                Asker(addresses[n % 2], base.name, items, kinds, seed + n, course, pause_s) for n in range(clients)
            ]
            begun = time.monotonic()
            for thread in (memory, *askers):
                thread.start()
            ends, due = begun + 60 * minutes, begun + swap_s
            while server.process.poll() is None and due + 2 * swap_s <= ends:  # leaves time for the last version
                time.sleep(max(due - time.monotonic(), 0))
                try:
                    wrong = swap(base, version, watch, course, SWAPPED_S)
                except TfllmrecError as error:
                    wrong = str(error)
                if wrong:
                    figures.troubles.append(wrong)
                    break
                figures.swaps += 1
                time.sleep(SETTLES_S)
                figures.settled_mb.append(server.megabytes())
                print(
                    f"{time.monotonic() - begun:.0f} s: version {course.newest}, {figures.settled_mb[-1]:.0f} MB, "
                    f"{sum(sum(a.versions.values()) for a in askers):,} answers",
                    file=sys.stderr,
                    flush=True,
                )
                due = max(due + swap_s, time.monotonic())  # if loading takes longer, the next swap follows at once
            else:
                time.sleep(max(ends - time.monotonic(), 0))
            course.stop.set()
            figures.minutes = (time.monotonic() - begun) / 60  # fewer than asked for if a swap failed
            for asker in askers:
                asker.join()
                asker.client.close()
                figures.versions += asker.versions
                figures.failures += asker.failures
                for kind, seconds in asker.seconds.items():
                    figures.seconds.setdefault(kind, []).extend(seconds)
            memory.join()
            memory.look()
            figures.memory_mb = memory.memory_mb
            if (code := stop(server.process)) != 0:
                ended = "had to be killed" if code is None else f"ended with exit code {code}"
                figures.troubles.append(f"the server {ended}")
    return figures


def section(figures: Figures, made: str) -> str:
    """Returns the figures as Markdown."""
    rows = []
    for kind, seconds in sorted(figures.seconds.items()):
        p50, p99 = 1000 * np.percentile(seconds, [50, 99])
        rows.append(f"| {kind} | {len(seconds):,} | {p50:.1f} | {p99:.1f} | {1000 * max(seconds):.0f} |")
    problems, memory = figures.problems(), figures.memory_mb
    settled = [f"{megabytes:,.0f}" for megabytes in figures.settled_mb]
    return "\n".join(
        [
            f"{made}; load average before it {figures.load:.1f}",
            "",
            f"{figures.minutes:.3g} minutes, {figures.clients} clients with a pause of {1000 * figures.pause_s:g} ms, "
            f"half over REST, half over gRPC, a catalogue of {figures.items:,} items, a version swap every "
            f"{figures.swap_s:g} s or as soon as the one before is done. "
            f"**{'Not passed: ' + '; '.join(problems) if problems else 'Passed'}.** "
            f"{figures.answers:,} answers ({figures.answers / (60 * figures.minutes):,.0f} a second), "
            f"{len(figures.failures):,} failed requests, {figures.swaps} swaps.",
            "",
            "| | answers | p50 ms | p99 ms | longest ms |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            "Memory of the server and of its models' processes (PSS without pages of files): "
            f"{memory[0]:,.0f} MB at the start, at most "
            f"{max(memory):,.0f} MB; {SETTLES_S:g} s after each swap "
            f"{', '.join(settled)} MB. Allowed are {figures.bound_mb:,.0f} MB more after the last one "
            "than after the first.",
            "",
            "Answers by version: "
            + ", ".join(f"{name}: {figures.versions[name]:,}" for name in sorted(figures.versions, key=_order))
            + ".",
        ]
    )


def _order(version: str) -> tuple[bool, int]:
    return (False, int(version)) if version.isdecimal() else (True, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="What `tfllmrec export` wrote: saved_models/NAME.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="Fewer leave RESULTS.md alone.")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause-ms", type=float, default=0.0, help="Of a client between answer and question.")
    parser.add_argument("--swap-seconds", type=float, default=20.0)
    parser.add_argument("--growth-mb", type=float, default=GROWTH_MB, help="How much the server may grow.")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    versions = version_folders(options.model) if options.model.is_dir() else {}
    if not versions:
        parser.error(f"{options.model}: expected a folder with a numbered version, as 'tfllmrec export' writes it")
    figures = soak(
        versions[max(versions)],
        options.minutes,
        options.clients,
        options.pause_ms / 1000,
        options.swap_seconds,
        options.growth_mb,
        options.seed,
    )
    body = section(figures, made_by(shlex.join(["python", *sys.argv]), options.seed))
    if options.minutes >= MINUTES:
        replace_section("a soak of the embedded server", body)
    print(body)
    sys.exit(bool(figures.problems()))


if __name__ == "__main__":
    main()

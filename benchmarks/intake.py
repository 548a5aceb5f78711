"""Measures the event intake: events per second with durable batches, and a hundred kills; a section of RESULTS.md.

    python benchmarks/intake.py
    python benchmarks/intake.py --kills 10 --seconds 1 --folder /mnt/disk

Every contender writes the same events and synchronises its file before it acknowledges a batch; the contenders take
turns. ``JSON lines`` is the simplest alternative: it appends each batch to a file as JSON lines, without any checks; an
event that is sent twice is stored twice. ``fsync`` writes as many bytes without encoding JSON: the limit of the disk.

Kills: a server receives events from four clients over REST and gRPC and is killed (SIGKILL) at a random moment. Events
that were not acknowledged are sent again to the next server. In the end, every acknowledged event must be in the log
exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sections import made_by, replace_section
from served_process import served

from tfllmrec.client.client import Client
from tfllmrec.client.transports import ServingError
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.feedback.event_log import EventLog

SIZES = (1, 10, 100, 1000)
CLIENTS = 16
TURNS = 3
Event = dict[str, Any]
Append = Callable[[list[Event]], None]


def event(rng: random.Random, name: str) -> Event:
    """Returns an event as a shop would send it, about 200 bytes of JSON; like a UUIDv7, its id begins with the time."""
    return {
        "event_id": f"{time.time_ns():016x}-{name}",
        "user_id": f"user-{rng.randrange(100_000)}",
        "item_id": f"item-{rng.randrange(10_000)}",
        "kind": rng.choice(["view", "click", "purchase"]),
        "timestamp_s": 1.79e9 + rng.random() * 1e6,
        "device": rng.choice(["phone", "tablet", "desktop"]),
    }


# --- How fast ---------------------------------------------------------------------------------------------------------


@contextmanager
def event_log(folder: Path) -> Iterator[Append]:
    with EventLog(folder / "log") as log:

        def append(events: list[Event]) -> None:
            assert log.append(events).accepted == len(events)

        yield append


@contextmanager
def random_ids(folder: Path) -> Iterator[Append]:
    """Opens the event log as a contender whose event ids are random, like UUIDv4."""
    with event_log(folder) as append:
        yield lambda events: append([{**each, "event_id": uuid.uuid4().hex} for each in events])


@contextmanager
def json_lines(folder: Path) -> Iterator[Append]:
    with (folder / "events.jsonl").open("ab") as file:

        def append(events: list[Event]) -> None:
            file.write(b"".join(json.dumps(each).encode() + b"\n" for each in events))
            file.flush()
            os.fsync(file.fileno())

        yield append


@contextmanager
def fsync(folder: Path) -> Iterator[Append]:
    with (folder / "bytes").open("ab") as file:

        def append(events: list[Event]) -> None:
            file.write(b"x" * 200 * len(events))
            file.flush()
            os.fsync(file.fileno())

        yield append


@contextmanager
def server(scheme: str, folder: Path) -> Iterator[Append]:
    """Starts a server in a separate process, which shares the cores with its clients."""
    (folder / "models").mkdir()
    with (
        served(folder / "models", (), "--log", str(folder / "log")) as running,
        Client(running.addresses[scheme], "none", deadline_s=60, connections=CLIENTS) as client,
    ):

        def append(events: list[Event]) -> None:
            assert client.send_events(events).accepted == len(events)

        yield append


@contextmanager
def rest(folder: Path) -> Iterator[Append]:
    with server("REST", folder) as append:
        yield append


@contextmanager
def grpc(folder: Path) -> Iterator[Append]:
    with server("gRPC", folder) as append:
        yield append


#: By name: the function that opens the contender, and the number of threads that append at once.
CONTENDERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "fsync": (fsync, 1),
    "JSON lines": (json_lines, 1),
    "event log": (event_log, 1),
    "event log, random ids": (random_ids, 1),
    "server, REST": (rest, CLIENTS),
    "server, gRPC": (grpc, CLIENTS),
}


def rate(append: Append, size: int, threads: int, seconds: float, name: str, seed: int) -> tuple[float, float]:
    """Appends batches of ``size`` from ``threads``; returns the events per second and the median ms of a batch."""
    ends = time.perf_counter() + seconds

    def work(thread: int) -> list[float]:
        rng, taken = random.Random(seed + thread), []
        while time.perf_counter() < ends:
            events = [event(rng, f"{name}-{thread}-{len(taken)}-{place}") for place in range(size)]
            begun = time.perf_counter()
            append(events)
            taken.append(time.perf_counter() - begun)
        return taken

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        taken = [seconds for each in pool.map(work, range(threads)) for seconds in each]
    return len(taken) * size / (time.perf_counter() - begun), 1000 * float(np.median(taken))


def speed(folder: Path, seconds: float, seed: int) -> list[str]:
    """Returns a table with a row for each contender and a column for each batch size."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        opened = {}
        for place, (name, (opener, _)) in enumerate(CONTENDERS.items()):
            (folder / str(place)).mkdir()
            opened[name] = stack.enter_context(opener(folder / str(place)))
        for turn in range(TURNS):
            for size in SIZES:
                for name, append in opened.items():
                    threads = CONTENDERS[name][1]
                    one = rate(append, size, threads, seconds, f"{turn}-{size}", seed)
                    found.setdefault((name, size), []).append(one)
    rows = []
    for name, (_, threads) in CONTENDERS.items():
        cells = [np.median(found[name, size], axis=0) for size in SIZES]
        who = f"{name}, {threads} clients" if threads > 1 else name
        rows.append([who, *(f"{events:,.0f} ({ms:.1f} ms)" for events, ms in cells)])
    return markdown_table(["events per second (median ms of a batch)", *(f"batches of {n:,}" for n in SIZES)], rows)


# --- Kills ------------------------------------------------------------------------------------------------------------


@dataclass
class Sender:
    """A client that sends batches until its server dies, and first sends again what was not acknowledged."""

    name: str
    rng: random.Random
    acknowledged: set[str] = field(default_factory=set)
    unsure: list[list[Event]] = field(default_factory=list)
    duplicates: int = 0
    sent: int = 0

    def run(self, address: str) -> None:
        with Client(address, "none", deadline_s=20, retries=0) as client:
            while True:
                if not self.unsure:
                    size = self.rng.choice((1, 1, 5, 20, 200))
                    self.unsure.append([event(self.rng, f"{self.name}-{self.sent}-{n}") for n in range(size)])
                    self.sent += 1
                batch = self.unsure[-1]
                try:
                    receipt = client.send_events(batch)
                except ServingError:
                    return
                assert receipt.accepted + receipt.duplicates == len(batch)
                self.duplicates += receipt.duplicates
                self.acknowledged |= {each["event_id"] for each in batch}
                self.unsure.pop()


@dataclass(frozen=True)
class Kills:
    """The outcome of all kills.

    Attributes:
      kills: The number of kills.
      acknowledged: The number of acknowledged events.
      sent_again: The number of events that were in the log already when they were sent again.
      lost: The number of acknowledged events that are not in the log.
      twice: The number of surplus copies of events in the log.
      unasked: The number of events in the log that nobody sent.
    """

    kills: int
    acknowledged: int
    sent_again: int
    lost: int
    twice: int
    unasked: int


def kill(folder: Path, kills: int, seed: int) -> Kills:
    """Kills the server ``kills`` times while four clients send, and compares its log with the acknowledged events."""
    rng = random.Random(seed)
    senders = [Sender(f"s{n}", random.Random(seed + 1 + n)) for n in range(4)]
    (folder / "models").mkdir()
    for _ in range(kills):
        with served(folder / "models", (), "--log", str(folder / "log")) as running:
            addresses = list(running.addresses.values())
            threads = [
                threading.Thread(target=sender.run, args=(addresses[n % 2],)) for n, sender in enumerate(senders)
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.0, 0.8))
            running.process.kill()
            for thread in threads:
                thread.join()
    acknowledged = set().union(*(sender.acknowledged for sender in senders))
    known = acknowledged | {each["event_id"] for sender in senders for batch in sender.unsure for each in batch}
    with EventLog(folder / "log") as log:
        found = [each["event_id"] for each in log.replay()]
    return Kills(
        kills,
        len(acknowledged),
        sum(sender.duplicates for sender in senders),
        len(acknowledged - set(found)),
        len(found) - len(set(found)),
        len(set(found) - known),
    )


def told(result: Kills) -> str:
    """Returns a line on the outcome of the kills."""
    good = not (result.lost or result.twice or result.unasked)
    return (
        f"{result.kills} kills of a server with four clients: {result.acknowledged:,} events were acknowledged; "
        f"{result.lost} of them are lost, {result.twice} are in the log twice, {result.unasked} events are there that "
        f"nobody sent. {result.sent_again:,} events had been written, but not acknowledged, before a kill; they were "
        f"sent again and counted as duplicates. **{'Passed' if good else 'FAILED'}.**"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0, help="Of each contender in each turn, for each size.")
    parser.add_argument("--folder", type=Path, help="On the disk to measure; by default the system's temporary folder.")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    command = shlex.join(["python", "benchmarks/intake.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        (Path(made) / "speed").mkdir()
        table = speed(Path(made) / "speed", arguments.seconds, arguments.seed)
        print("\n".join(table), flush=True)
        (Path(made) / "kills").mkdir()
        result = kill(Path(made) / "kills", arguments.kills, arguments.seed)
        print(told(result), flush=True)
    lines = [
        made_by(command, arguments.seed),
        "",
        f"Each batch is on the disk before it is acknowledged. Medians of {TURNS} turns of {arguments.seconds:g} s; "
        "clients and server share the cores.",
        "",
        *table,
        "",
        "fsync: as many bytes, without JSON. JSON lines: a batch is appended to a file and synchronised; nothing is "
        "checked, and an event that is sent twice is there twice. event log: one process, one thread. Ids of events "
        "begin with the time, except in the row of random ids, where the index of keys grows in all places at once.",
        "",
        told(result),
    ]
    replace_section("event intake", "\n".join(lines))


if __name__ == "__main__":
    main()

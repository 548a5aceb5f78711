"""Kills updates, promotions and rollbacks at random moments while requests run, and looks at what is left.

    python benchmarks/kill_updates.py runs/shop --events june.csv --kills 100

exports the run, serves it by ``tfllmrec serve``, and asks the version ``stable`` all the time. Meanwhile ``update``,
``promote`` and ``rollback`` are started and killed (SIGKILL) after a random part of the time that each takes
undisturbed. After each kill: ``promotions.json`` has the state before the command or the one after it, and the versions
that it names are whole. At the end the killed update goes on to the result of one without interruption. A section of
RESULTS.md; the exit code is 1 where any of this failed or a request did. Nothing is written beside the run.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from sections import made_by, replace_section
from served_process import served

from tfllmrec.client.client import Client
from tfllmrec.columns import ITEM
from tfllmrec.errors import TfllmrecError
from tfllmrec.runs.run import Run
from tfllmrec.serving.layout import EXTRA, ITEMS, read_manifest, version_folders
from tfllmrec.serving.promotion import Promotions, read_promotions

ACTIONS = ("update", "promote", "rollback")


@dataclass
class Figures:
    """What came of it: by action the kills, the commands that ended before, and those that left the new state."""

    kills: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


class Asker(threading.Thread):
    """Asks the stable version until told to stop."""

    def __init__(self, address: str, model: str, items: list[str], figures: Figures, seed: int) -> None:
        super().__init__(daemon=True)
        self.client = Client(address, model, label="stable", deadline_s=30.0, retries=0)
        self.stop = threading.Event()
        self._items, self._figures, self._random = items, figures, random.Random(seed)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.client.recommend(self._random.sample(self._items, 3), k=5)
                self._figures.answers += 1
            except Exception as error:  # whatever it is, it counts
                self._figures.failures.append(f"{type(error).__name__}: {error}")
            time.sleep(0.05)


def command_of(action: str, run: Path, events: Path, model: Path, out: Path) -> list[str]:
    program = [sys.executable, "-m", "tfllmrec"]
    if action == "update":
        return [*program, "update", str(run), "--events", str(events), "--out", str(out)]
    if action == "promote":
        return [*program, "promote", str(model), "--version", str(max(version_folders(model)))]
    return [*program, "rollback", str(model)]


def started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def undisturbed(command: list[str]) -> float:
    begun = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return time.monotonic() - begun


def copied(model: Path) -> None:
    """The next version, a copy of the newest one."""
    newest = max(version_folders(model))
    shutil.copytree(model / str(newest), model / ".copy")
    (model / ".copy").rename(model / str(newest + 1))


def problem(model: Path, before: Promotions, after: Promotions) -> str | None:
    """What is wrong with the state that a killed command left."""
    changed = after.history[: len(before.history)] == before.history and len(after.history) <= len(before.history) + 2
    if after != before and not (changed and len(after.history) > len(before.history)):
        return f"another state than before or after: {after.labels}"
    for number in (*after.labels.values(), *after.served):
        if not (model / str(number) / "saved_model.pb").is_file():
            return f"version {number}, which is in use, is not there"
        read_manifest(model / str(number))
    return None


def count(figures: Figures, number: int, action: str, code: int) -> None:
    """A kill, or a command that ended before it came, which must have succeeded."""
    if code == -signal.SIGKILL:
        figures.kills[action] += 1
    else:
        figures.ended[action] += 1
        if code:
            figures.troubles.append(f"command {number + 1}, {action}: it ended with exit code {code}")


def kill_all(run: Path, events: Path, kills: int, seed: int) -> Figures:
    """The whole of it."""
    figures, draw = Figures(), random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        model, out = Path(scratch) / "models" / "killed", Path(scratch) / "update"
        undisturbed([sys.executable, "-m", "tfllmrec", "promote", str(model), str(run)])
        figures.seconds["update"] = undisturbed(command_of("update", run, events, model, out))
        expected = Run.open(out).metrics["results"]
        shutil.rmtree(out)
        for action in ("promote", "rollback"):
            if action == "promote":
                copied(model)
            figures.seconds[action] = undisturbed(command_of(action, run, events, model, out))
        items = pd.read_parquet(model / "1" / EXTRA / ITEMS)[ITEM].tolist()
        with served(model.parent, [model.name]) as server:
            askers = [
                Asker(address, model.name, items, figures, seed + n)
                for n, address in enumerate(server.addresses.values())
            ]
            for asker in askers:
                asker.start()
            for number in range(kills):
                action = ACTIONS[number % len(ACTIONS)]
                before = read_promotions(model)
                if action == "promote" and before.stable == max(version_folders(model)):
                    copied(model)
                elif action == "rollback" and not before.before and before.canary is None:
                    undisturbed(command_of("promote", run, events, model, out))
                    before = read_promotions(model)
                process = started(command_of(action, run, events, model, out))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(draw.uniform(0, figures.seconds[action] * 1.05))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                count(figures, number, action, process.wait())
                after = read_promotions(model)
                figures.done[action] += Run(out).complete if action == "update" else after != before
                if wrong := problem(model, before, after):
                    figures.troubles.append(f"kill {number + 1}, {action}: {wrong}")
                if action == "update" and Run(out).complete:
                    shutil.rmtree(out)
            undisturbed(command_of("update", run, events, model, out))
            if Run.open(out).metrics["results"] != expected:
                figures.troubles.append("the killed update came to another result than the undisturbed one")
            for asker in askers:
                asker.stop.set()
            for asker in askers:
                asker.join()
            try:
                with Client(server.addresses["gRPC"], model.name, label="stable") as client:
                    client.recommend(items[:3], k=5)
            except TfllmrecError as error:
                figures.troubles.append(f"after all kills: {error}")
    return figures


def section(figures: Figures, made: str) -> str:
    """Whether it passed, and the counts."""
    failed = [*figures.troubles, *figures.failures[:3]]
    counts = [
        f"{action}: {figures.kills[action]} kills within {figures.seconds[action] * 1.05:.1f} s, "
        f"{figures.ended[action]} commands ended before the kill, {figures.done[action]} of all left the new state"
        for action in ACTIONS
    ]
    return "\n".join([
        made,
        "",
        f"**{'Not passed' if failed else 'Passed'}.** {sum(figures.kills.values())} kills, {figures.answers:,} answers "
        f"of the stable version, {len(figures.failures)} failed requests, {len(figures.troubles)} wrong states.",
        "",
        *(f"- {line}" for line in [*counts, *failed]),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="A finished run folder; it is only read.")
    parser.add_argument("--events", type=Path, required=True, help="New events.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--print", dest="printed", action="store_true", help="Print the section; leave RESULTS.md alone."
    )
    options = parser.parse_args()
    figures = kill_all(options.run, options.events, options.kills, options.seed)
    body = section(figures, made_by(shlex.join(["python", *sys.argv]), options.seed))
    if not options.printed:
        replace_section(f"{Run.open(options.run).metrics['data']['name']}: updates that are killed", body)
    print(body)
    if figures.troubles or figures.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Kills intakes, updates, promotions and rollbacks at random moments during requests, and checks the state they leave.

    python benchmarks/kill_updates.py --kills 100                         # planted data, a run that takes a minute
    python benchmarks/kill_updates.py runs/shop --events june.csv --kills 100

exports the run and serves it by ``tfllmrec serve`` with an event log. Clients continuously send requests to the version
``stable``, and an event after each answer. Meanwhile ``events append``, ``update``, ``promote`` and ``rollback`` are
started and killed (SIGKILL) after a random share of the processor time that each takes without a kill; on a busy
machine, kills after a share of the wall time would all come too early. An update starts in a process that has already
loaded TensorFlow, so that the kill hits the update itself.

After each kill, ``promotions.json`` must have the state before the command or the one after it, and the versions that
it names must be complete. At the end, the killed update is resumed and must reach the same result as one without
interruption, and the log must have each acknowledged event and each event of the appended files exactly once. Writes a
section of RESULTS.md. The exit code is 1 if any of these checks or a request failed. Nothing is written to the run's
folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
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

import numpy as np
import pandas as pd
from sections import made_by, replace_section
from served_process import cpu_seconds, served

from tfllmrec.client.client import Client
from tfllmrec.columns import ITEM
from tfllmrec.errors import TfllmrecError
from tfllmrec.feedback.event_log import EventLog
from tfllmrec.progress import show_progress
from tfllmrec.runs.run import Run
from tfllmrec.serving.layout import EXTRA, ITEMS, read_manifest, version_folders
from tfllmrec.serving.promotion import Promotions, read_promotions

ACTIONS = ("intake", "update", "promote", "rollback")
#: Seconds between two polls of a process; the longest processor time before a kill, as a share of the undisturbed one.
POLL_S, LONGEST = 0.002, 1.1
#: The number of events in a file that is appended.
APPENDED = 20_000
#: Settings of the fit on planted data, whose quality does not matter.
SMALL = (
    "model.embedding_dim=16", "model.blocks=1", "training.epochs=1", "ranking.epochs=1", "evaluation.bootstrap=20",
    "evaluation.baselines=[popularity]", "board.details=false",
)  # fmt: skip


@dataclass
class Figures:
    """The counts and measurements of the benchmark.

    Attributes:
      kills: The number of kills by action.
      ended: The number of commands that ended before the kill, by action.
      done: The number of commands that left the new state, by action.
      seconds: The processor time of an undisturbed command, by action.
      answers: The number of answers to the clients.
      acknowledged: The number of events that were acknowledged.
      failures: The errors of requests.
      troubles: The failed checks.
    """

    kills: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    answers: int = 0
    acknowledged: int = 0
    failures: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


class Asker(threading.Thread):
    """A client that sends requests to the stable version, and an event after each answer, until ``stop`` is set.

    Attributes:
      sent: The ids of the acknowledged events.
    """

    def __init__(self, address: str, model: str, items: list[str], figures: Figures, seed: int) -> None:
        super().__init__(daemon=True)
        self.client = Client(address, model, label="stable", deadline_s=30.0, retries=0)
        self.stop = threading.Event()
        self.sent: list[str] = []
        self._name = f"client-{seed}"
        self._items, self._figures, self._random = items, figures, random.Random(seed)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                answer = self.client.recommend(self._random.sample(self._items, 3), k=5)
                self._figures.answers += 1
                event_id = f"{self._name}-{len(self.sent)}"
                self.client.send_events(
                    [{"user_id": self._name, "item_id": answer[0].item_id, "event_id": event_id, "kind": "click"}]
                )
                self.sent.append(event_id)
            except Exception as error:  # any error counts as a failure
                self._figures.failures.append(f"{type(error).__name__}: {error}")
            time.sleep(0.05)


@dataclass(frozen=True)
class Work:
    """The paths that the commands work on.

    Attributes:
      run: The run.
      events: The new events for an update.
      model: The folder of the exported model.
      out: The folder of the updated run.
      log: The event log.
      appended: The file of events that is appended to the log.
    """

    run: Path
    events: Path
    model: Path
    out: Path
    log: Path
    appended: Path

    def command(self, action: str) -> list[str]:
        program = [sys.executable, "-m", "tfllmrec"]
        if action == "intake":
            return [*program, "events", "append", str(self.log), str(self.appended)]
        if action == "promote":
            return [*program, "promote", str(self.model), "--version", str(max(version_folders(self.model)))]
        return [*program, "rollback", str(self.model)]


def _update(run: Path, events: Path, out: Path) -> None:
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    from tfllmrec.runs.update import update_run

    update_run(run, events, out=out)


class Started:
    """A started command, or an update in a process that is forked from one that has loaded TensorFlow.

    Attributes:
      cpu_s: The processor time that it has taken; complete when it has ended.
    """

    def __init__(self, work: Work, action: str) -> None:
        self.cpu_s = 0.0
        self._forked, self._popen = None, None
        if action == "update":
            self._forked = _FORKED.Process(target=_update, args=(work.run, work.events, work.out))
            self._forked.start()
        else:
            self._popen = subprocess.Popen(
                work.command(action), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )

    def _code(self) -> int | None:
        return self._popen.poll() if self._forked is None else self._forked.exitcode

    def end(self, within_s: float | None = None) -> int:
        """Waits for its end and returns the exit code.

        Args:
          within_s: The processor time after which it is killed; ``None``: it is not killed.
        """
        pid = (self._popen or self._forked).pid
        while (code := self._code()) is None:
            self.cpu_s = max(self.cpu_s, cpu_seconds(pid))
            if within_s is not None and self.cpu_s >= within_s:
                for kill in (os.kill, os.killpg):
                    with suppress(ProcessLookupError):
                        kill(pid, signal.SIGKILL)
                within_s = None
            time.sleep(POLL_S)
        return code


_FORKED = multiprocessing.get_context("forkserver")


def undisturbed(work: Work, action: str) -> float:
    """Runs a command to its end and returns its processor time."""
    started = Started(work, action)
    if code := started.end():
        raise SystemExit(f"{action} ended with exit code {code}: start it by hand to see why")
    return started.cpu_s


def planted(folder: Path) -> tuple[Path, Path]:
    """Fits a run on users who walk along a ring of items; returns its folder and a file of later steps."""
    draw = np.random.default_rng(0)

    def steps(first_s: int, users: int, count: int) -> pd.DataFrame:
        at = draw.integers(0, 60, users)
        rows = [
            (f"u{user}", f"i{(at[user] + step) % 60}", first_s + 100 * user + step)
            for user in range(users)
            for step in range(count)
        ]
        return pd.DataFrame(rows, columns=["user", "item", "timestamp"])

    folder.mkdir(parents=True)
    before, after = folder / "before.csv", folder / "after.csv"
    steps(0, 150, 8).to_csv(before, index=False)
    steps(100_000, 80, 3).to_csv(after, index=False)
    command = [sys.executable, "-m", "tfllmrec", "fit", "--events", str(before), "--out", str(folder / "run")]
    subprocess.run([*command, *(word for each in SMALL for word in ("--set", each))], check=True)
    return folder / "run", after


def copied(model: Path) -> None:
    """Adds the next version of a model as a copy of its newest one."""
    newest = max(version_folders(model))
    shutil.copytree(model / str(newest), model / ".copy")
    (model / ".copy").rename(model / str(newest + 1))


def problem(model: Path, before: Promotions, after: Promotions) -> str | None:
    """Returns what is wrong with the state that a killed command left, or ``None``."""
    changed = after.history[: len(before.history)] == before.history and len(after.history) <= len(before.history) + 2
    if after != before and not (changed and len(after.history) > len(before.history)):
        return f"another state than before or after: {after.labels}"
    for number in (*after.labels.values(), *after.served):
        if not (model / str(number) / "saved_model.pb").is_file():
            return f"version {number}, which is in use, is not there"
        read_manifest(model / str(number))
    return None


def count(figures: Figures, number: int, action: str, code: int) -> None:
    """Counts a kill, or a command that ended before it, which must have succeeded."""
    if code == -signal.SIGKILL:
        figures.kills[action] += 1
    else:
        figures.ended[action] += 1
        if code:
            figures.troubles.append(f"command {number + 1}, {action}: it ended with exit code {code}")


def lost_or_twice(log: Path, askers: list[Asker], files: int) -> list[str]:
    """Returns what is wrong with the log: it must have each acknowledged event and each event of all files once."""
    with EventLog(log) as opened:
        found = Counter(event["event_id"] for event in opened.replay())
    expected = {event_id for asker in askers for event_id in asker.sent}
    expected |= {f"file-{number}-{row}" for number in range(files) for row in range(APPENDED)}
    troubles = []
    if lost := len(expected - found.keys()):
        troubles.append(f"{lost} of {len(expected)} events are not in the log")
    if twice := sum(count > 1 for count in found.values()):
        troubles.append(f"{twice} events are in the log twice")
    return troubles


def write_appended(path: Path, number: int) -> None:
    rows = [(f"u{row % 100}", "i1", 1e9 + row, f"file-{number}-{row}") for row in range(APPENDED)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp_s", "event_id"]).to_csv(path, index=False)


def kill_all(run: Path, events: Path, kills: int, seed: int) -> Figures:
    """Runs the benchmark with ``kills`` kills, which take turns among :data:`ACTIONS`."""
    figures, draw, files = Figures(), random.Random(seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, out, log = folder / "models" / "killed", folder / "update", folder / "log"
        work = Work(run, events, model, out, log, folder / "appended.csv")
        command = [sys.executable, "-m", "tfllmrec", "promote", str(model), str(run)]
        subprocess.run(command, check=True, capture_output=True)
        EventLog(log).close()
        for action in ACTIONS:
            if action == "promote":
                copied(model)
            elif action == "intake":
                write_appended(work.appended, files)
            figures.seconds[action] = undisturbed(work, action)
        expected = Run.open(out).metrics["results"]
        shutil.rmtree(out)
        items = pd.read_parquet(model / "1" / EXTRA / ITEMS)[ITEM].tolist()
        with served(model.parent, [model.name], "--log", str(log)) as server:
            askers = [
                Asker(address, model.name, items, figures, seed + n)
                for n, address in enumerate(server.addresses.values())
            ]
            for asker in askers:
                asker.start()
            with show_progress("Killing", "kills") as progress:
                for number in range(kills):
                    action = ACTIONS[number % len(ACTIONS)]
                    before = read_promotions(model)
                    if action == "promote" and before.stable == max(version_folders(model)):
                        copied(model)
                    elif action == "rollback" and not before.before and before.canary is None:
                        undisturbed(work, "promote")
                        before = read_promotions(model)
                    elif action == "intake":
                        files += 1
                        write_appended(work.appended, files)
                    code = Started(work, action).end(draw.uniform(0, figures.seconds[action] * LONGEST))
                    count(figures, number, action, code)
                    after = read_promotions(model)
                    is_done = {"update": Run(out).complete, "intake": code == 0}
                    figures.done[action] += is_done.get(action, after != before)
                    if wrong := problem(model, before, after):
                        figures.troubles.append(f"kill {number + 1}, {action}: {wrong}")
                    if action == "update" and Run(out).complete:
                        shutil.rmtree(out)
                    elif action == "intake":
                        undisturbed(work, "intake")  # appends the same file again
                    progress(number + 1, kills)
            undisturbed(work, "update")
            if Run.open(out).metrics["results"] != expected:
                figures.troubles.append("the killed update came to another result than the undisturbed one")
            for asker in askers:
                asker.stop.set()
            for asker in askers:
                asker.join()
            figures.acknowledged = sum(len(asker.sent) for asker in askers)
            try:
                with Client(server.addresses["gRPC"], model.name, label="stable") as client:
                    client.recommend(items[:3], k=5)
            except TfllmrecError as error:
                figures.troubles.append(f"after all kills: {error}")
        figures.troubles += lost_or_twice(log, askers, files + 1)
    return figures


def section(figures: Figures, made: str) -> str:
    """Returns the text of the section: whether all checks passed, and the counts."""
    failed = [*figures.troubles, *figures.failures[:3]]
    counts = [
        f"{action}: {figures.kills[action]} kills within {figures.seconds[action] * LONGEST:.1f} CPU seconds, "
        f"{figures.ended[action]} commands ended before the kill, {figures.done[action]} of all left the new state"
        for action in ACTIONS
    ]
    return "\n".join([
        made,
        "",
        f"**{'Not passed' if failed else 'Passed'}.** {sum(figures.kills.values())} kills, {figures.answers:,} answers "
        f"of the stable version, {figures.acknowledged:,} acknowledged events, {len(figures.failures)} failed "
        f"requests, {len(figures.troubles)} wrong states.",
        "",
        *(f"- {line}" for line in [*counts, *failed]),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="A finished run folder; it is only read. Default: planted data."
    )
    parser.add_argument("--events", type=Path, help="New events; needed with a run.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--print", dest="printed", action="store_true", help="Print the section; leave RESULTS.md alone."
    )
    options = parser.parse_args()
    if (options.run is None) != (options.events is None):
        parser.error("expected a run and --events, or neither")
    _FORKED.set_forkserver_preload(["tfllmrec.runs.update", "tfllmrec.training.fit", "tfllmrec.training.ranking.fit"])
    with tempfile.TemporaryDirectory() as scratch:
        run, events = (options.run, options.events) if options.run else planted(Path(scratch) / "planted")
        name = Run.open(run).metrics["data"]["name"] if options.run else "planted data"
        figures = kill_all(run, events, options.kills, options.seed)
    body = section(figures, made_by(shlex.join(["python", *sys.argv]), options.seed))
    if not options.printed:
        replace_section(f"{name}: updates that are killed", body)
    print(body)
    if figures.troubles or figures.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

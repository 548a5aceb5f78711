"""Compares updates with full fits and a stale model, in accuracy and cost, on a data set that arrives in steps by time.

    python benchmarks/update.py movielens-small --steps 10

fits a run on the first half of the events, by time (for events without times, on the first half of each user's events,
by order). Then the other half is added in equal steps. Items join the catalogue with their first event. After each
step, these are measured:

- ``tfllmrec update`` of the previous run,
- ``tfllmrec fit`` of all data so far, as a user would run it: with its searches of settings, without baselines,
- the first run, which is not trained again and does not know the new items.

All are measured on the test queries of the update; update and fit are compared by a paired interval over users. CPU
seconds are those of the commands, from start to end, with all threads and child processes. Neither command writes
details for TensorBoard (``board.details``). An interrupted benchmark continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from quality import SETS, files_of
from sections import made_by, replace_section

from tfllmrec.columns import EVENT_TYPES, ITEM, ITEM_INDEX, ORDER, RATING, TIMESTAMP, USER, USER_INDEX
from tfllmrec.config import DataConfig, dump_config, parse_config
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.queries import Queries
from tfllmrec.data.readers import read_dataset
from tfllmrec.durable import write_text
from tfllmrec.evaluation.protocol import evaluate, paired_difference
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.regression import OfEarlierCatalogue
from tfllmrec.evaluation.report import MIN_TARGETS, markdown_table
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.runs.run import Run


@dataclass(frozen=True)
class Step:
    """The figures of a step.

    Attributes:
      events: The number of events so far.
      queries: The number of test queries.
      new_items: The number of items that are not in the first run.
      new_targets: The number of targets that are new items.
      ndcg: ndcg@10 by contender.
      recall_new: recall@10 of new items by contender; ``None`` if there are too few targets.
      cpu_s: CPU seconds by command.
      gain: The ndcg@10 of the update minus that of the fit, and the ends of its paired 95 % interval.
    """

    events: int
    queries: int
    new_items: int
    new_targets: int
    ndcg: Mapping[str, float]
    recall_new: Mapping[str, float | None]
    cpu_s: Mapping[str, float]
    gain: tuple[float, float, float]


def parts_of(dataset: Dataset, first: float, steps: int) -> np.ndarray:
    """Returns the part of each event, int ``[E]``, 0 to ``steps``: by time, or by order within each user's events."""
    events = dataset.events
    times = events[TIMESTAMP].to_numpy()
    if np.isnan(times).any():
        counts = np.bincount(events[USER_INDEX], minlength=dataset.n_users)
        share = events[ORDER].to_numpy() / counts[events[USER_INDEX]]
    else:
        share = pd.Series(times).rank(method="first").to_numpy() - 1
        share = share / len(events)
    return np.where(share < first, 0, 1 + np.floor((share - first) / (1 - first) * steps).clip(0, steps - 1)).astype(
        int
    )


def write_parts(dataset: Dataset, first: float, steps: int, folder: Path) -> None:
    """Writes ``events-0.csv``, ``items-0.csv``, ... with the events of each part and the items that join with it."""
    part = parts_of(dataset, first, steps)
    timed = bool(dataset.events[TIMESTAMP].notna().all())
    kept = [USER, ITEM, *([RATING] if dataset.has_ratings else []), TIMESTAMP if timed else ORDER]
    kept += [column for column in dataset.events if column not in EVENT_TYPES]
    joins = np.zeros(dataset.n_items, int)
    met = pd.Series(part).groupby(dataset.events[ITEM_INDEX].to_numpy()).min()
    joins[met.index] = met.to_numpy()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(steps + 1):
        dataset.events[kept][part == number].to_csv(folder / f"events-{number}.csv", index=False)
        dataset.items[joins == number].to_csv(folder / f"items-{number}.csv", index=False)
    dataset.users.to_csv(folder / "users.csv", index=False)


def timed(folder: Path, command: Sequence[str]) -> tuple[Run, float]:
    """Runs ``tfllmrec COMMAND``; returns its run and the CPU seconds, which are stored in a file next to the run.

    The CPU seconds of attempts that Ctrl-C or an error ended are included; those of an attempt that was killed together
    with the benchmark itself are lost.

    Raises:
      SystemExit: The command failed.
    """
    record = folder.with_name(f"{folder.name}.cpu.json")
    before = float(json.loads(record.read_text())) if record.is_file() else 0.0
    if (run := Run(folder)).complete and record.is_file():
        return run, before
    start = cpu_of_children()
    try:
        done = subprocess.run([sys.executable, "-m", "tfllmrec", *command], stdout=sys.stderr, check=False)
    finally:
        seconds = before + cpu_of_children() - start
        write_text(record, json.dumps(seconds))
    if done.returncode:
        raise SystemExit(f"tfllmrec {shlex.join(command)} ended with exit code {done.returncode}")
    return Run(folder), seconds


def cpu_of_children() -> float:
    """Returns the CPU seconds of all child processes that have ended, including their own children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fit_command(data: DataConfig, out: Path, overrides: Sequence[str]) -> list[str]:
    """Returns the command for ``fit`` without baselines and with no other settings than ``overrides``, or to resume."""
    if (out / "checkpoints").is_dir():
        return ["fit", "--resume", str(out)]
    raw = {"data": data.model_dump(mode="json", exclude_unset=True), "evaluation": {"baselines": []}}
    config = out.with_name(f"{out.name}.yaml")
    write_text(config, dump_config(parse_config({**raw, "board": {"details": False}}, overrides)))
    return ["fit", str(config), "--out", str(out)]


def shared_queries(run: Run, other: Run) -> tuple[Queries, Queries]:
    """Returns the test queries with the same user and targets in two runs of the same data, in the same order."""
    ours, theirs = run.split.test, other.split.test
    rows = pd.Index(theirs.user_ids).get_indexer(pd.Index(ours.user_ids))
    same = [at >= 0 and np.array_equal(ours.targets[row], theirs.targets[at]) for row, at in enumerate(rows)]
    return ours.take(np.flatnonzero(same)), theirs.take(rows[np.flatnonzero(same)])


def measured(
    contenders: Mapping[str, tuple[Recommender, Queries]], update: Run, known: pd.Series
) -> tuple[dict[str, float], dict[str, float | None], int, tuple[float, float, float]]:
    """Returns the fields ``ndcg``, ``recall_new``, ``new_targets`` and ``gain`` of a step.

    Args:
      contenders: The recommenders and their queries by name.
      update: The updated run.
      known: The ids of the items that are not new.
    """
    new = ~update.split.items[ITEM].isin(known).to_numpy()
    results = {
        name: evaluate(
            model, queries, train_counts=update.split.train_counts, strata={"new": new}, ks=(10,), bootstrap=0
        )
        for name, (model, queries) in contenders.items()
    }
    targets = results["update"].counts["targets/new"]
    ndcg = {name: float(result.metrics["ndcg@10"] or 0.0) for name, result in results.items()}
    enough = targets >= MIN_TARGETS
    recall_new = {name: result.metrics["recall@10/new"] if enough else None for name, result in results.items()}
    return ndcg, recall_new, targets, paired_difference(results["update"], results["fit"], "ndcg@10")


def section(steps: Sequence[Step], made: str) -> str:
    """Returns a table of all steps."""
    contenders = list(steps[0].ndcg)
    rows = []
    for number, step in enumerate(steps, 1):
        ndcg = [f"{step.ndcg[name]:.4f}" for name in contenders]
        recall = ["" if (value := step.recall_new[name]) is None else f"{value:.4f}" for name in contenders]
        share = f"{step.cpu_s['update'] / step.cpu_s['fit']:.0%}"
        seconds = [f"{step.cpu_s[name]:,.0f}" for name in ("update", "fit")]
        difference = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*step.gain)
        counts = [f"{step.queries:,}", *ndcg, difference, f"{step.new_targets:,}", *recall, *seconds, share]
        rows.append([f"{number}", f"{step.events:,}", *counts])
    header = ["step", "events", "queries", *(f"ndcg@10, {name}" for name in contenders), "update minus fit"]
    header += ["targets that are new items"]
    header += [f"recall@10 of new items, {name}" for name in contenders]
    header += ["CPU s, update", "CPU s, fit", "share"]
    return "\n".join([made, "", *markdown_table(header, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--first", type=float, default=0.5, help="Share of the events that the first run has.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--out", type=Path, help="Folder of the runs; by default runs/update/SET.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument(
        "--print", dest="printed", action="store_true", help="Print the section; leave RESULTS.md alone."
    )
    options = parser.parse_args()
    out = options.out or Path("runs/update") / options.set
    if not (out / "parts" / "users.csv").is_file():
        whole = read_dataset(parse_config({"data": files_of(options.set, options.data)}).data)
        write_parts(whole, options.first, options.steps, out / "parts")
    parts = out / "parts"

    files = {"events": parts / "events-0.csv", "items": parts / "items-0.csv", "users": parts / "users.csv"}
    files = {role: path.absolute() for role, path in files.items()}
    data = DataConfig(name=options.set, **files)
    stale, seconds = timed(out / "run-0", fit_command(data, out / "run-0", options.overrides))
    print(f"first run: {seconds:,.0f} CPU seconds", file=sys.stderr)
    stale_model, before, steps = stale.load_model(), stale, []
    for number in range(1, options.steps + 1):
        made, refitted = out / f"run-{number}", out / f"fit-{number}"
        tables = ["--events", f"{parts}/events-{number}.csv", "--items", f"{parts}/items-{number}.csv"]
        command = ["update", str(before.folder), *tables, "--users", f"{parts}/users.csv", "--out", str(made)]
        update, of_update = timed(made, command)
        data = DataConfig(name=options.set, source=str((made / "data").absolute()), format="tfllmrec")
        fitted, of_fit = timed(refitted, fit_command(data, refitted, options.overrides))
        (asked, of_fitted), items = shared_queries(update, fitted), update.split.items[ITEM]
        places = pd.Index(stale.split.items[ITEM]).get_indexer(pd.Index(items))
        contenders: dict[str, tuple[Recommender, Queries]] = {
            "update": (update.load_model(), asked),
            "fit": (fitted.load_model(), of_fitted),
            "stale": (OfEarlierCatalogue(stale_model, places), asked),
            "text alone": (fit_baseline(update.training_data, "text").model, asked),
        }
        ndcg, recall_new, targets, gain = measured(contenders, update, stale.split.items[ITEM])
        counts = (len(update.dataset.events), len(asked), len(items) - len(stale.split.items), targets)
        steps.append(Step(*counts, ndcg, recall_new, {"update": of_update, "fit": of_fit}, gain))
        print(json.dumps(asdict(steps[-1])), file=sys.stderr)
        before = update
    body = section(steps, made_by(shlex.join(["python", *sys.argv]), 42))
    if not options.printed:
        replace_section(f"{options.set}: updates", body)
    print(body)


if __name__ == "__main__":
    main()

"""What updates cost and lose: a data set in steps by time, each as an update, as a full fit, and with the stale model.

    python benchmarks/update.py movielens-small --steps 10

fits a run on the first half of the events, by time (where events have none, on the first half of each user's events, by
order). Then the other half comes in equal steps. Items join the catalogue with their first event. After each step:
``update`` of the run before; a fit of the same data with the same settings; and the first run, which is not trained
again and does not know the new items. All are measured on the test queries of the update. CPU seconds are those of the
process, all threads together; no baseline is fitted. An interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from quality import SETS, files_of
from sections import made_by, replace_section

from tfllmrec.columns import EVENT_TYPES, ITEM, ITEM_INDEX, ORDER, RATING, TIMESTAMP, USER, USER_INDEX
from tfllmrec.config import DataConfig, load_config, parse_config
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.queries import Queries
from tfllmrec.data.readers import read_dataset
from tfllmrec.durable import write_text
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.regression import OfEarlierCatalogue
from tfllmrec.evaluation.report import MIN_TARGETS, markdown_table
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.runs.experiment import fit_experiment
from tfllmrec.runs.run import Run
from tfllmrec.runs.update import update_run


@dataclass(frozen=True)
class Step:
    """What came of a step: by contender, ndcg@10, recall@10 of new items (``None``: too few), and CPU seconds."""

    events: int
    queries: int
    new_items: int
    new_targets: int
    ndcg: Mapping[str, float]
    recall_new: Mapping[str, float | None]
    cpu_s: Mapping[str, float]


def parts_of(dataset: Dataset, first: float, steps: int) -> np.ndarray:
    """int ``[E]``: the part of each event, 0 to ``steps``; by time, else by its place among its user's events."""
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
    """``events-0.csv``, ``items-0.csv``, ... : the events of each part, and the items that join with it."""
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


def timed(folder: Path, make: Callable[[], Run]) -> tuple[Run, float]:
    """A run and the CPU seconds that it took, which are kept beside it.

    Those of parts that Ctrl-C or an error ended are added up; those of a part that was killed (SIGKILL) are lost.
    """
    record = folder.with_name(f"{folder.name}.cpu.json")
    before = float(json.loads(record.read_text())) if record.is_file() else 0.0
    if (run := Run(folder)).complete and record.is_file():
        return run, before
    start = time.process_time()
    try:
        run = make()
    finally:
        seconds = before + time.process_time() - start
        write_text(record, json.dumps(seconds))
    return run, seconds


def refitted(update: Run, out: Path) -> Run:
    """A fit of an update's data, with its settings, from random weights."""
    loaded = load_config(update.folder / "config.yaml", of_run=True)
    loaded.config.evaluation.baselines = []
    return fit_experiment(loaded.config, out, base=loaded.base, resume=(out / "checkpoints").is_dir())


def queries_like(run: Run, asked: Queries) -> Queries:
    """The test queries of a run of the same data that ask for the same."""
    rows = pd.Index(run.split.test.user_ids).get_indexer(pd.Index(asked.user_ids))
    same = run.split.test.take(rows)
    if (rows < 0).any() or not np.array_equal(same.targets.values, asked.targets.values):
        raise SystemExit(f"{run.folder} has other test queries than the update")
    return same


def measured(
    contenders: Mapping[str, tuple[Recommender, Queries]], update: Run, known: pd.Series
) -> tuple[dict[str, float], dict[str, float | None], int]:
    """ndcg@10, recall@10 of the items that are not among ``known``, and how many targets these are."""
    new = ~update.split.items[ITEM].isin(known).to_numpy()
    ndcg, recall_new, targets = {}, {}, 0
    for name, (model, queries) in contenders.items():
        result = evaluate(
            model, queries, train_counts=update.split.train_counts, strata={"new": new}, ks=(10,), bootstrap=0
        )
        targets = result.counts["targets/new"]
        ndcg[name] = float(result.metrics["ndcg@10"] or 0.0)
        recall_new[name] = result.metrics["recall@10/new"] if targets >= MIN_TARGETS else None
    return ndcg, recall_new, targets


def section(steps: Sequence[Step], made: str) -> str:
    """The table of all steps."""
    contenders = list(steps[0].ndcg)
    rows = []
    for number, step in enumerate(steps, 1):
        ndcg = [f"{step.ndcg[name]:.4f}" for name in contenders]
        recall = ["" if (value := step.recall_new[name]) is None else f"{value:.4f}" for name in contenders]
        share = f"{step.cpu_s['update'] / step.cpu_s['full fit']:.0%}"
        seconds = [f"{step.cpu_s[name]:,.0f}" for name in ("update", "full fit")]
        counts = [f"{step.queries:,}", *ndcg, f"{step.new_targets:,}", *recall, *seconds, share]
        rows.append([f"{number}", f"{step.events:,}", *counts])
    header = ["step", "events", "queries", *(f"ndcg@10, {name}" for name in contenders), "targets that are new items"]
    header += [f"recall@10 of new items, {name}" for name in contenders]
    header += ["CPU s, update", "CPU s, full fit", "share"]
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

    def first_fit() -> Run:
        files = {"events": parts / "events-0.csv", "items": parts / "items-0.csv", "users": parts / "users.csv"}
        data = DataConfig(name=options.set, **files).model_dump(mode="json", exclude_unset=True)
        raw = {"data": data, "evaluation": {"baselines": []}, "board": {"details": False}}
        config = parse_config(raw, options.overrides)
        return fit_experiment(config, out / "run-0", resume=(out / "run-0" / "checkpoints").is_dir())

    stale, seconds = timed(out / "run-0", first_fit)
    print(f"first run: {seconds:,.0f} CPU seconds", file=sys.stderr)
    stale_model, before, steps = stale.load_model(), stale, []
    for number in range(1, options.steps + 1):
        folder, tables = out / f"run-{number}", (parts / f"events-{number}.csv", parts / f"items-{number}.csv")
        update, of_update = timed(
            folder, lambda b=before, t=tables, f=folder: update_run(b.folder, *t, parts / "users.csv", f)
        )  # fmt: skip
        fitted, of_fit = timed(
            out / f"fit-{number}", lambda u=update, f=out / f"fit-{number}": refitted(u, f)
        )  # fmt: skip
        asked, items = update.split.test, update.split.items[ITEM]
        places = pd.Index(stale.split.items[ITEM]).get_indexer(pd.Index(items))
        contenders: dict[str, tuple[Recommender, Queries]] = {
            "update": (update.load_model(), asked),
            "full fit": (fitted.load_model(), queries_like(fitted, asked)),
            "stale": (OfEarlierCatalogue(stale_model, places), asked),
            "text alone": (fit_baseline(update.training_data, "text").model, asked),
        }
        ndcg, recall_new, targets = measured(contenders, update, stale.split.items[ITEM])
        counts = (len(update.dataset.events), len(asked), len(items) - len(stale.split.items), targets)
        steps.append(Step(*counts, ndcg, recall_new, {"update": of_update, "full fit": of_fit}))
        print(json.dumps(asdict(steps[-1])), file=sys.stderr)
        before = update
    body = section(steps, made_by(shlex.join(["python", *sys.argv]), 42))
    if not options.printed:
        replace_section(f"{options.set}: updates", body)
    print(body)


if __name__ == "__main__":
    main()

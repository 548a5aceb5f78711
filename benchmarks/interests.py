"""Measures how well users' interests predict the labels of the next item; writes a section of RESULTS.md for each run.

    python benchmarks/interests.py runs/quality/beauty runs/quality/movielens-100k

The lists of labels are those of the served signature: labels of the learned forecast, and labels counted in the
history. Each is compared with the labels of the test queries' targets. If a run has no forecast, one is trained first;
the run itself is not changed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from sections import made_by, replace_section

from tfllmrec.columns import TITLE
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.evaluation.protocol import mean_interval, users_of
from tfllmrec.models.interests import Interests, LabelForecast
from tfllmrec.models.servable import Servable
from tfllmrec.runs.labels import labels_of_run
from tfllmrec.runs.run import INTERESTS, Run
from tfllmrec.training.interests import (
    FORECAST,
    REMEDY,
    InterestRecord,
    LabelFigures,
    fit_forecast,
    label_figures,
    listed,
    recommended_items,
    targets_of,
)

K = 5
USERS = 20  # number of users whose labels are shown
FIGURES = {"precision": f"precision@{K}", "recall": f"recall@{K}", "specific": f"recall@{K} of specific labels"}
LEARNED, COUNTED, NAMES, LAST, FREQUENT = (
    "learned", "as counted in the history", "names alone (categories, authors), as counted",
    "of the last item only, as counted", "the most frequent of the catalogue",
)  # fmt: skip


def last_only(queries: Queries) -> Queries:
    last = np.array([row[-1:] for row in queries.history], object)
    history = Ragged.from_rows(last, np.int64)
    ratings = Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets)
    return replace(queries, history=history, fields={RATING_KEY: ratings})


def named_only(found: Interests) -> Interests:
    """Returns the interests with only the labels that are names in the catalogue, such as categories; no phrases."""
    named = np.append(found.named, False)[found.columns]
    return replace(
        found,
        columns=np.where(named, found.columns, len(found.labels)).astype(np.int32),
        weights=np.where(named, found.weights, 0).astype(np.float32),
    )


def cells_of(figures: LabelFigures, learned: LabelFigures, users: np.ndarray) -> list[str]:
    """Returns a row's means, and how much higher those of ``learned`` are, with the paired 95 % interval over users."""
    cells = []
    for name in FIGURES:
        values = getattr(figures, name)
        cell = f"{values.mean():.4f}"
        if figures is not learned:
            gain = getattr(learned, name) - values
            interval = mean_interval(gain, users)
            between = "no interval" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
            cell += f" ({gain.mean():+.4f}, {between})"
        cells.append(cell)
    return cells


def shown(run: Run, found: Interests, queries: Queries, lists: np.ndarray | None, counted: np.ndarray) -> str:
    """Returns a table of the labels of a few users, with the titles of their newest items and of the next item.

    Args:
      run: The run.
      found: The interests.
      queries: The queries.
      lists: The learned labels of each query; ``None`` if there is no forecast.
      counted: The labels counted in the history of each query.
    """
    items, names = run.split.items, np.append(found.labels, "")
    titles = items[TITLE] if TITLE in items else items["item_id"]
    heads = ["newest items", *([] if lists is None else ["learned"]), "as counted", "next item"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]

    def said(texts: list[str]) -> str:
        return "; ".join(text.replace("|", "/") for text in texts if text)

    for row in evenly_spread(len(queries), USERS):
        newest = [f"{str(titles.iloc[item])[:40]}" for item in queries.history[row][-3:]]
        target = [f"{str(titles.iloc[item])[:40]}" for item in queries.targets[row][:1]]
        cells = (newest, *(list(names[some[row]]) for some in (lists, counted) if some is not None), target)
        lines.append(f"| {' | '.join(map(said, cells))} |")
    return "\n".join(lines)


def learned_of(run: Run, found: Interests, hybrid: Servable) -> tuple[LabelForecast | None, InterestRecord | None]:
    """Returns the run's forecast, even an unused one, or trains one; ``None`` if there is too little data."""
    folder = run.folder / INTERESTS
    if (folder / FORECAST).is_file():
        return LabelForecast.load(folder / FORECAST, REMEDY), InterestRecord.load(folder)
    split = run.split
    return fit_forecast(found, split.train_queries(), split.validation, hybrid, run.config.seed) or (None, None)


def section(run: Run, command: str) -> str:
    found = labels_of_run(run, run.split.items, lambda line: None)
    if found is None:
        return f"{command}\n\nThe catalogue's words make no label."
    hybrid = run.load_model()
    forecast, record = learned_of(run, found, hybrid)
    test, wanted = run.split.test, targets_of(found, run.split.test)
    asked = np.flatnonzero(np.diff(wanted.indptr))
    test, wanted = test.take(asked), wanted[asked]
    items, scores = recommended_items(hybrid, test)
    counts = np.bincount(found.columns.ravel(), minlength=len(found.labels) + 1)[:-1]
    frequent = np.argsort(-counts, kind="stable")[:K]
    frequent = np.pad(frequent, (0, K - len(frequent)), constant_values=len(found.labels))
    lists = {
        LEARNED: listed(found, forecast, test, items, scores, K),
        COUNTED: listed(found, None, test, items, scores, K),
        NAMES: listed(named_only(found), None, test, items, scores, K),
        LAST: listed(found, None, last_only(test), items, scores, K),
        FREQUENT: np.tile(frequent, (len(test), 1)),
    }
    if not found.named.any():
        del lists[NAMES]
    if forecast is None:
        del lists[LEARNED]
    figures = {name: label_figures(found, some, wanted) for name, some in lists.items()}
    first, users = next(iter(figures.values())), users_of(test.user_ids)
    table = "\n".join(
        [
            f"| | {' | '.join(FIGURES.values())} |",
            "|---|---:|---:|---:|",
            *(f"| {name} | {' | '.join(cells_of(some, first, users))} |" for name, some in figures.items()),
        ]
    )
    without = (found.columns[:, 0] == len(found.labels)).mean()
    per_item, n_test = np.sum(found.weights > 0) / len(found.weights), len(run.split.test)
    chosen = (
        f"{len(found.labels):,} labels, {int(found.named.sum()):,} of them names that the catalogue gives, "
        f"{int(found.broad.sum()):,} broad; an item has {per_item:.1f} on average, {100 * without:.1f} % of the "
        f"items have none. {len(test):,} of {n_test:,} test queries have a target with labels; the others are left "
        "out. In the third column a label counts by its inverse document frequency. In parentheses: how much higher "
        "the first row is, and the 95 % interval of the difference, paired over users."
    )
    learned = "Too few validation queries to learn from."
    if record is not None:
        learned = f"Learned in {record.seconds:.0f} s from {record.events:,} events: {record.line()}."
    examples = shown(run, found, test, lists.get(LEARNED), lists[COUNTED])
    return f"{command}\n\n{chosen}\n\n{table}\n\n{learned}\n\nThe labels of {USERS} users:\n\n{examples}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Complete run folders.")
    for folder in parser.parse_args().runs:
        body = section(Run.open(folder), made_by(shlex.join(["python", *sys.argv])))
        replace_section(f"interests: {folder.resolve().name}", body)
        print(f"{folder.resolve().name}\n{body}\n", flush=True)


if __name__ == "__main__":
    main()

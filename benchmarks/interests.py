"""Do a person's interests foretell what the next item is about? A section of RESULTS.md for each run.

    python benchmarks/interests.py runs/quality/beauty runs/quality/movielens-100k

Labels are chosen from training events; the lists are those of the served signature, compared with the labels of the
items that were held out. Nothing is trained.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import tensorflow as tf
from sections import made_by, replace_section

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.models.interests import LIKING, Interests
from tfllmrec.runs.run import Run
from tfllmrec.serving.export import labels_of_run

K, BATCH = 5, 256
DECAYS, LIKINGS = (1.0, 0.95, 0.9, 0.8, 0.6), (0.0, 0.25, 0.5, 1.0)
SHOWN = 3000  # validation queries


@dataclass(frozen=True)
class Figures:
    """Of a way to list labels, over the queries whose target has any.

    ``specific`` is the recall in which a label counts by its inverse document frequency.
    """

    precision: np.ndarray
    recall: np.ndarray
    specific: np.ndarray
    mean_share: float

    def cells(self) -> list[str]:
        def cell(values: np.ndarray) -> str:
            return f"{values.mean():.4f} ± {1.96 * values.std() / np.sqrt(len(values)):.4f}"

        return [cell(self.precision), cell(self.recall), cell(self.specific), f"{100 * self.mean_share:.1f} %"]


def targets_of(found: Interests, queries: Queries) -> np.ndarray:
    """Which labels the held-out items of each query have: bool ``[B, C]``."""
    n, c = len(found.columns), len(found.labels)
    has = sp.csr_array(
        (np.ones(found.columns.size), (np.arange(n).repeat(found.columns.shape[1]), found.columns.ravel())), (n, c + 1)
    )
    held = sp.csr_array(
        (np.ones(len(queries.targets.values)), (queries.targets.row_of_value, queries.targets.values)),
        (len(queries), n),
    )
    return (held @ has).toarray()[:, :c] > 0


def lists_of(found: Interests, queries: Queries) -> np.ndarray:
    """The labels of each person, int ``[B, K]``, padded with C, as the exported model answers."""
    profile = InterestProfile(found.columns, found.weights, len(found.labels), found.decay, found.liking, found.spread)
    rows = []
    for batch in queries.batches(BATCH):
        inputs = batch.inputs(profile.n_items, [RATING_KEY])
        rows.append(profile(inputs["history"], inputs[RATING_KEY], tf.constant([K]))[0].numpy())
    return np.concatenate(rows)


def figures(found: Interests, lists: np.ndarray, wanted: np.ndarray) -> Figures:
    share = np.bincount(found.columns.ravel(), minlength=len(found.labels) + 1) / len(found.columns)
    specificity = np.append(-np.log(np.maximum(share[:-1], 1 / len(found.columns))), 0.0)
    wanted = np.pad(wanted, ((0, 0), (0, 1)))
    asked = wanted.any(axis=1)
    lists, wanted = lists[asked], wanted[asked]
    hit = np.take_along_axis(wanted, lists, axis=1)
    return Figures(
        hit.sum(axis=1) / K,
        hit.sum(axis=1) / wanted.sum(axis=1),
        (hit * specificity[lists]).sum(axis=1) / (wanted @ specificity),
        float(share[lists[lists < len(found.labels)]].mean()),
    )


def last_only(queries: Queries) -> Queries:
    last = np.array([row[-1:] for row in queries.history], object)
    history = Ragged.from_rows(last, np.int64)
    ratings = Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets)
    return replace(queries, history=history, fields={RATING_KEY: ratings})


def named_only(found: Interests) -> Interests:
    """With the names that the catalogue gives, such as categories, and no phrase."""
    named = np.append(found.named, False)[found.columns]
    return replace(
        found,
        columns=np.where(named, found.columns, len(found.labels)).astype(np.int32),
        weights=np.where(named, found.weights, 0).astype(np.float32),
    )


def section(run: Run, command: str) -> str:
    started = time.process_time()
    found = labels_of_run(run, run.split.items, lambda line: None)
    seconds = time.process_time() - started
    if found is None:
        return f"{command}\n\nThe catalogue's words make no label."
    validation = run.split.validation
    validation = validation.take(evenly_spread(len(validation), SHOWN))
    wanted = targets_of(found, validation)

    def tried(**settings: float) -> str:
        made = figures(found, lists_of(replace(found, **settings), validation), wanted)
        return f"{made.specific.mean():.4f}"

    decays = ", ".join(f"{decay:g} {tried(decay=decay)}" for decay in DECAYS)
    likings = ", ".join(f"{liking:g} {tried(liking=liking)}" for liking in LIKINGS)

    test = run.split.test
    wanted = targets_of(found, test)
    frequent = np.argsort(-np.bincount(found.columns.ravel(), minlength=len(found.labels) + 1)[:-1], kind="stable")[:K]
    rows = {
        "interests": lists_of(found, test),
        "names alone (categories, authors)": lists_of(named_only(found), test),
        "of the last item only": lists_of(found, last_only(test)),
        "the most frequent of the catalogue": np.tile(frequent, (len(test), 1)),
    }
    if not found.named.any():
        del rows["names alone (categories, authors)"]
    lines = [f"| {name} | {' | '.join(figures(found, lists, wanted).cells())} |" for name, lists in rows.items()]
    without = (found.columns[:, 0] == len(found.labels)).mean()
    table = "\n".join(
        [
            f"| | precision@{K} | recall@{K} | recall@{K} of what is specific | items that share a label listed |",
            "|---|---:|---:|---:|---:|",
            *lines,
        ]
    )
    chosen = (
        f"{len(found.labels):,} labels, {int(found.named.sum()):,} of them names that the catalogue gives, chosen in "
        f"{seconds:.1f} CPU s; {np.sum(found.weights > 0) / len(found.weights):.1f} of an item on the mean, none of "
        f"{100 * without:.1f} %. {int(wanted.any(axis=1).sum()):,} of {len(test):,} test queries have a target with "
        "labels; the others are left out. In the third column a label counts by its inverse document frequency."
    )
    settings = f"That column on validation, by decay (export takes {found.decay:g}): {decays}."
    if found.spread:
        settings += f" By liking (export takes {LIKING:g}): {likings}."
    return f"{command}\n\n{chosen}\n\n{table}\n\n{settings}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Complete run folders.")
    for folder in parser.parse_args().runs:
        body = section(Run.open(folder), made_by(shlex.join(["python", *sys.argv])))
        replace_section(f"interests: {folder.resolve().name}", body)
        print(f"{folder.resolve().name}\n{body}\n", flush=True)


if __name__ == "__main__":
    main()

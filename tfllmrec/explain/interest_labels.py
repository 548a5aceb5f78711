"""How the labels of interests that are listed for a user go with the labels of the next item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from tfllmrec.data.sampling import evenly_spread

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.progress import Tell
    from tfllmrec.runs.run import Run

#: Labels that are told apart, the most frequent ones of the next items; all others are one.
SHOWN, OTHER = 11, "other"
#: Test queries that are looked at, at most, and labels that are listed for each.
QUERIES, LISTED = 2_000, 5


def label_confusion(run: Run, hybrid: Hybrid, tell: Tell) -> tuple[np.ndarray, list[str]] | None:
    """Counts of test queries by the label of the next item and the label that is listed first; see :func:`confusion`.

    Returns:
      int64 ``[C, C]``, and the labels of the rows and columns; ``None`` where the run has learned no labels.

    Raises:
      ModelError: the run's folder of interests is damaged.
    """
    from tfllmrec.runs.labels import labels_of_run
    from tfllmrec.training.interests import listed, recommended_items, targets_of

    forecast = run.load_label_forecast()
    found = None if forecast is None else labels_of_run(run, run.split.items, tell)
    if found is None:
        return None
    queries = run.split.test.take(evenly_spread(len(run.split.test), QUERIES))
    lists = listed(found, forecast, queries, *recommended_items(hybrid, queries), LISTED)
    return confusion(lists, targets_of(found, queries), [str(label) for label in found.labels])


def confusion(lists: np.ndarray, wanted: sp.csr_array, labels: list[str]) -> tuple[np.ndarray, list[str]]:
    """Counts of queries whose held-out item has a label: a row for its label, a column for the label listed first.

    Only the most frequent labels of next items are told apart. The column is the first listed label that is one of
    them, the row is the same label if the next item has it, else the label with the largest weight.

    Args:
      lists: int ``[B, K]``, padded with C. wanted: float ``[B, C]``, the weights of the labels of the next items.
      labels: of the C columns.
    """
    often = np.bincount(wanted.indices, minlength=len(labels))
    shown = np.argsort(-often, kind="stable")[:SHOWN]
    shown = shown[often[shown] > 0]
    place = np.full(len(labels) + 1, len(shown))
    place[shown] = np.arange(len(shown))
    counts = np.zeros((len(shown) + 1, len(shown) + 1), np.int64)
    for query, row in enumerate(lists):
        own = slice(wanted.indptr[query], wanted.indptr[query + 1])
        weights = dict(zip(place[wanted.indices[own]].tolist(), wanted.data[own].tolist(), strict=True))
        if not weights:
            continue
        told = [at for at in place[row].tolist() if at < len(shown)]
        column = told[0] if told else len(shown)
        known = {at: weight for at, weight in weights.items() if at < len(shown)}
        best = max(known, key=known.__getitem__) if known else len(shown)
        counts[column if column in known else best, column] += 1
    return counts, [*(labels[at] for at in shown), OTHER]

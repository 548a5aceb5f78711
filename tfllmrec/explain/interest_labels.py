"""Compares the interest labels listed for a user with the labels of the user's next item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from tfllmrec.data.sampling import evenly_spread

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.progress import Tell
    from tfllmrec.runs.run import Run

#: The number of labels that are distinguished, the most frequent ones of the next items, and the name of all others.
SHOWN, OTHER = 11, "other"
#: The maximum number of test queries, and of labels that are listed for each.
QUERIES, LISTED = 2_000, 5


def label_confusion(run: Run, hybrid: Hybrid, tell: Tell) -> tuple[np.ndarray, list[str]] | None:
    """Counts test queries by the label of the next item and the first listed label; see :func:`confusion`.

    Returns:
      Int64 ``[C, C]``, and the labels of the rows and columns; ``None`` if the run has learned no labels.

    Raises:
      ModelError: The run's folder of interests is damaged.
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
    """Counts queries whose held-out item has a label: rows are the labels of the item, columns the first listed labels.

    Only the most frequent labels of next items are distinguished. The column is the first listed label that is one of
    them; the row is the same label if the next item has it, else the item's label with the largest weight.

    Args:
      lists: Int ``[B, K]``, the listed labels, padded with C.
      wanted: Float ``[B, C]``, the weights of the labels of the next items.
      labels: The names of the C labels.

    Returns:
      The counts, int64, and the labels of the rows and columns.
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

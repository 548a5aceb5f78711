"""Finds the labels of a run's items, which its interests and its exports use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfllmrec.columns import CATEGORIES
from tfllmrec.models.interests import Interests, fit_interests
from tfllmrec.progress import Tell, show_progress
from tfllmrec.text.template import ItemTemplate

if TYPE_CHECKING:
    import pandas as pd

    from tfllmrec.data.queries import Queries
    from tfllmrec.runs.run import Run

LABELS = "labels.npz"


def labels_of_run(run: Run, items: pd.DataFrame, tell: Tell) -> Interests | None:
    """Finds labels of interests for ``items``, in the columns that the run's template reads and in their categories.

    Those of the run's own items are loaded from the run if :func:`store_labels` has stored them.

    Args:
      run: A run whose template is resolved, as it is after the texts were encoded.
      items: ``run.split.items``, or a table with new items at its end or with other texts.
      tell: Called with a line on the number of labels, if they have to be found.

    Returns:
      The labels; ``None`` if no word of the columns is suitable as a label.

    Raises:
      ModelError: The stored labels are damaged.
    """
    stored = run.folder / LABELS
    if items is run.split.items and stored.is_file():
        return Interests.load(stored, f"delete {stored}, and the labels are found again")
    template = run.config.text.template
    read = [] if template is None else ItemTemplate(template).columns
    columns = list(dict.fromkeys([*read, *([CATEGORIES] if CATEGORIES in items else [])]))
    return choose_labels(items, columns, run.split.train_queries(), run.dataset.ordered, tell)


def store_labels(run: Run, tell: Tell) -> Interests | None:
    """Returns the labels of the run's items, and stores them in the run.

    Raises:
      ModelError: The stored labels are damaged.
      WriteError: The labels cannot be written.
    """
    labels = labels_of_run(run, run.split.items, tell)
    if labels is not None and not (run.folder / LABELS).is_file():
        labels.save(run.folder / LABELS)
    return labels


def choose_labels(
    items: pd.DataFrame, columns: Sequence[str], histories: Queries, ordered: bool, tell: Tell
) -> Interests | None:
    """Runs :func:`fit_interests` with a progress bar, and reports how many labels were found."""
    with show_progress("Choosing labels of interests", "phrases") as progress:
        labels = fit_interests(items, columns, histories, ordered=ordered, progress=progress)
    if labels is not None:
        without = int((labels.columns[:, 0] == len(labels.labels)).sum())
        tell(f"interests: {len(labels.labels):,} labels; {without:,} of {len(items):,} items have none")
    return labels

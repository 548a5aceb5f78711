"""Training data without a data set behind them."""

from types import SimpleNamespace

import numpy as np

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import Schema
from tfllmrec.models.fitting import TrainingData


def training_data(
    histories: Ragged, n_items: int, validation=None, text=None, strata=None, seed=42, fields=None, schema=()
) -> TrainingData:
    """What baselines look at: histories of item indices, and validation queries (none by default)."""
    counts = np.bincount(histories.values, minlength=n_items)
    split = SimpleNamespace(
        train_queries=lambda: SimpleNamespace(history=histories, choices=histories, weights=None, fields=fields or {}),
        schema=schema or Schema(),
        train_counts=counts,
        validation=Queries.from_histories([]) if validation is None else validation,
        strata=lambda share: strata or {},
        dataset=SimpleNamespace(n_items=n_items, ordered=True, repeats=False),
    )
    return TrainingData(split, np.zeros((n_items, 1), np.float32) if text is None else text, seed=seed)

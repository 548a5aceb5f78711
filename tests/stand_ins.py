"""Training data without a data set behind them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from tfllmrec.columns import DOMAIN, TIMESTAMP
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import Schema
from tfllmrec.models.fitting import TrainingData


def halves(n_items: int) -> pd.DataFrame:
    """An items table of two domains: the first half of the items, and the others."""
    return pd.DataFrame({DOMAIN: np.where(np.arange(n_items) < n_items // 2, "a", "b")})


def training_data(
    histories: Ragged,
    n_items: int,
    validation=None,
    text=None,
    strata=None,
    seed=42,
    fields=None,
    schema=(),
    times=None,
    ordered=True,
) -> TrainingData:
    """What baselines look at: histories of item indices, and validation queries (none by default).

    ``times``: seconds of all events; by default unknown.
    """
    counts = np.bincount(histories.values, minlength=n_items)
    split = SimpleNamespace(
        train_queries=lambda: SimpleNamespace(history=histories, choices=histories, weights=None, fields=fields or {}),
        train=pd.DataFrame({TIMESTAMP: np.full(len(histories.values), np.nan) if times is None else times}),
        schema=schema or Schema(),
        train_counts=counts,
        validation=Queries.from_histories([]) if validation is None else validation,
        strata=lambda share: strata or {},
        dataset=SimpleNamespace(n_items=n_items, ordered=ordered, repeats=False, items=halves(n_items)),
    )
    return TrainingData(split, np.zeros((n_items, 1), np.float32) if text is None else text, seed=seed)

"""Makes training data without a data set, and data of two planted domains."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd

from tfllmrec.columns import DOMAIN, TIMESTAMP
from tfllmrec.config import DataConfig, ExperimentConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.domains import join_datasets
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import Field, Schema
from tfllmrec.models.fitting import TrainingData


def halves(n_items: int) -> pd.DataFrame:
    """Returns an items table in which the first half of the items is in one domain and the second half in another."""
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
    """Returns training data with the attributes that baselines read.

    Args:
      histories: Histories of item indices.
      n_items: The number of items.
      validation: Validation queries; none by default.
      text: The text vectors of the items; by default zeros.
      strata: The strata of the items.
      seed: The seed.
      fields: The fields of the training queries.
      schema: The schema of the fields.
      times: The times of all events in seconds; by default unknown.
      ordered: Whether the order of events has a meaning.
    """
    counts = np.bincount(histories.values, minlength=n_items)
    split = SimpleNamespace(
        train_queries=lambda: SimpleNamespace(history=histories, choices=histories, weights=None, fields=fields or {}),
        train=pd.DataFrame({TIMESTAMP: np.full(len(histories.values), np.nan) if times is None else times}),
        schema=schema or Schema((Field(DOMAIN, "event", "category", ("a", "b")),)),
        train_counts=counts,
        validation=Queries.from_histories([]) if validation is None else validation,
        strata=lambda share: strata or {},
        dataset=SimpleNamespace(n_items=n_items, ordered=ordered, repeats=False, items=halves(n_items)),
    )
    return TrainingData(split, np.zeros((n_items, 1), np.float32) if text is None else text, seed=seed)


TASTES, ITEMS = 4, 10  # ITEMS: number of items of each taste in each domain


def _domain(name, users, tastes, rng):
    rows = [
        (user, taste * ITEMS + item)
        for user, taste in zip(users, tastes, strict=True)
        for item in rng.choice(ITEMS, 5, replace=False)
    ]
    frame = pd.DataFrame(rows, columns=["user", "item"]).assign(order=range(len(rows)))
    items = pd.DataFrame({"item": range(TASTES * ITEMS), "title": [f"taste {i // ITEMS}" for i in range(40)]})
    return dataset_from_frames(frame, items, config=DataConfig(name=name))


@cache
def two_domains(same_taste=True, seed=0) -> TrainingData:
    """Returns training data of books and films, with films as the target domain of the split.

    120 users have both, with the same taste unless ``same_taste`` is off; 40 more users have only films.
    """
    rng = np.random.default_rng(seed)
    users = [f"u{i}" for i in range(120)]
    books = rng.integers(0, TASTES, 120)
    films = books if same_taste else rng.permutation(books)
    alone = [f"f{i}" for i in range(40)]
    data = {
        "books": _domain("books", users, books, rng),
        "films": _domain("films", users + alone, [*films, *rng.integers(0, TASTES, 40)], rng),
    }
    config = SplitConfig(kind="cold_domain", domain="films", validation_share=0.2, test_share=0.2)
    split = make_split(join_datasets(data), config, seed)
    of_taste = rng.normal(size=(TASTES, 8))
    text = np.vstack([of_taste[np.arange(TASTES * ITEMS) // ITEMS]] * 2) + rng.normal(scale=0.1, size=(80, 8))
    return TrainingData.of(split, text.astype(np.float32), ExperimentConfig(seed=seed))

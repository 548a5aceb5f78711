"""Code shared by all examples: arguments, data, a text tower of the catalogue, and a comparison with popularity."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tfllmrec  # before tensorflow: it selects Keras 2

# isort: split
import numpy as np
import pandas as pd
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import scoreboard
from tfllmrec.models.baselines import Popularity
from tfllmrec.models.ranking import USER_SHRINKAGE, RatingScale


def arguments(description: str | None, epochs: int) -> argparse.ArgumentParser:
    """Returns a parser with the options of all examples; ``epochs`` is the default of ``--epochs``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="movielens-100k", help="a folder, or the name of a registered data set")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--encoder", default="minilm", help="minilm, or the TF Hub handle of a BERT encoder")
    parser.add_argument("--preprocessor", help="the handle of the encoder's preprocessor; minilm has its own")
    parser.add_argument("--logs", type=Path, help="write TensorBoard logs to this folder")
    return parser


def read(args: argparse.Namespace) -> Split:
    """Reads the data, with the last event of each user as the test target. Sets all seeds."""
    tf.keras.utils.set_random_seed(42)
    dataset = tfllmrec.read_dataset(tfllmrec.DataConfig(source=args.data))
    return tfllmrec.make_split(dataset, tfllmrec.SplitConfig(), seed=42)


def text_tower(args: argparse.Namespace, split: Split, **settings: Any) -> tfllmrec.TextTower:
    """Returns a tower that takes item indices and encodes titles, categories and other text of the items."""
    texts = tfllmrec.ItemTemplate.from_items(split.items).texts(split.items)
    return tfllmrec.TextTower(args.encoder, args.preprocessor, texts=texts, **settings)


def shuffled(columns: Mapping[str, np.ndarray], batch_size: int = 1024) -> tf.data.Dataset:
    """Returns batches of rows of ``columns``, in a new order each epoch."""
    rows = len(next(iter(columns.values())))
    return tf.data.Dataset.from_tensor_slices(dict(columns)).shuffle(rows, seed=42).batch(batch_size)


def callbacks(args: argparse.Namespace, name: str) -> list[tf.keras.callbacks.Callback]:
    """Returns the TensorBoard callback if ``--logs`` is given."""
    return [tf.keras.callbacks.TensorBoard(str(args.logs / name))] if args.logs else []


def held_out(split: Split) -> pd.DataFrame:
    """Returns the target event of each test query, one row per query, with its rating and time."""
    users = pd.Index(split.dataset.users["user_id"]).get_indexer(pd.Index(split.test.user_ids))
    asked = pd.DataFrame({"user_index": users, "item_index": split.test.targets.values})
    return asked.merge(split.dataset.events, how="left", on=["user_index", "item_index"])


def measured(split: Split, recommenders: Mapping[str, Recommender]) -> dict[str, Result]:
    """Evaluates recommenders and popularity on the test queries: the whole catalogue, without items of the history."""
    without_text = np.zeros((split.dataset.n_items, 1), np.float32)
    popularity = Popularity().fit(tfllmrec.TrainingData(split, without_text))
    return {
        name: tfllmrec.evaluate(
            recommender, split.test, train_counts=split.train_counts, strata=split.strata(), bootstrap=200
        )
        for name, recommender in {"popularity": popularity, **recommenders}.items()
    }


def by_biases(split: Split, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Predicts ratings of (user, item) pairs by the overall mean and the biases of item and user: the RMSE baseline."""
    scale = RatingScale.of_split(split)
    assert scale is not None, "this example needs ratings"
    user, item = (split.train[column].to_numpy() for column in ("user_index", "item_index"))
    rest = np.nan_to_num(split.train["rating"].to_numpy() - scale.mean - scale.item_bias[item])
    counts = np.bincount(user, minlength=split.dataset.n_users) + USER_SHRINKAGE
    user_bias = np.bincount(user, rest, split.dataset.n_users) / counts
    return scale.mean + scale.item_bias[items] + user_bias[users]


def rmse(predicted: np.ndarray, ratings: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predicted - ratings) ** 2)))


def show(title: str, results: Mapping[str, Result]) -> None:
    """Prints the scoreboard of ``results``."""
    Console().print(scoreboard(results, title))


def show_table(figures: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a table of further figures, given by row and column."""
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    table = Table("", *columns, box=box.SIMPLE_HEAD)
    for name, row in figures.items():
        table.add_row(name, *(_figure(row[column]) if column in row else "" for column in columns))
    Console().print(table)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

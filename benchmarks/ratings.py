"""Compares rating prediction with biases, matrix factorization and boosted trees; writes a section of RESULTS.md.

    python benchmarks/ratings.py movielens-100k --seeds 42 1 2
    python benchmarks/ratings.py movielens-1m --seeds 42 1 2

MovieLens 100K: the test ratings are the first 20,000 lines of ``u.data`` (the split u1). MovieLens 1M: the test ratings
are a tenth of all ratings, drawn at random with each seed. All contenders are trained on the same rows, and choose
their settings on a tenth of these. LightGBM and YDF take part if they are installed (``pip install lightgbm ydf``).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from sections import made_by, replace_section

from tfllmrec.columns import ITEM_INDEX, RATING, TEST_EVENT, USER_INDEX
from tfllmrec.config import DataConfig, TextConfig
from tfllmrec.data import Dataset, Ragged, dataset_from_frames, read_dataset
from tfllmrec.evaluation.protocol import mean_interval
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.models.rating_factors import fit_rating_factors

OURS = "rating factors"
#: Published RMSEs by data set and model, with what differs from the measurement here. Each figure is from the named
#: repository.
PUBLISHED = {
    "movielens-100k": {"GLocal-K, best epoch on the test (usydnlp/Glocal_K)": 0.8889},
    "movielens-1m": {
        "GLocal-K, best epoch on the test, another draw (usydnlp/Glocal_K)": 0.8227,
        "I-AutoRec, another draw (usydnlp/Glocal_K)": 0.831,
        "BiasedMF, another draw (usydnlp/Glocal_K)": 0.845,
    },
}
#: The ranks and penalties of alternating least squares that are tried on held-out ratings, and its number of rounds.
RANKS, PENALTIES, ROUNDS = (8, 16), (0.03, 0.06, 0.12), 12
TREES, TREE_PATIENCE = 1000, 30


@dataclass(frozen=True)
class Ratings:
    """Ratings of items by users.

    Attributes:
      users: The indices of the users, ``[E]``.
      items: The indices of the items, ``[E]``.
      ratings: The ratings, ``[E]``.
      n_users: The number of users.
      text: The text vectors of all items.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    n_users: int
    text: np.ndarray

    @property
    def n_items(self) -> int:
        return len(self.text)

    def take(self, rows: np.ndarray) -> Ratings:
        return Ratings(self.users[rows], self.items[rows], self.ratings[rows], self.n_users, self.text)

    def divided(self, seed: int) -> tuple[Ratings, Ratings]:
        """Returns nine tenths for training, and a tenth on which settings are chosen."""
        held_out = np.random.default_rng(seed).random(len(self.ratings)) < 0.1
        return self.take(~held_out), self.take(held_out)


Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


def ours(train: Ratings, seed: int, text: bool = True) -> Predict:
    """Fits the package's rating factors; the vectors of users are solved from their training ratings, as in serving."""
    model = fit_rating_factors(
        train.users, train.items, train.ratings, train.n_items, train.text if text else None, seed=seed
    )
    order = np.argsort(train.users, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(train.users, minlength=train.n_users))])
    of_users = model.users(Ragged(train.items[order], offsets), Ragged(train.ratings[order], offsets))

    def predict(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        own, vectors = of_users[users], model.item_factors[items]
        return model.mean + own[:, 0] + model.item_bias[items] + np.einsum("ed,ed->e", own[:, 1:], vectors)

    return predict


def biases(train: Ratings, seed: int) -> Predict:
    """Fits biases of items and users alternately as shrunk means, with a penalty that is chosen on held-out ratings."""

    def fitted(rows: Ratings, penalty: float) -> Predict:
        mean = rows.ratings.mean()

        def shrunk(of: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
            return np.bincount(of, values, n) / (np.bincount(of, minlength=n) + penalty)

        user, item = np.zeros(rows.n_users), np.zeros(rows.n_items)
        for _ in range(10):
            item = shrunk(rows.items, rows.ratings - mean - user[rows.users], rows.n_items)
            user = shrunk(rows.users, rows.ratings - mean - item[rows.items], rows.n_users)
        return lambda users, items: mean + user[users] + item[items]

    kept, held_out = train.divided(seed)
    best = min((1.0, 3.0, 5.0, 10.0), key=lambda penalty: error(fitted(kept, penalty), held_out))
    return fitted(train, best)


def factorization(train: Ratings, seed: int) -> Predict:
    """Fits biased matrix factorization by alternating least squares, with penalties times rating counts (ALS-WR)."""

    def fitted(rows: Ratings, rank: int, penalty: float) -> Predict:
        generator, mean = np.random.default_rng(seed), rows.ratings.mean()
        place = rows.users, rows.items
        shape = rows.n_users, rows.n_items
        there = sparse.csr_array((np.ones(len(rows.ratings)), place), shape=shape)
        above = sparse.csr_array((rows.ratings - mean, place), shape=shape)
        sides = [0.1 * generator.normal(size=(n, rank + 2)) for n in shape]
        for bias, side in enumerate(sides):  # columns 0 and 1: bias of users and of items, else 1
            side[:, bias], side[:, 1 - bias] = 0.0, 1.0
        for _ in range(ROUNDS):
            for bias, (known, value) in enumerate([(there, above), (there.T.tocsr(), above.T.tocsr())]):
                side, other = sides[bias], sides[1 - bias]
                free = np.concatenate([[bias], np.arange(2, rank + 2)])
                outer = (other[:, :, np.newaxis] * other[:, np.newaxis]).reshape(len(other), -1)
                square = (known @ outer).reshape(len(side), rank + 2, rank + 2)
                weight = penalty * np.maximum(known.sum(axis=1), 1)
                left = square[:, free][:, :, free] + weight[:, np.newaxis, np.newaxis] * np.eye(rank + 1)
                right = (value @ other)[:, free] - square[:, free, 1 - bias]
                side[:, free] = np.linalg.solve(left, right[..., np.newaxis])[..., 0]
        return lambda users, items: mean + np.einsum("ek,ek->e", sides[0][users], sides[1][items])

    kept, held_out = train.divided(seed)
    tried = [(rank, penalty) for rank in RANKS for penalty in PENALTIES]
    return fitted(train, *min(tried, key=lambda settings: error(fitted(kept, *settings), held_out)))


class Columns:
    """The features of a rating for trees: shrunk means, counts, ids, and principal components of the item's text.

    The means and counts of training ratings are those of the nine other folds: a mean that leaves out only the rating
    itself would reveal it.
    """

    def __init__(self, rows: Ratings, seed: int) -> None:
        self.rows, self.mean, self.folds = rows, rows.ratings.mean(), 10
        self.fold = np.random.default_rng(seed).integers(self.folds, size=len(rows.ratings))
        self.sums, self.counts = [], []
        for of, n in ((rows.users, rows.n_users), (rows.items, rows.n_items)):
            place = of * self.folds + self.fold
            self.sums.append(np.bincount(place, rows.ratings - self.mean, n * self.folds).reshape(n, self.folds))
            self.counts.append(np.bincount(place, minlength=n * self.folds).reshape(n, self.folds))
        centred = rows.text - rows.text.mean(axis=0)
        left, scale, _ = np.linalg.svd(centred, full_matrices=False)
        self.text = left[:, :20] * scale[:20]

    def table(self, users: np.ndarray, items: np.ndarray, fold: np.ndarray | None = None) -> pd.DataFrame:
        """Returns the features of pairs of users and items.

        Args:
          users: The users, ``[R]``.
          items: The items, ``[R]``.
          fold: The folds of training ratings, ``[R]``, which are left out of their means and counts; ``None``: no fold
            is left out.
        """
        columns: dict[str, np.ndarray] = {}
        for name, of, sums, counts in zip(("user", "item"), (users, items), self.sums, self.counts, strict=True):
            total, count = sums.sum(axis=1)[of], counts.sum(axis=1)[of]
            if fold is not None:
                total, count = total - sums[of, fold], count - counts[of, fold]
            columns |= {f"{name}_mean": total / (count + 5.0), f"{name}_count": np.log1p(count), name: of}
        columns |= {f"text_{i}": column[items] for i, column in enumerate(self.text.T)}
        return pd.DataFrame(columns)


def lightgbm(train: Ratings, seed: int) -> Predict:
    import lightgbm as lgb

    kept, held_out = train.divided(seed)
    columns = Columns(kept, seed)

    def data(rows: Ratings, fold: np.ndarray | None, of: lgb.Dataset | None = None) -> lgb.Dataset:
        table = columns.table(rows.users, rows.items, fold)
        return lgb.Dataset(table, rows.ratings, reference=of, categorical_feature=["user", "item"])

    learnt = data(kept, columns.fold)
    settings = {"objective": "l2", "learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 50, "verbose": -1,
                "seed": seed, "num_threads": os.cpu_count(), "cat_smooth": 50.0}  # fmt: skip
    stop = lgb.early_stopping(TREE_PATIENCE, verbose=False)
    model = lgb.train(settings, learnt, TREES, valid_sets=[data(held_out, None, learnt)], callbacks=[stop])
    return lambda users, items: model.predict(columns.table(users, items))


def ydf(train: Ratings, seed: int) -> Predict:
    import ydf

    kept, held_out = train.divided(seed)
    columns = Columns(kept, seed)

    def data(rows: Ratings, fold: np.ndarray | None) -> pd.DataFrame:
        table = columns.table(rows.users, rows.items, fold).assign(rating=rows.ratings)
        return table.astype({"user": str, "item": str})

    learner = ydf.GradientBoostedTreesLearner(
        label="rating", task=ydf.Task.REGRESSION, num_trees=200, shrinkage=0.1, max_depth=6, random_seed=seed
    )
    model = learner.train(data(kept, columns.fold), valid=data(held_out, None), verbose=0)
    return lambda users, items: model.predict(columns.table(users, items).astype({"user": str, "item": str}))


CONTENDERS: dict[str, Callable[[Ratings, int], Predict]] = {
    OURS: ours,
    f"{OURS} without text": lambda train, seed: ours(train, seed, text=False),
    "biased matrix factorization (ALS)": factorization,
    "biases": biases,
    "LightGBM": lightgbm,
    "YDF": ydf,
}
#: The packages that contenders need.
PACKAGES = {"LightGBM": "lightgbm", "YDF": "ydf"}


def squared_errors(predict: Predict, rows: Ratings) -> np.ndarray:
    """Returns the squared errors of predictions clipped to the scale of 1 to 5, float64 ``[E]``."""
    return (np.clip(predict(rows.users, rows.items), 1, 5) - rows.ratings) ** 2


def error(predict: Predict, rows: Ratings) -> float:
    """Returns the RMSE."""
    return float(np.sqrt(squared_errors(predict, rows).mean()))


def read(name: str, folder: Path) -> Dataset:
    """Reads all ratings of a data set; those of MovieLens 1M without their order, which a few rows lack."""
    if name == "movielens-100k":
        return read_dataset(DataConfig(source=str(folder / name)), test_events="0:20000")
    events = pd.read_csv(folder / name / "interactions.tsv.gz", sep="\t")
    items = pd.read_json(folder / name / "items.jsonl.gz", lines=True)
    return dataset_from_frames(events[["user", "item", "rating"]], items, config=DataConfig(name=name))


def text_of(dataset: Dataset) -> np.ndarray:
    """Returns the items' text vectors; those encoded before are read from the vector store."""
    from tfllmrec.assets import cache_folder
    from tfllmrec.text.encoder import TextEncoder
    from tfllmrec.text.store import VectorStore, encode_items
    from tfllmrec.text.template import ItemTemplate

    texts = ItemTemplate.from_items(dataset.items).texts(dataset.items)
    return np.asarray(
        encode_items(texts, TextEncoder.from_config(TextConfig()), VectorStore(cache_folder() / "vectors"))
    )


def divided(dataset: Dataset, text: np.ndarray, seed: int) -> tuple[Ratings, Ratings]:
    """Returns training and test ratings; the latter are the test events of the data set, or a random tenth of all."""
    events = dataset.events
    whole = Ratings(
        events[USER_INDEX].to_numpy(), events[ITEM_INDEX].to_numpy(), events[RATING].to_numpy(float),
        dataset.n_users, text,
    )  # fmt: skip
    if TEST_EVENT in events:
        test = events[TEST_EVENT].to_numpy()
    else:
        test = np.random.default_rng(seed).random(len(events)) < 0.1
    return whole.take(~test), whole.take(test)


def measured(dataset: Dataset, text: np.ndarray, seeds: Sequence[int], names: Sequence[str]) -> list[list[str]]:
    """Returns a row for each contender: RMSE, how much its squared error is above ours, and seconds."""
    errors: dict[str, list[np.ndarray]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    users = []
    for seed in seeds:
        train, test = divided(dataset, text, seed)
        users.append(test.users)
        for name in names:
            begun = time.perf_counter()
            predict = CONTENDERS[name](train, seed)
            errors[name].append(squared_errors(predict, test))
            seconds[name].append(time.perf_counter() - begun)
            print(f"seed {seed}: {name} RMSE {np.sqrt(errors[name][-1].mean()):.4f}, {seconds[name][-1]:.0f} s")
    everybody = np.concatenate(users)
    rows = []
    for name in names:
        each = [float(np.sqrt(values.mean())) for values in errors[name]]
        values = np.concatenate(errors[name])
        low, high = np.sqrt(mean_interval(values, everybody) or (0.0, 0.0))
        spread = f" ({min(each):.4f} to {max(each):.4f})" if min(each) < max(each) else ""
        gain = ""
        if name != OURS:
            ahead = mean_interval(values - np.concatenate(errors[OURS]), everybody) or (0.0, 0.0)
            gain = f"{values.mean() - np.concatenate(errors[OURS]).mean():+.4f} [{ahead[0]:+.4f}, {ahead[1]:+.4f}]"
        rows.append(
            [name, f"{np.mean(each):.4f} ±{(high - low) / 2:.4f}{spread}", gain, f"{np.mean(seconds[name]):.0f}"]
        )
    return rows


def section(name: str, dataset: Dataset, rows: list[list[str]], missing: Sequence[str], made: str) -> str:
    """Returns the text of a section."""
    test = (
        f"the {int(dataset.events[TEST_EVENT].sum()):,} ratings in the first lines of the file are the test (u1)"
        if TEST_EVENT in dataset.events
        else "a tenth of all ratings, drawn with each seed, is the test"
    )
    published = [[f"*{row}*", f"{value:.4f}", "", ""] for row, value in PUBLISHED.get(name, {}).items()]
    header = ["", "RMSE", "squared error above ours", "seconds"]
    lines = [
        made,
        "",
        f"{dataset.n_users:,} users, {dataset.n_items:,} items, {len(dataset.events):,} ratings; {test}. What is "
        "chosen (steps, noise, rank, penalties, trees) is chosen on a tenth of the training ratings; the test is "
        "used once. In brackets: the seeds' lowest and highest figure; the 95 % interval of a bootstrap over users.",
        "",
        *markdown_table(header, [*rows, *published]),
    ]
    if missing:
        lines += ["", f"Not installed, so not measured: {', '.join(missing)}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["movielens-100k", "movielens-1m"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument(
        "--only", nargs="+", choices=list(CONTENDERS), help="Contenders that are measured, beside ours."
    )
    options = parser.parse_args()
    names = [name for name in CONTENDERS if name == OURS or name in (options.only or CONTENDERS)]
    missing = [name for name in names if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None]
    for name in missing:
        print(f"{name} is left out: pip install {PACKAGES[name]}", file=sys.stderr)
    dataset = read(options.set, options.data)
    text = text_of(dataset)
    rows = measured(dataset, text, options.seeds, [name for name in names if name not in missing])
    made = made_by(shlex.join(["python", *sys.argv]), options.seeds)
    body = section(options.set, dataset, rows, missing, made)
    replace_section(f"ratings: {options.set}", body)
    print(body)


if __name__ == "__main__":
    main()

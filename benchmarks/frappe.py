"""Recommends apps to a user in a context (Frappe), compared with DeepFM, DCN-Mix, LightGBM and the user's frequencies.

    python benchmarks/frappe.py --seeds 42 1 2

fits ``configs/frappe.yaml`` for each seed (runs/quality/frappe, runs/quality/frappe-seed1, ...), with and without the
fields of events and requests, and writes a section of RESULTS.md with two tables:

- Ranking metrics: the whole catalogue is ranked for each user and context of the test; known apps are not masked.
- The area under the ROC curve of all test rows and two negatives for each, drawn from the apps that the user has not
  used in that context. Scores that rank the whole catalogue are first turned into probabilities (:class:`Probability`),
  whose temperature and share of popularity are chosen on the validation queries.

The contenders are trained on the same rows with sampled negatives, and read the user, the app and the same context.
Their settings, number of negatives and number of training steps are chosen on the validation queries; settings and
negatives for each table by its own metric. A contender takes part if it is installed:
``pip install --no-deps deepctr==0.9.4``, ``pip install lightgbm``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from quality import fitted_run, folder_of
from sections import made_by, replace_section
from seeds import differences

from tfllmrec.columns import ITEM_INDEX, USER, USER_INDEX
from tfllmrec.config import load_config
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import Result, evaluate
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.evaluation.result_files import load_result, save_result
from tfllmrec.models.item_weights import interactions
from tfllmrec.runs.run import Run

CONFIG = Path(__file__).parents[1] / "configs" / "frappe.yaml"
OURS, WITHOUT = "hybrid", "hybrid without context"
#: The contenders' numbers of negatives per training row and their embedding penalties, of which the best are chosen.
NEGATIVES = (2, 10)
EMBEDDING_PENALTIES = (1e-5, 1e-4)
BATCH, MOST_EPOCHS, PATIENCE = 4096, 12, 2
TREES, TREE_PATIENCE = 600, 30
#: Temperatures and shares of popularity of :class:`Probability`, of which the best are chosen.
TEMPERATURES, SHARES = (0.5, 1.0, 2.0, 4.0, 8.0), (0.0, 0.01, 0.03, 0.1, 0.3)
_AT_ONCE = 256  # number of queries that are scored in one batch


@dataclass(frozen=True, eq=False)
class Rows:
    """Uses of apps.

    Attributes:
      users: The indices of the users, ``[R]``.
      items: The indices of the apps, ``[R]``.
      context: The codes of the context fields, ``[R, C]``.
    """

    users: np.ndarray
    items: np.ndarray
    context: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def with_items(self, items: np.ndarray) -> Rows:
        """Returns rows that pair each user and context with all apps of its row of ``items``, int ``[R, M]``."""
        n = items.shape[1]
        return Rows(np.repeat(self.users, n), items.ravel(), np.repeat(self.context, n, axis=0))


@dataclass(frozen=True, eq=False)
class Task:
    """A split of Frappe as rows.

    Attributes:
      split: The split of the run with the same seed, so that all contenders are trained on the same events.
      seed: The seed of the negatives and of the contenders.
    """

    split: Split
    seed: int

    @cached_property
    def fields(self) -> list[str]:
        """The names of the request fields."""
        return [field.name for field in self.split.schema.of("request")]

    @property
    def n_items(self) -> int:
        return self.split.dataset.n_items

    @cached_property
    def train(self) -> Rows:
        dataset, events = self.split.dataset, self.split.train
        key = [USER_INDEX, "order"]
        place = pd.MultiIndex.from_frame(dataset.events[key]).get_indexer(pd.MultiIndex.from_frame(events[key]))
        context = [self.split.encoded[f"event.{name}"][place] for name in self.fields]
        return Rows(events[USER_INDEX].to_numpy(), events[ITEM_INDEX].to_numpy(), np.stack(context, axis=1))

    def asked(self, queries: Queries) -> Rows:
        """Returns a row for each query, without an app (the index ``n_items``)."""
        users = pd.Index(self.split.dataset.users[USER]).get_indexer(queries.user_ids)
        context = np.stack([np.asarray(queries.fields[f"request.{name}"]) for name in self.fields], axis=1)
        return Rows(users, np.full(len(users), self.n_items), context)

    def uses(self, queries: Queries) -> tuple[np.ndarray, Rows]:
        """Returns the number of the query of each target, and a row for each target."""
        of_query = queries.targets.row_of_value
        asked = self.asked(queries)
        return of_query, Rows(asked.users[of_query], queries.targets.values, asked.context[of_query])

    def negatives(self, rows: Rows, n: int, seed: int, training: bool = False) -> np.ndarray:
        """Samples apps that the user has not used in that context, int ``[R, n]``.

        With ``training``, only uses in the training events are avoided, not those in validation and test.
        """
        used = self._trained if training else self._used
        generator = np.random.default_rng(seed)
        drawn = generator.integers(self.n_items, size=(len(rows), n))
        request = np.concatenate([rows.users[:, np.newaxis], rows.context], axis=1)
        for _ in range(20):
            known = used.get_indexer(_keys(request, drawn)) >= 0
            if not known.any():
                break
            drawn[known.reshape(drawn.shape)] = generator.integers(self.n_items, size=known.sum())
        return drawn

    @cached_property
    def _trained(self) -> pd.MultiIndex:
        return _used([self.train])

    @cached_property
    def _used(self) -> pd.MultiIndex:
        return _used([self.train, self.uses(self.split.validation)[1], self.uses(self.split.test)[1]])


def _used(parts: Sequence[Rows]) -> pd.MultiIndex:
    request = np.concatenate([np.concatenate([p.users[:, np.newaxis], p.context], axis=1) for p in parts])
    return _keys(request, np.concatenate([p.items for p in parts])[:, np.newaxis]).unique()


def _keys(requests: np.ndarray, items: np.ndarray) -> pd.MultiIndex:
    repeated = np.repeat(requests, items.shape[1], axis=0)
    return pd.MultiIndex.from_arrays([*repeated.T, items.ravel()])


Predict = Callable[[Rows], np.ndarray]


@dataclass(frozen=True, eq=False)
class ByRow:
    """A recommender that scores each pair of query and app with a model of single rows."""

    task: Task
    predict: Predict

    def score(self, queries: Queries) -> np.ndarray:
        """Returns the scores of all apps, float32 ``[B, N]``."""
        asked, n = self.task.asked(queries), self.task.n_items
        everything = np.broadcast_to(np.arange(n), (len(asked), n))
        return self.predict(asked.with_items(everything)).reshape(len(asked), n).astype(np.float32)


@dataclass(frozen=True, eq=False)
class OwnFrequency:
    """A baseline that ranks apps by how often the user has used them; ties are broken by the number of users."""

    popularity: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        """Returns the scores of all apps, float32 ``[B, N]``."""
        scores = np.tile(self.popularity / (1 + self.popularity.sum()), (len(queries), 1)).astype(np.float32)
        np.add.at(scores, (queries.history.row_of_value, queries.history.values), 1.0)
        return np.log1p(scores)


@dataclass(frozen=True, eq=False)
class Probability:
    """Turns scores of the whole catalogue into log probabilities that can be compared between queries.

    The probability of an app is ``(1 - m) softmax(score / T) + m p``, where ``p`` is its share of the training events.
    """

    recommender: Recommender
    popularity: np.ndarray
    temperature: float
    share: float

    def score(self, queries: Queries) -> np.ndarray:
        """Returns the log probabilities of all apps, float64 ``[B, N]``."""
        scores = self.recommender.score(queries).astype(np.float64) / self.temperature
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        return np.log(np.maximum((1 - self.share) * likely + self.share * self.popularity, 1e-300))


def probability_of(recommender: Recommender, task: Task) -> tuple[Probability, str]:
    """Returns the probabilities with the largest area on validation queries, and their settings in words."""
    asked = sample_of(task.split.validation, 2000, task.seed)
    of_query, items = rows_of(task, asked)
    scores = np.concatenate([recommender.score(batch) for batch in batches_of(asked)])
    counts = task.split.train_counts + 0.5
    popularity = counts / counts.sum()

    def found(temperature: float, share: float) -> float:
        made = Probability(Known(scores), popularity, temperature, share).score(asked)
        values = made[of_query[:, np.newaxis], items]
        return area(values.ravel(), np.tile([True, False, False], len(values)))

    best = max(((t, m) for t in TEMPERATURES for m in SHARES), key=lambda settings: found(*settings))
    return Probability(
        recommender, popularity, *best
    ), f"temperature {best[0]:g}, share of popularity {best[1]:g} (area)"


@dataclass(frozen=True, eq=False)
class Known:
    """A recommender whose scores are computed already, float ``[B, N]``."""

    scores: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        return self.scores


# Contenders ---------------------------------------------------------------------------------------------------------


class Columns:
    """Count features for trees.

    They are the uses of the app by the user, by all users, and by the user with the same value of each field; and the
    number of all uses by the user.

    For training rows, both uses and negatives, only uses of the nine other folds are counted. Counts that include the
    row itself would reveal its label, and so would counts that leave out this single row.
    """

    folds = 10

    def __init__(self, task: Task) -> None:
        self.task, rows = task, task.train
        self.fold = np.random.default_rng(task.seed).integers(self.folds, size=len(rows))
        self.counts = {name: pd.Series(keys).value_counts() for name, keys in self._keys(rows).items()}
        self.of_fold = {
            name: pd.Series(keys * self.folds + self.fold).value_counts() for name, keys in self._keys(rows).items()
        }

    def _keys(self, rows: Rows) -> dict[str, np.ndarray]:
        """Returns the keys whose uses are counted, int ``[R]``, by the name of the column."""
        pair = rows.users * self.task.n_items + rows.items
        fields = zip(self.task.fields, rows.context.T, strict=True)
        keys = {"own": pair, "all": rows.items, "user_uses": rows.users}
        return keys | {f"own_{name}": pair * 1000 + codes for name, codes in fields}

    def table(self, rows: Rows, fold: np.ndarray | None = None) -> pd.DataFrame:
        """Returns the features of rows.

        Args:
          rows: The rows.
          fold: The folds of training rows, int ``[R]``: only uses of the other folds are counted, and the counts are
            scaled up. ``None``: all uses are counted.
        """
        columns: dict[str, np.ndarray] = {"user": rows.users, "item": rows.items}
        columns |= dict(zip(self.task.fields, rows.context.T, strict=True))
        for name, keys in self._keys(rows).items():
            count = _found(self.counts[name], keys)
            if fold is not None:
                count = (count - _found(self.of_fold[name], keys * self.folds + fold)) * self.folds / (self.folds - 1)
            columns[name] = count
        return pd.DataFrame(columns)


def _found(counts: pd.Series, keys: np.ndarray) -> np.ndarray:
    return counts.reindex(keys).fillna(0).to_numpy(float)


def labelled(task: Task, rows: Rows, negatives: int, seed: int) -> tuple[Rows, np.ndarray]:
    """Returns the rows with sampled negatives, ``[R * (1 + negatives)]``, and a mask of those that are uses."""
    drawn = task.negatives(rows, negatives, seed, training=True)
    items = np.concatenate([rows.items[:, np.newaxis], drawn], axis=1)
    return rows.with_items(items), np.tile(np.arange(1 + negatives) == 0, len(rows))


def lightgbm(task: Task, negatives: int, penalty: float) -> Predict:
    import lightgbm as lgb

    columns = Columns(task)
    learnt, is_use = labelled(task, task.train, negatives, task.seed)
    held_out, held_label = labelled(task, task.uses(task.split.validation)[1], negatives, task.seed + 1)
    categories = ["user", "item", *task.fields]
    folds = np.repeat(columns.fold, 1 + negatives)
    train = lgb.Dataset(columns.table(learnt, folds), is_use, categorical_feature=categories)
    validation = lgb.Dataset(columns.table(held_out), held_label, reference=train, categorical_feature=categories)
    settings = {"objective": "binary", "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 100, "verbose": -1,
                "seed": task.seed, "num_threads": os.cpu_count(), "cat_smooth": 50.0, "metric": "auc",
                "lambda_l2": penalty * 1e5}  # fmt: skip
    stop = lgb.early_stopping(TREE_PATIENCE, verbose=False)
    model = lgb.train(settings, train, TREES, valid_sets=[validation], callbacks=[stop])
    return lambda rows: model.predict(columns.table(rows), raw_score=True)


def factorization(kind: str) -> Callable[[Task, int, float], Predict]:
    """Returns a function that trains deepctr's DeepFM or DCNMix and keeps the epoch with the best validation AUC."""

    def fitted(task: Task, negatives: int, penalty: float) -> Predict:
        import tensorflow as tf
        from deepctr import models
        from deepctr.feature_column import SparseFeat

        tf.keras.utils.set_random_seed(task.seed)
        sizes = {"user": task.split.dataset.n_users, "item": task.n_items}
        sizes |= {field.name: field.size for field in task.split.schema.of("request")}
        features = [SparseFeat(name, size, embedding_dim=16) for name, size in sizes.items()]
        model = getattr(models, kind)(
            features, features, dnn_hidden_units=(256, 128), dnn_dropout=0.2, l2_reg_embedding=penalty, seed=task.seed
        )
        model.compile("adam", "binary_crossentropy")

        def inputs(rows: Rows) -> dict[str, np.ndarray]:
            return dict(zip(sizes, (rows.users, rows.items, *rows.context.T), strict=True))

        held_out, held_label = labelled(task, task.uses(task.split.validation)[1], negatives, task.seed + 1)
        best, kept, since = -1.0, model.get_weights(), 0
        for epoch in range(MOST_EPOCHS):
            learnt, is_use = labelled(task, task.train, negatives, task.seed + 10 * epoch)
            model.fit(inputs(learnt), is_use.astype(np.float32), BATCH, 1, verbose=0)
            value = area(model.predict(inputs(held_out), 1 << 16, verbose=0)[:, 0], held_label)
            since = 0 if value > best else since + 1
            if value > best:
                best, kept = value, model.get_weights()
            if since == PATIENCE:
                break
        model.set_weights(kept)
        return lambda rows: _logit(model.predict(inputs(rows), 1 << 16, verbose=0)[:, 0])

    return fitted


def _logit(probability: np.ndarray) -> np.ndarray:
    near = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-9)
    return np.log(near) - np.log1p(-near)


CONTENDERS: dict[str, tuple[str, Callable[[Task, int, float], Predict]]] = {
    "DeepFM": ("deepctr", factorization("DeepFM")),
    "DCN-Mix": ("deepctr", factorization("DCNMix")),
    "LightGBM": ("lightgbm", lightgbm),
}


# Measuring ----------------------------------------------------------------------------------------------------------


def area(values: np.ndarray, is_use: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Returns the area under the ROC curve; pairs of equal values count half."""
    weights = np.ones(len(values)) if weights is None else weights
    distinct, place = np.unique(values, return_inverse=True)
    uses, others = (np.bincount(place, weights * side, len(distinct)) for side in (is_use, ~is_use))
    behind = np.cumsum(others) - others / 2
    return float((uses * behind).sum() / max(uses.sum() * others.sum(), 1e-12))


def batches_of(queries: Queries) -> Iterator[Queries]:
    """Yields the queries, at most :data:`_AT_ONCE` at a time."""
    for start in range(0, len(queries), _AT_ONCE):
        yield queries.slice(start, min(start + _AT_ONCE, len(queries)))


def rows_of(task: Task, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """Returns the query of each target, int ``[T]``, and the target with two negatives, int ``[T, 3]``."""
    of_query, uses = task.uses(queries)
    return of_query, np.concatenate([uses.items[:, np.newaxis], task.negatives(uses, 2, task.seed + 2)], axis=1)


def values_of_rows(recommender: Recommender, task: Task, queries: Queries) -> np.ndarray:
    """Returns the score of each target and of its two negatives, float64 ``[T, 3]``."""
    of_query, items = rows_of(task, queries)
    out, start = np.empty(items.shape), 0
    for batch in batches_of(queries):
        scores = recommender.score(batch).astype(np.float64)
        inside = (of_query >= start) & (of_query < start + len(batch))
        out[inside] = scores[of_query[inside, np.newaxis] - start, items[inside]]
        start += len(batch)
    return out


def ndcg_of(recommender: Recommender, task: Task, queries: Queries) -> Result:
    """Returns the ranking metrics at 10 on the whole catalogue."""
    split = task.split
    return evaluate(
        recommender, queries, train_counts=split.train_counts, strata=split.strata(), ks=(10,), batch_size=_AT_ONCE,
        bootstrap=0, seed=task.seed,
    )  # fmt: skip


def sample_of(queries: Queries, most: int, seed: int) -> Queries:
    """Returns a random sample of at most ``most`` queries, in their order."""
    if len(queries) <= most:
        return queries
    return queries.take(np.sort(np.random.default_rng(seed).choice(len(queries), most, replace=False)))


def best_of(name: str, task: Task) -> tuple[ByRow, ByRow, str]:
    """Fits a contender with all settings; returns the model that ranks best, the one with the best area, and a line."""
    fit = CONTENDERS[name][1]
    asked = sample_of(task.split.validation, 2000, task.seed)
    tried = {}
    for negatives in NEGATIVES:
        for penalty in EMBEDDING_PENALTIES:
            model = ByRow(task, fit(task, negatives, penalty))
            values = values_of_rows(model, task, asked)
            of = area(values.ravel(), np.tile([True, False, False], len(values)))
            ndcg = ndcg_of(model, task, asked).metrics["ndcg@10"] or 0.0
            tried[negatives, penalty] = (model, ndcg, of)
            settings = f"{negatives} negatives, penalty {penalty:g}"
            print(f"seed {task.seed}: {name}, {settings}: ndcg@10 {ndcg:.4f}, auc {of:.4f}", flush=True)
    ranks, divides = (max(tried, key=lambda settings: tried[settings][which]) for which in (1, 2))
    line = f"{ranks[0]} negatives, penalty {ranks[1]:g} (ranking); {divides[0]}, {divides[1]:g} (area)"
    return tried[ranks][0], tried[divides][0], line


def fitted(seed: int, out: Path, data: Path, overrides: Sequence[str]) -> Run:
    """Returns the run of a seed; fits or resumes it if it is not complete."""
    folder = folder_of(out, seed)
    files = [f"data.{role}={(data / 'frappe' / name).resolve()}" for role, name in
             (("events", "frappe.csv.gz"), ("items", "meta.csv.gz"))]  # fmt: skip
    loaded = load_config(CONFIG, [*files, *overrides, f"seed={seed}"])
    return fitted_run(loaded.config, folder, CONFIG.parent)


def measured(
    run: Run, without: Run, kept: Path, names: Sequence[str]
) -> tuple[dict[str, Result], dict[str, Any], list[str]]:
    """Measures all recommenders on the test queries; what is measured is stored in the folder ``kept`` and reused.

    Returns:
      The results and the values of the test rows by name, and lines on the settings.
    """
    task = Task(run.split, run.config.seed)
    results: dict[str, Result] = {}
    values: dict[str, Any] = {}
    lines: list[str] = []

    def measure(name: str, make: Callable[[], tuple[Recommender, Recommender, str]]) -> None:
        path, rows, told = kept / f"{name}.npz", kept / f"{name}.rows.npy", kept / f"{name}.txt"
        if not rows.is_file():
            begun = time.perf_counter()
            kept.mkdir(parents=True, exist_ok=True)
            ranks, divides, line = make()
            save_result(path, ndcg_of(ranks, task, task.split.test))
            told.write_text(line)
            np.save(rows, values_of_rows(divides, task, task.split.test))
            print(f"seed {task.seed}: {name} measured, {time.perf_counter() - begun:.0f} s")
        lines.append(f"Seed {task.seed}, {name}: {told.read_text()}.")
        results[name], values[name] = load_result(path), np.load(rows)

    def with_probability(recommender: Recommender) -> tuple[Recommender, Recommender, str]:
        return recommender, *probability_of(recommender, task)

    measure(OURS, lambda: with_probability(run.load_model()))
    measure(WITHOUT, lambda: with_probability(without.load_model()))
    own = OwnFrequency(interactions(task.split.train_queries().history, task.n_items).sum(axis=0))
    measure("own frequencies", lambda: with_probability(own))
    for name in names:
        measure(name, lambda name=name: best_of(name, task))  # type: ignore[misc]
    return results, values, lines


def pooled(per_seed: Sequence[Result], users: Sequence[np.ndarray]) -> Result:
    """Pools the results on the different test queries of several seeds; a user is resampled with all queries."""
    labels = per_seed[0].per_query
    together = {label: np.concatenate([result.per_query[label] for result in per_seed]) for label in labels}
    return Result(
        metrics={
            label: float(np.nanmean(each)) if not np.isnan(each).all() else None for label, each in together.items()
        },
        intervals={},
        counts={name: sum(result.counts[name] for result in per_seed) for name in per_seed[0].counts},
        per_query=together,
        alarms=[],
        spread={label: _ends([result.metrics[label] for result in per_seed]) for label in labels},
        users=np.concatenate(users),
    )


def _ends(values: Sequence[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else (np.nan, np.nan)


def areas(values: Mapping[str, Sequence[np.ndarray]], users: Sequence[np.ndarray]) -> Iterator[list[str]]:
    """Yields the rows of the table of areas: the mean over seeds, its 95 % interval and its range over seeds.

    The interval is that of a bootstrap in which the rows of a user are resampled together.
    """
    label = np.array([True, False, False])
    for name, per_seed in values.items():
        found = [area(v.ravel(), np.tile(label, len(v))) for v in per_seed]
        resampled = []
        for draw in range(200):
            generator = np.random.default_rng(draw)
            total = []
            for v, of in zip(per_seed, users, strict=True):
                distinct, place = np.unique(of, return_inverse=True)
                times = np.bincount(generator.integers(len(distinct), size=len(distinct)), minlength=len(distinct))
                total.append(area(v.ravel(), np.tile(label, len(v)), np.repeat(times[place], 3).astype(float)))
            resampled.append(np.mean(total))
        low, high = np.quantile(resampled, [0.025, 0.975])
        yield [name, f"{np.mean(found):.4f} [{low:.4f}, {high:.4f}]", f"{min(found):.4f} to {max(found):.4f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--out", type=Path, default=Path("runs/quality/frappe"), help="Run folder of seed 42.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="A setting.")
    options = parser.parse_args()
    names = [name for name, (package, _) in CONTENDERS.items() if importlib.util.find_spec(package)]
    for name in CONTENDERS.keys() - set(names):
        print(f"{name} is left out: pip install {CONTENDERS[name][0]}", file=sys.stderr)
    per_seed: list[dict[str, Result]] = []
    values: dict[str, list[np.ndarray]] = {}
    users: list[np.ndarray] = []  # the user of each query, for each seed
    row_users: list[np.ndarray] = []
    chosen: list[str] = []
    for seed in options.seeds:
        run = fitted(seed, options.out, options.data, options.overrides)
        plain = options.out.with_name(f"{options.out.name}-without-context")
        without = fitted(seed, plain, options.data, [*options.overrides, "model.fields=false"])
        results, of_rows, lines = measured(run, without, run.folder / "contenders", names)
        per_seed.append(results)
        test = run.split.test
        users.append(pd.Index(run.dataset.users[USER]).get_indexer(test.user_ids))
        row_users.append(users[-1][test.targets.row_of_value])
        for name, found in of_rows.items():
            values.setdefault(name, []).append(found)
        chosen += [f"- Seed {seed}: {OURS}: {'; '.join(run.record['chosen'])}.", *(f"- {line}" for line in lines)]
    dataset, split = run.dataset, run.split
    average = {name: pooled([results[name] for results in per_seed], users) for name in per_seed[0]}
    body = "\n".join(
        [
            made_by(shlex.join(["python", *sys.argv]), options.seeds),
            "",
            f"{dataset.n_users:,} users, {dataset.n_items:,} apps, {len(dataset.events):,} uses of an app in a context "
            f"({', '.join(field.name for field in split.schema.of('request'))}); 80/10/10 at random within each user, "
            f"drawn anew with each seed; {len(split.test):,} test queries with {len(split.test.targets.values):,} "
            "targets (last seed). The column `cost` is not read: it is a property of the app to be found. Intervals "
            "are those of a bootstrap over users, the queries of all seeds together. In brackets the lowest and the "
            "highest figure of a seed.",
            "",
            "All apps ranked, known ones not masked:",
            "",
            *differences(average, len(options.seeds)),
            "",
            "Area under the ROC curve, two negatives for each test row:",
            "",
            *markdown_table(["", "AUC", "seeds"], list(areas(values, row_users))),
            "",
            *chosen,
        ]
    )
    replace_section("frappe", body)
    print(body)


if __name__ == "__main__":
    main()

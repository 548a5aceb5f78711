"""Measures what a cap per category and a share for tail items cost; writes a section of RESULTS.md for each run.

    python benchmarks/list_rules.py runs/quality/movielens-100k

Lists of 10 out of the best 50 items are made for the test queries as by ``recommend_full``
(``tfllmrec.layers.list_order``), in the order of the ranking model if the run has one that changes the order. Nothing
is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from diversity import CANDIDATES, K, candidates
from sections import made_by, sections_of_runs

from tfllmrec.columns import CATEGORIES
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.layers.list_order import Rules, list_order
from tfllmrec.models.ranking import Reranked
from tfllmrec.runs.run import Run

CAPS = (0, 1, 2, 3, 5, 8)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Setting = tuple[int, float]
"""A cap per category (0: none) and a share for tail items."""


def served(run: Run) -> tuple[Recommender, str]:
    """What orders the candidates, and its name."""
    hybrid = run.load_model(refit=True)
    ranking = run.load_ranking(hybrid)
    if ranking is None or not ranking.reorders:
        return hybrid, "the hybrid"
    return Reranked(hybrid, ranking, run.config.ranking.candidates), "the ranking model"


def category_matrix(cells: Sequence[str]) -> np.ndarray:
    """Returns the numbers of each item's categories, int32 ``[N, M]``, padded with -1."""
    names = list(map(category_names, cells))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for row in names for name in row))}
    matrix = np.full((len(names), max([1, *map(len, names)])), -1, np.int32)
    for item, row in enumerate(names):
        matrix[item, : len(row)] = [numbers[name] for name in row]
    return matrix


def lists(run: Run, recommender: Recommender, settings: Sequence[Setting]) -> dict[Setting, np.ndarray]:
    """Returns the lists of all test queries for each setting, int ``[Q, K]``; shorter lists are padded with -1."""
    items = run.split.items
    categories = category_matrix(items[CATEGORIES].tolist() if CATEGORIES in items else [""] * len(items))
    tail = run.split.strata(run.config.evaluation.head_share)["tail"]
    order = tf.function(list_order, autograph=False, reduce_retracing=True)
    parts: dict[Setting, list[np.ndarray]] = {setting: [] for setting in settings}
    for _, best, scores in candidates(recommender, run.split.test):
        there, known = best >= 0, np.maximum(best, 0)
        for cap, share in settings:
            rules = Rules(
                tf.zeros(len(best), tf.int32),
                tf.constant(np.where(there[..., np.newaxis], categories[known], -1)),
                tf.fill([len(best)], cap),
                tf.constant(there & tail[known]),
                tf.fill([len(best)], tf.constant(share)),
            )
            places, count = order(
                tf.constant(np.where(there, scores, 0.0), tf.float32),
                tf.zeros([*best.shape, 0]),
                tf.constant(there),
                tf.constant(K),
                tf.zeros(len(best)),
                rules,
            )
            shown = np.arange(K) < count.numpy()[:, np.newaxis]
            parts[cap, share].append(np.where(shown, np.take_along_axis(best, places.numpy()[:, :K], axis=1), -1))
    return {setting: np.concatenate(each) for setting, each in parts.items()}


def figures(listed: np.ndarray, targets: np.ndarray, tail: np.ndarray, categories: np.ndarray) -> dict[str, float]:
    """Returns the figures of lists.

    Args:
      listed: The lists, int ``[Q, K]``, padded with -1.
      targets: The target of each query, int ``[Q]``.
      tail: Whether an item is a tail item, bool ``[N]``.
      categories: The categories of each item, int32 ``[N, M]``, see :func:`category_matrix`.
    """
    found, there = listed == targets[:, np.newaxis], listed >= 0
    of_lists = np.where(there[..., np.newaxis], categories[listed], -1).reshape(len(listed), -1)
    return {
        "ndcg@10": (found / np.log2(np.arange(2, K + 2))).sum(axis=1).mean(),
        "recall@10": found.any(axis=1).mean(),
        "recall@10/tail": found.any(axis=1)[tail[targets]].mean(),
        "tail items": (tail[listed] & there).sum() / there.sum(),
        "categories": float(np.mean([len(set(row) - {-1}) for row in of_lists])),
        "items": there.sum(axis=1).mean(),
        "coverage@10": len(np.unique(listed[there])) / len(tail),
    }


def table(name: str, rows: Mapping[str, dict[str, float]]) -> list[str]:
    """Returns a table with a row for each value of a rule; the first row is without the rule."""
    plain = next(iter(rows.values()))
    header = [name, *plain]
    cells = [
        [
            value,
            f"{own['ndcg@10']:.4f} ({own['ndcg@10'] / plain['ndcg@10'] - 1:+.1%})",
            f"{own['recall@10']:.4f}",
            f"{own['recall@10/tail']:.4f}",
            f"{own['tail items']:.1%}",
            f"{own['categories']:.1f}",
            f"{own['items']:.1f}",
            f"{own['coverage@10']:.4f}",
        ]
        for value, own in rows.items()
    ]
    return markdown_table(header, cells)


def section(run: Run, command: str) -> str:
    items, (recommender, ordered_by) = run.split.items, served(run)
    categories = category_matrix(items[CATEGORIES].tolist() if CATEGORIES in items else [""] * len(items))
    tail = run.split.strata(run.config.evaluation.head_share)["tail"]
    targets = np.array([row[0] for row in run.split.test.targets])
    caps: list[Setting] = [(cap, 0.0) for cap in CAPS] if (categories >= 0).any() else []
    shares: list[Setting] = [(0, share) for share in SHARES]
    found = {
        setting: figures(listed, targets, tail, categories)
        for setting, listed in lists(run, recommender, list(dict.fromkeys([*caps, *shares]))).items()
    }
    lines = [
        made_by(command, run.config.seed),
        "",
        f"Lists of {K} out of the best {CANDIDATES} items in the order of {ordered_by}, {len(targets):,} test queries. "
        "In brackets: the change against lists without the rule. `categories` and `items` are the means of a list: "
        f"with a cap, a list ends where none of the {CANDIDATES} candidates is permitted.",
        "",
    ]
    if caps:
        lines += [*table("category_cap", {str(cap or "none"): found[cap, share] for cap, share in caps}), ""]
    return "\n".join([*lines, *table("tail_share", {f"{share:g}": found[cap, share] for cap, share in shares})])


if __name__ == "__main__":
    sections_of_runs(__doc__ or "", "caps and exposure", section)

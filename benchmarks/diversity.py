"""Measures how much accuracy more diverse lists cost; writes a section of RESULTS.md for each run.

    python benchmarks/diversity.py runs/quality/beauty runs/quality/movielens-100k

Both methods of ordering a list (``tfllmrec.layers.list_order``) are measured on validation queries. The method that
increases the distance of the items' texts most, at a loss of at most 2 % of ndcg@10, is measured on test queries.
Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import tensorflow as tf
from sections import made_by, sections_of_runs

from tfllmrec.data.queries import Queries
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.layers.list_order import Method, Rules, list_order
from tfllmrec.progress import show_progress
from tfllmrec.runs.run import Run

K, CANDIDATES, LOSS = 10, 50, 0.02
DIVERSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
METHODS: tuple[Method, ...] = get_args(Method)
Figures = dict[str, np.ndarray]


def candidates(model: Recommender, queries: Queries) -> Iterator[tuple[Queries, np.ndarray, np.ndarray]]:
    """Yields batches of queries, the best items of each query, int ``[B, C]``, and their scores ``[B, C]``.

    Items that the user already knows are left out. Where fewer than :data:`CANDIDATES` items remain, the item is -1 and
    the score is ``-inf``.
    """
    with show_progress("Scoring", "queries") as progress:
        done = 0
        for batch in queries.batches(512):
            scores = masked(model.score(batch), batch)
            items = top_items(scores, CANDIDATES)
            yield batch, items, np.where(items >= 0, np.take_along_axis(scores, np.maximum(items, 0), axis=1), -np.inf)
            done += len(batch)
            progress(done, len(queries))


def measured(run: Run, queries: Queries, methods: tuple[Method, ...]) -> dict[tuple[Method, float], Figures]:
    """Returns the figures of each method at each diversity, one value per query."""
    model = run.load_model()
    learned, text = model.item_vectors(), model.text_vectors
    tail = run.split.strata(run.config.evaluation.head_share)["tail"]
    order = tf.function(list_order, autograph=False, reduce_retracing=True)
    parts: dict[tuple[Method, float], list[Figures]] = {}
    for batch, items, scores in candidates(model, queries):
        there = np.isfinite(scores)
        targets = np.array([row[0] for row in batch.targets])
        vectors = tf.gather(learned, np.maximum(items, 0))
        nothing = tf.zeros(len(items), tf.int32)
        no_rules = Rules(
            nothing,
            tf.zeros([*items.shape, 0], tf.int32),
            nothing,
            tf.zeros(items.shape, tf.bool),
            tf.zeros(len(items)),
        )
        for method in methods:
            for diversity in DIVERSITIES:
                chosen, _ = order(
                    tf.constant(np.where(there, scores, 0.0), tf.float32), vectors, tf.constant(there), tf.constant(K),
                    tf.fill([len(items)], tf.constant(diversity)), no_rules, method,
                )  # fmt: skip
                listed = np.take_along_axis(items, chosen.numpy()[:, :K], axis=1)
                found = listed == targets[:, np.newaxis]
                parts.setdefault((method, diversity), []).append(
                    {
                        "ndcg@10": (found / np.log2(np.arange(2, K + 2))).sum(axis=1),
                        "recall@10": found.any(axis=1).astype(float),
                        "distance of texts": distance(text[listed]),
                        "distance of learned vectors": distance(learned.numpy()[listed]),
                        "tail items": (tail[listed] & (listed >= 0)).sum(axis=1) / (listed >= 0).sum(axis=1),
                        "listed": listed,
                    }
                )
    return {key: {name: np.concatenate([p[name] for p in all_]) for name in all_[0]} for key, all_ in parts.items()}


def distance(vectors: np.ndarray) -> np.ndarray:
    """Returns 1 minus the mean cosine of two different items of a list: unit vectors ``[B, K, D]`` -> ``[B]``."""
    total, own = vectors.sum(axis=1), (vectors**2).sum(axis=(1, 2))
    return 1.0 - ((total**2).sum(axis=1) - own) / (K * (K - 1))


def gained(figures: dict[tuple[Method, float], Figures], method: Method) -> tuple[float, float]:
    """Returns the diversity with the largest distance of texts at a loss of at most :data:`LOSS`, and its gain.

    The gain is the relative change of the distance against diversity 0.
    """
    plain = figures[method, 0.0]
    allowed = [d for d in DIVERSITIES if figures[method, d]["ndcg@10"].mean() >= (1 - LOSS) * plain["ndcg@10"].mean()]
    best = max(allowed, key=lambda d: figures[method, d]["distance of texts"].mean())
    return best, figures[method, best]["distance of texts"].mean() / plain["distance of texts"].mean() - 1


def section(run: Run, command: str) -> str:
    on_validation = measured(run, run.split.validation, METHODS)
    found = {method: gained(on_validation, method) for method in METHODS}
    method = max(METHODS, key=lambda each: found[each][1])
    on_test = measured(run, run.split.test, (method,))
    plain = on_test[method, 0.0]
    header: list[str] = []
    rows: list[list[str]] = []
    for diversity in DIVERSITIES:
        own = on_test[method, diversity]
        cells = {
            "ndcg@10": f"{own['ndcg@10'].mean():.4f} ({own['ndcg@10'].mean() / plain['ndcg@10'].mean() - 1:+.1%})",
            "recall@10": f"{own['recall@10'].mean():.4f}",
            **{
                name: f"{own[name].mean():.3f} ({own[name].mean() / plain[name].mean() - 1:+.0%})"
                for name in ("distance of texts", "distance of learned vectors")
            },
            "tail items": f"{own['tail items'].mean():.1%}",
            "coverage@10": f"{len(np.unique(own['listed'][own['listed'] >= 0])) / run.split.dataset.n_items:.4f}",
        }
        header = ["diversity", *cells]
        rows.append([f"{diversity:g}", *cells.values()])
    said = "; ".join(f"{name}: {gain:+.0%} at {best:g}" for name, (best, gain) in found.items())
    return "\n".join(
        [
            made_by(command, run.config.seed),
            "",
            f"Lists of {K} out of the best {CANDIDATES} items, {len(run.split.test):,} test queries. The distance of a "
            "list is 1 minus the mean cosine of two of its items. In brackets: the change against diversity 0. On "
            f"validation, at a loss of at most {LOSS:.0%} of ndcg@10, the distance of texts grows by: {said}. Shown: "
            f"{method}.",
            "",
            *markdown_table(header, rows),
        ]
    )


if __name__ == "__main__":
    sections_of_runs(__doc__ or "", "diversity", section)

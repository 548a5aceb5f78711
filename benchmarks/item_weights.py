"""Measures accuracy, time and memory of item-item weights by rank; writes a section of RESULTS.md.

    python benchmarks/item_weights.py ../shared/data/amazon-2014/beauty
    python benchmarks/item_weights.py --synthetic 100000

The data set in a folder is measured on its validation queries. On synthetic data, accuracy is not measured: it has a
million events of users who stay near a random place of the catalogue, a few very popular items, and random text
vectors. With the rank *all*, the weights are solved exactly.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from sections import made_by, replace_section

from tfllmrec.assets import cache_folder
from tfllmrec.config import DataConfig, ItemWeightSettings, SplitConfig, TextConfig
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.readers import read_dataset
from tfllmrec.data.splits import make_split
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.models.item_weights import (
    PrunedWeights,
    score_history,
    solve_item_weights,
)
from tfllmrec.progress import peak_memory_mb
from tfllmrec.text.centring import centred_unit

METRICS = ("ndcg@10", "recall@10", "recall@10/tail", "recall@10/cold")
EVENTS, USERS = 1_000_000, 100_000


@dataclass(frozen=True)
class Task:
    """The training data and the queries to measure on.

    Attributes:
      histories: The training histories.
      text: The text vectors of the items.
      settings: The settings of the item-item weights.
      validation: The validation queries; ``None`` for synthetic data.
      train_counts: The number of training events of each item.
      strata: The strata of the items; empty for synthetic data.
    """

    histories: Ragged
    text: np.ndarray
    settings: ItemWeightSettings
    validation: Queries | None
    train_counts: np.ndarray
    strata: dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    rank: str
    neighbours: int
    figures: list[float | None]
    seconds: float
    cpu_seconds: float
    peak_gb: float


def of_folder(folder: Path, settings: ItemWeightSettings) -> Task:
    from tfllmrec.text.encoder import TextEncoder
    from tfllmrec.text.store import VectorStore, encode_items
    from tfllmrec.text.template import ItemTemplate

    dataset = read_dataset(DataConfig(source=str(folder)))
    split = make_split(dataset, SplitConfig(), seed=42)
    texts = ItemTemplate.from_items(split.items).texts(split.items)
    vectors = encode_items(texts, TextEncoder.from_config(TextConfig()), VectorStore(cache_folder() / "vectors"))
    return Task(
        split.train_queries().history,
        centred_unit(vectors),
        settings,
        split.validation,
        split.train_counts,
        split.strata(),
    )


def made(n_items: int, text_width: int, settings: ItemWeightSettings) -> Task:
    generator = np.random.default_rng(42)
    near = generator.integers(n_items, size=(USERS, 1)) + generator.laplace(scale=30, size=(USERS, EVENTS // USERS))
    popular = generator.zipf(1.3, size=near.shape) * 7919
    values = np.where(generator.random(near.shape) < 0.2, popular, near.round()).astype(np.int64).ravel() % n_items
    text = centred_unit(generator.standard_normal((n_items, text_width), np.float32))
    counts = np.bincount(values, minlength=n_items)
    return Task(Ragged(values, np.arange(0, EVENTS + 1, EVENTS // USERS)), text, settings, None, counts, {})


class Weights:
    """Item-item weights as a recommender."""

    def __init__(self, weights: PrunedWeights, decay: float) -> None:
        self.weights, self.decay = weights, decay

    def score(self, queries: Queries) -> np.ndarray:
        return score_history(queries.history, self.weights, self.decay)


def figures(task: Task, weights: PrunedWeights) -> list[float | None]:
    if task.validation is None:
        return [None] * len(METRICS)
    result = evaluate(
        Weights(weights, task.settings.decay),
        task.validation,
        train_counts=task.train_counts,
        strata=task.strata,
        ks=[10],
        bootstrap=0,
    )
    return [result.metrics[name] for name in METRICS]


def solved(task: Task, neighbours: int, rank: int | Literal["all"]) -> Row:
    clock = Clock()
    settings = task.settings.model_copy(update={"rank": rank, "neighbours": neighbours})
    weights = solve_item_weights(task.histories, len(task.text), settings, task.text)
    cost = (*clock.cost(), peak_memory_mb() / 1000)
    return Row(str(rank), neighbours, figures(task, weights), *cost)


class Clock:
    """Measures the seconds and the CPU seconds of this process since the clock was created."""

    def __init__(self) -> None:
        self.started, self.cpu = time.perf_counter(), time.process_time()

    def cost(self) -> tuple[float, float]:
        return time.perf_counter() - self.started, time.process_time() - self.cpu


def rows_of(task: Task, neighbours: list[int], ranks: list[int | Literal["all"]]) -> Iterator[Row]:
    """Yields a row for each solution, solved in a separate process with its own peak memory (including the data)."""
    spawn = multiprocessing.get_context("spawn")
    for rank in ranks:
        for kept in neighbours if rank == "all" else neighbours[-1:]:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                yield pool.submit(solved, task, kept, rank).result()


def table(rows: list[Row]) -> str:
    named = [METRICS[i] for i in range(len(METRICS)) if rows[0].figures[i] is not None]
    lines = [
        f"| rank | neighbours | {' | '.join([*named, 'seconds', 'CPU s', 'peak GB'])} |",
        f"|---:|{'---:|' * (len(named) + 4)}",
    ]
    for row in rows:
        values = [f"{value:.4f}" for value in row.figures if value is not None]
        cost = [f"{row.seconds:.0f}", f"{row.cpu_seconds:.0f}", f"{row.peak_gb:.1f}"]
        cells = [row.rank, str(row.neighbours), *values, *cost]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="A data set in a known format.")
    parser.add_argument("--synthetic", type=int, metavar="N", help="Made data of N items, instead of a folder.")
    parser.add_argument("--text-width", type=int, default=384, help="Of made text vectors.")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--ranks", type=lambda rank: rank if rank == "all" else int(rank), nargs="+")
    parser.add_argument("--decay", type=float, default=0.6)
    parser.add_argument("--l2", type=float, default=100.0)
    parser.add_argument("--co-occurrence", type=float, default=0.1)
    parser.add_argument("--text", type=float, default=50.0)
    parser.add_argument("--popularity", type=float, default=0.25)
    options = parser.parse_args()
    if (options.folder is None) == (options.synthetic is None):
        parser.error("expected a folder or --synthetic N")
    settings = ItemWeightSettings(
        decay=options.decay,
        l2=options.l2,
        co_occurrence=options.co_occurrence,
        text=options.text,
        popularity=options.popularity,
    ).settled()
    if options.folder is not None:
        name, task = options.folder.resolve().name, of_folder(options.folder, settings)
        ranks = options.ranks or ["all", 96, 192, 384, 768, 1536]
    else:
        name, task = f"{options.synthetic:,} made items", made(options.synthetic, options.text_width, settings)
        ranks = options.ranks or [128, 384]
    rows = []
    for row in rows_of(task, options.neighbours, ranks):
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
    replace_section(
        f"item-item weights: {name}",
        f"{made_by(f'python benchmarks/item_weights.py {shlex.join(sys.argv[1:])}')}\n\n"
        f"{len(task.text):,} items, {len(task.histories.values):,} training events, text vectors of "
        f"{task.text.shape[1]}; decay {settings.decay:g}, l2 {settings.l2:g}, co-occurrence "
        f"{settings.co_occurrence:g}, text {settings.text:g}, popularity {settings.popularity:g}"
        f"{'; figures on validation' if task.validation else ''}. Seconds and memory are those of one solution;\n"
        "CPU seconds, of all cores together, say what it takes where the machine had other work.\n\n"
        f"{table(rows)}\n",
    )


if __name__ == "__main__":
    main()

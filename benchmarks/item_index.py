"""Measures the top 10 of the item index, with a million items or as many as you like; writes a section of RESULTS.md.

    python benchmarks/item_index.py
    python benchmarks/item_index.py --items 12000 100000 --dims 64

Synthetic vectors resemble learned ones: directions in clusters of clusters whose sizes follow a power law, and lengths
that vary as if scaled by gates. Queries lie near items; recall is measured on queries other than those that a partition
was chosen on. For each catalogue, the contenders take turns, one query at a time. One of them is the limit: the time in
which the same process only reads the bytes of the float32 vectors (their maximum). The machine may be busy, so the
figure to compare is the ratio to the limit.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from sections import made_by, replace_section

from tfllmrec.errors import ModelError
from tfllmrec.layers.item_cells import RECALL, RECALL_AT, partition
from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.layers.item_scann import Scann
from tfllmrec.layers.item_vectors import ItemVectors
from tfllmrec.serving.signatures import SAMPLED

QUERIES = 300  # number of measured queries, beside the SAMPLED queries that a partition is chosen on
PAIRS = 10_240  # number of pairs of the sparse part: a history of 20 items with 512 neighbours each
LIMIT = "the bytes read once"


@dataclass(frozen=True)
class Contender:
    """The figures of a contender.

    Attributes:
      name: The name of the contender.
      milliseconds: The time of each turn.
      recall: The share of the exact top 10 that it finds; ``None`` if not measured.
    """

    name: str
    milliseconds: np.ndarray
    recall: float | None = None


def clustered(items: int, dim: int, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns random clustered item vectors, float32 ``[N, D]``, and unit queries near items, float32 ``[Q, D]``."""
    fine = max(items // 60, 2)
    coarse = rng.standard_normal((max(fine // 60, 2), dim), np.float32)
    centres = coarse[rng.integers(0, len(coarse), fine)] + 0.7 * rng.standard_normal((fine, dim), np.float32)
    share = rng.permutation(1 / np.arange(1, fine + 1) ** 0.7)
    vectors = centres[rng.choice(fine, items, p=share / share.sum())]
    vectors += 0.5 * rng.standard_normal((items, dim), np.float32)
    asked = vectors[rng.integers(0, items, queries)] + 0.7 * rng.standard_normal((queries, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= np.exp(rng.normal(0, 0.2, (items, 1))).astype(np.float32)
    return vectors, asked / np.linalg.norm(asked, axis=1, keepdims=True)


def measure(items: int, dim: int, turns: int, seed: int) -> tuple[list[Contender], str]:
    """Measures all contenders on one catalogue; also returns a line on the partition and on ScaNN."""
    rng = np.random.default_rng(seed)
    vectors, queries = clustered(items, dim, SAMPLED + QUERIES, rng)
    sampled, asked = queries[:SAMPLED], queries[SAMPLED:]
    start = time.process_time()
    cells = partition(vectors, sampled, seed)
    told = (
        f"{len(cells.centroids):,} cells in {time.process_time() - start:.0f} CPU seconds, {cells.probes} probed, "
        f"recall@{RECALL_AT} {cells.recall:.3f} on the queries that this was chosen on"
    )
    pairs = rng.integers(0, items, (1, PAIRS)).astype(np.int32), rng.normal(0, 0.1, (1, PAIRS)).astype(np.float32)
    indexes = {
        "exact": ItemIndex(vectors),
        "partitioned": ItemIndex(vectors, cells),
    }
    try:
        start = time.process_time()
        scann = Scann(vectors, sampled)
    except ModelError:
        told += "; no row for ScaNN, which is not installed (pip install tfllmrec[scann])"
    else:
        indexes["scann"] = ItemIndex(vectors, scann)
        told += (
            f"; ScaNN: {scann.cells:,} cells in {time.process_time() - start:.0f} CPU seconds, {scann.probes} probed, "
            f"{scann.candidates} candidates, recall@{RECALL_AT} {scann.recall:.3f}"
        )
    whole = indexes["exact"].vectors
    ask = {LIMIT: reader(whole)}
    for name, index in indexes.items():
        ask[name] = _asker(index)
        if name in ("exact", "partitioned"):
            ask[f"{name}, sparse part of {PAIRS:,}"] = _asker(index, pairs)
    wanted = [set(np.asarray(ask["exact"](query[np.newaxis])).ravel().tolist()) for query in asked]
    taken: dict[str, list[float]] = {name: [] for name in ask}
    hits: dict[str, list[float]] = {name: [] for name in indexes}
    for name, function in ask.items():
        function(asked[:1])  # warm-up: the first call plans the graph
        if name in hits and name != "exact":
            for query, best in zip(asked, wanted, strict=True):
                hits[name].append(len(best & set(np.asarray(function(query[np.newaxis])).ravel().tolist())) / RECALL_AT)
    for turn in range(turns):
        for name, function in ask.items():
            begun = time.perf_counter()
            function(asked[turn % QUERIES][np.newaxis])
            taken[name].append(1000 * (time.perf_counter() - begun))
    recalls = {name: float(np.mean(found)) for name, found in hits.items() if found} | {"exact": 1.0}
    return [Contender(name, np.array(times), recalls.get(name)) for name, times in taken.items()], told


def reader(vectors: ItemVectors) -> Callable[..., object]:
    """Returns a function that reads the bytes of float32 ``vectors`` once and ignores its arguments: a scan's limit."""
    read = tf.function(lambda: tf.reduce_max(vectors.whole)).get_concrete_function()
    return lambda *_: read().numpy()


def _asker(index: ItemIndex, pairs: tuple[np.ndarray, np.ndarray] | None = None) -> Callable[[np.ndarray], object]:
    """Returns a function from a query ``[1, D]`` to item indices ``[1, 10]``, traced like a served signature."""
    given = None if pairs is None else (tf.constant(pairs[0]), tf.constant(pairs[1]))
    top = tf.function(lambda query: index.top_k(query, [RECALL_AT], pairs=given)[0]).get_concrete_function(
        tf.TensorSpec([None, index.vectors.dim], tf.float32)
    )
    return lambda query: top(tf.constant(query)).numpy()


def table(contenders: list[Contender]) -> list[str]:
    """Returns a table of the median and lowest times, and the lowest as a ratio to the limit's, in the first row."""
    limit = contenders[0].milliseconds
    rows = ["| | median ms | lowest ms | lowest, against the limit | recall@10 |", "|---|---:|---:|---:|---:|"]
    for c in contenders:
        recall = "" if c.recall is None else f"{c.recall:.3f}"
        ratio = c.milliseconds.min() / limit.min()
        rows.append(
            f"| {c.name} | {np.median(c.milliseconds):.1f} | {c.milliseconds.min():.1f} | {ratio:.2f} | {recall} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[12_000, 1_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    command = shlex.join(["python", "benchmarks/item_index.py", *sys.argv[1:]])
    lines = [
        made_by(command, arguments.seed),
        "",
        f"One query, top {RECALL_AT}, {arguments.turns} turns. Partitions are to reach recall {RECALL}.",
    ]
    for items in arguments.items:
        for dim in arguments.dims:
            contenders, told = measure(items, dim, arguments.turns, arguments.seed)
            lines += ["", f"{items:,} items of {dim} ({4 * items * dim / 1e6:,.0f} MB): {told}.", ""]
            lines += table(contenders)
            print("\n".join(lines[-len(contenders) - 4 :]), flush=True)
    replace_section("the item index", "\n".join(lines))


if __name__ == "__main__":
    main()

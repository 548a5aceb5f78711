"""Measures small text towers for query time against the encoder that they are distilled from; a section of RESULTS.md.

    python benchmarks/query_tower.py ../shared/data/amazon-2014/beauty

Items are always encoded by the float32 encoder, as in an exported model; only search queries are encoded by the small
tower. The measured queries are cut from texts of items that distillation did not see. With ``--items``, a sample of the
catalogue is used and RESULTS.md is not changed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf
from sections import made_by, replace_section

from tfllmrec.assets import cache_folder
from tfllmrec.columns import TITLE
from tfllmrec.config import DataConfig, DistillationConfig, TextConfig
from tfllmrec.data.queries import Queries
from tfllmrec.data.readers import read_dataset
from tfllmrec.evaluation.metrics import masked, ndcg, rank_targets
from tfllmrec.progress import show_progress
from tfllmrec.text.bundled import hub_handles
from tfllmrec.text.encoder import TextEncoder, TextToVector
from tfllmrec.text.static_tower import static_tower
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.student import HashedNgrams, NgramSizes, Student, few_layers
from tfllmrec.text.template import ItemTemplate
from tfllmrec.training.text.distil import Agreement, agreement, distil, short_queries
from tfllmrec.training.text.query_encoder import BATCH_SIZES, EPOCHS, LEARNING_RATES

WARM_UP, BATCH, TURN = 10, 64, 10
KINDS = ("title", "phrase")


class Int8(tf.Module):
    """A matrix as int8 with one float32 scale per row or column, which TensorFlow reads as a float32 tensor.

    Args:
      matrix: The matrix.
      axis: The axis along which entries share a scale: 0 for kernels ``[in, out]``, 1 for tables with row lookup.
    """

    def __init__(self, matrix: tf.Variable, axis: int):
        super().__init__()
        scale = np.abs(matrix.numpy()).max(axis=axis, keepdims=True) / 127 + 1e-12
        self.scale = tf.Variable(scale, trainable=False)
        self.values = tf.Variable(np.round(matrix.numpy() / scale).astype(np.int8), trainable=False)

    def sparse_read(self, rows: tf.Tensor, name: str | None = None) -> tf.Tensor:
        """Returns rows as float32. ``tf.gather`` calls this, so that only the requested rows are converted."""
        return tf.cast(tf.gather(self.values, rows), tf.float32) * tf.gather(self.scale, rows)

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns rows as float32. The package's BERT calls this for a table that is not a variable."""
        return self.sparse_read(rows)

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        return tf.cast(self.values, tf.float32) * self.scale


def int8_bert(teacher: TextEncoder) -> TextToVector:
    """Returns a copy of the teacher with all its layers, whose kernels and word embeddings are int8."""
    layers = sum("attention/query/kernel" in v.name for v in teacher.text_to_vector.encoder.variables)
    tower = few_layers(teacher, layers)
    tower.encoder.word_embedding = Int8(tower.encoder.word_embedding, axis=1)
    for module in tower.encoder.submodules:
        if hasattr(module, "kernel"):
            module.kernel = Int8(module.kernel, axis=0)
    return tower


def int8_ngrams(tower: HashedNgrams) -> HashedNgrams:
    """Returns a copy of a tower with int8 tables."""
    copy = HashedNgrams(tower.dim, tower.sizes)
    for name in ("attention", "inner", "bias", "outer", "straight"):
        getattr(copy, name).assign(getattr(tower, name))
    copy.words, copy.ngrams = Int8(tower.words, axis=1), Int8(tower.ngrams, axis=1)
    return copy


@dataclass
class Tower:
    """A text tower and its figures.

    Attributes:
      name: The name of the tower.
      call: The function that encodes texts: string ``[B]`` -> float32 ``[B, D]``.
      size: The number of bytes that it adds to an exported model.
      milliseconds: The times of single queries.
      processor: The processor times of single queries, in milliseconds.
      rates: Texts per second in batches, one figure per round.
      found: NDCG@10 of search by the kind of query.
      like: The agreement with the encoder.
    """

    name: str
    call: Callable[[tf.Tensor], tf.Tensor]
    size: int
    milliseconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    like: Agreement | None = None

    def vectors(self, texts: list[str]) -> np.ndarray:
        return np.concatenate([self.call(tf.constant(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)])


def saved(name: str, text_to_vector: tf.Module, teacher: TextEncoder, folder: Path) -> Tower:
    """Saves a tower as a SavedModel and returns the tower that is loaded from it."""
    path = folder / name.replace(" ", "-")
    Student(text_to_vector, teacher.fingerprint).save(path)
    return Tower(name, Student.load(path).text_to_vector, bytes_in(path))


def rates(name: str) -> dict[str, float]:
    """Returns the default batch size and learning rate of a kind of tower, as arguments of ``distil``."""
    return {"batch_size": BATCH_SIZES[name], "learning_rate": LEARNING_RATES[name]}


def bytes_in(*folders: Path) -> int:
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def time_towers(towers: list[Tower], queries: list[str], n_single: int, rounds: int) -> None:
    """Times the towers in turns of a few queries, so that a slowdown of the machine affects all of them."""
    singles = [tf.constant([query]) for query in queries[:n_single]]
    with show_progress("Timing", "turns") as progress:
        for start in range(0, len(singles), TURN):
            for tower in towers:
                for query in singles[:WARM_UP] if start == 0 else singles[start : start + 1]:
                    tower.call(query)
                for query in singles[start : start + TURN]:
                    wall, processor = time.perf_counter(), time.process_time()
                    tower.call(query)
                    tower.processor.append(1e3 * (time.process_time() - processor))
                    tower.milliseconds.append(1e3 * (time.perf_counter() - wall))
            progress(start // TURN + 1, -(-len(singles) // TURN))
    batch = tf.constant(queries[:BATCH])
    for turn in range(rounds + 1):
        for tower in towers:
            start_s = time.perf_counter()
            tower.call(batch)
            if turn:
                tower.rates.append(len(batch) / (time.perf_counter() - start_s))


def search(vectors: np.ndarray, items: np.ndarray, rows: np.ndarray) -> float:
    """Returns the mean NDCG@10 of finding item ``rows[i]`` by ``vectors[i]``."""
    queries = Queries.from_histories([[]] * len(rows), targets=[[row] for row in rows])
    ranks = rank_targets(masked(vectors @ items.T, queries), queries.targets)
    return float(ndcg(ranks, len(rows), 10).mean())


def measure(options: argparse.Namespace) -> tuple[str, str]:
    """Distils and measures all towers; returns the name of the data set and the text of the section."""
    load = os.getloadavg()[0]
    dataset = read_dataset(DataConfig(source=str(options.source)), Path())
    table = dataset.items
    if options.items:
        table = table.sample(min(options.items, len(table)), random_state=options.seed)
    texts, titles = ItemTemplate.from_items(table).texts(table), table[TITLE].fillna("").astype(str).tolist()
    store = VectorStore(cache_folder() / "vectors")
    teacher = TextEncoder.from_config(TextConfig())
    sizes = DistillationConfig()
    settings = {"per_item": options.per_item, "seed": options.seed, "store": store}

    ngrams = HashedNgrams(teacher.dim, NgramSizes(), options.seed)
    done = distil(teacher, ngrams, texts, titles, epochs=options.epochs, **rates("hashed_ngrams"), **settings)
    towers = [
        Tower("encoder, float32", teacher.text_to_vector, bytes_in(*hub_handles())),
        Tower(
            "encoder, bfloat16",
            TextEncoder.from_config(TextConfig(precision="bfloat16")).text_to_vector,
            bytes_in(*hub_handles(precision="bfloat16")),
        ),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        towers.append(saved("encoder, int8 weights", int8_bert(teacher), teacher, folder))
        if options.layer_epochs:
            layers = few_layers(teacher, 2)
            distil(teacher, layers, texts, titles, epochs=options.layer_epochs, **rates("layers"), **settings)
            towers.append(saved("two layers", layers, teacher, folder))
        static = static_tower(teacher, texts, sizes.buckets, sizes.width)
        distil(teacher, static, texts, titles, epochs=EPOCHS["static"], **rates("static"), **settings)
        towers.append(saved("static", static, teacher, folder))
        towers.append(saved("hashed n-grams", ngrams, teacher, folder))
        towers.append(saved("hashed n-grams, int8 tables", int8_ngrams(ngrams), teacher, folder))

    held_out = done.held_out
    items = encode_items(texts, teacher, store)
    asked = short_queries([texts[i] for i in held_out], [titles[i] for i in held_out], seed=options.seed + 1)
    asked = [(kind, query, held_out[row]) for kind, query, row in asked if kind in KINDS][: options.queries]
    kinds, rows = np.array([kind for kind, _, _ in asked]), np.array([row for _, _, row in asked])
    queries = [query for _, query, _ in asked]
    expected = towers[0].vectors(queries)
    for tower in towers:
        vectors = tower.vectors(queries)
        tower.like = agreement(vectors, expected, items)
        tower.found = {kind: search(vectors[kinds == kind], items, rows[kinds == kind]) for kind in KINDS}
    order = np.random.default_rng(options.seed).permutation(len(queries))
    time_towers(towers, [queries[i] for i in order], options.singles, options.rounds)

    head = towers[0]
    lines = []
    for tower in towers:
        like = tower.like
        assert like is not None
        p50, p99 = np.percentile(tower.milliseconds, (50, 99))
        found = [
            f"{tower.found[kind]:.4f}"
            + (f" ({tower.found[kind] - head.found[kind]:+.4f})" if tower is not head else "")
            for kind in KINDS
        ]
        lines.append(
            f"| {tower.name} | {tower.size / 1e6:.1f} | {p50:.1f} | {p99:.1f} | {np.median(tower.processor):.1f} | "
            f"{np.median(tower.rates):,.0f} | {like.cosine:.3f} | {like.top:.3f} | {like.ndcg:.3f} | "
            f"{' | '.join(found)} |"
        )
    kept = "\n".join(
        f"| {kind} | {a.texts:,} | {a.cosine:.3f} | {a.top:.3f} | {a.ndcg:.3f} |" for kind, a in done.report.items()
    )
    body = f"""{made_by(shlex.join(["python", *sys.argv]), options.seed)}; load average before it {load:.1f}

Catalogue of {len(texts):,} items, {len(held_out):,} of them held out; {len(queries):,} queries cut anew
from those. Top 10 and NDCG to the encoder: its own list as the truth. Search: NDCG@10 of the item that the query
was cut from, and the change against the encoder. {options.epochs} epochs of n-grams, {options.layer_epochs} of layers,
{EPOCHS["static"]} of static, {options.per_item} cuts an item.
p50 and p99 of {len(head.milliseconds)} single queries; texts/s in batches of {BATCH}.

| tower | MB | p50 ms | p99 ms | processor ms | texts/s | cosine | top 10 | NDCG to encoder | by title | by phrase |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(lines)}

Hashed n-grams by kind of held-out text:

| text | texts | cosine | top 10 | NDCG to encoder |
|---|---:|---:|---:|---:|
{kept}
"""
    return dataset.name, body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="A data set in a known format, with titles.")
    parser.add_argument("--items", type=int, help="A sample of the catalogue; RESULTS.md is left alone.")
    parser.add_argument("--per-item", type=int, default=4, help="Short queries cut from an item's text.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--layer-epochs", type=int, default=2, help="Of the two-layer student; 0 leaves it out.")
    parser.add_argument("--queries", type=int, default=2000, help="The most that are measured.")
    parser.add_argument("--singles", type=int, default=300, help="Queries timed one at a time.")
    parser.add_argument("--rounds", type=int, default=5, help="Timed batches.")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    name, body = measure(options)
    print(body)
    if not options.items:
        replace_section(f"query tower: {name}", body)


if __name__ == "__main__":
    main()

"""Measures the speed of training against named alternatives, of evaluation and of preparation; a section of RESULTS.md.

    python benchmarks/speed.py ../shared/data/amazon-2014/beauty --rectools-python rtenv/bin/python

RecTools needs PyTorch and therefore a separate environment (rtenv above); without ``--rectools-python`` it is left out.
``--quick`` takes only a few steps, to check that the command works, and does not change RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
from sections import made_by, replace_section

from tfllmrec.assets import cache_folder
from tfllmrec.config import ExperimentConfig, ItemWeightSettings, parse_config
from tfllmrec.data.batches import Sequences, steps_per_epoch, training_batches
from tfllmrec.data.queries import Queries
from tfllmrec.data.readers import read_dataset
from tfllmrec.data.splits import Split, make_split
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.two_tower import BATCH, two_tower_and_batches
from tfllmrec.runs.scoreboard import measure_one
from tfllmrec.text.encoder import TextEncoder
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.template import ItemTemplate
from tfllmrec.training import defaults
from tfllmrec.training.fit import build_hybrid, set_item_weights, set_seeds
from tfllmrec.training.optimizer import adamw

WEIGHTS = ItemWeightSettings(decay=0.8, l2=100.0, co_occurrence=0.1, text=50.0, next_item=1.0, popularity=0.25)
"""The result of the search of settings on beauty: the time of one solution is measured here, not that of a search."""
WARM_UP = 8
RECTOOLS_BATCH = 128  # its default
INSTALL = "not measured: in a virtual environment of its own, `pip install torch` (the CPU build), then " + (
    "`pip install 'rectools[torch]'`, and name its Python by `--rectools-python`"
)


@dataclass(frozen=True)
class Sizes:
    """The number of timed steps per round for each contender, and the number of rounds."""

    hybrid: int = 160
    two_tower: int = 300
    rectools: int = 16
    rounds: int = 3


@dataclass
class Contender:
    """A model whose training speed is measured.

    Attributes:
      name: The name of the model.
      train: Trains for a round of the given number and returns its examples and seconds.
      step: A description of the contents of a step.
      rates: Examples per second, one figure per round.
    """

    name: str
    train: Callable[[int], tuple[int, float]]
    step: str
    rates: list[float] = field(default_factory=list)


class Stopwatch(tf.keras.callbacks.Callback):
    """Measures the time of the steps after the warm-up, including data loading."""

    def __init__(self) -> None:
        super().__init__()
        self.start = self.end = 0.0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.end = time.perf_counter()
        if batch < WARM_UP:
            self.start = self.end


def hybrid_contender(model: Hybrid, sequences: Sequences, config: ExperimentConfig, steps: int) -> Contender:
    """Returns the hybrid as ``fit`` trains it; each round begins an epoch."""
    training, length = config.training, config.model.history_length
    size = training.batch_size
    assert size is not None
    model.compile(optimizer=adamw(training.learning_rate, 10_000, training.warmup_share, training.weight_decay))

    def train(turn: int) -> tuple[int, float]:
        epochs = turn + 1 + (WARM_UP + steps) // steps_per_epoch(sequences, size, length)
        batches = training_batches(sequences, size, length, config.seed, epochs, turn, model.reads)
        timed = batches.skip(WARM_UP).take(steps)
        examples = sum(int((batch["targets"].numpy() < sequences.n_items).sum()) for batch in timed)
        return examples, timed_fit(model, batches, steps)

    return Contender("tfllmrec hybrid, softmax over the catalogue", train, f"{size} windows of at most {length} events")


def two_tower_contender(split: Split, seed: int, steps: int) -> Contender:
    """Returns the model of the TFRS "basic retrieval" tutorial."""
    model, batches = two_tower_and_batches(split, seed)
    whole, rest = divmod(len(split.train), BATCH)
    sizes = [BATCH] * whole + [rest] * bool(rest)

    def train(turn: int) -> tuple[int, float]:
        examples = sum(itertools.islice(itertools.cycle(sizes), WARM_UP, WARM_UP + steps))
        return examples, timed_fit(model, batches.repeat(), steps)

    return Contender("TFRS two-tower tutorial, in-batch softmax", train, f"{BATCH} pairs")


def timed_fit(model: tf.keras.Model, batches: tf.data.Dataset, steps: int) -> float:
    """Returns the seconds of ``steps`` steps of Keras' own ``fit``."""
    watch = Stopwatch()
    model.fit(batches, steps_per_epoch=WARM_UP + steps, callbacks=[watch], verbose=0)
    return watch.end - watch.start


def rectools_contender(
    python: Path, events: Path, loss: str, config: ExperimentConfig, steps: int, versions: dict[str, str]
) -> Contender:
    """Returns RecTools' SASRecModel, run by another Python, with our sizes and its defaults; extends ``versions``."""
    model = config.model
    settings = {
        "width": model.embedding_dim, "blocks": model.blocks, "heads": model.heads, "length": model.history_length,
        "warm-up": WARM_UP, "steps": steps, "threads": os.cpu_count(), "seed": config.seed, "loss": loss,
        "batch-size": RECTOOLS_BATCH,
    }  # fmt: skip
    script = Path(__file__).with_name("rectools_sasrec.py")
    command = [str(python), str(script), str(events), *(f"--{name}={value}" for name, value in settings.items())]

    def train(turn: int) -> tuple[int, float]:
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        said = json.loads(answer.splitlines()[-1])
        versions.update(said["versions"])
        return said["examples"], said["seconds"]

    name = (
        "RecTools SASRec, softmax over the catalogue" if loss == "softmax" else f"RecTools SASRec, {loss}, 1 negative"
    )
    return Contender(name, train, f"{RECTOOLS_BATCH} windows padded to {model.history_length} events")


def write_events(split: Split, path: Path) -> None:
    """Writes the training events for RecTools; positions in the history stand for times."""
    history = split.train_queries().history
    place = np.arange(len(history.values)) - np.repeat(history.offsets[:-1], history.lengths)
    events = {"user_id": history.row_of_value, "item_id": history.values, "weight": 1}
    pd.DataFrame(events | {"datetime": pd.to_datetime(place, unit="s")}).to_csv(path, index=False)


class Timed:
    """A recommender that measures the time of its scoring."""

    def __init__(self, recommender: Hybrid) -> None:
        self.recommender, self.seconds = recommender, 0.0

    def score(self, queries: Queries) -> np.ndarray:
        start = time.perf_counter()
        scores = self.recommender.score(queries)
        self.seconds += time.perf_counter() - start
        return scores


def evaluation_seconds(model: Hybrid, split: Split, queries: Queries, config: ExperimentConfig) -> dict[str, float]:
    """Returns the time of an evaluation with all metrics of a run, and the times of its parts."""
    timed = Timed(model)
    start = ranked = time.perf_counter()

    def progress(count: int) -> None:
        nonlocal ranked
        ranked = time.perf_counter()

    measure_one(timed, queries, split, config, progress)
    end = time.perf_counter()
    return {
        "evaluation": end - start,
        "scoring": timed.seconds,
        "ranking": ranked - start - timed.seconds,
        "averages": end - ranked,
    }


@contextmanager
def stopwatch(seconds: dict[str, list[float]], name: str) -> Iterator[None]:
    """Appends the time that the block takes to ``seconds[name]``."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    seconds.setdefault(name, []).append(time.perf_counter() - start)


def encoded(split: Split, config: ExperimentConfig) -> tuple[np.ndarray, int]:
    """Returns the items' text vectors, and the number of texts that were not yet in the vector store."""
    template = ItemTemplate.from_items(split.items, config.text.template)
    encoder = TextEncoder.from_config(config.text)
    fresh = 0

    def progress(done: int, total: int | None) -> None:
        nonlocal fresh
        fresh = done

    store = VectorStore(cache_folder() / "vectors")
    return encode_items(template.texts(split.items), encoder, store, progress), fresh


def measure(options: argparse.Namespace) -> dict:
    """Measures everything and returns the figures as a JSON object."""
    config = parse_config({"data": {"source": str(options.source)}, "seed": options.seed})
    sizes = Sizes(hybrid=16, two_tower=50, rectools=2, rounds=1) if options.quick else Sizes()
    load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {}
    versions = {name: version(name) for name in ("tensorflow", "tf-keras", "tensorflow-recommenders", "numpy")}
    set_seeds(config.seed)
    dataset = read_dataset(config.data, Path())
    split = make_split(dataset, config.split, config.seed)
    with stopwatch(seconds, "encoding"):
        text, fresh = encoded(split, config)
    defaults.sizes(split, config)
    config.item_weights = WEIGHTS
    sequences = Sequences.from_split(split, config.training.gate_holdout, config.seed)
    model = build_hybrid(TrainingData.of(split, text, config), config)
    with stopwatch(seconds, "item-item weights"):
        set_item_weights(model, sequences)

    with tempfile.TemporaryDirectory() as folder:
        contenders = [hybrid_contender(model, sequences, config, sizes.hybrid)]
        if options.rectools_python:
            events = Path(folder) / "events.csv"
            write_events(split, events)
            contenders += [
                rectools_contender(options.rectools_python, events, loss, config, sizes.rectools, versions)
                for loss in ("softmax", "BCE")
            ]
        contenders.append(two_tower_contender(split, config.seed, sizes.two_tower))
        for turn in range(sizes.rounds):
            for contender in contenders:
                examples, took = contender.train(turn)
                contender.rates.append(examples / took)
                print(
                    f"round {turn + 1}: {contender.name}: {contender.rates[-1]:,.0f} examples/s",
                    file=sys.stderr,
                    flush=True,
                )

    queries = split.test.slice(0, 1024) if options.quick else split.test
    for turn in range(sizes.rounds):
        print(f"round {turn + 1}: evaluation", file=sys.stderr, flush=True)
        for name, took in evaluation_seconds(model, split, queries, config).items():
            seconds.setdefault(name, []).append(took)
    return {
        "data": {
            "name": dataset.name,
            "items": dataset.n_items,
            "train_events": len(split.train),
            "queries": len(queries),
            "texts_encoded": fresh,
        },
        "seed": config.seed,
        "resamples": config.evaluation.bootstrap,
        "load_average": load,
        "training": {c.name: {"examples_per_second": c.rates, "step": c.step} for c in contenders},
        "seconds": seconds,
        "versions": versions,
    }


def as_section(figures: dict, command: str) -> str:
    """Returns the figures as Markdown."""
    data, seconds = figures["data"], figures["seconds"]
    ours, *others = figures["training"].items()
    rows = [f"| {ours[0]} | {_rounds(ours[1]['examples_per_second'], ',.0f')} | | {ours[1]['step']} |"]
    for name, contender in others:
        # Ratios are computed for each round, because a slow round slows both contenders.
        ratios = [a / b for a, b in zip(ours[1]["examples_per_second"], contender["examples_per_second"], strict=True)]
        rate = _rounds(contender["examples_per_second"], ",.0f")
        rows.append(f"| {name} | {rate} | {_rounds(ratios, '.2f')} | {contender['step']} |")
    if not any(name.startswith("RecTools") for name, _ in others):
        rows.append(f"| RecTools SASRec | {INSTALL} | | |")
    encoded = f"{data['texts_encoded']:,} texts encoded" if data["texts_encoded"] else "all from the vector store"
    return f"""{made_by(command, figures["seed"])}; load average before it {figures["load_average"]:.1f}

An example is one (context, next item) target, of the two-tower one (user, item) pair. Median of
{len(seconds["evaluation"])} rounds (lowest to highest) in which the contenders take turns; the first {WARM_UP} steps of
a round are not timed. RecTools has the hybrid's width, blocks, heads and window, and its own defaults otherwise; the
hybrid reads text and ratings and fits its gates too.

| training | examples/s | hybrid against it | a step |
|---|---:|---:|---|
{chr(10).join(rows)}

| other steps | seconds |
|---|---:|
| evaluation: {data["queries"]:,} queries, {data["items"]:,} items each | {_rounds(seconds["evaluation"], ".1f")} |
| &emsp;of which scores | {_rounds(seconds["scoring"], ".1f")} |
| &emsp;masks, ranks of targets, lists | {_rounds(seconds["ranking"], ".1f")} |
| &emsp;averages, strata, {figures["resamples"]:,} resamples | {_rounds(seconds["averages"], ".1f")} |
| item-item weights, solved twice (with and without held-out events) | {_rounds(seconds["item-item weights"], ".0f")} |
| text vectors of {data["items"]:,} items, {encoded} | {_rounds(seconds["encoding"], ".0f")} |

Versions: {", ".join(f"{name} {number}" for name, number in figures["versions"].items())}.
"""


def _rounds(values: list[float], form: str) -> str:
    """Formats the median and the range."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="A data set in a known format.")
    parser.add_argument("--quick", action="store_true", help="A few steps only; RESULTS.md is left alone.")
    parser.add_argument("--rectools-python", type=Path, help="The Python of an environment with rectools[torch].")
    parser.add_argument("--json", action="store_true", help="Print every round's figures as JSON.")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    figures = measure(options)
    body = as_section(figures, shlex.join(["python", *sys.argv]))
    print(json.dumps(figures, indent=1) if options.json else body)
    if not options.quick:
        replace_section(f"speed: {figures['data']['name']}", body)


if __name__ == "__main__":
    main()

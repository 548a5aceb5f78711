"""Measures the embedded server: latency, requests per second, time and memory to load; a section of RESULTS.md.

    python benchmarks/serving.py saved_models/beauty
    python benchmarks/serving.py saved_models/beauty --quick

``tfllmrec serve`` and the clients run in separate processes. The clients send histories from the test split of the
model's run. The same server also serves, in turn with the model, what a TFRS user would serve: ``BruteForce`` over the
same item vectors, whose query is the mean of the vectors of the last 50 items in the history. This is less work (no
ratings, no excluded items, a fixed k), so the ratio to it shows the cost of the rest.

The synthetic catalogue has the clustered vectors of ``item_index.py``, of width 64; the query is the mean of the
history's vectors here, too, so that mainly the index behind a server is measured. The limit is the time in which
another process reads the bytes of the vectors once; it takes turns with the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow as tf
from item_index import QUERIES, clustered, reader
from sections import made_by, replace_section
from served_process import Served, answer, served, stop
from serving_clients import Done, Order

from tfllmrec.client.client import Client
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.layers.item_cells import RECALL
from tfllmrec.layers.item_index import ItemIndex, build_index
from tfllmrec.serving.layout import EXTRA, MANIFEST, WARM_UP
from tfllmrec.serving.saved_model import SavedModel
from tfllmrec.serving.signatures import EXCLUDE, HISTORY, RATINGS, SAMPLED, K
from tfllmrec.serving.warm_up import write_warm_up

OURS, BRUTE_FORCE, EXACT, CELLS = "recommend", "brute_force", "exact", "partitioned"
CLIENTS = (1, 8, 32)
PROCESSES = 2  # number of client processes; with 32 clients, a single one would be busier than the server
TOP = 10
LENGTH = 50  # length of the padded histories for BruteForce; only rows of equal length can be joined in a batch
DIM = 64
ASKED = 2000  # number of different requests
SETTLES_S = 2.5  # wait before serving, because a version that was just written is not loaded yet
MS_REAL, MS_CELLS, LIMITS_EXACT = 15, 10, 3  # targets, see targets()


@dataclass
class Cell:
    """The figures of one model with one number of clients over one protocol, one entry per turn.

    Attributes:
      model: The name of the model.
      protocol: ``REST`` or ``gRPC``.
      clients: The number of clients.
      milliseconds: The times of the requests.
      rates: Requests per second.
      client_cpu: The clients' CPU milliseconds per request.
      server_cpu: The server's CPU milliseconds per request.
    """

    model: str
    protocol: str
    clients: int
    milliseconds: list[np.ndarray] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(np.concatenate(self.milliseconds), percent))


@dataclass(frozen=True)
class Loaded:
    """The cost of loading models.

    Attributes:
      models: The names of the models.
      seconds: The time from the start of the server until they were available.
      megabytes: The memory of the server after loading.
      afterwards: The memory after the load of requests; 0 if there was none.
    """

    models: str
    seconds: float
    megabytes: float
    afterwards: float = 0.0


class Catalogue(tf.Module):
    """A model whose ``recommend`` has the inputs, outputs and guarantees of a real one, but a mean as its network."""

    def __init__(self, ids: Sequence[str], index: ItemIndex) -> None:
        super().__init__(name="catalogue")
        self.index = index
        self.item_ids = tf.constant([*ids, ""])
        initializer = tf.lookup.KeyValueTensorInitializer(list(ids), list(range(len(ids))), tf.string, tf.int32)
        self.index_of = tf.lookup.StaticHashTable(initializer, default_value=len(ids))

    @tf.function(input_signature=[HISTORY, RATINGS, EXCLUDE, K])
    def recommend(self, history, ratings, exclude, k):
        known = self.index_of.lookup(history)
        count = tf.math.count_nonzero(known < self.index.n_items, axis=1, keepdims=True, dtype=tf.float32)
        query = tf.reduce_sum(self.index.read(known), axis=1) / tf.maximum(count, 1.0)
        gone = tf.concat([known, self.index_of.lookup(exclude)], axis=1)
        items, scores = self.index.top_k(query, k, exclude=gone)
        unknown = tf.math.count_nonzero((known == self.index.n_items) & (history != ""), axis=1, dtype=tf.int32)
        return {"item_ids": tf.gather(self.item_ids, items), "scores": scores, "unknown": unknown}


def save_catalogue(ids: Sequence[str], index: ItemIndex, folder: Path) -> None:
    """Saves a version of a catalogue; its manifest tells the server to pad and join requests as for an export."""
    catalogue = Catalogue(ids, index)
    function = catalogue.recommend.get_concrete_function()
    tf.saved_model.save(catalogue, str(folder), {"serving_default": function, "recommend": function})
    (folder / EXTRA).mkdir()
    (folder / EXTRA / MANIFEST).write_text("{}")
    write_warm_up(folder / EXTRA / WARM_UP, folder.parent.name, {"recommend": function}, ids[:LENGTH], [])


def save_brute_force(ids: Sequence[str], vectors: np.ndarray, folder: Path) -> None:
    """Saves a version as in the TFRS tutorials: a Keras tower from ids to the query, within ``BruteForce``."""
    import tensorflow_recommenders as tfrs  # must be imported after tfllmrec, which selects the Keras version

    lookup = tf.keras.layers.StringLookup(vocabulary=list(ids), mask_token="")
    # Index 0 is the padding, index 1 stands for unknown ids.
    embedding = tf.keras.layers.Embedding(len(ids) + 2, vectors.shape[1], mask_zero=True)
    mean = tf.keras.layers.GlobalAveragePooling1D()
    tower = tf.keras.Sequential([tf.keras.Input((LENGTH,), dtype=tf.string), lookup, embedding, mean])
    embedding.set_weights([np.pad(vectors, [[2, 0], [0, 0]])])
    index = tfrs.layers.factorized_top_k.BruteForce(tower, k=TOP)
    index.index(tf.constant(vectors), tf.constant(list(ids)))
    index(tf.constant([["", *ids[:1]] * (LENGTH // 2)]))
    tf.saved_model.save(index, str(folder))


def load_alone(models: Path, name: str, scratch: Path) -> Loaded:
    """Measures the loading of one model by a server without other models."""
    alone = scratch / f"{models.name}-{name}"
    alone.mkdir()
    (alone / name).symlink_to(models / name, target_is_directory=True)
    with served(alone, [name]) as server:
        return Loaded(name, server.seconds, server.megabytes())


def load_nothing(scratch: Path) -> Loaded:
    (scratch / "nothing").mkdir()
    with served(scratch / "nothing", []) as server:
        return Loaded("no model", server.seconds, server.megabytes())


class Clients:
    """The client processes; use it in a ``with`` block."""

    def __init__(self, requests: Path) -> None:
        self._requests = requests

    def __enter__(self) -> Clients:
        command = [sys.executable, str(Path(__file__).with_name("serving_clients.py")), str(self._requests)]
        pipe = subprocess.PIPE
        self._processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
            for _ in range(PROCESSES)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            stop(process)

    def ask(self, address: str, model: str, clients: int, seconds: float) -> list[Done]:
        """Runs ``clients`` clients, divided among all processes."""
        parts = [clients // PROCESSES + (number < clients % PROCESSES) for number in range(PROCESSES)]
        busy = [(process, part) for process, part in zip(self._processes, parts, strict=True) if part]
        for process, part in busy:
            stdin: IO[str] = process.stdin  # type: ignore[assignment]
            stdin.write(json.dumps(asdict(Order(address, model, part, seconds))) + "\n")
            stdin.flush()
        return [Done(**json.loads(answer(process))) for process, _ in busy]


def take_turns(
    server: Served, clients: Clients, cells: Sequence[Cell], seconds: float, turns: int, between: Any = lambda: None
) -> None:
    """Measures the cells in turns and adds the figures to them; a shorter first turn does not count.

    Args:
      server: The server.
      clients: The client processes.
      cells: The cells to fill.
      seconds: The time for each cell, divided among the turns.
      turns: The number of turns that count.
      between: Called once per turn, while the server is idle.
    """
    for turn in range(turns + 1):
        print(f"turn {turn} of {turns} ...", file=sys.stderr, flush=True)
        for cell in cells:
            cpu = server.cpu_seconds()
            part = seconds / turns if turn else min(seconds / turns, 0.5)
            done = clients.ask(server.addresses[cell.protocol], cell.model, cell.clients, part)
            taken = np.concatenate([one.milliseconds for one in done])
            if turn:
                cell.milliseconds.append(taken)
                cell.rates.append(sum(len(one.milliseconds) / one.seconds for one in done))
                cell.client_cpu.append(1000 * sum(one.cpu_seconds for one in done) / len(taken))
                cell.server_cpu.append(1000 * (server.cpu_seconds() - cpu) / len(taken))
        between()


def real(path: Path, scratch: Path, seconds: float, turns: int) -> tuple[str, list[Loaded], list[Cell]]:
    """Measures an exported model and ``BruteForce``; returns a description of the model and the figures."""
    saved = SavedModel.open(path)
    models = scratch / "real"
    for name in (OURS, BRUTE_FORCE):
        (models / name).mkdir(parents=True)
    (models / OURS / "1").symlink_to(saved.folder.resolve(), target_is_directory=True)
    checkpoint = tf.train.load_checkpoint(str(saved.folder / "variables" / "variables"))
    vectors = checkpoint.get_tensor("item_vectors/.ATTRIBUTES/VARIABLE_VALUE")
    ids, test, marked = saved.item_ids, saved.run.split.test, saved.run.dataset.has_ratings
    save_brute_force(ids.tolist(), vectors, models / BRUTE_FORCE / "1")
    some = test.take(evenly_spread(len(test), ASKED))
    histories = [ids[row].tolist() for row in some.history]
    ratings = [row.tolist() if marked else None for row in some.ratings]
    requests = {
        OURS: {
            "method": "recommend",
            "calls": [{"history": h, "ratings": r, "k": TOP} for h, r in zip(histories, ratings, strict=True) if h],
        },
        BRUTE_FORCE: _brute_force_requests([h for h in histories if h]),
    }
    told = (
        f"{saved.manifest['name']}: {len(ids):,} items of {vectors.shape[1]}, histories of "
        f"{statistics.mean(map(len, histories)):.0f} items in the mean, {max(map(len, histories))} at most"
    )
    del saved
    cells = [Cell(m, p, c) for c in CLIENTS for p in ("gRPC", "REST") for m in (OURS, BRUTE_FORCE)]
    loaded, _ = _measure(models, requests, cells, scratch, seconds, turns)
    return told, loaded, cells


def synthetic(
    items: int, scratch: Path, seconds: float, turns: int, seed: int
) -> tuple[list[Loaded], list[Cell], float, np.ndarray]:
    """Measures the exact and partitioned index and ``BruteForce`` on a synthetic catalogue.

    Returns:
      The figures of loading, those of the load, recall@10 of the partitioned index, and the milliseconds of the limit.
    """
    vectors, queries = clustered(items, DIM, SAMPLED + QUERIES, np.random.default_rng(seed))
    exact = build_index(vectors, queries, "exact")
    near = exact.top_k(tf.constant(queries), [TOP])[0].numpy()
    ids = [f"item-{number}" for number in range(items)]
    models = scratch / "synthetic"
    means = vectors[near].mean(axis=1)
    save_catalogue(ids, exact, models / EXACT / "1")
    cells = build_index(vectors, means[:SAMPLED], "partitioned", seed=seed, exclude=near[:SAMPLED])
    save_catalogue(ids, cells, models / CELLS / "1")
    save_brute_force(ids, vectors, models / BRUTE_FORCE / "1")
    read = reader(exact.vectors)
    histories = [[ids[item] for item in row] for row in near[SAMPLED:]]
    recommend = {"method": "recommend", "calls": [{"history": history, "k": TOP} for history in histories]}
    requests = {EXACT: recommend, CELLS: recommend, BRUTE_FORCE: _brute_force_requests(histories)}
    cells = [Cell(m, "gRPC", c) for c in CLIENTS for m in (EXACT, CELLS, BRUTE_FORCE)]
    limit: list[float] = []

    def limited() -> None:
        for _ in range(10):
            begun = time.perf_counter()
            read()
            limit.append(1000 * (time.perf_counter() - begun))

    read()
    loaded, recall = _measure(models, requests, cells, scratch, seconds, turns, limited, histories)
    return loaded, cells, recall, np.array(limit)


def _brute_force_requests(histories: Sequence[Sequence[str]]) -> dict[str, Any]:
    rows = [[*history[-LENGTH:], *[""] * (LENGTH - len(history))] for history in histories]
    calls = [{"signature": "serving_default", "inputs": {"input_1": [row]}} for row in rows]
    return {"method": "predict", "calls": calls}


def _measure(
    models: Path,
    requests: dict[str, Any],
    cells: Sequence[Cell],
    scratch: Path,
    seconds: float,
    turns: int,
    between: Any = lambda: None,
    histories: Sequence[list[str]] = (),
) -> tuple[list[Loaded], float]:
    """Loads each model by itself, measures all in turns, and compares the partition's lists with the exact ones."""
    time.sleep(SETTLES_S)
    loaded = [load_alone(models, name, scratch) for name in requests]
    asked = scratch / f"{models.name}.json"
    asked.write_text(json.dumps(requests))
    found = []
    with served(models, list(requests)) as server, Clients(asked) as clients:
        before = server.megabytes()
        take_turns(server, clients, cells, seconds, turns, between)
        loaded.append(Loaded("all of these", server.seconds, before, server.megabytes()))
        for history in histories:
            lists = []
            for name in (EXACT, CELLS):
                with Client(server.addresses["gRPC"], name) as client:
                    lists.append({item.item_id for item in client.recommend(history, k=TOP)})
            found.append(len(lists[0] & lists[1]) / TOP)
    return loaded, statistics.mean(found) if found else 0.0


def loading_table(loaded: Sequence[Loaded]) -> list[str]:
    rows = ["| loaded | s from start to AVAILABLE | resident MB | MB after the load |", "|---|---:|---:|---:|"]
    return rows + [
        f"| {one.models} | {one.seconds:.1f} | {one.megabytes:,.0f} | "
        f"{f'{one.afterwards:,.0f}' if one.afterwards else ''} |"
        for one in loaded
    ]


def load_table(cells: Sequence[Cell]) -> list[str]:
    """Returns the table of the load; ratios are medians over turns, because a slow turn slows both models."""
    rows = [
        "| clients | | | p50 ms | p99 ms | requests/s | CPU ms a request: server | client | p50 against BruteForce |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        same = (cell.clients, cell.protocol, BRUTE_FORCE)
        other = next(c for c in cells if (c.clients, c.protocol, c.model) == same)
        pairs = zip(cell.milliseconds, other.milliseconds, strict=True)
        ratio = statistics.median(float(np.median(ours) / np.median(theirs)) for ours, theirs in pairs)
        rows.append(
            f"| {cell.clients} | {cell.protocol} | {cell.model} | {cell.percentile(50):.1f} | "
            f"{cell.percentile(99):.1f} | {statistics.median(cell.rates):,.0f} | "
            f"{statistics.median(cell.server_cpu):.2f} | {statistics.median(cell.client_cpu):.2f} | "
            f"{'' if cell is other else f'{ratio:.2f}'} |"
        )
    return rows


def targets(cells: Sequence[Cell], made: Sequence[Cell], items: int, recall: float, limit: np.ndarray) -> list[str]:
    """Returns a table of the targets and the measured figures."""

    def said(cells: Sequence[Cell], model: str, figure: Any, form: str) -> str:
        figures = [(c.clients, figure(c)) for c in cells if c.model == model and c.protocol == "gRPC"]
        return ", ".join(f"{value:{form}} at {clients}" for clients, value in figures)

    middle = float(np.median(limit))
    return [
        "| target | by number of clients, gRPC |",
        "|---|---|",
        f"| the model, p99 below {MS_REAL} ms | {said(cells, OURS, lambda c: c.percentile(99), '.1f')} |",
        f"| {items:,} items, exact: p50 within {LIMITS_EXACT} times the limit ({middle:.1f} ms, lowest "
        f"{limit.min():.1f}) | {said(made, EXACT, lambda c: c.percentile(50) / middle, '.2f')} |",
        f"| {items:,} items, partitioned: p50 within {MS_CELLS} ms at recall@{TOP} {RECALL} or more ({recall:.3f}) | "
        f"{said(made, CELLS, lambda c: c.percentile(50), '.1f')} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="What tfllmrec export wrote; its run must still be there.")
    parser.add_argument("--seconds", type=float, default=15.0, help="Of each figure, over all turns.")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--items", type=int, default=1_000_000, help="Of the synthetic catalogue.")
    parser.add_argument("--folder", type=Path, help="Where models are made, and removed again: 1.2 kB an item.")
    parser.add_argument("--quick", action="store_true", help="A second each, 20,000 items; RESULTS.md is left alone.")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.turns, options.items = 1.0, 2, 20_000
    # SIGTERM raises SystemExit, so that the server and the clients are stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        scratch = Path(folder).resolve()
        load = os.getloadavg()[0]
        nothing = load_nothing(scratch)
        told, loaded, cells = real(options.model, scratch, options.seconds, options.turns)
        loaded_made, made, recall, limit = synthetic(
            options.items, scratch, options.seconds, options.turns, options.seed
        )
    lines = [
        f"{made_by(shlex.join(['python', 'benchmarks/serving.py', *sys.argv[1:]]), options.seed)}; load average "
        f"before it {load:.1f}",
        "",
        f"Top {TOP}; {options.turns} turns of {options.seconds / options.turns:g} s. Server, clients and the limit "
        "share the cores.",
        "",
        *targets(cells, made, options.items, recall, limit),
        "",
        f"{told}.",
        "",
        *load_table(cells),
        "",
        *loading_table([nothing, *loaded]),
        "",
        f"Synthetic: {options.items:,} items of {DIM} ({4 * DIM * options.items / 1e6:,.0f} MB), histories of {TOP}.",
        "",
        *load_table(made),
        "",
        *loading_table(loaded_made),
    ]
    text = "\n".join(lines)
    print(text)
    if not options.quick:
        replace_section(f"serving: {told.split(':')[0]}", text)


if __name__ == "__main__":
    main()

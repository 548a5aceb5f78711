"""Measures time and peak anonymous memory of the vector store with many items; writes a section of RESULTS.md.

    python benchmarks/vector_store.py
    python benchmarks/vector_store.py --items 100000 --folder /somewhere/with/room

The encoder returns random vectors at almost no cost, so that the store itself is measured: a first run that encodes all
items, a second one that finds them all, and a third with one more item. Anonymous memory is a process's own memory, as
opposed to mapped files, whose pages the system can reclaim when needed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sections import made_by, replace_section

from tfllmrec.text.store import VectorStore, encode_items


@dataclass(frozen=True)
class Step:
    """A row of the table; ``anonymous_mb`` is the peak above the memory before the run."""

    name: str
    encoded: int
    seconds: float
    cpu_seconds: float
    anonymous_mb: float


class MadeUp:
    """An encoder that returns random vectors, whatever the texts."""

    fingerprint = "5701"

    def __init__(self, dim: int):
        self.dim, self.encoded = dim, 0
        self._rng = np.random.default_rng(0)

    def encode(self, texts: Sequence[str], progress: object = None) -> np.ndarray:
        self.encoded += len(texts)
        return self._rng.random((len(texts), self.dim), np.float32)


def measure(folder: Path, items: int, dim: int, chunk: int) -> list[Step]:
    """Measures the three runs; writes the store and the file of vectors to ``folder``, 4 * items * dim bytes each."""
    encoder, texts, steps = MadeUp(dim), [f"item number {i} of a made-up catalogue" for i in range(items)], []
    for name in ("all new", "all stored", "one new"):
        if name == "one new":
            texts.append("one item more")
        before = encoder.encoded
        start, cpu = time.perf_counter(), time.process_time()
        with peak_anonymous() as peak_mb:
            encode_items(texts, encoder, VectorStore(folder / "store"), chunk=chunk, out=folder / "vectors.npy")
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        steps.append(Step(name, encoder.encoded - before, seconds, cpu_seconds, peak_mb()))
    return steps


@contextmanager
def peak_anonymous() -> Iterator[Callable[[], float]]:
    """Yields a function that returns, after the block, the peak of anonymous memory above its start, in megabytes."""
    start, done = _anonymous_mb(), threading.Event()
    peak = start

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _anonymous_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak - start
    finally:
        done.set()
        thread.join()


def _anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="where the files are made, and removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        steps = measure(Path(folder), arguments.items, arguments.dim, arguments.chunk)
        segments = len(list(Path(folder).rglob("*.safetensors")))
    rows = [
        f"| {s.name} | {s.encoded:,} | {s.seconds:.1f} | {s.cpu_seconds:.1f} | {s.anonymous_mb:,.0f} |" for s in steps
    ]
    size_gb = arguments.items * arguments.dim * 4 / 1e9
    text = "\n".join(
        [
            made_by(shlex.join(["python", "benchmarks/vector_store.py", *sys.argv[1:]]), 0),
            "",
            f"{arguments.items:,} items, {arguments.dim} wide ({size_gb:.2f} GB of vectors), {segments:,} segments.",
            "",
            "| run | encoded | seconds | CPU seconds | peak anonymous MB |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    print(text)
    replace_section("the vector store", text)


if __name__ == "__main__":
    main()

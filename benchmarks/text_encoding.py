"""Compares texts per second of the bundled encoders and of sentence-transformers; writes a section of RESULTS.md.

    python benchmarks/text_encoding.py ../shared/data/amazon-2014/beauty --sentence-transformers-python stenv/bin/python

All encode the same texts on the same cores. ``minilm`` has the same weights in both libraries; ``e5`` and ``use`` are
compared with it per second of CPU time. sentence-transformers needs PyTorch and therefore a separate environment (stenv
above); without the option it is left out. ``--quick`` takes a few hundred texts and does not change RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sections import made_by, replace_section

from tfllmrec import assets
from tfllmrec.columns import TITLE
from tfllmrec.config import TextConfig, parse_config
from tfllmrec.data.readers import read_dataset
from tfllmrec.text.encoder import TextEncoder
from tfllmrec.text.template import ItemTemplate

OURS, THEIRS = "tfllmrec", "sentence-transformers"
#: Batch sizes of sentence-transformers; 32 is its default.
THEIR_BATCHES = (32, 128)
OUR_ENCODERS = (("minilm", "bfloat16"), ("minilm", "float32"), ("e5", "bfloat16"), ("use", "float32"))
TITLES = 10_000


@dataclass
class Contender:
    """An encoder whose speed is measured.

    Attributes:
      library: The name of the library.
      setting: A description of the encoder and its settings.
      encode: Encodes the texts for a round; returns the vectors, float32 ``[n, D]``, and the seconds and CPU seconds of
        the round, without loading.
      encoder: The name of the weights.
      rates: Texts per second, one figure per round.
      cpu_rates: Texts per second of CPU time, one figure per round.
      vectors: The vectors of the last round.
    """

    library: str
    setting: str
    encode: Callable[[], tuple[np.ndarray, float, float]]
    encoder: str = "minilm"
    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))


def ours(texts: list[str], config: TextConfig) -> Contender:
    encoder = TextEncoder.from_config(config)
    encoder.encode(texts[:256])

    def encode() -> tuple[np.ndarray, float, float]:
        start, start_cpu = time.perf_counter(), time.process_time()
        vectors = encoder.encode(texts)
        return vectors, time.perf_counter() - start, time.process_time() - start_cpu

    return Contender(OURS, f"`{config.encoder}`, {config.precision}", encode, config.encoder)


def theirs(
    python: Path, texts: list[str], folder: Path, precision: str, batch_size: int, versions: dict[str, str]
) -> Contender:
    """Returns sentence-transformers, run by another Python, as a contender; extends ``versions``."""
    written, vectors = folder / "texts.json", folder / f"{precision}-{batch_size}.npy"
    written.write_text(json.dumps(texts))
    settings = {"precision": precision, "batch-size": batch_size, "threads": os.cpu_count(), "rounds": 1,
                "max-tokens": TextConfig().max_tokens}  # fmt: skip
    script = Path(__file__).with_name("sentence_transformers_encoding.py")
    command = [str(python), str(script), str(assets.weights("minilm")), str(written), str(vectors)]
    command += [f"--{name}={value}" for name, value in settings.items()]

    def encode() -> tuple[np.ndarray, float, float]:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        said = json.loads(done.stdout.splitlines()[-1])
        versions.update(said["versions"])
        return np.load(vectors), said["seconds"][0], said["cpu_seconds"][0]

    return Contender(THEIRS, f"`minilm`, {precision}, batches of {batch_size}", encode)


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[Contender], list[float], dict[str, str], int]:
    """Returns the measured contenders, the seconds of the titles alone, the versions, and the number of titles."""
    config = parse_config({"data": {"source": str(options.source)}, "seed": options.seed})
    items = read_dataset(config.data, Path()).items
    drawn = np.random.default_rng(config.seed).permutation(len(items))
    texts = [text for text in ItemTemplate.from_items(items, config.text.template).texts(items.iloc[drawn]) if text]
    texts = texts[: options.texts]
    titles = [title for title in items[TITLE].iloc[drawn].fillna("") if title][: options.titles]
    versions = {name: version(name) for name in ("tensorflow", "tensorflow-text")}

    contenders = [
        ours(texts, config.text.model_copy(update={"encoder": encoder, "precision": precision}))
        for encoder, precision in OUR_ENCODERS
    ]
    if options.sentence_transformers_python:
        contenders += [
            theirs(options.sentence_transformers_python, texts, folder, precision, batch_size, versions)
            for precision in ("bfloat16", "float32")
            for batch_size in THEIR_BATCHES
        ]
    of_titles, titles_seconds = ours(titles, config.text.model_copy(update={"precision": "bfloat16"})), []
    for turn in range(options.rounds):
        for contender in contenders:
            contender.vectors, seconds, cpu_seconds = contender.encode()
            contender.rates.append(len(texts) / seconds)
            contender.cpu_rates.append(len(texts) / cpu_seconds)
            said = f"round {turn + 1}: {contender.library}, {contender.setting}: {contender.rates[-1]:,.0f} texts/s"
            print(said, file=sys.stderr, flush=True)
        titles_seconds.append(of_titles.encode()[1])
        print(f"round {turn + 1}: {len(titles):,} titles: {titles_seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    return contenders, titles_seconds, versions, len(titles)


def as_section(
    contenders: list[Contender], titles: list[float], versions: dict[str, str], n_titles: int, made: str
) -> str:
    """Returns the figures as Markdown."""
    minilm = [c for c in contenders if c.encoder == "minilm"]
    # The reference is sentence-transformers if it was measured, because the weights are published for it.
    reference = next(c for c in reversed(minilm) if "float32" in c.setting)
    best = max((c for c in minilm if c.library != OURS), key=lambda c: statistics.median(c.rates), default=None)
    rows = []
    for contender in contenders:
        ratio, cosines = "", ["", ""]
        if best is not None:
            ratio = _rounds([a / b for a, b in zip(contender.rates, best.rates, strict=True)], ".2f")
        if contender.encoder == "minilm":
            cosine = np.sum(contender.vectors * reference.vectors, axis=1)
            cosines = [f"{cosine.min():.5f}", f"{cosine.mean():.5f}"]
        of_minilm = _rounds([a / b for a, b in zip(contender.cpu_rates, contenders[0].cpu_rates, strict=True)], ".2f")
        cells = [
            f"{contender.library}, {contender.setting}",
            _rounds(contender.rates, ",.0f"),
            ratio,
            of_minilm,
            *cosines,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    against = best.setting if best else "(not measured: name a Python by --sentence-transformers-python)"
    return f"""{made}

{len(reference.vectors):,} item texts, cut after {TextConfig().max_tokens} tokens. Median of {len(titles)} rounds
(lowest to highest) in which the contenders take turns; loading is not timed. Cosines are to {reference.library},
{reference.setting}.

| | texts/s | {THEIRS}, {against} = 1 | texts/s of CPU time, {contenders[0].setting} = 1 | lowest cosine | mean cosine |
|---|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

{n_titles:,} titles alone, {contenders[0].setting}: {_rounds(titles, ".1f")} s.

Versions: {", ".join(f"{name} {number}" for name, number in versions.items())}.
"""


def _rounds(values: list[float], form: str) -> str:
    """Formats the median and the range."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="A data set in a known format, with titles.")
    parser.add_argument("--sentence-transformers-python", type=Path, help="The Python of an environment with it.")
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--titles", type=int, default=TITLES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--quick", action="store_true", help="A few hundred texts, one round; RESULTS.md is left alone."
    )
    options = parser.parse_args()
    if options.quick:
        options.texts, options.titles, options.rounds = 300, 300, 1
    made = made_by(shlex.join(["python", *sys.argv]), options.seed)
    with tempfile.TemporaryDirectory() as folder:
        body = as_section(*measure(options, Path(folder)), made)
    print(body)
    if not options.quick:
        replace_section("encoding texts", body)


if __name__ == "__main__":
    main()

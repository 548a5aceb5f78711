"""Measures the encoding speed of sentence-transformers; run by benchmarks/text_encoding.py with another Python.

sentence-transformers needs PyTorch, which does not belong in the environment of this package. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="Folder with config.json, model.safetensors and vocab.txt.")
    parser.add_argument("texts", type=Path, help="JSON list of strings.")
    parser.add_argument("vectors", type=Path, help="Where to write the vectors, .npy.")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    for name in ("batch-size", "threads", "max-tokens", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    # Make a model folder in Hub format: the folder of the weights lacks the tokenizer's file and must not be changed.
    folder = options.vectors.with_suffix("")
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(options.weights.resolve() / name)
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    BertTokenizer(vocab={token: row for row, token in enumerate(tokens)}, do_lower_case=True).save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=options.max_tokens)
    width = transformer.get_embedding_dimension()
    model = SentenceTransformer(modules=[transformer, Pooling(width, "mean"), Normalize()], device="cpu")
    if options.precision == "bfloat16":
        model = model.bfloat16()

    texts = json.loads(options.texts.read_text())
    seconds, cpu_seconds = [], []
    model.encode(texts[: 4 * options.batch_size], batch_size=options.batch_size)
    for _ in range(options.rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        vectors = model.encode(texts, batch_size=options.batch_size, convert_to_numpy=False)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_cpu)
    np.save(options.vectors, torch.stack(list(vectors)).float().numpy())
    versions = {name: version(name) for name in ("sentence-transformers", "transformers", "torch")}
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "versions": versions}))


if __name__ == "__main__":
    main()

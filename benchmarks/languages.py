"""Measures search in English, Chinese and German with each bundled encoder; a section of benchmarks/RESULTS.md.

    python benchmarks/languages.py

The data are 300 films with titles and categories in three languages, and 100 queries in each language, which do not use
the words of the titles (tests/text/multilingual). Films and queries are in the same language. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sections import made_by, replace_section

from tfllmrec.config import TextConfig
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.progress import to_stderr
from tfllmrec.text.centring import search_weights
from tfllmrec.text.side_by_side import Encoder, encoder_of

FILMS = Path(__file__).parents[1] / "tests" / "text" / "multilingual"
LANGUAGES = {"en": "English", "zh": "Chinese", "de": "German"}
ENCODERS = ("minilm", "e5", "use", "minilm+e5")
K = 10


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FILMS / name).read_text(encoding="utf-8").splitlines()]


def recalls(encoder: Encoder | None, language: str) -> np.ndarray:
    """Returns recall@10 of each query, float64 ``[100]``; without an encoder, by shared n-grams alone."""
    films, queries = rows("films.jsonl"), rows("queries.jsonl")
    texts = [f"{film[f'title_{language}']} ({', '.join(film[f'categories_{language}'])})" for film in films]
    asked = [query[f"query_{language}"] for query in queries]
    if encoder is None:
        scores = tf_idf_cosines(asked, texts)
    else:
        items = encoder.encode(texts)
        factors, _, _ = search_weights(items, encoder.widths)
        scores = encoder.for_queries.encode(asked) * factors @ items.T
    # Films with a score of 0 are left out of the lists: they share nothing with the query, and would be in file order.
    ids = np.array([film["item_id"] for film in films])
    found = [set(ids[np.argsort(-row, kind="stable")[:K]][np.sort(row)[::-1][:K] != 0]) for row in scores]
    relevant = [set(query["relevant"]) for query in queries]
    return np.array([len(want & list_) / len(want) for want, list_ in zip(relevant, found, strict=True)])


def tf_idf_cosines(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Returns cosines of n-gram counts weighted by ``log(N / texts with the n-gram)``, float64 ``[B, N]``."""
    counts = [Counter(n_grams(text)) for text in texts]
    frequency = Counter(gram for count in counts for gram in count)
    column = {gram: i for i, gram in enumerate(frequency)}
    weights = np.log(len(texts) / np.array(list(frequency.values())))

    def unit(counts: Sequence[Counter[str]]) -> np.ndarray:
        vectors = np.array([[count[gram] for gram in column] for count in counts]) * weights
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    return unit([Counter(n_grams(query)) for query in queries]) @ unit(counts).T


def n_grams(text: str) -> list[str]:
    """Returns the words of a text and their runs of four characters; for Chinese, single characters and pairs."""
    grams = []
    for word in re.findall(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+", text.casefold()):
        sizes = (1, 2) if word[0] >= "\u4e00" else (4, len(word) + 2)
        framed = word if word[0] >= "\u4e00" else f"<{word}>"
        grams += [framed[i : i + n] for n in sizes for i in range(len(framed) - n + 1)]
    return grams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoders", nargs="*", default=ENCODERS, help="Values of text.encoder.")
    options = parser.parse_args()
    table = []
    for name in [None, *options.encoders]:
        to_stderr(name or "shared words")
        encoder = None if name is None else encoder_of(TextConfig(encoder=name))
        by_language = {language: recalls(encoder, language).mean() for language in LANGUAGES}
        english = by_language["en"]
        table.append(
            [
                "shared words (TF-IDF)" if name is None else f"`{name}`",
                f"{english:.3f}",
                *(f"{by_language[language]:.3f} ({by_language[language] / english:.2f})" for language in ("zh", "de")),
            ]
        )
    body = "\n".join(
        [
            made_by(shlex.join(["python", *sys.argv]), []),
            "",
            f"recall@{K} of 100 queries over 300 films, films and queries in the same language; in brackets the ratio "
            "to English with the same encoder. The queries describe a need in other words than the titles and were "
            "written before any encoder was tried. The first row counts shared words and runs of characters alone, "
            "categories included: Chinese queries have more of them than English ones.",
            "",
            *markdown_table(["", *LANGUAGES.values()], table),
        ]
    )
    replace_section("search in other languages", body)
    print(body)


if __name__ == "__main__":
    main()

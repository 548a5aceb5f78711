"""Search in English, Chinese and German by each bundled encoder; a section of benchmarks/RESULTS.md.

    python benchmarks/languages.py

300 films with titles and categories in three languages, and 100 queries in each that describe a need in other words
than the titles (tests/text/multilingual). Films and queries are in the same language. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
from sections import made_by, replace_section

from tfllmrec.config import TextConfig
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.progress import to_stderr
from tfllmrec.text.side_by_side import Encoder, encoder_of

FILMS = Path(__file__).parents[1] / "tests" / "text" / "multilingual"
LANGUAGES = {"en": "English", "zh": "Chinese", "de": "German"}
ENCODERS = ("minilm", "e5", "use", "minilm+e5")
K = 10


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FILMS / name).read_text(encoding="utf-8").splitlines()]


def recalls(encoder: Encoder, language: str) -> np.ndarray:
    """recall@10 of each query, float64 ``[100]``."""
    films, queries = rows("films.jsonl"), rows("queries.jsonl")
    texts = [f"{film[f'title_{language}']} ({', '.join(film[f'categories_{language}'])})" for film in films]
    items = encoder.encode(texts)
    asked = encoder.for_queries.encode([query[f"query_{language}"] for query in queries])
    found = np.argsort(-asked @ items.T, axis=1, kind="stable")[:, :K]
    ids = np.array([film["item_id"] for film in films])
    relevant = [set(query["relevant"]) for query in queries]
    return np.array([len(want & set(ids[list_])) / len(want) for want, list_ in zip(relevant, found, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoders", nargs="*", default=ENCODERS, help="Values of text.encoder.")
    options = parser.parse_args()
    table = []
    for name in options.encoders:
        to_stderr(name)
        encoder = encoder_of(TextConfig(encoder=name))
        by_language = {language: recalls(encoder, language).mean() for language in LANGUAGES}
        english = by_language["en"]
        table.append(
            [
                f"`{name}`",
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
            "written before any encoder was tried.",
            "",
            *markdown_table(["", *LANGUAGES.values()], table),
        ]
    )
    replace_section("search in other languages", body)
    print(body)


if __name__ == "__main__":
    main()

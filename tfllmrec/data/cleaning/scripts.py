"""The scripts that texts are written in, which decide on the encoder that can read them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from tfllmrec.data.findings import Finding
from tfllmrec.data.sampling import evenly_spread

#: A cuneiform sign, which no vocabulary of an encoder has.
UNKNOWN = "\U00012000"
#: Texts that are looked at.
SAMPLE = 1000
#: Scripts with a smaller share of the letters are not named.
LEAST_SHARE = 0.02
#: If a larger share of the letters is not Latin, there is a warning.
MOST_FOREIGN = 0.05


def sample_of(texts: Sequence[str]) -> list[str]:
    """At most :data:`SAMPLE` of the texts, evenly spread."""
    return [texts[row] for row in evenly_spread(len(texts), SAMPLE)]


def scripts_of(texts: Sequence[str]) -> dict[str, float]:
    """Share of the letters by script as Unicode names it (``LATIN``, ``CJK``), the largest first; of a sample."""
    counts = Counter(_script_of(letter) for text in sample_of(texts) for letter in text if letter.isalpha())
    total = counts.total() or 1
    return {script: count / total for script, count in counts.most_common()}


def script_doubts(texts: pd.Series) -> list[Finding]:
    """A finding if more than :data:`MOST_FOREIGN` of the letters are not Latin; otherwise an empty list.

    Args:
      texts: of the items, named as their column.
    """
    scripts = scripts_of(texts.tolist())
    foreign = 1 - scripts.get("LATIN", 0.0)
    if not scripts or foreign <= MOST_FOREIGN:
        return []
    what = (
        f"{foreign:.0%} of the letters in {texts.name} are not Latin ({in_words(scripts)}), and the default text "
        "encoder, minilm, was trained on English; text.encoder=e5 reads about 100 languages"
    )
    has_any = texts.map(lambda text: any(letter.isalpha() and _script_of(letter) != "LATIN" for letter in text))
    return [Finding("items", what, int(has_any.sum()), "doubted")]


def _script_of(letter: str) -> str:
    """The first word of the letter's name in Unicode; full-width and stylistic variants count as the plain letter."""
    plain = unicodedata.normalize("NFKC", letter)[0]
    return unicodedata.name(plain, "UNKNOWN").split(" ")[0].split("-")[0]


def in_words(scripts: dict[str, float]) -> str:
    """The scripts for display: ``CJK 93%, LATIN 7%``."""
    named = [f"{script} {share:.0%}" for script, share in scripts.items() if share >= LEAST_SHARE]
    return ", ".join(named) or "none"

"""Recognises the scripts of texts, such as Latin, which determine the encoders that can read them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from tfllmrec.data.findings import Finding
from tfllmrec.data.sampling import evenly_spread

#: A cuneiform sign, which is in no encoder's vocabulary.
UNKNOWN = "\U00012000"
#: Maximum number of texts that are examined.
SAMPLE = 1000
#: Scripts with a smaller share of the letters are not named.
LEAST_SHARE = 0.02
#: A larger share of letters that are not Latin causes a warning.
MOST_FOREIGN = 0.05


def sample_of(texts: Sequence[str]) -> list[str]:
    """Returns at most :data:`SAMPLE` of the texts, evenly spread."""
    return [texts[row] for row in evenly_spread(len(texts), SAMPLE)]


def scripts_of(texts: Sequence[str]) -> dict[str, float]:
    """Returns the share of letters by Unicode's name of the script (``LATIN``, ``CJK``) in a sample, largest first."""
    counts = Counter(_script_of(letter) for text in sample_of(texts) for letter in text if letter.isalpha())
    total = counts.total() or 1
    return {script: count / total for script, count in counts.most_common()}


def script_doubts(texts: pd.Series) -> list[Finding]:
    """Returns a finding if more than :data:`MOST_FOREIGN` of the letters are not Latin; otherwise an empty list.

    Args:
      texts: The texts of the items, named like their column.
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
    """Returns the first word of the letter's Unicode name; full-width and stylistic variants count as plain letters."""
    plain = unicodedata.normalize("NFKC", letter)[0]
    return unicodedata.name(plain, "UNKNOWN").split(" ")[0].split("-")[0]


def in_words(scripts: dict[str, float]) -> str:
    """Formats the scripts for display: ``CJK 93%, LATIN 7%``."""
    named = [f"{script} {share:.0%}" for script, share in scripts.items() if share >= LEAST_SHARE]
    return ", ".join(named) or "none"

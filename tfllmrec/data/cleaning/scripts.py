"""Recognises the scripts of texts, such as Latin, which determine the encoders that can read them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

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
    """Returns the share of letters by Unicode's name of the script (``LATIN``, ``CJK``) in a sample, largest first.

    Full-width and stylistic variants count as plain letters. Not counted are modifiers, such as U+02BC for an
    apostrophe, and a Greek letter by itself, which is a symbol (``5 μm``).
    """
    counts = Counter(script for text in sample_of(texts) for script in _scripts_in(text))
    total = counts.total() or 1
    return {script: count / total for script, count in counts.most_common()}


def script_doubts(scripts: dict[str, float]) -> list[str]:
    """Returns a warning if more than :data:`MOST_FOREIGN` of the letters are not Latin; otherwise an empty list.

    Args:
      scripts: The share of each script in the texts of the items, see :func:`scripts_of`.
    """
    foreign = 1 - scripts.get("LATIN", 0.0)
    if not scripts or foreign <= MOST_FOREIGN:
        return []
    return [
        f"{foreign:.0%} of the letters in the texts of items are not Latin ({in_words(scripts)}), and the default text "
        "encoder, minilm, was trained on English; text.encoder=e5 reads about 100 languages"
    ]


def _scripts_in(text: str) -> Iterator[str]:
    scripts = [script_of(c) if c.isalpha() else "" for c in unicodedata.normalize("NFKC", text)]
    for before, script, after in zip(["", *scripts], scripts, [*scripts[1:], ""], strict=False):
        if script not in ("", "MODIFIER") and (script != "GREEK" or script in (before, after)):
            yield script


@cache
def script_of(character: str) -> str:
    """Returns the script of a character: the first word of its Unicode name, or ``CJK`` for iteration marks."""
    script = unicodedata.name(character, "UNKNOWN").split(" ")[0].split("-")[0]
    return "CJK" if script == "IDEOGRAPHIC" else script


def in_words(scripts: dict[str, float]) -> str:
    """Formats the scripts for display: ``CJK 93%, LATIN 7%``."""
    named = [f"{script} {share:.0%}" for script, share in scripts.items() if share >= LEAST_SHARE]
    return ", ".join(named) or "none"

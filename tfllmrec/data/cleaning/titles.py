"""Chooses a short text for each item to show in lists: its title, or other columns if the title is unusable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import CATEGORIES, DESCRIPTION, ITEM, TITLE
from tfllmrec.data.cleaning.item_text import WORDS_FOR_NOTHING
from tfllmrec.data.cleaning.names import category_names

#: Maximum length of a text that is taken from a description, in characters.
LONGEST = 80
#: A title is unusable if at least this many items, and at least this share of the items, have it.
SHARED_BY, SHARED_SHARE = 3, 0.2

_CURRENCY = r"(?:USD|EUR|GBP|CHF|INR|Rs\.?|[A-Z]{0,2}[$€£¥₹])"
_AMOUNT = r"\d[\d.,]*"
_FRAGMENTS = (
    r"</?[a-z][\w-]*\s+[\w:-]+\s*=",  # a tag
    r"""\b(?:class|style|href|src|id|alt|data-[\w-]+)\s*=\s*["']""",  # the rest of a tag that was cut in two
    r"""^[^<>]*["']\s*/>""",
    r"<!--|-->|<!\[CDATA\[|\]\]>",
    r"\bfunction\b[^()]*\([^()]*\)\s*\{|=>\s*\{|\b(?:var|let|const)\s+[\w$]+\s*=|\b(?:window|document)\.[a-z]|\breturn\b.*;$",
    r"[\w-]\s*\{[^{}]*:[^{}]*[;}]",  # a style sheet
    r"""[{,]\s*["'][^"']*["']\s*:|^[\[{]\s*["'{\[].*["'}\]]\s*[\]}]$""",  # JSON
    r"^(?:https?:|ftp:|file:|www\.|//|/[\w.-]+/)\S*$|^data:\w+/",
    r"^[\w-]+\.(?:jpe?g|png|gif|webp|html?|php|aspx?|pdf|mp[34])$",
    rf"^(?:from\s+)?{_CURRENCY}{{1,2}}\s*{_AMOUNT}(?:\s*-\s*{_CURRENCY}?\s*{_AMOUNT})?$|^{_AMOUNT}\s*{_CURRENCY}$",
    r"\{\{.*\}\}|\$\{.*\}|<%.*%>|\[object Object\]",  # a template that was not filled in
)
_FRAGMENT = re.compile("|".join(f"(?:{pattern})" for pattern in _FRAGMENTS), re.I)
# Every text that matches a pattern above contains one of these, and searching a whole column for them is fast.
_SUSPICIOUS = r"(?i)[<>{}\[\]=;/$€£¥₹]|\w\.\w|^data:|(?:\b|\d)(?:USD|EUR|GBP|CHF|INR|Rs)"
# Columns that name the maker of an item, best first.
_BRANDS = ("brand", "author", "authors", "artist", "publisher", "developer", "manufacturer")
_SENTENCE = re.compile(r"(.{15,}?[.!?。！？])(?:\s|$)", re.S)
_SPACES = re.compile(r"\s+")


def display_titles(items: pd.DataFrame) -> pd.Series:
    """Returns a short text for each item, which is never empty; for lists that users read, not for encoders.

    The text is the title if it is usable; otherwise the first sentence of the description, cut between words to
    :data:`LONGEST` characters; otherwise the brand and the most specific category; otherwise the id.

    Args:
      items: As :attr:`tfllmrec.data.dataset.Dataset.items`.

    Returns:
      str ``[N]``, with the index of ``items``.
    """
    shown = items[ITEM].astype("object")
    missing = ~usable_titles(items)
    if TITLE in items:
        shown = shown.mask(~missing, items[TITLE])
    if missing.any():
        shown[missing] = [_replacement(row) for row in items[missing].to_dict("records")]
    return shown.astype("str")


def usable_titles(items: pd.DataFrame) -> np.ndarray:
    """Returns bool ``[N]``: whether each item has a title that says what the item is.

    Unusable are fragments of HTML, scripts, style sheets and JSON, addresses, prices, the item's own id, and titles
    that many items share (:data:`SHARED_BY`, :data:`SHARED_SHARE`).
    """
    if TITLE not in items:
        return np.zeros(len(items), bool)
    titles = items[TITLE]
    usable = (titles != "") & (titles != items[ITEM])
    suspicious = titles.str.contains(_SUSPICIOUS)
    usable[suspicious] &= ~titles[suspicious].map(_is_fragment).astype(bool)
    counts = titles[usable].value_counts()
    shared = counts.index[counts >= max(SHARED_BY, SHARED_SHARE * len(items))]
    return (usable & ~titles.isin(shared)).to_numpy(dtype=bool)


def _is_fragment(text: str) -> bool:
    return _FRAGMENT.search(text[:500]) is not None


def _replacement(item: Mapping[Any, str]) -> str:
    description = _SPACES.sub(" ", item.get(DESCRIPTION, "")).strip()
    if description and not _is_fragment(description):
        return _beginning(description)
    brand = next(filter(None, (", ".join(_names(item, column)) for column in _BRANDS)), "")
    category = next(reversed(_names(item, CATEGORIES)), "")
    return f"{brand} ({category})" if brand and category else brand or category or item[ITEM]


def _names(item: Mapping[Any, str], column: str) -> list[str]:
    return [name for name in category_names(item.get(column, "")) if name.lower() not in WORDS_FOR_NOTHING]


def _beginning(text: str) -> str:
    """Returns the first sentence of ``text``, or as many of its words as fit."""
    sentence = match.group(1) if (match := _SENTENCE.match(text)) else text
    if len(sentence) <= LONGEST:
        return sentence
    head, space, _ = sentence[:LONGEST].rpartition(" ")
    return f"{head if space else sentence[: LONGEST - 1]}…"

"""Cleans texts of items: strips HTML, and finds words such as "null" that stand for a missing text."""

from __future__ import annotations

import html
import re

import numpy as np
import pandas as pd

from tfllmrec.data.cleaning.values import WORDS_FOR_NOTHING

_HTML_NAMES = (
    "a|abbr|article|aside|audio|b|big|blockquote|body|br|button|caption|center|cite|code|dd|del|details|div|dl|dt|em|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|li|link|meta|nav|"
    "noscript|object|ol|option|p|picture|pre|s|script|section|select|small|source|span|strike|strong|style|sub|summary|"
    "sup|svg|table|tbody|td|textarea|tfoot|th|thead|tr|tt|u|ul|video|wbr"
)
_HTML_BLOCKS = [(re.compile(rf"<{name}\b", re.I), re.compile(rf"</{name}\s*>", re.I)) for name in ("script", "style")]
_HTML_TAG = re.compile(rf"</?(?:{_HTML_NAMES})\b[^<>]*(?:>|$)|<!--.*?(?:-->|$)", re.I | re.S)
_HTML_TAIL = re.compile(r'^[^<>]*"\s*/>')  # the rest of a tag that a scraper cut in two
# No code point has more digits, and Python refuses to parse an integer of thousands of digits.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]*);")
_SPACES = re.compile(r"\s+")
# A word stands for a missing text if at least 3 items have it, and 1 % of the items or 100 items.
_NOTHING_LEAST, _NOTHING_SHARE, _NOTHING_MOST = 3, 0.01, 100


def words_for_nothing(texts: pd.Series) -> np.ndarray:
    """Returns bool ``[R]``: which texts are a word such as "null" that stands for "nothing".

    "None", "Null" and "NaN" can also be titles. A spelling counts as "nothing" if at least three items have it, and at
    least 1 % of the items or 100 items: no title recurs that often.

    Args:
      texts: Str ``[R]``, stripped.
    """
    words = texts[texts.str.lower().isin(WORDS_FOR_NOTHING)]
    counts = words.value_counts()
    fewest = max(_NOTHING_LEAST, min(_NOTHING_SHARE * len(texts), _NOTHING_MOST))
    return texts.isin(counts.index[counts >= fewest]).to_numpy(dtype=bool)


def strip_html(text: str) -> str:
    """Removes HTML tags, including broken ones, and resolves entities; returns other text unchanged."""
    if "<" not in text and "&" not in text and "/>" not in text:
        return text
    clean = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    clean = _ENTITY.sub(lambda match: html.unescape(match.group()), clean)  # some texts are escaped twice: &amp;quot;
    clean = _HTML_TAIL.sub(" ", _HTML_TAG.sub(" ", _without_blocks(clean)))
    return text if clean == text else _SPACES.sub(" ", clean).strip()


def _without_blocks(text: str) -> str:
    """Removes scripts and style sheets; an unclosed one stays, because its tag may be a word in a title.

    This takes linear time. One regular expression for both ends would not, if many tags open and none closes.
    """
    for opening, closing in _HTML_BLOCKS:
        kept, end = [], 0
        while (start := opening.search(text, end)) and (stop := closing.search(text, start.end())):
            kept.append(text[end : start.start()])
            end = stop.end()
        text = " ".join([*kept, text[end:]])
    return text

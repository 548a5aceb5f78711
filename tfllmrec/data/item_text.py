"""Text of items as it is shown and encoded: categories in any shape as names, HTML stripped."""

from __future__ import annotations

import ast
import html
import json
import re
from typing import Any

import numpy as np

from tfllmrec.data.values import MISSING, as_text

_HTML_NAMES = (
    "a|abbr|article|aside|audio|b|big|blockquote|body|br|button|caption|center|cite|code|dd|del|details|div|dl|dt|em|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|li|link|meta|nav|"
    "noscript|object|ol|option|p|picture|pre|s|script|section|select|small|source|span|strike|strong|style|sub|summary|"
    "sup|svg|table|tbody|td|textarea|tfoot|th|thead|tr|tt|u|ul|video|wbr"
)
_HTML_BLOCKS = [(re.compile(rf"<{name}\b", re.I), re.compile(rf"</{name}\s*>", re.I)) for name in ("script", "style")]
_HTML_TAG = re.compile(rf"</?(?:{_HTML_NAMES})\b[^<>]*(?:>|$)|<!--.*?(?:-->|$)", re.I | re.S)
_HTML_TAIL = re.compile(r'^[^<>]*"\s*/>')  # what is left where a scraper cut a tag in two
# No code point has more digits, and Python refuses to read a number of thousands of them.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]*);")
_SPACES = re.compile(r"\s+")


def category_text(value: Any) -> str:
    """Categories in any shape as one readable string.

    >>> category_text([["Beauty", "Makeup"], ["Beauty", "Face"]])
    'Beauty, Makeup, Face'
    >>> category_text("Action|Sci-Fi")
    'Action, Sci-Fi'

    Takes nested lists, JSON or Python literals of them, mappings (their keys), and strings separated by ``|``, ``;``,
    `` > `` or commas. Repeated names are named once; MovieLens' "(no genres listed)" is no category.
    """
    names: dict[str, None] = {}

    def collect(part: Any) -> None:
        if isinstance(part, np.ndarray):
            part = part.tolist()
        if isinstance(part, (list, tuple, set, dict)):
            for inner in part:
                collect(inner)
            return
        text = strip_html(as_text(part)).strip()
        if text[:1] in "[{" and text:
            literal = _literal(text)
            if literal is not None:
                return collect(literal)
        separator = next((s for s in ("|", ";", " > ") if s in text), None)
        if separator:
            return collect(text.split(separator))
        if text and text not in MISSING and text != "(no genres listed)":
            names[text] = None

    if isinstance(value, str) and value.strip()[:1] not in ("[", "{"):
        value = strip_html(value)  # before splitting: an entity ends in ";"
        if not re.search(r"\||;| > ", value):
            value = value.split(",")
    collect(value)
    return ", ".join(names)


def category_names(text: str) -> list[str]:
    """The categories of a cleaned ``categories`` cell, as :func:`category_text` writes it.

    >>> category_names("Action, Sci-Fi")
    ['Action', 'Sci-Fi']

    A name with a comma counts as its parts. Each is named once.
    """
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _literal(text: str) -> list | dict | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, (list, dict, tuple)) else None  # type: ignore[return-value]
    return None


def strip_html(text: str) -> str:
    """``text`` without HTML tags (broken ones too) and with its entities resolved; other text comes back unchanged."""
    if "<" not in text and "&" not in text and "/>" not in text:
        return text
    clean = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    clean = _ENTITY.sub(lambda match: html.unescape(match.group()), clean)  # &amp;quot; is met in the wild
    clean = _HTML_TAIL.sub(" ", _HTML_TAG.sub(" ", _without_blocks(clean)))
    return text if clean == text else _SPACES.sub(" ", clean).strip()


def _without_blocks(text: str) -> str:
    """``text`` without scripts and style sheets; one that is not closed stays, for it may be a word in a title.

    In linear time, which one regular expression for both ends is not where many open and none closes.
    """
    for opening, closing in _HTML_BLOCKS:
        kept, end = [], 0
        while (start := opening.search(text, end)) and (stop := closing.search(text, start.end())):
            kept.append(text[end : start.start()])
            end = stop.end()
        text = " ".join([*kept, text[end:]])
    return text

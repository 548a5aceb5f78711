"""Parts of messages: text from files with escaped invisible characters, short values, nearest and distinct names."""

from __future__ import annotations

import difflib
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Signs that Unicode classifies as format characters, although they are visible: those before Arabic, Syriac and Kaithi
# numbers, and those that arrange Egyptian hieroglyphs.
_WRITTEN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
# Letters and marks that have no width, or look like a space.
_BLANK = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0}
# Joiners shape the letters of scripts from Hebrew onwards, and emoji; in Latin, Greek and Cyrillic they are invisible.
_JOINERS, _FIRST_JOINED = "\u200c\u200d", "\u0590"

#: Longer words are not compared, and of more names only the first are compared, because a comparison takes time.
LONGEST_WORD, MOST_NAMES = 100, 5000

_VALUES = reprlib.Repr()
_VALUES.maxlevel, _VALUES.maxstring, _VALUES.maxother, _VALUES.maxlong = 2, 78, 78, 40


def visible(text: str) -> str:
    r"""Returns one line that is safe for a terminal: control and bidirectional characters and the like are escaped.

    ``\x1b``, ``\n``, ``\u202e``, ``\u200b`` and lone surrogates are written as in a Python string. Letters, marks and
    signs of every script stay as they are, and so do joiners between letters that they shape and in emoji.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if _hidden(char, text[place - 1 : place], text[place + 1 : place + 2])
        else char
        for place, char in enumerate(text)
    )  # fmt: skip


def _hidden(char: str, before: str, after: str) -> bool:
    category = unicodedata.category(char)
    if char in _JOINERS:
        return not all(other >= _FIRST_JOINED and unicodedata.category(other) != "Cf" for other in (before, after))
    if category == "Cf":
        return ord(char) not in _WRITTEN
    return category in ("Cc", "Cs", "Zl", "Zp") or ord(char) in _BLANK


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Returns the names of folders; equal names are preceded by as many parent folders as needed to differ."""
    paths = [folder.resolve().parts for folder in folders]
    names = []
    for at, parts in enumerate(paths):
        depth = 1
        while depth < len(parts) and any(
            other[-depth:] == parts[-depth:] and other != parts for other in paths[:at] + paths[at + 1 :]
        ):
            depth += 1
        names.append("/".join(parts[-depth:]))
    return names


def clipped(text: str, letters: int) -> str:
    """Returns text as :func:`visible` does, with at most ``letters`` characters; a longer text ends in ``…``.

    Characters that are invalid in XML documents are escaped, too.
    """
    text = visible(text[: letters + 1])
    text = text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"


def shown(value: Any) -> str:
    """Formats a value as in YAML and Python, with at most 80 characters, however large or deeply nested it is."""
    if value is None:
        return "null"
    try:
        text = _VALUES.repr(value)
    except ValueError:  # an integer with more digits than Python formats
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(word: str, names: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Returns the ``n`` names most similar to a word, best first; compares at most :data:`MOST_NAMES` names.

    Args:
      word: The word.
      names: The names. If there are more than :data:`MOST_NAMES`, those that begin like the word are compared. Names
        longer than :data:`LONGEST_WORD` are skipped.
      n: The maximum number of names that are returned.
      cutoff: The minimum similarity, 0 to 1, see :func:`difflib.get_close_matches`.
    """
    if len(word) > LONGEST_WORD:
        return []
    alike = [name for name in names if len(name) <= LONGEST_WORD]
    for end in range(1, len(word) + 1):
        if len(alike) <= MOST_NAMES:
            break
        alike = [name for name in alike if name.startswith(word[:end])] or alike[:MOST_NAMES]
    return difflib.get_close_matches(word, alike[:MOST_NAMES], n, cutoff)


def nearest_hint(word: str, names: Iterable[str] | Mapping[str, str]) -> str:
    """Returns the end of a message on a wrong word: `` (nearest: 'NAME')``, or nothing if no name is similar.

    Args:
      word: The word.
      names: The valid names. In a mapping, the word is compared with the keys, and the value is shown.
    """
    found = nearest(word, names)
    if not found:
        return ""
    name = names[found[0]] if isinstance(names, Mapping) else found[0]
    return f" (nearest: {name!r})"

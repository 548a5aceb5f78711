"""Other wordings of a text, for contrastive tuning: words dropped, synonyms, template variants, paraphrases."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from tfllmrec.data.files.tables import require_file
from tfllmrec.errors import ConfigError, DataError

# BERT reads these one by one: each is a word, with or without spaces between them.
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PIECE = re.compile(rf"(?:[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+)\s*")
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+(?:['’-][^\W{_IDEOGRAPHS}]+)*")


@dataclass(frozen=True)
class Augmenter:
    """Makes views of texts with the same meaning: draws a wording or a paraphrase, replaces words, drops words.

    Dropping words and replacing them by synonyms is EDA (Wei and Zou 2019, arXiv:1901.11196), where .1 is found to be
    a good share for both; it helps most where examples are few, as with tail items. Each word falls by itself, while
    EDA fixes their number.

    Attributes:
      word_dropout: the probability that a word goes. One word stays at least, and a text of one word stays as it is.
      synonyms: word or phrase -> what may stand in its place, as :func:`read_synonyms` gives it. Found as whole words
        in any case (``"make-up"`` is one word, a Chinese character too), the longest phrase first; the synonym comes
        in the case of what it replaces.
      synonym_share: the probability that a word or phrase with synonyms is replaced.
      paraphrases: text -> another text of the same meaning, as :func:`tfllmrec.text.paraphrases.paraphrases_of` gives
        them.
      paraphrase_share: the probability that the paraphrase of a text is taken, if it has one. With 1 both views of a
        text would start from the same words.

    Raises:
      ConfigError: a share is not in [0, 1], ``word_dropout`` is 1, or a word has no synonym.
    """

    word_dropout: float = 0.1
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    synonym_share: float = 0.1
    paraphrases: Mapping[str, str] = field(default_factory=dict)
    paraphrase_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("word_dropout", "synonym_share", "paraphrase_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected a share between 0 and 1, got {getattr(self, name)}")
        if self.word_dropout == 1:
            raise ConfigError("word_dropout: expected less than 1, which would leave one word of each text; such as .1")
        for word, others in self.synonyms.items():
            if isinstance(others, str) or not others or not all(isinstance(o, str) and o.strip() for o in others):
                raise ConfigError(f"synonyms of {word!r}: expected a list of words, got {others!r}")

    def views(self, texts: Sequence[str | Sequence[str]], rng: np.random.Generator) -> list[str]:
        """One view of each text; call it twice for two.

        Args:
          texts: B strings, or a list of wordings for each item
            (:meth:`tfllmrec.text.template.ItemTemplate.wordings`). One wording is drawn, or the paraphrase of the first
            wording, the whole text, is taken.
          rng: decides everything: the same state gives the same views.

        Returns:
          B strings; ``""`` for ``""`` alone.
        """
        wordings = [[text] if isinstance(text, str) else text for text in texts]
        drawn = rng.random(len(texts))
        chosen = [each[int(u * len(each))] for each, u in zip(wordings, drawn, strict=True)]
        if self.paraphrases:
            drawn = rng.random(len(texts))
            chosen = [
                self.paraphrases.get(each[0], view) if u < self.paraphrase_share else view
                for each, view, u in zip(wordings, chosen, drawn, strict=True)
            ]
        if self.synonyms:
            chosen = [self._replaced(text, rng) for text in chosen]
        return [self._thinned(text, rng) for text in chosen] if self.word_dropout else chosen

    @cached_property
    def _table(self) -> dict[tuple[str, ...], list[str]]:
        """Synonyms by the words of what they replace."""
        table: dict[tuple[str, ...], list[str]] = {}
        for phrase, others in self.synonyms.items():
            table.setdefault(tuple(_WORD.findall(phrase.casefold())), []).extend(others)
        return table

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._table))

    def _replaced(self, text: str, rng: np.random.Generator) -> str:
        words = list(_WORD.finditer(text))
        # A word is part of a phrase only where nothing but space is before it.
        after_space = [not text[a.end() : b.start()].strip() for a, b in itertools.pairwise(words)]
        draws = rng.random((len(words), 2))
        out, end, i = "", 0, 0
        while i < len(words):
            length = 1
            for n in range(min(self._longest, len(words) - i), 0, -1):
                others = self._table.get(tuple(word.group().casefold() for word in words[i : i + n]))
                if others and all(after_space[i : i + n - 1]):
                    length = n
                    if draws[i, 0] < self.synonym_share:
                        start, stop = words[i].start(), words[i + n - 1].end()
                        out += text[end:start] + _in_case_of(text[start:stop], others[int(draws[i, 1] * len(others))])
                        end = stop
                    break
            i += length
        return out + text[end:]

    def _thinned(self, text: str, rng: np.random.Generator) -> str:
        pieces = _PIECE.findall(text)
        draws = rng.random(len(pieces))
        kept = draws >= self.word_dropout
        if len(pieces) < 2 or kept.all():
            return text
        kept[draws.argmax()] = True
        return "".join(itertools.compress(pieces, kept)).strip()


def read_synonyms(path: Path | str) -> dict[str, list[str]]:
    """Synonyms from a user's file: what :class:`Augmenter` takes.

    A ``.json`` file is an object, each word or phrase with a synonym or a list of them. Any other file has lines of
    tab-separated words: one, then what may stand in its place; blank lines and those that start with ``#`` are passed
    over, and a word may have several lines. Synonyms go one way; for both, name both.

    Raises:
      DataError: the file is not there, is not UTF-8, or a line or entry is of another form; names the line.
    """
    path = Path(path)
    require_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}") from None
    return _from_json(path, text) if path.suffix.lower() == ".json" else _from_lines(path, text)


def _from_json(path: Path, text: str) -> dict[str, list[str]]:
    form = 'expected an object such as {"sofa": ["couch", "settee"]}'
    try:
        read = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: {form}, got what is no JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{path}: {form}, got values that are nested too deeply") from None
    if not isinstance(read, dict):
        raise DataError(f"{path}: {form}, got a {type(read).__name__}")
    found = {}
    for word, others in read.items():
        listed = [others] if isinstance(others, str) else others
        filled = isinstance(listed, list) and all(isinstance(other, str) and other.strip() for other in listed)
        if not (_WORD.search(word) and filled and listed):
            line = text[: max(text.find(json.dumps(word)), text.find(f'"{word}"'), 0)].count("\n") + 1
            raise DataError(f"{path}:{line}: {form}, got {word!r}: {others!r}")
        found[word] = [other.strip() for other in listed]
    return found


def _from_lines(path: Path, text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, *others = (part.strip() for part in line.split("\t"))
        others = list(filter(None, others))
        if not (_WORD.search(word) and others):
            raise DataError(
                f"{path}:{number}: expected a word, a tab, and its synonyms with tabs between them, got {line[:60]!r}"
            )
        found.setdefault(word, []).extend(others)
    return found


def _in_case_of(word: str, other: str) -> str:
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other

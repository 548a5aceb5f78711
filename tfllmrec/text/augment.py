"""Augmentation of texts for contrastive tuning: dropped words, synonyms, template variants, paraphrases."""

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
from tfllmrec.text.words import IDEOGRAPHS, WORD

_PIECE = re.compile(rf"(?:[{IDEOGRAPHS}]|[^\s{IDEOGRAPHS}]+)\s*")


@dataclass(frozen=True)
class Augmenter:
    """Makes views of texts with the same meaning: draws a wording or a paraphrase, replaces words, drops words.

    Dropping words and replacing them by synonyms is EDA (Wei and Zou 2019, arXiv:1901.11196), which found .1 to be a
    good share for both. It helps most with few examples, as with tail items. Each word is dropped independently, while
    EDA fixes the number of dropped words.

    Attributes:
      word_dropout: The probability that a word is dropped. At least one word is kept.
      synonyms: Word or phrase -> its possible replacements, as :func:`read_synonyms` returns them. Matches whole words
        case-insensitively (``"make-up"`` is one word, and so is a Chinese character), the longest phrase first. The
        replacement takes the case of the original.
      synonym_share: The probability that a word or phrase with synonyms is replaced.
      paraphrases: Text -> another text of the same meaning, as :func:`tfllmrec.text.paraphrases.paraphrases_of` returns
        them.
      paraphrase_share: The probability that a text is replaced by its paraphrase, if it has one. With 1, both views of
        a text would start from the same words.

    Raises:
      ConfigError: A share is not in [0, 1], ``word_dropout`` is 1, or a word has no synonym.
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
        """Returns one view of each text; call it twice for two views.

        Args:
          texts: B strings, or a list of wordings for each item
            (:meth:`tfllmrec.text.template.ItemTemplate.wordings`). One wording is drawn, or the paraphrase of the first
            wording, which is the whole text, is taken.
          rng: The only source of randomness: the same state gives the same views.

        Returns:
          B strings; ``""`` only for ``""``.
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
        """Synonyms by the words of the phrase that they replace."""
        table: dict[tuple[str, ...], list[str]] = {}
        for phrase, others in self.synonyms.items():
            table.setdefault(tuple(WORD.findall(phrase.casefold())), []).extend(others)
        return table

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._table))

    def _replaced(self, text: str, rng: np.random.Generator) -> str:
        words = list(WORD.finditer(text))
        # Words form a phrase only if there is nothing but white space between them.
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
    """Reads synonyms for :class:`Augmenter` from a user's file.

    A ``.json`` file is an object that maps each word or phrase to a synonym or a list of synonyms. Any other file has
    lines of tab-separated words: a word, then its replacements. Blank lines and lines that start with ``#`` are
    skipped, and a word may have several lines. Synonyms go one way; for both directions, list both.

    Raises:
      DataError: The file does not exist, is not UTF-8, or a line or entry is malformed; the message names the line.
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
    except ValueError as error:  # an integer with more digits than Python reads
        raise DataError(f"{path}: {form}, got a number that is too long: {error}") from None
    except RecursionError:
        raise DataError(f"{path}: {form}, got values that are nested too deeply") from None
    if not isinstance(read, dict):
        raise DataError(f"{path}: {form}, got a {type(read).__name__}")
    found = {}
    for word, others in read.items():
        listed = [others] if isinstance(others, str) else others
        filled = isinstance(listed, list) and all(isinstance(other, str) and other.strip() for other in listed)
        if not (WORD.search(word) and filled and listed):
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
        if not (WORD.search(word) and others):
            raise DataError(
                f"{path}:{number}: expected a word, a tab, and its synonyms with tabs between them, got {line[:60]!r}"
            )
        found.setdefault(word, []).extend(others)
    return found


def _in_case_of(word: str, other: str) -> str:
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other

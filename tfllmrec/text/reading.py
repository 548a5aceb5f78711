"""Checks whether an encoder can read a catalogue, by the scripts of its texts and by their tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from unicodedata import category, normalize

import numpy as np

from tfllmrec.assets import ASSETS
from tfllmrec.data.cleaning.scripts import (
    LEAST_SHARE,
    MOST_FOREIGN,
    UNKNOWN,
    in_words,
    sample_of,
    script_of,
    scripts_of,
)

#: Maps texts to the ids of their pieces, one array per text.
Tokenize = Callable[[Sequence[str]], list[np.ndarray]]

#: An encoder with a larger share of unknown pieces cannot read the texts.
MOST_UNKNOWN = 0.05
#: Above this many pieces per letter, words are split into single letters, which encoders cannot interpret. Letters of
#: :data:`SYLLABIC` scripts stand for syllables and have a limit of their own.
MOST_PIECES, MOST_PIECES_OF_SYLLABLES = 0.7, 1.5
SYLLABIC = ("ETHIOPIC", "HANGUL")
#: Fewer letters of a script, such as a query of one short word, are exempt from the limit. Of 107 words in Cyrillic,
#: Greek, Arabic, Hebrew, Devanagari and Thai script, e5 exceeds it for 10 of the 57 shorter and none of the 50 others.
FEWEST_LETTERS = 6
#: Scripts without such a limit: in Chinese and Japanese a character can be a word, and all encoders know Latin letters.
UNLIMITED = ("CJK", "HIRAGANA", "KATAKANA", "LATIN")
#: Texts may not be English if the vocabulary of an English encoder has a smaller share of their words of four letters
#: or more. It has .73 to .86 of the words in the titles of beauty, toys, goodbooks and MovieLens, .65 of the names of
#: authors, .43 in German titles of films, and at most .35 in texts of user interfaces in 40 other languages.
LEAST_WHOLE_WORDS = 0.55
#: Texts with fewer such words are exempt.
FEWEST_WORDS = 50
#: The encoders that ``text.encoder=auto`` chooses from: the second one is larger and reads more languages.
AUTO = ("minilm", "e5")
# Words with digits, or in capitals only, may be codes.
_WORD = re.compile(r"\b[^\W\d_]{4,}\b")
_BUNDLED = {asset.name: asset for asset in ASSETS if asset.kind == "weights"}


@dataclass(frozen=True)
class Reading:
    """Statistics of an encoder's tokens for texts, which tell whether the encoder can read them.

    Attributes:
      scripts: Share of the letters by script, under its Unicode name (``LATIN``, ``CJK``), the largest first.
      unread: Those of the scripts that the encoder cannot read.
      unknown: Share of the pieces that stand for unknown characters.
      pieces_per_letter: Pieces per letter or digit.
      whole_words: Share of the words in Latin letters that the vocabulary has as a whole; ``None`` with few words, or
        if the encoder was not trained on English alone.
    """

    scripts: dict[str, float]
    unread: tuple[str, ...]
    unknown: float
    pieces_per_letter: float
    whole_words: float | None = None

    @property
    def works(self) -> bool:
        """Whether the encoder can read the texts."""
        return self.unknown <= MOST_UNKNOWN and sum(map(self.scripts.__getitem__, self.unread)) <= MOST_FOREIGN

    @property
    def may_not_be_english(self) -> bool:
        """Whether the texts seem to be in another language than English, the only one of the encoder."""
        return self.whole_words is not None and self.whole_words < LEAST_WHOLE_WORDS

    def __str__(self) -> str:
        unread = ", ".join(script for script in self.unread if self.scripts[script] >= LEAST_SHARE)
        return (
            f"scripts {in_words(self.scripts)}{unread and f', not read: {unread}'}; {self.unknown:.0%} of the pieces "
            f"stand for unknown characters, {self.pieces_per_letter:.2f} pieces per letter"
            + ("" if self.whole_words is None else f", {self.whole_words:.0%} of the Latin words in the vocabulary")
        )


def reading_of(tokenize: Tokenize, texts: Sequence[str], encoder: str = "") -> Reading:
    """Computes the statistics of an encoder's tokens for a sample of texts.

    A bundled encoder can read the scripts of the languages that it was trained on. Any other encoder can read a script
    unless it splits its words into single letters.

    Args:
      tokenize: The tokenizer of the encoder, see :func:`tfllmrec.text.preprocessor.pieces_of`.
      texts: The texts of the items; empty ones are skipped.
      encoder: The name of the encoder, as in ``text.encoder``; empty if it is unknown.
    """
    unknown, word = tokenize([UNKNOWN, f"a{UNKNOWN}"])
    unknown = unknown[-1:]
    apart = not np.isin(word, unknown).all()
    sample = [_without_symbols(text, apart) for text in sample_of([text for text in texts if text])]
    sample = [text for text in sample if text]
    if not sample:
        return Reading({}, (), 0.0, 0.0)
    all_pieces = np.concatenate([*tokenize(sample), np.empty(0, np.int32)])
    share = float(np.isin(all_pieces, unknown).mean()) if len(all_pieces) else 1.0
    scripts = scripts_of(sample)
    if bundled := _BUNDLED.get(encoder):
        unread = [script for script in scripts if script not in bundled.scripts]
    else:
        unread = [script for script in scripts if script not in UNLIMITED and _is_spelled(tokenize, sample, script)]
    whole = _whole_words(tokenize, sample, unknown) if bundled and bundled.languages == ("English",) else None
    return Reading(scripts, tuple(unread), share, len(all_pieces) / sum(map(_letters, sample)), whole)


def _without_symbols(text: str, apart: bool) -> str:
    """Removes punctuation, symbols and pictures: whether they are known says nothing about the words.

    Args:
      text: A text.
      apart: Whether the tokenizer separates unknown symbols from words. Otherwise a symbol makes its word unknown, and
        only symbols that stand alone are removed.
    """
    removed = "PSC" if apart else "P"
    words = "".join(" " if category(c)[0] in removed else c for c in text).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)))


def _is_spelled(tokenize: Tokenize, texts: Sequence[str], script: str) -> bool:
    """Returns whether the words of a script are split into single letters."""
    words = ["".join(c if script_of(c) == script else " " for c in normalize("NFKC", text)) for text in texts]
    letters = sum(map(_letters, words))
    most = MOST_PIECES_OF_SYLLABLES if script in SYLLABIC else MOST_PIECES
    return letters >= FEWEST_LETTERS and sum(map(len, tokenize(words))) > most * letters


def _whole_words(tokenize: Tokenize, texts: Sequence[str], unknown: np.ndarray) -> float | None:
    """Returns the share of Latin words of one known piece; ``None`` if there are fewer than :data:`FEWEST_WORDS`."""
    words = (word for text in texts for word in _WORD.findall(normalize("NFC", text)) if not word.isupper())
    found = Counter(word for word in words if script_of(word[0]) == "LATIN")
    if found.total() < FEWEST_WORDS:
        return None
    pieces = zip(found.values(), tokenize(list(found)), strict=True)
    return sum(count for count, ids in pieces if len(ids) == 1 and ids[0] not in unknown) / found.total()


def _letters(text: str) -> int:
    """Returns the number of letters and digits; also of marks (M), because vowel signs of Indic scripts are marks."""
    return sum(c.isalnum() or category(c)[0] == "M" for c in normalize("NFKC", text))


def advice(encoder: str | None) -> str:
    """Returns advice for an ``encoder`` (``None`` if its name is unknown) that cannot read the texts."""
    if encoder == AUTO[-1]:
        return "Set text.encoder to an encoder of their language on TF Hub (docs/text-towers.md)."
    return f"Set text.encoder={AUTO[-1]}, which reads about 100 languages."


def choose_encoder(texts: Sequence[str]) -> tuple[str, str]:
    """Returns the first encoder of :data:`AUTO` if it can read the texts, else the second; and a line with the reason.

    Raises:
      DataError: The weights of the first encoder cannot be fetched.
    """
    first, other = AUTO
    found = reading_of(_tokenizer(first), texts, first)
    if not found.works:
        return other, f"text.encoder {other}: {first} cannot read these texts ({found})"
    if found.may_not_be_english:
        return other, f"text.encoder {other}: these texts may not be English, which {first} reads ({found})"
    return first, f"text.encoder {first}: {found}"


def _tokenizer(name: str) -> Tokenize:
    """Returns the tokenizer of a bundled encoder, without loading the encoder itself."""
    import tensorflow_hub as hub

    from tfllmrec.text.bundled import hub_handles
    from tfllmrec.text.preprocessor import pieces_of

    preprocessor, _ = hub_handles(name)
    return partial(pieces_of, hub.load(str(preprocessor)))

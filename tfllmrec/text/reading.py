"""Checks whether an encoder can read a catalogue, by the scripts of its texts and by their tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tfllmrec.data.cleaning.scripts import UNKNOWN, in_words, sample_of, scripts_of

#: Maps texts to the ids of their pieces, one array per text.
Tokenize = Callable[[Sequence[str]], list[np.ndarray]]

#: An encoder with a larger share of unknown pieces cannot read the texts.
MOST_UNKNOWN = 0.05
#: Above this many pieces per letter, words are split into single letters, which encoders cannot interpret. Korean is
#: written in syllables and has a limit of its own.
MOST_PIECES, MOST_PIECES_OF_HANGUL = 0.7, 1.5
#: Texts with fewer letters, such as a query of one short word, are exempt from the limit. Of 107 words in Cyrillic,
#: Greek, Arabic, Hebrew, Devanagari and Thai script, e5 exceeds it for 10 of the 57 shorter and none of the 50 others.
FEWEST_LETTERS = 6
#: Scripts without such a limit: in Chinese and Japanese a character can be a word, and all encoders know Latin letters.
UNLIMITED = ("CJK", "HIRAGANA", "KATAKANA", "LATIN")
#: The encoders that ``text.encoder=auto`` tries, in this order: the smaller one first.
AUTO = ("minilm", "e5")


@dataclass(frozen=True)
class Reading:
    """Statistics of an encoder's tokens for texts, which tell whether the encoder can read them.

    Attributes:
      scripts: Share of the letters by script, under its Unicode name (``LATIN``, ``CJK``), the largest first.
      unknown: Share of the pieces that stand for unknown characters.
      pieces_per_letter: Pieces per letter or digit.
      letters: Number of letters and digits.
    """

    scripts: dict[str, float]
    unknown: float
    pieces_per_letter: float
    letters: int

    @property
    def works(self) -> bool:
        """Whether the encoder can read the texts."""
        if self.unknown > MOST_UNKNOWN:
            return False
        if self.letters < FEWEST_LETTERS:
            return True
        limited = {script: share for script, share in self.scripts.items() if script not in UNLIMITED}
        most = MOST_PIECES_OF_HANGUL if max(limited, key=limited.__getitem__, default="") == "HANGUL" else MOST_PIECES
        return sum(limited.values()) < 0.5 or self.pieces_per_letter <= most

    def __str__(self) -> str:
        return (
            f"scripts {in_words(self.scripts)}; {self.unknown:.0%} of the pieces stand for unknown characters, "
            f"{self.pieces_per_letter:.2f} pieces per letter"
        )


def reading_of(tokenize: Tokenize, texts: Sequence[str]) -> Reading:
    """Computes the statistics of an encoder's tokens for a sample of texts.

    Args:
      tokenize: The tokenizer of the encoder, see :func:`tfllmrec.text.preprocessor.pieces_of`.
      texts: The texts of the items; empty ones are skipped.
    """
    sample = [text for text in sample_of([text for text in texts if text]) if any(map(str.isalnum, text))]
    if not sample:
        return Reading({}, 0.0, 0.0, 0)
    all_pieces = np.concatenate([*tokenize(sample), np.empty(0, np.int32)])
    unknown = tokenize([UNKNOWN])[0][-1:]
    # Vowel signs of Indic scripts are marks (M).
    letters = sum(c.isalnum() or unicodedata.category(c)[0] == "M" for text in sample for c in text)
    share = float(np.isin(all_pieces, unknown).mean()) if len(all_pieces) else 1.0
    return Reading(scripts_of(sample), share, len(all_pieces) / letters, letters)


def advice(encoder: str | None) -> str:
    """Returns advice for an ``encoder`` (``None`` if its name is unknown) that cannot read the texts."""
    if encoder == AUTO[-1]:
        return "Set text.encoder to an encoder of their language on TF Hub (docs/text-towers.md)."
    return f"Set text.encoder={AUTO[-1]}, which reads about 100 languages."


def choose_encoder(texts: Sequence[str]) -> tuple[str, str]:
    """Returns the first encoder of :data:`AUTO` that can read the texts, or the last one; and a line with the reason.

    Raises:
      DataError: The weights of an encoder cannot be fetched.
    """
    for name in AUTO:
        found = reading_of(_tokenizer(name), texts)
        if found.works:
            break
    return name, f"text.encoder {name}: {found}"


def _tokenizer(name: str) -> Tokenize:
    """Returns the tokenizer of a bundled encoder, without loading the encoder itself."""
    import tensorflow_hub as hub

    from tfllmrec.text.bundled import hub_handles
    from tfllmrec.text.preprocessor import pieces_of

    preprocessor, _ = hub_handles(name)
    return partial(pieces_of, hub.load(str(preprocessor)))

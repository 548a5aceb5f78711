"""Checks whether an encoder can read a catalogue, by the scripts of its texts and by their tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfllmrec.data.cleaning.scripts import in_words, sample_of, scripts_of

if TYPE_CHECKING:
    from tfllmrec.config import TextConfig
    from tfllmrec.text.encoder import TextToVector

#: An encoder with a larger share of unknown pieces cannot read the texts.
MOST_UNKNOWN = 0.05
#: Above this many pieces per letter, words are split into single letters, which encoders cannot interpret. Korean is
#: written in syllables and has a limit of its own.
MOST_PIECES, MOST_PIECES_OF_HANGUL = 0.7, 1.5
#: Scripts without such a limit: a character is a word or a part of one, or every encoder knows the script.
UNLIMITED = ("CJK", "HIRAGANA", "KATAKANA", "LATIN")
#: What ``text.encoder=auto`` tries, in this order: the smaller encoder first.
AUTO = ("minilm", "e5")
#: A cuneiform sign, which no vocabulary has.
_UNKNOWN = "\U00012000"


@dataclass(frozen=True)
class Reading:
    """What an encoder's vocabulary makes of texts.

    Attributes:
      scripts: share of the letters by script, as Unicode names it (``LATIN``, ``CJK``), the largest first.
      unknown: share of the pieces that stand for unknown characters.
      pieces_per_letter: pieces for each letter or digit.
    """

    scripts: dict[str, float]
    unknown: float
    pieces_per_letter: float

    @property
    def works(self) -> bool:
        """Whether the encoder can read the texts."""
        if self.unknown > MOST_UNKNOWN:
            return False
        limited = {script: share for script, share in self.scripts.items() if script not in UNLIMITED}
        most = MOST_PIECES_OF_HANGUL if max(limited, key=limited.__getitem__, default="") == "HANGUL" else MOST_PIECES
        return sum(limited.values()) < 0.5 or self.pieces_per_letter <= most

    def __str__(self) -> str:
        return (
            f"scripts {in_words(self.scripts)}; {self.unknown:.0%} of the pieces stand for unknown characters, "
            f"{self.pieces_per_letter:.2f} pieces a letter"
        )


def reading_of(text_to_vector: TextToVector, texts: Sequence[str]) -> Reading:
    """What an encoder's vocabulary makes of texts; of a sample.

    Args:
      text_to_vector: of the encoder.
      texts: of the items; empty ones are left out.
    """
    sample = [text for text in sample_of([text for text in texts if text]) if any(map(str.isalnum, text))]
    if not sample:
        return Reading({}, 0.0, 0.0)
    pieces = [row for row in text_to_vector.pieces(sample) if len(row)]
    unknown = text_to_vector.pieces([_UNKNOWN])[0][-1:]
    all_pieces = np.concatenate([*pieces, np.empty(0, np.int32)])
    # Vowel signs of Indian scripts are marks (M).
    letters = sum(c.isalnum() or unicodedata.category(c)[0] == "M" for text in sample for c in text)
    share = float(np.isin(all_pieces, unknown).mean()) if len(all_pieces) else 1.0
    return Reading(scripts_of(sample), share, len(all_pieces) / letters)


def choose_encoder(config: TextConfig, texts: Sequence[str]) -> tuple[str, str]:
    """The first encoder of :data:`AUTO` that can read the texts, or the last one; and a line that says why.

    Args:
      config: the other settings of the encoder.
      texts: of the items.

    Raises:
      DataError: the weights of an encoder cannot be fetched.
    """
    from tfllmrec.text.encoder import TextEncoder

    for name in AUTO:
        encoder = TextEncoder.from_config(config.model_copy(update={"encoder": name}))
        found = reading_of(encoder.text_to_vector, texts)
        if found.works:
            break
    return name, f"text.encoder {name}: {found}"

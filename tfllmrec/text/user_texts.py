"""Vectors of the texts that users write: reviews, comments, queries, descriptions of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import pandas as pd

from tfllmrec.progress import Progress, show_progress
from tfllmrec.text.store import VectorStore, encode_items


class UserTextEncoder(Protocol):
    """What encodes the texts: a ``TextEncoder`` (its ``for_queries``), several side by side, or a ``Student``."""

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray: ...


class UserTexts:
    """Strings to vectors: each different text is encoded once, when it is first needed.

        model.texts = UserTexts(encoder.for_queries)

    Vectors are as the encoder gives them; the model centres them. A text without any token counts as no text.

    Args:
      encoder: the encoder that goes into an export as the encoder of queries; or a function that loads it, which is
        called when the first text is encoded.
      store: where vectors are looked up first, and kept.
    """

    def __init__(
        self, encoder: UserTextEncoder | Callable[[], UserTextEncoder], store: VectorStore | None = None
    ) -> None:
        self._encoder, self._store = encoder, store
        self._code_of = {"": 0}
        self._rows: list[np.ndarray] = []

    @cached_property
    def encoder(self) -> UserTextEncoder:
        return self._encoder() if callable(self._encoder) else self._encoder

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.encoder.dim

    @property
    def table(self) -> np.ndarray:
        """float32 ``[U + 1, width]``: the vectors of the U texts that are kept; row 0 is NaN, for no text."""
        if len(self._rows) != 1:
            self._rows = [np.concatenate(self._rows or [np.full((1, self.width), np.nan, np.float32)])]
        return self._rows[0]

    def codes(self, texts: np.ndarray) -> np.ndarray:
        """The rows of texts in :attr:`table`; texts that are not there are encoded and kept, with a progress bar.

        Args:
          texts: object ``[...]``, ``""`` for no text.

        Returns:
          int32 ``[...]``.
        """
        at, distinct = pd.factorize(texts.ravel())
        new = [text for text in distinct if text not in self._code_of]
        if new:
            known = self.table
            self._rows = [known, self._encoded(new, "Encoding users' texts")]
            self._code_of |= {text: code for code, text in enumerate(new, start=len(known))}
        codes = np.array([self._code_of[text] for text in distinct], np.int32)
        return codes[at].reshape(texts.shape)

    def __call__(self, texts: np.ndarray) -> np.ndarray:
        """The vectors of texts, object ``[...]`` -> float32 ``[..., width]``, NaN for no text.

        Texts that are not kept are encoded, and forgotten.
        """
        at, distinct = pd.factorize(texts.ravel())
        codes = np.array([self._code_of.get(text, -1) for text in distinct], np.int64)
        vectors = self.table[codes]
        if (codes < 0).any():
            vectors[codes < 0] = self._encoded(distinct[codes < 0].tolist())
        return vectors[at].reshape(*texts.shape, self.width)

    def _encoded(self, texts: list[str], label: str | None = None) -> np.ndarray:
        """float32 ``[n, width]`` of different texts."""
        if label is None:
            vectors = encode_items(texts, self.encoder, self._store)
        else:
            with show_progress(label, "texts") as progress:
                vectors = encode_items(texts, self.encoder, self._store, progress)
        return np.where(np.any(vectors != 0, axis=1, keepdims=True), vectors, np.float32(np.nan))

"""Vectors of texts that users write: reviews, comments, queries, descriptions of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import pandas as pd

from tfllmrec.progress import Progress, show_progress
from tfllmrec.text.store import VectorStore, encode_items


class UserTextEncoder(Protocol):
    """An encoder of users' texts: a ``TextEncoder`` (its ``for_queries``), a ``SideBySide``, or a ``Student``."""

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray: ...


class UserTexts:
    """A table of text vectors, which encodes each distinct text once, when it is first needed.

        model.texts = UserTexts(encoder.for_queries)

    Vectors are not centred; the model centres them. A text without any token counts as no text.

    Args:
      encoder: The encoder that an export uses for queries; or a function that loads it, which is called when the first
        text is encoded.
      store: The store for lookups and for new vectors.
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
        """The dimension of the vectors."""
        return self.encoder.dim

    @property
    def table(self) -> np.ndarray:
        """Vectors of the U texts in the table, float32 ``[U + 1, width]``; row 0, for no text, is NaN."""
        if len(self._rows) != 1:
            self._rows = [np.concatenate(self._rows or [np.full((1, self.width), np.nan, np.float32)])]
        return self._rows[0]

    def codes(self, texts: np.ndarray) -> np.ndarray:
        """Returns the rows of texts in :attr:`table`; encodes and adds new texts, with a progress bar.

        Args:
          texts: Object ``[...]``, ``""`` for no text.

        Returns:
          Int32 ``[...]``.
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
        """Returns the vectors of texts, object ``[...]``, as float32 ``[..., width]``; NaN for no text.

        Texts that are not in :attr:`table` are encoded but not added.
        """
        at, distinct = pd.factorize(texts.ravel())
        codes = np.array([self._code_of.get(text, -1) for text in distinct], np.int64)
        vectors = self.table[codes]
        if (codes < 0).any():
            vectors[codes < 0] = self._encoded(distinct[codes < 0].tolist())
        return vectors[at].reshape(*texts.shape, self.width)

    def _encoded(self, texts: list[str], label: str | None = None) -> np.ndarray:
        """Encodes distinct texts: float32 ``[n, width]``, NaN for a text without any token."""
        if label is None:
            vectors = encode_items(texts, self.encoder, self._store)
        else:
            with show_progress(label, "texts") as progress:
                vectors = encode_items(texts, self.encoder, self._store, progress)
        return np.where(np.any(vectors != 0, axis=1, keepdims=True), vectors, np.float32(np.nan))

"""Computes the contribution of each word of an item's text to the meaning term of its score.

There are two methods. Leave-one-out encodes the text again without the word; the contribution is the drop of the term.
Integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017) go through the encoder:
the rows of its word embedding that the text uses are scaled from zero to their values, and the gradients along this
path are divided among the words. The contribution of the other tokens and of an empty text is the remainder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.data.queries import Queries
from tfllmrec.errors import ModelError
from tfllmrec.progress import Progress
from tfllmrec.text.centring import centred_unit, text_mean
from tfllmrec.text.preprocessor import INPUTS, pieces_of
from tfllmrec.text.store import VectorStore, encode_items

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.text.side_by_side import Encoder

#: Largest number of words of a text that are explained, and number of steps of the integration path.
MOST_WORDS, STEPS = 64, 32


class Words(NamedTuple):
    """The words of a text and their contributions.

    Attributes:
      text: The whole text.
      spans: The position ``(start, end)`` of each of the first :data:`MOST_WORDS` words.
      added: The contribution of each of these W words to the meaning term, float32 ``[W]``.
    """

    text: str
    spans: list[tuple[int, int]]
    added: np.ndarray


class TextOfItem:
    """Explains the meaning term of an item for one query by the words of the item's text.

    Args:
      model: The fitted hybrid.
      query: A single query.
      item: The index of the item in the catalogue.
      text: The text of the item.
      encoder: The encoder that encoded the catalogue.
      catalogue: The vectors of all items from this encoder, before centring, float32 ``[N, Dt]``.
    """

    def __init__(
        self, model: Hybrid, query: Queries, item: int, text: str, encoder: Encoder, catalogue: np.ndarray
    ) -> None:
        self.model, self.item, self.text = model, item, text
        self.encoder, self.catalogue = encoder, catalogue
        self.spans = [match.span() for match in re.finditer(r"\S+", text)][:MOST_WORDS]
        inputs = {key: tf.constant(values) for key, values in model.query_inputs(query).items()}
        meaning, _ = model.last_query_vectors(model.item_vectors(), inputs)
        factor = model.factors_of(tf.constant([[item]])).dense[0, 0]
        self._asked = meaning[0] * factor

    def _meaning(self, vectors: tf.Tensor) -> tf.Tensor:
        """Computes the meaning term that the item would have with other texts, float32 ``[W]``.

        Args:
          vectors: The centred vectors of the texts, float32 ``[W, Dt]``.
        """
        return tf.linalg.matvec(self.model.item_vectors_of_texts(self.item, vectors), self._asked)

    def left_out(self, store: VectorStore | None = None, progress: Progress | None = None) -> Words:
        """Computes the contributions by leave-one-out.

        Args:
          store: The store in which vectors are looked up and saved.
          progress: Called with (done, total) of the texts to encode.
        """
        texts = [self.text, *(f"{self.text[:start]}{self.text[end:].lstrip()}" for start, end in self.spans)]
        terms = self.terms_of(texts, store, progress)
        return Words(self.text, self.spans, terms[0] - terms[1:])

    def terms_of(
        self, texts: Sequence[str], store: VectorStore | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Computes the meaning term that the item would have with each of ``texts``, float32 ``[n]``.

        The other arguments are those of :meth:`left_out`.
        """
        vectors = encode_items(texts, self.encoder, store, progress)
        return self._meaning(tf.constant(centred_unit(vectors, self.catalogue, self.encoder.widths))).numpy()

    def by_gradients(self) -> Words:
        """Computes the contributions by integrated gradients.

        The contribution of a token that occurs several times is divided equally among its occurrences.

        Raises:
          ModelError: There are several encoders, or the encoder has no trainable word embedding.
        """
        if len(self.encoder.encoders) > 1:
            raise ModelError(
                f"integrated gradients need one text encoder, found {len(self.encoder.encoders)}. Use leave-one-out."
            )
        (encoder,) = self.encoder.encoders
        tower = encoder.text_to_vector
        tokens = {name: tower.tokens(tf.constant([self.text]))[name] for name in INPUTS}
        pieces = pieces_of(tower.preprocessor, [self.text[start:end] for start, end in self.spans])
        used = np.unique(np.concatenate([*pieces, np.zeros(0, np.int32)]))
        ids = tokens["input_word_ids"].numpy()[0]
        used = used[np.isin(used, ids)]
        by_piece = dict(zip(used.tolist(), self._along(tower, tokens, used), strict=True))
        times = {piece: max(int((np.concatenate(pieces) == piece).sum()), 1) for piece in by_piece}
        added = [sum(by_piece.get(piece, 0.0) / times.get(piece, 1) for piece in of.tolist()) for of in pieces]
        return Words(self.text, self.spans, np.array(added, np.float32))

    def _along(self, tower: tf.Module, tokens: dict[str, tf.Tensor], used: np.ndarray) -> np.ndarray:
        """Returns the contribution of the embedding of each token id in ``used`` int ``[P]``, float ``[P]``."""
        table = _word_table(tower.encoder, int(used.max(initial=0)))
        if not len(used):
            return np.zeros(0)
        rows, before = tf.constant(used[:, np.newaxis]), tf.gather(table, used)
        mean = tf.constant(text_mean(self.catalogue)[np.newaxis], tf.float32)
        total = np.zeros(len(used))
        try:
            for step in range(STEPS):
                scale = (step + 0.5) / STEPS
                table.scatter_nd_update(rows, before * scale)
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(table)
                    centred = tower.vectors(tokens) - mean
                    term = self._meaning(tf.math.l2_normalize(centred, axis=1))[0]
                gradient = tape.gradient(term, table)
                if gradient is None:
                    raise ModelError(_no_table(tower.encoder))
                by_row = tf.gather(tf.convert_to_tensor(gradient), used)
                total += tf.reduce_sum(by_row * before, axis=1).numpy() / STEPS
        finally:
            table.scatter_nd_update(rows, before)
        return total


def _word_table(encoder: tf.Module, largest: int) -> tf.Variable:
    """Returns the encoder's word embedding: the trainable matrix with the most rows, which must exceed ``largest``.

    Matrices whose names contain "word_embedding" are preferred, then those whose names contain "embedding".

    Raises:
      ModelError: There is no such matrix.
    """
    variables: Sequence[tf.Variable] = list(getattr(encoder, "trainable_variables", ()))
    found = [v for v in variables if v.shape.rank == 2 and v.dtype.is_floating and v.shape[0] > largest]
    if not found:
        raise ModelError(_no_table(encoder))
    return max(found, key=lambda v: ("word_embedding" in v.name, "embedding" in v.name, v.shape[0]))


def _no_table(encoder: tf.Module) -> str:
    return (
        f"integrated gradients need a text encoder with a trainable word embedding, found {type(encoder).__name__} "
        "without one. Use leave-one-out."
    )

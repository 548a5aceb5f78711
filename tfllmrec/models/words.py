"""What each word of an item's text adds to the meaning term of its score.

By leave-one-out: the text is encoded again without the word; the drop in the term is what the word adds. And by
integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017) through the encoder:
the rows of its word embedding that the text uses grow from zero to what they are, and the gradients along the way are
shared out among the words; what the other tokens and an empty text add is the remainder.
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

#: Words of a text that are explained, and steps of the path of integrated gradients.
MOST_WORDS, STEPS = 64, 32


class Words(NamedTuple):
    """The words of a text.

    Attributes:
      text: the whole text. spans: where each of its first :data:`MOST_WORDS` words stands, ``(start, end)``.
      added: float32 ``[W]``, what each adds to the meaning term.
    """

    text: str
    spans: list[tuple[int, int]]
    added: np.ndarray


class TextOfItem:
    """An item's text as a model reads it for one query.

    Args:
      model: fitted. query: a single one. item: index of the catalogue. text: of the item.
      encoder: that encoded the catalogue. catalogue: float32 ``[N, Dt]``, the vectors that it gave, before they were
        centred.
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
        """The meaning term, had the item texts with these vectors, centred float32 ``[W, Dt]``: float32 ``[W]``."""
        return tf.linalg.matvec(self.model.item_vectors_of_texts(self.item, vectors), self._asked)

    def left_out(self, store: VectorStore | None = None, progress: Progress | None = None) -> Words:
        """By leave-one-out.

        Args:
          store: where vectors are looked up and kept. progress: called with (done, total) of the texts encoded.
        """
        texts = [self.text, *(f"{self.text[:start]}{self.text[end:].lstrip()}" for start, end in self.spans)]
        terms = self.terms_of(texts, store, progress)
        return Words(self.text, self.spans, terms[0] - terms[1:])

    def terms_of(
        self, texts: Sequence[str], store: VectorStore | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """The meaning term, had the item each of ``texts``: float32 ``[n]``; other arguments as :meth:`left_out`."""
        vectors = encode_items(texts, self.encoder, store, progress)
        return self._meaning(tf.constant(centred_unit(vectors, self.catalogue, self.encoder.widths))).numpy()

    def by_gradients(self) -> Words:
        """By integrated gradients; a word that is there several times shares what its pieces add.

        Raises:
          ModelError: there are several encoders, or the encoder has no word embedding that can be trained.
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
        """What the embeddings of the token ids ``used`` int ``[P]`` add, float ``[P]``."""
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
    """The encoder's word embedding: the trainable matrix with the most rows, and more than the largest id.

    Raises:
      ModelError: there is none.
    """
    variables: Sequence[tf.Variable] = list(getattr(encoder, "trainable_variables", ()))
    found = [v for v in variables if v.shape.rank == 2 and v.dtype.is_floating and v.shape[0] > largest]
    named = [v for v in found if "embedding" in v.name] or found
    if not named:
        raise ModelError(_no_table(encoder))
    return max(named, key=lambda v: v.shape[0])


def _no_table(encoder: tf.Module) -> str:
    return (
        f"integrated gradients need a text encoder with a trainable word embedding, found {type(encoder).__name__} "
        "without one. Use leave-one-out."
    )

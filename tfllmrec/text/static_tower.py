"""A small text tower for queries: the mean of fixed vectors of an encoder's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfllmrec.data.cleaning.scripts import UNKNOWN
from tfllmrec.errors import ModelError
from tfllmrec.progress import show_progress
from tfllmrec.text.encoder import TextEncoder, TextToVector, tokenise
from tfllmrec.text.preprocessor import INPUTS

# Number of tokens that are encoded in a step.
_BATCH = 512
# Constant a of the frequency weights: a token with this share of all tokens has weight 0.5.
_COMMON = 1e-3


class StaticEncoder(tf.Module):
    """An encoder without attention: the weighted mean of fixed token vectors.

    It computes ``P^T sum_t w_t v_t / sum_t w_t + c`` over the tokens t of a text, so that a query takes two table
    lookups and one small matrix product (Model2Vec, Tulkens and van Dongen 2024; frequency weights of SIF, Arora et al.
    2017). It uses only core TensorFlow operations. A text without any known token gives the zero vector.

    Args:
      vectors: Float32 ``[R, P]``, the vectors of known tokens.
      weights: Float32 ``[R]``, above 0, the weights of known tokens.
      place: Int32 ``[V]``, the row of each token id; R for an unknown token.
      projection: Float32 ``[P, D]``, P in the formula.
      shift: Float32 ``[D]``, c in the formula.
    """

    def __init__(
        self, vectors: np.ndarray, weights: np.ndarray, place: np.ndarray, projection: np.ndarray, shift: np.ndarray
    ) -> None:
        super().__init__(name="static_encoder")
        self._place = tf.Variable(place.astype(np.int32), trainable=False, name="place")
        with self.name_scope:
            self.token_vectors = tf.Variable(vectors.astype(np.float32), name="token_vectors")
            self.log_weights = tf.Variable(np.log(weights).astype(np.float32), name="log_weights")
            self.projection = tf.Variable(projection.astype(np.float32), name="projection")
            self.shift = tf.Variable(shift.astype(np.float32), name="shift")

    def __call__(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Maps an encoder's inputs, int32 ``[B, T]``, to ``default``, float32 ``[B, D]``."""
        ids = inputs["input_word_ids"]
        last = tf.shape(self._place)[0] - 1
        rows = tf.gather(self._place, tf.clip_by_value(ids, 0, last))
        size = tf.shape(self.token_vectors)[0]
        known = (rows < size) & (inputs["input_mask"] > 0) & (ids <= last)
        rows = tf.where(known, rows, 0)
        weights = tf.where(known, tf.exp(tf.gather(self.log_weights, rows)), 0.0)
        total = tf.einsum("bt,btp->bp", weights, tf.gather(self.token_vectors, rows))
        mean = tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=1, keepdims=True))
        out = tf.matmul(mean, self.projection) + self.shift
        return {"default": tf.where(tf.reduce_any(known, axis=1, keepdims=True), out, 0.0)}


def static_tower(teacher: TextEncoder, texts: Sequence[str], tokens: int, width: int) -> TextToVector:
    """Creates an untrained tower with a :class:`StaticEncoder` that imitates ``teacher``.

    Each token is encoded separately, between the special tokens (and the query prefix) that surround every text. The
    vectors are reduced to their principal components. A token's weight is ``a / (a + share)``, where ``share`` is its
    share of all tokens of ``texts``.

    Args:
      teacher: The encoder to imitate, with its query prefix if it has one.
      texts: The texts of the items.
      tokens: The first ``tokens`` ids of the vocabulary are known; later ids are known only if they occur in ``texts``.
        In the vocabularies of BERT and SentencePiece, more frequent tokens come first.
      width: P, at most D.

    Raises:
      ModelError: The encoder has no table of token embeddings.
    """
    graph = teacher.for_queries.text_to_vector
    matrices = [v for v in getattr(graph.encoder, "variables", ()) if v.shape.rank == 2]
    if not matrices:
        raise ModelError(
            "text.query_encoder=static: expected an encoder whose variables include a table of token embeddings, found "
            "no variable with two dimensions. Use text.query_encoder=hashed_ngrams."
        )
    # Other matrices may have more rows than a small vocabulary.
    tables = [v for v in matrices if "word_embedding" in v.name] or matrices
    # Every token is encoded between the ids that precede and follow a text of one token.
    frame, unknown = (graph.tokens(tf.constant([text]))["input_word_ids"].numpy()[0] for text in ("a", UNKNOWN))
    counts = np.bincount(tokenise(graph, texts).values, minlength=max(v.shape[0] for v in tables))
    special = [frame[0], frame[-1], unknown[-2]]
    counts[special] = 0
    known = np.setdiff1d(np.union1d(np.arange(min(tokens, len(counts))), np.flatnonzero(counts)), special)
    found = []
    with show_progress("Encoding tokens", "tokens") as progress:
        for start in range(0, len(known), _BATCH):
            ids = np.tile(frame, (len(known[start : start + _BATCH]), 1))
            ids[:, -2] = known[start : start + _BATCH]
            inputs = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
            found.append(graph.vectors({name: tf.constant(value, tf.int32) for name, value in inputs.items()}).numpy())
            progress(min(start + _BATCH, len(known)), len(known))
    vectors = np.concatenate(found)
    mean = vectors.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(vectors - mean, rowvar=False))
    projection = directions[:, ::-1][:, :width].T
    place = np.full(len(counts), len(known), np.int32)
    place[known] = np.arange(len(known))
    weights = _COMMON / (_COMMON + counts[known] / max(1, counts.sum()))
    encoder = StaticEncoder((vectors - mean) @ projection.T, weights, place, projection, mean)
    return TextToVector(encoder, graph.preprocessor, teacher.max_tokens, prefix=graph.prefix)

"""The base class of preprocessors, which turn strings into the inputs of an encoder, as those on TF Hub do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

#: Inputs of every encoder, int32 ``[B, T]`` each.
INPUTS = ("input_word_ids", "input_mask", "input_type_ids")


def padded_inputs(ids: tf.RaggedTensor, pad: int, width: int | tf.Tensor = -1) -> dict[str, tf.Tensor]:
    """The inputs of an encoder, int32 ``[B, T]`` each, of one segment.

    Args:
      ids: int32 ``[B, (T)]``, special tokens included.
      pad: id that fills up shorter rows.
      width: T; by default that of the longest row.
    """
    padded = ids.to_tensor(pad, shape=tf.cast([-1, width], tf.int64))
    mask = tf.sequence_mask(ids.row_lengths(), tf.shape(padded)[1], tf.int32)
    return dict(zip(INPUTS, (padded, mask, tf.zeros_like(padded)), strict=True))


def pieces_of(preprocessor: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text's pieces, int32, without special tokens.

    Texts are not cut, unless the preprocessor has no ``tokenize``.

    Args:
      preprocessor: as ``hub.load`` returns it.
      texts: any number.
    """
    if hasattr(preprocessor, "tokenize"):
        found = preprocessor.tokenize(tf.constant(texts, tf.string))
        if found.shape.rank > 2:  # [B, words, pieces]; TF Hub's preprocessors with SentencePiece give [B, pieces]
            found = found.merge_dims(1, -1)
        return [np.array(row, np.int32) for row in found.to_list()]
    packed = preprocessor(tf.constant(texts, tf.string))
    lengths = packed["input_mask"].numpy().sum(axis=1)
    return [row[1 : n - 1] for row, n in zip(packed["input_word_ids"].numpy(), lengths, strict=True)]


class Preprocessor(tf.Module):
    """A text preprocessor that can be saved for ``hub.KerasLayer(folder)``.

    Like those on TF Hub it also has ``tokenize`` and ``bert_pack_inputs``, for a length other than ``max_tokens``.

    Args:
      name: of the module.
      specials: ids of the tokens that start and end a text, and that pad it.
      max_tokens: the most tokens of a text that a plain call keeps, the first and the last included.
    """

    def __init__(self, name: str, specials: tuple[int, int, int], max_tokens: int) -> None:
        super().__init__(name=name)
        self._first, self._last, self._pad = specials
        self._max_tokens = max_tokens

    @abstractmethod
    def _pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string ``[B]`` -> int32 ``[B, (words), (pieces)]``."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string ``[B]`` -> int32 ``[B, (words), (word pieces)]``, without special tokens."""
        return self._pieces(texts)

    @tf.function(
        input_signature=[
            [tf.RaggedTensorSpec([None, None, None], tf.int32, ragged_rank=2)],
            tf.TensorSpec([], tf.int32),
        ],
        autograph=False,
    )
    def bert_pack_inputs(self, inputs: list[tf.RaggedTensor], seq_length: tf.Tensor) -> dict[str, tf.Tensor]:
        """One segment of tokens -> the three encoder inputs, each int32 ``[B, seq_length]``."""
        return self._pack(inputs[0], seq_length, seq_length)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def __call__(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """string ``[B]`` -> the three encoder inputs, int32 ``[B, T]``, T being the longest text's, up to the limit."""
        return self._pack(self._pieces(texts), self._max_tokens, -1)

    def _pack(self, pieces: tf.RaggedTensor, limit: int | tf.Tensor, width: int | tf.Tensor) -> dict[str, tf.Tensor]:
        kept = pieces.merge_dims(-2, -1)[:, : limit - 2]
        ends = tf.ones([kept.nrows(), 1], tf.int32)
        framed = tf.concat([ends * self._first, kept, ends * self._last], axis=1)
        return padded_inputs(framed, self._pad, width)

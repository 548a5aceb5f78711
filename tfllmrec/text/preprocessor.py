"""The base class of preprocessors, which turn strings into the inputs of an encoder in the format of TF Hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

#: The inputs of every encoder, int32 ``[B, T]`` each.
INPUTS = ("input_word_ids", "input_mask", "input_type_ids")


def padded_inputs(ids: tf.RaggedTensor, pad: int, width: int | tf.Tensor = -1) -> dict[str, tf.Tensor]:
    """Returns the inputs of an encoder, int32 ``[B, T]`` each, for texts of one segment.

    Args:
      ids: Int32 ``[B, (T)]``, special tokens included.
      pad: The id that fills up shorter rows.
      width: T; by default the length of the longest row.
    """
    padded = ids.to_tensor(pad, shape=tf.cast([-1, width], tf.int64))
    mask = tf.sequence_mask(ids.row_lengths(), tf.shape(padded)[1], tf.int32)
    return dict(zip(INPUTS, (padded, mask, tf.zeros_like(padded)), strict=True))


def pieces_of(preprocessor: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text's pieces, int32, without special tokens.

    Texts are not cut, unless the preprocessor has no ``tokenize``.

    Args:
      preprocessor: A preprocessor as ``hub.load`` returns it.
      texts: Any number of texts.
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

    Like those on TF Hub, it also has ``tokenize`` and ``bert_pack_inputs``, for a length other than ``max_tokens``.

    Args:
      name: The name of the module.
      specials: The ids of the tokens that start a text, end it, and pad it.
      max_tokens: The maximum number of tokens of a text, the first and the last included, that ``__call__`` keeps.
    """

    def __init__(self, name: str, specials: tuple[int, int, int], max_tokens: int) -> None:
        super().__init__(name=name)
        self._first, self._last, self._pad = specials
        self._max_tokens = max_tokens

    @abstractmethod
    def _pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Maps string ``[B]`` to int32 ``[B, (words), (pieces)]``."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Maps string ``[B]`` to int32 ``[B, (words), (word pieces)]``, without special tokens."""
        return self._pieces(texts)

    @tf.function(
        input_signature=[
            [tf.RaggedTensorSpec([None, None, None], tf.int32, ragged_rank=2)],
            tf.TensorSpec([], tf.int32),
        ],
        autograph=False,
    )
    def bert_pack_inputs(self, inputs: list[tf.RaggedTensor], seq_length: tf.Tensor) -> dict[str, tf.Tensor]:
        """Maps one segment of tokens to the three encoder inputs, each int32 ``[B, seq_length]``."""
        return self._pack(inputs[0], seq_length, seq_length)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def __call__(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Maps string ``[B]`` to the encoder inputs, int32 ``[B, T]``; T <= ``max_tokens`` is the longest text's."""
        return self._pack(self._pieces(texts), self._max_tokens, -1)

    def _pack(self, pieces: tf.RaggedTensor, limit: int | tf.Tensor, width: int | tf.Tensor) -> dict[str, tf.Tensor]:
        kept = pieces.merge_dims(-2, -1)[:, : limit - 2]
        ends = tf.ones([kept.nrows(), 1], tf.int32)
        framed = tf.concat([ends * self._first, kept, ends * self._last], axis=1)
        return padded_inputs(framed, self._pad, width)

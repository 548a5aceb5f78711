"""Trains an encoder within the retrieval loss of the hybrid that uses its vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.config import ExperimentConfig, settings_of
from tfllmrec.data.batches import Sequences, steps_per_epoch, training_batches
from tfllmrec.data.queries import Ragged
from tfllmrec.data.splits import Split
from tfllmrec.errors import ConfigError
from tfllmrec.evaluation.protocol import Result
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.progress import Tell, show_progress
from tfllmrec.text.centring import centred_unit, text_mean
from tfllmrec.text.encoder import TextEncoder, tokenise
from tfllmrec.text.preprocessor import padded_inputs
from tfllmrec.text.store import encode_items
from tfllmrec.text.tuning import Tuning
from tfllmrec.training.callbacks import claim
from tfllmrec.training.defaults import sizes
from tfllmrec.training.fit import choose_gates, fit_hybrid, set_item_weights
from tfllmrec.training.text.tuned_tower import TunedTower, new_tuning, train_tower


class JointTower(TunedTower):
    """The loss of a :class:`Hybrid`, with some items of each batch encoded again by the encoder in training.

    Each step encodes up to ``texts`` different items of the batch, drawn at random, and backpropagates through the
    encoder. All other items keep the vectors stored in the hybrid until :meth:`refresh` replaces them.

    Args:
      tuning: The encoder's trainable weights.
      hybrid: A fitted model, which is trained further, except for its item-item weights.
      tokens: Int32, the encoder's token ids of each item of the catalogue.
      texts: The number of items that are encoded in a step.
      seed: The seed of the draw, used together with a step counter that checkpoints contain.
      accumulate: As in :class:`TunedTower`.
    """

    def __init__(
        self, tuning: Tuning, hybrid: Hybrid, tokens: Ragged, texts: int, seed: int, accumulate: int = 1
    ) -> None:
        super().__init__(tuning, accumulate, hybrid.trainable_variables)
        self.hybrid, self.texts, self.seed = hybrid, texts, seed
        self.mean = tf.Variable(tf.zeros([hybrid.text_vectors.shape[1]]), trainable=False)
        self.draws = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._has_text = tf.constant(np.any(hybrid.text_vectors != 0, axis=1))
        self._tokens = tf.RaggedTensor.from_row_splits(
            tokens.values.astype(np.int32), tokens.offsets.astype(np.int64), validate=False
        )

    def refresh(self, vectors: np.ndarray) -> None:
        """Replaces the stored vectors by the encoder's current vectors of the catalogue, float32 ``[N, Dt]``."""
        self.mean.assign(text_mean(vectors))
        self.hybrid.items.blocks["text"].assign(centred_unit(vectors))

    def compute_loss(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the loss of the hybrid for a batch of :func:`tfllmrec.data.batches.training_batches`."""
        items = self._drawn(batch)
        own = tf.math.l2_normalize(self.vectors(self._inputs(items)) - self.mean, axis=-1)
        stored = tf.convert_to_tensor(self.hybrid.items.blocks["text"])
        text = tf.tensor_scatter_nd_update(stored, items[:, tf.newaxis], own)
        return self.hybrid.compute_loss(dict(batch), training=True, text=text)

    def _drawn(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Draws different items of the batch that have text, int32 ``[U]``, U up to ``texts``."""
        met = tf.concat([tf.reshape(batch[key], [-1]) for key in ("history", "targets")], axis=0)
        items, _ = tf.unique(tf.boolean_mask(met, met < self.hybrid.n_items))
        items = tf.boolean_mask(items, tf.gather(self._has_text, items))
        seed = tf.stack([tf.constant(self.seed, tf.int64), self.draws.assign_add(1)])
        chance = tf.random.stateless_uniform(tf.shape(items), seed)
        return tf.gather(items, tf.argsort(chance)[: self.texts])

    def _inputs(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the encoder's inputs of items, int32 ``[U, T]``."""
        return padded_inputs(tf.gather(self._tokens, items), 0)  # any padding id works, because the mask hides it


def tune_jointly(
    encoder: TextEncoder,
    split: Split,
    texts: Sequence[str],
    config: ExperimentConfig,
    folder: Path,
    tell: Tell,
) -> tuple[Tuning, int]:
    """Fits a hybrid on the encoder's vectors, then trains both together, and restores the best epoch of the encoder.

    Each epoch is measured with the hybrid trained so far, and with item-item weights solved with the epoch's vectors.
    An epoch may therefore beat epoch 0 only because the hybrid was trained for longer.

    Args:
      encoder: The untuned encoder.
      split: Only its training events and validation queries are used.
      texts: The texts of the items.
      config: The config of the fit.
      folder: The folder of checkpoints and TensorBoard logs. If it has them already, training resumes from them.
      tell: Called with each line of progress.

    Returns:
      The tuning, and its best epoch, from 1; 0 is the original encoder.

    Raises:
      ConfigError: The loss does not depend on the encoder.
      DataError, ModelError: See :func:`tfllmrec.training.fit.fit_hybrid` and :func:`train_tower`.
    """

    if not {"meaning", "feedback"} & set(config.model.terms):
        raise ConfigError(
            f"text.mode=joint: expected meaning or feedback in model.terms, found {config.model.terms}. Without these "
            "terms the loss does not depend on the encoder. Add meaning, or use text.mode=frozen."
        )

    def encoded(title: str) -> np.ndarray:
        with show_progress(title, "texts") as progress:
            return encode_items(texts, encoder, progress=progress)

    claim(
        folder / "checkpoints" / "settings.json",
        {
            **settings_of(text=config.text, tuning=config.tuning, training=config.training, model=config.model),
            "encoder": encoder.base_fingerprint,
            "texts": sha256("\0".join(texts).encode(errors="replace")).hexdigest(),
            "seed": config.seed,
        },
    )
    plain = config.model_copy(deep=True)
    plain.model.user_text = False  # the vectors of users' texts would change with the encoder
    if plain.graph.wanted and plain.item_weights.graph:
        plain.item_weights.graph = 0.0
        tell("hybrid: without the item graph, which is built when the encoder is trained")
    for line in sizes(split, plain):
        tell(f"hybrid: chosen: {line}")
    sequences = Sequences.from_split(split, plain.training.gate_holdout, config.seed)
    batch_size, length = plain.training.batch_size, plain.model.history_length
    assert batch_size is not None and length is not None
    steps = steps_per_epoch(sequences, batch_size, length)
    # Before the hybrid is fitted, so that settings that do not fit the encoder are reported at once. Until it is
    # trained, the tuning does not change the vectors.
    tuning = new_tuning(encoder, config.tuning.joint, config.tuning, steps, config.seed)
    vectors = encoded("Encoding item texts")
    data = TrainingData.of(split, vectors, plain)
    hybrid = fit_hybrid(data, plain, folder / "hybrid", lambda line: tell(f"hybrid: {line}")).model
    model = JointTower(
        tuning,
        hybrid,
        tokenise(encoder.text_to_vector, texts),
        config.tuning.batch_size,
        config.seed,
        config.tuning.accumulate,
    )
    model.refresh(vectors)

    def batches(first_epoch: int) -> tf.data.Dataset:
        epochs = config.tuning.epochs
        return training_batches(sequences, batch_size, length, config.seed, epochs, first_epoch, hybrid.reads)

    def measure() -> Result:
        model.refresh(encoded("Encoding item texts again"))
        if hybrid.use_behaviour:  # text is side information of the item-item weights
            set_item_weights(hybrid, sequences, data.item_weight_statistics(hybrid.item_weights))
        return choose_gates(hybrid, data, climb=True)

    # The hybrid is fitted already: as in an update, it continues at half the rate.
    beside = plain.training.model_copy(update={"learning_rate": plain.training.learning_rate / 2})
    return tuning, train_tower(model, batches, steps, config.tuning, folder, measure, tell, beside)

"""Tuning of a text tower: texts of related items are pulled together, others are pushed apart."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.config import ExperimentConfig, TextConfig, TuningConfig
from tfllmrec.data.pairs import ItemPairs, item_pairs
from tfllmrec.data.queries import Ragged
from tfllmrec.data.splits import Split
from tfllmrec.durable import locked, read_json, write_text
from tfllmrec.evaluation.protocol import Result
from tfllmrec.layers.global_state import random_state_kept
from tfllmrec.models.baselines import TextSimilarity
from tfllmrec.models.fitting import TrainingData
from tfllmrec.progress import Tell
from tfllmrec.text.augment import Augmenter, read_synonyms
from tfllmrec.text.encoder import TextEncoder
from tfllmrec.text.paraphrases import paraphrases_of
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.text.side_by_side import Encoder, SideBySide, encoder_of
from tfllmrec.text.store import encode_items
from tfllmrec.text.template import ItemTemplate
from tfllmrec.text.tuning import Tuning, load_tuning
from tfllmrec.training.callbacks import claim
from tfllmrec.training.fit import set_seeds
from tfllmrec.training.text.joint import tune_jointly
from tfllmrec.training.text.pretrain import pretrain
from tfllmrec.training.text.tuned_tower import TunedTower, new_tuning, train_tower

PRETRAINED = "encoder"
TUNED = "tuned.safetensors"


@dataclass(frozen=True)
class TowerRecord:
    """The result and the cost of training a text tower.

    Attributes:
      trained: The number of weights that were trained: by tuning, or by pretraining if nothing was tuned.
      bytes: The size of the files that are needed in addition to the encoder that the config names.
      seconds: The duration of the last session; earlier sessions of an interrupted run are not counted.
      best_epoch: The best epoch of the tuning, from 1; 0 if no epoch was better on validation than the original
        encoder, so that the tuning changes nothing; ``None`` if nothing was tuned, or the epoch was not recorded.
    """

    trained: int
    bytes: int
    seconds: float
    best_epoch: int | None = None

    @classmethod
    def load(cls, folder: Path) -> TowerRecord | None:
        """Reads the record of a run's ``text`` folder; ``None`` if its encoder is untrained.

        Raises:
          ModelError: It is damaged.
        """
        path = folder / "tower.json"
        return read_json(path, cls, f"copy {folder} back, or fit again") if path.is_file() else None

    def save(self, folder: Path) -> None:
        write_text(folder / "tower.json", json.dumps(asdict(self), indent=1))


class ContrastiveTower(TunedTower):
    """Symmetric cross-entropy of each text among those of its batch.

    For unit vectors of B pairs of texts and the temperature t, it is ``-log softmax_j(<l_i, r_j> / t)`` at ``j = i``,
    and the same from right to left (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748). Items that were themselves
    read together, or that have the same text, are not used as negatives of each other. Each distinct text of a batch is
    encoded once.

    Args:
      tuning: The encoder's trainable weights.
      temperature: t.
      accumulate: The number of steps whose gradients are averaged before the encoder is updated.
    """

    def __init__(self, tuning: Tuning, temperature: float, accumulate: int = 1) -> None:
        super().__init__(tuning, accumulate)
        self.temperature = temperature

    def compute_loss(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the loss of a batch of :func:`pair_batches`."""
        # The encoder's own dropout stays off: a loaded module has no seed for it, and the augmentation of the words
        # already makes two views of a text differ.
        vectors = self.vectors({name: batch[name] for name in INPUTS})
        left, right = tf.gather(vectors, batch["left"]), tf.gather(vectors, batch["right"])
        logits = tf.matmul(left, right, transpose_b=True) / self.temperature
        positives = tf.range(tf.shape(left)[0])
        same_text = batch["left"][:, tf.newaxis] == batch["right"]
        no_negatives = (batch["together"] | same_text) & ~tf.eye(tf.shape(left)[0], dtype=tf.bool)
        losses = [
            tf.nn.sparse_softmax_cross_entropy_with_logits(positives, tf.where(masked, -1e9, scores))
            for scores, masked in ((logits, no_negatives), (tf.transpose(logits), tf.transpose(no_negatives)))
        ]
        return tf.reduce_mean(tf.stack(losses))


def pair_batches(
    pairs: ItemPairs,
    wordings: Sequence[Sequence[str]],
    augmenter: Augmenter,
    encoder: TextEncoder,
    config: TuningConfig,
    seed: int,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Returns batches for :class:`ContrastiveTower`, epoch after epoch; they only depend on the seed and the epoch.

    Args:
      pairs: The pairs of items that were read together.
      wordings: The possible texts of each of the N items; the first is the whole text.
      augmenter: Makes views of the texts.
      encoder: The encoder; it tokenises the texts.
      config: The settings of the tuning.
      seed: The seed of pairs and views.
      first_epoch: The epoch of the first batch.

    Returns:
      A dataset of the encoder's inputs of the U distinct texts, int32 ``[U, T]``; ``left`` and ``right``, int32
      ``[B]``, rows of these texts; and ``together``, bool ``[B, B]``, pairs of left and right that are not negatives.
    """

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        for epoch in range(first_epoch, config.epochs):
            rng = np.random.default_rng([seed, epoch, 1])  # pairs.batches uses [seed, epoch]
            for left, right in pairs.batches(config.batch_size, seed, epoch, itself=config.itself):
                views = [augmenter.views([wordings[item] for item in side], rng) for side in (left, right)]
                texts, rows = np.unique(np.array([*views[0], *views[1]], object), return_inverse=True)
                yield texts, rows[: len(left)], rows[len(left) :], pairs.read_together(left, right)

    signature = (
        tf.TensorSpec([None], tf.string),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None, None], tf.bool),
    )

    def tokenised(texts: tf.Tensor, left: tf.Tensor, right: tf.Tensor, together: tf.Tensor) -> dict[str, tf.Tensor]:
        return encoder.text_to_vector.tokens(texts) | {"left": left, "right": right, "together": together}

    return tf.data.Dataset.from_generator(batches, output_signature=signature).map(tokenised).prefetch(2)


def tune_tower(
    encoder: TextEncoder,
    pairs: ItemPairs,
    wordings: Sequence[Sequence[str]],
    text: TextConfig,
    config: TuningConfig,
    seed: int,
    folder: Path,
    measure: Callable[[], Result],
    tell: Tell,
) -> tuple[Tuning, int]:
    """Tunes ``encoder`` according to ``text.mode``, and restores the best epoch on validation.

    Epoch 0, the original encoder, counts: if no epoch improves on it, the tuning ends as the identity.

    Args:
      encoder: The untuned encoder; its variables may change.
      pairs: See :func:`pair_batches`.
      wordings: See :func:`pair_batches`.
      text: The ``text`` section of the config.
      config: The ``tuning`` section of the config.
      seed: The seed of new weights, pairs and views.
      folder: The folder of checkpoints and TensorBoard logs. If it has them already, training resumes from them.
      measure: Evaluates the encoder's current vectors on validation.
      tell: Called with a line for each epoch.

    Returns:
      The tuning, and its best epoch, from 1; 0 is the original encoder.

    Raises:
      ConfigError, ModelError: See :func:`tfllmrec.text.paraphrases.paraphrases_of`.
      ModelError: The loss is not a number, or the checkpoints belong to another tower or other settings.
    """

    steps = sum(1 for _ in pairs.batches(config.batch_size, seed, itself=config.itself))
    synonyms = read_synonyms(config.synonyms) if config.synonyms else {}
    paraphrases: dict[str, str] = {}
    if config.paraphrase:
        whole = [each[0] for each in wordings]
        paraphrases = paraphrases_of(whole, config.paraphrase, encoder, config.paraphrase_similarity, tell)
    settings = {
        "encoder": encoder.fingerprint,
        "pairs": sha256(np.concatenate([pairs.left, pairs.right, pairs.count, pairs.items]).tobytes()).hexdigest(),
        "texts": sha256(json.dumps([list(each) for each in wordings]).encode()).hexdigest(),
        "mode": text.mode,
        **config.model_dump(mode="json"),
        "synonyms": sha256(json.dumps(synonyms).encode()).hexdigest(),
        "paraphrases": sha256(json.dumps(paraphrases).encode()).hexdigest(),
        "seed": seed,
    }
    claim(folder / "checkpoints" / "settings.json", settings)
    tuning = new_tuning(encoder, text.mode, config, steps, seed)
    model = ContrastiveTower(tuning, config.temperature, config.accumulate)
    augmenter = Augmenter(word_dropout=config.word_dropout, synonyms=synonyms, paraphrases=paraphrases)

    def batches(first_epoch: int) -> tf.data.Dataset:
        made = pair_batches(pairs, wordings, augmenter, encoder, config, seed, first_epoch)
        return made.apply(tf.data.experimental.assert_cardinality((config.epochs - first_epoch) * steps))

    return tuning, train_tower(model, batches, steps, config, folder, measure, tell)


def is_tuned(folder: Path) -> bool:
    """Returns whether a tower's folder has a complete tuning, so that :func:`prepared_encoder` has nothing to tune."""
    return (folder / TUNED).is_file() and TowerRecord.load(folder) is not None  # the record is written last


def is_trained(folder: Path, text: TextConfig) -> bool:
    """Returns whether a tower's folder has everything for ``text``, so that :func:`prepared_encoder` trains nothing."""
    if text.pretrain_epochs and not (folder / PRETRAINED).is_dir():
        return False
    if text.mode != "frozen":
        return is_tuned(folder)
    return not text.pretrain_epochs or TowerRecord.load(folder) is not None


@random_state_kept()
def prepared_encoder(
    folder: Path, split: Split, template: ItemTemplate, config: ExperimentConfig, tell: Tell
) -> Encoder:
    """Returns the encoder of a config, pretrained and tuned according to it.

    Each step is done once; its result is stored in ``folder``, which is locked meanwhile.

    Args:
      folder: The folder of the tower; pretraining writes ``encoder/``, a Hub SavedModel, and tuning
        ``tuned.safetensors``.
      split: Only its training events, its validation queries and its ``items`` are used.
      template: The template of the items' texts.
      config: The config of the run.
      tell: Called with lines of progress.

    Raises:
      ConfigError, DataError, ModelError: See the steps.
    """
    encoder = encoder_of(config.text)
    if isinstance(encoder, SideBySide) or (config.text.mode == "frozen" and not config.text.pretrain_epochs):
        return encoder
    if is_trained(folder, config.text):  # a complete run's folder may be on a read-only disk
        return _prepared(encoder, folder, split, template, config, tell)
    with locked(folder):
        return _prepared(encoder, folder, split, template, config, tell)


def _prepared(
    encoder: TextEncoder, folder: Path, split: Split, template: ItemTemplate, config: ExperimentConfig, tell: Tell
) -> TextEncoder:
    start, text = time.monotonic(), config.text
    pretrained = folder / PRETRAINED
    if text.pretrain_epochs:
        if not pretrained.is_dir():
            pretrain(
                *encoder.folders,
                template.texts(split.items),
                pretrained,
                epochs=text.pretrain_epochs,
                max_tokens=text.max_tokens,
                item_prefix=encoder.text_to_vector.prefix,
                seed=config.seed,
                folder=folder / "pretraining",
                tell=lambda line: tell(f"pretraining: {line}"),
            )
        encoder = TextEncoder(
            pretrained,
            encoder.folders[1],
            text.max_tokens,
            text.precision,
            text.batch_size,
            pooling=text.pooling,
            item_prefix=encoder.text_to_vector.prefix,
            query_prefix=encoder.query_prefix,
        )
    if text.mode == "frozen":
        if TowerRecord.load(folder) is None:
            _record(encoder.text_to_vector.encoder.trainable_variables, [pretrained], start).save(folder)
        _tidy(folder)
        return encoder
    tuned = folder / TUNED
    if is_tuned(folder):
        _tidy(folder)
        encoder.tune(load_tuning(tuned, encoder.text_to_vector.encoder, encoder.base_fingerprint, text.pooling))
        return encoder
    set_seeds(config.seed)

    def tell_of_tower(line: str) -> None:
        tell(f"text tower: {line}")

    if text.mode == "joint":
        tuning, best_epoch = tune_jointly(encoder, split, template.texts(split.items), config, folder, tell_of_tower)
    else:
        tuning, best_epoch = _tune_by_pairs(encoder, split, template, config, folder, tell_of_tower)
    tuning.save(tuned, encoder.base_fingerprint)
    shipped = [tuned, *([pretrained] if text.pretrain_epochs else [])]
    _record(tuning.variables, shipped, start, best_epoch).save(folder)
    _tidy(folder)
    return encoder


def _tune_by_pairs(
    encoder: TextEncoder, split: Split, template: ItemTemplate, config: ExperimentConfig, folder: Path, tell: Tell
) -> tuple[Tuning, int]:
    """Runs :func:`tune_tower` on the items that users read one after the other."""
    n_items = split.dataset.n_items
    wordings = template.wordings(split.items)
    texts = [each[0] for each in wordings]
    readable = np.array([bool(text) for text in texts])
    histories = split.train_queries().choices
    # Without an order of events, neighbours in a history would only reflect the order of a file.
    read = histories if split.dataset.ordered else _shuffled(histories, config.seed)
    pairs = item_pairs(read, n_items, config.tuning.window, config.tuning.tail_power, readable=readable)

    def measure() -> Result:
        data = TrainingData.of(split, encode_items(texts, encoder), config)
        return data.measure(TextSimilarity().fit(data))

    return tune_tower(encoder, pairs, wordings, config.text, config.tuning, config.seed, folder, measure, tell)


def _shuffled(histories: Ragged, seed: int) -> Ragged:
    """Returns the same histories, each in random order."""
    chance = np.random.default_rng(seed).random(len(histories.values))
    return Ragged(histories.values[np.lexsort((chance, histories.row_of_value))], histories.offsets)


def _tidy(folder: Path) -> None:
    """Removes files that a complete tower no longer needs, and moves the curves of its pretraining to the other logs.

    It may be called at any time after the record is written, and repeatedly.
    """
    curves = folder / "pretraining" / "logs"
    if curves.is_dir():
        (folder / "logs").mkdir(exist_ok=True)
        curves.rename(folder / "logs" / "pretraining")
    for done in ("pretraining", "checkpoints", "hybrid"):
        shutil.rmtree(folder / done, ignore_errors=True)


def _record(
    variables: Sequence[tf.Variable], shipped: Sequence[Path], start: float, best_epoch: int | None = None
) -> TowerRecord:
    files = [path for part in shipped for path in (part, *part.rglob("*")) if path.is_file()]
    trained = sum(int(np.prod(variable.shape)) for variable in variables)
    return TowerRecord(trained, sum(path.stat().st_size for path in files), time.monotonic() - start, best_epoch)

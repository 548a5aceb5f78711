"""Tunes a text tower: texts of items that belong together are pulled close, others pushed apart."""

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
    """What became of a text tower, and what it took.

    Attributes:
      trained: weights that were trained: by tuning, or by pretraining where nothing was tuned.
      bytes: of what has to be shipped beside the encoder that the config names.
      seconds: of the session that ended it; earlier ones of an interrupted run are not counted.
      best_epoch: of the tuning, from 1; 0 where none was better on validation than the encoder as it came, so that the
        tuning changes nothing; ``None`` where nothing was tuned, or it was not written down.
    """

    trained: int
    bytes: int
    seconds: float
    best_epoch: int | None = None

    @classmethod
    def load(cls, folder: Path) -> TowerRecord | None:
        """That of a run's ``text`` folder; ``None`` where its encoder is as it came.

        Raises:
          ModelError: it is damaged.
        """
        path = folder / "tower.json"
        return read_json(path, cls, f"copy {folder} back, or fit again") if path.is_file() else None

    def save(self, folder: Path) -> None:
        write_text(folder / "tower.json", json.dumps(asdict(self), indent=1))


class ContrastiveTower(TunedTower):
    """Symmetric cross-entropy of each text among those of its batch.

    With unit vectors of B pairs of texts and the temperature t it is ``-log softmax_j(<l_i, r_j> / t)`` at ``j = i``,
    and the same from right to left (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748). Items that were themselves
    read together, or whose texts are the same, are no negatives of each other. Each distinct text of a batch is
    encoded once.

    Args:
      tuning: what is trained.
      temperature: t.
      accumulate: steps whose gradients are averaged before the encoder moves.
    """

    def __init__(self, tuning: Tuning, temperature: float, accumulate: int = 1) -> None:
        super().__init__(tuning, accumulate)
        self.temperature = temperature

    def compute_loss(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The loss of a batch as :func:`pair_batches` gives it."""
        # The encoder's own dropout stays off: in a module that was loaded it follows no seed, and the noise that keeps
        # two views of a text apart is in their words.
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
    """Batches for :class:`ContrastiveTower`, epoch after epoch; a function of the seed and the epoch.

    Args:
      pairs: items read together.
      wordings: of each of the N items, what its text may be; the first is the whole.
      augmenter: makes views of them.
      encoder: tokenises.

    Yields:
      The encoder's inputs of the U distinct texts, int32 ``[U, T]``; ``left``, ``right`` int32 ``[B]``, rows of these;
      ``together`` bool ``[B, B]``, pairs of left and right that are no negatives.
    """

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        for epoch in range(first_epoch, config.epochs):
            rng = np.random.default_rng([seed, epoch, 1])  # pairs.batches draws by [seed, epoch]
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
    """Tunes ``encoder`` as ``text.mode`` says; it is left at the best epoch on validation.

    Epoch 0, the encoder as it came, is one of them: a tuning that only harms ends as the identity.

    Args:
      encoder: untuned; its variables change.
      pairs, wordings: see :func:`pair_batches`.
      folder: for checkpoints and TensorBoard logs. One that has them already is gone on with.
      measure: how good the encoder's vectors are now, on validation.
      tell: called with a line for each epoch.

    Returns:
      The tuning, and its best epoch, from 1; 0 is the encoder as it came.

    Raises:
      ConfigError, ModelError: see :func:`tfllmrec.text.paraphrases.paraphrases_of`.
      ModelError: the loss is not a number, or the checkpoints belong to another tower or other settings.
    """

    def tell_of_tower(line: str) -> None:
        tell(f"text tower: {line}")

    steps = sum(1 for _ in pairs.batches(config.batch_size, seed, itself=config.itself))
    synonyms = read_synonyms(config.synonyms) if config.synonyms else {}
    paraphrases: dict[str, str] = {}
    if config.paraphrase:
        whole = [each[0] for each in wordings]
        paraphrases = paraphrases_of(whole, config.paraphrase, encoder, config.paraphrase_similarity, tell_of_tower)
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
    tuning = new_tuning(encoder, text.mode, config, config.epochs * steps, seed)
    model = ContrastiveTower(tuning, config.temperature, config.accumulate)
    augmenter = Augmenter(word_dropout=config.word_dropout, synonyms=synonyms, paraphrases=paraphrases)

    def batches(first_epoch: int) -> tf.data.Dataset:
        made = pair_batches(pairs, wordings, augmenter, encoder, config, seed, first_epoch)
        return made.apply(tf.data.experimental.assert_cardinality((config.epochs - first_epoch) * steps))

    return tuning, train_tower(model, batches, steps, config, folder, measure, tell)


def is_tuned(folder: Path) -> bool:
    """Whether a tower's folder has a complete tuning, so that :func:`prepared_encoder` has nothing to tune."""
    return (folder / TUNED).is_file() and TowerRecord.load(folder) is not None  # which is written last


def is_trained(folder: Path, text: TextConfig) -> bool:
    """Whether a tower's folder has all that ``text`` asks for, so that :func:`prepared_encoder` trains nothing."""
    if text.pretrain_epochs and not (folder / PRETRAINED).is_dir():
        return False
    if text.mode != "frozen":
        return is_tuned(folder)
    return not text.pretrain_epochs or TowerRecord.load(folder) is not None


@random_state_kept()
def prepared_encoder(
    folder: Path, split: Split, template: ItemTemplate, config: ExperimentConfig, tell: Tell
) -> Encoder:
    """The encoder that a config asks for, pretrained and tuned where the config says so.

    Each step is done once; its result is stored in ``folder``, which is locked meanwhile.

    Args:
      folder: of the tower; pretraining writes ``encoder/``, a Hub SavedModel, and tuning ``tuned.safetensors``.
      split: only its training events, its validation queries and its ``items`` are used.
      template: of the items' texts.

    Raises:
      ConfigError, DataError, ModelError: see the steps.
    """
    encoder = encoder_of(config.text)
    if isinstance(encoder, SideBySide) or (config.text.mode == "frozen" and not config.text.pretrain_epochs):
        return encoder
    if is_trained(folder, config.text):  # a complete run's folder may be on a disk that cannot be written
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
    if text.mode == "joint":
        tuning, best_epoch = tune_jointly(encoder, split, template.texts(split.items), config, folder, tell)
    else:
        tuning, best_epoch = _tune_by_pairs(encoder, split, template, config, folder, tell)
    tuning.save(tuned, encoder.base_fingerprint)
    shipped = [tuned, *([pretrained] if text.pretrain_epochs else [])]
    _record(tuning.variables, shipped, start, best_epoch).save(folder)
    _tidy(folder)
    return encoder


def _tune_by_pairs(
    encoder: TextEncoder, split: Split, template: ItemTemplate, config: ExperimentConfig, folder: Path, tell: Tell
) -> tuple[Tuning, int]:
    """:func:`tune_tower` on the items that users read one after the other."""
    n_items = split.dataset.n_items
    wordings = template.wordings(split.items)
    texts = [each[0] for each in wordings]
    readable = np.array([bool(text) for text in texts])
    histories = split.train_queries().choices
    # Where events have no order, neighbours in a history are neighbours in some file.
    read = histories if split.dataset.ordered else _shuffled(histories, config.seed)
    pairs = item_pairs(read, n_items, config.tuning.window, config.tuning.tail_power, readable=readable)

    def measure() -> Result:
        data = TrainingData.of(split, encode_items(texts, encoder), config)
        return data.measure(TextSimilarity().fit(data))

    return tune_tower(encoder, pairs, wordings, config.text, config.tuning, config.seed, folder, measure, tell)


def _shuffled(histories: Ragged, seed: int) -> Ragged:
    """The same histories, each in an order of chance."""
    chance = np.random.default_rng(seed).random(len(histories.values))
    return Ragged(histories.values[np.lexsort((chance, histories.row_of_value))], histories.offsets)


def _tidy(folder: Path) -> None:
    """Removes what a complete tower is gone on with no more, and keeps the curves of its pretraining with the others'.

    It may be called at any time after the record is written, again as well.
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

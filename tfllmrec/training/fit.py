"""From a split and text vectors to a fitted hybrid: the steps of a Keras script, in the order that they need."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.columns import ITEM
from tfllmrec.config import ExperimentConfig
from tfllmrec.data.batches import Sequences, steps_per_epoch, training_batches
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.errors import DataError, ModelError
from tfllmrec.evaluation.protocol import Result, evaluate, selection_value
from tfllmrec.models.hybrid import Catalogue, Hybrid, Negatives
from tfllmrec.models.item_weights import ItemWeightSettings, PrunedWeights, centred_unit, solve_item_weights
from tfllmrec.progress import show_progress
from tfllmrec.training import defaults
from tfllmrec.training.callbacks import EpochCheckpoint, Scoreboard, StepProgress
from tfllmrec.training.optimizer import adamw

#: What the dense side may weigh beside what its gates say; the best on validation is taken.
DENSE_STRENGTHS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)

Tell = Callable[[str], None]


def set_seeds(seed: int) -> None:
    """Seeds Python, numpy and TensorFlow, and makes TensorFlow's operations deterministic."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and the settings as they were after *auto*."""

    model: Hybrid
    config: ExperimentConfig


def build_hybrid(split: Split, text: np.ndarray, config: ExperimentConfig) -> Hybrid:
    """An untrained model of a split's catalogue; item-item weights are still zero.

    Args:
      text: float32 ``[N, Dt]``, in the order of the items table.
      config: with every *auto* resolved.
    """
    catalogue = Catalogue(split.dataset.items[ITEM].to_numpy(object), text)
    negatives = Negatives(config.training.negatives or 0, config.training.log_q)
    return Hybrid(catalogue, split.train_counts, config.model, negatives, config.seed)


def fit_hybrid(
    split: Split,
    text: np.ndarray,
    config: ExperimentConfig,
    folder: Path | None = None,
    tell: Tell | None = None,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> Fitted:
    """Resolves *auto* settings, solves the item-item weights, trains dense side and gates, keeps the best epoch.

    Args:
      split: training events and validation queries; test queries are not looked at.
      text: float32 ``[N, Dt]``, in the order of the items table.
      config: may say *auto*; it is not changed.
      folder: for checkpoints and TensorBoard logs. A fit that finds its own state there goes on from it.
      tell: called with a line for each step.
      callbacks: further ones, called after those of the fit: ``logs["selection"]`` has the validation value by then,
        and the epoch is on disk. One that sets ``model.stop_training`` ends the fit with its best epoch so far.

    Raises:
      DataError: no user has two training events.
      ModelError: the loss is not a number, or the folder's checkpoints belong to another model.
    """
    config = config.model_copy(deep=True)
    tell = tell or (lambda line: None)
    set_seeds(config.seed)
    sequences = Sequences.from_split(split, config.training.gate_holdout, config.seed)
    if not (sequences.items.lengths >= 2).any():
        raise DataError(
            f"{split.dataset.name} leaves no user with two training events, so there is no next event to learn from: "
            "use more data or another split.kind."
        )
    settings = choose(split, text, config, tell)
    if config.training.precision != "float32":
        tf.keras.mixed_precision.set_global_policy(config.training.precision)
    try:
        model = build_hybrid(split, text, config)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    if settings is not None:
        tell("item-item weights: solving")
        set_item_weights(model, sequences, text, settings, config.model.item_weights_neighbours)
    if model.use_dense:
        with contextlib.ExitStack() as stack:
            kept = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _train(model, sequences, split, config, kept, tell, callbacks)
    return Fitted(model, config)


def choose(split: Split, text: np.ndarray, config: ExperimentConfig, tell: Tell) -> ItemWeightSettings | None:
    """Fills in what ``config`` leaves to *auto*, in place, and tells what was chosen.

    Returns:
      The settings of the item-item weights; ``None`` where the model has none.
    """
    for line in defaults.sizes(split, config):
        tell(f"chosen: {line}")
    if "behaviour" not in config.model.terms:
        return None
    settings, said = defaults.choose_item_weights(split, text, config, tell)
    for line in said:
        tell(f"chosen: {line}")
    for name, value in asdict(settings).items():
        setattr(config.model, f"item_weights_{name}", value)
    return settings


def set_item_weights(
    model: Hybrid, sequences: Sequences, text: np.ndarray, settings: ItemWeightSettings, neighbours: int
) -> None:
    """Solves W twice, with all training events and without those that the gates are fitted on, and sets both.

    Exact or low-rank, as ``model.config.item_weights`` says.
    """
    unit = centred_unit(text)

    def solve(histories) -> PrunedWeights:
        form, rank = model.config.item_weights, model.config.item_weights_rank
        return solve_item_weights(
            histories, sequences.n_items, settings, unit, form=form, rank=rank, neighbours=neighbours
        )

    kept = sequences.without_held_out()
    model.set_item_weights(solve(sequences.items))
    model.set_holdout(solve(kept), np.bincount(kept.values, minlength=sequences.n_items))


def choose_dense_strength(
    model: Hybrid,
    strengths: Sequence[float],
    sample: Queries,
    train_counts: np.ndarray,
    strata: Mapping[str, np.ndarray],
    climb: bool = False,
) -> Result:
    """Sets the dense strength to the one that is best on ``sample``, the first of equals; returns what was measured.

    Args:
      strengths: those to choose from, ascending.
      climb: not all are tried, but from the model's own on upwards or downwards as long as that helps.
    """
    results: dict[float, Result] = {}

    def value(strength: float) -> float:
        if strength not in results:
            model.gates.dense_strength.assign(strength)
            results[strength] = evaluate(
                model, sample, train_counts=train_counts, strata=strata, ks=[5, 10, 20], bootstrap=0
            )
        return selection_value(results[strength])

    best = float(model.gates.dense_strength) if climb else max(strengths, key=value)
    if climb:
        at = strengths.index(best)
        for further in (strengths[at + 1 :], strengths[:at][::-1]):
            for strength in further:
                if value(strength) <= value(best):
                    break
                best = strength
    model.gates.dense_strength.assign(best)
    return results[best]


def _train(
    model: Hybrid,
    sequences: Sequences,
    split: Split,
    config: ExperimentConfig,
    folder: Path,
    tell: Tell,
    more: Sequence[tf.keras.callbacks.Callback],
) -> None:
    training, length = config.training, config.model.history_length
    assert training.batch_size is not None and training.epochs is not None and length is not None
    strata = split.strata(config.evaluation.head_share)
    sample = defaults.validation_sample(split, config.seed)

    def measure(model: Hybrid) -> Result:
        """The model at the dense strength that is best on validation, which it keeps."""
        strengths = DENSE_STRENGTHS if model.use_behaviour else (1.0,)
        return choose_dense_strength(model, strengths, sample, split.train_counts, strata, climb=True)

    steps = training.epochs * steps_per_epoch(sequences, training.batch_size, length)
    model.compile(optimizer=adamw(training.learning_rate, steps, training.warmup_share, training.weight_decay))
    callbacks = [
        Scoreboard(measure, folder / "logs" / "validation", tell),
        tf.keras.callbacks.TerminateOnNaN(),
    ]
    checkpoint = EpochCheckpoint(folder / "checkpoints", training.patience)
    checkpoint.restore_last(model)
    first_epoch = training.epochs if checkpoint.state.finished else checkpoint.state.epochs_done
    if first_epoch:
        tell(f"resumed after epoch {checkpoint.state.epochs_done}")
    callbacks += [checkpoint, tf.keras.callbacks.TensorBoard(str(folder / "logs" / "keras"), write_graph=False), *more]
    if first_epoch < training.epochs:
        batches = training_batches(sequences, training.batch_size, length, config.seed, first_epoch)
        with show_progress("Training", "steps") as progress:
            callbacks.append(StepProgress(progress, steps, done=steps * first_epoch // training.epochs))
            history = model.fit(
                batches, epochs=training.epochs, initial_epoch=first_epoch, callbacks=callbacks, verbose=0
            ).history
        if not np.all(np.isfinite(history["loss"])):
            raise ModelError(
                f"The loss is not a number after epoch {len(history['loss']) + first_epoch}: lower "
                f"training.learning_rate (now {training.learning_rate}) or use training.precision float32."
            )
    checkpoint.restore_best(model)
    if model.use_behaviour:  # during training not all were tried
        choose_dense_strength(model, DENSE_STRENGTHS, sample, split.train_counts, strata)
    tell(f"best epoch: {checkpoint.state.best_epoch + 1}, dense strength {float(model.gates.dense_strength)}")

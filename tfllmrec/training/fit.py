"""From a split and text vectors to a fitted hybrid: the steps of a Keras script, in the order that they need."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.columns import ITEM
from tfllmrec.config import ExperimentConfig
from tfllmrec.data.batches import Sequences, steps_per_epoch, training_batches
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.splits import Split
from tfllmrec.errors import DataError, ModelError
from tfllmrec.evaluation.protocol import Result, evaluate, selection_value
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.hybrid import Catalogue, Hybrid, Negatives
from tfllmrec.models.item_weights import ItemWeightSettings, PrunedWeights, centred_unit, solve_item_weights
from tfllmrec.progress import show_progress
from tfllmrec.training import defaults
from tfllmrec.training.callbacks import EpochCheckpoint, Scoreboard, StepProgress
from tfllmrec.training.optimizer import adamw

#: What the gates' strength and closing may be; the best on validation are taken.
STRENGTHS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
CLOSINGS = (0.0, 0.25, 0.5, 0.75, 1.0)

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
        set_item_weights(model, sequences, text, settings)
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


def set_item_weights(model: Hybrid, sequences: Sequences, text: np.ndarray, settings: ItemWeightSettings) -> None:
    """Solves W twice, with all training events and without those that the gates are fitted on, and sets both.

    Exact or low-rank, and with as many neighbours, as ``model.config`` says.
    """
    unit, config = centred_unit(text), model.config

    def solve(histories: Ragged) -> PrunedWeights:
        return solve_item_weights(
            histories,
            sequences.n_items,
            settings,
            unit,
            form=config.item_weights,
            rank=config.item_weights_rank,
            neighbours=config.item_weights_neighbours,
        )

    kept = sequences.without_held_out()
    model.set_item_weights(solve(sequences.items))
    model.set_holdout(solve(kept), np.bincount(kept.values, minlength=sequences.n_items))


class _Weighed:
    """The scores of some queries, put together anew for each choice of the gates' strength and closing."""

    def __init__(self, model: Hybrid, queries: Queries) -> None:
        self.dense, self.sparse = model.score_terms(queries)
        self.gates, self.counts = model.gates, model.train_counts
        self.next_row = 0

    def score(self, queries: Queries) -> np.ndarray:
        """Those of the next rows: queries come in their order."""
        rows = slice(self.next_row, self.next_row + len(queries))
        self.next_row = rows.stop % len(self.dense)
        dense, sparse = (factor.numpy() for factor in self.gates.factors(self.counts))
        return self.dense[rows] * dense + self.sparse[rows] * sparse


def choose_gates(
    model: Hybrid,
    sample: Queries,
    train_counts: np.ndarray,
    strata: Mapping[str, np.ndarray],
    strengths: Sequence[float] = STRENGTHS,
    closings: Sequence[float] = CLOSINGS,
    *,
    climb: bool = False,
) -> Result:
    """Sets the gates' dense strength and closing to those that are best on ``sample``; returns what was measured.

    Args:
      model: one that has gates, or nothing to choose.
      strengths, closings: to choose from, ascending; of equals the first pair is taken.
      climb: not all pairs are tried, but from the model's own on one after the other is moved as long as that helps.
    """
    scored: Recommender = model
    if model.gates.trainable:
        scored = _Weighed(model, sample)
    else:
        strengths, closings = (1.0,), (1.0,)
    gates, results = model.gates, {}

    def value(pair: tuple[float, float]) -> float:
        if pair not in results:
            gates.dense_strength.assign(pair[0])
            gates.closing.assign(pair[1])
            results[pair] = evaluate(
                scored, sample, train_counts=train_counts, strata=strata, ks=[5, 10, 20], bootstrap=0
            )
        return selection_value(results[pair])

    best = (float(gates.dense_strength), float(gates.closing))
    if climb:
        for place, choices in enumerate((strengths, closings)):
            at = choices.index(best[place])
            for further in (choices[at + 1 :], choices[:at][::-1]):
                for choice in further:
                    pair = (choice, best[1]) if place == 0 else (best[0], choice)
                    if value(pair) <= value(best):
                        break
                    best = pair
        value(best)
    else:
        best = max(product(strengths, closings), key=value)
    gates.dense_strength.assign(best[0])
    gates.closing.assign(best[1])
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
        """The model with the gates that are best on validation, which it keeps."""
        return choose_gates(model, sample, split.train_counts, strata, climb=True)

    steps = training.epochs * steps_per_epoch(sequences, training.batch_size, length)
    optimizer = adamw(training.learning_rate, steps, training.warmup_share, training.weight_decay)
    optimizer.build(model.trainable_variables)  # in the first step it would have the step traced twice
    model.compile(optimizer=optimizer)
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
    choose_gates(model, sample, split.train_counts, strata)  # during training not all were tried
    tell(
        f"best epoch: {checkpoint.state.best_epoch + 1}, dense strength {float(model.gates.dense_strength)}, "
        f"gate closing {float(model.gates.closing)}"
    )

"""Training of an encoder with a loss on its vectors: the training step and the loop over epochs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.board.scoreboard import Scoreboard
from tfllmrec.config import TrainingConfig, TuningConfig
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import Result
from tfllmrec.progress import Tell, show_progress
from tfllmrec.text.encoder import TextEncoder
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.text.tuning import Tuning, tuning_of
from tfllmrec.training.callbacks import EpochCheckpoint, StepProgress
from tfllmrec.training.optimizer import adamw

#: Default learning rates. New weights (the first four modes) are trained from scratch, at a higher rate than pretrained
#: ones. adalora has a higher rate than lora, because a triplet has one singular value, where lora has a column of B.
LEARNING_RATES = {"lora": 1e-3, "adalora": 5e-3, "prefix": 1e-2, "adapter": 1e-3, "top_layers": 3e-5, "full": 2e-5}

#: Number of groups that a batch is split into by length; each is padded to its own longest text. Four groups save two
#: fifths of the computation spent on padding.
LENGTH_GROUPS = 4


def new_tuning(encoder: TextEncoder, mode: str, config: TuningConfig, steps: int, seed: int) -> Tuning:
    """Creates the trainable weights of an encoder according to the ``tuning`` section; the encoder then uses them.

    Args:
      encoder: The untuned encoder.
      mode: One of :data:`tfllmrec.text.tuning.MODES`.
      config: The ``tuning`` section, with the sizes.
      steps: The number of steps in an epoch.
      seed: The seed of random initial weights.

    Raises:
      ModelError: See :func:`tfllmrec.text.tuning.tuning_of`.
    """
    tuning = tuning_of(
        encoder.text_to_vector.encoder,
        mode,
        rank=config.rank,
        alpha=config.alpha,
        targets=config.targets,
        layers=config.layers,
        width=config.width,
        length=config.length,
        steps=_moves(steps, config),
        seed=seed,
        pooling=encoder.text_to_vector.pooling,
    )
    encoder.tune(tuning)
    return tuning


def _moves(steps: int, config: TuningConfig) -> int:
    """Returns the number of updates of the weights in the whole training, with ``steps`` steps in an epoch."""
    return config.epochs * -(-steps // config.accumulate)


class TunedTower(tf.keras.Model):
    """A Keras model around a :class:`Tuning`; a subclass defines the loss.

    Args:
      tuning: The encoder's trainable weights.
      accumulate: The number of steps whose gradients are averaged before the weights are updated. Call
        :meth:`finish_update` at the end of an epoch for the steps that remain.
      beside: Other variables that are trained together with them, by :attr:`beside_optimizer`.

    Attributes:
      beside_optimizer: The optimizer of ``beside``; set it where the model is compiled.
    """

    beside_optimizer: tf.keras.optimizers.Optimizer

    def __init__(self, tuning: Tuning, accumulate: int = 1, beside: Sequence[tf.Variable] = ()) -> None:
        super().__init__(name="text_tower", dtype="float32")
        self.tuning = tuning
        self.tuned, self.beside = list(tuning.variables), list(beside)
        self.tuning_state = list(tuning.state)
        self.accumulate = accumulate
        if accumulate > 1:
            self.sums = [tf.Variable(tf.zeros_like(v), trainable=False) for v in self.trainable_variables]
            self.steps = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.loss_tracker = tf.keras.metrics.Mean("loss")

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """The tuned variables and those of ``beside``, without the encoder's own."""
        return [*self.tuned, *self.beside]

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        return [self.loss_tracker]

    def vectors(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Maps the encoder's inputs, int32 ``[B, T]``, to float32 ``[B, D]``; groups by length to save padding."""
        lengths = tf.reduce_sum(inputs["input_mask"], axis=1)
        order = tf.argsort(lengths, stable=True)
        ends = tf.size(lengths) * tf.range(LENGTH_GROUPS + 1) // LENGTH_GROUPS
        vectors = []
        for group in range(LENGTH_GROUPS):
            rows = order[ends[group] : ends[group + 1]]
            width = tf.reduce_max(tf.concat([[1], tf.gather(lengths, rows)], axis=0))
            vectors.append(self.tuning.vectors({name: tf.gather(inputs[name], rows)[:, :width] for name in INPUTS}))
        return tf.gather(tf.concat(vectors, axis=0), tf.argsort(order))

    @abstractmethod
    def compute_loss(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the loss of a batch."""

    def train_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*self.tuning.watched, *self.beside])
            loss = self.compute_loss(batch)
        watched, beside = tape.gradient(
            loss, [self.tuning.watched, self.beside], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = [*self.tuning.gradients(watched), *beside]
        if self.accumulate == 1:
            self._move(gradients)
        else:
            for total, gradient in zip(self.sums, gradients, strict=True):
                total.assign_add(tf.convert_to_tensor(gradient))
            self.steps.assign_add(1)
            tf.cond(self.steps == self.accumulate, self._move_by_sums, lambda: None)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def finish_update(self) -> None:
        """Updates the weights by the steps since the last update, if there are any."""
        if self.accumulate > 1 and int(self.steps) > 0:
            self._move_by_sums()

    def _move_by_sums(self) -> None:
        self._move([total / tf.cast(self.steps, total.dtype) for total in self.sums])
        for accumulated in (*self.sums, self.steps):
            accumulated.assign(tf.zeros_like(accumulated))

    def _move(self, gradients: Sequence[Any]) -> None:
        def apply() -> None:
            self.optimizer.apply_gradients(zip(gradients[: len(self.tuned)], self.tuned, strict=True))
            if self.beside:
                self.beside_optimizer.apply_gradients(zip(gradients[len(self.tuned) :], self.beside, strict=True))

        self.tuning.update(gradients[: len(self.tuned)], apply)


def train_tower(
    model: TunedTower,
    batches: Callable[[int], tf.data.Dataset],
    steps: int,
    config: TuningConfig,
    folder: Path,
    measure: Callable[[], Result],
    tell: Tell,
    beside: TrainingConfig | None = None,
) -> int:
    """Trains a tower, and restores the best epoch on validation.

    Epoch 0, the original encoder, counts: if no epoch improves on it, the tuning ends as the identity.

    Args:
      model: The model, not compiled.
      batches: A function of the first epoch that returns the batches from this epoch on, ``steps`` per epoch.
      steps: The number of steps per epoch.
      config: The ``tuning`` section of the config.
      folder: The folder of checkpoints and TensorBoard logs. If it has them already, training resumes from them.
      measure: Evaluates the encoder's current vectors on validation.
      tell: Called with a line for each epoch.
      beside: The settings with the learning rate and weight decay of ``model.beside``, if there is any.

    Returns:
      The best epoch, from 1; 0 is the original encoder.

    Raises:
      ModelError: The loss is not a number.
    """
    tuning = model.tuning
    learning_rate = config.learning_rate or LEARNING_RATES[tuning.mode]
    moves = _moves(steps, config)
    optimizer = adamw(learning_rate, moves, config.warmup_share, config.weight_decay, undecayed=tuning.undecayed)
    optimizer.build(model.tuned)  # building it in the first step would trace the step twice
    model.compile(optimizer=optimizer)
    if beside is not None:
        model.beside_optimizer = adamw(beside.learning_rate, moves, config.warmup_share, beside.weight_decay)
        model.beside_optimizer.build(model.beside)
    sizes = sum(int(np.prod(variable.shape)) for variable in tuning.variables)
    tell(f"{tuning.mode}, {sizes:,} weights to train, {steps:,} steps an epoch")
    checkpoint = EpochCheckpoint(folder / "checkpoints", config.patience)
    state = checkpoint.state
    scoreboard = Scoreboard(lambda _: measure(), folder / "logs" / "validation", tell)
    untuned = [tf.identity(variable) for variable in tuning.variables]
    if state.epochs_done:
        tell(f"resumed after epoch {state.epochs_done}")
    else:
        logs: dict[str, float] = {}
        scoreboard.on_epoch_end(-1, logs)  # epoch 0, which later epochs must exceed
        state.best_value = logs["selection"]
    checkpoint.restore_last(model)
    tuning.write()
    first_epoch = config.epochs if state.finished else state.epochs_done
    if first_epoch < config.epochs:
        with show_progress("Tuning the text tower", "steps") as progress:
            history = model.fit(
                batches(first_epoch),
                epochs=config.epochs,
                initial_epoch=first_epoch,
                steps_per_epoch=steps,
                callbacks=[
                    tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: model.finish_update()),
                    scoreboard,
                    tf.keras.callbacks.TerminateOnNaN(),
                    checkpoint,
                    StepProgress(progress, config.epochs * steps, done=first_epoch * steps),
                ],
                verbose=0,
            ).history
        if not np.all(np.isfinite(history["loss"])):
            raise ModelError(
                f"The loss of the text tower is not a number: lower tuning.learning_rate (now {learning_rate:g})."
            )
    best_epoch = state.best_epoch + 1
    if best_epoch:
        checkpoint.restore_best(model)
        tell(f"best epoch {best_epoch}")
    else:
        for variable, value in zip(tuning.variables, untuned, strict=True):
            variable.assign(value)
        tell("best epoch 0: no later epoch is better on validation, so the original encoder is kept")
    tuning.write()
    return best_epoch

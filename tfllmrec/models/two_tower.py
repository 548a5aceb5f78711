"""The plain two-tower of the TFRS tutorial: the baseline that a TensorFlow team starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.columns import ITEM_INDEX, USER_INDEX
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import selection_value
from tfllmrec.layers.global_state import keras_policy, random_state_kept
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.progress import Progress

BATCH = 1024


class TwoTower(tfrs.Model):
    """A user embedding, an item embedding, in-batch softmax (TFRS "basic retrieval" tutorial: 32 wide, Adagrad 0.1).

    It knows users by id alone: an unknown user gets the mean of all users.
    """

    @keras_policy("float32")
    def __init__(self, user_ids: np.ndarray, n_items: int, dim: int = 32, seed: int = 42) -> None:
        super().__init__()
        self.row_of_user = {user: row for row, user in enumerate(user_ids)}
        initializer = tf.keras.initializers.RandomUniform
        self.users = tf.keras.layers.Embedding(len(user_ids), dim, embeddings_initializer=initializer(seed=seed))
        self.items = tf.keras.layers.Embedding(n_items, dim, embeddings_initializer=initializer(seed=seed + 1))
        self.users.build(None)
        self.items.build(None)
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(self.users(inputs[USER_INDEX]), self.items(inputs[ITEM_INDEX]), compute_metrics=False)

    def score(self, queries: Queries) -> np.ndarray:
        table = self.users.embeddings.numpy()
        table = np.vstack([table, table.mean(axis=0)])
        rows = [self.row_of_user.get(user, len(table) - 1) for user in queries.user_ids]
        return table[rows] @ self.items.embeddings.numpy().T


def two_tower_and_batches(split: Split, seed: int) -> tuple[TwoTower, tf.data.Dataset]:
    """The compiled, untrained model, and its training batches: ``BATCH`` pairs of user and item in random order."""
    tf.keras.utils.set_random_seed(seed)
    users, rows = np.unique(split.train[USER_INDEX], return_inverse=True)
    model = TwoTower(split.dataset.users["user_id"].to_numpy()[users], split.dataset.n_items, seed=seed)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    events = {USER_INDEX: rows.astype(np.int32), ITEM_INDEX: split.train[ITEM_INDEX].to_numpy(np.int32)}
    return model, tf.data.Dataset.from_tensor_slices(events).shuffle(len(rows), seed=seed).batch(BATCH)


@dataclass(frozen=True)
class TwoTowerOptions:
    """How the two-tower is trained.

    Attributes:
      epochs: trained at most.
      patience: epochs in a row without gain on validation before training stops.
    """

    epochs: int = 20
    patience: int = 3


@random_state_kept()
def fit_two_tower(
    data: TrainingData, options: TwoTowerOptions | None = None, progress: Progress | None = None
) -> Fitted[TwoTower, TwoTowerOptions]:
    """Trains until there is no gain on validation any more, and keeps the best epoch.

    Args:
      data: its training events are used, and the validation sample, which epochs are compared on by
        :func:`selection_value`. Its seed is that of the initial weights and the order of the events.
      options: by default those of :class:`TwoTowerOptions`.
      progress: Called before each epoch.

    Returns:
      The model of the best epoch, whose :func:`selection_value` is under ``selection``.
    """
    options = options or TwoTowerOptions()
    model, batches = two_tower_and_batches(data.split, data.seed)
    best, best_weights, waited = -1.0, model.get_weights(), 0
    for epoch in range(options.epochs):
        if progress is not None:
            progress(epoch, options.epochs)
        model.fit(batches, verbose=0)
        value = selection_value(data.measure(model))
        waited = 0 if value > best else waited + 1
        if value > best:
            best, best_weights = value, model.get_weights()
        if waited == options.patience:
            break
    model.set_weights(best_weights)
    return Fitted(model, options, {"selection": best})

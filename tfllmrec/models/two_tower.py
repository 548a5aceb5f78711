"""The plain two-tower of the TFRS tutorial: the baseline that a TensorFlow team starts from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.columns import ITEM_INDEX, USER_INDEX
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import evaluate, selection_value
from tfllmrec.layers.global_state import keras_policy, random_state_kept
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


@random_state_kept()
def fit_two_tower(
    split: Split,
    validation: Queries,
    strata: Mapping[str, np.ndarray],
    seed: int,
    max_epochs: int = 20,
    progress: Progress | None = None,
) -> TwoTower:
    """Trains until three epochs in a row bring no gain on validation, and returns the model of the best epoch.

    Args:
      split: Its training events are used.
      validation: Queries that epochs are compared on, by :func:`selection_value`: those that the other baselines and
        the hybrid are chosen on.
      strata: Name -> bool ``[N]``.
      seed: Of the initial weights and the order of the events.
      max_epochs: Training stops there at the latest.
      progress: Called before each epoch.
    """
    model, batches = two_tower_and_batches(split, seed)
    best, best_weights, waited = -1.0, model.get_weights(), 0
    for epoch in range(max_epochs):
        if progress is not None:
            progress(epoch, max_epochs)
        model.fit(batches, verbose=0)
        value = selection_value(
            evaluate(model, validation, train_counts=split.train_counts, strata=strata, ks=[10], bootstrap=0)
        )
        waited = 0 if value > best else waited + 1
        if value > best:
            best, best_weights = value, model.get_weights()
        if waited == 3:
            break
    model.set_weights(best_weights)
    return model

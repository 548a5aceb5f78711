"""The two-tower model of the TFRS tutorial, as a baseline: the model that a TensorFlow team would start from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.columns import ITEM_INDEX, USER_INDEX
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import selection_value
from tfllmrec.layers.global_state import keras_policy, random_state_kept
from tfllmrec.layers.id_table import IdTable, placeholder_ids
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.measured import MeasuredModel
from tfllmrec.progress import Progress

BATCH = 1024


@tf.keras.utils.register_keras_serializable("tfllmrec")
class TwoTower(MeasuredModel):
    """User embeddings and item embeddings, trained with in-batch softmax.

    The sizes are those of the TFRS "basic retrieval" tutorial: 32 dimensions, Adagrad with learning rate 0.1. The model
    knows users only by id; an unknown user gets the mean vector of all users. It is saved and loaded like any Keras
    model.

    Args:
      user_ids: The ids of the known users. Their positions are the user indices.
      n_items: N.
      dim: D.
      seed: Random seed of the initialisers.
      kwargs: ``name``, as in ``tf.keras.Model``.
    """

    @keras_policy("float32")
    def __init__(self, user_ids: np.ndarray, n_items: int, dim: int = 32, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_items, self.dim, self.seed = n_items, dim, seed
        self.user_ids = IdTable.of(user_ids, name="user_ids")
        embedding, initializer = tf.keras.layers.Embedding, tf.keras.initializers.RandomUniform
        self.users = embedding(len(user_ids), dim, embeddings_initializer=initializer(seed=seed), name="users")
        self.items = embedding(n_items, dim, embeddings_initializer=initializer(seed=seed + 1), name="items")
        self.users.build(None)
        self.items.build(None)
        self.task = tfrs.tasks.Retrieval(name="retrieval")
        self.built = True
        self._set_save_spec({USER_INDEX: tf.TensorSpec((None,), tf.int32)})  # TFRS' train_step never calls the model

    def get_config(self) -> dict[str, Any]:
        """Returns sizes and settings; the users' ids are in the weights."""
        sizes = {"n_users": self.user_ids.n_ids, "id_width": self.user_ids.width, "n_items": self.n_items}
        return {"name": self.name, **sizes, "dim": self.dim, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Creates a model of the same sizes; the users' ids are placeholders until weights are loaded."""
        config = dict(config)
        return cls(placeholder_ids(config.pop("n_users"), config.pop("id_width")), **config)

    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop("_row_of_user", None)
        return super().load_weights(*args, **kwargs)

    @cached_property
    def _row_of_user(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.user_ids.ids)}

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns the score of every item, float32 ``[B, N]``, for the users in ``user_index``, int ``[B]``."""
        return tf.matmul(self.users(inputs[USER_INDEX]), self.items.embeddings, transpose_b=True)

    def targets_and_predictions(self, inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the item of each event, int32 ``[B]``, and the scores of all items for its user, ``[B, N]``."""
        return inputs[ITEM_INDEX], self(inputs)

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(self.users(inputs[USER_INDEX]), self.items(inputs[ITEM_INDEX]), compute_metrics=False)

    def score(self, queries: Queries) -> np.ndarray:
        table = self.users.embeddings.numpy()
        table = np.vstack([table, table.mean(axis=0)])
        rows = [self._row_of_user.get(user, len(table) - 1) for user in queries.user_ids]
        return table[rows] @ self.items.embeddings.numpy().T


def two_tower_and_batches(split: Split, seed: int) -> tuple[TwoTower, tf.data.Dataset]:
    """Returns the compiled, untrained model, and its training batches: ``BATCH`` user-item pairs in random order."""
    tf.keras.utils.set_random_seed(seed)
    users, rows = np.unique(split.train[USER_INDEX], return_inverse=True)
    model = TwoTower(split.dataset.users["user_id"].to_numpy()[users], split.dataset.n_items, seed=seed)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    events = {USER_INDEX: rows.astype(np.int32), ITEM_INDEX: split.train[ITEM_INDEX].to_numpy(np.int32)}
    return model, tf.data.Dataset.from_tensor_slices(events).shuffle(len(rows), seed=seed).batch(BATCH)


@random_state_kept()
def fit_two_tower(
    data: TrainingData, epochs: int = 20, patience: int = 3, progress: Progress | None = None
) -> Fitted[TwoTower, dict[str, int]]:
    """Trains a two-tower model until validation no longer improves, and keeps the best epoch.

    Args:
      data: The training data. Epochs are compared by :func:`selection_value` on its validation sample. Its seed
        determines the initial weights and the order of the events.
      epochs: Largest number of epochs.
      patience: Training stops after this many epochs in a row without a gain on validation.
      progress: Called before each epoch.

    Returns:
      The model of the best epoch. The figure ``selection`` is its :func:`selection_value`.
    """
    model, batches = two_tower_and_batches(data.split, data.seed)
    best, best_weights, waited = -1.0, model.get_weights(), 0
    for epoch in range(epochs):
        if progress is not None:
            progress(epoch, epochs)
        model.fit(batches, verbose=0)
        value = selection_value(data.measure(model))
        waited = 0 if value > best else waited + 1
        if value > best:
            best, best_weights = value, model.get_weights()
        if waited == patience:
            break
    model.set_weights(best_weights)
    return Fitted(model, {"epochs": epochs, "patience": patience}, {"selection": best})

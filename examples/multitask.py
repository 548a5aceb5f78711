"""Multitask: one model for retrieval and ratings, and how much each task costs the other.

The TFRS tutorial "multitask" weights the two losses and compares the accuracy of retrieval and the RMSE of ratings on
a random fifth of the events. Here a film is represented by its id plus its text, retrieval is trained by a softmax over
the whole catalogue, and the test event is each user's last one: its film is to be ranked and its rating predicted.
Popularity is the baseline of the ranks, the biases of item and user are the baseline of the ratings.

    python examples/multitask.py
"""

from __future__ import annotations

from collections.abc import Sequence

import tfllmrec  # before tensorflow: it selects Keras 2

# isort: split
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_recommenders as tfrs
from _data import (
    arguments,
    by_biases,
    callbacks,
    held_out,
    measured,
    read,
    rmse,
    show,
    show_table,
    shuffled,
    text_tower,
)

from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import Result
from tfllmrec.losses.retrieval import CatalogueRetrieval

DIM = 32
#: The weights of the two losses, retrieval and rating, by row of the table.
WEIGHTS = {"ratings only": (0.0, 1.0), "retrieval only": (1.0, 0.0), "both": (1.0, 1.0)}


class Multitask(tfrs.Model):
    """A model whose tasks share the vectors of users and items; ratings are predicted by a small network on top."""

    def __init__(self, split: Split, text: tfllmrec.TextTower, retrieval: float, rating: float) -> None:
        super().__init__()
        self.row_of_user = pd.Index(split.dataset.users["user_id"])
        self.catalogue = tf.range(split.dataset.n_items)
        self.mean = split.train["rating"].mean()
        self.weights_of_tasks = (retrieval, rating)
        self.users = tf.keras.layers.Embedding(split.dataset.n_users, DIM)
        self.ids = tf.keras.layers.Embedding(split.dataset.n_items, DIM)
        self.text = text
        self.head = tf.keras.Sequential([tf.keras.layers.Dense(64, "relu"), tf.keras.layers.Dense(1)])
        self.retrieval_task = CatalogueRetrieval(tf.constant(split.train_counts > 0))
        self.rating_task = tfrs.tasks.Ranking(tf.keras.losses.MeanSquaredError())

    def items(self, item: tf.Tensor) -> tf.Tensor:
        return self.ids(item) + self.text(item)

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns the predicted ratings, float32 ``[B]``."""
        users, items = self.users(inputs["user_index"]), self.items(inputs["item_index"])
        return self.mean + self.head(tf.concat([users, items, users * items], axis=-1))[:, 0]

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        retrieval, rating = self.weights_of_tasks
        users, items = self.users(inputs["user_index"]), self.items(self.catalogue)
        found = self.retrieval_task(users, items, inputs["item_index"])
        return retrieval * found + rating * self.rating_task(inputs["rating"], self(inputs, training=training))

    def score(self, queries: tfllmrec.Queries) -> np.ndarray:
        users = self.users(self.row_of_user.get_indexer(pd.Index(queries.user_ids)))
        return tf.matmul(users, self.items(self.catalogue), transpose_b=True).numpy()


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, Result], dict[str, dict[str, float]]]:
    args = arguments(__doc__, epochs=3).parse_args(argv)
    split = read(args)
    rated = split.train[split.train["rating"].notna()]
    events = {name: rated[name].to_numpy(np.int32) for name in ("user_index", "item_index")}
    events["rating"] = rated["rating"].to_numpy(np.float32)
    test = held_out(split)
    user, item, rating = (test[name].to_numpy() for name in ("user_index", "item_index", "rating"))

    models = {}
    figures = {"item and user biases": {"RMSE": rmse(by_biases(split, user, item), rating)}}
    for name, weights in WEIGHTS.items():
        models[name] = model = Multitask(split, text_tower(args, split, output_dim=DIM), *weights)
        model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
        model.fit(shuffled(events), epochs=args.epochs, callbacks=callbacks(args, name), verbose=0)
        if weights[1]:
            predicted = model({"user_index": tf.constant(user), "item_index": tf.constant(item)})
            figures[name] = {"RMSE": rmse(predicted.numpy(), rating)}
    results = measured(split, models)
    show("Two tasks", results)
    show_table(figures)
    return results, figures


if __name__ == "__main__":
    main()

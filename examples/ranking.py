"""Ranking by predicted ratings, from a user id and the text of a film.

The TFRS tutorial "basic ranking" predicts a rating from two ids and only reports RMSE on a random fifth of the events.
Here the model reads the text of the film (``--mode lora`` also trains the encoder), the test rating is each user's last
one, and RMSE is compared with the simplest baseline, the biases of item and user. The first table shows why a rating
model is not a retrieval model: it compares popularity with a ranking of the whole catalogue by predicted rating.

    python examples/ranking.py
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

DIM = 32


class RatingModel(tfrs.Model):
    """``rating = bias_u + bias_i + mean + MLP(user, text, user * text)``."""

    def __init__(self, split: Split, text: tfllmrec.TextTower) -> None:
        super().__init__()
        self.row_of_user = pd.Index(split.dataset.users["user_id"])
        self.n_items = split.dataset.n_items
        self.mean = split.train["rating"].mean()
        small = tf.keras.regularizers.L2(1e-5)
        self.users = tf.keras.layers.Embedding(split.dataset.n_users, DIM, embeddings_regularizer=small)
        self.user_bias = tf.keras.layers.Embedding(split.dataset.n_users, 1, "zeros", embeddings_regularizer=small)
        self.item_bias = tf.keras.layers.Embedding(split.dataset.n_items, 1, "zeros", embeddings_regularizer=small)
        self.text = text
        self.head = tf.keras.Sequential([tf.keras.layers.Dense(64, "relu"), tf.keras.layers.Dense(1)])
        self.task = tfrs.tasks.Ranking(tf.keras.losses.MeanSquaredError())

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        user, item = inputs["user_index"], inputs["item_index"]
        users, items = self.users(user), self.text(item)
        crossed = self.head(tf.concat([users, items, users * items], axis=-1))
        return self.mean + (self.user_bias(user) + self.item_bias(item) + crossed)[:, 0]

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(inputs["rating"], self(inputs, training=training))

    def score(self, queries: tfllmrec.Queries) -> np.ndarray:
        """Returns the predicted rating of each item of the catalogue, float32 ``[B, N]``."""
        rows = self.row_of_user.get_indexer(pd.Index(queries.user_ids))
        items = tf.range(self.n_items)
        return np.stack([self({"user_index": tf.fill([self.n_items], row), "item_index": items}) for row in rows])


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, Result], dict[str, dict[str, float]]]:
    parser = arguments(__doc__, epochs=5)
    parser.add_argument("--mode", default="frozen", help="lora, adapter, top_layers or full train the encoder as well")
    args = parser.parse_args(argv)
    split = read(args)
    rated = split.train[split.train["rating"].notna()]
    events = {name: rated[name].to_numpy(np.int32) for name in ("user_index", "item_index")}
    events["rating"] = rated["rating"].to_numpy(np.float32)
    model = RatingModel(split, text_tower(args, split, output_dim=DIM, mode=args.mode))
    model.compile(optimizer=tf.keras.optimizers.Adam(0.005))
    model.fit(shuffled(events, 256), epochs=args.epochs, callbacks=callbacks(args, "ranking"), verbose=0)

    test = held_out(split)
    user, item, rating = (test[name].to_numpy() for name in ("user_index", "item_index", "rating"))
    predicted = model({"user_index": tf.constant(user), "item_index": tf.constant(item)}).numpy()
    figures = {
        "mean of all": {"RMSE": rmse(np.full(len(rating), model.mean), rating)},
        "item and user biases": {"RMSE": rmse(by_biases(split, user, item), rating)},
        "rating model": {"RMSE": rmse(predicted, rating)},
    }
    results = measured(split, {"by rating": model})
    show("Ranking of the whole catalogue by predicted rating", results)
    show_table(figures)
    return results, figures


if __name__ == "__main__":
    main()

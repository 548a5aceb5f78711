"""Listwise ranking: learns the order of a user's films instead of single ratings.

The TFRS tutorial "listwise ranking" takes its losses from TensorFlow Ranking, which cannot be installed with current
TensorFlow, and tests on lists drawn from a random fifth of the events. Here the three losses (squared error, pairwise
hinge, ListMLE) are a few lines each, a BERT encodes the films, and a test list has the last films that a user rated
among the training events. The order by mean rating is the baseline. The scoreboard ranks the whole catalogue and
compares with popularity.

    python examples/listwise.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tfllmrec  # before tensorflow: it selects Keras 2

# isort: split
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_recommenders as tfrs
from _data import arguments, callbacks, measured, read, show, show_table, shuffled, text_tower

from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import Result
from tfllmrec.models.ranking import RatingScale

DIM, LISTS, SIZE = 32, 50, 5  # LISTS: training lists per user, SIZE: films per list
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def squared_error(ratings: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(ratings - scores))


def pairwise_hinge(ratings: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    better = tf.cast(ratings[:, :, None] > ratings[:, None, :], tf.float32)
    loss = better * tf.nn.relu(1.0 - (scores[:, :, None] - scores[:, None, :]))
    return tf.math.divide_no_nan(tf.reduce_sum(loss), tf.reduce_sum(better))


def list_mle(ratings: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Returns -log P(the order by rating) by Plackett and Luce (Xia et al. 2008); ties are ordered at random."""
    order = tf.argsort(ratings + tf.random.uniform(tf.shape(ratings)) / 2, direction="DESCENDING")
    best_first = tf.gather(scores, order, batch_dims=1)
    rest = tf.math.cumulative_logsumexp(best_first, axis=1, reverse=True)
    return tf.reduce_mean(tf.reduce_sum(rest - best_first, axis=1))


class ListModel(tfrs.Model):
    """``score(u, i) = bias_i + <user_u, W text_i>``, trained on lists by ``loss(ratings, scores)``."""

    def __init__(self, split: Split, text: tfllmrec.TextTower, loss: Loss) -> None:
        super().__init__()
        self.row_of_user = pd.Index(split.dataset.users["user_id"])
        self.users = tf.keras.layers.Embedding(split.dataset.n_users, DIM)
        self.biases = tf.keras.layers.Embedding(split.dataset.n_items, 1, tf.keras.initializers.Constant(3.0))
        self.text = text
        self.catalogue = tf.range(split.dataset.n_items)
        self.loss_of_lists = loss

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns the scores, float32 ``[B, S]``, of lists of items, int32 ``[B, S]``, for users, int32 ``[B]``."""
        items = inputs["items"]
        crossed = tf.einsum("bd,bsd->bs", self.users(inputs["user_index"]), self.text(items))
        return self.biases(items)[..., 0] + crossed

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.loss_of_lists(inputs["ratings"], self(inputs, training=training))

    def score(self, queries: tfllmrec.Queries) -> np.ndarray:
        users = self.users(self.row_of_user.get_indexer(pd.Index(queries.user_ids)))
        return (tf.matmul(users, self.text(self.catalogue), transpose_b=True) + self.biases.embeddings[:, 0]).numpy()


def lists(split: Split) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns training and test lists of each user with at least ``2 * SIZE`` ratings among the training events.

    The test list has the last ``SIZE`` of these events; the training lists are drawn from the others.
    """
    generator = np.random.default_rng(42)
    train, test = [], []
    rated = split.train[split.train["rating"].notna()]
    for user, events in rated.groupby("user_index"):
        items, ratings = events["item_index"].to_numpy(np.int32), events["rating"].to_numpy(np.float32)
        if len(items) >= 2 * SIZE:
            test.append((user, items[-SIZE:], ratings[-SIZE:]))
            drawn = [generator.choice(len(items) - SIZE, SIZE, replace=False) for _ in range(LISTS)]
            train += [(user, items[rows], ratings[rows]) for rows in drawn]

    def columns(rows: list) -> dict[str, np.ndarray]:
        users, items, ratings = zip(*rows, strict=True)
        return {"user_index": np.array(users, np.int32), "items": np.stack(items), "ratings": np.stack(ratings)}

    return columns(train), columns(test)


def ndcg(scores: np.ndarray, ratings: np.ndarray) -> float:
    """Returns the mean NDCG (gain 2^rating - 1) over lists; lists in which all ratings are equal are left out."""
    told_apart = ratings.min(axis=1) < ratings.max(axis=1)
    gains, discounts = 2.0 ** ratings[told_apart] - 1, 1 / np.log2(np.arange(2, ratings.shape[1] + 2))
    by_score = np.take_along_axis(gains, np.argsort(-scores[told_apart], axis=1, kind="stable"), axis=1)
    return float(np.mean((by_score @ discounts) / (-np.sort(-gains, axis=1) @ discounts)))


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, Result], dict[str, dict[str, float]]]:
    args = arguments(__doc__, epochs=2).parse_args(argv)
    split = read(args)
    train, test = lists(split)
    scale = RatingScale.of_split(split)
    assert scale is not None
    models, label = {}, f"NDCG of {SIZE} films"
    figures = {"mean ratings": {label: ndcg(scale.item_bias[test["items"]], test["ratings"])}}
    for loss in (squared_error, pairwise_hinge, list_mle):
        name = loss.__name__.replace("_", " ")
        models[name] = model = ListModel(split, text_tower(args, split, output_dim=DIM), loss)
        model.compile(optimizer=tf.keras.optimizers.Adam(0.003))
        model.fit(shuffled(train), epochs=args.epochs, callbacks=callbacks(args, name), verbose=0)
        figures[name] = {label: ndcg(model(test).numpy(), test["ratings"])}
    results = measured(split, models)
    show("Ranking of the whole catalogue", results)
    show_table(figures)
    return results, figures


if __name__ == "__main__":
    main()

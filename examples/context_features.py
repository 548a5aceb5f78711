"""Context of the request: a two-tower model with and without the time of the request.

The TFRS tutorial "context features" adds the time to the user's tower, normalised and in buckets, and splits the events
at random, so that the model is trained on events later than those it is tested on. Here the test event is each user's
last one; hour and weekday are encoded as sine and cosine, and the period of the data in buckets. A film is represented
by its id plus its text. The row ``without time`` is the same model without the time.

    python examples/context_features.py
"""

from __future__ import annotations

from collections.abc import Sequence

import tfllmrec  # before tensorflow: it selects Keras 2

# isort: split
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_recommenders as tfrs
from _data import arguments, callbacks, held_out, measured, read, show, shuffled, text_tower

from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import Result
from tfllmrec.losses.retrieval import CatalogueRetrieval

DIM, BUCKETS = 32, 50
DAY_S, WEEK_S = 86400.0, 604800.0


class TimeOfRequest(tf.keras.layers.Layer):
    """Encodes seconds since 1970, float64 ``[B]``, as float32 ``[B, D]``: the position in day and week, and the period.

    Args:
      times: The times of the training events, float64 ``[E]``; each bucket has the same number of them.
    """

    def __init__(self, times: np.ndarray) -> None:
        super().__init__(autocast=False)  # seconds need float64
        bounds = np.unique(np.quantile(times, np.linspace(0, 1, BUCKETS + 1)[1:-1]))
        self.bounds = tf.constant(bounds, tf.float64)
        self.periods = tf.keras.layers.Embedding(len(bounds) + 1, DIM)
        self.cycles = tf.keras.layers.Dense(DIM)

    def call(self, seconds: tf.Tensor) -> tf.Tensor:
        angles = [2 * np.pi * tf.math.floormod(seconds, period) / period for period in (DAY_S, WEEK_S)]
        cycles = tf.stack([wave(angle) for angle in angles for wave in (tf.sin, tf.cos)], axis=1)
        period = tf.searchsorted(self.bounds, seconds, side="right")
        return self.cycles(tf.cast(cycles, tf.float32)) + self.periods(period)


class TwoTower(tfrs.Model):
    """``score(u, t, i) = <user_u + time_t, id_i + W text_i>``."""

    def __init__(self, split: Split, text: tfllmrec.TextTower, with_time: bool) -> None:
        super().__init__()
        self.row_of_user = pd.Index(split.dataset.users["user_id"])
        self.users = tf.keras.layers.Embedding(split.dataset.n_users, DIM)
        self.time = TimeOfRequest(split.train["timestamp_s"].to_numpy()) if with_time else None
        self.ids = tf.keras.layers.Embedding(split.dataset.n_items, DIM)
        self.text = text
        self.catalogue = tf.range(split.dataset.n_items)
        self.task = CatalogueRetrieval(tf.constant(split.train_counts > 0))
        # Test queries have no time of their own: it is that of the user's target event.
        self.time_of_request = dict(zip(split.test.user_ids, held_out(split)["timestamp_s"], strict=True))

    def queries(self, user: tf.Tensor, seconds: tf.Tensor) -> tf.Tensor:
        users = self.users(user)
        return users if self.time is None else users + self.time(seconds)

    def items(self) -> tf.Tensor:
        return self.ids(self.catalogue) + self.text(self.catalogue)

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        asked = self.queries(inputs["user_index"], inputs["timestamp_s"])
        return self.task(asked, self.items(), inputs["item_index"])

    def score(self, queries: tfllmrec.Queries) -> np.ndarray:
        users = tf.constant(self.row_of_user.get_indexer(pd.Index(queries.user_ids)))
        seconds = tf.constant([self.time_of_request[user] for user in queries.user_ids], tf.float64)
        return tf.matmul(self.queries(users, seconds), self.items(), transpose_b=True).numpy()


def main(argv: Sequence[str] | None = None) -> dict[str, Result]:
    args = arguments(__doc__, epochs=3).parse_args(argv)
    split = read(args)
    events = {name: split.train[name].to_numpy(np.int32) for name in ("user_index", "item_index")}
    events["timestamp_s"] = split.train["timestamp_s"].to_numpy(np.float64)
    models = {}
    for name, with_time in (("without time", False), ("with time", True)):
        models[name] = model = TwoTower(split, text_tower(args, split, output_dim=DIM), with_time)
        model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
        model.fit(shuffled(events), epochs=args.epochs, callbacks=callbacks(args, name), verbose=0)
    results = measured(split, models)
    show("Context features", results)
    return results


if __name__ == "__main__":
    main()

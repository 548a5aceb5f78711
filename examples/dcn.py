"""Feature crosses: a deep and cross network on ids, the text of the film and the columns of the users' table.

The TFRS tutorial "DCN" crosses ids and a few columns named in the script, and compares RMSE on a random fifth of the
events. Here the text of the film is a feature, too, as is every column of the users' table with few enough values, and
each user's last rating is predicted. The rows differ only in the crosses; the biases of item and user are the baseline.

    python examples/dcn.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tfllmrec  # before tensorflow: it selects Keras 2

# isort: split
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from _data import arguments, by_biases, callbacks, held_out, read, rmse, show_table, shuffled, text_tower

from tfllmrec.data.splits import Split

DIM, MOST_VALUES = 16, 100
#: The settings of the cross layers by row of the table; without cross layers, the model is a plain deep network.
CROSSES: dict[str, list[dict[str, int]]] = {
    "deep": [],
    "deep and cross": [{}, {}],
    "deep and low-rank cross": [{"projection_dim": 8}, {"projection_dim": 8}],
}


class CrossNetwork(tfrs.Model):
    """``rating = mean + MLP(cross(cross(x)))``, where ``x`` is the concatenation of all features."""

    def __init__(self, split: Split, text: tfllmrec.TextTower, crosses: Sequence[Mapping[str, int]]) -> None:
        super().__init__()
        self.mean = split.train["rating"].mean()
        self.text = text
        self.ids = {
            "user_index": tf.keras.layers.Embedding(split.dataset.n_users, DIM),
            "item_index": tf.keras.layers.Embedding(split.dataset.n_items, DIM),
        }
        self.columns = {}
        for name in user_columns(split):
            lookup = tf.keras.layers.StringLookup(vocabulary=split.dataset.users[name].unique().tolist())
            embedding = tf.keras.layers.Embedding(lookup.vocabulary_size(), DIM)
            self.columns[name] = tf.keras.Sequential([lookup, embedding])
        self.crosses = [tfrs.layers.dcn.Cross(**settings) for settings in crosses]
        self.deep = tf.keras.Sequential([tf.keras.layers.Dense(64, "relu"), tf.keras.layers.Dense(1)])
        self.task = tfrs.tasks.Ranking(tf.keras.losses.MeanSquaredError())

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        parts = [layer(inputs[name]) for layers in (self.ids, self.columns) for name, layer in layers.items()]
        features = crossed = tf.concat([*parts, self.text(inputs["item_index"])], axis=-1)
        for cross in self.crosses:
            crossed = cross(features, crossed)
        return self.mean + self.deep(crossed)[:, 0]

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(inputs["rating"], self(inputs, training=training))


def user_columns(split: Split) -> list[str]:
    """Returns the columns of the users' table with at most :data:`MOST_VALUES` distinct values."""
    users = split.dataset.users.drop(columns="user_id")
    return [name for name in users if users[name].nunique() <= MOST_VALUES]


def features(split: Split, events: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the users, items and the users' columns for each event."""
    found = {name: np.asarray(events[name], np.int32) for name in ("user_index", "item_index")}
    users = split.dataset.users.iloc[found["user_index"]]
    return found | {name: users[name].to_numpy(dtype=object) for name in user_columns(split)}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    args = arguments(__doc__, epochs=2).parse_args(argv)
    split, figures = read(args), {}
    rated = split.train[split.train["rating"].notna()]
    train = features(split, rated) | {"rating": rated["rating"].to_numpy(np.float32)}
    events = held_out(split)
    test, ratings = features(split, events), events["rating"].to_numpy()
    biases = by_biases(split, test["user_index"], test["item_index"])
    figures["item and user biases"] = {"RMSE": rmse(biases, ratings)}
    for name, crosses in CROSSES.items():
        model = CrossNetwork(split, text_tower(args, split, output_dim=DIM), crosses)
        model.compile(optimizer=tf.keras.optimizers.Adam(0.003))
        model.fit(shuffled(train, 256), epochs=args.epochs, callbacks=callbacks(args, name), verbose=0)
        predicted = model({column: tf.constant(values) for column, values in test.items()}).numpy()
        figures[name] = {"RMSE": rmse(predicted, ratings), "weights": model.count_params()}
    show_table(figures)
    return figures


if __name__ == "__main__":
    main()

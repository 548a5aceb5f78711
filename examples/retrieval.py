"""Retrieval with two towers: users are represented by their ids, items by their ids plus their texts.

The TFRS tutorial "basic retrieval" uses only ids, takes its negatives from the batch, and ranks films that the user has
already seen together with the target. Here a frozen BERT encodes the film, the softmax is over the whole catalogue, and
the model is evaluated without seen films and compared with popularity. The row ``ids`` is the same model without text.

    python examples/retrieval.py
"""

from __future__ import annotations

from collections.abc import Sequence

import tfllmrec  # before tensorflow: it selects Keras 2

# isort: split
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_recommenders as tfrs
from _data import arguments, callbacks, measured, read, show, shuffled, text_tower

from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import Result
from tfllmrec.losses.retrieval import CatalogueRetrieval

DIM = 32


class TwoTower(tfrs.Model):
    """``score(u, i) = <user_u, id_i + W text_i>``; without a text tower ``<user_u, id_i>``."""

    def __init__(self, split: Split, text: tfllmrec.TextTower | None) -> None:
        super().__init__()
        self.row_of_user = pd.Index(split.dataset.users["user_id"])
        self.users = tf.keras.layers.Embedding(split.dataset.n_users, DIM)
        self.ids = tf.keras.layers.Embedding(split.dataset.n_items, DIM)
        self.text = text
        self.catalogue = tf.range(split.dataset.n_items)
        self.task = CatalogueRetrieval(tf.constant(split.train_counts > 0))

    def items(self) -> tf.Tensor:
        """Returns the vectors of the whole catalogue, float32 ``[N, D]``."""
        ids = self.ids(self.catalogue)
        return ids if self.text is None else ids + self.text(self.catalogue)

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(self.users(inputs["user_index"]), self.items(), inputs["item_index"])

    def score(self, queries: tfllmrec.Queries) -> np.ndarray:
        """Returns the scores of all items, float32 ``[B, N]``; this method makes the model a ``Recommender``."""
        users = self.users(self.row_of_user.get_indexer(pd.Index(queries.user_ids)))
        return tf.matmul(users, self.items(), transpose_b=True).numpy()


def main(argv: Sequence[str] | None = None) -> dict[str, Result]:
    args = arguments(__doc__, epochs=2).parse_args(argv)
    split = read(args)
    events = {name: split.train[name].to_numpy(np.int32) for name in ("user_index", "item_index")}
    models = {"ids": TwoTower(split, None), "ids and text": TwoTower(split, text_tower(args, split, output_dim=DIM))}
    for name, model in models.items():
        model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
        model.fit(shuffled(events), epochs=args.epochs, callbacks=callbacks(args, name), verbose=0)
    results = measured(split, models)
    show("Retrieval", results)
    return results


if __name__ == "__main__":
    main()

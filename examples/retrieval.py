"""Retrieval with two towers: a user id, and an item that is its id plus its text.

The TFRS tutorial "basic retrieval" has ids on both sides, samples its negatives from the batch, and counts a film that
the user has seen as a competitor of the right one. Here a frozen BERT reads the film, the softmax is over the whole
catalogue, and the figures are those of lists without seen films, with popularity beside them. The row ``ids`` is the
same model without text.

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
    """``score(u, i) = <user_u, id_i + W text_i>``; without a tower of texts ``<user_u, id_i>``."""

    def __init__(self, split: Split, text: tfllmrec.TextTower | None) -> None:
        super().__init__()
        self.row_of_user = pd.Index(split.dataset.users["user_id"])
        self.users = tf.keras.layers.Embedding(split.dataset.n_users, DIM)
        self.ids = tf.keras.layers.Embedding(split.dataset.n_items, DIM)
        self.text = text
        self.catalogue = tf.range(split.dataset.n_items)
        self.task = CatalogueRetrieval(tf.constant(split.train_counts > 0))

    def items(self) -> tf.Tensor:
        """The vectors of the whole catalogue, float32 ``[N, D]``."""
        ids = self.ids(self.catalogue)
        return ids if self.text is None else ids + self.text(self.catalogue)

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(self.users(inputs["user_index"]), self.items(), inputs["item_index"])

    def score(self, queries: tfllmrec.Queries) -> np.ndarray:
        """Makes the model a Recommender: float32 ``[B, N]``."""
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

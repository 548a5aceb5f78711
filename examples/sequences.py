"""Sequential retrieval: predicts the next film from the films before it, without a user id.

The TFRS tutorial "sequential retrieval" runs a GRU over ids with one target per history. Here self-attention reads the
history, the target of each position is the film after it, films are represented by id plus text, and users need no
account, because the history is part of the request. The row ``set`` is the same model without order: it reads the mean
of the history's films.

    python examples/sequences.py
"""

from __future__ import annotations

from collections.abc import Sequence

import tfllmrec  # before tensorflow: it selects Keras 2

# isort: split
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from _data import arguments, callbacks, measured, read, show, text_tower

from tfllmrec.data.splits import Split
from tfllmrec.evaluation.protocol import Result
from tfllmrec.layers.history_encoder import HistoryEncoder
from tfllmrec.losses.retrieval import CatalogueRetrieval

DIM, LENGTH = 64, 50


class NextItem(tfrs.Model):
    """``score(h, i) = <encode(h), id_i + W text_i>``, with a query after each event of the history ``h``."""

    def __init__(self, split: Split, text: tfllmrec.TextTower, ordered: bool) -> None:
        super().__init__()
        self.n_items = split.dataset.n_items
        self.ids = tf.keras.layers.Embedding(self.n_items + 1, DIM)  # the last one is for padding
        self.text = text
        self.encoder = HistoryEncoder(DIM, 1, 2, 0.2, LENGTH, seed=42) if ordered else None
        self.task = CatalogueRetrieval(tf.constant(split.train_counts > 0))

    def items(self, item: tf.Tensor) -> tf.Tensor:
        return self.ids(item) + self.text(item)

    def queries(self, history: tf.Tensor, training: bool) -> tf.Tensor:
        """Encodes item indices, int32 ``[B, L]``, padded with N, as queries, float32 ``[B, L, D]``."""
        present = history < self.n_items
        items = self.items(history)
        if self.encoder is not None:
            return self.encoder(items, present, training=training)
        there = tf.cast(present, tf.float32)[..., tf.newaxis]
        return tf.math.divide_no_nan(tf.cumsum(items * there, axis=1), tf.cumsum(there, axis=1))

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        is_event = inputs["targets"] < self.n_items
        queries = tf.boolean_mask(self.queries(inputs["history"], training), is_event)
        return self.task(queries, self.items(tf.range(self.n_items)), tf.boolean_mask(inputs["targets"], is_event))

    def score(self, queries: tfllmrec.Queries) -> np.ndarray:
        history = queries.history.padded(LENGTH, self.n_items).astype(np.int32)
        last = np.maximum((history < self.n_items).sum(axis=1) - 1, 0)
        after_last = tf.gather(self.queries(tf.constant(history), training=False), last, batch_dims=1)
        return tf.matmul(after_last, self.items(tf.range(self.n_items)), transpose_b=True).numpy()


def main(argv: Sequence[str] | None = None) -> dict[str, Result]:
    args = arguments(__doc__, epochs=3).parse_args(argv)
    split = read(args)
    sequences = tfllmrec.Sequences.from_split(split, gate_holdout=0.0, seed=42)
    models = {}
    for name, ordered in (("set", False), ("sequence", True)):
        models[name] = model = NextItem(split, text_tower(args, split, output_dim=DIM), ordered)
        model.compile(optimizer=tf.keras.optimizers.Adam(0.003))
        batches = tfllmrec.training_batches(sequences, batch_size=64, length=LENGTH, seed=42, epochs=args.epochs)
        steps = len(batches) // args.epochs
        model.fit(batches, epochs=args.epochs, steps_per_epoch=steps, callbacks=callbacks(args, name), verbose=0)
    results = measured(split, models)
    show("Sequential retrieval", results)
    return results


if __name__ == "__main__":
    main()

"""The behaviour term ``<m_u, W_i>``: a recency-weighted sparse history times pruned item-item weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.data.queries import LONGEST
from tfllmrec.layers.newest_events import newest_events
from tfllmrec.layers.rows_of import rows_of

FAINT = 1e-3


@tf.keras.utils.register_keras_serializable("tfllmrec")
class NeighbourScores(tf.keras.layers.Layer):
    """Sums the pruned rows of W over a history, newest first in weight; core TensorFlow ops only.

    :func:`tfllmrec.models.item_weights.recency_matrix` has the weights of events.

    Args:
      n_items: N. neighbours: P kept for an item. decay: weight of an event one step further back, in (0, 1].
      between: whether items have domains (:meth:`set_domains`), and events do not decay for items of other domains.
    """

    def __init__(self, n_items: int, neighbours: int, decay: float, between: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_items = n_items
        self.decay = decay
        #: Events further back weigh less than FAINT and are left out, and those beyond LONGEST.
        self.reach = LONGEST
        if decay < 1 and not between:
            self.reach = min(math.ceil(math.log(FAINT) / math.log(decay)), LONGEST)
        shape = (n_items + 1, min(neighbours, n_items))  # the last row is the padding item, with weights of 0
        self.neighbours = self.add_weight(
            name="neighbours",
            shape=shape,
            dtype=tf.int32,
            initializer="zeros",
            trainable=False,
            experimental_autocast=False,
        )
        self.weights_ = self.add_weight(
            name="weights",
            shape=shape,
            dtype=tf.float32,
            initializer="zeros",
            trainable=False,
            experimental_autocast=False,
        )
        #: Of each item, and 0 of the padding: the bits of :func:`tfllmrec.data.domains.domain_bits`.
        self.domains = None
        if between:
            self.domains = self.add_weight(
                name="domains", shape=(n_items + 1,), dtype=tf.int64, initializer="zeros", trainable=False
            )
        self.of_uses = np.log2(1 + 1 / np.arange(1, LONGEST + 1)).astype(np.float32)
        self.built = True

    def set_weights_of_items(self, neighbours: np.ndarray, weights: np.ndarray) -> None:
        """Sets W from int ``[N, P]`` neighbour indices and float ``[N, P]`` weights."""
        self.neighbours.assign(np.vstack([neighbours, np.zeros_like(neighbours[:1])]))
        self.weights_.assign(np.vstack([weights, np.zeros_like(weights[:1])]))

    def set_domains(self, bits: np.ndarray) -> None:
        """Sets the domains of the items, int64 ``[N]``."""
        assert self.domains is not None
        self.domains.assign(np.append(bits, 0))

    def call(self, history: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """int32 ``[B, L]``, left-aligned, padded with N, newest last -> float32 ``[B, N]``.

        ``weights`` float32 ``[B, L]`` say how much each event counts, by default 1.
        """
        columns, values = self.pairs(history, weights)
        # Weighted counts of a row's neighbours: the same sums as a segment sum, several times as fast.
        with tf.device("CPU:0"):  # there is no deterministic kernel for GPUs
            return tf.raw_ops.DenseBincount(input=columns, size=self.n_items, weights=values)

    def of_items(self, history: tf.Tensor, items: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """:meth:`call` for some different ``items`` int32 ``[M]`` alone: float32 ``[B, M]``."""
        columns, values = self.pairs(history, weights)
        with tf.device("CPU:0"):
            sums = tf.raw_ops.DenseBincount(
                input=rows_of(places(items, self.n_items), columns), size=tf.size(items) + 1, weights=values
            )
        return sums[:, :-1]

    def pairs(self, history: tf.Tensor, weights: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """What :meth:`call` sums up: items int32 and values float32, ``[B, S]``; padding has values of 0."""
        if weights is not None:
            history, weights = self._counted(history, weights)
        lengths = tf.reduce_sum(tf.cast(history < self.n_items, tf.int32), axis=1)
        history = newest_events(history, lengths, self.reach, self.n_items)
        columns = rows_of(self.neighbours, history)
        values = rows_of(self.weights_, history) * self._strength(history, columns)
        if weights is not None:
            values *= newest_events(weights, lengths, self.reach, 0.0)[..., tf.newaxis]
        flat = tf.stack([tf.shape(history)[0], tf.shape(history)[1] * columns.shape[-1]])
        return tf.reshape(columns, flat), tf.reshape(values, flat)

    def by_event(self, history: tf.Tensor, items: tf.Tensor, event_weights: tf.Tensor | None = None) -> tf.Tensor:
        """What each event adds to each of the ``items`` int32 ``[B, M]``: float32 ``[B, L, M]``; for a few items."""

        def of_row(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            columns, weights = rows_of(self.neighbours, row[0]), rows_of(self.weights_, row[0])  # [L, P]

            def of_item(item: tf.Tensor) -> tf.Tensor:  # one by one: all items at once would take [L, M, P]
                return tf.reduce_sum(tf.where(columns == item, weights, 0.0), axis=-1)

            # One more, left out again: of no items at all, map_fn would not know the shape.
            items = tf.pad(row[1], [[0, 1]])
            return tf.transpose(tf.map_fn(of_item, items, fn_output_signature=tf.float32)[:-1])

        weights = tf.map_fn(of_row, (history, items), fn_output_signature=tf.float32)
        counted = history if event_weights is None else tf.where(event_weights == 0, self.n_items, history)
        weights *= self._strength(counted, items[:, tf.newaxis])
        return weights if event_weights is None else weights * event_weights[..., tf.newaxis]

    def _counted(self, history: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Histories and weights without the events of weight 0, left-aligned."""
        absent = (weights == 0) | (history >= self.n_items)
        order = tf.argsort(tf.cast(absent, tf.int32), axis=1, stable=True)
        history = tf.where(absent, self.n_items, history)
        return tf.gather(history, order, batch_dims=1), tf.gather(weights, order, batch_dims=1)

    def _strength(self, history: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """The weight of each event for some items, 0 for padding and beyond reach.

        Args:
          history: int32 ``[B, L]``. items: int32 ``[B, L, M]`` or ``[B, 1, M]``.

        Returns:
          float32 ``[B, L, M]``, or ``[B, L, 1]`` if it is the same for all items.
        """
        present = tf.cast(history < self.n_items, tf.float32)
        steps_back = tf.reduce_sum(present, axis=1, keepdims=True) - tf.cumsum(present, axis=1)
        present *= tf.gather(self.of_uses, _uses(history) - 1) * tf.cast(steps_back < self.reach, tf.float32)
        strength = (present * tf.pow(self.decay, steps_back))[..., tf.newaxis]
        if self.domains is None:
            return strength
        own, others = rows_of(self.domains, history)[..., tf.newaxis], rows_of(self.domains, items)
        return tf.where(tf.bitwise.bitwise_and(own, others) == 0, present[..., tf.newaxis], strength)

    def get_config(self) -> dict[str, Any]:
        sizes = {"n_items": self.n_items, "neighbours": self.neighbours.shape[1], "decay": self.decay}
        return {**super().get_config(), **sizes, "between": self.domains is not None}


def _uses(history: tf.Tensor) -> tf.Tensor:
    """1 for the newest use of an item in its history, 2 for the one before, up to LONGEST: int32 ``[B, L]``."""
    newest_first = tf.reverse(history, axis=[1])
    order = tf.argsort(newest_first, axis=1, stable=True)
    of_item = tf.gather(newest_first, order, batch_dims=1)
    uses = tf.range(1, tf.shape(history)[1] + 1) - tf.searchsorted(of_item, of_item)
    uses = tf.gather(uses, tf.argsort(order, axis=1), batch_dims=1)
    return tf.minimum(tf.reverse(uses, axis=[1]), LONGEST)


def places(items: tf.Tensor, n_items: int) -> tf.Tensor:
    """Where each item of the catalogue, and the padding, is among different ``items`` int32 ``[M]``: int32 ``[N + 1]``.

    M for an item that is not among them.
    """
    size = tf.size(items)
    return tf.tensor_scatter_nd_update(tf.fill([n_items + 1], size), items[:, tf.newaxis], tf.range(size))

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
    """Sums the pruned rows of W over a history; newer events weigh more. Core TensorFlow operations only.

    The weights of events are those of :func:`tfllmrec.models.item_weights.recency_matrix`.

    Args:
      n_items: The number N of items.
      neighbours: The number P of neighbours that are kept for each item.
      decay: The factor, in (0, 1], by which an event weighs less than the next newer one.
      between: Whether items have domains (:meth:`set_domains`), and events do not decay for items of other domains.
    """

    def __init__(self, n_items: int, neighbours: int, decay: float, between: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_items = n_items
        self.decay = decay
        #: Number of newest events that count, at most LONGEST. Events whose decay is below FAINT are ignored.
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
        #: The bits of :func:`tfllmrec.data.domains.domain_bits` of each item; 0 for the padding.
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
        """Returns the scores of all items, float32 ``[B, N]``.

        Args:
          history: Int32 ``[B, L]``, left-aligned, padded with N, newest last.
          weights: Float32 ``[B, L]``, the weight of each event; by default 1.
        """
        columns, values = self.pairs(history, weights)
        # Weighted counts give the same result as a segment sum, but several times as fast.
        with tf.device("CPU:0"):  # there is no deterministic kernel for GPUs
            return tf.raw_ops.DenseBincount(input=columns, size=self.n_items, weights=values)

    def of_items(self, history: tf.Tensor, items: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """Computes :meth:`call` for distinct ``items`` int32 ``[M]`` alone: float32 ``[B, M]``."""
        columns, values = self.pairs(history, weights)
        with tf.device("CPU:0"):
            sums = tf.raw_ops.DenseBincount(
                input=rows_of(places(items, self.n_items), columns), size=tf.size(items) + 1, weights=values
            )
        return sums[:, :-1]

    def pairs(self, history: tf.Tensor, weights: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the terms of :meth:`call`: items int32 and values float32, ``[B, S]``; padding has the value 0."""
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
        """Returns what each event adds to the scores of a few ``items`` int32 ``[B, M]``: float32 ``[B, L, M]``."""

        def of_row(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            columns, weights = rows_of(self.neighbours, row[0]), rows_of(self.weights_, row[0])  # [L, P]

            def of_item(item: tf.Tensor) -> tf.Tensor:  # one by one, because all at once need memory [L, M, P]
                return tf.reduce_sum(tf.where(columns == item, weights, 0.0), axis=-1)

            # One item is added and removed again, because without items, map_fn does not know the shape.
            items = tf.pad(row[1], [[0, 1]])
            return tf.transpose(tf.map_fn(of_item, items, fn_output_signature=tf.float32)[:-1])

        weights = tf.map_fn(of_row, (history, items), fn_output_signature=tf.float32)
        counted = history if event_weights is None else tf.where(event_weights == 0, self.n_items, history)
        weights *= self._strength(counted, items[:, tf.newaxis])
        return weights if event_weights is None else weights * event_weights[..., tf.newaxis]

    def _counted(self, history: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Removes the events of weight 0, and returns left-aligned histories and weights."""
        absent = (weights == 0) | (history >= self.n_items)
        order = tf.argsort(tf.cast(absent, tf.int32), axis=1, stable=True)
        history = tf.where(absent, self.n_items, history)
        return tf.gather(history, order, batch_dims=1), tf.gather(weights, order, batch_dims=1)

    def _strength(self, history: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Returns the weight of each event for some items; 0 for padding and for events that are too old.

        Args:
          history: Int32 ``[B, L]``.
          items: Int32 ``[B, L, M]`` or ``[B, 1, M]``.

        Returns:
          Float32 ``[B, L, M]``, or ``[B, L, 1]`` if the weight is the same for all items.
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
    """Numbers the events of each item from the newest on: 1, 2, up to LONGEST; int32 ``[B, L]``."""
    newest_first = tf.reverse(history, axis=[1])
    order = tf.argsort(newest_first, axis=1, stable=True)
    of_item = tf.gather(newest_first, order, batch_dims=1)
    uses = tf.range(1, tf.shape(history)[1] + 1) - tf.searchsorted(of_item, of_item)
    uses = tf.gather(uses, tf.argsort(order, axis=1), batch_dims=1)
    return tf.minimum(tf.reverse(uses, axis=[1]), LONGEST)


def places(items: tf.Tensor, n_items: int) -> tf.Tensor:
    """Returns the position of each catalogue item, and of the padding, in distinct ``items`` int32 ``[M]``.

    The result is int32 ``[N + 1]``, with M for an item that is not in ``items``.
    """
    size = tf.size(items)
    return tf.tensor_scatter_nd_update(tf.fill([n_items + 1], size), items[:, tf.newaxis], tf.range(size))

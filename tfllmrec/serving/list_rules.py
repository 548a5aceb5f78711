"""Re-ranks lists of recommendations: pinned items, a cap per category, a minimum share of tail items, and diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.layers.list_order import Rules, list_order
from tfllmrec.layers.rows_of import rows_of

#: The number of candidates per position, the smallest and the largest number of candidates, and the largest number of
#: positions that are filled by the rules, which is also the largest number of pinned items.
CANDIDATES, FEWEST, MOST, PLACES = 5, 50, 500, 100
#: Largest number of categories of an item that a cap counts (the first ones). :mod:`tfllmrec.server.work` estimates the
#: work of a request with it.
CATEGORIES = 32


class Asked(NamedTuple):
    """The rules of each request. The value 0 switches a rule off.

    Attributes:
      pins: Int32 ``[B, P]``, the pinned items; N for none.
      diversity: Float32 ``[B]``.
      category_cap: Int32 ``[B]``.
      tail_share: Float32 ``[B]``.
    """

    pins: tf.Tensor
    diversity: tf.Tensor
    category_cap: tf.Tensor
    tail_share: tf.Tensor


class ListRules(tf.Module):
    """Chooses lists with :func:`tfllmrec.layers.list_order.list_order`.

    Args:
      index: The index that finds the candidates.
      item_vectors: Float32 ``[N, D]`` of length 1; their cosines measure how different items are.
      categories: The numbers of the categories of each item, of which the first :data:`CATEGORIES` count.
      tail: Bool ``[N]``, the tail items.
    """

    def __init__(
        self, index: ItemIndex, item_vectors: tf.Variable, categories: Sequence[Sequence[int]], tail: np.ndarray
    ) -> None:
        super().__init__(name="list_rules")
        self.n_items = len(tail)
        self.index, self.item_vectors = index, item_vectors
        categories = [numbers[:CATEGORIES] for numbers in categories]
        # The categories of item i are categories[category_ends[i]:category_ends[i + 1]]; the padding item N has none.
        self.category_ends = tf.constant(np.cumsum([0, *map(len, categories), 0]), tf.int32)
        self.categories = tf.constant([number for numbers in categories for number in numbers], tf.int32)
        self.tail = tf.constant([*tail, False], tf.bool)

    def any_of(self, asked: Asked) -> tf.Tensor:
        """Returns whether each request has any rule, bool ``[B]``."""
        pins, *numbers = asked
        return tf.reduce_any(tf.stack([number > 0 for number in numbers]), axis=0) | tf.reduce_any(
            pins < self.n_items, axis=1
        )

    def candidates(self, k: tf.Tensor) -> tf.Tensor:
        """Returns the number of items from which a list of ``k``, int32 ``[B]``, items is chosen, int32 ``[B]``."""
        return tf.maximum(k, tf.clip_by_value(CANDIDATES * tf.minimum(k, MOST), FEWEST, MOST))

    def apply(
        self, items: tf.Tensor, scores: tf.Tensor, k: tf.Tensor, asked: Asked, request: Mapping[str, Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Chooses the items of each list, and returns them with their scores.

        Args:
          items: Int32 ``[B, C]``, for each request at most :meth:`candidates` items, best first, padded with N.
          scores: Float32 ``[B, C]``, the scores of ``items``.
          k: Int32 ``[B]``, the requested length of each list.
          asked: The rules of each request.
          request: The arguments of ``ItemIndex.top_k`` with which ``items`` were found, except ``k``.

        Returns:
          Items, int32 ``[B, *]``, and scores, float32 ``[B, *]``, in the order of the list, padded with N.
        """
        pinned, scores_of_pinned = tf.cond(
            tf.reduce_any(asked.pins < self.n_items),
            lambda: self._pinned(asked.pins, request),
            lambda: (asked.pins[:, :0], scores[:, :0]),
        )
        again = tf.reduce_any(items[:, :, tf.newaxis] == pinned[:, tf.newaxis], axis=2)
        few = tf.concat([pinned, tf.where(again, self.n_items, items)[:, :MOST]], axis=1)
        their_scores = tf.concat([scores_of_pinned, scores[:, :MOST]], axis=1)
        there, capped = few < self.n_items, (asked.category_cap > 0)[:, tf.newaxis]
        none = [*tf.unstack(tf.shape(few)), 0]
        order, count = list_order(
            their_scores,
            tf.cond(
                tf.reduce_any(asked.diversity > 0),
                lambda: rows_of(self.item_vectors, tf.where(there, few, 0)),
                lambda: tf.zeros(none),
            ),
            there,
            tf.clip_by_value(tf.reduce_max(k), 0, PLACES),
            asked.diversity,
            Rules(
                tf.reduce_sum(tf.cast(pinned < self.n_items, tf.int32), axis=1),
                tf.cond(tf.reduce_any(capped), lambda: self._categories_of(few), lambda: tf.zeros(none, tf.int32)),
                asked.category_cap,
                tf.gather(self.tail, few),
                asked.tail_share,
            ),
        )
        in_list = tf.range(tf.shape(few)[1]) < count[:, tf.newaxis]
        chosen = tf.where(in_list, tf.gather(few, order, batch_dims=1), self.n_items)
        behind = tf.where(again | capped, self.n_items, items)[:, MOST:]
        listed = tf.concat([chosen, behind], axis=1)
        scores = tf.concat([tf.gather(their_scores, order, batch_dims=1), scores[:, MOST:]], axis=1)
        # Moves the padding between the chosen items and the remaining ones to the end.
        together = tf.argsort(tf.cast(listed == self.n_items, tf.int32), axis=1, stable=True)
        return tf.gather(listed, together, batch_dims=1), tf.gather(scores, together, batch_dims=1)

    def _pinned(self, pins: tf.Tensor, request: Mapping[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the pinned items that may be listed, each once, and their scores.

        Args:
          pins: Int32 ``[B, P]``.
          request: The arguments of ``ItemIndex.top_k``, except ``k``.

        Returns:
          Items, int32 ``[B, *]``, at most :data:`PLACES`, padded with N; and scores, float32 ``[B, *]``.
        """
        scores = self.index.scores_of(pins, **request)
        until = tf.linalg.band_part(pins[:, :, tf.newaxis] == pins[:, tf.newaxis], -1, 0)
        may = tf.math.is_finite(scores) & (tf.reduce_sum(tf.cast(until, tf.int32), axis=2) == 1)
        items = tf.ragged.boolean_mask(pins, may).to_tensor(self.n_items)
        return items[:, :PLACES], tf.ragged.boolean_mask(scores, may).to_tensor(0.0)[:, :PLACES]

    def _categories_of(self, items: tf.Tensor) -> tf.Tensor:
        """Returns the categories of ``items`` int32 ``[B, C]``: int32 ``[B, C, M]``, padded with -1."""
        start = tf.gather(self.category_ends, items)
        count = tf.gather(self.category_ends, items + 1) - start
        place = tf.range(tf.reduce_max(tf.concat([[0], tf.reshape(count, [-1])], axis=0)))
        has = place < count[..., tf.newaxis]
        return tf.where(has, tf.gather(self.categories, tf.where(has, start[..., tf.newaxis] + place, 0)), -1)

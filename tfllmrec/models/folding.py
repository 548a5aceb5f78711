"""A hybrid's score as one inner product and a sparse sum, so that an item index can answer for it.

    score(u, i) = <(g_i e_i, T o_i), (q_u, 1 / T)> + sum over history j of decay ** steps_back * (h_i W[j, i])

The gates multiply an item's dense score by ``g_i`` and its sparse score by ``h_i``, and add ``o_i``. The three depend
on the item alone, so ``g_i`` is multiplied into the item's vector, ``o_i`` is one more number of that vector, and
``h_i`` is multiplied into the values paired with the item. The temperature ``T`` brings that number to the scale of the
others: ``q_u`` has the length ``1 / T``, and a partition compares vectors without regard to the query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.layers.rows_of import rows_of
from tfllmrec.models.hybrid import Hybrid, Query

_ROWS_AT_ONCE = 65_536
"""Vectors whose products are summed up at once: in double precision all of them would take twice their memory."""


class FoldedHybrid(tf.Module):
    """What an :class:`~tfllmrec.layers.item_index.ItemIndex` needs to rank as ``Hybrid.score_items`` does.

    The index is made of :attr:`vectors` and :attr:`prior`; a request's arguments come from :meth:`requests`:

        index = build_index(folded.vectors, queries, prior=folded.prior)
        items, scores = index.top_k(k=k, exclude=query["history"], **folded.requests(item_vectors, query))

    Attributes:
      vectors: float32 ``[N, D]``, ``g_i e_i``, followed by ``T o_i`` where any item has an offset.
      prior: float32 ``[N]``, the scores for an empty history.
      dim: D.

    Args:
      model: fitted, its gates chosen; what changes in it afterwards does not come here. The variables of its layers are
        read, not copied.
    """

    def __init__(self, model: Hybrid) -> None:
        super().__init__(name="folded_hybrid")
        dense_factor, sparse_factor, offset = (factor.numpy() for factor in model.item_factors())
        self.vectors = model.item_vectors().numpy() * dense_factor[:, np.newaxis]
        self._has_offset = bool(np.any(offset))
        self._temperature = model.config.temperature
        if self._has_offset:
            self.vectors = np.hstack([self.vectors, self._temperature * offset[:, np.newaxis]])
        self.prior = np.log1p(model.train_counts.numpy())
        self.sparse_factor = tf.Variable(sparse_factor, trainable=False, name="sparse_factor")
        mean = self.vectors.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((len(mean), len(mean)))
        for start in range(0, len(self.vectors), _ROWS_AT_ONCE):
            centred = self.vectors[start : start + _ROWS_AT_ONCE] - mean
            covariance += centred.T @ centred / len(self.vectors)
        self._mean = tf.Variable(mean.astype(np.float32), trainable=False, name="mean")
        self._covariance = tf.Variable(covariance.astype(np.float32), trainable=False, name="covariance")
        self.dim = self.vectors.shape[1]
        self.n_items, self.use_dense, self.use_behaviour = model.n_items, model.use_dense, model.use_behaviour
        # Methods: the Keras model stays out of a SavedModel.
        self._last_query_vectors, self._pairs = model.last_query_vectors, model.behaviour.pairs

    def queries(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        """Query vectors for the inner product with :attr:`vectors`, float32 ``[B, D]``.

        Arguments as in :meth:`requests`.
        """
        if not self.use_dense:
            return tf.zeros((tf.shape(query["history"])[0], self.dim))
        vectors = tf.add_n(self._last_query_vectors(item_vectors, query))
        return tf.pad(vectors, [[0, 0], [0, int(self._has_offset)]], constant_values=1.0 / self._temperature)

    def without_offset(self, query: tf.Tensor) -> tf.Tensor:
        """The same query vectors for scores without the offset of the items."""
        kept = tf.range(self.dim) < self.dim - int(self._has_offset)
        return tf.where(kept, query, 0.0)

    def requests(self, item_vectors: tf.Tensor, query: Query) -> dict[str, Any]:
        """``query``, ``pairs`` and ``unknown`` of ``ItemIndex.top_k``; arguments as in ``Hybrid.score_items``.

        ``item_vectors`` are the model's own, not :attr:`vectors`: histories are read by them.
        """
        history = query["history"]
        batch = tf.shape(history)[0]
        if self.use_behaviour:
            items, values = self._pairs(history)
            values *= rows_of(self.sparse_factor, items)
        else:
            items, values = tf.zeros((batch, 0), tf.int32), tf.zeros((batch, 0))
        return {
            "query": self.queries(item_vectors, query),
            "pairs": (items, values),
            "unknown": tf.reduce_all(history >= self.n_items, axis=1),
        }

    def moments(self, index: ItemIndex, query: tf.Tensor, pairs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """Mean and variance, over the catalogue, of the scores that a request asks for; the scores are never made.

        Args:
          index: made of :attr:`vectors`.
          query, pairs: as :meth:`requests` gives them.

        Returns:
          Two float32 ``[B]``.
        """

        def of_row(row: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
            query, items, values = row
            dense = tf.tensordot(self._mean, query, 1)
            sparse = tf.reduce_sum(values) / self.n_items
            sums = tf.math.unsorted_segment_sum(values, items, self.n_items)
            both = tf.reduce_sum(values * tf.linalg.matvec(index.read(items), query)) / self.n_items - dense * sparse
            variance = (
                tf.tensordot(query, tf.linalg.matvec(self._covariance, query), 1)
                + tf.math.reduce_variance(sums)
                + 2 * both
            )
            return dense + sparse, tf.maximum(variance, 0.0)  # rounding may leave less than nothing

        return tf.map_fn(of_row, (query, *pairs), fn_output_signature=(tf.float32, tf.float32))

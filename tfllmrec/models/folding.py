"""A score as one inner product and a sparse sum, so that an item index can answer for it.

For the hybrid:

    score(u, i) = <(g_i e_i, T o_i), (q_u, 1 / T)> + sum over history j of decay ** steps_back * (h_i W[j, i])

The gates multiply an item's dense score by ``g_i`` and its sparse score by ``h_i``, and add ``o_i``. The three depend
on the item alone, so ``g_i`` is multiplied into the item's vector, ``o_i`` is one more number of that vector, and
``h_i`` is multiplied into the values paired with the item. The temperature ``T`` brings that number to the scale of the
others: ``q_u`` has the length ``1 / T``, and a partition compares vectors without regard to the query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.layers.rows_of import rows_of

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.models.servable import Query

_ROWS_AT_ONCE = 65_536
"""Vectors whose products are summed up at once: in double precision all of them would take twice their memory."""


class Folded(tf.Module):
    """What an :class:`~tfllmrec.layers.item_index.ItemIndex` needs to rank as ``score_items`` of a model does.

    The index is made of :attr:`vectors` and :attr:`prior`; a request's arguments come from :meth:`requests`:

        index = build_index(folded.vectors, queries, prior=folded.prior)
        items, scores = index.top_k(k=k, exclude=query["history"], **folded.requests(item_vectors, query))

    Attributes:
      vectors: float32 ``[N, D]``.
      prior: float32 ``[N]``, what is added to the scores of a query without a history.
      dim: D.
      has_vectors: whether the vectors are used: without a dense side all are zeros.
    """

    def __init__(self, vectors: np.ndarray, prior: np.ndarray, has_vectors: bool = True) -> None:
        super().__init__(name="folded")
        self.vectors, self.prior, self.has_vectors = vectors, prior, has_vectors
        self.n_items, self.dim = vectors.shape
        mean = vectors.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((len(mean), len(mean)))
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            centred = vectors[start : start + _ROWS_AT_ONCE] - mean
            covariance += centred.T @ centred / len(vectors)
        self._mean = tf.Variable(mean.astype(np.float32), trainable=False, name="mean")
        self._covariance = tf.Variable(covariance.astype(np.float32), trainable=False, name="covariance")

    def queries(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        """Query vectors for the inner product with :attr:`vectors`, float32 ``[B, D]``.

        Arguments as in :meth:`requests`.
        """
        raise NotImplementedError

    def pairs(self, query: Query) -> tuple[tf.Tensor, tf.Tensor]:
        """The sparse part of the scores: items int32 ``[B, S]`` and what is added to each, float32 ``[B, S]``."""
        nothing = tf.zeros((tf.shape(query["history"])[0], 0))
        return tf.cast(nothing, tf.int32), nothing

    def nothing_known(self, query: Query) -> tf.Tensor:
        """bool ``[B]``: queries without a history, to whose scores :attr:`prior` is added."""
        return tf.reduce_all(query["history"] >= self.n_items, axis=1)

    def without_offset(self, query: tf.Tensor) -> tf.Tensor:
        """The same query vectors for scores without what is added to an item's score for every user."""
        return query

    def requests(self, item_vectors: tf.Tensor, query: Query) -> dict[str, Any]:
        """``query``, ``pairs`` and ``unknown`` of ``ItemIndex.top_k``; arguments as in ``Servable.score_items``.

        ``item_vectors`` are the model's own, not :attr:`vectors`: histories are read by them.
        """
        return {
            "query": self.queries(item_vectors, query),
            "pairs": self.pairs(query),
            "unknown": self.nothing_known(query),
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


class FoldedHybrid(Folded):
    """A hybrid's score; :attr:`vectors` are ``g_i e_i``, followed by ``T o_i`` where any item has an offset.

    Args:
      model: fitted, its gates chosen; later changes to it have no effect here. The variables of its layers are
        read, not copied.
    """

    def __init__(self, model: Hybrid) -> None:
        dense_factor, sparse_factor, offset = (factor.numpy() for factor in model.item_factors())
        vectors = model.item_vectors().numpy() * dense_factor[:, np.newaxis]
        has_offset, temperature = bool(np.any(offset)), model.config.temperature
        if has_offset:
            vectors = np.hstack([vectors, temperature * offset[:, np.newaxis]])
        super().__init__(vectors, np.log1p(model.train_counts.numpy()), model.use_dense)
        self._has_offset, self._temperature, self._use_behaviour = has_offset, temperature, model.use_behaviour
        self.sparse_factor = tf.Variable(sparse_factor, trainable=False, name="sparse_factor")
        # Methods: the Keras model stays out of a SavedModel.
        self._last_query_vectors, self._pairs = model.last_query_vectors, model.behaviour_pairs

    def queries(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        if not self.has_vectors:
            return tf.zeros((tf.shape(query["history"])[0], self.dim))
        vectors = tf.add_n(self._last_query_vectors(item_vectors, query))
        if not self._has_offset:
            return vectors
        known = tf.where(self.nothing_known(query), 0.0, 1.0 / self._temperature)
        return tf.concat([vectors, known[:, tf.newaxis]], axis=1)

    def pairs(self, query: Query) -> tuple[tf.Tensor, tf.Tensor]:
        if not self._use_behaviour:
            return super().pairs(query)
        items, values = self._pairs(query)
        return items, values * rows_of(self.sparse_factor, items)

    def without_offset(self, query: tf.Tensor) -> tf.Tensor:
        kept = tf.range(self.dim) < self.dim - int(self._has_offset)
        return tf.where(kept, query, 0.0)

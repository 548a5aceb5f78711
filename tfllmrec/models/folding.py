"""Rewrites a score as one inner product and a sparse sum, so that an item index can rank by it.

For the hybrid:

    score(u, i) = <(g_i e_i, T o_i), (q_u, 1 / T)> + sum over history j of decay ** steps_back * (h_i W[j, i])

The gates multiply an item's dense score by ``g_i`` and its sparse score by ``h_i``, and add ``o_i``. All three depend
only on the item. So ``g_i`` is multiplied into the item's vector, ``o_i`` becomes an additional number of that vector,
and ``h_i`` is multiplied into the item's sparse values. The temperature ``T`` brings the additional number to the scale
of the others: ``q_u`` has the length ``1 / T``, and the partition of an item index compares item vectors without a
query.
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
"""Vectors whose products are summed at once. All of them in double precision would take twice their memory."""


class Folded(tf.Module):
    """The inputs with which an :class:`~tfllmrec.layers.item_index.ItemIndex` ranks like a model's ``score_items``.

    The index is built from :attr:`vectors` and :attr:`prior`; :meth:`requests` returns the arguments for its queries:

        index = build_index(folded.vectors, queries, prior=folded.prior)
        items, scores = index.top_k(k=k, exclude=query["history"], **folded.requests(item_vectors, query))

    Attributes:
      vectors: The item vectors, float32 ``[N, D]``.
      prior: The values added to the scores of a query without a history, float32 ``[N]``.
      dim: D.
      has_vectors: Whether the inner product with the vectors is used. If not, all query vectors are zeros.
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
        """Returns the query vectors for the inner product with :attr:`vectors`, float32 ``[B, D]``.

        The arguments are those of :meth:`requests`.
        """
        raise NotImplementedError

    def pairs(self, query: Query) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the sparse part of the scores: items int32 ``[B, S]``, and the value of each, float32 ``[B, S]``."""
        nothing = tf.zeros((tf.shape(query["history"])[0], 0))
        return tf.cast(nothing, tf.int32), nothing

    def nothing_known(self, query: Query) -> tf.Tensor:
        """Returns which queries have no history, bool ``[B]``; :attr:`prior` is added to their scores."""
        return tf.reduce_all(query["history"] >= self.n_items, axis=1)

    def without_offset(self, query: tf.Tensor) -> tf.Tensor:
        """Removes the part of the query vectors that adds an item's offset, which is the same for every user."""
        return query

    def requests(self, item_vectors: tf.Tensor, query: Query) -> dict[str, Any]:
        """Returns the arguments ``query``, ``pairs`` and ``unknown`` of ``ItemIndex.top_k``.

        The arguments are those of ``Servable.score_items``. ``item_vectors`` are the model's own, not :attr:`vectors`,
        because the model encodes histories with them.
        """
        return {
            "query": self.queries(item_vectors, query),
            "pairs": self.pairs(query),
            "unknown": self.nothing_known(query),
        }

    def moments(self, index: ItemIndex, query: tf.Tensor, pairs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """Computes the mean and the variance of a query's scores over the catalogue, without computing the scores.

        Args:
          index: An index built from :attr:`vectors`.
          query, pairs: The outputs of :meth:`requests`.

        Returns:
          The means and the variances, float32 ``[B]`` each.
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
            return dense + sparse, tf.maximum(variance, 0.0)  # rounding may make it negative

        return tf.map_fn(of_row, (query, *pairs), fn_output_signature=(tf.float32, tf.float32))


class FoldedHybrid(Folded):
    """The folded score of a hybrid; :attr:`vectors` are ``g_i e_i``, followed by ``T o_i`` if any item has an offset.

    Args:
      model: The fitted hybrid, with its gates chosen. Later changes to its gates and items have no effect here. The
        variables of its layers are not copied but read.
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
        # Storing methods instead of the model keeps the Keras model out of a SavedModel.
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

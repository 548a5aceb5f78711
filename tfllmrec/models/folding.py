"""A hybrid's score as one inner product and a sparse sum, so that an item index can answer for it.

    score(u, i) = <g_i e_i, q_u> + sum over history j of decay ** steps_back * (h_i W[j, i])

``g_i`` and ``h_i`` are what the gates multiply an item's dense and sparse score by. They depend on the item alone, so
they are multiplied into the item's vector and into the weights that point to it, and nothing is left to weigh.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfllmrec.layers.neighbour_scores import NeighbourScores
from tfllmrec.models.hybrid import Hybrid


class FoldedHybrid(tf.Module):
    """What an :class:`~tfllmrec.layers.item_index.ItemIndex` needs to rank as ``Hybrid.score_items`` does.

    The index is made of :attr:`vectors` and :attr:`prior`; a request's arguments come from :meth:`requests`:

        index = build_index(folded.vectors, queries, prior=folded.prior)
        items, scores = index.top_k(k=k, exclude=history, **folded.requests(item_vectors, history, ratings))

    Attributes:
      vectors: float32 ``[N, D]``, ``g_i e_i``.
      prior: float32 ``[N]``, the scores for an empty history.
      behaviour: the sparse term with ``h_i W`` for weights; ``None`` where the model has none.

    Args:
      model: fitted, its gates chosen; what changes in it afterwards does not come here.
    """

    def __init__(self, model: Hybrid) -> None:
        super().__init__(name="folded_hybrid")
        dense_factor, sparse_factor = (factor.numpy() for factor in model.gates.factors(model.train_counts))
        if not (model.use_dense and model.use_behaviour):  # a term alone is not weighed
            dense_factor, sparse_factor = np.ones_like(dense_factor), np.ones_like(sparse_factor)
        self.vectors = model.item_vectors().numpy() * dense_factor[:, np.newaxis] * np.float32(model.use_dense)
        self.prior = np.log1p(model.train_counts.numpy())
        self.behaviour: NeighbourScores | None = None
        if model.use_behaviour:
            neighbours, weights = (
                table.numpy()[:-1] for table in (model.behaviour.neighbours, model.behaviour.weights_)
            )
            self.behaviour = NeighbourScores(model.n_items, neighbours.shape[1], model.behaviour.decay)
            self.behaviour.set_weights_of_items(neighbours, weights * sparse_factor[neighbours])
        self.n_items, self.use_dense = model.n_items, model.use_dense
        self._last_query_vectors = model.last_query_vectors  # a method: the Keras model stays out of a SavedModel

    def requests(self, item_vectors: tf.Tensor, history: tf.Tensor, ratings: tf.Tensor) -> dict[str, tf.Tensor | tuple]:
        """``query``, ``pairs`` and ``unknown`` of ``ItemIndex.top_k``; arguments as in ``Hybrid.score_items``.

        ``item_vectors`` are the model's own, not :attr:`vectors`: histories are read by them.
        """
        if self.use_dense:
            query = tf.add_n(self._last_query_vectors(item_vectors, history, ratings))
        else:
            query = tf.zeros((tf.shape(history)[0], self.vectors.shape[1]))
        pairs = None if self.behaviour is None else self.behaviour.pairs(history)
        return {"query": query, "pairs": pairs, "unknown": tf.reduce_all(history >= self.n_items, axis=1)}

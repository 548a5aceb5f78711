"""Mixes item vectors with those of their neighbours in a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf

#: Largest number of edges between an item and the neighbours whose vectors it receives.
HOPS = 2
#: Number of training events at which neighbours count half as much as for an item without events; initial value.
HALF_COUNT = 10.0
#: Squared length below which vectors are not scaled to length 1, because their gradient would be unbounded.
_SHORT = 1e-2


class Edges(NamedTuple):
    """Undirected edges.

    Attributes:
      heads: Int32 ``[E]``, the items at one end.
      tails: Int32 ``[E]``, the items at the other end.
      weights: Float32 ``[E]``, at least 0.
    """

    heads: np.ndarray
    tails: np.ndarray
    weights: np.ndarray


@tf.keras.utils.register_keras_serializable("tfllmrec")
class ItemPropagation(tf.keras.layers.Layer):
    """Computes ``e_i = x_i + s(n_i) p_i`` at length 1: an item's own vector plus a vector from its neighbours.

        p = (x^1 + ... + x^K) / K,    x^k_i = sum_r a_ir (A_r x^(k-1))_i,    x^0 = x,    A_r = D_r^-1/2 W_r D_r^-1/2

    - ``W_r`` are the weights of the edges of relation r, and ``D_r`` their sums by item. K is :data:`HOPS`. With one
      relation ``a`` is 1, and this is LightGCN (He et al., SIGIR 2020, eq. 7-8), whose mean over hops has ``s = K``.
    - With several relations, ``a_ir = softmax_r(b_r + <k_r, (A_r x^(k-1))_i>)`` over the relations in which item i has
      neighbours: attention over relations, as in HAN (Wang et al., WWW 2019), but separately for each item. ``b`` and
      ``k`` are learned and start at 0, so that all relations have equal weights at first.
    - ``s(n) = s h / (h + n)`` for an item with n training events, with learned ``s`` and ``h > 0``. Neighbours count
      more for a tail item than for a head item, and most for a cold item. ``s`` starts at 0, so training starts from
      ``x``.

    An item without edges keeps its vector. An item without a vector gets that of its neighbours, at a length below 1 if
    ``s`` is small. The edges are not trained. The scalar ``reads`` is chosen on validation data and not trained; if it
    is 0, ``e = x``.

    Args:
      n_items: The number N of items.
      dim: The width D of the vectors.
      relations: The edges by the name of the relation. The weights of duplicate edges add up.
    """

    def __init__(self, n_items: int, dim: int, relations: Mapping[str, Edges], **kwargs: Any) -> None:
        super().__init__(autocast=False, **{**kwargs, "dtype": tf.float32})  # in every precision
        self.n_items, self.dim, self.names = n_items, dim, list(relations)
        self.ends, self.edge_weights, self.joined = [], [], []
        for place, (heads, tails, weights) in enumerate(relations.values()):
            degree = np.bincount(heads, weights, n_items) + np.bincount(tails, weights, n_items)
            scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
            normalised = weights * scale[heads] * scale[tails]
            self.ends.append(self._frozen(f"ends_{place}", np.stack([heads, tails], axis=1), tf.int32))
            self.edge_weights.append(self._frozen(f"edge_weights_{place}", normalised, tf.float32))
            self.joined.append(self._frozen(f"joined_{place}", degree > 0, tf.float32))
        self.strength = self.add_weight("strength_gate", (), initializer="zeros")
        half = tf.constant_initializer(np.log(HALF_COUNT))
        self.log_half_count = self.add_weight("log_half_count", (), initializer=half)
        if len(self.names) > 1:
            self.biases = self.add_weight("relation_biases", (len(self.names),), initializer="zeros")
            self.keys = self.add_weight("relation_gate_keys", (len(self.names), dim), initializer="zeros")
        self.reads = self._frozen("reads", np.array(1.0), tf.float32)

    def _frozen(self, name: str, value: np.ndarray, dtype: tf.DType) -> tf.Variable:
        start = tf.constant_initializer(value)
        return self.add_weight(name, value.shape, initializer=start, dtype=dtype, trainable=False)

    def call(self, vectors: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Returns the vectors ``e`` of all items, float32 ``[N, D]``.

        Args:
          vectors: Float32 ``[N, D]``, of length 1 or 0.
          counts: Float32 ``[N]``, the number of training events of each item.
        """
        return self.mixed(vectors, self.of_neighbours(vectors), counts)

    def of_neighbours(self, vectors: tf.Tensor) -> tf.Tensor:
        """Returns ``p`` of all items, float32 ``[N, D]``; zeros for an item without edges."""
        hops = [vectors]
        for _ in range(HOPS):
            hops.append(self._hop(hops[-1]))
        return tf.add_n(hops[1:]) / HOPS

    def mixed(self, vectors: tf.Tensor, of_neighbours: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Returns ``e`` of M items, float32 ``[M, D]``.

        Args:
          vectors: ``[M, D]``, their ``x``.
          of_neighbours: ``[M, D]``, their ``p``.
          counts: ``[M]``, the number of training events of each.
        """
        half = tf.exp(self.log_half_count)
        strength = self.reads * self.strength * half / (half + counts)
        return tf.math.l2_normalize(vectors + strength[:, tf.newaxis] * of_neighbours, axis=1, epsilon=_SHORT)

    def _hop(self, vectors: tf.Tensor) -> tf.Tensor:
        parts = [self._along(place, vectors) for place in range(len(self.names))]
        if len(parts) == 1:
            return parts[0]
        logits = [tf.linalg.matvec(part, key) for part, key in zip(parts, tf.unstack(self.keys), strict=True)]
        joined = tf.stack([tf.convert_to_tensor(each) for each in self.joined], axis=1)
        weights = tf.nn.softmax(tf.where(joined > 0, tf.stack(logits, axis=1) + self.biases, -1e9))
        weighed = zip(parts, tf.unstack(weights, axis=1), strict=True)
        return tf.add_n([part * weight[:, tf.newaxis] for part, weight in weighed])

    def _along(self, place: int, vectors: tf.Tensor) -> tf.Tensor:
        """Returns ``A_r x``. Each edge is stored once and used in both directions."""
        ends, weights = tf.cast(self.ends[place], tf.int64), tf.convert_to_tensor(self.edge_weights[place])
        half = tf.SparseTensor(ends, weights, (self.n_items, self.n_items))
        forth = tf.sparse.sparse_dense_matmul(half, vectors)
        return forth + tf.sparse.sparse_dense_matmul(half, vectors, adjoint_a=True)

    def start_from(self, other: ItemPropagation) -> None:
        """Copies the learned weights of a layer over another graph; relations are matched by name."""
        for name in ("strength", "log_half_count", "reads"):
            getattr(self, name).assign(getattr(other, name))
        if len(self.names) > 1 and len(other.names) > 1:
            for name in set(self.names) & set(other.names):
                here, there = self.names.index(name), other.names.index(name)
                self.biases[here].assign(other.biases[there])
                self.keys[here].assign(other.keys[there])

    def get_config(self) -> dict[str, Any]:
        relations = {name: ends.shape[0] for name, ends in zip(self.names, self.ends, strict=True)}
        return {**super().get_config(), "n_items": self.n_items, "dim": self.dim, "relations": relations}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Creates a layer of the same sizes; the weights of its edges are 0 until weights are loaded."""
        relations = {name: blank_edges(size) for name, size in config["relations"].items()}
        return cls(**{**config, "relations": relations})


def blank_edges(size: int) -> Edges:
    """Returns edges of weight 0, for a layer whose weights are loaded later."""
    return Edges(np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.float32))

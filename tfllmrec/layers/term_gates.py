"""The gate ``a_i`` between the dense terms and the sparse term of a score."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf

from tfllmrec.layers.rows_of import rows_of

GAIN = 20.0
"""Gate parameters are ``GAIN * variable``, so they change faster by this factor than the network's weights, which have
the same learning rate (an equalised learning rate, Karras et al. 2018)."""


class Factors(NamedTuple):
    """The factors and the offset of an item's two scores, in the shape of :meth:`TermGates.gate`.

    ``score = dense * dense_score + sparse * sparse_score + offset``
    """

    dense: tf.Tensor
    sparse: tf.Tensor
    offset: tf.Tensor


@tf.keras.utils.register_keras_serializable("tfllmrec")
class TermGates(tf.keras.layers.Layer):
    """Computes ``c s_d a_i (dense - tau log(1 + n_i)) + s_w (1 - d a_i) sparse + lift [n_i = 0 and i has text]``.

    ``a_i = sigmoid(MLP(log(1 + n_i), n_i = 0, item i has text))``, where ``n_i`` is the number of the item's training
    events. The scales ``s_d`` and ``s_w`` are learned as logarithms, so they stay positive.

    Four scalars are not trained, because the gates are trained with a softmax loss but evaluated by ranking. They are
    chosen on validation queries after training:

    - ``dense_strength`` (c) scales the dense term.
    - ``closing`` (d) sets how far the gate closes the sparse term. With c = d = 0 the sparse term stands alone.
    - ``discount`` (tau) lowers the dense score of popular items, as logit adjustment does (Menon et al., "Long-Tail
      Learning via Logit Adjustment", ICLR 2021): a softmax over events learns popularity along with the match.
    - ``cold_lift`` (lift) is added to the score of items that have a text and no training events.

    In training, c = d = 1 and tau = lift = 0.

    Args:
      has_text: Bool ``[N]``, the items with text.
      seed: Random seed of the initialiser.
      sparse_scale: The initial value of ``s_w``.
    """

    def __init__(self, has_text: np.ndarray, seed: int, sparse_scale: float = 50.0, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        self.n_items, self.seed, self.sparse_scale = len(has_text), seed, sparse_scale
        self.has_text = self.add_weight(
            name="has_text",
            shape=(self.n_items,),
            initializer=tf.constant_initializer(has_text.astype(np.float32)),
            trainable=False,
        )
        self.hidden = tf.keras.layers.Dense(
            8,
            activation="tanh",
            kernel_initializer=tf.keras.initializers.GlorotUniform(seed),
            name="hidden",
            dtype="float32",
        )
        self.output_map = tf.keras.layers.Dense(1, kernel_initializer="zeros", name="output", dtype="float32")
        self.log_scales = self.add_weight(
            name="log_scales", shape=(2,), initializer=tf.constant_initializer(np.log([1.0, sparse_scale]) / GAIN)
        )

        self.dense_strength = self.add_weight(name="dense_strength", shape=(), initializer="ones", trainable=False)
        self.closing = self.add_weight(name="closing", shape=(), initializer="ones", trainable=False)
        self.discount = self.add_weight(name="discount", shape=(), initializer="zeros", trainable=False)
        self.cold_lift = self.add_weight(name="cold_lift", shape=(), initializer="zeros", trainable=False)

    def gate(self, counts: tf.Tensor, items: tf.Tensor | None = None) -> tf.Tensor:
        """Returns ``a_i`` of all items, float32 ``[N]`` in (0, 1), or of ``items``, in the shape of ``items``.

        Args:
          counts: Float32 ``[N]``, the number of training events of each item, or of each of ``items``.
          items: Int32 of any shape, such as ``[B, M]``; by default all items.
        """
        popularity = tf.math.log1p(counts)
        no_events = tf.cast(counts == 0, tf.float32)
        has_text = self._has_text(items)
        features = tf.stack([popularity / 3.0 - 1.0, no_events, has_text], axis=-1)
        return tf.sigmoid(GAIN * self.output_map(self.hidden(features))[..., 0])

    def _has_text(self, items: tf.Tensor | None) -> tf.Tensor:
        return self.has_text if items is None else rows_of(self.has_text, items)

    def factors(self, counts: tf.Tensor, training: bool = False, items: tf.Tensor | None = None) -> Factors:
        """Returns the factors and the offset of each item; ``counts`` and ``items`` are as in :meth:`gate`."""
        gate = self.gate(counts, items)
        dense_scale, sparse_scale = tf.unstack(tf.exp(GAIN * self.log_scales))
        if training:
            return Factors(dense_scale * gate, sparse_scale * (1.0 - gate), tf.zeros_like(gate))
        dense = self.dense_strength * dense_scale * gate
        lift = self.cold_lift * tf.cast(counts == 0, tf.float32) * self._has_text(items)
        return Factors(
            dense, sparse_scale * (1.0 - self.closing * gate), lift - self.discount * tf.math.log1p(counts) * dense
        )

    def call(
        self,
        dense: tf.Tensor,
        sparse: tf.Tensor,
        counts: tf.Tensor,
        training: bool = False,
        items: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Combines dense and sparse scores into scores ``[B, N]``, or ``[B, M]`` of ``items``.

        Args:
          dense: Float32 ``[B, N]``, or ``[B, M]``.
          sparse: Float32 ``[B, N]``, or ``[B, M]``.
          counts: Float32 ``[N]``, or ``[M]``, the number of training events of each item.
          training: Whether the four scalars have their values in training.
          items: Int32 ``[M]``; by default all items.
        """
        factors = self.factors(counts, training, items)
        return dense * factors.dense + sparse * factors.sparse + factors.offset

    def get_config(self) -> dict[str, Any]:
        sizes = {"n_items": self.n_items, "seed": self.seed, "sparse_scale": self.sparse_scale}
        return {**super().get_config(), **sizes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Creates a layer of the same size; no item has a text until weights are loaded."""
        config = dict(config)
        return cls(np.zeros(config.pop("n_items"), bool), **config)

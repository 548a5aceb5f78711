"""The gate ``a_i`` between the dense terms and the sparse one."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfllmrec.layers.rows_of import rows_of

GAIN = 20.0
"""Gate parameters are read as ``GAIN * variable``: these few numbers move that much faster than the network's weights,
whose learning rate they share (an equalised learning rate, Karras et al. 2018)."""


class TermGates(tf.keras.layers.Layer):
    """``c s_d a_i dense + s_w (1 - d a_i) sparse``, with ``a_i = sigmoid(MLP(popularity, text quality))``.

    ``c`` and ``d`` are 1 in training. What fits the gates is a softmax, not the ranking that is measured, so afterwards
    both are chosen on validation: how strong the dense term is, and how far its gate closes the sparse one. With both
    at 0 the sparse term stands alone.

    Popularity enters as ``log(1 + events)`` and as "never met"; text quality as "has a text". The two scales are
    learned in logarithms, so that they stay positive.

    Args:
      has_text: bool ``[N]``.
      seed: of the initialiser.
    """

    def __init__(self, has_text: np.ndarray, seed: int, **kwargs) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.n_items = len(has_text)
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
            name="log_scales", shape=(2,), initializer=tf.constant_initializer(np.log([1.0, 50.0]) / GAIN)
        )

        #: c
        self.dense_strength = self.add_weight(name="dense_strength", shape=(), initializer="ones", trainable=False)
        #: d
        self.closing = self.add_weight(name="closing", shape=(), initializer="ones", trainable=False)

    def gate(self, counts: tf.Tensor, items: tf.Tensor | None = None) -> tf.Tensor:
        """``a_i`` of items met ``counts`` times, float32 ``[N]`` -> float32 ``[N]`` in (0, 1).

        Of some ``items`` int32 ``[B, M]`` alone, with their counts ``[B, M]``: ``[B, M]``.
        """
        popularity = tf.math.log1p(counts)
        never_met = tf.cast(counts == 0, tf.float32)
        has_text = self.has_text if items is None else rows_of(self.has_text, items)
        features = tf.stack([popularity / 3.0 - 1.0, never_met, has_text], axis=-1)
        return tf.sigmoid(GAIN * self.output_map(self.hidden(features))[..., 0])

    def factors(
        self, counts: tf.Tensor, training: bool = False, items: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What multiplies each item's dense and sparse score, shaped as :meth:`gate`; in training c and d are 1."""
        gate = self.gate(counts, items)
        dense_scale, sparse_scale = tf.unstack(tf.exp(GAIN * self.log_scales))
        strength, closing = (1.0, 1.0) if training else (self.dense_strength, self.closing)
        return strength * dense_scale * gate, sparse_scale * (1.0 - closing * gate)

    def call(self, dense: tf.Tensor, sparse: tf.Tensor, counts: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Dense and sparse scores float32 ``[B, N]``, counts ``[N]`` -> ``[B, N]``."""
        dense_factor, sparse_factor = self.factors(counts, training)
        return dense * dense_factor + sparse * sparse_factor

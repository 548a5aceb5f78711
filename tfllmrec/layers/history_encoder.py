"""Causal self-attention over the item vectors of a history (SASRec, Kang and McAuley 2018), pre-norm."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfllmrec.errors import ConfigError
from tfllmrec.layers.newest_events import at_event
from tfllmrec.layers.seeded_dropout import SeededDropout

MASKED = -1e9


def causal_mask(present: tf.Tensor) -> tf.Tensor:
    """Returns an additive mask, float32 ``[B, 1, L, L]``: position t attends to the present positions up to t.

    Args:
      present: Bool ``[B, L]``, False for padding.
    """
    length = tf.shape(present)[1]
    earlier = tf.linalg.band_part(tf.ones((length, length), tf.bool), -1, 0)
    allowed = earlier[tf.newaxis, tf.newaxis] & present[:, tf.newaxis, tf.newaxis, :]
    return tf.where(allowed, 0.0, MASKED)


@tf.keras.utils.register_keras_serializable("tfllmrec")
class SelfAttention(tf.keras.layers.Layer):
    """Multi-head self-attention, ``[B, L, D] -> [B, L, D]``; the result is ``[B, 1, D]`` if ``last`` is given."""

    def __init__(self, dim: int, heads: int, dropout: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim % heads:
            raise ConfigError(f"model.embedding_dim must be a multiple of model.heads: got {dim} and {heads}.")
        self.dim, self.heads, self.rate, self.seed = dim, heads, dropout, seed
        self.head_dim = dim // heads
        glorot = tf.keras.initializers.GlorotUniform
        self.query_key_value = tf.keras.layers.Dense(3 * dim, kernel_initializer=glorot(seed), name="query_key_value")
        self.output_map = tf.keras.layers.Dense(dim, kernel_initializer=glorot(seed + 1), name="output")
        self.dropout = SeededDropout(dropout, seed + 2, name="attention_dropout")

    def call(
        self, x: tf.Tensor, mask_bias: tf.Tensor, training: bool | None = None, last: tf.Tensor | None = None
    ) -> tf.Tensor:
        batch, length = tf.shape(x)[0], tf.shape(x)[1]
        packed = tf.reshape(self.query_key_value(x), (batch, length, 3, self.heads, self.head_dim))
        query, key, value = tf.unstack(tf.transpose(packed, (2, 0, 3, 1, 4)))
        query, mask_bias = at_event(query, last, axis=2), at_event(mask_bias, last, axis=2)
        logits = tf.matmul(query, key, transpose_b=True) * tf.cast(self.head_dim**-0.5, x.dtype)
        weights = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32) + mask_bias), x.dtype)
        mixed = tf.transpose(tf.matmul(self.dropout(weights, training=training), value), (0, 2, 1, 3))
        return self.output_map(tf.reshape(mixed, (batch, tf.shape(mixed)[1], self.heads * self.head_dim)))

    def get_config(self) -> dict[str, Any]:
        sizes = {"dim": self.dim, "heads": self.heads, "dropout": self.rate, "seed": self.seed}
        return {**super().get_config(), **sizes}


@tf.keras.utils.register_keras_serializable("tfllmrec")
class HistoryEncoder(tf.keras.layers.Layer):
    """Encodes the item vectors of a history ``[B, L, D]`` as the state of the user after each event, ``[B, L, D]``.

    The events are left-aligned, the oldest first. Positions count from the start of the window, which holds the most
    recent events. The states at absent positions are undefined.

    Args:
      dim: The width D of the vectors.
      blocks: The number of attention blocks. With 0, the result is the normalised sum of item and position vectors.
      heads: The number of attention heads.
      dropout: The dropout rate.
      max_length: The largest window length L.
      seed: Random seed of the initial weights and the dropout.
    """

    def __init__(
        self, dim: int, blocks: int, heads: int, dropout: float, max_length: int, seed: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.dim, self.heads, self.rate, self.max_length, self.seed = dim, heads, dropout, max_length, seed
        self.positions = self.add_weight(
            name="positions",
            shape=(max_length, dim),
            initializer=tf.keras.initializers.RandomNormal(stddev=0.02, seed=seed),
        )
        self.input_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="input_norm")
        self.input_dropout = SeededDropout(dropout, seed + 1, name="input_dropout")
        self.blocks = [HistoryBlock(dim, heads, dropout, seed + 10 * (i + 1), name=f"block_{i}") for i in range(blocks)]
        self.output_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="output_norm")

    def call(
        self,
        items: tf.Tensor,
        present: tf.Tensor,
        training: bool | None = None,
        last: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Encodes histories.

        Args:
          items: ``[B, L, D]``, the item vectors.
          present: Bool ``[B, L]``, False for padding.
          training: Whether dropout is applied.
          last: Int32 ``[B]``, a position of each row. If it is given, only the states at these positions are
            returned, ``[B, 1, D]``, and the last block computes only these.
        """
        length = tf.shape(items)[1]
        x = self.input_norm(items) + self.positions[tf.newaxis, :length]
        x = self.input_dropout(x, training=training)
        mask_bias = causal_mask(present)
        for block in self.blocks:
            x = block(x, mask_bias, training=training, last=last if block is self.blocks[-1] else None)
        return self.output_norm(x if self.blocks else at_event(x, last))

    def get_config(self) -> dict[str, Any]:
        sizes = {"dim": self.dim, "blocks": len(self.blocks), "heads": self.heads, "dropout": self.rate}
        return {**super().get_config(), **sizes, "max_length": self.max_length, "seed": self.seed}


@tf.keras.utils.register_keras_serializable("tfllmrec")
class HistoryBlock(tf.keras.layers.Layer):
    """One pre-norm Transformer block: attention and a two-layer feed-forward map, each with a residual connection."""

    def __init__(self, dim: int, heads: int, dropout: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.heads, self.rate, self.seed = dim, heads, dropout, seed
        glorot = tf.keras.initializers.GlorotUniform
        self.attention_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="attention_norm")
        self.attention = SelfAttention(dim, heads, dropout, seed, name="attention")
        self.feed_forward_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="feed_forward_norm")
        self.widen = tf.keras.layers.Dense(
            4 * dim, activation="gelu", kernel_initializer=glorot(seed + 3), name="widen"
        )
        self.narrow = tf.keras.layers.Dense(dim, kernel_initializer=glorot(seed + 4), name="narrow")
        self.attention_out = SeededDropout(dropout, seed + 5, name="attention_out")
        self.feed_forward_out = SeededDropout(dropout, seed + 6, name="feed_forward_out")

    def call(
        self, x: tf.Tensor, mask_bias: tf.Tensor, training: bool | None = None, last: tf.Tensor | None = None
    ) -> tf.Tensor:
        attended = self.attention(self.attention_norm(x), mask_bias, training=training, last=last)
        x = at_event(x, last) + self.attention_out(attended, training=training)
        return x + self.feed_forward_out(self.narrow(self.widen(self.feed_forward_norm(x))), training=training)

    def get_config(self) -> dict[str, Any]:
        sizes = {"dim": self.dim, "heads": self.heads, "dropout": self.rate, "seed": self.seed}
        return {**super().get_config(), **sizes}

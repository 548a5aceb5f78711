"""The dense item vector ``e_i``: text, an id embedding that fades where events are few, and any other features."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfllmrec.layers.seeded_dropout import SeededDropout


@tf.keras.utils.register_keras_serializable("tfllmrec")
class ItemFusion(tf.keras.layers.Layer):
    """``e_i = W_t t_i + g(n_i) v_i + sum_f W_f x_if``, with ``g(n) = n / (n + c)``.

    ``t_i`` is the frozen text vector, ``v_i`` a learned id embedding, ``n_i`` the item's training events and
    ``c > 0`` learned: a tail item leans on its text, and a cold item *is* its text. While training, a share of the ids
    is hidden in each step (rows, not entries) so that the text part has to carry the item alone.

    Args:
      text: float32 ``[N, Dt]``, from :func:`tfllmrec.text.centring.centred_unit`; a row of zeros is an item without
        text.
      dim: width D of the result.
      id_dropout: share of ids hidden in a training step; 1.0 leaves the id part out altogether.
      seed: of the id dropout and the initialisers.
      features: optional float32 ``[N, F]`` blocks by name (category flags, numbers, another modality's vectors).
    """

    def __init__(
        self,
        text: np.ndarray,
        dim: int,
        id_dropout: float,
        seed: int,
        features: dict[str, np.ndarray] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # counts stay float32 in every precision
        self.dim, self.rate, self.seed = dim, id_dropout, seed
        self.n_items = len(text)
        blocks = {"text": text} | (features or {})
        self.blocks = {name: self._frozen(f"{name}_vectors", block) for name, block in blocks.items()}
        self.maps = {
            name: self.add_weight(
                name=f"{name}_map",
                shape=(block.shape[1], dim),
                initializer=tf.keras.initializers.GlorotUniform(seed=seed + i),
            )
            for i, (name, block) in enumerate(blocks.items())
        }
        self.use_ids = id_dropout < 1
        if self.use_ids:
            self.id_embedding = self.add_weight(
                name="id_embedding",
                shape=(self.n_items, dim),
                initializer=tf.keras.initializers.RandomNormal(stddev=0.02, seed=seed),
            )
            self.id_half_count = self.add_weight(
                name="id_half_count", shape=(), initializer=tf.constant_initializer(1.0)
            )
            self.id_dropout = SeededDropout(id_dropout, seed, noise_shape=(None, 1), name="id_dropout")

    def _frozen(self, name: str, value: np.ndarray) -> tf.Variable:
        return self.add_weight(
            name=name, shape=value.shape, initializer=tf.constant_initializer(value.astype(np.float32)), trainable=False
        )

    def content(self, indices: tf.Tensor | None = None, text: tf.Tensor | None = None) -> tf.Tensor:
        """The part of the vectors that does not depend on ids, ``[M, D]``.

        Args:
          indices: int32 ``[M]``, the items; by default all of them.
          text: float32 ``[N, Dt]``, text vectors in place of the layer's own.
        """
        blocks = self.blocks if text is None else self.blocks | {"text": text}
        parts = [
            tf.matmul(tf.cast(_rows(x, indices), self.compute_dtype), tf.cast(self.maps[name], self.compute_dtype))
            for name, x in blocks.items()
        ]
        return tf.add_n(parts)

    def call(
        self,
        counts: tf.Tensor,
        indices: tf.Tensor | None = None,
        content: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Item vectors, ``[M, D]``.

        Args:
          counts: float32 ``[M]``, training events of each item.
          indices: int32 ``[M]``, the items; by default all of them.
          content: :meth:`content` of the items, where it is computed already.
        """
        result = self.content(indices) if content is None else content
        if self.use_ids:
            fade = counts / (counts + tf.nn.softplus(tf.cast(self.id_half_count, counts.dtype)))
            # Without a gather where all rows are read: its gradient would be sparse, and slower in the optimizer.
            ids = tf.cast(_rows(self.id_embedding, indices), self.compute_dtype)
            ids *= tf.cast(fade, ids.dtype)[:, tf.newaxis]
            result += tf.cast(self.id_dropout(ids, training=training), result.dtype)
        return result

    def get_config(self) -> dict[str, Any]:
        widths = {name: block.shape[1] for name, block in self.blocks.items()}
        sizes = {"n_items": self.n_items, "widths": widths, "dim": self.dim, "id_dropout": self.rate, "seed": self.seed}
        return {**super().get_config(), **sizes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A layer of the same sizes; its blocks are zeros until weights are loaded."""
        config = dict(config)
        n_items, widths = config.pop("n_items"), config.pop("widths")
        blocks = {name: np.zeros((n_items, width), np.float32) for name, width in widths.items()}
        return cls(blocks.pop("text"), features=blocks, **config)


def _rows(table: tf.Variable | tf.Tensor, indices: tf.Tensor | None) -> tf.Tensor:
    return tf.convert_to_tensor(table) if indices is None else tf.gather(table, indices)

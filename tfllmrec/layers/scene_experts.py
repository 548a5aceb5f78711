"""Experts that all scenes share, mixed by a separate gate for each scene."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfllmrec.layers.seeded_dropout import SeededDropout

#: Share of the targets of a training step whose scene is hidden, so that the model also learns requests without one.
HIDDEN_SCENES = 0.1


@tf.keras.utils.register_keras_serializable("tfllmrec")
class SceneExperts(tf.keras.layers.Layer):
    """Computes ``q + sum_k g_k(scene, q) E_k(q)``: a multi-gate mixture of experts, with one gate for each scene.

    ``E_k`` are two-layer feed-forward maps that all scenes share, so a scene with few events learns from the others.
    ``g(s, q) = softmax(W_s q + b_s)`` are the gates, one for each scene (Ma et al., "Modeling Task Relationships in
    Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018, section 4.2; their tasks are scenes here). The
    experts start at zero, so training starts from ``q``.

    Args:
      scenes: The number of codes of the scene field, :attr:`tfllmrec.data.schema.Field.size`; code 0 is no scene.
      dim: The width D of the queries.
      experts: The number K of experts.
      seed: Random seed of the initial weights and the noise.
    """

    def __init__(self, scenes: int, dim: int, experts: int, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_scenes, self.dim, self.n_experts, self.seed = scenes, dim, experts, seed
        glorot = tf.keras.initializers.GlorotUniform
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="norm")
        self.widen = tf.keras.layers.Dense(experts * dim, "gelu", kernel_initializer=glorot(seed), name="widen")
        self.narrow = self.add_weight(name="narrow", shape=(experts, dim, dim), initializer="zeros")
        self.gate_map = self.add_weight(name="gate_map", shape=(scenes, dim, experts), initializer=glorot(seed + 1))
        # Initialised like embeddings, not with zeros: with equal gates, all scenes would get the same gradient.
        normal = tf.keras.initializers.RandomNormal(stddev=1.0, seed=seed + 2)
        self.gate_bias = self.add_weight(name="gate_bias", shape=(scenes, experts), initializer=normal)
        self.hide = SeededDropout(HIDDEN_SCENES, seed + 3, name="hide_scenes")

    def call(self, query: tf.Tensor, scene: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns queries adapted to their scenes, ``[B, L, D]``.

        Args:
          query: ``[B, L, D]``.
          scene: The codes of the scenes, int32 ``[B]``, or ``[B, L]`` if each target has its own.
          training: Whether scenes are hidden.
        """
        batch, length = tf.shape(query)[0], tf.shape(query)[1]
        scene = scene if len(scene.shape) == 2 else scene[:, tf.newaxis]
        shown = self.hide(tf.ones((batch, length)), training=training) > 0
        scene = tf.where(shown, scene, 0)  # [B, L]
        normed = self.norm(query)
        gate_maps = tf.cast(tf.gather(self.gate_map, scene), normed.dtype)  # [B, L, D, K]
        logits = tf.matmul(normed[:, :, tf.newaxis], gate_maps)[:, :, 0]
        logits = tf.cast(logits, tf.float32) + tf.cast(tf.gather(self.gate_bias, scene), tf.float32)
        gates = tf.cast(tf.nn.softmax(logits), normed.dtype)  # [B, L, K]
        hidden = tf.reshape(self.widen(normed), (batch, length, self.n_experts, self.dim)) * gates[..., tf.newaxis]
        hidden = tf.reshape(hidden, (batch, length, self.n_experts * self.dim))
        narrow = tf.reshape(tf.cast(self.narrow, normed.dtype), (self.n_experts * self.dim, self.dim))
        return query + tf.tensordot(hidden, narrow, 1)

    def get_config(self) -> dict[str, Any]:
        sizes = {"scenes": self.n_scenes, "dim": self.dim, "experts": self.n_experts, "seed": self.seed}
        return {**super().get_config(), **sizes}

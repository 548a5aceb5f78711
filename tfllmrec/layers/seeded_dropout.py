"""Dropout whose noise depends on a seed and a saved step count alone, so that a resumed run draws the same noise."""

from __future__ import annotations

import tensorflow as tf


@tf.keras.utils.register_keras_serializable("tfllmrec")
class SeededDropout(tf.keras.layers.Layer):
    """Inverted dropout with a checkpointed counter.

    Keras' own ``Dropout`` keeps its random state in the running kernel: a run that is killed and resumed draws other
    noise than one that was left alone. Here the draw is a function of (seed, number of training calls so far), and the
    count is a variable, so it is saved with the model.

    Args:
      rate: share of entries set to zero while training, to the nearest 256th (only 0 is none at all); the rest is
        scaled up in turn.
      seed: two layers with different seeds draw independent noise.
      noise_shape: as in ``tf.nn.dropout``; ``None`` entries are taken from the input.
    """

    def __init__(self, rate: float, seed: int, noise_shape: tuple[int | None, ...] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout rate: expected 0 <= rate < 1, got {rate}.")
        self.rate = rate
        self.seed = seed
        self.noise_shape = noise_shape
        # HDF5 files need different names within a layer, and every dropout within a layer has a seed of its own.
        self.calls = self.add_weight(
            name=f"calls_{seed}",
            shape=(),
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            experimental_autocast=False,
        )

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0.0:
            return inputs
        count = self.calls.assign_add(1)
        shape = tf.shape(inputs)
        if self.noise_shape is not None:
            shape = tf.stack([shape[i] if s is None else s for i, s in enumerate(self.noise_shape)])
        seed = tf.stack([tf.constant(self.seed, tf.int64), count])
        # Four entries share a random number, a byte each: noise costs more time than what it is multiplied with.
        size = tf.reduce_prod(shape)
        numbers = tf.random.stateless_uniform(((size + 3) // 4,), seed, minval=None, maxval=None, dtype=tf.int32)
        noise = tf.reshape(tf.reshape(tf.bitcast(numbers, tf.uint8), [-1])[:size], shape)
        dropped = min(max(round(self.rate * 256), 1), 255)
        return inputs * tf.where(noise >= dropped, tf.cast(256 / (256 - dropped), inputs.dtype), 0)

    def get_config(self) -> dict:
        return super().get_config() | {"rate": self.rate, "seed": self.seed, "noise_shape": self.noise_shape}

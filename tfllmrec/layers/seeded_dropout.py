"""Dropout whose noise depends only on a seed and a saved step count, so that a resumed run draws the same noise."""

from __future__ import annotations

import tensorflow as tf


@tf.keras.utils.register_keras_serializable("tfllmrec")
class SeededDropout(tf.keras.layers.Layer):
    """Inverted dropout with a checkpointed counter.

    The random state of Keras' ``Dropout`` is not saved, so a resumed run draws different noise than an uninterrupted
    one. Here, the noise is a function of the seed and the number of training calls so far. The number is a variable, so
    it is saved with the model.

    Args:
      rate: The share of entries that are set to 0 in training, rounded to a multiple of 1/256, but to at least 1/256 if
        it is not 0. The other entries are scaled up accordingly.
      seed: Random seed; layers with different seeds draw independent noise.
      noise_shape: As in ``tf.nn.dropout``; ``None`` entries are taken from the input.

    Raises:
      ValueError: ``rate`` is not in [0, 1).
    """

    def __init__(self, rate: float, seed: int, noise_shape: tuple[int | None, ...] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout rate: expected 0 <= rate < 1, got {rate}.")
        self.rate = rate
        self.seed = seed
        self.noise_shape = noise_shape
        # HDF5 files need distinct weight names within a layer, and each dropout within a layer has a different seed.
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
        # Each random number provides one byte for each of four entries: most of the run time is spent on the noise.
        size = tf.reduce_prod(shape)
        numbers = tf.random.stateless_uniform(((size + 3) // 4,), seed, minval=None, maxval=None, dtype=tf.int32)
        noise = tf.reshape(tf.reshape(tf.bitcast(numbers, tf.uint8), [-1])[:size], shape)
        dropped = min(max(round(self.rate * 256), 1), 255)
        return inputs * tf.where(noise >= dropped, tf.cast(256 / (256 - dropped), inputs.dtype), 0)

    def get_config(self) -> dict:
        return super().get_config() | {"rate": self.rate, "seed": self.seed, "noise_shape": self.noise_shape}

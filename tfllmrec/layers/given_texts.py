"""Texts of requests to vectors, inside the graph that is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

#: Texts that are encoded at once, which bounds the memory.
AT_ONCE = 64


def vectors_of_texts(
    texts: Mapping[str, tf.Tensor], encode: Callable[[tf.Tensor], tf.Tensor], width: int
) -> dict[str, tf.Tensor]:
    """Vectors of texts by the same keys: string ``[...]`` -> float32 ``[..., width]``, NaN for no text.

    Each different text is encoded once, :data:`AT_ONCE` at a time. A text without any token, of which the encoder makes
    zeros, counts as no text, as in :class:`tfllmrec.text.user_texts.UserTexts`.

    Args:
      texts: of any shapes; ``""`` for no text.
      encode: string ``[b]`` -> float32 ``[b, width]``.
      width: of the vectors.
    """
    flat = [tf.reshape(values, [-1]) for values in texts.values()]
    distinct, at = tf.unique(tf.concat([[""], *flat], axis=0))

    def encoded(start: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        vectors = encode(distinct[start : start + AT_ONCE])
        return start + AT_ONCE, parts.write(parts.size(), tf.ensure_shape(vectors, [None, width]))

    parts = tf.TensorArray(tf.float32, 1, dynamic_size=True, infer_shape=False, element_shape=[None, width])
    parts = parts.write(0, tf.zeros((1, width)))  # of no text
    _, parts = tf.while_loop(
        lambda start, parts: start < tf.size(distinct), encoded, (tf.constant(1), parts), parallel_iterations=1
    )
    table = parts.concat()
    table = tf.where(tf.reduce_any(table != 0, axis=1, keepdims=True), table, float("nan"))
    rows = tf.split(at[1:], [tf.size(values) for values in flat])
    return {
        key: tf.reshape(tf.gather(table, row), tf.concat([tf.shape(values), [width]], axis=0))
        for (key, values), row in zip(texts.items(), rows, strict=True)
    }

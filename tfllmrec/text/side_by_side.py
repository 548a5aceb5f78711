"""Several text encoders as one, with concatenated vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import tensorflow as tf

from tfllmrec.config import TextConfig, encoder_names
from tfllmrec.progress import Progress
from tfllmrec.text.bundled import BUNDLED
from tfllmrec.text.encoder import TextEncoder, TextToVector
from tfllmrec.text.store import encode_items


class SideBySideVectors(tf.Module):
    """The graphs of several encoders as one: string ``[B]`` in, float32 ``[B, D]`` of length 1 out, like TextToVector.

    Args:
      towers: The graphs, in the order of their vectors; D is the sum of their widths.
    """

    def __init__(self, towers: Sequence[TextToVector]) -> None:
        super().__init__(name="side_by_side")
        self.towers = list(towers)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Maps string ``[B]`` to float32 ``[B, D]``."""
        return tf.concat([tower(texts) for tower in self.towers], axis=1) * len(self.towers) ** -0.5


class SideBySide:
    """Several encoders whose vectors are concatenated, each divided by the square root of their number.

    The dot product of two texts is the mean of the encoders' cosines. The class has those attributes and methods of a
    frozen :class:`TextEncoder` that encode texts and are needed for an export.

    Args:
      encoders: The encoders, in the order of their vectors.
    """

    tuning = None

    def __init__(self, encoders: Sequence[TextEncoder]) -> None:
        self.encoders = tuple(encoders)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(encoder.dim for encoder in self.encoders)

    @property
    def dim(self) -> int:
        return sum(self.widths)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the encoders' fingerprints in their order."""
        return hashlib.sha256(" ".join(encoder.fingerprint for encoder in self.encoders).encode()).hexdigest()

    @cached_property
    def text_to_vector(self) -> SideBySideVectors:
        return SideBySideVectors([encoder.text_to_vector for encoder in self.encoders])

    @cached_property
    def for_queries(self) -> SideBySide:
        """The encoders with their query prefixes."""
        return SideBySide([encoder.for_queries for encoder in self.encoders])

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Like :meth:`TextEncoder.encode`: float32 ``[n, D]`` of length 1. ``progress`` restarts for each encoder."""
        return encode_items(texts, self, progress=progress)


#: The encoder of a run's item texts.
Encoder = TextEncoder | SideBySide


def encoder_of(config: TextConfig) -> Encoder:
    """Creates the encoder, or encoders, of a config's ``text`` section, untrained.

    Raises:
      ConfigError: See :meth:`TextEncoder.from_config`.
      DataError, ModelError: See :meth:`TextEncoder.from_config`.
    """
    names = encoder_names(config.encoder)
    if len(names) == 1:
        return TextEncoder.from_config(config)
    foreign = [name for name in names if name not in BUNDLED]
    # The preprocessor belongs to the handle; without a handle, it is refused.
    owners = foreign or names
    parts = [{"encoder": name, "preprocessor": config.preprocessor if name in owners else None} for name in names]
    return SideBySide([TextEncoder.from_config(config.model_copy(update=part)) for part in parts])

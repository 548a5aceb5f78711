"""Several text encoders as one, with concatenated vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import tensorflow as tf

from tfllmrec.config import TextConfig
from tfllmrec.errors import ConfigError
from tfllmrec.progress import Progress
from tfllmrec.text.bundled import BUNDLED, encoder_names
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
      ConfigError: Several encoders are to be trained, an encoder without a mask token is to be pretrained, the names
        of several encoders are invalid, or see :meth:`TextEncoder.from_config`.
      DataError, ModelError: See :meth:`TextEncoder.from_config`.
    """
    names = encoder_names(config.encoder)
    if len(names) == 1:
        bundled = BUNDLED.get(config.encoder)
        if config.pretrain_epochs and bundled is not None and not bundled.has_mask:
            able = ", ".join(name for name, each in BUNDLED.items() if each.has_mask)
            raise ConfigError(
                f"text.pretrain_epochs: expected 0, because text.encoder {config.encoder!r} has no token for hidden "
                f"words, found {config.pretrain_epochs}. Set text.pretrain_epochs=0, or take one of {able}."
            )
        return TextEncoder.from_config(config)
    if config.mode != "frozen" or config.pretrain_epochs:
        raise ConfigError(
            f"text.encoder={config.encoder}: several encoders cannot be trained. Expected text.mode=frozen and "
            f"text.pretrain_epochs=0, found {config.mode} and {config.pretrain_epochs}. Change these settings, or name "
            "one encoder."
        )
    foreign = [name for name in names if name not in BUNDLED]
    if len(foreign) > 1 or (config.preprocessor is not None and not foreign) or len(set(names)) < len(names):
        raise ConfigError(
            f"text.encoder: expected different names of bundled encoders ({', '.join(BUNDLED)}) and at most one TF Hub "
            "handle, joined by '+'; text.preprocessor belongs to the handle. Found "
            f"{config.encoder!r} with text.preprocessor {config.preprocessor}. Correct these two settings."
        )
    parts = [{"encoder": name, "preprocessor": config.preprocessor if name in foreign else None} for name in names]
    return SideBySide([TextEncoder.from_config(config.model_copy(update=part)) for part in parts])

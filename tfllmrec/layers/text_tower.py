"""A text tower as a Keras layer, which maps strings or item indices to vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.assets import cache_folder
from tfllmrec.config import TextConfig
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.progress import show_progress
from tfllmrec.text.encoder import TextEncoder, TextToVector, token_windows
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.tuning import Tuning, tuning_of

_NO_TOKEN = -1
_NOT_LOADED = "the catalogue of a TextTower is not loaded: load the weights that were saved with its config"


@tf.keras.utils.register_keras_serializable("tfllmrec")
class TextTower(tf.keras.layers.Layer):
    """A Keras layer that encodes texts with a TF Hub BERT.

    The input is strings ``[...]`` or int item indices ``[...]``; the output is float ``[..., D]``. ``TextTower()`` is
    the bundled MiniLM, frozen and mean pooled. The layer works in the functional API, in ``Sequential`` and in any
    ``tfrs.Model``, with any optimizer::

        movie = tf.keras.Sequential([TextTower(texts=titles, mode="lora"), tf.keras.layers.Dense(32)])
        movie(tf.constant([3, 8]))      # the vectors of two items of the catalogue

    Before the projection, a vector has length 1, or is zero for an empty text. Each distinct text of a batch is encoded
    once. The encoder's own dropout is off, also in training. The encoder computes in its own precision, and the vectors
    are cast to the layer's compute dtype.

    **Item indices.** ``texts`` is the catalogue: index i stands for ``texts[i]``. Index N, with which tfllmrec pads
    histories, stands for the empty text. A frozen tower encodes the catalogue when it is created (each text once for
    all runs, see :class:`tfllmrec.text.store.VectorStore`). A call is then a single gather. A trained tower keeps the
    tokens of the catalogue, and encodes the items of each batch.

    **Saving.** ``model.save("m.keras")``, ``model.save(folder)``, ``save_weights`` and checkpoints store the trained
    weights and the catalogue. The encoder itself is not part of a ``.keras`` file. It is part of a weights file only if
    it is trained. The config names the encoder by its handle, and loading needs the same module there. If it is
    missing, :class:`tfllmrec.errors.ModelError` names the handle. The only exception is a frozen tower that is called
    with item indices alone: it never loads its encoder again.

    Args:
      encoder: One of the bundled encoders ``"minilm"``, ``"e5"`` and ``"use"``, or the handle (URL or folder) of a BERT
        encoder on TF Hub. Texts are encoded as texts of items: ``"e5"`` gets "passage: " before each.
      preprocessor: The handle of the encoder's preprocessor; bundled encoders have their own.
      mode: ``"frozen"``, or what is trained: ``"full"`` (the whole encoder), ``"lora"``, ``"adalora"``, ``"prefix"``,
        ``"adapter"`` or ``"top_layers"``; see :func:`tfllmrec.text.tuning.tuning_of`.
      texts: The catalogue, N strings. Without it, the tower takes only strings.
      output_dim: The width D of a trained linear projection of the vectors. Without it, D is the width of the encoder.
      max_tokens: Texts are truncated to this number of tokens, including ``[CLS]`` and ``[SEP]``.
      pooling: ``"mean"``, ``"cls"`` or ``"pooled"``, see :class:`tfllmrec.text.encoder.TextToVector`.
      tuning: Arguments of :func:`tfllmrec.text.tuning.tuning_of` for the mode, such as ``{"rank": 4}``. ``"adalora"``
        needs ``"steps"``: the number of training steps, times the calls of the layer in a step.
      seed: Random seed of the initial weights.
      catalogue_shape: Instead of ``texts``, the shape of a saved catalogue whose rows come with the weights.
        ``from_config`` sets it. Until the weights are loaded, item indices raise an error.

    Raises:
      ConfigError: An encoder of TF Hub has no preprocessor; a frozen tower has ``tuning``.
      DataError: The bundled weights could not be downloaded.
      ModelError: A module cannot be found or loaded, or cannot be trained in this ``mode``; an input is neither strings
        nor indices, or is indices without a catalogue.
    """

    def __init__(
        self,
        encoder: str | Path = "minilm",
        preprocessor: str | Path | None = None,
        *,
        mode: str = "frozen",
        texts: Sequence[str] | None = None,
        output_dim: int | None = None,
        max_tokens: int = 64,
        pooling: str = "mean",
        tuning: Mapping[str, Any] | None = None,
        seed: int = 42,
        catalogue_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if tuning and mode == "frozen":
            raise ConfigError(f"a frozen TextTower has no tuning: expected none or another mode, got {tuning}")
        handles = {"encoder": str(encoder), "preprocessor": None if preprocessor is None else str(preprocessor)}
        self._text = TextConfig.model_validate(handles | {"mode": mode, "max_tokens": max_tokens, "pooling": pooling})
        self.output_dim, self.seed = output_dim, seed
        # Part of a SavedModel, but not of the weights: the config names the encoder by its handle.
        self._beside_weights = tf.__internal__.tracking.AutoTrackable()
        self._encoder: TextEncoder | None = None
        self._tuning: Tuning | None = None
        if mode != "frozen":
            untuned = self._loaded().text_to_vector.encoder
            self._tuning = tuning_of(untuned, mode, pooling=pooling, **{"seed": seed, **(tuning or {})})
            self._loaded().tune(self._tuning)
            self.tuned, self.tuning_state = list(self._tuning.variables), list(self._tuning.state)
            self._beside_weights.start = self._tuning.start
        self.catalogue: tf.Variable | None = None
        if texts is not None:
            self.catalogue = self._constant(self._rows([*_checked(texts), ""]))  # the last row is for padding
        elif catalogue_shape is not None:
            self.catalogue = self._constant(np.full(catalogue_shape, _NO_TOKEN if self._tuning else np.nan))
        self._width = self._loaded().dim if self.catalogue is None or self._tuning else self.catalogue.shape[1]
        self.projection: tf.keras.layers.Dense | None = None
        if output_dim is not None:
            glorot = tf.keras.initializers.GlorotUniform(seed)
            self.projection = tf.keras.layers.Dense(
                output_dim, kernel_initializer=glorot, dtype=self.dtype_policy, name="projection"
            )
            self.projection.build((None, self._width))

    def _loaded(self) -> TextEncoder:
        """Returns the encoder, and loads it if necessary."""
        if self._encoder is None:
            with tf.init_scope():
                self._encoder = TextEncoder.from_config(self._text)
        return self._encoder

    def _graph(self) -> TextToVector:
        """Returns the encoder as a graph, which is then part of any SavedModel of the layer."""
        graph = self._loaded().text_to_vector
        self._beside_weights.text_to_vector = graph
        return graph

    def _rows(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the catalogue's row for each text: its vector if frozen, else its tokens, padded with -1."""
        encoder = self._loaded()
        if self._tuning is None:
            with show_progress("Encoding the catalogue", "texts") as progress:
                return encode_items(texts, encoder, VectorStore(cache_folder() / "vectors"), progress)
        windows = [
            np.where(window["input_mask"] > 0, window["input_word_ids"], _NO_TOKEN)
            for window in token_windows(encoder.text_to_vector, texts)
        ]
        width = max(window.shape[1] for window in windows)
        padded = [np.pad(w, ((0, 0), (0, width - w.shape[1])), constant_values=_NO_TOKEN) for w in windows]
        return np.concatenate(padded)

    def _constant(self, rows: np.ndarray) -> tf.Variable:
        return self.add_weight(
            name="vectors" if self._tuning is None else "tokens",
            shape=rows.shape,
            dtype=tf.float32 if self._tuning is None else tf.int32,
            initializer=lambda _, dtype, **__: tf.constant(rows, dtype),
            trainable=False,
            experimental_autocast=False,
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Encodes strings or item indices ``[...]`` as float ``[..., D]`` of the compute dtype.

        Raises:
          ModelError: The input has another dtype, or consists of indices although there is no catalogue.
          tf.errors.InvalidArgumentError: An index is outside of ``[0, N]`` (on a GPU, such an index gives zeros).
        """
        inputs = tf.convert_to_tensor(inputs)
        flat = tf.reshape(inputs, [-1])
        if inputs.dtype == tf.string:
            distinct, row = tf.unique(flat)
            vectors = tf.gather(self._encoded(self._graph().tokens(distinct)), row)
        elif not inputs.dtype.is_integer:
            raise ModelError(
                f"expected strings or item indices as the input of TextTower {self.name!r}, got {inputs.dtype.name}. "
                "In a functional model give the input its type: tf.keras.Input((), dtype=tf.string)."
            )
        elif self.catalogue is None:
            raise ModelError(
                f"expected strings as the input of TextTower {self.name!r}, got {inputs.dtype.name}: it has no "
                "catalogue. Give it the texts of the items: TextTower(texts=...)."
            )
        elif self._tuning is None:
            vectors = tf.debugging.check_numerics(tf.gather(self.catalogue, flat), _NOT_LOADED)
        else:
            distinct, row = tf.unique(flat)
            vectors = tf.gather(self._encoded(_inputs_of(tf.gather(self.catalogue, distinct))), row)
        vectors = tf.reshape(vectors, tf.concat([tf.shape(inputs), [self._width]], axis=0))
        vectors = tf.cast(tf.ensure_shape(vectors, [*inputs.shape, self._width]), self.compute_dtype)
        return vectors if self.projection is None else self.projection(vectors)

    def _encoded(self, tokens: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Encodes the inputs of the encoder, int32 ``[B, T]`` each, as float32 ``[B, D]``."""
        graph = self._graph()
        if self._tuning is None:
            return tf.stop_gradient(graph.vectors(tokens))
        return self._tuning.differentiable(tokens)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        return tf.TensorShape(input_shape).concatenate([self.output_dim or self._width])

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TextTower:
        """Creates the tower of :meth:`get_config`; unlike that of Keras, it does not wrap errors about handles."""
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, with ``catalogue_shape`` instead of ``texts``, because the catalogue is a weight."""
        return (
            super().get_config()
            | self._text.model_dump(include={"encoder", "preprocessor", "mode", "max_tokens", "pooling"})
            | {
                "tuning": dict(self._tuning.settings) if self._tuning else None,
                "output_dim": self.output_dim,
                "seed": self.seed,
                "catalogue_shape": None if self.catalogue is None else self.catalogue.shape.as_list(),
            }
        )


def _inputs_of(tokens: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns token ids, int32 ``[B, T]``, padded with -1, as inputs of the encoder, cut to the longest text."""
    tf.debugging.assert_non_negative(tokens[:, 0], _NOT_LOADED)
    mask = tf.cast(tokens >= 0, tf.int32)
    width = tf.maximum(tf.reduce_max(tf.reduce_sum(mask, axis=1)), 1)  # 1 if there are no texts
    parts = (tf.maximum(tokens, 0), mask, tf.zeros_like(tokens))
    return {name: part[:, :width] for name, part in zip(INPUTS, parts, strict=True)}


def _checked(texts: Sequence[str]) -> Sequence[str]:
    """Returns the texts unchanged.

    Raises:
      ModelError: ``texts`` is a single string, or contains a value that is not a string.
    """
    wrong = [texts] if isinstance(texts, str) else [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise ModelError(f"texts: expected a list of strings, found {wrong[0]!r}; write '' for an item without text.")
    return texts

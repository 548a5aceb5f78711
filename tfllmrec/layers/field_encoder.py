"""Layers that turn the encoded values of fields into vectors, in a different way for each kind of field."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfllmrec.data.schema import FAR, MISSING_CODE, UNKNOWN_CODE, Field

DAY_S = 86_400.0


@tf.keras.utils.register_keras_serializable("tfllmrec")
class FieldEncoder(tf.keras.layers.Layer):
    """Turns the values of one field into vectors of width D; missing values have a vector of their own.

    The values are those that :meth:`tfllmrec.data.schema.Field.encode` returns. By kind of the field:

    - category: An embedding of the code, or the mean embedding where a cell holds several names. A value that does not
      occur in the training data counts as missing, unless the vocabulary was cut: then the training data have such
      values. So does a kind of event that only requests have.
    - number: A dense map of the position of the value within each bin between two quantiles (0 below the bin, 1 above
      it) and of its distance from the median, in units of the spread and clipped at 5 (piecewise-linear encoding:
      Gorishniy et al. 2022, "On embeddings for numerical features in tabular deep learning").
    - time: A dense map of sine and cosine of the hour of the day and of the day of the week (UTC). A time of an item,
      such as its release date, is also encoded as a number.
    - vector: A dense map.

    Texts are encoded by :class:`TextFieldEncoder`. Ids have no encoder, because an id tells nothing about users or
    items with other ids.

    Args:
      field: The field, with the vocabulary and the statistics of the training data.
      dim: The width D of the vectors.
      seed: Random seed of the initial weights.

    Raises:
      ValueError: The kind of the field has no encoder.
    """

    def __init__(self, field: Field | Mapping[str, Any], dim: int, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # seconds since 1970 need all their digits
        self.field = Field.of(field)
        if not _is_plain(self.field):
            raise ValueError(f"{self.field.key}: expected a category, number, time or vector, found {self.field.kind}.")
        self.dim, self.seed = dim, seed

    def build(self, input_shape: tf.TensorShape) -> None:
        glorot = tf.keras.initializers.GlorotUniform
        if self.field.kind == "category":
            normal = tf.keras.initializers.RandomNormal(stddev=0.05, seed=self.seed)
            self.table = self.add_weight("table", (self.field.size_in_data, self.dim), initializer=normal)
        else:
            self.kernel = self.add_weight("kernel", (self._features, self.dim), initializer=glorot(self.seed))
            self.missing = self.add_weight("missing", (self.dim,), initializer="zeros")
        super().build(input_shape)

    @property
    def _features(self) -> int:
        edges = len(self.field.edges)
        return {"number": max(edges, 1), "time": 4 + edges}.get(self.field.kind, self.field.width)

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """Maps encoded values, ``[...]`` or ``[..., width]``, to vectors ``[..., D]``."""
        if self.field.kind == "category":
            values = tf.where(_is_in_data(self.field, values), values, MISSING_CODE)
            return self._mean(values) if self.field.width else tf.gather(self.table, values)
        if self.field.kind != "vector":
            values = values[..., tf.newaxis]
        there = tf.reduce_all(tf.math.is_finite(values), -1, keepdims=True)
        known = tf.where(there, values, tf.zeros_like(values))
        vectors = tf.tensordot(tf.cast(self._numbers(known), self.compute_dtype), self.kernel, 1)
        return tf.where(there, vectors, self.missing)

    def _mean(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the mean vector of the names in each cell: codes ``[..., width]`` -> ``[..., D]``."""
        codes = tf.reshape(values, (-1, self.field.width))
        # A product with a sparse matrix: a gather would also read the padding, and take ``width`` times the memory.
        at = tf.where(codes != MISSING_CODE)
        names = tf.stack([at[:, 0], tf.cast(tf.gather_nd(codes, at), tf.int64)], axis=1)
        shape = tf.cast([tf.shape(codes)[0], self.field.size_in_data], tf.int64)
        table = tf.cast(self.table, tf.float32)
        sums = tf.sparse.sparse_dense_matmul(tf.SparseTensor(names, tf.ones(tf.shape(at)[0]), shape), table)
        number = tf.reduce_sum(tf.cast(codes != MISSING_CODE, tf.float32), axis=1, keepdims=True)
        mean = tf.where(number > 0, tf.math.divide_no_nan(sums, number), table[MISSING_CODE])
        return tf.reshape(tf.cast(mean, self.compute_dtype), tf.concat([tf.shape(values)[:-1], [self.dim]], axis=0))

    def _numbers(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the input of the dense map: scalars ``[..., 1]`` or vectors ``[..., width]`` -> ``[..., F]``."""
        if self.field.kind == "vector":
            return values
        if self.field.kind == "time":
            turns = tf.concat([values / DAY_S, values / (7 * DAY_S)], -1) % 1.0 * (2 * np.pi)
            cycles = [tf.sin(turns), tf.cos(turns)]
            return tf.concat([*cycles, self._on_a_scale(values)] if self.field.edges else cycles, -1)
        return self._on_a_scale(values)

    def _on_a_scale(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the distance from the median, in units of the spread, and the position within each bin (0 to 1)."""
        standard = tf.clip_by_value((values - self.field.median) / self.field.spread, -FAR, FAR)
        if len(self.field.edges) < 2:
            return standard
        low, high = (tf.constant(edges, values.dtype) for edges in (self.field.edges[:-1], self.field.edges[1:]))
        return tf.concat([standard, tf.clip_by_value((values - low) / (high - low), 0.0, 1.0)], -1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "field": asdict(self.field), "dim": self.dim, "seed": self.seed}


@tf.keras.utils.register_keras_serializable("tfllmrec")
class FieldsEncoder(tf.keras.layers.Layer):
    """The sum of the vectors of several fields, ``[..., D]``; the input is a mapping by the keys of the fields.

    Args:
      fields: The fields, such as ``schema.of_query()``; texts and ids among them are ignored.
      dim: The width D of the vectors.
      seed: Random seed of the initial weights.

    Raises:
      ValueError: None of the fields can be encoded.
    """

    @classmethod
    def of(cls, fields: Iterable[Field], dim: int, seed: int, **kwargs: Any) -> Self | None:
        """Creates the layer; returns ``None`` if no field can be encoded."""
        fields = list(fields)
        return cls(fields, dim, seed, **kwargs) if any(map(_is_plain, fields)) else None

    def __init__(self, fields: Iterable[Field | Mapping[str, Any]], dim: int, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        every = [Field.of(field) for field in fields]
        self.fields = [field for field in every if _is_plain(field)]
        if not self.fields:
            raise ValueError(f"Expected a category, number, time or vector among {[field.key for field in every]}.")
        self.dim, self.seed = dim, seed
        # A list, because Keras does not find the layers of a SavedModel in a dictionary whose keys contain dots.
        self.encoders = [
            FieldEncoder(field, dim, seed + place, name=f"field_{place}") for place, field in enumerate(self.fields)
        ]

    @property
    def keys(self) -> list[str]:
        """The keys that the input must contain."""
        return [field.key for field in self.fields]

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Sums the encoded fields of ``inputs``: all of :attr:`keys`, in shapes that can be broadcast to each other."""
        return functools.reduce(operator.add, [encoder(inputs[encoder.field.key]) for encoder in self.encoders])

    def missing(self) -> tf.Tensor:
        """Returns the vector of an input whose fields are all missing, ``[D]``."""
        shapes = {field.key: [field.width] * bool(field.width) for field in self.fields}
        return self(
            {field.key: tf.fill(shapes[field.key], tf.constant(field.padding, field.dtype)) for field in self.fields}
        )

    def get_config(self) -> dict[str, Any]:
        fields = [asdict(field) for field in self.fields]
        return {**super().get_config(), "fields": fields, "dim": self.dim, "seed": self.seed}


def _is_plain(field: Field) -> bool:
    return field.has_encoder and not field.is_read_text


@tf.keras.utils.register_keras_serializable("tfllmrec")
class TextFieldEncoder(tf.keras.layers.Layer):
    """Maps the text vectors ``x`` of a field into the space of the items: ``F(x) = W_text t + K t``.

    ``t`` is ``x`` minus :attr:`mean`, scaled to length 1. If ``x`` is a concatenation of vectors of several encoders,
    each is scaled separately, as in :func:`tfllmrec.text.centring.centred_unit`. ``W_text`` is the map of the items'
    own texts, so a text similar to that of an item is close to that item even before training. ``K`` is a map that
    belongs to this field and starts at 0. Missing texts have a vector of their own.

    Args:
      field: A text with a width, which is the width of ``x``.
      dim: The width D of the result.
      widths: The widths of the encoders' vectors that are concatenated in ``x``; ``None`` if there is one encoder.

    Attributes:
      mean: Float32 ``[width]``, the mean vector of the texts in the training data. It is not trained. It is part of the
        model, so that training and serving use the same mean.
    """

    def __init__(
        self, field: Field | Mapping[str, Any], dim: int, widths: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # vectors are centred in float32
        self.field = Field.of(field)
        if not self.field.is_read_text:
            raise ValueError(f"{self.field.key}: expected a text with a width, found {self.field.kind}.")
        self.dim = dim
        self.widths = [self.field.width] if widths is None else list(widths)

    def build(self, input_shape: tf.TensorShape) -> None:
        frozen = {"trainable": False, "dtype": tf.float32, "experimental_autocast": False}
        self.mean = self.add_weight("mean", (self.field.width,), initializer="zeros", **frozen)
        self.kernel = self.add_weight("kernel", (self.field.width, self.dim), initializer="zeros")
        self.missing = self.add_weight("missing", (self.dim,), initializer="zeros")
        super().build(input_shape)

    def call(self, values: tf.Tensor, text_map: tf.Tensor) -> tf.Tensor:
        """Maps text vectors to vectors ``[..., D]``.

        Args:
          values: Float32 ``[..., width]``, the vectors that the text encoder returned; NaN where there is no text.
          text_map: ``W_text``, ``[width, D]``.
        """
        there = tf.reduce_all(tf.math.is_finite(values), -1, keepdims=True)
        centred = tf.split(tf.where(there, values, self.mean) - self.mean, self.widths, axis=-1)
        unit = tf.concat([tf.math.l2_normalize(part, axis=-1, epsilon=1e-9) for part in centred], axis=-1)
        unit = tf.cast(unit * len(self.widths) ** -0.5, self.compute_dtype)
        both = tf.cast(text_map, self.compute_dtype) + tf.cast(self.kernel, self.compute_dtype)
        return tf.where(there, tf.tensordot(unit, both, 1), tf.cast(self.missing, self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "field": asdict(self.field), "dim": self.dim, "widths": self.widths}


@tf.keras.utils.register_keras_serializable("tfllmrec")
class TextFieldsEncoder(tf.keras.layers.Layer):
    """The sum of the vectors of several texts, ``[..., D]``; the input is a mapping by the keys of the fields.

    Args:
      fields: The fields; all except texts with a width are ignored.
      dim: The width D of the vectors.
      widths: As in :class:`TextFieldEncoder`.
    """

    def __init__(
        self,
        fields: Iterable[Field | Mapping[str, Any]],
        dim: int,
        widths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        every = [Field.of(field) for field in fields]
        self.fields = [field for field in every if field.is_read_text]
        self.dim, self.widths = dim, widths
        self.encoders = [
            TextFieldEncoder(field, dim, widths, name=f"text_{place}") for place, field in enumerate(self.fields)
        ]

    @classmethod
    def of(cls, fields: Iterable[Field], dim: int, widths: Sequence[int] | None, **kwargs: Any) -> Self | None:
        """Creates the layer; returns ``None`` if no field is a text with a width."""
        fields = list(fields)
        return cls(fields, dim, widths, **kwargs) if any(field.is_read_text for field in fields) else None

    def call(self, inputs: Mapping[str, tf.Tensor], text_map: tf.Tensor) -> tf.Tensor:
        """Sums the encoded texts.

        Args:
          inputs: The text vectors by the keys of the fields, in shapes that can be broadcast to each other.
          text_map: As in :class:`TextFieldEncoder`.
        """
        return functools.reduce(
            operator.add, [encoder(inputs[encoder.field.key], text_map) for encoder in self.encoders]
        )

    def missing(self) -> tf.Tensor:
        """Returns the vector of an input whose texts are all missing, ``[D]``."""
        return tf.add_n([tf.cast(encoder.missing, self.compute_dtype) for encoder in self.encoders])

    def get_config(self) -> dict[str, Any]:
        fields = [asdict(field) for field in self.fields]
        return {**super().get_config(), "fields": fields, "dim": self.dim, "widths": self.widths}


def is_given(field: Field, values: tf.Tensor) -> tf.Tensor:
    """Returns which encoded values of a field are not missing: ``[...]`` or ``[..., width]`` -> bool ``[...]``.

    A category that does not occur in the training data counts as missing, as in :class:`FieldEncoder`.
    """
    there = tf.math.is_finite(values) if values.dtype.is_floating else _is_in_data(field, values)
    return tf.reduce_any(there, axis=-1) if field.width else there


def _is_in_data(field: Field, codes: tf.Tensor) -> tf.Tensor:
    """Returns which codes of a category stand for values of the training data, bool of the same shape.

    Unknown values are among them only if the vocabulary was cut; otherwise their vector would be random.
    """
    return (codes > (MISSING_CODE if field.dropped else UNKNOWN_CODE)) & (codes < field.size_in_data)

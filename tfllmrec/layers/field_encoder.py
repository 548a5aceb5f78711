"""Encoded values of a field to vectors, one way for each kind."""

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
    """The values of one field as vectors of one width; a missing value is a vector of its own.

    Values come as :meth:`tfllmrec.data.schema.Field.encode` gives them. By kind:

    - category: an embedding of each code; the mean of them where a cell holds several names. A value that training did
      not have counts as missing, unless the vocabulary was cut: then training has such values.
    - number: how far the value has come through each bin between two quantiles (0 before it, 1 after it), and its
      distance from the median in spreads, clipped at 5, through a dense map (piecewise-linear encoding: Gorishniy et
      al. 2022, "On embeddings for numerical features in tabular deep learning").
    - time: sine and cosine of the hour of the day and of the day of the week (UTC), through a dense map. A time of an
      item, such as its release, is encoded as a number, too.
    - vector: a dense map.

    Texts are encoded by :class:`TextFieldEncoder`. Ids have no encoder, because an id says nothing about users or items
    with other ids.

    Args:
      field: with the vocabulary and statistics of training.
      dim: D. seed: of the initial weights.

    Raises:
      ValueError: the kind has no encoder.
    """

    def __init__(self, field: Field | Mapping[str, Any], dim: int, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # seconds since 1970 need all their digits
        self.field = field if isinstance(field, Field) else Field(**field)
        if not _is_plain(self.field):
            raise ValueError(f"{self.field.key}: expected a category, number, time or vector, found {self.field.kind}.")
        self.dim, self.seed = dim, seed

    def build(self, input_shape: tf.TensorShape) -> None:
        glorot = tf.keras.initializers.GlorotUniform
        if self.field.kind == "category":
            normal = tf.keras.initializers.RandomNormal(stddev=0.05, seed=self.seed)
            self.table = self.add_weight("table", (self.field.size, self.dim), initializer=normal)
        else:
            self.kernel = self.add_weight("kernel", (self._features, self.dim), initializer=glorot(self.seed))
            self.missing = self.add_weight("missing", (self.dim,), initializer="zeros")
        super().build(input_shape)

    @property
    def _features(self) -> int:
        edges = len(self.field.edges)
        return {"number": max(edges, 1), "time": 4 + edges}.get(self.field.kind, self.field.width)

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """Encoded values, ``[...]`` or ``[..., width]`` -> ``[..., D]``."""
        if self.field.kind == "category":
            if not self.field.dropped:  # then training has no unknown values, and their vector would be noise
                values = tf.where(values == UNKNOWN_CODE, MISSING_CODE, values)
            return self._mean(values) if self.field.width else tf.gather(self.table, values)
        if self.field.kind != "vector":
            values = values[..., tf.newaxis]
        there = tf.reduce_all(tf.math.is_finite(values), -1, keepdims=True)
        known = tf.where(there, values, tf.zeros_like(values))
        vectors = tf.tensordot(tf.cast(self._numbers(known), self.compute_dtype), self.kernel, 1)
        return tf.where(there, vectors, self.missing)

    def _mean(self, values: tf.Tensor) -> tf.Tensor:
        """The mean vector of the names of each cell, ``[..., width]`` -> ``[..., D]``."""
        codes = tf.reshape(values, (-1, self.field.width))
        # As a product with a sparse matrix: vectors of all names and of the padding would take width times the memory.
        at = tf.where(codes != MISSING_CODE)
        names = tf.stack([at[:, 0], tf.cast(tf.gather_nd(codes, at), tf.int64)], axis=1)
        shape = tf.cast([tf.shape(codes)[0], self.field.size], tf.int64)
        table = tf.cast(self.table, tf.float32)
        sums = tf.sparse.sparse_dense_matmul(tf.SparseTensor(names, tf.ones(tf.shape(at)[0]), shape), table)
        number = tf.reduce_sum(tf.cast(codes != MISSING_CODE, tf.float32), axis=1, keepdims=True)
        mean = tf.where(number > 0, tf.math.divide_no_nan(sums, number), table[MISSING_CODE])
        return tf.reshape(tf.cast(mean, self.compute_dtype), tf.concat([tf.shape(values)[:-1], [self.dim]], axis=0))

    def _numbers(self, values: tf.Tensor) -> tf.Tensor:
        """What is mapped: ``[..., 1]`` numbers or times, or ``[..., width]`` vectors -> ``[..., F]``."""
        if self.field.kind == "vector":
            return values
        if self.field.kind == "time":
            turns = tf.concat([values / DAY_S, values / (7 * DAY_S)], -1) % 1.0 * (2 * np.pi)
            cycles = [tf.sin(turns), tf.cos(turns)]
            return tf.concat([*cycles, self._on_a_scale(values)] if self.field.edges else cycles, -1)
        return self._on_a_scale(values)

    def _on_a_scale(self, values: tf.Tensor) -> tf.Tensor:
        """The distance from the median in spreads, and how far the value has come through each bin."""
        standard = tf.clip_by_value((values - self.field.median) / self.field.spread, -FAR, FAR)
        if len(self.field.edges) < 2:
            return standard
        low, high = (tf.constant(edges, values.dtype) for edges in (self.field.edges[:-1], self.field.edges[1:]))
        return tf.concat([standard, tf.clip_by_value((values - low) / (high - low), 0.0, 1.0)], -1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "field": asdict(self.field), "dim": self.dim, "seed": self.seed}


@tf.keras.utils.register_keras_serializable("tfllmrec")
class FieldsEncoder(tf.keras.layers.Layer):
    """The sum of the encoded fields of an input mapping, by their keys: ``[..., D]``.

    Args:
      fields: those to read, such as ``schema.of_query()``; texts and ids are left out.
      dim: D. seed: of the initial weights.

    Raises:
      ValueError: no field can be encoded.
    """

    @classmethod
    def of(cls, fields: Iterable[Field], dim: int, seed: int, **kwargs: Any) -> Self | None:
        """The layer; ``None`` where no field can be encoded."""
        plain = [field for field in fields if _is_plain(field)]
        return cls(plain, dim, seed, **kwargs) if plain else None

    def __init__(self, fields: Iterable[Field | Mapping[str, Any]], dim: int, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        every = [field if isinstance(field, Field) else Field(**field) for field in fields]
        self.fields = [field for field in every if _is_plain(field)]
        if not self.fields:
            raise ValueError(f"Expected a category, number, time or vector among {[field.key for field in every]}.")
        self.dim, self.seed = dim, seed
        # A list: Keras finds no layer of a SavedModel in a dictionary whose keys have dots.
        self.encoders = [
            FieldEncoder(field, dim, seed + place, name=f"field_{place}") for place, field in enumerate(self.fields)
        ]

    @property
    def keys(self) -> list[str]:
        """The keys of the fields that an input needs."""
        return [field.key for field in self.fields]

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The mapping that holds every field of :attr:`keys`, in shapes that can be broadcast to each other."""
        return functools.reduce(operator.add, [encoder(inputs[encoder.field.key]) for encoder in self.encoders])

    def missing(self) -> tf.Tensor:
        """The vector of an input of which every field is missing, ``[D]``."""
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
    """A field of texts as vectors in the space of the items: ``F(x) = W_text t + K t``.

    ``t`` is the vector ``x`` of the text minus :attr:`mean`, scaled to length 1 (of several encoders one by one, as in
    :func:`tfllmrec.text.centring.centred_unit`). ``W_text`` is the map of the items' own texts, so a text that reads
    like an item points to that item before anything is learned. ``K`` is a map of the field's own and starts at 0. A
    missing text is a vector of its own.

    Args:
      field: a text with a width, that of ``x``.
      dim: D.
      widths: the widths of the encoders' vectors concatenated in ``x``; ``None``: there is one encoder.

    Attributes:
      mean: float32 ``[width]``, not trained: the mean vector of the texts of training. It is part of the model, so
        training and serving cannot differ.
    """

    def __init__(
        self, field: Field | Mapping[str, Any], dim: int, widths: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # vectors are centred in float32
        self.field = field if isinstance(field, Field) else Field(**field)
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
        """Vectors of texts ``[..., width]``, NaN where there is no text, -> ``[..., D]``.

        Args:
          values: float32, as the encoder gives them.
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
    """The sum of the encoded texts of an input mapping, by the keys of their fields: ``[..., D]``.

    Args:
      fields: those to read; all but texts with a width are left out.
      dim: D. widths: as in :class:`TextFieldEncoder`.
    """

    def __init__(
        self,
        fields: Iterable[Field | Mapping[str, Any]],
        dim: int,
        widths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        every = [field if isinstance(field, Field) else Field(**field) for field in fields]
        self.fields = [field for field in every if field.is_read_text]
        self.dim, self.widths = dim, widths
        self.encoders = [
            TextFieldEncoder(field, dim, widths, name=f"text_{place}") for place, field in enumerate(self.fields)
        ]

    @classmethod
    def of(cls, fields: Iterable[Field], dim: int, widths: Sequence[int] | None, **kwargs: Any) -> Self | None:
        """The layer; ``None`` where no field is a text with a width."""
        texts = [field for field in fields if field.is_read_text]
        return cls(texts, dim, widths, **kwargs) if texts else None

    def call(self, inputs: Mapping[str, tf.Tensor], text_map: tf.Tensor) -> tf.Tensor:
        """The mapping that holds every field, in shapes that can be broadcast to each other."""
        return functools.reduce(
            operator.add, [encoder(inputs[encoder.field.key], text_map) for encoder in self.encoders]
        )

    def missing(self) -> tf.Tensor:
        """The vector of an input of which every text is missing, ``[D]``."""
        return tf.add_n([tf.cast(encoder.missing, self.compute_dtype) for encoder in self.encoders])

    def get_config(self) -> dict[str, Any]:
        fields = [asdict(field) for field in self.fields]
        return {**super().get_config(), "fields": fields, "dim": self.dim, "widths": self.widths}


def is_given(field: Field, values: tf.Tensor) -> tf.Tensor:
    """Which encoded values of a field are there, bool: ``[...]`` or ``[..., width]`` -> ``[...]``.

    A category that training did not have counts as missing, as in :class:`FieldEncoder`.
    """
    if values.dtype.is_floating:
        there = tf.math.is_finite(values)
    else:
        there = values > (MISSING_CODE if field.dropped else UNKNOWN_CODE)
    return tf.reduce_any(there, axis=-1) if field.width else there

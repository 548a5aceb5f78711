"""Combines the fields of the request and its user with the encoded history."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import tensorflow as tf

from tfllmrec.columns import TIMESTAMP
from tfllmrec.data.schema import Field
from tfllmrec.layers.field_encoder import FieldsEncoder, TextFieldsEncoder, is_given
from tfllmrec.layers.history_encoder import causal_mask
from tfllmrec.layers.newest_events import at_event
from tfllmrec.layers.seeded_dropout import SeededDropout
from tfllmrec.layers.time_gaps import TimeGaps

#: Shares of targets for which training hides the history, and the fields of the request and its user, and share of
#: histories whose event fields it hides. A served model gets users without a history and requests with ids alone.
HIDDEN_HISTORIES, HIDDEN_FIELDS, HIDDEN_EVENT_FIELDS = 0.1, 0.1, 0.1


@tf.keras.utils.register_keras_serializable("tfllmrec")
class EventFusion(tf.keras.layers.Layer):
    """Encodes the fields of each event of a history as vectors ``[B, L, D]``, which are added to the item vectors.

    The result is the sum of the encoded fields, including texts, and of the encoded time since the previous event if
    events have times. A learned scalar that starts at 0 scales the sum, so training starts from the items alone. In
    training, the fields of the share :data:`HIDDEN_EVENT_FIELDS` of the histories are hidden.

    Args:
      fields: The fields of events, with keys ``event.NAME``.
      dim: The width D of the vectors.
      seed: Random seed of the initial weights and the dropout.
      text_widths: As ``widths`` in :class:`~tfllmrec.layers.field_encoder.TextFieldEncoder`.
    """

    def __init__(
        self,
        fields: Iterable[Field | Mapping[str, Any]],
        dim: int,
        seed: int,
        text_widths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.dim, self.seed, self.text_widths = dim, seed, text_widths
        every = [Field.of(field) for field in fields]
        self.fields = [field for field in every if field.has_encoder]
        self.encoder = FieldsEncoder.of(self.fields, dim, seed, name="fields")
        self.texts = TextFieldsEncoder.of(self.fields, dim, text_widths, name="texts")
        has_times = any(field.name == TIMESTAMP for field in self.fields)
        self.gaps = TimeGaps(dim, seed + 50, name="gaps") if has_times else None
        self.hide = SeededDropout(HIDDEN_EVENT_FIELDS, seed + 70, noise_shape=(None, 1, 1), name="hide")
        self.strength = self.add_weight(name="strength", shape=(), initializer="zeros")

    def call(
        self, query: Mapping[str, tf.Tensor], text_map: tf.Tensor | None = None, training: bool | None = None
    ) -> tf.Tensor:
        """Returns the vectors of events, ``[B, L, D]``.

        Args:
          query: The fields by their keys, ``[B, L]`` each, texts ``[B, L, width]``. A text may have one column for all
            events, ``[B, 1, width]``. If all fields are such texts, the result is ``[B, 1, D]``.
          text_map: The map of the items' own texts, ``[width, D]``; required if there are texts.
          training: Whether fields are hidden.
        """
        parts, unknown = [], []
        if self.encoder is not None:
            parts.append(self.encoder(query))
            unknown.append(self.encoder.missing())
        if self.texts is not None:
            parts.append(self.texts(query, text_map))
            unknown.append(self.texts.missing())
        if self.gaps is not None:
            times = query[f"event.{TIMESTAMP}"]
            before = tf.pad(times[:, :-1], [[0, 0], [1, 0]], constant_values=float("nan"))
            parts.append(self.gaps(before, times))
            unknown.append(self.gaps.missing())
        result, missing = functools.reduce(operator.add, parts), tf.add_n(unknown)
        given = self.hide(tf.ones_like(result[..., :1]), training=training) > 0
        return tf.where(given, result, missing) * tf.cast(self.strength, result.dtype)

    def get_config(self) -> dict[str, Any]:
        fields = [asdict(field) for field in self.fields]
        sizes = {"dim": self.dim, "seed": self.seed, "text_widths": self.text_widths}
        return {**super().get_config(), "fields": fields, **sizes}


@tf.keras.utils.register_keras_serializable("tfllmrec")
class QueryFusion(tf.keras.layers.Layer):
    """Combines the history with the fields of the request and its user: ``q_t = z_t + A(z_t; x_1 .. x_t) + F(z_t)``.

    Here ``z_t = h_t + W p_t + s_t``. ``h_t`` is the state of the history encoder after event t. ``p_t`` is the sum of
    the encoded fields of the user and of the request for the event after t. ``s_t`` is the sum of their texts in the
    space of the items (:class:`~tfllmrec.layers.field_encoder.TextFieldEncoder`), so before training, ``q_t`` of a text
    without a history is close to the items with similar texts. ``A`` is attention of ``z_t`` over the events up to t,
    so that, for example, events in the evening can count more for a request in the evening. ``F`` is a two-layer
    feed-forward map.

    The fields are combined with the history here, and are not tokens before it, because each target of a training
    sequence has its own request: one pass of the history encoder is enough for all targets.

    In training, the history is hidden for the share :data:`HIDDEN_HISTORIES` of the targets, so that ``q`` is also
    learned for users without a history, and the fields for the share :data:`HIDDEN_FIELDS`. Two scalars are chosen on
    validation data and not trained: ``reads`` (with 0, fields other than texts are treated as missing, because they do
    not help) and ``alone``, which scales ``q`` of a query without a history relative to the popularity of items (with
    0, only popularity counts).

    Args:
      fields: The fields of requests and users; ids and texts without a width are ignored.
      dim: The width D of the vectors.
      heads: The number of attention heads.
      dropout: The dropout rate of the encoded fields.
      seed: Random seed of the initial weights and the dropout.
      text_widths: As ``widths`` in :class:`~tfllmrec.layers.field_encoder.TextFieldEncoder`.
    """

    def __init__(
        self,
        fields: Iterable[Field | Mapping[str, Any]],
        dim: int,
        heads: int,
        dropout: float,
        seed: int,
        text_widths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.dim, self.heads, self.rate, self.seed, self.text_widths = dim, heads, dropout, seed, text_widths
        every = [Field.of(field) for field in fields]
        self.fields = [field for field in every if field.has_encoder]
        self.encoder = FieldsEncoder.of(self.fields, dim, seed, name="fields")
        self.texts = TextFieldsEncoder.of(self.fields, dim, text_widths, name="texts")
        has_times = any(field.key == f"request.{TIMESTAMP}" for field in self.fields)
        self.gaps = TimeGaps(dim, seed + 50, name="gaps") if has_times else None
        glorot = tf.keras.initializers.GlorotUniform
        dense = tf.keras.layers.Dense
        if self.encoder is not None:
            self.profile_map = dense(dim, kernel_initializer=glorot(seed + 60), name="profile_map")
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="norm")
        self.query_map = dense(dim, kernel_initializer=glorot(seed + 61), name="query")
        self.key_map = dense(dim, kernel_initializer=glorot(seed + 62), name="key")
        self.value_map = dense(dim, kernel_initializer=glorot(seed + 63), name="value")
        self.output_map = dense(dim, kernel_initializer="zeros", name="output")
        self.widen = dense(4 * dim, "gelu", kernel_initializer=glorot(seed + 64), name="widen")
        self.narrow = dense(dim, kernel_initializer="zeros", name="narrow")
        self.dropout = SeededDropout(dropout, seed + 70, name="profile_dropout")
        self.hide_history = SeededDropout(HIDDEN_HISTORIES, seed + 71, name="hide_history")
        self.hide_fields = SeededDropout(HIDDEN_FIELDS, seed + 72, name="hide_fields")
        frozen = {"shape": (), "trainable": False, "dtype": tf.float32, "experimental_autocast": False}
        self.reads = self.add_weight(name="reads", initializer="ones", **frozen)
        self.alone = self.add_weight(name="alone", initializer="zeros", **frozen)

    def call(
        self,
        state: tf.Tensor,
        events: tf.Tensor,
        present: tf.Tensor,
        query: Mapping[str, tf.Tensor],
        text_map: tf.Tensor | None = None,
        training: bool | None = None,
        fields_given: tf.Tensor | None = None,
        last: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns query vectors, ``[B, L, D]``, or ``[B, 1, D]`` if ``last`` is given.

        Args:
          state: ``[B, L, D]``, the state of the history encoder after each event; ``[B, 1, D]`` with ``last``.
          events: ``[B, L, D]``, the input of the history encoder.
          present: Bool ``[B, L]``, False for padding.
          query: The fields by their keys: those of the request ``[B]``, or ``[B, L]`` if each target has its own, and
            those of the user ``[B]``. A field whose values have several numbers has another dimension. If the request
            has a time, ``event.timestamp`` ``[B, L]`` is also required.
          text_map: The map of the items' own texts, ``[width, D]``; required if there are texts.
          training: Whether dropout is applied, and histories and fields are hidden.
          fields_given: Float32 ``[B]``, the weight of the fields, from 0 (as if all were missing) to 1; by default 1.
          last: Int32 ``[B]``, a position of each row. If it is given, only the query vectors after these events are
            returned.
        """
        there = at_event(tf.cast(present, self.compute_dtype)[..., tf.newaxis], last)
        known = self.hide_history(there, training=training) > 0
        shown = self.hide_fields(tf.ones_like(known, self.compute_dtype), training=training) > 0
        # The state at absent positions is undefined.
        z = tf.where(known, state, tf.zeros_like(state))
        if self.encoder is not None:
            profile = self.profile(query, known, shown & (self.reads > 0), fields_given, last)
            z += self.profile_map(self.dropout(profile, training=training))
        if self.texts is not None:
            said = self.texts({f.key: self._spread(f, query[f.key]) for f in self.texts.fields}, text_map)
            missing = self.texts.missing()
            z += tf.where(shown, _partly(missing, said, fields_given), missing)
        normed = self.norm(z)
        attended = self._attended(normed, events, present, last)
        return z + tf.where(known, attended, tf.zeros_like(attended)) + self.narrow(self.widen(normed))

    def profile(
        self,
        query: Mapping[str, tf.Tensor],
        known: tf.Tensor,
        given: tf.Tensor,
        fields_given: tf.Tensor | None = None,
        last: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Encodes the fields of a request and its user, except texts, ``[B, L, D]``, or ``[B, 1, D]`` with ``last``.

        Only for a layer with such fields, that is, with an ``encoder``.

        Args:
          query: As in :meth:`call`.
          known: Bool ``[B, L, 1]``, where there is a history, and it is not hidden.
          given: Bool ``[B, L, 1]``, where the fields are not hidden.
          fields_given: As in :meth:`call`.
          last: As in :meth:`call`.
        """
        assert self.encoder is not None
        values = {field.key: self._spread(field, query[field.key]) for field in self.encoder.fields}
        profile, missing = self.encoder(values), self.encoder.missing()
        if self.gaps is not None:
            unknown = self.gaps.missing()
            gaps = self.gaps(at_event(query[f"event.{TIMESTAMP}"], last), values[f"request.{TIMESTAMP}"])
            profile += tf.where(known, gaps, unknown)
            missing += unknown
        profile = _partly(missing, profile, fields_given)
        return tf.cast(tf.where(given, profile, missing), self.compute_dtype)

    @staticmethod
    def _spread(field: Field, values: tf.Tensor) -> tf.Tensor:
        """Reshapes values to ``[B, 1]`` or ``[B, L]``, followed by the width of the field."""
        return values if len(values.shape) == 2 + bool(field.width) else values[:, tf.newaxis]

    def _attended(self, z: tf.Tensor, events: tf.Tensor, present: tf.Tensor, last: tf.Tensor | None) -> tf.Tensor:
        """Computes the attention of each position, or of ``last``, over the events up to it, ``[B, L, D]``."""
        sizes = [self.heads, self.dim // self.heads]
        query, key, value = (
            tf.transpose(tf.reshape(of, tf.concat([tf.shape(of)[:2], sizes], axis=0)), (0, 2, 1, 3))
            for of in (self.query_map(z), self.key_map(events), self.value_map(events))
        )
        logits = tf.matmul(query, key, transpose_b=True) * tf.cast((self.dim // self.heads) ** -0.5, z.dtype)
        mask_bias = at_event(causal_mask(present), last, axis=2)
        weights = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32) + mask_bias), z.dtype)
        mixed = tf.transpose(tf.matmul(weights, value), (0, 2, 1, 3))
        return self.output_map(tf.reshape(mixed, tf.shape(z)))

    def given(self, query: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns which requests have a value of at least one field that is read, bool ``[B]``."""
        any_of = [is_given(field, query[field.key]) & (field.is_read_text | (self.reads > 0)) for field in self.fields]
        return tf.reduce_any(tf.stack(any_of), axis=0)

    def get_config(self) -> dict[str, Any]:
        fields = [asdict(field) for field in self.fields]
        sizes = {"dim": self.dim, "heads": self.heads, "dropout": self.rate, "seed": self.seed}
        return {**super().get_config(), "fields": fields, **sizes, "text_widths": self.text_widths}


def _partly(missing: tf.Tensor, there: tf.Tensor, share: tf.Tensor | None) -> tf.Tensor:
    """Interpolates ``[B, L, D]`` from ``missing`` to ``there`` by ``share``, float32 ``[B]``; ``None`` counts as 1."""
    if share is None:
        return there
    return missing + tf.cast(share[:, tf.newaxis, tf.newaxis], there.dtype) * (there - missing)

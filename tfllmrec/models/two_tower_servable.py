"""Wraps any two-tower model, that is a query model and item vectors, as :class:`tfllmrec.models.servable.Servable`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from tfllmrec.columns import USER
from tfllmrec.config import Section
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import Field, Schema, padding_of
from tfllmrec.errors import ModelError
from tfllmrec.layers.rows_of import rows_of
from tfllmrec.models.folding import Folded
from tfllmrec.models.hybrid import Catalogue
from tfllmrec.models.servable import SCORE_BATCH, Query, empty_query, spec_of
from tfllmrec.progress import Tell

#: The id of the user, for models that know users by id; a request passes it in its context as ``user_id=42``.
USER_FIELD = Field(USER, "user", "id")


class TwoTowerServable:
    """A two-tower model with the score ``<query_model(u), v_i>``; the popularity if nothing is known of a query.

    Args:
      query_model: A Keras model or layer, another ``tf.Module``, or a method of one. It takes the input described by
        ``takes`` and returns float32 ``[B, D]``.
      vectors: The item vectors ``v_i``, float32 ``[N, D]``.
      train_counts: Number of training events of each item, int ``[N]``.
      schema: The fields of the data.
      takes: The input of the query model. With a list of keys, it is a mapping with ``history`` and these fields. With
        a single key as a string, such as ``history`` or ``user.user_id``, it is that tensor. With ``None``, it is a
        mapping with ``history`` and all fields of events, requests and users. ``history`` has item indices, int32
        ``[B, L]``, left-aligned and padded with N. Fields are encoded by :meth:`tfllmrec.data.schema.Field.encode`:
        those of requests and users as ``[B]`` (vectors ``[B, width]``), those of events as ``[B, L]``.

    Raises:
      ModelError: The query model is a plain function or returns vectors of another width, ``vectors`` are not finite or
        do not fit the counts, or the schema lacks a field.
    """

    term_names = ("score",)
    history_length = 1000
    rows_at_once = SCORE_BATCH
    reads_texts = ()  # the query model gets texts as strings

    def __init__(
        self,
        query_model: Callable[..., tf.Tensor],
        vectors: np.ndarray,
        train_counts: np.ndarray,
        schema: Schema,
        takes: str | Sequence[str] | None = None,
    ) -> None:
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or len(vectors) != len(train_counts) or not np.isfinite(vectors).all():
            raise ModelError(
                f"The vectors of the items: expected finite numbers [{len(train_counts)}, D], a row for each item of "
                f"the data in its order; found shape {list(vectors.shape)}."
            )
        fields = {field.key: field for field in (*schema.of_inputs(), USER_FIELD)}
        if takes is None:
            takes = [key for key in fields if key != USER_FIELD.key]
        self._alone = takes if isinstance(takes, str) else None
        keys = [key for key in ([takes] if isinstance(takes, str) else takes) if key != "history"]
        if missing := [key for key in keys if key not in fields]:
            raise ModelError(
                f"The query model takes {', '.join(missing)}: expected history or fields of the data: "
                f"{', '.join(fields)}."
            )
        self.reads = tuple(keys)
        self.ignored: Sequence[str] = ()
        self._fields = [fields[key] for key in keys]
        self.n_items = len(vectors)
        self.query_spec = {"history": tf.TensorSpec((None, None), tf.int32)} | {
            key: spec_of(fields[key]) for key in keys
        }
        self.train_counts = tf.Variable(train_counts, trainable=False, dtype=tf.float32, name="train_counts")
        lengths = np.linalg.norm(vectors, axis=1)
        self._unit = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)[:, np.newaxis]
        self.lengths = tf.Variable(lengths, trainable=False, dtype=tf.float32, name="lengths")
        self._query_model, self._module = query_model, getattr(query_model, "__self__", query_model)
        if not isinstance(self._module, tf.Module):
            raise ModelError(
                "query_model: expected a Keras model or layer, another tf.Module, or a method of one, because its "
                f"variables are exported with it; found a {type(query_model).__name__}."
            )
        self._query_fields = [(field.key, field.padding) for field in self._fields if field.owner != "event"]
        found = self._query_vectors(empty_query(self.query_spec, self.n_items)).shape
        if found != (1, vectors.shape[1]):
            raise ModelError(
                f"The query model gives vectors of shape {list(found)} for one query; expected "
                f"[1, {vectors.shape[1]}], as wide as the vectors of the items."
            )
        # A separate tf.function, because it may need AutoGraph, and the exported signatures are traced without it.
        self._query_model = tf.function(query_model, reduce_retracing=True)
        self._score_batch = tf.function(
            self.score_items,
            input_signature=[tf.TensorSpec((None, None), tf.float32), self.query_spec],
            autograph=False,
        )

    @property
    def settings(self) -> Mapping[str, Section]:
        return {}

    @property
    def learned(self) -> list[np.ndarray]:
        variables = [resource for resource in self.resources if isinstance(resource, tf.Variable)]
        return [self._unit, *(variable.numpy() for variable in variables)]

    @property
    def resources(self) -> list[Any]:
        kinds = (tf.Variable, tf.saved_model.experimental.TrackableResource)
        inside = tf.train.TrackableView(self._module).descendants()
        return [self.train_counts, self.lengths, *(resource for resource in inside if isinstance(resource, kinds))]

    def query_inputs(self, queries: Queries, length: int | None = None) -> dict[str, np.ndarray]:
        return with_user_ids(queries).with_missing(self._fields).inputs(self.n_items, self.reads, length)

    def item_vectors(self) -> tf.Tensor:
        return tf.constant(self._unit)

    def fold(self) -> Folded:
        return _FoldedTowers(self)

    def score_items(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        scores = tf.matmul(self._query_vectors(query), item_vectors, transpose_b=True) * self.lengths
        return tf.where(self.nothing_known(query)[:, tf.newaxis], tf.math.log1p(self.train_counts), scores)

    def choices(self, query: Query) -> Query:
        """Returns the query: how events are weighed is not known here."""
        return query

    def request_vectors(self, query: Query) -> tf.Tensor:
        """Returns float32 ``[B, 0]``: how the query model encodes fields is not known here."""
        return tf.zeros((tf.shape(query["history"])[0], 0))

    def terms_of_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> tf.Tensor:
        """Returns the score as the only term, float32 ``[B, M, 1]``; 0 for a query of which nothing is known."""
        vectors = rows_of(item_vectors, items) * rows_of(self.lengths, items)[..., tf.newaxis]
        scores = tf.einsum("bmd,bd->bm", vectors, self._query_vectors(query))
        return tf.where(self.nothing_known(query)[:, tf.newaxis], 0.0, scores)[..., tf.newaxis]

    def terms_after(
        self, item_vectors: tf.Tensor, query: Query, row: tf.Tensor, at: tf.Tensor, items: tf.Tensor
    ) -> tf.Tensor:
        known = tf.range(tf.shape(query["history"])[1]) <= at[:, tf.newaxis]
        before = {}
        for key, values in query.items():
            before[key] = tf.gather(values, row)
            if key == "history" or key.startswith("event."):
                padding = self.n_items if key == "history" else padding_of(np.dtype(values.dtype.as_numpy_dtype))
                there = tf.reshape(known, tf.concat([tf.shape(known), tf.ones(values.shape.rank - 2, tf.int32)], 0))
                before[key] = tf.where(there, before[key], tf.constant(padding, values.dtype))
        return self.terms_of_items(item_vectors, before, items)

    def explain_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the score as the only term, ``score``. The event behind it is not known, so ``because`` is -1."""
        there = items < self.n_items
        scores = self.terms_of_items(item_vectors, query, tf.where(there, items, 0))[..., 0]
        return {"score": tf.where(there, scores, 0.0), "because": tf.fill(tf.shape(items), -1)}

    def score(self, queries: Queries) -> np.ndarray:
        """Scores all items for each query, float32 ``[B, N]``, without masking, as ``Recommender`` requires."""
        scores = np.empty((len(queries), self.n_items), np.float32)
        for start in range(0, len(queries), SCORE_BATCH):
            inputs = self.query_inputs(queries.slice(start, start + SCORE_BATCH))
            query = {key: tf.constant(values, self.query_spec[key].dtype) for key, values in inputs.items()}
            scores[start : start + SCORE_BATCH] = self._score_batch(self._unit, query)
        return scores

    def extend(self, catalogue: Catalogue, text: np.ndarray, histories: Ragged, tell: Tell) -> NoReturn:
        raise ModelError(
            "A two-tower model is not extended here, because the vectors of new items come from its own candidate "
            "model: export it again with a data set that has the new items."
        )

    def nothing_known(self, query: Query) -> tf.Tensor:
        """Returns which queries have no event and no field of the request or its user, bool ``[B]``."""
        known = tf.reduce_any(query["history"] < self.n_items, axis=1)
        for key, padding in self._query_fields:
            values = query[key]
            given = tf.math.is_finite(values) if values.dtype.is_floating else values != padding
            known |= tf.reduce_any(tf.reshape(given, [tf.shape(values)[0], -1]), axis=1)
        return ~known

    def _query_vectors(self, query: Query) -> tf.Tensor:
        taken = query[self._alone] if self._alone else {key: query[key] for key in ("history", *self.reads)}
        return tf.cast(self._query_model(taken), tf.float32)


class _FoldedTowers(Folded):
    def __init__(self, model: TwoTowerServable) -> None:
        vectors = model.item_vectors().numpy() * model.lengths.numpy()[:, np.newaxis]
        super().__init__(vectors, np.log1p(model.train_counts.numpy()))
        # Storing methods instead of the model keeps the Keras model out of a SavedModel.
        self._query_vectors, self._nothing_known = model._query_vectors, model.nothing_known

    def queries(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        return tf.where(self._nothing_known(query)[:, tf.newaxis], 0.0, self._query_vectors(query))

    def nothing_known(self, query: Query) -> tf.Tensor:
        return self._nothing_known(query)


def with_user_ids(queries: Queries) -> Queries:
    """Returns the queries with :data:`USER_FIELD` added to their fields."""
    return replace(queries, fields={**queries.fields, USER_FIELD.key: queries.user_ids})

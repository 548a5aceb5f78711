"""The interface of models that can be exported, used by a ranking model, and extended with new items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tensorflow as tf

from tfllmrec.config import Section
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import Field, padding_of
from tfllmrec.models.folding import Folded
from tfllmrec.progress import Tell

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Catalogue

#: Number of queries that are scored at once.
SCORE_BATCH = 128
Query = Mapping[str, tf.Tensor]
"""The inputs of B queries: ``history`` int32 ``[B, L]``, left-aligned and padded with N, and fields by their keys."""


class Servable(Protocol):
    """A model of N items whose score is an inner product plus a sparse sum, so that an item index can rank by it.

    Every argument ``item_vectors`` is the result of :meth:`item_vectors`, or the same as a constant. Every ``query``
    has ``history`` and the fields of :attr:`reads`; its history may have any length.
    """

    @property
    def n_items(self) -> int:
        """The number of items, N."""

    @property
    def reads(self) -> Sequence[str]:
        """Keys of the fields that a query needs in addition to its ``history``."""

    @property
    def query_spec(self) -> dict[str, tf.TensorSpec]:
        """Types and shapes of ``history`` and of the fields of :attr:`reads`."""

    def query_inputs(self, queries: Queries, length: int | None = None) -> dict[str, np.ndarray]:
        """Returns the inputs of the model for ``queries``; fields that ``queries`` lack are filled with missing values.

        Texts of events that are read as vectors may have fewer columns than ``history``: without a ``length``, only the
        newest :attr:`history_length` events have columns; if all texts are missing, there is a single column.

        Args:
          queries: The queries.
          length: As in :meth:`Queries.inputs`.
        """

    @property
    def rows_at_once(self) -> int:
        """Number of queries whose :meth:`query_inputs` fit in memory at once, at most :data:`SCORE_BATCH`."""

    @property
    def reads_texts(self) -> Sequence[str]:
        """Keys of the fields whose texts are read as vectors of the query encoder; NaN where there is no text."""

    @property
    def ignored(self) -> Sequence[str]:
        """Keys among :attr:`reads` whose values have no effect, because lists are no better with them."""

    @property
    def history_length(self) -> int:
        """Largest number of events of a history that are read; the newest ones are."""

    @property
    def train_counts(self) -> tf.Variable:
        """Number of training events of each item, float32 ``[N]``."""

    @property
    def term_names(self) -> Sequence[str]:
        """Names of the terms whose sum is the score."""

    @property
    def settings(self) -> Mapping[str, Section]:
        """The config sections that the model was created with, by name."""

    @property
    def learned(self) -> list[np.ndarray]:
        """The trained values, in a fixed order."""

    @property
    def resources(self) -> list[Any]:
        """Variables and lookup tables that the functions below read; a SavedModel must contain them."""

    def item_vectors(self) -> tf.Tensor:
        """Returns the unit vectors of the items, float32 ``[N, D]``; zeros for an item of which nothing is known."""

    def fold(self) -> Folded:
        """Returns the score in the form that an item index ranks by; later changes of the model do not affect it."""

    def score_items(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        """Returns the score of every item, float32 ``[B, N]``; the popularity if nothing is known of a query."""

    def explain_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the terms of the scores of some items, and the event behind each score.

        Args:
          item_vectors, query: See the class.
          items: Item indices, int32 ``[B, M]``; N for an unknown item.

        Returns:
          The terms by :attr:`term_names`, float32 ``[B, M]`` each; and ``because``, the position in the history of the
          event behind each score, int32 ``[B, M]``, -1 if there is none.
        """

    def choices(self, query: Query) -> Query:
        """Returns ``history`` and ``event.rating`` of the choices alone: without rejections and impressions."""

    def request_vectors(self, query: Query) -> tf.Tensor:
        """Returns the encoded fields of the request and its user, float32 ``[B, F]``; F is 0 if none are read."""

    def terms_of_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> tf.Tensor:
        """Returns the terms of the scores of some items, float32 ``[B, M, T]``.

        Args:
          item_vectors, query: See the class.
          items: Item indices, int32 ``[B, M]``; all must be in the catalogue.
        """

    def terms_after(
        self, item_vectors: tf.Tensor, query: Query, row: tf.Tensor, at: tf.Tensor, items: tf.Tensor
    ) -> tf.Tensor:
        """Returns the :meth:`terms_of_items` for histories that end earlier, float32 ``[R, M, T]``.

        Args:
          item_vectors: See the class.
          query: The queries, with at most :attr:`history_length` events.
          row: Rows of the query, int32 ``[R]``.
          at: Position of the last known event, int32 ``[R]``.
          items: Item indices, int32 ``[R, M]``.
        """

    def score(self, queries: Queries) -> np.ndarray:
        """Scores all items for each query, float32 ``[B, N]``, without masking, as ``Recommender`` requires."""

    def extend(self, catalogue: Catalogue, text: np.ndarray, histories: Ragged, tell: Tell) -> Servable:
        """Returns the model for a larger catalogue, without training.

        Args:
          catalogue: The N items in their order, followed by the new ones; texts may have changed.
          text: The text vectors that the model was fitted with, float32 ``[N, Dt]``.
          histories: The histories of the training events.
          tell: Called with a line of text for each step.

        Raises:
          ModelError: The model does not support items that it was not fitted with, or the catalogue lacks a field that
            it reads.
        """


def spec_of(field: Field) -> tf.TensorSpec:
    """Returns the type and shape of a field in a query.

    The shape is ``[B, L]`` for fields of events and ``[B]`` for others, followed by the width of the field, if any.
    """
    sizes = [None, *([None] if field.owner == "event" else []), *([field.width] if field.width else [])]
    return tf.TensorSpec(sizes, tf.string if field.dtype == object else field.dtype)


def empty_query(spec: Mapping[str, tf.TensorSpec], n_items: int) -> Query:
    """Returns a query of which nothing is known; all its sizes are 1."""
    padding = {key: padding_of(np.dtype(one.dtype.as_numpy_dtype)) for key, one in spec.items()} | {"history": n_items}
    return {
        key: tf.fill([size or 1 for size in one.shape], tf.constant(padding[key], one.dtype))
        for key, one in spec.items()
    }

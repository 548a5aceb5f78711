"""What a model needs to be exported, to be ranked with and to be extended with new items."""

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

#: Queries that are scored at once.
SCORE_BATCH = 128
Query = Mapping[str, tf.Tensor]
"""What is known of B queries: ``history`` int32 ``[B, L]``, left-aligned, padded with N, and fields by their keys."""


class Servable(Protocol):
    """A model of N items whose score is an inner product and a sparse sum, so that an item index can answer for it.

    Every argument ``item_vectors`` is the result of :meth:`item_vectors`, or the same as a constant. Every ``query``
    holds ``history`` and the fields of :attr:`reads`; its history may have any length.
    """

    @property
    def n_items(self) -> int:
        """N."""

    @property
    def reads(self) -> Sequence[str]:
        """Keys of the fields that a query needs beside its ``history``."""

    @property
    def query_spec(self) -> dict[str, tf.TensorSpec]:
        """Types and shapes of a query: of ``history`` and of the fields of :attr:`reads`."""

    def query_inputs(self, queries: Queries, length: int | None = None) -> dict[str, np.ndarray]:
        """The arrays of a query for each of ``queries``; fields that these lack are missing.

        Args:
          length: as in :meth:`Queries.inputs`.
        """

    @property
    def reads_texts(self) -> Sequence[str]:
        """Keys of the fields whose texts are read as vectors: those of the encoder of queries, NaN for no text."""

    @property
    def history_length(self) -> int:
        """Events of a history that are read, the newest ones."""

    @property
    def train_counts(self) -> tf.Variable:
        """float32 ``[N]``, training events of each item."""

    @property
    def term_names(self) -> Sequence[str]:
        """Names of the terms that add up to a score."""

    @property
    def settings(self) -> Mapping[str, Section]:
        """The sections of a config that the model was made with, by their names."""

    @property
    def learned(self) -> list[np.ndarray]:
        """What training changed, in a fixed order."""

    @property
    def resources(self) -> list[Any]:
        """Variables and lookup tables that the functions below read: a SavedModel must hold them."""

    def item_vectors(self) -> tf.Tensor:
        """Unit vectors of the items, float32 ``[N, D]``; zeros for an item of which nothing is known."""

    def fold(self) -> Folded:
        """The score as an item index answers for it; later changes of the model do not reach it."""

    def score_items(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        """The score of every item, float32 ``[B, N]``; by popularity where nothing is known of a query."""

    def explain_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """The terms of the scores of ``items`` int32 ``[B, M]`` (N: unknown), and the event behind each.

        Returns:
          The terms by :attr:`term_names`, float32 ``[B, M]``; ``because`` int32 ``[B, M]``, a position in the history,
          -1 where no event is behind a score.
        """

    def terms_of_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> tf.Tensor:
        """The terms of ``items`` int32 ``[B, M]``, all of the catalogue: float32 ``[B, M, T]``."""

    def terms_after(
        self, item_vectors: tf.Tensor, query: Query, row: tf.Tensor, at: tf.Tensor, items: tf.Tensor
    ) -> tf.Tensor:
        """:meth:`terms_of_items`, had histories ended earlier: float32 ``[R, M, T]``.

        Args:
          row: int32 ``[R]``, rows of the query. at: int32 ``[R]``, position of the last event that is known; events
            are no more than :attr:`history_length`. items: int32 ``[R, M]``.
        """

    def score(self, queries: Queries) -> np.ndarray:
        """The ``Recommender`` contract: float32 ``[B, N]``, nothing masked."""

    def extend(self, catalogue: Catalogue, text: np.ndarray, histories: Ragged, tell: Tell) -> Servable:
        """The model over a larger catalogue, without training.

        Args:
          catalogue: the N items in their order, then the new ones; texts may have changed.
          text: float32 ``[N, Dt]``, the texts that the model was fitted with.
          histories: of the training events.
          tell: called with a line for each step.

        Raises:
          ModelError: the model knows nothing of items that were not there when it was fitted.
        """


def spec_of(field: Field) -> tf.TensorSpec:
    """Type and shape of a field in a query: ``[B, L]`` of events, ``[B]`` of others, followed by the width."""
    sizes = [None, *([None] if field.owner == "event" else []), *([field.width] if field.width else [])]
    return tf.TensorSpec(sizes, tf.string if field.dtype == object else field.dtype)


def empty_query(spec: Mapping[str, tf.TensorSpec], n_items: int) -> Query:
    """A query of which nothing is known, with sizes of 1."""
    padding = {key: padding_of(np.dtype(one.dtype.as_numpy_dtype)) for key, one in spec.items()} | {"history": n_items}
    return {
        key: tf.fill([size or 1 for size in one.shape], tf.constant(padding[key], one.dtype))
        for key, one in spec.items()
    }

"""Retrieves candidates with ScaNN's operations, instead of with cells. Stock TF Serving cannot load such an index.

Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.layers.item_cells import POINTS_PER_CELL, RECALL, RECALL_AT, SURE, exact_best

_FEWEST = 104  # candidates for a top 10 that are tried first
_DIMENSIONS, _ANISOTROPIC = 2, 0.2  # per code; ScaNN's authors advise both for inner products at lengths around 1
_ITERATIONS = 10


def scann_operations() -> Any:
    """Loads ScaNN's operations for graphs; afterwards, SavedModels that contain them can be loaded.

    Raises:
      ModelError: scann is not installed, or is built for another version of TensorFlow.
    """
    try:
        from scann.scann_ops.py import scann_ops
    except (ImportError, tf.errors.OpError) as error:
        raise ModelError(
            f"An index of the form scann needs ScaNN's operations ({error}): pip install -e '.[scann]', or export "
            "with another --index."
        ) from error
    return scann_ops


class Scann(tf.Module):
    """A ScaNN searcher: a tree of cells and a 4-bit code for every two numbers of a vector, without the vectors.

    All functions of a model share one searcher, until :meth:`release`. With ScaNN's own module, each function would
    have its own searcher, and the runtime would keep it after a served model is unloaded.

    Attributes:
      cells: The number of cells.
      probes: The number of cells to search.
      candidates: The number of items to fetch for a top 10.
      recall: The recall of the exact top 10 on the queries on which ``probes`` and ``candidates`` were chosen.

    Args:
      vectors: Float32 ``[N, D]``, N at least 16; their lengths may differ. ScaNN has no seed, so cells and codes may
        differ slightly between runs.
      queries: Float32 ``[Q, D]``, a sample of the queries to expect; a few thousand.
      exclude: Int32 ``[Q, E]``, the items that must not be returned for each query, N for none; by default nothing.

    Raises:
      ModelError: See :func:`scann_operations`.
    """

    def __init__(self, vectors: np.ndarray, queries: np.ndarray, exclude: np.ndarray | None = None) -> None:
        super().__init__(name="scann")
        operations = scann_operations()
        self.cells = round(2 * math.sqrt(len(vectors)))
        # The codes suit lengths around 1, and a common factor of all vectors does not change the order.
        length = np.sqrt(np.einsum("nd,nd->", vectors, vectors, dtype=np.float64) / len(vectors)) or 1.0
        effort = {"training_sample_size": self.cells * POINTS_PER_CELL, "training_iterations": _ITERATIONS}
        made = (
            operations.builder(vectors / np.float32(length), RECALL_AT, "dot_product")
            .tree(self.cells, 1, **effort)
            .score_ah(_DIMENSIONS, _ANISOTROPIC, **effort)
            .build()
        )
        try:
            self._measure(made, vectors, queries, exclude)
            parts = operations.scann_to_tensors(made.searcher_handle)
        finally:
            tf.raw_ops.DestroyResourceOp(resource=made.searcher_handle)
        # Parts that this kind of searcher does not have are scalars of arbitrary value.
        self._parts = [tf.Variable(x if x.shape.rank else tf.zeros_like(x), trainable=False) for x in parts]
        self._name = f"tfllmrec-{uuid.uuid4()}"

    def near(self, query: tf.Tensor, probes: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        """Returns up to ``candidates`` items from the nearest cells: int32 ``[M]``, each once.

        M is smaller than ``candidates`` if the cells contain fewer items: unlike the rows of a batch, the result of a
        single query is not padded.

        Args:
          query: Float32 ``[D]``.
          probes: The number of cells to search.
          candidates: The largest number of items.
        """
        found = scann_operations().scann_search(self._searcher(), query, candidates, candidates, probes).index
        return tf.ensure_shape(found, [None])

    def prepare(self) -> None:
        """Creates the searcher in advance; else two functions that use it first at the same time both create it."""
        self._searcher()

    def release(self) -> None:
        """Destroys the searcher; the next use creates it again."""
        tf.raw_ops.DestroyResourceOp(resource=self._searcher())

    def _measure(self, made: Any, vectors: np.ndarray, queries: np.ndarray, exclude: np.ndarray | None) -> None:
        """Chooses ``candidates`` and then ``probes``. The codes may cause half of the permitted misses."""
        best = exact_best(vectors, queries, exclude)
        out = np.zeros(len(queries), int) if exclude is None else (exclude < len(vectors)).sum(axis=1)

        def recall(candidates: int, probes: int, least: float) -> tuple[float, bool]:
            served = np.minimum(candidates + out, len(vectors))  # as many as the index fetches for each query
            longest = int(served.max())
            found = made.search_batched(queries, longest, longest, probes)
            mean, error = recall_of_lists(found.indices.numpy(), found.distances.numpy(), served, best)
            return mean, mean - SURE * error >= least

        self.candidates = _FEWEST
        while self.candidates < len(vectors) and not recall(self.candidates, self.cells, (1 + RECALL) / 2)[1]:
            self.candidates *= 2
        low, self.probes = 0, self.cells  # the smallest number that suffices is above ``low``
        while self.probes - low > 1:
            middle = (low + self.probes) // 2
            if recall(self.candidates, middle, RECALL)[1]:
                self.probes = middle
            else:
                low = middle
        self.recall = recall(self.candidates, self.probes, RECALL)[0]

    def _searcher(self) -> tf.Tensor:
        """Returns the handle of the searcher shared under ``self._name``; the first use creates it."""
        *parts, vectors = self._parts
        return scann_operations().tensors_to_scann(vectors, *parts, shared_name=self._name)


def recall_of_lists(
    lists: np.ndarray, scores: np.ndarray, lengths: np.ndarray, best: np.ndarray
) -> tuple[float, float]:
    """Returns the mean recall of ``best`` over the queries, and its standard error.

    Args:
      lists: Int ``[Q, M]``, items, the best first. ScaNN pads a short row with item 0.
      scores: Float ``[Q, M]``, NaN for padding.
      lengths: Int ``[Q]``, the number of items that count at the start of each row.
      best: Int ``[Q, 10]``, the exact top 10.
    """
    counts = (np.arange(lists.shape[1]) < lengths[:, np.newaxis]) & ~np.isnan(scores)
    recalls = np.array([np.isin(row, found[some]).mean() for row, found, some in zip(best, lists, counts, strict=True)])
    return float(recalls.mean()), float(recalls.std() / math.sqrt(len(recalls)))

"""Candidates by ScaNN's operations, in the place of cells; for an index that stock TF Serving is not to load.

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

_FEWEST = 104  # candidates for a top 10, to begin with
_DIMENSIONS, _ANISOTROPIC = 2, 0.2  # to a code; what its authors advise for inner products of lengths around 1
_ITERATIONS = 10


def scann_operations() -> Any:
    """ScaNN's operations for graphs; from now on a SavedModel that has some can be loaded.

    Raises:
      ModelError: scann is not installed, or is made for another TensorFlow.
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
    """A tree of cells, and a code of 4 bits for every two numbers of a vector; no vector itself.

    All functions of a model share one searcher, until :meth:`release`. As ScaNN's own module makes them, each function
    has one of its own, and the runtime keeps them when a served model has long been unloaded.

    Attributes:
      cells: how many there are.
      probes: how many of them to look into.
      candidates: how many items to fetch for a top 10.
      recall: of the exact top 10 on the queries that ``probes`` and ``candidates`` were chosen on.

    Args:
      vectors: float32 ``[N, D]``, N at least 16; lengths may differ. ScaNN takes no seed: cells and codes may differ a
        little from one time to the next.
      queries: float32 ``[Q, D]``, a sample of what will be asked; a few thousand.
      exclude: int32 ``[Q, E]``, what must not come back for each, N for none; by default nothing.

    Raises:
      ModelError: see :func:`scann_operations`.
    """

    def __init__(self, vectors: np.ndarray, queries: np.ndarray, exclude: np.ndarray | None = None) -> None:
        super().__init__(name="scann")
        operations = scann_operations()
        self.cells = round(2 * math.sqrt(len(vectors)))
        # Codes are made for lengths around 1, and one factor for all changes no order.
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
        # What this kind of searcher lacks is a scalar of any value.
        self._parts = [tf.Variable(x if x.shape.rank else tf.zeros_like(x), trainable=False) for x in parts]
        self._name = f"tfllmrec-{uuid.uuid4()}"

    def near(self, query: tf.Tensor, probes: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        """Up to so many ``candidates`` for float32 ``[D]`` from the nearest cells: items int32 ``[M]``, each once.

        Where the cells hold fewer there are fewer: unlike a batch, one query's answer is not filled up.
        """
        found = scann_operations().scann_search(self._searcher(), query, candidates, candidates, probes).index
        return tf.ensure_shape(found, [None])

    def prepare(self) -> None:
        """Has the searcher made: two functions that ask at the same time, each for the first, would both make it."""
        self._searcher()

    def release(self) -> None:
        """Gives the searcher up; who asks after that has it made anew."""
        tf.raw_ops.DestroyResourceOp(resource=self._searcher())

    def _measure(self, made: Any, vectors: np.ndarray, queries: np.ndarray, exclude: np.ndarray | None) -> None:
        """Chooses ``candidates`` and then ``probes``: half of what may be missed is missed by the codes."""
        best = exact_best(vectors, queries, exclude)
        out = np.zeros(len(queries), int) if exclude is None else (exclude < len(vectors)).sum(axis=1)

        def recall(candidates: int, probes: int, least: float) -> tuple[float, bool]:
            served = np.minimum(candidates + out, len(vectors))  # as many as the index fetches for each
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
        """The handle of what all that have the name share; made by who asks first."""
        *parts, vectors = self._parts
        return scann_operations().tensors_to_scann(vectors, *parts, shared_name=self._name)


def recall_of_lists(
    lists: np.ndarray, scores: np.ndarray, lengths: np.ndarray, best: np.ndarray
) -> tuple[float, float]:
    """How much of ``best`` int ``[Q, 10]`` is found: the mean over the queries, and its standard error.

    Args:
      lists: int ``[Q, M]``, items, the best first. ScaNN fills a short row up with item 0.
      scores: float ``[Q, M]``, NaN where a row is only filled up.
      lengths: int ``[Q]``, how much of each row counts.
    """
    counts = (np.arange(lists.shape[1]) < lengths[:, np.newaxis]) & ~np.isnan(scores)
    recalls = np.array([np.isin(row, found[some]).mean() for row, found, some in zip(best, lists, counts, strict=True)])
    return float(recalls.mean()), float(recalls.std() / math.sqrt(len(recalls)))

"""Explores tail items in the lists that a server returns, with :mod:`tfllmrec.feedback.exploration`.

The server requests more items from the model than the client wants. The additional items, which have passed the same
filters and rules, are the candidates for exploration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfllmrec.client.inputs import MOST_REASONS
from tfllmrec.client.status import RequestError
from tfllmrec.columns import ITEM
from tfllmrec.data.files.event_log import EXPOSURES, NUMBER, LogReader
from tfllmrec.feedback.event_log import Exposure
from tfllmrec.feedback.exploration import Exploration
from tfllmrec.server.lists import text_of
from tfllmrec.server.tensors import STRING, Tensors
from tfllmrec.server.work import Work

#: Number of items that are requested in addition to the list; fewer if these are too much work.
CANDIDATES = 100
#: Number of newest shown items of a log that are counted when the server starts.
COUNTED = 1_000_000
#: Rules of a request that order the list as a whole, so that another item at a position would violate them. The same
#: holds for pinned items.
LIST_RULES = ("diversity", "category_cap", "tail_share")
_LARGEST_K = np.iinfo(np.int32).max - CANDIDATES


@dataclass(frozen=True)
class Explored:
    """An answer whose lists were explored.

    Attributes:
      outputs: The outputs, with the width that the client requested.
      propensity: Float64 ``[B, K]``, the probability of the item at each position.
      items: The number of explored items.
      loss: The expected loss of all lists, in the unit of the scores.
    """

    outputs: Tensors
    propensity: np.ndarray
    items: int
    loss: float


class Explorer:
    """Explores lists, and counts how often items were shown.

    Args:
      settings: The settings, with the method ``uniform``.
      log: The folder of the event log, which contains the items that were shown before.
      rng: The random generator; by default a new one.
    """

    def __init__(self, settings: Exploration, log: Path, rng: np.random.Generator | None = None) -> None:
        self._settings = settings
        self._rng = np.random.default_rng() if rng is None else rng
        with LogReader(log) as reader:
            self._exposures: Counter[str] = Counter(
                dict(
                    reader.rows(
                        f"SELECT {ITEM}, count(*) FROM {EXPOSURES} WHERE {NUMBER} > ? GROUP BY 1",
                        reader.last(EXPOSURES) - COUNTED,
                    )
                )
            )

    def count(self, exposures: Iterable[Exposure]) -> None:
        """Counts logged items."""
        self._exposures.update(exposure.item_id for exposure in exposures)

    def deeper(self, inputs: Mapping[str, np.ndarray], work: Callable[[Tensors], Work]) -> tuple[Tensors, Work] | None:
        """Returns the inputs of a request with a larger ``k`` in the rows to explore, and their work.

        If an explored position gets a reason, reasons are requested for all candidates of its row.

        Args:
          inputs: The checked inputs of a recommending signature of a model exported by tfllmrec.
          work: Returns the work of inputs; raises :class:`RequestError` if it is too much.

        Returns:
          The inputs and their work; ``None`` if no list is explored.
        """
        k, reasons = inputs["k"], inputs.get("reasons")
        free = k > 0
        for name in LIST_RULES:
            if name in inputs:
                free = free & (inputs[name] <= 0)
        if "pinned" in inputs:
            free = free & np.all(inputs["pinned"] == b"", axis=1)
        candidates = CANDIDATES if free.any() else 0
        while candidates:
            more = np.where(free, np.minimum(k, _LARGEST_K) + candidates, k).astype(k.dtype)
            deeper = {**inputs, "k": more}
            if reasons is not None:
                told = free & (reasons > 0) & (reasons > k - self._settings.places)
                deeper["reasons"] = np.where(told, np.minimum(more, MOST_REASONS), reasons).astype(reasons.dtype)
            try:
                return deeper, work(deeper)
            except RequestError:
                candidates //= 2
        return None

    def explored(self, inputs: Mapping[str, np.ndarray], outputs: Tensors) -> Explored:
        """Explores the lists of an answer, except those whose scores do not descend, as with sponsored items.

        Args:
          inputs: The checked inputs of the client.
          outputs: The outputs for the inputs that :meth:`deeper` returned. Rows with the ``k`` of the client have no
            candidates.
        """
        ids, scores, k = outputs["item_ids"], outputs["scores"], np.maximum(inputs["k"], 0)
        rows, width = len(ids), int(min(k.max(initial=0), ids.shape[1]))
        order = np.tile(np.arange(width), (rows, 1))
        propensity, items, loss = np.ones((rows, width)), 0, 0.0
        told = np.full(rows, width)
        there = np.asarray(ids != b"", bool).sum(axis=1)
        for row, length in enumerate(np.minimum(k, there)):
            n = there[row]
            if not np.isfinite(scores[row, :n]).all() or (np.diff(scores[row, :n]) > 0).any():
                continue
            shown = np.array([self._exposures[text_of(item)] for item in ids[row, :n]])
            plan = self._settings.plan(range(n), scores[row, :n], shown, int(length))
            choice = plan.draw(self._rng)
            order[row, :length], propensity[row, :length] = choice.items.astype(np.intp), choice.propensity
            items, loss = items + int(choice.explored.sum()), loss + plan.expected_loss
            if "reasons" in inputs:
                told[row] = inputs["reasons"][row]
        place = np.arange(width)
        ends = {"reasons": np.minimum(k, told)}
        chosen = {
            name: _chosen(tensor, ids.shape, order, place >= ends.get(name, k)[:, np.newaxis])
            for name, tensor in outputs.items()
        }
        return Explored(chosen, propensity, items, loss)


def _chosen(tensor: np.ndarray, shape: tuple[int, ...], order: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Reorders an output with a value for each item; other outputs are returned unchanged.

    Args:
      tensor: The output.
      shape: The shape of an output with a value for each item.
      order: Int64 ``[B, K]``, the chosen positions.
      beyond: Bool ``[B, K]``, the positions that are replaced by padding.
    """
    if tensor.shape != shape:
        return tensor
    chosen = np.take_along_axis(tensor, order, axis=1)
    chosen[beyond] = b"" if tensor.dtype == STRING else 0
    return chosen

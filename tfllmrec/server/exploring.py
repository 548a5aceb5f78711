"""Explores tail items in the lists that a server returns, as :mod:`tfllmrec.feedback.exploration` says.

A model is asked for more items than the client wants. The further ones, which have passed the same filters and rules,
are the candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfllmrec.columns import ITEM
from tfllmrec.data.files.event_log import EXPOSURES, NUMBER, LogReader
from tfllmrec.feedback.event_log import Exposure
from tfllmrec.feedback.exploration import Exploration
from tfllmrec.server.lists import text_of
from tfllmrec.server.tensors import STRING, Tensors

#: Items that a model is asked for beyond the list.
CANDIDATES = 100
#: The newest shown items of a log, which are counted when the server starts.
COUNTED = 1_000_000
#: Rules of a request that order a list as a whole: another item at a place would break them.
LIST_RULES = ("diversity", "category_cap", "tail_share")
_LARGEST_K = np.iinfo(np.int32).max - CANDIDATES


@dataclass(frozen=True)
class Explored:
    """An answer whose lists were explored.

    Attributes:
      outputs: as wide as the client asked for. propensity: float64 ``[B, K]``, of the item at each place.
      items: how many items were explored. loss: the expected loss of all lists, in the unit of the scores.
    """

    outputs: Tensors
    propensity: np.ndarray
    items: int
    loss: float


class Explorer:
    """Explores lists, and counts how often items were shown.

    Args:
      settings: of the method ``uniform``.
      log: the folder of the event log, which has the items that were shown before.
      rng: for tests.
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
        """Counts items that were logged."""
        self._exposures.update(exposure.item_id for exposure in exposures)

    def deeper(self, inputs: Mapping[str, np.ndarray]) -> Tensors | None:
        """The inputs of a request with a larger ``k``; ``None`` if its lists are not explored.

        Args:
          inputs: of a signature of ours that recommends, checked.
        """
        pinned = inputs.get("pinned")
        if any(np.any(inputs[name] > 0) for name in LIST_RULES if name in inputs):
            return None
        if pinned is not None and np.any(pinned != b""):
            return None
        k = inputs["k"]
        return {**inputs, "k": np.where(k > 0, np.minimum(k, _LARGEST_K) + CANDIDATES, k).astype(k.dtype)}

    def explored(self, k: np.ndarray, outputs: Tensors) -> Explored:
        """Explores the lists of an answer.

        Args:
          k: int32 ``[B]``, the lengths that the client asked for.
          outputs: of the inputs that :meth:`deeper` gave.
        """
        ids, scores = outputs["item_ids"], outputs["scores"]
        rows, width = len(ids), int(min(max(k.max(initial=0), 0), ids.shape[1]))
        order = np.tile(np.arange(width), (rows, 1))
        propensity, items, loss = np.ones((rows, width)), 0, 0.0
        there = np.asarray(ids != b"", bool).sum(axis=1)
        for row, length in enumerate(np.minimum(k, there)):
            if length < self._settings.places:
                continue
            n = there[row]
            shown = np.array([self._exposures[text_of(item)] for item in ids[row, :n]])
            plan = self._settings.plan(range(n), scores[row, :n], shown, int(length))
            choice = plan.draw(self._rng)
            order[row, :length], propensity[row, :length] = choice.items.astype(np.intp), choice.propensity
            items, loss = items + int(choice.explored.sum()), loss + plan.expected_loss
        beyond = np.arange(width) >= k[:, np.newaxis]
        chosen = {name: _chosen(tensor, ids.shape, order, beyond) for name, tensor in outputs.items()}
        return Explored(chosen, propensity, items, loss)


def _chosen(tensor: np.ndarray, shape: tuple[int, ...], order: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """What an output has at the places ``order`` int64 ``[B, K]``, if it has a value for each item."""
    if tensor.shape != shape:
        return tensor
    chosen = np.take_along_axis(tensor, order, axis=1)
    chosen[beyond] = b"" if tensor.dtype == STRING else 0
    return chosen

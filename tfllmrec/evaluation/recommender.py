"""The one contract that a fitted model, a baseline and an exported SavedModel all keep."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from tfllmrec.data.queries import Queries


@runtime_checkable
class Recommender(Protocol):
    """Scores the whole catalogue for a batch of queries.

    Masking of excluded items is not its business: the caller does that (the evaluation, or the exported signature).
    """

    def score(self, queries: Queries) -> np.ndarray:
        """Returns float32 ``[B, N]``, higher is better, finite for every item (cold ones included)."""
        ...

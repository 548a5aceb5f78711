"""The common interface of fitted models, baselines and exported SavedModels."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from tfllmrec.data.queries import Queries


@runtime_checkable
class Recommender(Protocol):
    """A model that scores the whole catalogue for a batch of queries.

    The caller (the evaluation, or the exported signature) masks excluded items.
    """

    def score(self, queries: Queries) -> np.ndarray:
        """Returns float32 ``[B, N]``, higher is better, finite for every item (cold ones included)."""
        ...

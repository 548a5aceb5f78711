"""Whether a model may replace the one in use: both on the same queries, in each stratum."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tfllmrec.data.queries import Queries
from tfllmrec.evaluation.protocol import Result, paired_differences
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import MIN_TARGETS, list_length

STRATA = ("", "/head", "/tail", "/cold")


@dataclass(frozen=True)
class Compared:
    """Two models in one stratum.

    Attributes:
      stratum: ``all``, ``head``, ``tail`` or ``cold``.
      targets: what is asked for there.
      in_use, updated: the metric of the verdict.
      low, high: of the paired 95 % bootstrap interval of ``updated - in_use``.
      with_new_items: that of the model in use, had it the new items; ``None``: not measured.
    """

    stratum: str
    targets: int
    in_use: float
    updated: float
    low: float
    high: float
    with_new_items: float | None = None

    @property
    def worse(self) -> bool:
        """Whether the updated model is worse beyond chance: the interval is below 0."""
        return self.high < 0


@dataclass(frozen=True)
class Verdict:
    """Whether an updated model may replace the one in use.

    Attributes:
      passed: whether it may.
      reasons: why not, a line each.
      strata: the figures; a stratum of fewer than :data:`~tfllmrec.evaluation.report.MIN_TARGETS` targets is left out.
      tolerance: how much lower the metric may be over all queries, as a share.
      metric: ndcg@10, or that of the longest list where there is none of 10.
    """

    passed: bool
    reasons: list[str]
    strata: list[Compared]
    tolerance: float
    metric: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict_of(updated: Result, in_use: Result, tolerance: float, with_new_items: Result | None = None) -> Verdict:
    """Compares two results on the same queries.

    The updated model passes if it is worse beyond chance in no stratum (:func:`paired_differences`), and its ndcg@10 of
    all queries is at least ``1 - tolerance`` times that of the model in use. Without enough targets to compare, it
    does not pass.

    Args:
      updated, in_use, with_new_items: with values per query.
      tolerance: 0 to 1.

    Raises:
      ModelError: other queries.
    """
    metric = f"ndcg@{list_length({'': updated})}"
    labels = [metric + suffix for suffix in STRATA if metric + suffix in updated.per_query]
    differences = paired_differences(updated, in_use, labels)
    strata = []
    for label in labels:
        name = label.partition("/")[2]
        targets = updated.counts[f"targets/{name}" if name else "targets"]
        if targets < MIN_TARGETS or label not in differences:
            continue
        figures = [
            None if result is None else float(np.nanmean(result.per_query[label]))
            for result in (in_use, updated, with_new_items)
        ]
        assert figures[0] is not None and figures[1] is not None
        low, high = differences[label][1:]
        strata.append(Compared(name or "all", targets, figures[0], figures[1], low, high, figures[2]))
    reasons = [
        f"{each.stratum}: worse beyond chance ({metric} {each.updated:.4f} against {each.in_use:.4f}, difference "
        f"between {each.low:+.4f} and {each.high:+.4f} with 95 % confidence)"
        for each in strata
        if each.worse
    ]
    if not strata or strata[0].stratum != "all":
        reasons.append(f"too few held-out events to compare: expected at least {MIN_TARGETS}, found "
                       f"{updated.counts['targets']}")  # fmt: skip
    elif (every := strata[0]).updated < every.in_use * (1 - tolerance):
        reasons.append(
            f"all: {metric} {every.updated:.4f} is more than {tolerance:.1%} below {every.in_use:.4f}: to accept it, "
            "make the run again with a higher tolerance: --set update.tolerance=SHARE"
        )
    return Verdict(not reasons, reasons, strata, tolerance, metric)


def without_queries(result: Result, left_out: np.ndarray, targets: dict[str, int]) -> Result:
    """The values per query of a result without some queries, bool ``[B]``; ``targets``: its counts then."""
    per_query = {label: np.where(left_out, np.nan, values) for label, values in result.per_query.items()}
    return replace(result, per_query=per_query, counts=result.counts | targets)


@dataclass(frozen=True, eq=False)
class OfEarlierCatalogue:
    """A model of an earlier catalogue, as it would be served: it ignores items that it does not know.

    Those items have the lowest score, so they are recommended last.

    Attributes:
      model: of M items.
      places: int64 ``[N]``, the place of each item of the catalogue in that of the model; -1: it is not there.
    """

    model: Recommender
    places: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        scores = np.asarray(self.model.score(queries.renumbered(self.places)))
        known = self.places >= 0
        of_all = np.empty((len(scores), len(known)), np.float32)
        of_all[:, known] = scores[:, self.places[known]]
        of_all[:, ~known] = scores.min(axis=1, keepdims=True) - 1.0
        return of_all

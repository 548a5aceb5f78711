"""Decides whether a model may replace the one in use, by comparing both on the same queries in each stratum."""

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
    """A comparison of two models in one stratum.

    Attributes:
      stratum: ``all``, ``head``, ``tail`` or ``cold``.
      targets: The number of targets in the stratum.
      in_use, updated: The metric of the verdict for each model.
      low, high: The ends of the paired 95 % bootstrap interval of ``updated - in_use``.
      with_new_items: The metric of the model in use if the new items are added to it; ``None``: not measured.
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
    """The decision whether an updated model may replace the one in use.

    Attributes:
      passed: Whether the updated model may replace the one in use.
      reasons: The reasons against it, one line each.
      strata: The comparisons. Strata with fewer than :data:`~tfllmrec.evaluation.report.MIN_TARGETS` targets are left
        out.
      tolerance: By what share the metric over all queries may be lower.
      metric: ``ndcg@10``, or ndcg of the longest list if there is none of 10.
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

    The updated model passes if it is worse beyond chance in no stratum (:func:`paired_differences`), and its metric
    over all queries is at least ``1 - tolerance`` times that of the model in use. Without enough targets to compare, it
    does not pass.

    Args:
      updated: The result of the updated model, with values per query.
      in_use: The result of the model in use, with values per query.
      tolerance: As :attr:`Verdict.tolerance`, 0 to 1.
      with_new_items: The result of the model in use with the new items, with values per query.

    Raises:
      ModelError: The results have different queries.
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
        below = f"all: {metric} {every.updated:.4f} is more than {tolerance:.1%} below {every.in_use:.4f}"
        accepted = ": to accept it, make the run again with a higher tolerance: --set update.tolerance=SHARE"
        reasons.append(below if reasons else below + accepted)
    return Verdict(not reasons, reasons, strata, tolerance, metric)


def without_queries(result: Result, left_out: np.ndarray, targets: dict[str, int]) -> Result:
    """Leaves queries out of the values per query of a result.

    Args:
      result: The result.
      left_out: Bool ``[B]``, the queries to leave out.
      targets: The counts of the targets of the remaining queries.
    """
    per_query = {label: np.where(left_out, np.nan, values) for label, values in result.per_query.items()}
    return replace(result, per_query=per_query, counts=result.counts | targets)


@dataclass(frozen=True, eq=False)
class OfEarlierCatalogue:
    """A model of an earlier catalogue, as it would be served: it ignores items that it does not know.

    These items have the lowest score, so they are recommended last.

    Attributes:
      model: The model, of M items.
      places: Int64 ``[N]``, the index of each item of the catalogue in that of the model; -1: it is not in it.
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

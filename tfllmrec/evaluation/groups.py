"""Computes metrics for groups of queries, such as those of each scene or of users of one gender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import MISSING_CODE, UNKNOWN_CODE, Field
from tfllmrec.evaluation.protocol import Result

MIN_QUERIES = 20
"""Groups with fewer queries with targets are not shown, like columns of the scoreboard with too few targets."""


def groups_of(queries: Queries, field: Field) -> dict[str, np.ndarray]:
    """Returns bool ``[B]`` for each value of a category of the request or its user: the queries that have it.

    The largest group comes first. Missing values and values that training did not have are together under ``""``.
    """
    codes = np.asarray(queries.fields[field.key])
    codes = np.where(codes == UNKNOWN_CODE, MISSING_CODE, codes)
    found, counts = np.unique(codes, return_counts=True)
    return {field.words(found[[at]])[0]: codes == found[at] for at in np.argsort(-counts, kind="stable")}


def figures_of_groups(
    results: Mapping[str, Result], groups: Mapping[str, np.ndarray], labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns ``{value: {"queries": n, "results": {recommender: {label: mean}}}}`` of groups with enough queries.

    Args:
      results: Results by name, with values per query.
      groups: The result of :func:`groups_of`.
      labels: Labels of ranking metrics, such as ``ndcg@10``.
    """
    found = {}
    for value, rows in groups.items():
        figures = {
            name: {label: known.mean() for label in labels if len(known := _known(result.per_query[label][rows]))}
            for name, result in results.items()
        }
        n = min((len(_known(result.per_query[labels[0]][rows])) for result in results.values()), default=0)
        if n >= MIN_QUERIES:
            plain = {name: {label: float(mean) for label, mean in means.items()} for name, means in figures.items()}
            found[value] = {"queries": n, "results": plain}
    return found


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]

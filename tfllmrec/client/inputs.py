"""Checks of a caller's arguments, for in-process and remote calls."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from ..errors import DataError

#: Stages of ``recommend`` that a request may skip.
STAGES = ("exclusion", "ranking")
#: The largest number that a signature takes: int32.
MOST = 2**31 - 1
#: The maximum number of items per list that get a reason; it bounds the work.
MOST_REASONS = 100


def count_of(k: int) -> int:
    """Returns ``k`` as an int.

    Raises:
      DataError: ``k`` is not a whole number above 0, or is larger than a signature takes.
    """
    try:
        count = operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise DataError(f"Expected k as a whole number above 0, got {k!r}.")
    if count > MOST:
        raise DataError(f"Expected k as at most {MOST}, got {k!r}.")
    return count


def searched_texts(texts: Sequence[str]) -> list[str]:
    """Returns the texts of searches as a list.

    Raises:
      DataError: The texts are not a list of strings, or one is blank: the list would be arbitrary.
    """
    found = listed_strings("texts", texts)
    for text in found:
        if not text.strip():
            raise DataError(f"No words to search for: expected a text with words, got {text!r}.")
    return found


def rule_inputs(
    rows: int,
    diversity: float | Sequence[float] = 0.0,
    pinned: Sequence[Sequence[str]] | None = None,
    category_cap: int | Sequence[int] = 0,
    tail_share: float | Sequence[float] = 0.0,
    skip: Sequence[str] = (),
    label_weights: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, list[Any]]:
    """Returns the inputs of ``recommend_full`` that select stages and rules of the list; only those that a row needs.

    Args:
      rows: The number of queries.
      diversity: One number from 0 to 1, or one for each row.
      pinned: A list of ids for each row.
      category_cap: One whole number, or one for each row; 0: no cap.
      tail_share: One number from 0 to 1, or one for each row.
      skip: Stages from :data:`STAGES`, for all rows.
      label_weights: For each row, weights from -1 to 1 by label name.

    Raises:
      DataError: The number of values differs from the number of rows, a number is out of range, or a stage does not
        exist.
    """
    caps = _one_for_each(rows, "category_cap", category_cap)
    for cap in caps:
        if not isinstance(cap, Integral) or not 0 <= int(cap) <= MOST:
            raise DataError(f"Expected category_cap as a whole number from 0 (no cap) to {MOST}, got {cap!r}.")
    pins = [()] * rows if pinned is None else listed("pinned", pinned)
    if len(pins) != rows:
        raise DataError(f"Expected one list of pinned items for each of {rows} queries, got {len(pins)}.")
    stages = listed_strings("skip", skip)
    for stage in stages:
        if stage not in STAGES:
            raise DataError(f"Expected skip to name stages that can be skipped ({', '.join(STAGES)}), got {stage!r}.")
    inputs: dict[str, list[Any]] = {
        "diversity": _shares(rows, "diversity", diversity),
        "pinned": [listed_strings("pinned", ids) for ids in pins],
        "category_cap": [int(cap) for cap in caps],
        "tail_share": _shares(rows, "tail_share", tail_share),
        "skip": [stages] * rows,
        "label_weights": [
            _label_entries(weights)
            for weights in _one_for_each(rows, "label_weights", [{}] * rows if label_weights is None else label_weights)
        ],
    }
    return {name: values for name, values in inputs.items() if any(values)}


def _label_entries(weights: Mapping[str, float]) -> list[str]:
    """Returns the entries ``label=weight`` of a row."""
    if not isinstance(weights, Mapping):
        raise DataError(f"Expected label_weights as weights by labels, such as {{'Fantasy': 1}}, got {weights!r}.")
    for label, weight in weights.items():
        if not isinstance(weight, Real) or not -1 <= float(weight) <= 1:
            raise DataError(f"Expected the weight of the label {label!r} as a number from -1 to 1, got {weight!r}.")
    return [f"{label}={float(weights[label]):g}" for label in listed_strings("labels", list(weights))]


def _shares(rows: int, name: str, given: float | Sequence[float]) -> list[float]:
    values = _one_for_each(rows, name, given)
    for value in values:
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise DataError(f"Expected {name} as a number from 0 to 1, got {value!r}.")
    return [float(value) for value in values]


def _one_for_each(rows: int, name: str, given: Any) -> list[Any]:
    """Returns one value for each row; a single value is repeated."""
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * rows
    if len(values) != rows:
        raise DataError(f"Expected one {name} for each of {rows} queries, got {len(values)}.")
    return values


def listed(name: str, values: Sequence[Any]) -> list[Any]:
    """Returns the values as a list.

    Raises:
      DataError: The values are a single string, whose letters would be taken for ids.
    """
    if isinstance(values, str | bytes):
        raise DataError(f"Expected {name} as a list, got the string {values!r}: write [{values!r}].")
    return list(values)


def listed_strings(name: str, values: Sequence[str]) -> list[str]:
    """Returns the strings as a list.

    Raises:
      DataError: The values are a single string, or a value is not a string: ids are strings, even if they look like
        numbers.
    """
    found = listed(name, values)
    for value in found:
        if not isinstance(value, str):
            text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            raise DataError(f"Expected {name} as strings, got {value!r}: write {text!r}.")
    return found

"""Checks of a caller's arguments; in-process and remote calls share them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

from ..errors import DataError


def count_of(k: int) -> int:
    """``k`` as an int.

    Raises:
      DataError: it is not a whole number above 0.
    """
    try:
        count = operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise DataError(f"Expected k as a whole number above 0, got {k!r}.")
    return count


def diversity_inputs(rows: int, diversity: float | Sequence[float]) -> dict[str, list[float]]:
    """The input ``diversity`` of ``recommend_full``, one number or one for each row; none where all are 0.

    Raises:
      DataError: not as many numbers as rows, or one that is not between 0 and 1.
    """
    values = (
        list(diversity) if isinstance(diversity, Sequence) and not isinstance(diversity, str) else [diversity] * rows
    )
    if len(values) != rows:
        raise DataError(f"Expected one diversity for each of {rows} queries, got {len(values)}.")
    for value in values:
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise DataError(f"Expected diversity as a number from 0 to 1, got {value!r}.")
    return {"diversity": [float(value) for value in values]} if any(values) else {}


def listed(name: str, values: Sequence[Any]) -> list[Any]:
    """The values as a list.

    Raises:
      DataError: it is one string, whose letters would be taken for ids.
    """
    if isinstance(values, str | bytes):
        raise DataError(f"Expected {name} as a list, got the string {values!r}: write [{values!r}].")
    return list(values)


def listed_strings(name: str, values: Sequence[str]) -> list[str]:
    """The strings as a list.

    Raises:
      DataError: it is a single string, or a value is not a string: ids are strings, even those that look like numbers.
    """
    found = listed(name, values)
    for value in found:
        if not isinstance(value, str):
            text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            raise DataError(f"Expected {name} as strings, got {value!r}: write {text!r}.")
    return found

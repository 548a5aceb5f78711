"""Converts filters to inputs of the full signatures, for in-process and remote calls. Does not need TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError
from .inputs import listed_strings

NO_ITEM = "\n"  # no catalogue has an id with a line break

Allow = Sequence[str] | None


def filter_inputs(
    rows: int, allow: Sequence[Allow] | None, categories: Sequence[Sequence[str]] | None
) -> dict[str, list[Sequence[str]]]:
    """Returns the inputs ``allow`` and ``categories`` of the full signatures; no inputs if nothing is filtered.

    In a signature, a row without ids allows all items, and empty ids do not count. A caller's allow-list without ids
    means that nothing is allowed (for example, because nothing is in stock), so it is replaced by an id that no item
    has; so are categories that are all empty.

    Args:
      rows: The number of requests.
      allow: For each request, the only ids that may be returned; ``None`` for all.
      categories: For each request, the categories of which an item needs at least one; an empty list allows all items.
        Entries ``domain=NAME`` are a separate filter: an item also needs one of these.

    Raises:
      DataError: The number of lists differs from the number of requests, or a list is not one of strings.
    """
    allow = [None] * rows if allow is None else allow
    categories = [()] * rows if categories is None else categories
    for name, lists in (("allow", allow), ("categories", categories)):
        if len(lists) != rows:
            raise DataError(f"Expected one list of {name} for each of {rows} users, got {len(lists)}.")
    if all(ids is None for ids in allow) and not any(map(len, categories)):
        return {}
    return {
        "allow": [() if ids is None else _named("allow", ids) for ids in allow],
        "categories": [_named("categories", names) if len(names) else () for names in categories],
    }


def _named(name: str, ids: Sequence[str]) -> list[str]:
    return [each for each in listed_strings(name, ids) if each] or [NO_ITEM]

"""Filters as inputs of the full signatures; in-process and remote calls share this. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError

NO_ITEM = "\n"  # no catalogue has an id with a line break

Allow = Sequence[str] | None


def filter_inputs(
    rows: int, allow: Sequence[Allow] | None, categories: Sequence[Sequence[str]] | None
) -> dict[str, list[Sequence[str]]]:
    """The inputs ``allow`` and ``categories`` of the full signatures; none where nothing is filtered.

    In a signature a row without ids lets everything pass. A caller's empty allow-list means that nothing is allowed,
    for example because nothing is in stock, so it becomes an id that no item has.

    Args:
      rows: how many requests.
      allow: for each, the only ids that may come back; ``None`` for all.
      categories: for each, those of which an item needs one; an empty list lets everything pass.

    Raises:
      DataError: not as many lists as requests.
    """
    allow = [None] * rows if allow is None else allow
    categories = [()] * rows if categories is None else categories
    for name, lists in (("allow", allow), ("categories", categories)):
        if len(lists) != rows:
            raise DataError(f"Expected one list of {name} for each of {rows} users, got {len(lists)}.")
    if all(ids is None for ids in allow) and not any(map(len, categories)):
        return {}
    return {
        "allow": [() if ids is None else [NO_ITEM] if not len(ids) else ids for ids in allow],
        "categories": list(categories),
    }

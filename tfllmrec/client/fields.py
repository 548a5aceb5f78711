"""Converts fields of requests, users and events to inputs of the full signatures, for in-process and remote calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..errors import DataError

Fields = Mapping[str, Any]
"""Values by field name: strings, numbers, times or lists of numbers. ``None``, NaN and the like leave a field out."""


def context_inputs(rows: int, context: Sequence[Fields | None] | None) -> dict[str, list[list[str]]]:
    """Returns the input ``context`` of the full signatures; no input if no query has fields.

    Args:
      rows: The number of queries.
      context: The fields of each query.

    Raises:
      DataError: The number of mappings differs from the number of queries, or a field cannot be sent.
    """
    if context is None:
        return {}
    if isinstance(context, Mapping):
        raise DataError(
            f"Expected context as a list with one mapping for each query, got {context!r}: write [{context!r}]."
        )
    if len(context) != rows:
        raise DataError(f"Expected one mapping of context for each of {rows} queries, got {len(context)}.")
    if not any(context):
        return {}
    return {"context": [_entries(fields) for fields in context]}


def event_field_inputs(
    histories: Sequence[Sequence[str]], event_fields: Sequence[Sequence[Fields | None] | None] | None
) -> dict[str, list[list[str]]]:
    """Returns the input ``event_fields`` of the full signatures; no input if no event has fields.

    Args:
      histories: Item ids.
      event_fields: For each history, the fields of each of its events; ``None`` for events or histories without
        fields. The lines of a value are joined (:func:`one_line`).

    Raises:
      DataError: The number of lists differs from the number of histories, a list is not as long as its history, or a
        field cannot be sent.
    """
    if event_fields is None or not any(event_fields):
        return {}
    found = [len(history if row is None else row) for history, row in zip(histories, event_fields, strict=False)]
    if len(event_fields) != len(histories) or found != list(map(len, histories)):
        raise DataError(
            f"Expected fields for each event of the history, None where there are none: got {found[:8]} for "
            f"{[len(history) for history in histories[:8]]} events."
        )
    rows = [[None] * len(history) if row is None else row for history, row in zip(histories, event_fields, strict=True)]
    return {"event_fields": [["\n".join(map(one_line, _entries(fields))) for fields in row] for row in rows]}


def one_line(text: str) -> str:
    """Joins the lines of a text with spaces, because a line break ends an entry in ``event_fields``."""
    return " ".join(text.splitlines())


def _entries(fields: Fields | None) -> list[str]:
    entries = []
    for name, value in (fields or {}).items():
        text = written(value)
        if text is None:
            continue
        if not isinstance(name, str) or not name or "=" in name or one_line(name) != name:
            raise DataError(
                f"Expected fields of events and requests as names of one line without '=', got {name!r}: {value!r}."
            )
        entries.append(f"{name}={text}")
    return entries


def written(value: Any) -> str | None:
    """Returns a value as it is written in files; ``None`` if it is missing: ``None``, NaN, and NaT and NA of pandas."""
    if hasattr(value, "tolist"):  # numpy's own text is wrapped and shortened
        if getattr(getattr(value, "dtype", None), "kind", "") == "M":  # nanoseconds would become whole numbers
            value = value.astype("datetime64[us]")
        value = value.tolist()
    try:
        if value is None or value != value:  # NaN and NaT differ from themselves
            return None
    except TypeError:  # comparisons with NA are neither true nor false
        return None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)

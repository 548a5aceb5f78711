"""Fields of requests, users and events as inputs of the full signatures; in-process and remote calls share this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..errors import DataError

Fields = Mapping[str, Any]
"""Values by the names of fields: strings, numbers, times or lists of numbers; ``None`` leaves a field out."""


def context_inputs(rows: int, context: Sequence[Fields | None] | None) -> dict[str, list[list[str]]]:
    """The input ``context`` of the full signatures; none where no query has fields.

    Raises:
      DataError: not as many mappings as queries, or a field that cannot be sent.
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
    """The input ``event_fields`` of the full signatures; none where no event has fields.

    Args:
      histories: item ids. event_fields: for each history, the fields of each of its events; ``None`` where they have
        none. The lines of a value are joined (:func:`one_line`).

    Raises:
      DataError: not as many lists as histories, a list that is not as long as its history, or a field that cannot be
        sent.
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
    """The lines of a text as one, with spaces between them: in ``event_fields`` a line break ends an entry."""
    return " ".join(text.splitlines())


def _entries(fields: Fields | None) -> list[str]:
    entries = []
    for name, value in (fields or {}).items():
        if value is None or (isinstance(value, float | datetime) and value != value):  # NaN and NaT
            continue
        if not isinstance(name, str) or not name or "=" in name or one_line(name) != name:
            raise DataError(
                f"Expected fields of events and requests as names of one line without '=', got {name!r}: {value!r}."
            )
        entries.append(f"{name}={_text(value)}")
    return entries


def _text(value: Any) -> str:
    """A value as it is written in files."""
    if hasattr(value, "tolist"):  # of numpy, whose own text is wrapped and shortened
        value = value.tolist()
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)

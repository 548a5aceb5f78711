"""Validation of events: their fields, their time, and the key by which duplicates are recognised."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tfllmrec.client.answers import Refused
from tfllmrec.columns import (
    EVENT_ID,
    EVENT_KIND,
    ITEM,
    ITEM_INDEX,
    RATING,
    RECEIVED,
    REQUEST_ID,
    TEST_EVENT,
    TIMESTAMP,
    USER,
    USER_INDEX,
)
from tfllmrec.data.cleaning.values import MISSING
from tfllmrec.data.files.column_names import ALIASES, plain_name
from tfllmrec.wording import clipped, shown

#: An event whose time is farther ahead of the log's clock gets the time of receipt.
SKEW_S = 300.0
#: An event that arrives later than this after it happened counts as late.
LATE_S = 3600.0
#: The maximum number of characters of an id or a kind, of further fields of an event, and of their bytes as JSON.
MOST_CHARACTERS, MOST_FIELDS, MOST_BYTES = 512, 100, 16 << 10
# Seconds since 1970 reach this in the year 5138; milliseconds did in 1973.
_TOO_LATE_S = 1e11
_INT64 = 1 << 63
_LARGEST_FLOAT32 = 3.4028234663852886e38  # ratings are float32 in a data set
#: Names that a further field may not have: the log or a data set has a column of that name, or a reader of an exported
#: file would use the field as the order of events, which is defined by their times.
_RESERVED = {
    plain_name(name)
    for name in (RECEIVED, USER_INDEX, ITEM_INDEX, TEST_EVENT, "claimed_s", "number", *ALIASES["order"])
}
_NAMES_OF_TIME = {plain_name(name) for name in ALIASES[TIMESTAMP]}


class Row(NamedTuple):
    """A valid event as stored in the log; ``key``, its ``event_id`` or bytes, is the same for equal events."""

    key: str | bytes
    user_id: str
    item_id: str
    rating: float | None
    kind: str | None
    request_id: str | None
    timestamp_s: float
    received_s: float
    claimed_s: float | None
    fields: str | None


@dataclass(frozen=True)
class Batch:
    """Events that were checked together.

    Attributes:
      rows: The valid events.
      refused: The invalid events.
      late: The number of valid events that arrived more than :data:`LATE_S` after they happened.
      skewed: The number of valid events that were more than :data:`SKEW_S` ahead of the log's clock.
    """

    rows: list[Row] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    late: int = 0
    skewed: int = 0


def check(events: Iterable[Any], received_s: float) -> Batch:
    """Checks each event individually: an invalid one is refused with a reason, and the others are kept.

    An event is a mapping with ``user_id`` and ``item_id`` (text, or an integer, which becomes text). It may have
    ``timestamp_s`` (seconds since 1970), ``rating`` (a number), ``kind``, ``event_id``, ``request_id`` (of the answer
    that showed the item), and further fields, whose values are text, numbers, booleans or ``None``. ``None`` is the
    same as leaving the field out.

    **Equal events.** An event with an ``event_id`` is the same as an earlier one with that id, regardless of their
    other content: the first one stays. An event without an ``event_id`` is the same as one with equal content. So two
    equal events of the same second count once if the times are whole seconds; a sender that wants to count both gives
    each an ``event_id``. An event needs an ``event_id`` or a ``timestamp_s``: without both, a repeated click could not
    be distinguished from a second attempt to send the first one.

    **Time.** An event without ``timestamp_s`` gets the time of receipt. A clock that is ahead by more than
    :data:`SKEW_S` is wrong: the event gets the time of receipt, and the log also stores the time it claimed. Such an
    event is not refused, because a click from a phone with a wrong clock is still a click; with its own time it would
    be the last event of its user for as long as the clock was ahead. Late events keep their time. Times of 1e11 or
    more, which are milliseconds, and negative ones are refused.

    Args:
      events: The events to check.
      received_s: The time of receipt, by the log's clock.
    """
    batch, late, skewed = Batch(), 0, 0
    for place, event in enumerate(events):
        try:
            row = _row(event, received_s)
        except ValueError as error:
            batch.refused.append(Refused(place, str(error)))
            continue
        batch.rows.append(row)
        late += row.timestamp_s < received_s - LATE_S
        skewed += row.claimed_s is not None
    return Batch(batch.rows, batch.refused, late, skewed)


def _row(event: Any, received_s: float) -> Row:
    """Returns the row of an event; raises a ValueError with the reason if the event is not valid."""
    if isinstance(event, Unreadable):
        raise ValueError(event.reason)
    if not isinstance(event, Mapping):
        raise ValueError(f"expected an object with {USER} and {ITEM}, found {shown(event)}")
    given = {name: value for name, value in event.items() if value is not None}
    event_id = _text(given, EVENT_ID)
    user, item = _text(given, USER), _text(given, ITEM)
    for name, value in ((USER, user), (ITEM, item)):
        if value is None or value in MISSING:
            names = ", ".join(clipped(str(each), 40) for each in sorted(given, key=str)[:10])
            raise ValueError(f"no {name}: found {names or 'nothing'}")
    assert user is not None and item is not None
    kind, request_id = _text(given, EVENT_KIND), _text(given, REQUEST_ID)
    rating = _number(given, RATING)
    if rating is not None and abs(rating) > _LARGEST_FLOAT32:
        raise ValueError(f"{RATING}: expected a number that float32 holds, found {rating}")
    known = (EVENT_ID, USER, ITEM, EVENT_KIND, REQUEST_ID, RATING, TIMESTAMP)
    further = {name: value for name, value in given.items() if name not in known}
    fields = _fields(further)
    time = _number(given, TIMESTAMP)
    if time is None:
        meant = next((name for name in further if plain_name(name) in _NAMES_OF_TIME), None)
        if meant is not None:
            raise ValueError(f"field {shown(meant)}: expected the time as {TIMESTAMP}, in seconds since 1970 (UTC)")
        if event_id is None:
            raise ValueError(f"expected {TIMESTAMP} or {EVENT_ID}: without either, a second event looks like a retry")
    elif not 0 <= time < _TOO_LATE_S:
        hint = "; milliseconds?" if time > 0 else ""
        raise ValueError(f"{TIMESTAMP}: expected seconds since 1970 (UTC), found {time:.15g}{hint}")
    key = event_id if time is None else event_id or _key(time, user, item, kind, request_id, rating, fields)
    assert key is not None
    skewed = time is not None and time > received_s + SKEW_S
    happened = received_s if time is None or skewed else time
    return Row(key, user, item, rating, kind, request_id, happened, received_s, time if skewed else None, fields)


class Unreadable(NamedTuple):
    """Stands for an event that could not be read, such as a line that is not JSON."""

    reason: str


def _key(time: float, *content: Any) -> bytes:
    """Hashes all content of an event. The time comes first, so that new keys are appended at the end of the index."""
    digest = hashlib.sha256(json.dumps((time, *content), ensure_ascii=False).encode()).digest()
    return int(time).to_bytes(5, "big") + digest[:15]


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if -_INT64 <= value < _INT64 else value
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected one text, found {shown(value)}")
    value = value.strip()
    if not value or len(value) > MOST_CHARACTERS or "\n" in value or "\0" in value:
        raise ValueError(
            f"{name}: expected a line of 1 to {MOST_CHARACTERS} characters, found {shown(value)} ({len(value)})"
        )
    _require_unicode(name, value)
    return value


def _number(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError(f"{name}: expected a finite number, found {shown(value)}")


def _fields(further: Mapping[str, Any]) -> str | None:
    """Returns the further fields as one JSON object with sorted keys; ``None`` if there are none."""
    if not further:
        return None
    if len(further) > MOST_FIELDS:
        raise ValueError(f"expected at most {MOST_FIELDS} further fields, found {len(further)}")
    for name, value in further.items():
        if not isinstance(name, str) or not name.strip() or len(name) > MOST_CHARACTERS or not name.isprintable():
            raise ValueError(f"field {shown(name)}: expected a name of 1 to {MOST_CHARACTERS} printable characters")
        if plain_name(name) in _RESERVED:
            raise ValueError(f"field {shown(name)}: the log has a meaning of its own for this name: rename the field")
        match value:
            case bool():
                pass
            case int():
                if not -_INT64 <= value < _INT64:
                    raise ValueError(f"field {shown(name)}: expected an integer of 64 bits, found {shown(value)}")
            case float():
                _number(further, name)
            case str():
                _require_unicode(name, value)
            case _:
                raise ValueError(
                    f"field {shown(name)}: expected text, a number or true/false, found {shown(value)}; join names by "
                    "'|'"
                )
    text = json.dumps(further, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"expected further fields of at most {MOST_BYTES} bytes, found {len(text.encode())}")
    return text


def _require_unicode(name: str, value: str) -> None:
    if "\0" in value:
        raise ValueError(f"{name}: a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: no valid Unicode: {error.reason}") from None

"""The id of each request, given by the caller or generated; it is returned with the answer and written to the log."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

_VALID = re.compile("[!-~]{1,128}")

#: The id of the request that the current task answers.
request_id: ContextVar[str] = ContextVar("request_id", default="unknown")


def take(given: str | None) -> str:
    """Sets :data:`request_id` for the current task, and returns it.

    Args:
      given: The id from the caller. It is used if it consists of 1 to 128 visible ASCII characters; otherwise, a new id
        is generated.
    """
    chosen = given if given is not None and _VALID.fullmatch(given) else fresh()
    request_id.set(chosen)
    return chosen


def fresh() -> str:
    """Returns a new unique id."""
    return uuid.uuid4().hex

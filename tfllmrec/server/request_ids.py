"""The id of each request: the caller's own or a fresh one. It comes back with the answer and is written to the log."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

_VALID = re.compile("[!-~]{1,128}")

#: The id of the request that the running task answers.
request_id: ContextVar[str] = ContextVar("request_id", default="unknown")


def take(given: str | None) -> str:
    """Sets :data:`request_id` for the running task, and returns it.

    Args:
      given: by the caller. It is taken if it has 1 to 128 characters and all are visible ASCII, else a fresh id is.
    """
    chosen = given if given is not None and _VALID.fullmatch(given) else fresh()
    request_id.set(chosen)
    return chosen


def fresh() -> str:
    """An id that no other request has."""
    return uuid.uuid4().hex

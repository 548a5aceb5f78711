"""Takes events into the log, and logs the lists that were recommended, both off the path of other requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.client.answers import Receipt
from tfllmrec.client.status import Code, RequestError, invalid
from tfllmrec.columns import USER
from tfllmrec.errors import TfllmrecError
from tfllmrec.feedback.event_log import EventLog, Exposure
from tfllmrec.feedback.event_writer import EventWriter, Full
from tfllmrec.feedback.events import Unreadable
from tfllmrec.server import json_tensors, request_ids
from tfllmrec.server.engine import Busy
from tfllmrec.server.tensors import DEFAULT_SIGNATURE, Tensors

if TYPE_CHECKING:
    from tfllmrec.server.engine import Engine
    from tfllmrec.server.model_process import ModelProcess
    from tfllmrec.server.versions import Version

#: Signatures whose answers are lists for a user -> the policy under which they are logged.
POLICIES = {DEFAULT_SIGNATURE: "recommend", "recommend": "recommend", "recommend_full": "recommend_full"}


class DiskFull(Busy):
    """The log cannot be written; the client may send the events again, best not at once."""

    retry_after_s = 10


class Intake:
    """The event log of a server.

    Args:
      folder: of the log.
      engine: for its limits, its metrics and its threads.

    Raises:
      WriteError, DataError: as :class:`~tfllmrec.feedback.event_log.EventLog`.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._engine = engine
        self._writer = EventWriter(EventLog(folder), engine.metrics.commit)

    async def take(self, size: int, read: Callable[[], list[Any]], timeout_s: float | None = None) -> Receipt:
        """Writes the events of a request; when it returns, they are on the disk.

        Args:
          size: bytes of the request. read: its events, by :meth:`of_document` or :meth:`of_lines`; may run in a thread.
          timeout_s: what is left of the client's deadline; ``None``: it sets none.

        Raises:
          RequestError: INVALID_ARGUMENT: too many events; DEADLINE_EXCEEDED.
          DiskFull: the log cannot be written, or is damaged.
          Busy: too many requests wait for it.
        """
        engine = self._engine
        timeout_s = engine.limits.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                batch = await engine.aside(size, lambda: self._writer.log.check(read()))
                return await asyncio.wrap_future(self._writer.submit(batch))
        except Full:
            raise Busy(Code.UNAVAILABLE, "too many requests wait for the event log: try again later") from None
        except TimeoutError:
            raise RequestError(
                Code.DEADLINE_EXCEEDED,
                f"the events were not written within {timeout_s:.3g} s: send them again; those that are in the log "
                "count as duplicates",
            ) from None
        except TfllmrecError:  # its text names files of this machine; the server's log has it
            raise DiskFull(
                Code.UNAVAILABLE, "the event log cannot be written: no event of this request was taken; try again later"
            ) from None

    def of_document(self, content: bytes) -> list[Any]:
        """The events of ``{"events": [...]}``.

        Raises:
          RequestError: INVALID_ARGUMENT: the body is no such document, or has too many events.
        """
        events = json_tensors.parse(content).get("events")
        if not isinstance(events, list):
            raise invalid(
                'expected {"events": [{...}, ...]}; a body of JSON lines needs the header "Content-Type: '
                'application/x-ndjson"'
            )
        return self._bounded(events)

    def of_lines(self, lines: Iterable[bytes]) -> list[Any]:
        """The events of JSON objects; one that cannot be read takes its place as :class:`Unreadable`.

        Raises:
          RequestError: INVALID_ARGUMENT: too many lines; none is parsed then.
        """
        events: list[Any] = []
        for line in self._bounded(lines):
            try:
                events.append(json_tensors.parse(line))
            except RequestError as error:
                events.append(Unreadable(error.message))
        return events

    def _bounded(self, events: Iterable[Any]) -> list[Any]:
        most = self._engine.limits.rows
        found = list(islice(events, most + 1))
        if len(found) > most:
            raise invalid(f"The request has more than {most} events: send several requests")
        return found

    def shown(self, version: Version[ModelProcess], signature: str, inputs: Tensors, outputs: Tensors) -> None:
        """Queues the lists of an answer for the log; a full queue counts them as dropped."""
        policy, item_ids = POLICIES.get(signature), outputs.get("item_ids")
        if policy is None or item_ids is None or item_ids.dtype != object or item_ids.ndim != 2:
            return  # no list for a user, or a model of another kind
        make = partial(
            exposures,
            request_ids.request_id.get(), time.time(), version.model, version.number, policy, item_ids,
            inputs.get("context"),
        )  # fmt: skip
        if not self._writer.offer(item_ids.size, make):
            self._engine.metrics.dropped(item_ids.size)

    def close(self) -> None:
        """Writes what is queued."""
        self._writer.close()


def exposures(
    request_id: str,
    time_s: float,
    model: str,
    version: int,
    policy: str,
    item_ids: np.ndarray,
    context: np.ndarray | None,
) -> list[Exposure]:
    """The items of an answer's lists.

    Lists of a request with several rows have the request's id with ``/0``, ``/1``, ... behind it.

    Args:
      item_ids: object ``[B, K]``, bytes, padded with ``b""``.
      context: object ``[B, C]`` or ``[1, C]``, bytes; an entry ``user_id=ID`` names the user of its row. Of any other
        type or shape, as a model of another kind may have it, it names nobody.
    """
    if context is not None and (context.dtype != object or context.ndim != 2 or len(context) not in (1, len(item_ids))):
        context = None
    shown = []
    for row, ids in enumerate(item_ids.tolist()):
        list_id = request_id if len(item_ids) == 1 else f"{request_id}/{row}"
        entries = [] if context is None else context[row if len(context) > 1 else 0].tolist()
        user = next((_text(entry.partition(b"=")[2]) for entry in entries if entry.startswith(_USER)), None)
        listed = (_text(item) for item in ids if item)
        shown += [
            Exposure(list_id, time_s, user or None, model, version, policy, item, position)
            for position, item in enumerate(listed)
        ]
    return shown


_USER = f"{USER}=".encode()


def _text(value: bytes) -> str:
    return value.decode(errors="replace").replace("\0", "�")

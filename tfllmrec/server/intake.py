"""Writes events and recommended lists to the event log, without delaying other requests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.client.answers import Receipt
from tfllmrec.client.status import Code, RequestError, invalid
from tfllmrec.data.cleaning.event_kinds import kind_weight
from tfllmrec.errors import TfllmrecError
from tfllmrec.feedback.event_log import EventLog, Exposure, RequestRecord
from tfllmrec.feedback.event_writer import Answered, Commit, EventWriter, Full
from tfllmrec.feedback.events import Unreadable
from tfllmrec.server import json_tensors, request_ids
from tfllmrec.server.canary import Arm
from tfllmrec.server.engine import Busy
from tfllmrec.server.exploring import Explorer
from tfllmrec.server.lists import Lists, context_of, entries_of, letters_and_script, text_of, user_of
from tfllmrec.server.tensors import DEFAULT_SIGNATURE, Tensors
from tfllmrec.serving.layout import ASSETS
from tfllmrec.serving.rules.compiled import RULES, places_items

if TYPE_CHECKING:
    from tfllmrec.feedback.exploration import Exploration
    from tfllmrec.server.engine import Engine
    from tfllmrec.server.model_process import ModelProcess
    from tfllmrec.server.versions import Version

#: For each signature that recommends (``RECOMMENDING``), or whose answers are lists for a user (``POLICIES``): the name
#: of the policy under which its lists are logged.
RECOMMENDING = {DEFAULT_SIGNATURE: "recommend", **{name: name for name in ("recommend", "recommend_full")}}
POLICIES = {**RECOMMENDING, **{name: name for name in ("search", "search_full", "search_tokens")}}
#: Largest number of shown items to which events are assigned; they are those of the most recently logged lists.
RECENT_ITEMS = 100_000
_weight = lru_cache(1000)(kind_weight)


class DiskFull(Busy):
    """The log cannot be written; the client should send the events again after ``retry_after_s``."""

    retry_after_s = 10


class Intake:
    """The event log of a server.

    Args:
      folder: The folder of the log.
      engine: The engine whose limits, metrics and threads are used.
      exploration: The exploration of logged lists; ``None`` for no exploration.

    Raises:
      WriteError, DataError: See :class:`~tfllmrec.feedback.event_log.EventLog`.
    """

    def __init__(self, folder: Path, engine: Engine, exploration: Exploration | None = None) -> None:
        self._engine = engine
        self._recent = Recent(RECENT_ITEMS)
        log = EventLog(folder)
        self._explorer = None if exploration is None else Explorer(exploration, folder)
        self._writer = EventWriter(log, self._committed)
        engine.metrics.log(self._writer.log.size)

    async def take(self, size: int, read: Callable[[], list[Any]], timeout_s: float | None = None) -> Receipt:
        """Writes the events of a request, and returns when they are on the disk.

        Args:
          size: The size of the request in bytes.
          read: Returns the events, with :meth:`of_document` or :meth:`of_lines`; may be called in a thread.
          timeout_s: The time until the client's deadline; ``None`` if it sets none.

        Raises:
          RequestError: INVALID_ARGUMENT if the request is malformed or has too many events; DEADLINE_EXCEEDED.
          DiskFull: The log cannot be written, or is damaged.
          Busy: Too many requests wait for the log.
        """
        try:
            receipt = await self._take(size, read, timeout_s)
        except RequestError as error:
            self._engine.metrics.event_request(error.code)
            raise
        self._engine.metrics.event_request(Code.OK)
        return receipt

    async def _take(self, size: int, read: Callable[[], list[Any]], timeout_s: float | None) -> Receipt:
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
        except TfllmrecError:  # its text names files of this machine, and is only in the server's log
            raise DiskFull(
                Code.UNAVAILABLE, "the event log cannot be written: no event of this request was taken; try again later"
            ) from None

    def of_document(self, content: bytes) -> list[Any]:
        """Returns the events of a JSON document ``{"events": [...]}``.

        Raises:
          RequestError: INVALID_ARGUMENT if the body is not such a document, or has too many events.
        """
        events = json_tensors.parse(content).get("events")
        if not isinstance(events, list):
            raise invalid(
                'expected {"events": [{...}, ...]}; a body of JSON lines needs the header "Content-Type: '
                'application/x-ndjson"'
            )
        return self._bounded(events)

    def of_lines(self, lines: Iterable[bytes]) -> list[Any]:
        """Returns the events of lines of JSON; an unreadable line is represented by :class:`Unreadable`.

        Raises:
          RequestError: INVALID_ARGUMENT if there are too many lines; then no line is parsed.
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

    def explorer(self, version: Version[ModelProcess], signature: str) -> Explorer | None:
        """Returns the explorer of the lists of a version's signature; ``None`` if they are not explored."""
        assert version.servable is not None
        if self._explorer is None or signature not in RECOMMENDING or not version.servable.joining[signature].ours:
            return None
        # Lists with sponsored items are not explored, because these have fixed positions. Checked for each request,
        # because rules change while a version is served.
        return None if _places_items(version.folder / ASSETS / RULES) else self._explorer

    def shown(
        self,
        version: Version[ModelProcess],
        signature: str,
        lists: Lists,
        inputs: Tensors,
        outputs: Tensors,
        propensity: np.ndarray | None = None,
        arm: Arm | None = None,
    ) -> None:
        """Queues the lists of an answer for the log; if the queue is full, their items are counted as dropped.

        Args:
          version: The version that answered.
          signature: The name of the signature.
          lists: Facts about the lists.
          inputs: The inputs of the request.
          outputs: The outputs of the answer.
          propensity: Float64 ``[B, K]``, the probability of the item at each position; ``None`` if no item was drawn
            at random.
          arm: The arm of the request; ``None`` if it was not assigned.
        """
        policy = POLICIES.get(signature)
        if policy is None:
            return  # the answer is not a list for a user
        assert version.servable is not None
        item_ids = outputs["item_ids"]
        items = max(item_ids.size, len(item_ids))  # the log has a row for an empty list, too
        make = partial(
            answered,
            request_ids.request_id.get(), time.time(), version.model, version.number, policy, item_ids,
            inputs.get("context"), lists, version.servable.items.fields, propensity, arm,
        )  # fmt: skip
        if not self._writer.offer(items, make):
            self._engine.metrics.dropped(items)

    def _committed(self, commit: Commit) -> None:
        """Counts a write of the log, and the shown items to which its events belong."""
        self._recent.add(commit.exposures)
        if self._explorer is not None:
            self._explorer.count(commit.exposures)
        used: Counter[tuple[str, str, str]] = Counter()
        for batch in commit.batches:
            for event in batch.rows:
                if event.request_id is not None and _weight(event.kind or "") > 0:
                    used.update(self._recent.take(event.request_id, event.item_id))
        self._engine.metrics.commit(commit, used)

    def close(self) -> None:
        """Writes the queued events and lists, and closes the log."""
        self._writer.close()


class Recent:
    """Finds the shown items to which events belong, among the most recently logged lists.

    Args:
      most: The largest number of items, and of lists, that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._items = most, 0
        # Request id -> item id -> model, version, policy; without the items for which an event was counted.
        self._lists: OrderedDict[str, dict[str, tuple[str, str, str]]] = OrderedDict()

    def add(self, exposures: Iterable[Exposure]) -> None:
        for shown in exposures:
            items = self._lists.setdefault(_base(shown.request_id), {})
            self._items += shown.item_id not in items
            items[shown.item_id] = (shown.model, str(shown.version), shown.policy)
        while max(self._items, len(self._lists)) > self._most and len(self._lists) > 1:
            self._items -= len(self._lists.popitem(last=False)[1])

    def take(self, request_id: str, item_id: str) -> list[tuple[str, str, str]]:
        """Returns model, version and policy of a shown item, once; an empty list if it is not known or was taken."""
        found = self._lists.get(_base(request_id), {}).pop(item_id, None)
        self._items -= found is not None
        return [] if found is None else [found]


def _places_items(rules: Path) -> bool:
    """Returns the cached result of :func:`places_items`, which reads the file again only after it was replaced."""
    try:
        found = rules.stat()
    except OSError:
        return False
    return _read_places_items(rules, (found.st_ino, found.st_mtime_ns, found.st_size))


@lru_cache(100)
def _read_places_items(rules: Path, state: tuple[int, ...]) -> bool:
    return places_items(rules)


def _base(request_id: str) -> str:
    """Returns the request id of a list id, such as ``REQUEST`` for ``REQUEST/0``."""
    base, _, row = request_id.rpartition("/")
    return base if row.isdigit() else request_id


def answered(
    request_id: str,
    time_s: float,
    model: str,
    version: int,
    policy: str,
    item_ids: np.ndarray,
    context: np.ndarray | None,
    lists: Lists,
    fields: frozenset[str] = frozenset(),
    propensity: np.ndarray | None = None,
    arm: Arm | None = None,
) -> Answered:
    """Returns the log records of an answer: one for each shown item, and one for each list.

    The lists of a request with several rows have the request id followed by ``/0``, ``/1``, ...

    Args:
      request_id: The id of the request.
      time_s: The time of the answer, in seconds since 1970.
      model: The name of the model.
      version: The number of the version.
      policy: The policy under which the lists are logged.
      item_ids: Object ``[B, K]``, bytes, padded with ``b""``.
      context: Object ``[B, C]`` or ``[1, C]``, bytes, see :func:`tfllmrec.server.lists.entries_of`; an entry
        ``user_id=ID`` names the user of its row.
      lists: Facts about the lists.
      fields: The fields of the context that may be logged.
      propensity: Float64 ``[B, K]``, the probability of the item at each position; ``None`` for 1.
      arm: The arm of the request; ``None`` if it was not assigned.
    """
    shown, requests = [], []
    propensity = np.ones(item_ids.shape) if propensity is None else propensity
    for row, (ids, entries) in enumerate(zip(item_ids.tolist(), entries_of(context, len(item_ids)), strict=True)):
        list_id = request_id if len(item_ids) == 1 else f"{request_id}/{row}"
        user = user_of(entries)
        there = ((text_of(item), p) for item, p in zip(ids, propensity[row].tolist(), strict=True) if item)
        shown += [
            Exposure(list_id, time_s, user, model, version, policy, item, position, p, *(arm or ()))
            for position, (item, p) in enumerate(there)
        ]
        best, mean = (
            float(value[row]) if np.isfinite(value[row]) else None for value in (lists.best_score, lists.mean_score)
        )
        listed, unknown = int(lists.listed[row]), int(lists.unknown_ids[row])
        history = 0 if lists.history_ids is None else int(lists.history_ids[row])
        letters, script = letters_and_script(lists.texts[row]) if lists.texts else (None, None)
        requests.append(
            RequestRecord(
                list_id, time_s, user, model, version, policy, listed, history, unknown, best, mean, letters, script,
                context_of(entries, fields),
            )
        )  # fmt: skip
    return shown, requests

"""A thread that writes to the event log for many requests at once (group commit)."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from tfllmrec.client.answers import Receipt
from tfllmrec.errors import TfllmrecError
from tfllmrec.feedback.event_log import EventLog, Exposure, RequestRecord
from tfllmrec.feedback.events import Batch

logger = logging.getLogger(__name__)

#: Maximum number of waiting batches, and number of events in a commit from which on batches wait for the next commit.
MOST_BATCHES, COMMIT_EVENTS = 1000, 10_000
#: Maximum number of waiting shown items, and time after which they are written if no events are written earlier.
MOST_SHOWN, SHOWN_AFTER_S = 100_000, 0.5


@dataclass(frozen=True)
class Commit:
    """A durable write.

    Attributes:
      receipts: The receipts of the batches; empty if the write failed.
      shown: The number of shown items written.
      dropped: The number of shown items not written, because their list already has an item at the position, their list
        could not be created, or the write failed.
      seconds: The duration of the write.
      failed: Whether the write failed.
      batches: The batches of the receipts.
      exposures: The shown items written.
    """

    receipts: list[Receipt]
    shown: int
    dropped: int
    seconds: float
    failed: bool = False
    batches: Sequence[Batch] = ()
    exposures: Sequence[Exposure] = ()


Waiting = tuple[Batch, Future[Receipt]]
#: The log entries of an answer: its shown items, and the request of each of its lists.
Answered = tuple[Sequence[Exposure], Sequence[RequestRecord]]
#: The maximum number of items in the lists of an answer, and a function that returns its log entries.
Shown = tuple[int, Callable[[], Answered]]


class Full(Exception):
    """Too many batches wait for the disk."""


class EventWriter:
    """Writes batches of events, and lists that were shown, in a thread of its own.

    While a commit waits for the disk, further batches gather, and the next commit writes them all. Thus the requests
    that arrive during a durable write, which takes milliseconds on a disk, share the next one.

    Args:
      log: The event log; :meth:`close` closes it.
      on_commit: Called in the writer's thread after each write, before its requests are answered. If it raises, the
        error is logged, and the requests are answered even so.
    """

    def __init__(self, log: EventLog, on_commit: Callable[[Commit], None] = lambda commit: None) -> None:
        self.log = log
        self._on_commit = on_commit
        self._changed = threading.Condition()
        self._batches: deque[Waiting] = deque()
        self._shown: deque[Shown] = deque()
        self._waiting = 0
        self._shown_since = 0.0
        self._closing = False
        self._failing = False
        self._unmade = False
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def submit(self, batch: Batch) -> Future[Receipt]:
        """Queues a batch; the future gets its receipt once it is on the disk, or the error of the write.

        Raises:
          Full: :data:`MOST_BATCHES` batches wait, or the writer is closing.
        """
        future: Future[Receipt] = Future()
        with self._changed:
            if self._closing or len(self._batches) >= MOST_BATCHES:
                raise Full
            self._batches.append((batch, future))
            self._changed.notify()
        return future

    def offer(self, items: int, make: Callable[[], Answered]) -> bool:
        """Queues the lists of an answer without waiting.

        Args:
          items: The maximum number of shown items; an empty list counts as one.
          make: Returns the log entries; called in the writer's thread. If it raises, the lists are dropped.

        Returns:
          Whether there was room in the queue. A queued list may still be lost if the process is killed or the disk is
          full.
        """
        with self._changed:
            if self._closing or self._waiting + items > MOST_SHOWN:
                return False
            if not self._shown:
                self._shown_since = time.monotonic()
                self._changed.notify()
            self._shown.append((items, make))
            self._waiting += items
        return True

    def close(self) -> None:
        """Writes all queued data, and closes the log."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.log.close()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            self._commit(*work)

    def _next(self) -> tuple[list[Waiting], list[Shown]] | None:
        """Waits for work; returns ``None`` when the writer is closed and the queues are empty."""
        with self._changed:
            while not self._batches:
                left = self._shown_since + SHOWN_AFTER_S - time.monotonic()
                if self._closing or (self._shown and left <= 0):
                    break
                self._changed.wait(left if self._shown else None)
            if not self._batches and not self._shown:
                return None
            taken, events = [], 0
            while self._batches and events < COMMIT_EVENTS:
                batch, future = self._batches.popleft()
                if future.set_running_or_notify_cancel():  # else its request has ended and needs no receipt
                    taken.append((batch, future))
                    events += len(batch.rows)
            shown = list(self._shown)
            self._shown.clear()
            self._waiting = 0
            return taken, shown

    def _commit(self, taken: list[Waiting], shown: list[Shown]) -> None:
        begun = time.perf_counter()
        exposures, requests, unmade = self._made(shown)
        batches = [batch for batch, _ in taken]
        try:
            receipts, written = self.log.write(batches, exposures, requests)
        except Exception as error:
            if not self._failing and not isinstance(error, TfllmrecError):
                logger.exception("writing to %s failed", self.log.folder)
            elif not self._failing:
                logger.error("%s", error)
            self._failing = True  # logged once, until a write succeeds
            self._tell(Commit([], 0, unmade + len(exposures), time.perf_counter() - begun, failed=True))
            for _, future in taken:
                future.set_exception(error)
            return
        self._failing = False
        dropped = unmade + len(exposures) - len(written)
        seconds = time.perf_counter() - begun
        self._tell(Commit(receipts, len(written), dropped, seconds, False, batches, written))
        for (_, future), receipt in zip(taken, receipts, strict=True):
            future.set_result(receipt)

    def _tell(self, commit: Commit) -> None:
        try:
            self._on_commit(commit)
        except Exception:  # the thread must go on, or no request would be answered any more
            logger.exception("a write to %s could not be counted", self.log.folder)

    def _made(self, shown: list[Shown]) -> tuple[list[Exposure], list[RequestRecord], int]:
        """Returns the log entries of the answers, and the number of items lost because ``make`` raised an error."""
        exposures: list[Exposure] = []
        requests: list[RequestRecord] = []
        lost = 0
        for items, make in shown:
            try:
                made = make()
                exposures += made[0]
                requests += made[1]
            except Exception:  # events in the same write must not fail, too
                lost += items
                if not self._unmade:
                    logger.exception("a list that was shown cannot be logged in %s", self.log.folder)
                self._unmade = True  # logged once
        return exposures, requests, lost

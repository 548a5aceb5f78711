"""What both protocols ask: models, the batcher in front of them, and the figures about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.batching import Batcher, put_together
from tfllmrec.server.lists import lists_of
from tfllmrec.server.metrics import Metrics
from tfllmrec.server.model_process import ModelProcess, give_back_memory
from tfllmrec.server.tensors import Tensors
from tfllmrec.server.versions import SETTLED_S, Models, State, Version
from tfllmrec.server.work import Work

if TYPE_CHECKING:
    from tfllmrec.feedback.exploration import Exploration
    from tfllmrec.server.intake import Intake

T = TypeVar("T")

#: Of each body so much is not counted: small requests are answered even while large ones fill the budget.
UNCOUNTED_BYTES = 64 << 10
#: Up to here bodies are decoded and answers encoded in the event loop: that takes less than handing them to a thread
#: (measured: .1 ms for 2 KB of JSON, .15 ms more in a thread).
SMALL_BYTES = 4 << 10
#: Facts on a listed item take about as long as so many bytes of JSON (measured: .3 ms for 150 items).
ITEM_BYTES = 32
#: What a request may leave in memory before it is given back to the system.
LARGE_BYTES = 1 << 20
GIVE_BACK_AFTER_S = 1.0


@dataclass(frozen=True)
class Limits:
    """How much is taken on at once.

    Attributes:
      body_bytes: of a request, decompressed.
      bodies_bytes: of all requests that are being read or answered, beyond :data:`UNCOUNTED_BYTES` of each.
      rows: of a request; :mod:`tfllmrec.server.work` has the limits of models of ours.
      batch_rows: that are joined into one call.
      batch_wait_s: how long a request waits for others to be joined with while a worker is free.
      queue: requests that may wait.
      workers: calls of models at the same time.
      timeout_s: of a request whose client sets no deadline, from its last byte on; as much for its body to arrive.
    """

    body_bytes: int = 8 << 20
    bodies_bytes: int = 64 << 20
    rows: int = 10_000
    batch_rows: int = 64
    batch_wait_s: float = 0.0
    queue: int = 1000
    workers: int = 2
    timeout_s: float = 30.0


class Busy(RequestError):
    """The bodies of other requests fill the budget; the client may ask again after ``retry_after_s``."""

    retry_after_s = 1


class Body:
    """The share of one request in the budget of bodies; :meth:`Engine.body` makes it.

    Args:
      count: adds bytes to the budget, or takes them off where the number is negative; raises :class:`Busy`.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self.bytes = self.counted = 0

    def add(self, size: int) -> None:
        """Counts bytes that came.

        Raises:
          Busy: the budget does not have them.
        """
        self.bytes += size
        more = max(self.bytes - UNCOUNTED_BYTES, 0) - self.counted
        self._count(more)
        self.counted += more

    def drop(self) -> None:
        """Gives back what was counted; the bytes are not kept."""
        self._count(-self.counted)
        self.bytes = self.counted = 0


class Engine:
    """Answers requests once they are tensors; belongs to one event loop.

    Args:
      load: a version's folder to the process that answers; by default :class:`ModelProcess`. Blocks.
      settled_s: see :data:`tfllmrec.server.versions.SETTLED_S`.
      log: folder of the event log, if there is one.
      exploration: of the lists that are logged; ``None``: they are not explored.

    Raises:
      WriteError, DataError: the log cannot be opened.
    """

    def __init__(
        self,
        limits: Limits,
        load: Callable[[Path], ModelProcess] | None = None,
        settled_s: float = SETTLED_S,
        log: Path | None = None,
        exploration: Exploration | None = None,
    ) -> None:
        self.limits = limits
        self.metrics = Metrics(lambda: self._batcher.waiting)
        self._batcher = Batcher(
            limits.workers, limits.batch_rows, limits.batch_wait_s, limits.queue, self.metrics.batch
        )
        self._aside = ThreadPoolExecutor(limits.workers, thread_name_prefix="aside")
        self._bodies_bytes = 0
        self._giving_back: asyncio.TimerHandle | None = None
        load = load or partial(ModelProcess, calls=limits.workers)
        self.models: Models[ModelProcess] = Models(load, settled_s, self._on_load)
        self.metrics.versions(self.models.serving)
        self._intake: Intake | None = None
        if log is not None:
            from tfllmrec.server.intake import Intake  # only here: it loads pandas

            self._intake = Intake(log, self, exploration)

    def require_intake(self) -> Intake:
        """What takes events.

        Raises:
          RequestError: UNIMPLEMENTED: the server has no event log.
        """
        if self._intake is None:
            raise RequestError(Code.UNIMPLEMENTED, "this server takes no events: start it with --log FOLDER")
        return self._intake

    def check(self, version: Version[ModelProcess], signature: str, inputs: Tensors) -> tuple[Tensors, Work]:
        """The inputs, defaults filled in, and the work that they ask for.

        Args:
          inputs: may be without values, as :func:`tfllmrec.server.protos.declared` makes them.

        Raises:
          RequestError: what is wrong, or the limit that the request exceeds.
        """
        servable = version.servable
        assert servable is not None
        joining = servable.joining[signature]
        checked = joining.checked(inputs)
        return checked, joining.work(checked, self.limits.rows)

    async def predict(self, version: Version[ModelProcess], signature: str, inputs: Tensors) -> Tensors:
        """The outputs of a signature.

        A large request to a model of ours is answered in several calls, each of which waits for its turn like a request
        of its own.

        Args:
          version: held by the caller.
          signature: full name, one that the version has.
          inputs: as they came; checked here.

        Raises:
          RequestError: what is wrong with the request, why it is refused, or what the model says.
        """
        servable, begun = version.servable, time.perf_counter()
        assert servable is not None
        inputs, work = self.check(version, signature, inputs)
        joining, call = servable.joining[signature], servable.calls[signature]
        explorer, propensity = self._intake and self._intake.explorer(version, signature), None
        deeper = explorer.deeper(inputs, partial(joining.work, max_rows=self.limits.rows)) if explorer else None
        given, work = deeper or (inputs, work)
        parts = []
        for start in range(0, max(work.rows, 1), work.call_rows):
            some = given
            if work.rows > work.call_rows:
                some = {name: tensor[start : start + work.call_rows] for name, tensor in given.items()}
            parts.append(await self._batcher((version, signature), call, joining, some, work.row_cells))
        outputs = parts[0] if len(parts) == 1 else await self.aside(LARGE_BYTES, put_together, parts)
        if explorer and deeper is not None:
            size = ITEM_BYTES * outputs["item_ids"].size
            explored = await self.aside(size, explorer.explored, inputs, outputs)
            outputs, propensity = explored.outputs, explored.propensity
            self.metrics.explored(version.model, version.number, explored.items, explored.loss)
        self.metrics.answer(version.model, version.number, signature, time.perf_counter() - begun)
        if (item_ids := outputs.get("item_ids")) is not None:
            lists = await self.aside(ITEM_BYTES * item_ids.size, lists_of, inputs, outputs, servable.items)
            if lists is not None:
                self.metrics.lists(version.model, version.number, signature, lists)
                if self._intake is not None:
                    self._intake.shown(version, signature, lists, inputs, outputs, propensity)
        return outputs

    @asynccontextmanager
    async def within(self, version: Version[ModelProcess], timeout_s: float | None = None) -> AsyncIterator[None]:
        """Cancels the block when the deadline is over, so that no further part of it is computed.

        Args:
          timeout_s: what is left of the client's deadline; ``None``: it sets none.

        Raises:
          RequestError: DEADLINE_EXCEEDED.
        """
        timeout_s = self.limits.timeout_s if timeout_s is None else timeout_s
        try:
            if timeout_s <= 0:
                raise TimeoutError  # or a worker that is free would take it
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise RequestError(
                Code.DEADLINE_EXCEEDED, f"no answer from {version} within {timeout_s:.3g} s, waiting included"
            ) from None

    @contextmanager
    def body(self) -> Iterator[Body]:
        """Counts the bytes of one request while it is read and answered."""
        body = Body(self._count)
        try:
            yield body
        finally:
            if body.bytes > LARGE_BYTES:
                self._give_back_soon()
            body.drop()

    async def aside(self, size: int, work: Callable[..., T], *arguments: object) -> T:
        """Runs ``work`` in a thread, so that other requests are answered meanwhile.

        Args:
          size: about how many bytes it reads or writes; where these are few, it runs at once.
        """
        if size > LARGE_BYTES:
            self._give_back_soon()
        if size <= SMALL_BYTES:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._aside, work, *arguments)

    @contextmanager
    def counted(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts a request and how it ends."""
        start, code = time.perf_counter(), Code.UNKNOWN
        try:
            yield
            code = Code.OK
        except RequestError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        finally:
            known = model if model in self.models.names() else None
            self.metrics.request(known, api, entrypoint, code, time.perf_counter() - start)

    async def close(self) -> None:
        """Waits for the calls that run, beside the loop, in which requests let go of their versions."""
        if self._giving_back:
            self._giving_back.cancel()
        await self._batcher.close()
        await asyncio.to_thread(self._aside.shutdown)
        if self._intake is not None:
            await asyncio.to_thread(self._intake.close)

    def _count(self, size: int) -> None:
        """Adds to the bytes of bodies, or takes off where ``size`` is negative."""
        if size > 0 and self._bodies_bytes + size > self.limits.bodies_bytes:
            raise Busy(
                Code.UNAVAILABLE,
                f"requests that are being read or answered have {self._bodies_bytes} bytes; expected "
                f"{self.limits.bodies_bytes} at most with this one: try again later, or raise --max-bodies-mb",
            )
        self._bodies_bytes += size

    def _give_back_soon(self) -> None:
        """Gives memory back to the system when a large request is done; once for all that end within a second."""
        if self._giving_back is None:
            loop = asyncio.get_running_loop()
            self._giving_back = loop.call_later(GIVE_BACK_AFTER_S, self._give_back)

    def _give_back(self) -> None:
        self._giving_back = None
        asyncio.get_running_loop().run_in_executor(self._aside, give_back_memory)

    def _on_load(self, version: Version[ModelProcess], seconds: float) -> None:
        self.metrics.load(version.model, version.state is State.AVAILABLE, seconds)

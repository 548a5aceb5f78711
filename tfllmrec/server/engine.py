"""The part of the server that both protocols use: the models, the batcher in front of them, and the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server import request_ids
from tfllmrec.server.batching import Batcher, put_together
from tfllmrec.server.canary import CANARY, Arm, arm_of
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

#: The first bytes of each body that do not count, so that small requests are answered even while large ones fill the
#: budget.
UNCOUNTED_BYTES = 64 << 10
#: Up to this size, bodies are decoded and answers are encoded in the event loop, which is faster than in a thread
#: (measured: 0.1 ms for 2 KB of JSON, 0.15 ms more in a thread).
SMALL_BYTES = 4 << 10
#: The facts about a listed item take about as long as this many bytes of JSON (measured: 0.3 ms for 150 items).
ITEM_BYTES = 32
#: After a request with a larger body, unused memory is returned to the system.
LARGE_BYTES = 1 << 20
GIVE_BACK_AFTER_S = 1.0


@dataclass(frozen=True)
class Limits:
    """The limits of the server.

    Attributes:
      body_bytes: The size of the body of a request, both compressed and decompressed.
      bodies_bytes: The total size of the bodies of all requests that are being read or answered, without the first
        :data:`UNCOUNTED_BYTES` of each.
      rows: The number of rows, or of events, of a request; :mod:`tfllmrec.server.work` has further limits for models
        exported by tfllmrec.
      batch_rows: The number of rows that are joined into one call.
      batch_wait_s: The time that a request waits for others to be joined with while a worker is free.
      queue: The number of requests that may wait.
      workers: The number of concurrent calls of models.
      timeout_s: The time, from its last byte on, in which a request is answered if its client sets no deadline; and the
        time in which its body must arrive.
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
    """The server is busy, for example because other requests fill the budget of bodies.

    The client may send the request again after ``retry_after_s`` seconds.
    """

    retry_after_s = 1


class Body:
    """The share of one request in the budget of bodies; :meth:`Engine.body` creates it.

    Args:
      count: Adds bytes to the total, or subtracts them if the number is negative; raises :class:`Busy`.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self.bytes = self.counted = 0

    def add(self, size: int) -> None:
        """Counts received bytes.

        Raises:
          Busy: The bytes exceed the budget.
        """
        self.bytes += size
        more = max(self.bytes - UNCOUNTED_BYTES, 0) - self.counted
        self._count(more)
        self.counted += more

    def drop(self) -> None:
        """Subtracts the counted bytes from the total, because they are no longer kept."""
        self._count(-self.counted)
        self.bytes = self.counted = 0


class Engine:
    """Answers requests whose bodies were decoded to tensors. All calls must come from the same event loop.

    Args:
      limits: The limits of the server.
      load: Loads a version's folder and returns the process that answers, by default :class:`ModelProcess`. It blocks.
      settled_s: See :data:`tfllmrec.server.versions.SETTLED_S`.
      log: The folder of the event log; ``None`` for no log.
      exploration: The exploration of logged lists; ``None`` for no exploration.
      canary_share: The share of users who get the canary if their requests name no version; ``None``: such requests get
        the newest version.

    Raises:
      WriteError, DataError: The log cannot be opened.
    """

    def __init__(
        self,
        limits: Limits,
        load: Callable[[Path], ModelProcess] | None = None,
        settled_s: float = SETTLED_S,
        log: Path | None = None,
        exploration: Exploration | None = None,
        canary_share: float | None = None,
    ) -> None:
        self.limits = limits
        self._canary_share = canary_share
        self.metrics = Metrics(lambda: self._batcher.waiting)
        self._batcher = Batcher(
            limits.workers, limits.batch_rows, limits.batch_wait_s, limits.queue, self.metrics.batch
        )
        self._aside = ThreadPoolExecutor(limits.workers, thread_name_prefix="aside")
        self._bodies_bytes = 0
        self._giving_back: asyncio.TimerHandle | None = None
        load = load or partial(ModelProcess, calls=limits.workers)
        self.models: Models[ModelProcess] = Models(load, settled_s, self._on_load, canary_share is not None)
        self.metrics.versions(self.models.serving)
        self._intake: Intake | None = None
        if log is not None:
            from tfllmrec.server.intake import Intake  # not at the top, because it loads pandas

            self._intake = Intake(log, self, exploration)

    def require_intake(self) -> Intake:
        """Returns the object that takes events.

        Raises:
          RequestError: UNIMPLEMENTED if the server has no event log.
        """
        if self._intake is None:
            raise RequestError(Code.UNIMPLEMENTED, "this server takes no events: start it with --log FOLDER")
        return self._intake

    def check(self, version: Version[ModelProcess], signature: str, inputs: Tensors) -> tuple[Tensors, Work]:
        """Checks the inputs of a request, and returns them with the defaults of omitted inputs, and their work.

        Args:
          version: The version, held by the caller.
          signature: The full name of one of its signatures.
          inputs: The inputs; they may be placeholders without values, see :func:`tfllmrec.server.protos.declared`.

        Raises:
          RequestError: The inputs do not fit the signature, or exceed a limit.
        """
        servable = version.servable
        assert servable is not None
        joining = servable.joining[signature]
        checked = joining.checked(inputs)
        return checked, joining.work(checked, self.limits.rows)

    @contextmanager
    def divided(
        self,
        version: Version[ModelProcess],
        number: int | None,
        label: str | None,
        signature: str,
        inputs: Tensors,
        outputs: Sequence[str] = (),
    ) -> Iterator[tuple[Version[ModelProcess], Arm | None]]:
        """Yields the version that answers a request, and the request's arm; the version stays loaded inside the block.

        If the canary lacks the signature, an input or a requested output, the stable version answers.

        Args:
          version: The version, held by the caller.
          number: The number of the version that the request names; ``None`` or 0 for none.
          label: The label that it names; ``None`` or empty for none. If it names either, this version answers.
          signature: The full name of one of its signatures.
          inputs: The inputs of the request, unchecked.
          outputs: The names of the requested outputs; empty for all.
        """
        canary, arm = None if number or label else self.models.canary_beside(version), None
        if canary is not None and self._canary_share is not None:
            arm = arm_of(version.model, canary, self._canary_share, inputs, request_ids.request_id.get())
        if arm is None or arm.name != CANARY:
            yield version, arm
            return
        with self.models.hold(version.model, canary) as trial:
            assert trial.servable is not None
            wanted = trial.servable.signatures.get(signature)
            yield (trial, arm) if wanted is not None and wanted.fits(inputs, outputs) else (version, None)

    async def predict(
        self, version: Version[ModelProcess], signature: str, inputs: Tensors, arm: Arm | None = None
    ) -> Tensors:
        """Returns the outputs of a signature.

        A large request to a model exported by tfllmrec is answered in several calls, each of which waits in the queue
        like a separate request.

        Args:
          version: The version, held by the caller.
          signature: The full name of one of its signatures.
          inputs: The inputs of the request, unchecked.
          arm: The arm of the request, for the log; ``None`` if it was not assigned.

        Raises:
          RequestError: The request is invalid or refused, or the model raises an error.
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
                    self._intake.shown(version, signature, lists, inputs, outputs, propensity, arm)
        return outputs

    @asynccontextmanager
    async def within(self, version: Version[ModelProcess], timeout_s: float | None = None) -> AsyncIterator[None]:
        """Cancels the block at the deadline, so that its remaining parts are not computed.

        Args:
          version: The version that answers, for the message.
          timeout_s: The time until the client's deadline; ``None`` if it sets none.

        Raises:
          RequestError: DEADLINE_EXCEEDED.
        """
        timeout_s = self.limits.timeout_s if timeout_s is None else timeout_s
        try:
            if timeout_s <= 0:
                raise TimeoutError  # before a free worker takes the request
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
        """Runs ``work`` in a thread, so that other requests are answered in the meantime.

        Args:
          size: The approximate number of bytes that it reads or writes; up to :data:`SMALL_BYTES`, it runs in the event
            loop.
          work: The function.
          arguments: The arguments of the function.
        """
        if size > LARGE_BYTES:
            self._give_back_soon()
        if size <= SMALL_BYTES:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._aside, work, *arguments)

    @contextmanager
    def counted(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts the request that the block answers, with its status and its latency."""
        start, code = time.perf_counter(), Code.INTERNAL
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
        """Waits for running calls and closes the log, without blocking the event loop, where requests still finish."""
        if self._giving_back:
            self._giving_back.cancel()
        await self._batcher.close()
        await asyncio.to_thread(self._aside.shutdown)
        if self._intake is not None:
            await asyncio.to_thread(self._intake.close)

    def _count(self, size: int) -> None:
        """Adds ``size``, which may be negative, to the total size of the bodies.

        Raises:
          Busy: The total exceeds the limit.
        """
        if size > 0 and self._bodies_bytes + size > self.limits.bodies_bytes:
            raise Busy(
                Code.UNAVAILABLE,
                f"requests that are being read or answered have {self._bodies_bytes} bytes; expected "
                f"{self.limits.bodies_bytes} at most with this one: try again later, or raise --max-bodies-mb",
            )
        self._bodies_bytes += size

    def _give_back_soon(self) -> None:
        """Returns memory to the system a second after a large request, once for all requests in this second."""
        if self._giving_back is None:
            loop = asyncio.get_running_loop()
            self._giving_back = loop.call_later(GIVE_BACK_AFTER_S, self._give_back)

    def _give_back(self) -> None:
        self._giving_back = None
        asyncio.get_running_loop().run_in_executor(self._aside, give_back_memory)

    def _on_load(self, version: Version[ModelProcess], seconds: float) -> None:
        self.metrics.load(version.model, version.state is State.AVAILABLE, seconds)

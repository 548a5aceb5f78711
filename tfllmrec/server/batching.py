"""Joins requests that come at the same time into one call of the model.

While all workers are busy, and for a moment (``wait_s``) otherwise, requests wait for others that they may be joined
with; what comes out is cut up again. An answer never depends on who else was in the batch, so only those are joined for
which that is sure: see :class:`Joining`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.tensors import STRING, Signature, Tensors
from tfllmrec.server.work import CALL_CELLS, TextFields, Work, check_rows, work_of

#: Inputs of our own signatures whose rows may be filled up without changing the answer, and with what.
PADDING: dict[str, Any] = {"ratings": np.nan} | dict.fromkeys(
    ("history", "exclude", "allow", "categories", "context", "event_fields", "pinned", "skip"), b""
)
#: The input of our own signatures whose largest value is the width of the answer.
WIDTH = "k"
# Joined are histories of at most so many entries, or of about one length: nobody waits for another's thousands.
SHORT = 16


@dataclass(frozen=True)
class Joining:
    """What of a signature's requests may be joined.

    Joinable are signatures whose every tensor has its rows, of any number, in the first dimension; requests whose other
    dimensions are equal; and, as an answer may be as wide as the widest in the batch, models

    - whose outputs have fixed widths, or
    - that are ours (``ours``): there the width follows from ``k`` and from the items to explain or rank, so the same of
      these go together. Ids and ratings may have any width: they are filled up with what those models ignore.

    Attributes:
      catalogue, ranked, texts: items of a model of ours, those that the signature ranks, and the fields whose texts are
        encoded, by which the work of a request is measured.
    """

    signature: Signature
    ours: bool
    catalogue: int = 0
    ranked: int = 0
    texts: TextFields = field(default_factory=TextFields)

    def checked(self, inputs: Tensors) -> Tensors:
        """The inputs of a request, defaults filled in: those of a model of ours with a row for each row of the others.

        Args:
          inputs: may be without values, as :func:`tfllmrec.server.protos.declared` makes them.

        Raises:
          RequestError: as :meth:`Signature.checked`.
        """
        checked = self.signature.checked(inputs)
        if not self.ours:
            return checked
        rows = max((len(tensor) for tensor in inputs.values() if tensor.ndim), default=1)
        return {
            name: tensor if name in inputs else np.broadcast_to(tensor, (rows, *tensor.shape[1:]))
            for name, tensor in checked.items()
        }

    def work(self, inputs: Tensors, max_rows: int) -> Work:
        """The work that a request asks for.

        Args:
          inputs: as :meth:`checked` returns them; see :func:`tfllmrec.server.work.work_of`.
          max_rows: of a request.

        Raises:
          RequestError: INVALID_ARGUMENT where it is too much, or where inputs of a model of ours do not fit together.
        """
        work = work_of(self.signature, inputs, self.catalogue if self.ours else None, self.ranked, self.texts)
        work.check(max_rows)
        if self.ours:
            check_rows(inputs)
        return work

    def key(self, inputs: Tensors) -> Hashable | None:
        """Requests with the same key may be joined; ``None``: with nobody.

        Args:
          inputs: as :meth:`checked` returns them.
        """
        if not self._safe or len({len(tensor) if tensor.ndim else 0 for tensor in inputs.values()}) != 1:
            return None
        if not len(next(iter(inputs.values()))):
            return None
        return tuple(self._key_of(name, tensor) for name, tensor in sorted(inputs.items()))

    @property
    def _safe(self) -> bool:
        def rows(shape: tuple[int | None, ...] | None) -> bool:
            return bool(shape) and shape[0] is None  # type: ignore[index]

        inputs = [spec.shape for spec in self.signature.inputs.values()]
        outputs = [spec.shape for spec in self.signature.outputs.values()]
        fixed = all(shape is not None and None not in shape[1:] for shape in outputs)
        return all(map(rows, inputs)) and all(map(rows, outputs)) and (self.ours or fixed)

    def _key_of(self, name: str, tensor: np.ndarray) -> Hashable:
        if self._padded(name, tensor):
            return max(tensor.shape[1], SHORT).bit_length()
        widest = int(tensor.max()) if self.ours and name == WIDTH and tensor.size else None
        return tensor.shape[1:], widest

    def _padded(self, name: str, tensor: np.ndarray) -> bool:
        return self.ours and name in PADDING and tensor.ndim == 2

    def join(self, requests: Sequence[Tensors]) -> Tensors:
        """One batch of requests with the same key, rows in order."""
        return {name: self._join_one(name, [request[name] for request in requests]) for name in requests[0]}

    def _join_one(self, name: str, tensors: list[np.ndarray]) -> np.ndarray:
        if not self._padded(name, tensors[0]):
            return np.concatenate(tensors)
        width = max(tensor.shape[1] for tensor in tensors)
        joined = np.full((sum(map(len, tensors)), width), PADDING[name], tensors[0].dtype)
        start = 0
        for tensor in tensors:
            joined[start : start + len(tensor), : tensor.shape[1]] = tensor
            start += len(tensor)
        return joined


class _NotByRows(Exception):
    """A model gave another number of rows than it got, whatever its signature says."""


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """The outputs of a joined batch, for each of its requests."""
    for tensor in outputs.values():
        if not tensor.ndim or len(tensor) != sum(rows):
            raise _NotByRows
    ends = np.cumsum(rows)
    return [
        {name: tensor[end - count : end] for name, tensor in outputs.items()}
        for end, count in zip(ends, rows, strict=True)
    ]


def put_together(parts: Sequence[Tensors]) -> Tensors:
    """The outputs of one request of ours that was answered in parts, rows in order.

    A part is as wide as its largest ``k``; narrower parts are filled up as the model does it, with ``""`` or 0.
    """
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        width = max(tensor.shape[1] if tensor.ndim > 1 else 0 for tensor in tensors)
        for position, tensor in enumerate(tensors):
            if tensor.ndim > 1 and tensor.shape[1] < width:
                filled = np.full((len(tensor), width), b"" if tensor.dtype == STRING else 0, tensor.dtype)
                filled[:, : tensor.shape[1]] = tensor
                tensors[position] = filled
        joined[name] = np.concatenate(tensors)
    return joined


@dataclass(eq=False)
class _Waiting:
    inputs: Tensors
    rows: int
    answer: asyncio.Future[Tensors]


@dataclass(eq=False)
class _Batch:
    call: Callable[[Tensors], Tensors]
    joining: Joining
    key: Hashable
    due: float
    requests: list[_Waiting] = field(default_factory=list)
    rows: int = 0
    row_cells: int = 0

    def takes(self, rows: int, row_cells: int, max_rows: int) -> bool:
        """Whether the batch stays within the limits with another request; every row becomes as wide as the widest."""
        rows += self.rows
        return rows <= max_rows and rows * max(self.row_cells, row_cells) <= CALL_CELLS


class Batcher:
    """Calls models from a few threads, with as many requests at once as may be joined.

    Belongs to one event loop; use it from there.

    Args:
      workers: calls at the same time.
      max_rows: of a batch that is joined; a single request may have more.
      wait_s: how long a request waits for others while a worker is free.
      max_waiting: requests that may wait, beyond which more are refused.
      on_batch: told the number of requests of each batch.
    """

    def __init__(
        self,
        workers: int,
        max_rows: int,
        wait_s: float,
        max_waiting: int,
        on_batch: Callable[[int], None] = lambda requests: None,
    ) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="predict")
        self._free = workers
        self._max_rows, self._wait_s, self._max_waiting = max_rows, wait_s, max_waiting
        self._on_batch = on_batch
        # ``_open`` takes further requests and is in order of what is due; ``_closed`` takes none and only waits.
        self._open: dict[Hashable, _Batch] = {}
        self._closed: deque[_Batch] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = 0

    async def __call__(
        self,
        model: Hashable,
        call: Callable[[Tensors], Tensors],
        joining: Joining,
        inputs: Tensors,
        row_cells: int = 0,
    ) -> Tensors:
        """The model's answer to one request.

        Args:
          model: version and signature: only requests that have the same are joined.
          call: batch to outputs, in a thread.
          row_cells: of the request, see :class:`tfllmrec.server.work.Work`.

        Raises:
          RequestError: UNAVAILABLE, as TF Serving has it, where too many wait; what ``call`` raises.
        """
        if self.waiting >= self._max_waiting:
            raise RequestError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full: "
                f"{self.waiting} requests are waiting; try again later",
            )
        loop = asyncio.get_running_loop()
        key = joining.key(inputs)
        rows = len(next(iter(inputs.values()))) if key is not None else 0
        request = _Waiting(inputs, rows, loop.create_future())
        batch = None if key is None else self._open.get((model, key))
        if batch is not None and not batch.takes(rows, row_cells, self._max_rows):
            self._closed.append(self._open.pop(batch.key))
            batch = None
        if batch is None:
            batch = _Batch(call, joining, (model, key), loop.time() + self._wait_s)
            if key is None:
                self._closed.append(batch)
            else:
                self._open[batch.key] = batch
        batch.requests.append(request)
        batch.rows += rows
        batch.row_cells = max(batch.row_cells, row_cells)
        self.waiting += 1
        if key is not None and batch.rows >= self._max_rows:
            self._closed.append(self._open.pop(batch.key))
        self._start_what_is_due()
        try:
            return await request.answer
        except asyncio.CancelledError:
            # Gone before its turn came: nobody computes it.
            if request in batch.requests:
                batch.requests.remove(request)
                batch.rows -= rows
                self.waiting -= 1
                if not batch.requests:
                    self._drop(batch)
            raise

    async def close(self) -> None:
        """Waits for the calls that run; call it when nothing waits any more."""
        if self._timer:
            self._timer.cancel()
        await asyncio.to_thread(self._pool.shutdown)

    def _drop(self, batch: _Batch) -> None:
        if self._open.get(batch.key) is batch:
            del self._open[batch.key]
        else:
            self._closed.remove(batch)

    def _start_what_is_due(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._free and (self._closed or self._open):
            first = next(iter(self._open.values()), None)
            if self._closed and (first is None or self._closed[0].due <= first.due):
                batch = self._closed.popleft()
            elif first is not None and first.due <= loop.time():
                batch = self._open.pop(first.key)
            elif self._closed:
                batch = self._closed.popleft()
            else:
                assert first is not None
                self._timer = loop.call_at(first.due, self._start_what_is_due)
                return
            self._start(batch)

    def _start(self, batch: _Batch) -> None:
        requests, batch.requests = batch.requests, []
        self.waiting -= len(requests)
        self._free -= 1
        self._on_batch(len(requests))
        work = asyncio.get_running_loop().run_in_executor(
            self._pool, _answers, batch.call, batch.joining, [(request.inputs, request.rows) for request in requests]
        )

        def finish(done: asyncio.Future[list[Tensors | Exception]]) -> None:
            self._free += 1
            for request, answer in zip(requests, done.result(), strict=True):
                if request.answer.done():
                    continue  # its deadline was over, or its client gone
                if isinstance(answer, Exception):
                    request.answer.set_exception(answer)
                else:
                    request.answer.set_result(answer)
            self._start_what_is_due()

        work.add_done_callback(finish)


def _answers(
    call: Callable[[Tensors], Tensors], joining: Joining, requests: Sequence[tuple[Tensors, int]]
) -> list[Tensors | Exception]:
    """What to answer each; a batch that fails is asked again one by one, so that only who is at fault is told so."""
    if len(requests) > 1:
        try:
            return list(split(call(joining.join([inputs for inputs, _ in requests])), [rows for _, rows in requests]))
        except Exception:
            pass
    answers: list[Tensors | Exception] = []
    for inputs, _ in requests:
        try:
            answers.append(call(inputs))
        except Exception as error:
            answers.append(error)
    return answers

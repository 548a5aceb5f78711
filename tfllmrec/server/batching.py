"""Joins concurrent requests into one call of the model.

Requests wait for others to be joined with while all workers are busy, and otherwise for a short time (``wait_s``). The
outputs of the batch are split into the answers. An answer must never depend on the other requests of the batch, so only
requests for which this is certain are joined: see :class:`Joining`.
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
from tfllmrec.server.work import CALL_CELLS, NO_TEXTS, TextFields, Work, check_rows, work_of

#: Inputs of signatures exported by tfllmrec whose rows may be padded without changing the answer, and their padding.
PADDING: dict[str, Any] = {"ratings": np.nan} | dict.fromkeys(
    ("history", "exclude", "allow", "categories", "context", "event_fields", "pinned", "skip"), b""
)
#: The input of signatures exported by tfllmrec whose largest value is the width of the answer.
WIDTH = "k"
# Histories of at most this many entries are joined with each other, and longer ones with those of similar length, so
# that no short request waits for a long one.
SHORT = 16


@dataclass(frozen=True)
class Joining:
    """Decides which requests of a signature may be joined, and joins them.

    All tensors of the signature must have any number of rows in their first dimension, and the other dimensions of the
    requests must be equal. Because an answer may become as wide as the widest one in the batch, one of these must hold:

    - The outputs of the signature have fixed widths.
    - The model was exported by tfllmrec (``ours``). Then the width of an answer follows from ``k`` and from the number
      of items to explain or rank, and requests are joined if these are equal. Ids and ratings may have any width: they
      are padded with values that these models ignore.

    Attributes:
      signature: The signature.
      ours: Whether the model was exported by tfllmrec.
      catalogue: The number of items of a model exported by tfllmrec; it determines the work of a request, as do the
        following attributes.
      ranked: The number of items that the signature orders by the ranking model.
      texts: The fields whose texts the model encodes.
    """

    signature: Signature
    ours: bool
    catalogue: int = 0
    ranked: int = 0
    texts: TextFields = NO_TEXTS

    def checked(self, inputs: Tensors) -> Tensors:
        """Checks the inputs of a request, and returns them with the defaults of omitted inputs.

        The defaults of a model exported by tfllmrec are repeated for each row of the other inputs.

        Args:
          inputs: The inputs; they may be placeholders without values, see :func:`tfllmrec.server.protos.declared`.

        Raises:
          RequestError: See :meth:`Signature.checked`.
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
        """Returns the work of a request, and checks it.

        Args:
          inputs: The result of :meth:`checked`; see :func:`tfllmrec.server.work.work_of`.
          max_rows: The largest number of rows of a request.

        Raises:
          RequestError: INVALID_ARGUMENT if the work is too much, or if the inputs of a model exported by tfllmrec do
            not fit together.
        """
        work = work_of(self.signature, inputs, self.catalogue if self.ours else None, self.ranked, self.texts)
        work.check(max_rows)
        if self.ours:
            check_rows(inputs)
        return work

    def key(self, inputs: Tensors) -> Hashable | None:
        """Returns a key; requests with the same key may be joined. ``None`` if the request cannot be joined.

        Args:
          inputs: The result of :meth:`checked`.
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
        """Joins requests with the same key into one batch, with the rows in order."""
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
    """A model returned another number of rows than it was given, contrary to its signature."""


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """Splits the outputs of a batch into those of its requests.

    Args:
      outputs: The outputs of the batch.
      rows: The number of rows of each request.
    """
    for tensor in outputs.values():
        if not tensor.ndim or len(tensor) != sum(rows):
            raise _NotByRows
    ends = np.cumsum(rows)
    return [
        {name: tensor[end - count : end] for name, tensor in outputs.items()}
        for end, count in zip(ends, rows, strict=True)
    ]


def put_together(parts: Sequence[Tensors]) -> Tensors:
    """Concatenates the outputs of a request that a model exported by tfllmrec has answered in parts.

    A part is as wide as its largest ``k``; narrower parts are padded as the model does, with ``""`` or 0.
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
        """Returns whether the batch stays within the limits with another request.

        Each row of a batch takes as many cells as its largest row.
        """
        rows += self.rows
        return rows <= max_rows and rows * max(self.row_cells, row_cells) <= CALL_CELLS


class Batcher:
    """Calls models in a few threads, and joins requests into batches.

    All calls must come from the same event loop.

    Args:
      workers: The number of concurrent calls of models.
      max_rows: The largest number of rows of a joined batch; a single request may have more.
      wait_s: The time that a request waits for others while a worker is free.
      max_waiting: The number of waiting requests above which further requests are refused.
      on_batch: Called with the number of requests of each batch.
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
        # Batches in ``_open`` accept more requests, and are in the order of their due times. Those in ``_closed`` only
        # wait for a worker.
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
        """Returns the model's answer to one request.

        Args:
          model: The version and the signature; only requests with the same ``model`` are joined.
          call: Computes the outputs of a batch; called in a thread.
          joining: Joins the requests of the signature.
          inputs: The inputs of the request, checked.
          row_cells: The cells of each row, see :class:`tfllmrec.server.work.Work`.

        Raises:
          RequestError: UNAVAILABLE, as in TF Serving, if too many requests wait.
          Exception: Any exception that ``call`` raises.
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
            # If the request still waits, it is removed, so that it is not computed.
            if request in batch.requests:
                batch.requests.remove(request)
                batch.rows -= rows
                self.waiting -= 1
                if not batch.requests:
                    self._drop(batch)
            raise

    async def close(self) -> None:
        """Waits for running calls; call it when no request waits any more."""
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
                    continue  # the deadline has passed, or the client has disconnected
                if isinstance(answer, Exception):
                    request.answer.set_exception(answer)
                else:
                    request.answer.set_result(answer)
            self._start_what_is_due()

        work.add_done_callback(finish)


def _answers(
    call: Callable[[Tensors], Tensors], joining: Joining, requests: Sequence[tuple[Tensors, int]]
) -> list[Tensors | Exception]:
    """Returns the outputs or the error of each request.

    If a batch fails, its requests are computed one by one, so that only the faulty ones get an error.
    """
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

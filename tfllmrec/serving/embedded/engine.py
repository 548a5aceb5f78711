"""What both protocols ask: models, the batcher in front of them, and the figures about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfllmrec.serving.embedded.batching import Batcher
from tfllmrec.serving.embedded.metrics import Metrics
from tfllmrec.serving.embedded.status import Code, RequestError
from tfllmrec.serving.embedded.tensors import Tensors
from tfllmrec.serving.embedded.versions import SETTLED_S, Models, State, Version

if TYPE_CHECKING:
    from tfllmrec.serving.embedded.servable import Servable


@dataclass(frozen=True)
class Limits:
    """How much is taken on at once.

    Attributes:
      body_bytes: of a request.
      batch_rows: that are joined into one call.
      batch_wait_s: how long a request waits for others to be joined with while a worker is free.
      queue: requests that may wait.
      workers: calls of models at the same time.
      timeout_s: of a request whose client sets no deadline, from its last byte on; as much for its body to arrive.
    """

    body_bytes: int = 8 << 20
    batch_rows: int = 64
    batch_wait_s: float = 0.0
    queue: int = 1000
    workers: int = 2
    timeout_s: float = 30.0


class Engine:
    """Answers requests once they are tensors; belongs to one event loop.

    Args:
      load: a version's folder to what answers, blocking; :class:`tfllmrec.serving.embedded.servable.Servable`.
    """

    def __init__(self, limits: Limits, load: Callable[[Path], Servable], settled_s: float = SETTLED_S) -> None:
        self.limits = limits
        self.metrics = Metrics(lambda: self._batcher.waiting)
        self._batcher = Batcher(
            limits.workers, limits.batch_rows, limits.batch_wait_s, limits.queue, self.metrics.batch
        )
        self.models: Models[Servable] = Models(load, settled_s, self._on_load)

    async def predict(
        self, version: Version[Servable], signature: str, inputs: Tensors, timeout_s: float | None = None
    ) -> Tensors:
        """The outputs of a signature.

        Args:
          version: held by the caller.
          signature: full name, one that the version has.
          inputs: as they came; checked here.
          timeout_s: what is left of the client's deadline.

        Raises:
          RequestError: what is wrong with the request, why it is refused, or what the model says.
        """
        servable = version.servable
        assert servable is not None
        checked = servable.signatures[signature].checked(inputs)
        timeout_s = self.limits.timeout_s if timeout_s is None else timeout_s
        try:
            if timeout_s <= 0:
                raise TimeoutError  # or a worker that is free would take it
            async with asyncio.timeout(timeout_s):
                return await self._batcher(
                    (version, signature), servable.calls[signature], servable.joining[signature], checked
                )
        except TimeoutError:
            raise RequestError(
                Code.DEADLINE_EXCEEDED, f"no answer from {version} within {timeout_s:.3g} s, waiting included"
            ) from None

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

    def close(self) -> None:
        """Waits for the calls that run."""
        self._batcher.close()

    def _on_load(self, version: Version[Servable], seconds: float) -> None:
        self.metrics.load(version.model, version.state is State.AVAILABLE, seconds)

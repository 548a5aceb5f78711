"""What a connection may take before a request is one: before its path and its token are known."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Of a request's first line and headers, or of what follows its body; as much as one read more may be in memory.
HEAD_BYTES = 64 << 10


class Connection(HttpToolsProtocol):
    """A connection whose headers may neither grow nor take for ever.

    Uvicorn bounds neither; the application, which bounds the body, is asked only when the headers are complete.

    Args:
      timeout_s: for the headers to arrive, and for the rest of a request that was answered before it was complete.
      given: what uvicorn gives.
    """

    def __init__(self, *, timeout_s: float, **given: Any) -> None:
        super().__init__(**given)
        self._timeout_s = timeout_s
        self._in_head = True
        # Bytes since the last that were the end of something.
        self._unused = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unused += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unused > HEAD_BYTES:
            self._refuse(f"The headers have more than {HEAD_BYTES} bytes.")
        elif self._in_head and self._unused:
            self._set_timer()

    def on_headers_complete(self) -> None:
        self._in_head, self._unused = False, 0
        self._unset_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._unused = True, 0
        self._unset_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self._in_head:
            self._set_timer()
        super().on_response_complete()

    def _set_timer(self) -> None:
        if self._timer is None:
            what = f"The request did not arrive within {self._timeout_s:.3g} s."
            self._timer = self.loop.call_later(self._timeout_s, self._refuse, what)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, what: str) -> None:
        # In the midst of an answer, or after one that was given early, nothing else may be said.
        answered = self.cycle is None or self.cycle.response_complete
        if self._in_head and self._unused and answered:
            self.send_400_response(what)
        else:
            self.transport.close()

"""Limits of a connection that hold before its request is complete: before its path and its token are known."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tfllmrec.client.transports import REQUEST_ID
from tfllmrec.server import request_ids

#: The most bytes of a request's line and headers, and of the trailers behind its body.
HEAD_BYTES = 64 << 10
# The parser does not say where in its input a head begins. A head that begins where a read of the socket begins is
# measured exactly; one that follows another request in the same read may be longer by this much.
STEP_BYTES = 4 << 10
#: The time in which the rest of too large headers is read and dropped. A client whose data is not read before the
#: connection is closed may lose the answer.
DRAIN_S = 0.5


class Connection(HttpToolsProtocol):
    """A connection that limits the size and the time of headers, and the time in which a client takes no answer.

    Uvicorn has none of these limits; the application, which limits the body, is called when the headers are complete.

    Args:
      timeout_s: for the headers to arrive; for the rest of a request that was answered before it was complete; for the
        client to take any byte of an answer.
      given: arguments of uvicorn.
    """

    def __init__(self, *, timeout_s: float, **given: Any) -> None:
        super().__init__(**given)
        self._timeout_s = timeout_s
        self._in_head = True
        # Bytes since the last end of a head or a message, or the last byte of a body.
        self._unused = 0
        self._too_large = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        if self._writing is not None:
            self._writing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        begin = 0
        while begin < len(data) and not self._too_large and not self.transport.is_closing():
            end = begin + min(STEP_BYTES, HEAD_BYTES - self._unused)
            if end == begin:
                self._too_large = True
                self._unset_timer()
                what = f"The headers have more than {HEAD_BYTES} bytes."
                self._timer = self.loop.call_later(DRAIN_S, self._refuse, what)
                return
            part = data[begin:end]
            begin = end
            self._unused += len(part)
            super().data_received(part)
        if self._in_head and self._unused and not self.transport.is_closing():
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
        self._watch_writing()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that the application never sees, and ends the connection."""
        self.server_state = copy.copy(self.server_state)  # the other connections share it
        header = (REQUEST_ID.encode(), request_ids.fresh().encode())
        self.server_state.default_headers = [*self.server_state.default_headers, header]
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def _watch_writing(self) -> None:
        """Ends the connection when the client has taken nothing of an answer for too long."""
        if self._writing is None and (left := self.transport.get_write_buffer_size()):
            self._writing = self.loop.call_later(self._timeout_s, self._look, left, self.cycle)

    def _look(self, left: int, cycle: object) -> None:
        self._writing = None
        # With another answer behind it, the same number of bytes says nothing.
        if self.transport.get_write_buffer_size() < left or self.cycle is not cycle:
            self._watch_writing()
        else:
            self.transport.abort()

    def _set_timer(self) -> None:
        if self._timer is None:
            what = f"The request did not arrive within {self._timeout_s:.3g} s."
            self._timer = self.loop.call_later(self._timeout_s, self._refuse, what)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, what: str) -> None:
        # During an answer, or after one that was given early, nothing else may be said.
        answered = self.cycle is None or self.cycle.response_complete
        if self._in_head and self._unused and answered:
            self.send_400_response(what)
        else:
            self.transport.close()

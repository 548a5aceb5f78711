"""Limits of a connection that apply before a request is complete, and thus before its path and token are known."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tfllmrec.client.transports import REQUEST_ID
from tfllmrec.server import request_ids

#: Largest size of a request's line and headers, and of the trailers after its body.
HEAD_BYTES = 64 << 10
# The parser does not report where in its input the headers begin. If they begin at the start of a read of the socket,
# their size is measured exactly; if they follow another request in the same read, they may exceed the limit by this.
STEP_BYTES = 4 << 10
#: The time in which the rest of too large headers is read and dropped. If a client's data is not read before the
#: connection is closed, the client may not receive the answer.
DRAIN_S = 0.5


class Connection(HttpToolsProtocol):
    """A connection that limits the size and the duration of headers, and how long a client may not read an answer.

    Uvicorn has none of these limits. The application, which limits the body, is called when the headers are complete.

    Args:
      timeout_s: The time in which the headers must arrive; in which the rest of a request must arrive that was answered
        before it was complete; and in which the client must read some bytes of an answer.
      given: The arguments of uvicorn.
    """

    def __init__(self, *, timeout_s: float, **given: Any) -> None:
        super().__init__(**given)
        self._timeout_s = timeout_s
        self._in_head = True
        # Number of bytes since the end of the last headers or message, or since the last part of a body.
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
        """Answers a request that the application does not receive, and closes the connection."""
        self.server_state = copy.copy(self.server_state)  # other connections share the original
        header = (REQUEST_ID.encode(), request_ids.fresh().encode())
        self.server_state.default_headers = [*self.server_state.default_headers, header]
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def _watch_writing(self) -> None:
        """Closes the connection if the client reads nothing of an answer for ``timeout_s``."""
        if self._writing is None and (left := self.transport.get_write_buffer_size()):
            self._writing = self.loop.call_later(self._timeout_s, self._look, left, self.cycle)

    def _look(self, left: int, cycle: object) -> None:
        self._writing = None
        # If another answer has been added, the number of waiting bytes does not show whether the client reads.
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
        # During an answer, or after an answer to an incomplete request, no other answer may be sent.
        answered = self.cycle is None or self.cycle.response_complete
        if self._in_head and self._unused and answered:
            self.send_400_response(what)
        else:
            self.transport.close()

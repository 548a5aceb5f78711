"""Refuses requests that a browser sends for web pages of other sites.

A browser on the same machine can reach even a server that listens only on the loopback address, and so can the pages
open in it: by a request to ``localhost``, whose ``Origin`` is that of the page, or through a name of the page's own
site that resolves to 127.0.0.1 (DNS rebinding), which is then the ``Host``. Programs such as curl send no ``Origin``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tfllmrec.errors import ConfigError

#: The names of the local machine.
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d*)?", re.IGNORECASE | re.ASCII)


class KnownHosts:
    """Answers 403 unless the request's ``Host`` and ``Origin``, if present, name this server; any port is accepted.

    Args:
      app: The application that answers all other requests.
      hosts: Names and addresses of this server in addition to ``LOOPBACK``, without a port.

    Raises:
      ConfigError: One of ``hosts`` is neither a name nor an address.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {*LOOPBACK, *map(_checked, hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for header, value in scope["headers"]:
                text = value.decode("latin-1")
                if header == b"host" and not self._knows(text):
                    await self._refuse(f"Host {text[:200]!r}", scope, receive, send)
                    return
                if header == b"origin" and not self._knows(re.sub("^https?://", "", text)):
                    await self._refuse(f"Origin {text[:200]!r}", scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and match["name"].lower() in self._names

    async def _refuse(self, found: str, scope: Scope, receive: Receive, send: Send) -> None:
        message = (
            f"{found} is not a name of this server: expected {', '.join(sorted(self._names))}. If it is, as behind a "
            "proxy, start the server with --allow-host NAME."
        )
        response = Response(json.dumps({"error": message}), 403, {"content-type": "application/json"})
        await response(scope, receive, send)


def _checked(host: str) -> str:
    name = f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host
    match = _HOST.fullmatch(name)
    if match is None or match["name"] != name:
        raise ConfigError(f"Host {host!r}: expected a name or an address without scheme and port, as for --allow-host.")
    return name.lower()

"""TF Serving's REST API.

GET  /v1/models/NAME[/versions/N|/labels/L]             returns the state of the versions
GET  /v1/models/NAME[/versions/N|/labels/L]/metadata    returns the signatures
POST /v1/models/NAME[/versions/N|/labels/L]:predict     calls a signature
POST /v1/events                                         writes events to the event log, if the server has one
GET  /monitoring/prometheus/metrics                     returns the metrics
GET  /                                                  returns a page for trying a model, if it is enabled

Every answer has the header ``X-Request-Id``.
"""

from __future__ import annotations

import asyncio
import gzip
import hmac
import io
import json
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tfllmrec.client.status import Code, RequestError, invalid
from tfllmrec.client.transports import REQUEST_ID
from tfllmrec.server import json_tensors, metrics, request_ids, try_page
from tfllmrec.server.engine import LARGE_BYTES, Body, Busy, Engine, Limits
from tfllmrec.server.hosts import KnownHosts
from tfllmrec.server.tensors import Signature, Tensors, signature_of
from tfllmrec.server.versions import Version
from tfllmrec.serving.layout import LARGEST_VERSION

if TYPE_CHECKING:
    from tfllmrec.server.model_process import ModelProcess

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MODEL = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"(?i:{_MODEL}:(?P<method>predict|classify|regress))", re.ASCII)
_STATUS = re.compile(rf"(?i:{_MODEL}(?P<metadata>/metadata)?)", re.ASCII)
EVENTS_PATH = "/v1/events"
#: Media types of JSON lines, none of which is registered.
JSON_LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
#: A refused body is still read up to this many times the size limit, so that the client finishes sending and receives
#: the answer.
DRAINED_BODIES = 16
JSON_BYTES = 10  # approximate number for each value


def rest_app(
    engine: Engine, token: str | None = None, hosts: Iterable[str] | None = None, page: bool = False
) -> ASGIApp:
    """Returns the REST API as an ASGI application.

    Args:
      engine: The engine that answers.
      token: Each request must have the header ``Authorization: Bearer TOKEN``; ``None`` for no token.
      hosts: The names of this server, see :class:`KnownHosts`; ``None`` to accept any ``Host`` and ``Origin``.
      page: Whether ``/`` is the page of :mod:`tfllmrec.server.try_page`.

    Raises:
      ConfigError: One of ``hosts`` is neither a name nor an address.
    """
    api = _Api(engine)
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    app: ASGIApp = Starlette(
        routes=[
            Route(metrics.PATH, api.metrics, methods=["GET"]),
            *(Route(path, api.page, methods=["GET"]) for path in (try_page.FILES if page else ())),
            Route("/{path:path}", api.request, methods=methods),
        ]
    )
    if token is not None:
        app = _Guard(app, token)
    if hosts is not None:
        app = KnownHosts(app, hosts)
    return _WithRequestId(app)


class _Api:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def metrics(self, request: Request) -> Response:
        return Response(self._engine.metrics.page(), headers={"content-type": metrics.CONTENT_TYPE})

    async def page(self, request: Request) -> Response:
        models = self._engine.models
        return try_page.page(request.url.path, [name for name in models.names() if models.available(name)])

    async def request(self, request: Request) -> Response:
        """Answers requests to all other paths; a wrong path gets the same answer as from TF Serving."""
        path, method = request.url.path, request.method
        predict = _PREDICT.fullmatch(path) if method == "POST" else None
        status = _STATUS.fullmatch(path) if method in ("GET", "HEAD") else None
        if predict:
            return await _answered(lambda: self._predict(request, predict))
        if method == "POST" and path == EVENTS_PATH:
            return await _answered(lambda: self._events(request))
        if status:
            return await _answered(lambda: self._status(status))
        what = f"Malformed request: {method} {path}"
        if path.lower().startswith("/v1/"):
            return _error(
                400,
                f"{what} (expected GET or POST .../v1/models/NAME[/versions/N|/labels/L][:predict], or POST "
                f"{EVENTS_PATH})",
            )
        return _error(404, f"{what} (the API is below /v1/models/)")

    async def _events(self, request: Request) -> Response:
        engine, compressed = self._engine, _is_compressed(request)
        by_lines = request.headers.get("content-type", "").partition(";")[0].strip().lower() in JSON_LINES
        with engine.body() as body:
            content = await _read(request, body, engine.limits)
            intake = engine.require_intake()
            if compressed:
                content = await self._decompressed(content, body)

            def events() -> list[Any]:
                if by_lines:
                    return intake.of_lines(line for line in io.BytesIO(content) if line.strip())
                return intake.of_document(content)

            receipt = await intake.take(len(content), events)
        told = asdict(receipt)
        del told["request_id"]  # it is in a header
        return _json(json.dumps(told).encode())

    async def _predict(self, request: Request, match: re.Match[str]) -> Response:
        engine, model, api = self._engine, match["model"], match["method"].lower()
        compressed = _is_compressed(request)
        with engine.body() as body:
            content = await _read(request, body, engine.limits)
            with engine.counted(model, api.capitalize(), "REST"):
                if api != "predict":
                    raise RequestError(
                        Code.UNIMPLEMENTED,
                        f":{api} is not answered here, only :predict: call the signature by its name",
                    )
                number, label = _number(match), match["label"]
                with engine.models.hold(model, number, label) as version:
                    answer = self._answer(version, number, label, content, compressed, body)
                    return _json(await _while_connected(request, answer))

    async def _answer(
        self,
        version: Version[ModelProcess],
        number: int | None,
        label: str | None,
        content: bytes,
        compressed: bool,
        body: Body,
    ) -> bytes:
        engine = self._engine
        assert version.servable is not None
        signatures = version.servable.signatures
        async with engine.within(version):
            if compressed:
                content = await self._decompressed(content, body)
            name, inputs, rows = await engine.aside(len(content), _decoded, content, signatures)
            with engine.divided(version, number, label, name, inputs) as (answering, arm):
                outputs = await engine.predict(answering, name, inputs, arm)
            size = JSON_BYTES * sum(output.size for output in outputs.values())
            return await engine.aside(size, json_tensors.encode, outputs, rows)

    async def _decompressed(self, content: bytes, body: Body) -> bytes:
        # In a thread regardless of the compressed size, because a small body may become large.
        content = await self._engine.aside(LARGE_BYTES, _decompressed, content, self._engine.limits.body_bytes)
        body.drop()
        body.add(len(content))
        return content

    async def _status(self, match: re.Match[str]) -> Response:
        models, name, number = self._engine.models, match["model"], _number(match)
        if match["metadata"]:
            with models.hold(name, number, match["label"]) as version:
                assert version.servable is not None
                document: dict[str, Any] = {
                    "model_spec": {"name": name, "signature_name": "", "version": str(version.number)},
                    "metadata": {"signature_def": {"signature_def": version.servable.metadata}},
                }
        else:
            number = models.labelled(name, match["label"]) if match["label"] else number
            document = {
                "model_version_status": [
                    {
                        "version": str(version.number),
                        "state": version.state.name,
                        "status": {"error_code": version.code.name, "error_message": version.error},
                    }
                    for version in models.status(name, number)
                ]
            }
        return _json(json.dumps(document, indent=1).encode())


async def _answered(answer: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await answer()
    except _Unsupported as error:
        return _error(415, str(error), {"accept-encoding": "gzip", "connection": "close"})
    except _TooLarge as error:
        return _error(413, str(error), {"connection": "close"})
    except Busy as error:
        return _error(error.http_status, str(error), {"retry-after": str(error.retry_after_s), "connection": "close"})
    except _TooSlow as error:
        return _error(408, str(error), {"connection": "close"})
    except RequestError as error:
        return _error(error.http_status, error.message)
    except ClientDisconnect:
        return _error(499, "the client went away")
    except Exception as error:
        logger.exception("request %s ended in a bug of the server", request_ids.request_id.get())
        return _error(500, f"{type(error).__name__}: {error}")


class _Unsupported(RequestError):
    """The body has an unsupported compression: status 415."""


class _TooLarge(RequestError):
    """The body is too large: status 413. TF Serving has no such limit, and so no status for it."""


class _TooSlow(RequestError):
    """The body did not arrive in time: status 408."""


def _is_compressed(request: Request) -> bool:
    """Returns whether the body is compressed with gzip, which TF Serving accepts, too.

    Raises:
      _Unsupported: The body has another compression.
    """
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise _Unsupported(
            Code.INVALID_ARGUMENT, f"Content-Encoding is {encoding[:40]!r}; expected gzip or a body without compression"
        )
    return encoding.endswith("gzip")


async def _read(request: Request, body: Body, limits: Limits) -> bytes:
    """Reads the body of a request, and keeps no more of it in memory than the limits allow.

    The rest of a refused body is still read, up to :data:`DRAINED_BODIES` times the size limit, and dropped.

    Args:
      request: The request.
      body: Counts the bytes that are kept.
      limits: The limits of the server.

    Raises:
      _TooLarge, _TooSlow, Busy: The body exceeds ``limits``.
    """
    parts: list[bytes] = []
    size, refusal = 0, None
    try:
        async with asyncio.timeout(limits.timeout_s):
            async for part in request.stream():
                size += len(part)
                if refusal is None:
                    try:
                        if size > limits.body_bytes:
                            raise _too_large(limits.body_bytes)
                        body.add(len(part))
                        parts.append(part)
                    except RequestError as error:
                        refusal = error
                        parts.clear()
                        body.drop()
                if size > DRAINED_BODIES * limits.body_bytes:
                    break
    except TimeoutError:
        raise _TooSlow(
            Code.DEADLINE_EXCEEDED, f"the body did not arrive within {limits.timeout_s:.3g} s ({size} bytes did)"
        ) from None
    if refusal is not None:
        raise refusal
    return b"".join(parts)


def _too_large(limit: int) -> _TooLarge:
    return _TooLarge(
        Code.RESOURCE_EXHAUSTED, f"the body has more than {limit} bytes: send fewer rows, or raise --max-body-mb"
    )


def _decompressed(content: bytes, limit: int) -> bytes:
    """Decompresses gzip data.

    Raises:
      RequestError: INVALID_ARGUMENT if the data is damaged.
      _TooLarge: The decompressed data has more than ``limit`` bytes.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            decompressed = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise invalid(f"the body is not valid gzip data: {error}") from None
    if len(decompressed) > limit:
        raise _too_large(limit)
    return decompressed


def _decoded(content: bytes, signatures: Mapping[str, Signature]) -> tuple[str, Tensors, bool]:
    """Returns the name of the signature that a body calls, its inputs, and whether these are given by rows."""
    document = json_tensors.parse(content)
    name, signature = signature_of(signatures, json_tensors.signature_name(document), Code.INVALID_ARGUMENT)
    inputs, rows = json_tensors.decode(document, signature.inputs)
    return name, inputs, rows


async def _while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Returns the result of ``answer``, and cancels it if the client disconnects, so that it is not computed in vain.

    Args:
      request: The request, whose body was read.
      answer: Computes the answer.

    Raises:
      RequestError: CANCELLED if the client has disconnected; the errors of ``answer``.
    """
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_leaving(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise RequestError(Code.CANCELLED, "the client went away")
        return answering.result()
    finally:
        leaving.cancel()
        if not answering.done():
            answering.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _leaving(request: Request) -> None:
    """Returns when the client has disconnected; drops further data, behind which this would not be noticed."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _number(match: re.Match[str]) -> int | None:
    text = match["version"]
    if text is None:
        return None
    if len(text) > 19 or int(text) > LARGEST_VERSION:
        raise invalid(f"Failed to convert version: {text[:40]} to numeric.")
    return int(text)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, {"content-type": "application/json", **(headers or {})})


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json(json.dumps({"error": message}).encode(), status, headers)


class _WithRequestId:
    """Adds the id of the request to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID.encode()), b"")
        header = (REQUEST_ID.encode(), request_ids.take(given.decode("latin-1")).encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, receive, send_with_id)


class _Guard:
    """Refuses requests without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._expected):
                response = _error(401, "expected 'Authorization: Bearer TOKEN' with this server's token")
                response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

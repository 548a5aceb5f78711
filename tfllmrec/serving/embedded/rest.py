"""TF Serving's REST API.

GET  /v1/models/NAME[/versions/N|/labels/L]             state of the versions
GET  /v1/models/NAME[/versions/N|/labels/L]/metadata    signatures
POST /v1/models/NAME[/versions/N|/labels/L]:predict     an answer
GET  /monitoring/prometheus/metrics                     figures
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tfllmrec.serving.embedded import json_tensors, metrics
from tfllmrec.serving.embedded.engine import Engine
from tfllmrec.serving.embedded.status import Code, RequestError, invalid
from tfllmrec.serving.embedded.tensors import signature_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MODEL = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"(?i:{_MODEL}:(?P<method>predict|classify|regress))", re.ASCII)
_STATUS = re.compile(rf"(?i:{_MODEL}(?P<metadata>/metadata)?)", re.ASCII)
LARGEST_VERSION = 2**63 - 1
#: Of a body that is too large so much is still read, so that the client finishes sending and sees the answer.
DRAINED_BODIES = 16


def rest_app(engine: Engine, token: str | None = None) -> ASGIApp:
    """The REST API as an ASGI application.

    Args:
      token: asked for as ``Authorization: Bearer TOKEN`` with each request.
    """
    api = _Api(engine)
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    app = Starlette(
        routes=[
            Route(metrics.PATH, api.metrics, methods=["GET"]),
            Route("/{path:path}", api.request, methods=methods),
        ]
    )
    return app if token is None else _Guard(app, token)


class _Api:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def metrics(self, request: Request) -> Response:
        return Response(self._engine.metrics.page(), headers={"content-type": metrics.CONTENT_TYPE})

    async def request(self, request: Request) -> Response:
        """Anything below ``/v1/``; a wrong path is answered as TF Serving does."""
        path, method = request.url.path, request.method
        predict = _PREDICT.fullmatch(path) if method == "POST" else None
        status = _STATUS.fullmatch(path) if method in ("GET", "HEAD") else None
        if predict:
            return await _answered(lambda: self._predict(request, predict))
        if status:
            return await _answered(lambda: self._status(status))
        what = f"Malformed request: {method} {path}"
        if path.lower().startswith("/v1/"):
            return _error(400, f"{what} (expected GET or POST .../v1/models/NAME[/versions/N|/labels/L][:predict])")
        return _error(404, f"{what} (the API is below /v1/models/)")

    async def _predict(self, request: Request, match: re.Match[str]) -> Response:
        engine, model, api = self._engine, match["model"], match["method"].lower()
        body = await _body(request, engine.limits.body_bytes, engine.limits.timeout_s)
        with engine.counted(model, api.capitalize(), "REST"):
            if api != "predict":
                raise RequestError(
                    Code.UNIMPLEMENTED, f":{api} is not answered here, only :predict: call the signature by its name"
                )
            with engine.models.hold(model, _number(match), match["label"]) as version:
                document = json_tensors.parse(body)
                assert version.servable is not None
                name, signature = signature_of(
                    version.servable.signatures, json_tensors.signature_name(document), Code.INVALID_ARGUMENT
                )
                inputs, rows = json_tensors.decode(document, signature.inputs)
                outputs = await _while_connected(request, engine.predict(version, name, inputs))
            return _json(json_tensors.encode(outputs, rows))

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
    except _TooLarge as error:
        return _error(413, str(error), {"connection": "close"})
    except _TooSlow as error:
        return _error(408, str(error), {"connection": "close"})
    except RequestError as error:
        return _error(error.http_status, error.message)
    except ClientDisconnect:
        return _error(499, "the client went away")
    except Exception as error:
        logger.exception("a request ended in a bug of the server")
        return _error(500, f"{type(error).__name__}: {error}")


class _TooLarge(RequestError):
    """TF Serving has no such limit and so no status for it: 413."""


class _TooSlow(RequestError):
    """The body did not arrive: 408."""


async def _body(request: Request, limit: int, timeout_s: float) -> bytes:
    """The body of a request, no more of it in memory than ``limit``."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                else:
                    parts.clear()
                if size > DRAINED_BODIES * limit:
                    break
    except TimeoutError:
        raise _TooSlow(
            Code.DEADLINE_EXCEEDED, f"the body did not arrive within {timeout_s:.3g} s ({size} bytes did)"
        ) from None
    if size > limit:
        raise _TooLarge(
            Code.RESOURCE_EXHAUSTED, f"the body has more than {limit} bytes: send fewer rows, or raise --max-body-mb"
        )
    return b"".join(parts)


async def _while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """The answer, given up when the client goes away: what waits for its turn then is not computed.

    Args:
      request: whose body was read.

    Raises:
      RequestError: CANCELLED: the client went away; what ``answer`` raises.
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
    """Ends when the client has gone; also reads on, or nobody would see that behind a large body."""
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


class _Guard:
    """Lets only those in that know the token."""

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

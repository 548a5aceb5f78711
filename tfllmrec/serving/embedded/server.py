"""The embedded server: a folder of SavedModels behind TF Serving's two protocols, in one process.

For a laptop and a small box. It is one Python process: requests are read and answers written on one core, models run in
a few threads beside it. TF Serving itself serves the same folders to many more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import uvicorn
import uvloop

from tfllmrec.errors import ConfigError
from tfllmrec.serving.embedded.connections import Connection
from tfllmrec.serving.embedded.engine import Engine, Limits
from tfllmrec.serving.embedded.grpc_service import Guard, add_services
from tfllmrec.serving.embedded.models_config import ModelSource, read_sources
from tfllmrec.serving.embedded.rest import rest_app
from tfllmrec.serving.embedded.servable import Servable
from tfllmrec.serving.embedded.tensors import DEFAULT_SIGNATURE, STRING, TensorSpec
from tfllmrec.serving.embedded.versions import SETTLED_S

logger = logging.getLogger(__name__)

# The interpreter lets a thread go on for so long before another gets its turn; with its 5 ms, the loop would often wait
# longer for a thread that loads a model than for the model's answer.
SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
      path: a folder of models, one model's folder, or a ``models.config``.
      host: address to listen on; the loopback one keeps others out.
      rest_port, grpc_port: 0 for any free one.
      poll_s: seconds between looks at the folders.
      settled_s: nothing in a version's folder may have changed for so long before it is loaded.
      grace_s: what runs when the server is told to stop may take so long to finish.
      certificate, key: PEM files; both protocols speak TLS with them.
      token: asked of every request as ``Authorization: Bearer TOKEN``.
    """

    path: Path
    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    poll_s: float = 1.0
    settled_s: float = SETTLED_S
    grace_s: float = 30.0
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None
    limits: Limits = field(default_factory=Limits)


class Server:
    """The server; use it inside an event loop: :meth:`start`, then :meth:`stop`.

    Attributes:
      engine: what answers.
      rest_port, grpc_port: the real ones, once started.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rest_port = self.grpc_port = 0
        # Until a client asks for other models, the path says which.
        self._sources: list[ModelSource] | None = None
        self._read: list[ModelSource] = []
        self._trouble = ""

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        with contextlib.suppress(ValueError):
            return ip_address(self.settings.host).is_loopback
        return self.settings.host == "localhost"

    def loaded(self) -> dict[str, list[int]]:
        """The versions of each model that answer now."""
        return {name: self.engine.models.available(name) for name in self.engine.models.names()}

    def example(self) -> tuple[str, str] | None:
        """A model that answers and a body for its ``:predict``, of the right form and with nothing in it."""
        for name, numbers in self.loaded().items():
            if numbers:
                with self.engine.models.hold(name) as version:
                    assert version.servable is not None
                    signatures = version.servable.signatures
                    if not signatures:
                        continue
                    chosen = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else min(signatures)
                    body = {"signature_name": chosen} if chosen != DEFAULT_SIGNATURE else {}
                    inputs = {key: _blank(spec) for key, spec in sorted(signatures[chosen].inputs.items())}
                    return name, json.dumps({**body, "inputs": inputs})
        return None

    async def start(self) -> None:
        """Loads the models and then opens the ports.

        Raises:
          ConfigError: the path, the addresses or the TLS files are wrong, or REST's server ends at once.
        """
        settings = self.settings
        self._read = read_sources(settings.path)
        tls = _tls(settings)
        rest_socket = _listen(settings.host, settings.rest_port)
        try:
            self.engine = Engine(settings.limits, Servable, settings.settled_s)
            self._grpc = self._grpc_server(tls)
            await self._first_models()
            await self._grpc.start()
            self._rest = _Uvicorn(self._rest_config())
            self._rest_task = asyncio.create_task(self._rest.serve([rest_socket]))
            while not self._rest.started:
                if self._rest_task.done():
                    await self._grpc.stop(None)
                    error = self._rest_task.exception()
                    raise ConfigError(
                        f"REST cannot be answered: {type(error).__name__}: {error}. Expected what tfllmrec[serve] "
                        "installs: pip install --upgrade 'tfllmrec[serve]'."
                    ) from error
                await asyncio.sleep(0.005)
        except BaseException:
            rest_socket.close()
            raise
        self.rest_port = rest_socket.getsockname()[1]
        self._polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Takes no more requests, finishes those that run, and lets the models go.

        What is being loaded is not waited for: see ``engine.models.loading``.
        """
        self._polling.cancel()
        self.engine.models.stop_loading()
        self._rest.should_exit = True
        await asyncio.gather(self._grpc.stop(self.settings.grace_s), self._rest_task)
        with contextlib.suppress(asyncio.CancelledError):
            await self._polling
        self.engine.close()
        await self.engine.models.close()

    async def reload(self, sources: list[ModelSource]) -> list[str]:
        """Serves these models instead, until the next reload; returns what is to be said of labels."""
        self._sources = sources
        await self.engine.models.follow(sources)
        return self.engine.models.unmoved_labels(sources)

    async def _first_models(self) -> None:
        """A version that was just written needs its time to settle; longer than that nobody waits."""
        models = self.engine.models
        await models.follow(self._read)
        if models.undecided():
            await asyncio.sleep(self.settings.settled_s + 0.1)
            await models.follow(self._read)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.settings.poll_s)
            try:
                if self._sources is None:
                    self._read = await asyncio.to_thread(read_sources, self.settings.path, self._read)
                self._trouble = ""
            except (ConfigError, OSError) as error:
                # What was read last stays in force; said once, not with each poll.
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    logger.error("%s What is served stays as it is.", error)
            try:
                await self.engine.models.follow(self._read if self._sources is None else self._sources)
            except Exception:
                logger.exception("looking for versions failed; it is tried again")

    def _grpc_server(self, tls: grpc.ServerCredentials | None) -> grpc.aio.Server:
        settings = self.settings
        server = grpc.aio.server(
            interceptors=[Guard(settings.token)] if settings.token else [],
            options=[
                ("grpc.max_receive_message_length", settings.limits.body_bytes),
                ("grpc.max_send_message_length", -1),
                # Or a second server on the same port would share its requests in silence.
                ("grpc.so_reuseport", 0),
            ],
        )
        add_services(server, self.engine, self.reload if self.local or settings.token else None)
        address = _address(settings.host, settings.grpc_port)
        try:
            self.grpc_port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
        except RuntimeError as error:
            raise ConfigError(f"gRPC cannot listen on {address}: {error}. Choose another --grpc-port.") from None
        return server

    def _rest_config(self) -> uvicorn.Config:
        settings = self.settings
        return uvicorn.Config(
            rest_app(self.engine, settings.token),
            http=partial(Connection, timeout_s=settings.limits.timeout_s),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.grace_s),
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            backlog=1024,
        )


def serve(settings: Settings, started: Callable[[Server], None]) -> bool:
    """Serves until SIGTERM or Ctrl-C; a second one ends it at once.

    Args:
      started: called when the ports are open.

    Returns:
      :attr:`tfllmrec.serving.embedded.versions.Models.loading`, by which the process must be ended then.

    Raises:
      ConfigError: as :meth:`Server.start`.
      KeyboardInterrupt: a second Ctrl-C.
    """
    _allow_many_connections()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What is imported stays, so what is left of an unloaded version need not be looked for in there: that would hold up
    # all requests for a tenth of a second.
    gc.collect()
    gc.freeze()

    async def main() -> bool:
        server = Server(settings)
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def stop_once(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop_once, number)
        starting = asyncio.ensure_future(server.start())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            started(server)
            await stopping
        else:
            with contextlib.suppress(asyncio.CancelledError):
                starting.cancel()
                await starting
            return server.engine.models.loading
        logger.info("stopping: no new requests; those that run are finished")
        await server.stop()
        return server.engine.models.loading

    return uvloop.run(main())


class _Uvicorn(uvicorn.Server):
    """Leaves signals to :func:`serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _blank(spec: TensorSpec) -> Any:
    """The plainest value that an input takes: one row, no text, small numbers."""
    if spec.dtype == STRING:
        value: Any = ""
    else:
        value = {"b": False, "i": 5, "u": 5}.get(spec.dtype.kind, 1.0)
    for size in reversed(spec.shape or ()):
        value = [value] * (1 if size is None else size)
    return value


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"REST cannot listen on {_address(host, port)}: {error.strerror or error}. Choose another --rest-port."
        ) from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.certificate is None and settings.key is None:
        return None
    if settings.certificate is None or settings.key is None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key.")
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.key)
        return grpc.ssl_server_credentials([(settings.key.read_bytes(), settings.certificate.read_bytes())])
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{settings.certificate} and {settings.key}: expected a certificate and its key as PEM: {error}."
        ) from None


def _allow_many_connections() -> None:
    """As many open sockets as the system lets this process have; the usual 1024 are few for a thousand clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))

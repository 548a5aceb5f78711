"""The embedded server, which serves a folder of SavedModels with TF Serving's two protocols.

It is meant for laptops and small servers. One process reads requests and writes answers; each version of a model runs
in its own process. TF Serving itself serves the same folders to many more clients.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from tfllmrec.feedback.exploration import Exploration
from tfllmrec.server.connections import Connection
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.grpc_service import Guard, WithRequestId, add_services
from tfllmrec.server.models_config import ModelSource, read_sources, require_below, sources_of
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import DEFAULT_SIGNATURE, STRING, TensorSpec
from tfllmrec.server.versions import SETTLED_S

logger = logging.getLogger(__name__)

# The time for which the interpreter lets a thread run before it switches to another. With the default of 5 ms, the
# event loop would often wait longer for a thread that decodes a large body than for a model's answer.
SWITCH_INTERVAL_S = 0.0005
#: Number of connections that the system queues until they are accepted.
BACKLOG = 1024
#: A gRPC connection without calls is closed after this time; gRPC clients open another one automatically.
GRPC_IDLE_S = 300.0


@dataclass(frozen=True)
class Settings:
    """The settings of the server.

    Attributes:
      path: A folder of models, one model's folder, or a ``models.config``.
      host: The address to listen on; other machines cannot reach a loopback address.
      allow_hosts: Further names by which clients reach this server, such as that of a proxy. ``Host`` and ``Origin`` of
        REST requests are checked if ``host`` is a loopback address or ``allow_hosts`` is not empty.
      rest_port, grpc_port: The ports; 0 for any free port.
      poll_s: The number of seconds between two reads of the folders.
      settled_s: A version is loaded when nothing in its folder has changed for this many seconds.
      grace_s: The number of seconds that running requests have to finish when the server is stopped.
      certificate, key: PEM files; with them, both protocols use TLS.
      token: Every request must have the header ``Authorization: Bearer TOKEN``; ``None`` for no token.
      page: Whether ``/`` is a page for trying a model. With ``None``, it is if only this machine can reach the server
        and there is no token.
      log: The folder of the event log, which is created if it does not exist. With ``None``, events are refused, and
        lists are not logged.
      exploration: The exploration of logged lists; ``None`` for no exploration.
      canary_share: See :class:`~tfllmrec.server.engine.Engine`.
      allow_reload: Whether clients may choose the models with ``HandleReloadConfigRequest``; with a token, they always
        may.
      limits: The limits on requests.
    """

    path: Path
    host: str = "127.0.0.1"
    allow_hosts: tuple[str, ...] = ()
    rest_port: int = 8501
    grpc_port: int = 8500
    poll_s: float = 1.0
    settled_s: float = SETTLED_S
    grace_s: float = 30.0
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None
    page: bool | None = None
    allow_reload: bool = False
    log: Path | None = None
    exploration: Exploration | None = None
    canary_share: float | None = None
    limits: Limits = field(default_factory=Limits)


class Server:
    """The server; use it inside an event loop: :meth:`start`, then :meth:`stop`.

    Attributes:
      engine: The models and the queue in front of them.
      rest_port, grpc_port: The actual ports after the start.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rest_port = self.grpc_port = 0
        # The models of the last reload; ``None`` before the first reload, while the models of the path are served.
        self._sources: list[ModelSource] | None = None
        self._read: list[ModelSource] = []
        self._trouble = ""

    @property
    def local(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        with contextlib.suppress(ValueError):
            return ip_address(self.settings.host).is_loopback
        return self.settings.host == "localhost"

    @property
    def has_page(self) -> bool:
        """Whether ``/`` is a page for trying a model."""
        wanted = self.settings.page
        return (self.local and self.settings.token is None) if wanted is None else wanted

    @property
    def reloadable(self) -> bool:
        """Whether clients may choose the models."""
        return self.settings.allow_reload or self.settings.token is not None

    def loaded(self) -> dict[str, list[int]]:
        """Returns the available versions of each model."""
        return {name: self.engine.models.available(name) for name in self.engine.models.names()}

    def example(self) -> tuple[str, str] | None:
        """Returns the name of an available model, and a valid body for its ``:predict`` with placeholder values.

        Returns ``None`` if no model with a signature is available.
        """
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
        """Loads the models and then opens the ports, so that a client that can connect is answered.

        The ports stay closed until a version of a model is loaded, or loading has failed for all models. They are
        opened at once if there is no model, but clients may choose one or send events.

        Raises:
          ConfigError: The path, the addresses or the TLS files are invalid, or the REST server ends immediately.
          WriteError, DataError: The event log cannot be opened.
        """
        settings = self.settings
        self._read = read_sources(settings.path)
        tls = _tls(settings)
        if settings.rest_port == settings.grpc_port != 0:
            raise ConfigError(f"--rest-port and --grpc-port are both {settings.rest_port}: expected two ports.")
        async with contextlib.AsyncExitStack() as until_started:
            rest_socket = until_started.enter_context(_reserve("REST", settings.host, settings.rest_port))
            with _reserve("gRPC", settings.host, settings.grpc_port) as grpc_socket:
                self.rest_port, self.grpc_port = rest_socket.getsockname()[1], grpc_socket.getsockname()[1]
                self.engine = Engine(
                    settings.limits,
                    settled_s=settings.settled_s,
                    log=settings.log,
                    exploration=settings.exploration,
                    canary_share=settings.canary_share,
                )
                until_started.push_async_callback(self._unload)
                rest = self._rest_server()
                await self._first_models()
            self._grpc = self._grpc_server(tls)
            await self._grpc.start()
            until_started.push_async_callback(self._grpc.stop, None)
            await self._start_rest(rest, rest_socket)
            until_started.pop_all()  # uvicorn closes the socket
        self._polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Accepts no more requests, finishes the running ones, and unloads the models.

        A version that is being loaded is discarded; its process ends when it is loaded, or when this process exits.
        """
        self._polling.cancel()
        self._rest.should_exit = True
        self.engine.models.stop_loading()
        await asyncio.gather(self._grpc.stop(self.settings.grace_s), self._rest_task)
        with contextlib.suppress(asyncio.CancelledError):
            await self._polling
        await self._unload()

    async def _unload(self) -> None:
        self.engine.models.stop_loading()
        await self.engine.models.close()  # ends hanging calls, for which the engine would wait
        await self.engine.close()

    async def reload(self, config: Any) -> list[str]:
        """Serves other models until the next reload.

        Args:
          config: A ``ModelServerConfig``. Its models must be below the served folder or, if a ``models.config`` is
            served, below the folder of that file or a ``base_path`` in it.

        Returns:
          A message for each label that could not be moved.

        Raises:
          ConfigError: The configuration is invalid, or a model is in another folder.
        """
        path = self.settings.path
        folders = [path.parent, *(source.base for source in self._read)] if path.is_file() else [path]
        sources = sources_of(config, folders[0])
        require_below(sources, folders)
        self._sources = sources
        await self.engine.models.follow(sources)
        return self.engine.models.unmoved_labels(sources)

    async def _first_models(self) -> None:
        """Loads the models, and returns when the ports may be opened; see :meth:`start`."""
        models = self.engine.models
        logger.info("%s: loading; the ports open when a model is loaded", self.settings.path)
        await models.follow(self._read)
        if models.undecided():
            # A version that was just written is loaded only after ``settled_s``.
            await asyncio.sleep(self.settings.settled_s + 0.1)
            await models.follow(self._read)
        if not self._ready():
            logger.warning(
                "%s: expected a version such as NAME/1/saved_model.pb, found none that is complete. The ports stay "
                "closed until one is loaded.",
                self.settings.path,
            )
        while not self._ready():
            await asyncio.sleep(self.settings.poll_s)
            await self._look()

    def _ready(self) -> bool:
        if any(self.loaded().values()):
            return True
        of_use = bool(self.engine.models.names()) or self.reloadable or self.settings.log is not None
        return of_use and not self.engine.models.undecided()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.settings.poll_s)
            await self._look()

    async def _look(self) -> None:
        """Reads the path again, and loads and unloads versions accordingly; an error is logged and changes nothing."""
        try:
            if self._sources is None:
                self._read = await asyncio.to_thread(read_sources, self.settings.path, self._read)
            self._trouble = ""
        except ConfigError as error:
            # The models that were read last are served. The error is logged once, not at each poll.
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.error("%s The models stay as they are.", error)
        try:
            await self.engine.models.follow(self._read if self._sources is None else self._sources)
        except Exception:
            logger.exception("looking for versions failed; it is tried again")

    def _grpc_server(self, tls: grpc.ServerCredentials | None) -> grpc.aio.Server:
        settings = self.settings
        server = grpc.aio.server(
            interceptors=[WithRequestId(), *([Guard(settings.token)] if settings.token else [])],
            options=[
                # gRPC's numbers are int32.
                ("grpc.max_receive_message_length", min(settings.limits.body_bytes, 2**31 - 1)),
                ("grpc.max_send_message_length", -1),
                # Otherwise, a second server on the same port would receive some of the requests.
                ("grpc.so_reuseport", 0),
                # The handshakes of TLS and HTTP/2.
                ("grpc.server_handshake_timeout_ms", int(min(settings.limits.timeout_s * 1000, 2**31 - 1))),
                ("grpc.max_connection_idle_ms", int(GRPC_IDLE_S * 1000)),
            ],
        )
        add_services(server, self.engine, self.reload if self.reloadable else None)
        address = _address(settings.host, self.grpc_port)
        try:
            if tls is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, tls)
        except RuntimeError as error:
            raise ConfigError(f"gRPC cannot listen on {address}: {error}. Choose another --grpc-port.") from None
        return server

    def _rest_server(self) -> _Uvicorn:
        settings = self.settings
        hosts = (settings.host, *settings.allow_hosts) if self.local or settings.allow_hosts else None
        app = rest_app(self.engine, settings.token, hosts, self.has_page)
        return _Uvicorn(
            uvicorn.Config(
                app,
                http=partial(Connection, timeout_s=settings.limits.timeout_s),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=settings.grace_s,  # type: ignore[arg-type]
                ssl_certfile=settings.certificate,
                ssl_keyfile=settings.key,
                backlog=BACKLOG,
            ),
            settings.limits.timeout_s,
        )

    async def _start_rest(self, rest: _Uvicorn, listening: socket.socket) -> None:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections inherit it; see _reserve
            listening.listen(BACKLOG)
        except OSError as error:
            raise _no_port("REST", self.settings.host, self.rest_port, error) from None
        self._rest = rest
        self._rest_task = asyncio.create_task(rest.serve([listening]))
        while not rest.started:
            if self._rest_task.done():
                reason = self._rest_task.exception()
                raise ConfigError(
                    f"The REST server has ended: {type(reason).__name__}: {reason}. Expected the packages of "
                    "tfllmrec[serve]: pip install --upgrade 'tfllmrec[serve]'."
                ) from reason
            await asyncio.sleep(0.005)


def serve(settings: Settings, started: Callable[[Server], None]) -> None:
    """Serves until SIGTERM or Ctrl-C; a second signal ends the process at once.

    Args:
      settings: The settings of the server.
      started: Called when the ports are open.

    Raises:
      ConfigError, WriteError, DataError: See :meth:`Server.start`.
      KeyboardInterrupt: Ctrl-C was pressed a second time.
    """
    _allow_many_connections()
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def main() -> None:
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
            return
        logger.info("stopping: no new requests; those that run are finished")
        await server.stop()

    uvloop.run(main())


class _Uvicorn(uvicorn.Server):
    """A uvicorn server that leaves signals to :func:`serve`, and limits the time of a TLS handshake.

    Asyncio's default limit is a minute.

    Args:
      config: The configuration of uvicorn.
      handshake_s: The limit in seconds.
    """

    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, loop = self.config, asyncio.get_running_loop()
        connection = partial(  # type: ignore[call-arg]
            config.http_protocol_class,
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self.servers = [
            await loop.create_server(
                connection,
                sock=listening,
                backlog=config.backlog,
                ssl=config.ssl,
                ssl_handshake_timeout=self._handshake_s if config.ssl else None,
            )
            for listening in sockets or []
        ]
        self.started = True


def _blank(spec: TensorSpec) -> Any:
    """Returns a simple value for an input: one row, empty texts, small numbers."""
    if spec.dtype == STRING:
        value: Any = ""
    else:
        value = {"b": False, "i": 5, "u": 5}.get(spec.dtype.kind, 1.0)
    for size in reversed(spec.shape or ()):
        value = [value] * (1 if size is None else size)
    return value


def _reserve(protocol: str, host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to the address but does not listen yet, so that connections are refused.

    Raises:
      ConfigError: The address is in use or does not exist.
    """
    # With SO_REUSEADDR, two servers could reserve the same port while both load models. It is the second choice, for
    # ports that only closed connections of an earlier server keep.
    for reuse in (False, True):
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            if bound.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            bound.bind((host, port))
            return bound
        except OSError as error:
            bound.close()
            refused = _no_port(protocol, host, port, error)
    raise refused


def _no_port(protocol: str, host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"{protocol} cannot listen on {_address(host, port)}: {error.strerror or error}. Choose another "
        f"--{protocol.lower()}-port."
    )


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
    """Raises the limit of open files to the largest one allowed, at most 65536; 1024 are too few for 1000 clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))

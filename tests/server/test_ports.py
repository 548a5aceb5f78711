"""Who may connect to the embedded server, when, and for how long: a stand-in for the models, real sockets."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading

import httpx
import pytest

from tfllmrec.errors import ConfigError

pytestmark = pytest.mark.tf

grpc = pytest.importorskip("grpc")


class Loads:
    """Loads any version whose file says so, when ``go`` is set."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, folder, calls):
        self.begun.set()
        assert self.go.wait(60)
        if (folder / "saved_model.pb").read_text() == "broken":
            raise ValueError("bits are missing")
        return Answers()


class Answers:
    """A servable without signatures."""

    alive = True

    def __init__(self):
        self.signatures, self.metadata = {}, {}

    def close(self):
        pass


@pytest.fixture
def loads(monkeypatch):
    loads = Loads()
    monkeypatch.setattr("tfllmrec.server.engine.ModelProcess", loads)
    return loads


def put(models, version, says="whole"):
    (models / version).mkdir(parents=True)
    (models / version / "saved_model.pb").write_text(says)


def ports():
    """Two that are free."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def listening(*ports):
    """Which of these ports accept connections."""
    accepting = []
    for port in ports:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                accepting.append(port)
    return accepting


@contextlib.asynccontextmanager
async def starting(path, **given):
    """A server and the task that starts it."""
    from tfllmrec.server.server import Server, Settings

    server = Server(Settings(path, poll_s=0.05, settled_s=0, grace_s=5, **{"rest_port": 0, "grpc_port": 0, **given}))
    task = asyncio.create_task(server.start())
    try:
        yield server, task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        elif task.exception() is None:
            await server.stop()


def run(test):
    asyncio.run(asyncio.wait_for(test, 60))


@pytest.mark.parametrize("says", ["whole", "broken"])
def test_ports_are_closed_while_the_first_models_load(tmp_path, loads, says):
    """A health check that only connects must not take a server that loads for one that answers."""
    put(tmp_path, "shop/1", says)
    both = ports()

    async def test():
        loads.go.clear()
        async with starting(tmp_path, rest_port=both[0], grpc_port=both[1]) as (server, start):
            await asyncio.to_thread(loads.begun.wait)
            assert listening(*both) == []
            loads.go.set()
            await start
            assert listening(*both) == list(both)
            assert server.loaded() == {"shop": [1] if says == "whole" else []}
            async with httpx.AsyncClient() as client:
                status = await client.get(f"http://127.0.0.1:{both[0]}/v1/models/shop")
            assert ("AVAILABLE" if says == "whole" else "bits are missing") in status.text

    run(test())


@pytest.mark.parametrize("name", ["", "shop/1/variables", "shop"])
def test_ports_stay_closed_until_a_version_is_complete(tmp_path, loads, caplog, name):
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    both = ports()

    async def test():
        async with starting(tmp_path, rest_port=both[0], grpc_port=both[1]) as (server, start):
            while "The ports stay closed until one is loaded" not in caplog.text:
                await asyncio.wait([start], timeout=0.01)
            assert listening(*both) == []
            put(tmp_path, "films/1")
            await start
            assert listening(*both) == list(both)
            assert server.loaded()["films"] == [1]

    run(test())


def test_one_model_that_answers_is_enough(tmp_path, loads):
    put(tmp_path, "shop/1")
    put(tmp_path, "broken/1", "broken")
    (tmp_path / "unfinished" / "1").mkdir(parents=True)

    async def test():
        async with starting(tmp_path) as (server, start):
            await start
            assert server.loaded() == {"broken": [], "shop": [1], "unfinished": []}

    run(test())


def test_a_server_that_clients_configure_may_begin_with_no_model(tmp_path, loads):
    async def test():
        async with starting(tmp_path, allow_reload=True) as (server, start):
            await start
            assert listening(server.rest_port, server.grpc_port) == [server.rest_port, server.grpc_port]

    run(test())


def test_a_port_of_a_server_that_still_loads_is_said_before_anything_is_loaded(tmp_path, loads):
    put(tmp_path, "shop/1")
    both = ports()

    async def test():
        loads.go.clear()
        async with starting(tmp_path, rest_port=both[0], grpc_port=both[1]) as (_, first):
            await asyncio.to_thread(loads.begun.wait)
            loads.begun.clear()
            for given in ({"rest_port": both[0]}, {"grpc_port": both[1]}):
                async with starting(tmp_path, **given) as (_, second):
                    with pytest.raises(ConfigError, match="cannot listen on"):
                        await second
            assert not loads.begun.is_set()
            loads.go.set()
            await first

    run(test())


def test_a_port_that_another_server_took_meanwhile_is_said(tmp_path, loads):
    put(tmp_path, "shop/1")
    both = ports()
    for port in both:  # closed connections keep a port from servers that do not share it
        with (
            socket.create_server(("127.0.0.1", port)) as before,
            socket.create_connection(("127.0.0.1", port)) as client,
        ):
            before.accept()[0].close()
            client.recv(1)

    async def test():
        for given in ({"rest_port": both[0]}, {"grpc_port": both[1]}):
            loads.begun.clear()
            loads.go.clear()
            async with starting(tmp_path, **given) as (_, start):
                await asyncio.to_thread(loads.begun.wait)
                with socket.create_server(("127.0.0.1", *given.values())):
                    loads.go.set()
                    with pytest.raises(ConfigError, match="cannot listen on"):
                        await start
        assert listening(*both) == []
        async with starting(tmp_path, rest_port=both[0], grpc_port=both[0]) as (_, start):
            with pytest.raises(ConfigError, match=r"are both \d+: expected two ports"):
                await start

    run(test())


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return {"certificate": certificate, "key": key}


def hello():
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return out.read()


@pytest.mark.parametrize("tls", [False, True])
def test_connections_that_send_no_request_are_closed(tmp_path, loads, serving, request, tls):
    put(tmp_path, "models/shop/1")
    given = request.getfixturevalue("certificate") if tls else {}
    starts = [b"", hello()[:100]] if tls else [b""]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path / "models", limits={"timeout_s": 0.3}, **given))
        for start in starts:
            for port in (server.rest_port, server.grpc_port):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                client.sendall(start)
                # gRPC says hello first where it need not wait for TLS.
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(1 << 16):
                        pass


def test_pages_of_other_sites_are_refused(tmp_path, loads, serving):
    put(tmp_path, "shop/1")
    with serving(tmp_path, allow_hosts=("shop.example",)) as server:
        for path in ("/v1/models/shop", "/monitoring/prometheus/metrics", "/"):
            url = f"http://127.0.0.1:{server.rest_port}{path}"
            assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403
            assert httpx.post(url, headers={"origin": "https://evil.example"}, content="{}").status_code == 403
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/shop"
        for headers in ({}, {"host": "localhost"}, {"host": "shop.example", "origin": "https://shop.example"}):
            assert httpx.get(url, headers=headers).status_code == 200


def test_names_are_checked_on_loopback_addresses_and_where_names_are_given(tmp_path):
    from tfllmrec.server.engine import Engine, Limits
    from tfllmrec.server.server import Server, Settings

    async def checked(**given):
        server = Server(Settings(tmp_path, **given))
        server.engine = Engine(Limits(), None)
        transport = httpx.ASGITransport(server._rest_server().config.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as client:
            return (await client.get("/monitoring/prometheus/metrics")).status_code == 403

    for host in ("127.0.0.1", "127.0.0.2", "localhost", "::1"):
        assert asyncio.run(checked(host=host))
    assert not asyncio.run(checked(host="0.0.0.0"))
    assert asyncio.run(checked(host="0.0.0.0", allow_hosts=("shop.example",)))


def test_limits_of_any_size_reach_both_servers(tmp_path):
    from tfllmrec.server.engine import Engine, Limits
    from tfllmrec.server.server import Server, Settings

    async def grace():
        server = Server(Settings(tmp_path, grpc_port=0, grace_s=0.5, limits=Limits(body_bytes=2**40)))
        server.engine, server.grpc_port = Engine(server.settings.limits, None), 0
        server._grpc_server(None)  # its numbers are int32
        return server._rest_server().config.timeout_graceful_shutdown

    assert asyncio.run(grace()) == 0.5


def test_other_machines_reach_what_is_not_loopback(tmp_path):
    from tfllmrec.server.server import Server, Settings

    local = {"127.0.0.1": True, "localhost": True, "::1": True, "0.0.0.0": False, "10.0.0.7": False, "box": False}
    assert {host: Server(Settings(tmp_path, host=host)).local for host in local} == local


def reload_request(*models):
    from tensorflow_serving.apis import model_management_pb2

    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name, base in models:
        request.config.model_config_list.config.add(name=name, base_path=str(base), model_platform="tensorflow")
    return request


def reload(server, *models, **options):
    """``OK``, or the code and text of the refusal."""
    from tensorflow_serving.apis import model_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        try:
            stub.HandleReloadConfigRequest(reload_request(*models), timeout=60, **options)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"


def test_clients_choose_the_models_with_a_token_or_where_it_is_allowed(tmp_path, loads, serving):
    put(tmp_path, "shop/1")
    with serving(tmp_path) as server:
        assert reload(server).startswith("PERMISSION_DENIED: clients may not choose the models of this server")
        assert server.loaded() == {"shop": [1]}
    with serving(tmp_path, allow_reload=True) as server:
        assert reload(server) == "OK"
        assert server.loaded() == {}
    with serving(tmp_path, token="secret") as server:
        assert reload(server).startswith("UNAUTHENTICATED")
        assert reload(server, metadata=[("authorization", "Bearer secret")]) == "OK"


def test_clients_choose_models_below_the_served_folder_only(tmp_path, loads, serving):
    for model in ("models/shop", "models/more/films", "elsewhere/books"):
        put(tmp_path, f"{model}/1")
    models = tmp_path / "models"
    (models / "link").symlink_to(tmp_path / "elsewhere")
    with serving(models, allow_reload=True) as server:
        assert reload(server, ("films", models / "more" / "films"), ("shop", "shop")) == "OK"
        assert server.loaded() == {"films": [1], "shop": [1]}
        for base in (tmp_path / "elsewhere" / "books", "../elsewhere/books", "link/books", models / "link" / "books"):
            answer = reload(server, ("shop", "shop"), ("books", base))
            assert answer.startswith("INVALID_ARGUMENT: ReloadConfigRequest: model 'books': base_path")
            assert "is outside of the folder that is served" in answer
        assert reload(server, ("a/b", "shop")).startswith(
            "INVALID_ARGUMENT: ReloadConfigRequest: model 'a/b': expected"
        )
        many = [(f"m{n}", "shop") for n in range(20_000)]
        assert "expected at most 1000 models, found 20000" in reload(server, *many)
        assert server.loaded() == {"films": [1], "shop": [1]}


def test_beside_a_file_clients_choose_models_that_are_below_it_or_in_it(tmp_path, loads, serving):
    for model in ("config/shop", "far/films", "far/books"):
        put(tmp_path, f"{model}/1")
    file = tmp_path / "config" / "models.config"
    file.write_text(
        f"model_config_list {{ config {{ name: 'films' base_path: '{tmp_path}/far/films' model_type: TENSORFLOW }} }}"
    )
    with serving(file, allow_reload=True) as server:
        assert reload(server, ("shop", "shop"), ("movies", tmp_path / "far" / "films")) == "OK"
        assert server.loaded() == {"movies": [1], "shop": [1]}
        assert "is outside of" in reload(server, ("books", tmp_path / "far" / "books"))

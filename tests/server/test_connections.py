"""Connections over a transport and a clock that the tests control."""

import asyncio
import itertools
import re
import socket
from functools import partial

import pytest

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

TIMEOUT_S = 10.0


async def app(scope, receive, send):
    """Answers early below ``/early``, else with the size of the body."""
    size = 0
    if scope["path"] != "/early":
        while (event := await receive())["type"] == "http.request":
            size += len(event["body"])
            if not event["more_body"]:
                break
    body = b"x" * (32 << 20) if scope["path"] == "/large" else str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def uvicorn_config(timeout_s):
    from tfllmrec.server.connections import Connection

    http = partial(Connection, timeout_s=timeout_s)
    return uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None, timeout_keep_alive=1000)


class Clock:
    """The timers of an event loop: they run when :meth:`advance` passes their time."""

    def __init__(self):
        self.now, self.timers = 0.0, []

    def call_later(self, delay, call, *arguments):
        timer = Timer(self.now + delay, call, arguments)
        self.timers.append(timer)
        return timer

    def create_task(self, coroutine):
        return asyncio.get_running_loop().create_task(coroutine)

    def advance(self, seconds):
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.when <= end and not timer.over]:
            timer = min(due, key=lambda timer: timer.when)
            self.now, timer.over = timer.when, True
            timer.call(*timer.arguments)
        self.now = end


class Timer:
    def __init__(self, when, call, arguments):
        self.when, self.call, self.arguments, self.over = when, call, arguments, False

    def cancel(self):
        self.over = True


class Client(asyncio.Transport):
    """The client's end of a connection: what it was told, how much of that it has not taken, and how it ended."""

    def __init__(self, timeout_s=TIMEOUT_S):
        super().__init__()
        self.told, self.left, self.ended = b"", 0, None
        self.clock = Clock()
        config = uvicorn_config(timeout_s)
        config.load()
        self.connection = config.http_protocol_class(
            config=config, server_state=uvicorn.server.ServerState(), app_state={}, _loop=self.clock
        )
        self.connection.connection_made(self)

    async def send(self, *parts):
        for part in parts:
            if self.is_closing():
                break
            self.connection.data_received(part)
            for _ in range(10):  # the application's turns
                await asyncio.sleep(0)

    async def wait(self, seconds):
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    @property
    def statuses(self):
        return [int(part.split()[0]) for part in self.told.split(b"HTTP/1.1 ")[1:]]

    # What the connection does with its transport.

    def get_extra_info(self, name, default=None):
        return default

    def write(self, data):
        self.told += bytes(data)

    def get_write_buffer_size(self):
        return self.left

    def is_closing(self):
        return self.ended is not None

    def close(self):
        self.ended = self.ended or "closed"

    def abort(self):
        self.ended = "aborted"

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


def talk(*parts):
    """The client after it has sent these parts and waited for a moment."""
    from tfllmrec.server.connections import DRAIN_S

    async def main():
        client = Client()
        await client.send(*parts)
        await client.wait(DRAIN_S)
        return client

    return asyncio.run(main())


def cut(data, step):
    return [data[at : at + step] for at in range(0, len(data), step)]


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n" + b"x" * 300_000


def test_requests_come_through():
    client = talk(POST, POST[:20], POST[20:])
    assert (client.told.count(b"\r\n\r\n300000"), client.ended) == (2, None)
    # Of 100,000 bytes in chunks of 10, the framing alone is more than the headers may have.
    chunks = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"a\r\n0123456789\r\n" * 10_000 + b"0\r\n\r\n"
    client = talk(*cut(chunks, 50_000))
    assert (client.told.count(b"\r\n\r\n100000"), client.ended) == (1, None)


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nx: ",
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}GET /",
    ],
)
def test_headers_without_end_are_refused(start):
    client = talk(start, *[b"y" * 16384] * 40)
    assert client.ended == "closed"
    assert b"HTTP/1.1 400" in client.told
    assert b"The headers have more than 65536 bytes." in client.told


def test_every_refusal_has_an_id_of_its_own():
    clients = [talk(b"nonsense\r\n\r\n"), talk(b"GET / HTTP/1.1\r\nx: ", *[b"y" * 16384] * 5)]
    ids = [re.findall(rb"\r\nx-request-id: ([0-9a-f]{32})\r\n", client.told) for client in clients]
    assert [client.statuses for client in clients] == [[400], [400]] and [len(found) for found in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_trailers_without_end_are_refused():
    start = b"POST /early HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: "
    client = talk(start, *[b"y" * 16384] * 40)
    assert (client.ended, client.statuses) == ("closed", [200])


def head_of(size, headers):
    """A request of exactly so many bytes of request line and headers."""
    line, name = b"GET / HTTP/1.1\r\n", b"h: "
    rest = size - len(line) - len(b"\r\n") - headers * len(name + b"\r\n")
    values = [b"v" * (rest // headers)] * (headers - 1)
    values.append(b"v" * (rest - sum(map(len, values))))
    head = line + b"".join(name + value + b"\r\n" for value in values) + b"\r\n"
    assert len(head) == size
    return head


@pytest.mark.parametrize("headers", [1, 5000])
@pytest.mark.parametrize("step", [1 << 20, 10_000, 1000])
@pytest.mark.parametrize("before", [[], [GET, POST]])
def test_the_size_of_headers_is_limited_to_the_byte(headers, step, before):
    answered = [200] * len(before)
    client = talk(*before, *cut(head_of(65_536, headers), step))
    assert (client.statuses, client.ended) == ([*answered, 200], None)
    client = talk(*before, *cut(head_of(65_537, headers), step))
    assert (client.statuses, client.ended) == ([*answered, 400], "closed")
    assert b"The headers have more than 65536 bytes." in client.told


def test_too_large_headers_are_read_for_a_moment_before_the_answer():
    """Or the client might find the connection reset while it sends, and never see the answer."""
    from tfllmrec.server.connections import DRAIN_S

    async def main():
        client = Client()
        await client.send(*cut(head_of(1 << 20, 10), 50_000), GET)
        assert (client.statuses, client.ended) == ([], None)
        await client.wait(DRAIN_S / 2)
        await client.send(b"y" * 50_000)
        await client.wait(DRAIN_S / 2)
        assert (client.statuses, client.ended) == ([400], "closed")

    asyncio.run(main())


def test_long_lines_and_padding_count_too():
    padding, line = b" " * 70_000, b"y" * 70_000
    for head in (b"GET /" + line + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nx:" + padding + b"y\r\n\r\n"):
        assert talk(head).statuses == [400]


def test_headers_behind_another_request_in_one_read_are_limited():
    assert talk(GET + POST + GET).statuses == [200, 200, 200]
    assert talk(POST + head_of(65_000, 1)).statuses == [200, 200]
    client = talk(POST + head_of(65_537 + 4096, 1))
    assert (client.statuses, client.ended) == ([200, 400], "closed")


@pytest.mark.parametrize(
    ("start", "drip", "statuses"),
    [
        (b"", b"", []),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n", [400]),
        (GET + b"GET / HTTP/1.1\r\n", b"x: y\r\n", [200, 400]),
        (b"POST /early HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n", b"x", [200]),
    ],
)
def test_requests_that_do_not_arrive_in_time_are_given_up(start, drip, statuses):
    async def main():
        client = Client()
        await client.send(start)
        for _ in range(9):
            await client.send(drip)
            await client.wait(TIMEOUT_S / 10)
        assert client.ended is None
        await client.wait(TIMEOUT_S / 5)
        assert (client.ended, client.statuses) == ("closed", statuses)

    asyncio.run(main())


def test_the_application_decides_how_slow_a_body_may_be():
    async def main():
        client = Client()
        await client.send(b"POST / HTTP/1.1\r\ncontent-length: 30\r\n\r\n")
        for _ in range(30):
            await client.wait(TIMEOUT_S)
            await client.send(b"x")
        assert client.told.endswith(b"\r\n\r\n30") and client.ended is None

    asyncio.run(main())


def test_a_client_that_takes_nothing_of_its_answer_is_given_up():
    async def main():
        client = Client()
        client.left = 1000
        await client.send(GET)
        for _ in range(5):  # it is slow, but takes some
            client.left -= 100
            await client.wait(TIMEOUT_S)
            assert client.ended is None
        await client.wait(TIMEOUT_S)
        assert client.ended == "aborted"

    asyncio.run(main())


def test_a_client_that_takes_one_answer_after_the_other_is_not_given_up():
    """Whenever the timer looks, as much of another answer is left."""

    async def main():
        client = Client()
        for _ in range(5):
            client.left = 100
            await client.send(GET)
            await client.wait(0.6 * TIMEOUT_S)
            assert client.ended is None
        client.left = 0
        await client.wait(2 * TIMEOUT_S)
        assert client.ended is None
        assert all(timer.over or timer.when > client.clock.now + 2 * TIMEOUT_S for timer in client.clock.timers)

    asyncio.run(main())


def test_a_real_connection_whose_client_takes_nothing_ends():
    async def main():
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn_config(0.1))
        serving = asyncio.ensure_future(server._serve([listening]))
        _, writer = await asyncio.open_connection(*listening.getsockname(), limit=1)
        writer.write(GET.replace(b"/", b"/large", 1))
        await until(lambda: server.server_state.connections)
        await until(lambda: not server.server_state.connections)
        writer.close()
        server.should_exit = True
        await serving

    async def until(condition):
        for _ in itertools.takewhile(lambda _: not condition(), itertools.count()):
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), 60))

import asyncio
import contextlib
import socket
import time
from functools import partial

import pytest

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("httptools")


async def app(scope, receive, send):
    """Answers early below ``/early``, else with the size of the body."""
    size = 0
    if scope["path"] != "/early":
        while (event := await receive())["type"] == "http.request":
            size += len(event["body"])
            if not event["more_body"]:
                break
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def talk(*parts, pause=0.0, timeout_s=5.0):
    """What comes back for these parts until the server closes the connection or all was sent and a second is over."""
    from tfllmrec.serving.embedded.connections import Connection

    async def main():
        listening = socket.create_server(("127.0.0.1", 0))
        http = partial(Connection, timeout_s=timeout_s)
        server = uvicorn.Server(
            uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60)
        )
        serving = asyncio.ensure_future(server._serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        told = bytearray()

        async def listen():
            with contextlib.suppress(ConnectionResetError):
                while part := await reader.read(1 << 16):
                    told.extend(part)

        reading = asyncio.ensure_future(listen())
        for part in parts:
            if reading.done():
                break
            writer.write(part)
            await asyncio.wait([reading], timeout=pause or 0.001)
        await asyncio.wait([reading], timeout=1)
        closed = reading.done()
        writer.close()
        await reading
        server.should_exit = True
        await serving
        return bytes(told), closed

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_requests_come_through():
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n"
    plain = head + b"content-length: 300000\r\n\r\n" + b"x" * 300_000
    told, closed = talk(plain, plain[:20], plain[20:])
    assert (told.count(b"\r\n\r\n300000"), closed) == (2, False)
    # Of 100,000 bytes in chunks of 10, the framing alone is more than the headers may have.
    chunks = head + b"transfer-encoding: chunked\r\n\r\n" + b"a\r\n0123456789\r\n" * 10_000 + b"0\r\n\r\n"
    told, closed = talk(*(chunks[at : at + 50_000] for at in range(0, len(chunks), 50_000)))
    assert (told.count(b"\r\n\r\n100000"), closed) == (1, False)


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nx: ",
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}GET /",
    ],
)
def test_headers_without_end_are_refused(start):
    told, closed = talk(start, *[b"y" * 16384] * 40, pause=0.01)
    assert closed
    assert b"HTTP/1.1 400" in told
    assert b"The headers have more than 65536 bytes." in told


def test_trailers_without_end_are_refused():
    start = b"POST /early HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: "
    told, closed = talk(start, *[b"y" * 16384] * 40, pause=0.01)
    assert closed
    assert told.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("start", "drip", "told"),
    [
        (b"", b"", b""),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"G", b"HTTP/1.1 200"),
        (b"POST /early HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n", b"x", b"HTTP/1.1 200"),
    ],
)
def test_what_takes_for_ever_is_ended(start, drip, told):
    began = time.monotonic()
    answer, closed = talk(start, *[drip] * (1 if drip == b"G" else 1000), pause=0.02, timeout_s=0.2)
    assert closed
    assert answer.startswith(told)
    assert 0.15 < time.monotonic() - began < 15


def test_a_slow_body_is_the_applications_business():
    start = b"POST / HTTP/1.1\r\ncontent-length: 30\r\n\r\n"
    told, closed = talk(start, *[b"x"] * 30, pause=0.02, timeout_s=0.2)
    assert told.endswith(b"\r\n\r\n30")
    assert not closed

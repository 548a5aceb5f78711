import asyncio

import httpx
import pytest

from tfllmrec.errors import ConfigError

pytest.importorskip("starlette")


def ask(headers, *hosts):
    """Status and error of a request with these headers alone."""
    from starlette.responses import Response

    from tfllmrec.server.hosts import KnownHosts

    async def main():
        app = KnownHosts(Response("answered"), hosts)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            request = client.build_request("POST", "/v1/models/m:predict", content=b"{}")
            request.headers = httpx.Headers(headers)
            answer = await client.send(request)
            return answer.status_code, answer.json()["error"] if answer.status_code != 200 else answer.text

    return asyncio.run(main())


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8501", "LOCALHOST:8501", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8501", "localhost:"],
)
def test_the_names_of_this_machine_are_known(host):
    assert ask([("host", host)]) == (200, "answered")
    for scheme in ("http", "https"):
        assert ask([("host", "localhost"), ("origin", f"{scheme}://{host}")])[0] == 200


def test_programs_send_no_origin_and_old_ones_no_host():
    assert ask([]) == (200, "answered")


OTHERS = [
    "evil.example", "evil.example:8501", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost", "",
    "localhost@evil.example", "evil.example/localhost", "localhost:8501:1", "::1", "[::2]", "192.168.0.7", "0.0.0.0",
    "localhost evil.example", "l\u00f6calhost",
]  # fmt: skip


@pytest.mark.parametrize("host", OTHERS)
def test_other_hosts_are_refused(host):
    """A page whose own name points to 127.0.0.1 sends that name."""
    status, error = ask([("host", host.encode())])
    assert status == 403
    assert error.startswith("Host ") and "is not a name of this server: expected 127.0.0.1, [::1], localhost" in error
    assert "--allow-host" in error
    assert ask([("host", "localhost"), ("host", host.encode())])[0] == 403


@pytest.mark.parametrize("origin", [*(f"https://{host}" for host in OTHERS), "null", "file://", "chrome-extension://a"])
def test_pages_of_other_sites_are_refused(origin):
    status, error = ask([("host", "localhost:8501"), ("origin", origin.encode())])
    assert status == 403
    assert error.startswith("Origin ")


def test_more_hosts_may_be_allowed():
    hosts = ("Shop.example", "::2", "[fe80::7]", "192.168.0.7")
    for host in ("shop.example", "shop.example:443", "[::2]:8501", "[fe80::7]", "192.168.0.7:1", "localhost"):
        assert ask([("host", host), ("origin", f"https://{host}")], *hosts)[0] == 200
    assert ask([("host", "other.example")], *hosts)[0] == 403


@pytest.mark.parametrize("host", ["", "https://shop.example", "shop.example:443", "shop.example/x", "a b", "*"])
def test_what_is_no_host_is_said(host):
    from tfllmrec.server.hosts import KnownHosts

    with pytest.raises(ConfigError, match="expected a name or an address without scheme and port"):
        KnownHosts(None, [host])

"""The page at ``/``."""

import asyncio
import time

import httpx
import pytest
from test_rest import Doubles, engine_of

from tfllmrec.server.rest import rest_app
from tfllmrec.server.try_page import FILES, page


def get(tmp_path, path, **app):
    async def main():
        engine = await engine_of(tmp_path, Doubles)
        transport = httpx.ASGITransport(rest_app(engine, **app))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get(path, headers=app.get("headers"))
        await engine.stop()
        return answer

    return asyncio.run(main())


@pytest.mark.parametrize("path", FILES)
def test_it_is_there_if_it_is_switched_on(tmp_path, path):
    shown = get(tmp_path, path, page=True)
    assert shown.status_code == 200 and "default-src 'none'" in shown.headers["content-security-policy"]
    assert get(tmp_path, path).status_code == 404


def test_a_page_of_another_host_does_not_see_it(tmp_path):
    assert get(tmp_path, "/", page=True, hosts=["localhost"]).status_code == 200
    assert get(tmp_path, "/", page=True, hosts=["127.0.0.2"]).status_code == 200  # localhost always does
    assert get(tmp_path, "/", page=True, token="secret").status_code == 401


def test_names_of_models_are_text():
    shown = page("/", ["a<script>", 'b"c']).body.decode()
    assert "<option>a&lt;script&gt;</option><option>b&quot;c</option>" in shown and shown.count("<script") == 1


def wait_for(browser, expression, seconds=60):
    ends = time.monotonic() + seconds
    while not (value := browser.evaluate(expression)) and time.monotonic() < ends:
        time.sleep(0.2)
    return value


@pytest.mark.slow
@pytest.mark.tf
@pytest.mark.parametrize("width", [390, 1280])
def test_a_person_builds_a_history_by_clicking(chain_version, browser, serving, width):
    with serving(chain_version.parent.parent) as server:
        browser.open(f"http://127.0.0.1:{server.rest_port}/", width=width)
        assert wait_for(browser, "document.querySelectorAll('#recommended li').length") == 10
        browser.evaluate("document.getElementById('text').value = 'red b'")
        browser.evaluate("document.querySelector('#search button').click()")
        assert wait_for(browser, "document.querySelectorAll('#found li').length") == 10
        first = browser.evaluate("document.querySelector('#found button').textContent")
        browser.evaluate("document.querySelector('#found button').click()")
        assert wait_for(browser, "document.querySelector('#history button')?.textContent") == first
        assert wait_for(browser, "document.querySelector('#recommended .why')?.textContent").startswith("because of ")
        assert wait_for(browser, "document.querySelectorAll('#recommended .bar i').length") == 30
        titles = "[...document.querySelectorAll('#recommended button')].map((b) => b.firstChild.textContent)"
        assert first not in browser.evaluate(titles)
        browser.evaluate("document.querySelector('#history button').click()")
        assert wait_for(browser, "document.querySelectorAll('#history li').length === 0")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.problems == [] and browser.evaluate("document.getElementById('problem').hidden")

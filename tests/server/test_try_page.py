"""The page at ``/``."""

import asyncio
import json
import time
from types import SimpleNamespace

import httpx
import pytest

from tfllmrec.server.rest import rest_app
from tfllmrec.server.try_page import FILES, page


def get(path, **app):
    """The answer of a server with the models ``shop`` and ``news``, of which ``news`` is not loaded yet."""
    models = SimpleNamespace(names=lambda: ["news", "shop"], available={"news": [], "shop": [2]}.__getitem__)

    async def main():
        transport = httpx.ASGITransport(rest_app(SimpleNamespace(models=models), **app))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(main())


@pytest.mark.parametrize("path", FILES)
def test_it_is_there_if_it_is_switched_on(path):
    shown = get(path, page=True)
    assert shown.status_code == 200 and "default-src 'none'" in shown.headers["content-security-policy"]
    assert get(path).status_code == 404


def test_it_names_the_models_that_answer():
    assert "<option>shop</option>" in (shown := get("/", page=True).text) and "news" not in shown


def test_it_is_for_those_who_may_ask_the_server():
    assert get("/", page=True, token="secret").status_code == 401
    assert get("/", page=True, hosts=["127.0.0.1"]).status_code == 200


def test_names_of_models_are_text():
    shown = page("/", ["a<script>", 'b"c']).body.decode()
    assert "<option>a&lt;script&gt;</option><option>b&quot;c</option>" in shown and shown.count("<script") == 1


def wait_for(browser, expression, seconds=240):
    ends = time.monotonic() + seconds
    while not (value := browser.evaluate(expression)) and time.monotonic() < ends:
        time.sleep(0.2)
    return value


@pytest.mark.slow
@pytest.mark.tf
def test_a_person_builds_a_history_by_clicking_in_chromium(shown_models, browser, picture, serving):
    with serving(shown_models) as server:
        for width in (390, 1280):
            browser.open(f"http://127.0.0.1:{server.rest_port}/", width=width)
            assert wait_for(browser, "document.querySelectorAll('#recommended li').length") == 10
            browser.evaluate("document.getElementById('text').value = 'science fiction in space'")
            browser.evaluate("document.querySelector('#search button').click()")
            assert wait_for(browser, "document.querySelectorAll('#found li').length") == 10
            first = browser.evaluate("document.querySelector('#found button').textContent")
            browser.evaluate("document.querySelector('#found button').click()")
            assert wait_for(browser, "document.querySelector('#history button')?.textContent") == first
            why = f"document.querySelector('#recommended .why')?.textContent.includes({json.dumps(first)})"
            assert wait_for(browser, why)
            assert wait_for(browser, "document.querySelectorAll('#recommended .bar i').length") == 30
            titles = "[...document.querySelectorAll('#recommended button')].map((b) => b.firstChild.textContent)"
            assert first not in browser.evaluate(titles)
            picture(f"page-{width}")
            browser.evaluate("document.querySelector('#history button').click()")
            assert wait_for(browser, "document.querySelectorAll('#history li').length === 0")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.problems == [] and browser.evaluate("document.getElementById('problem').hidden")

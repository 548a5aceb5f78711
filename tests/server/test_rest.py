"""The REST API around a model of a few lines, without sockets and TensorFlow."""

import asyncio
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server import engine as engine_module
from tfllmrec.server import json_tensors
from tfllmrec.server.batching import Joining
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.lists import Items
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import STRING, Signature, TensorSpec

FLOAT = TensorSpec(np.dtype(np.float32), (None,))
DOUBLE = Signature({"x": FLOAT}, {"y": FLOAT})


class Doubles:
    """y = 2 x; ``slow`` sleeps, ``fails`` raises as TensorFlow does, ``bug`` as a bug does."""

    def __init__(self, folder):
        self.signatures = dict.fromkeys(["serving_default", "slow", "fails", "bug"], DOUBLE)
        self.joining = {name: Joining(signature, False) for name, signature in self.signatures.items()}
        self.calls = {"serving_default": self._double, "slow": self._slow, "fails": self._fail, "bug": lambda i: 1 / 0}
        self.metadata = {"serving_default": {"method_name": "tensorflow/serving/predict"}}

    alive = True

    def close(self):
        pass

    def _double(self, inputs):
        return {"y": 2 * inputs["x"]}

    def _slow(self, inputs):
        time.sleep(0.3)
        return self._double(inputs)

    def _fail(self, inputs):
        raise RequestError(Code.OUT_OF_RANGE, "assertion failed: [x]")


async def engine_of(tmp_path, model, **limits):
    """With two versions of the model ``m``."""
    for number in (1, 2):
        (tmp_path / "m" / str(number)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / str(number) / "saved_model.pb").write_text("x")
    engine = Engine(Limits(**limits), model, settled_s=0)
    await engine.models.follow([ModelSource("m", tmp_path / "m", "all", labels={"stable": 1})])
    return engine


def ask(tmp_path, *requests, token=None, headers=None, **limits):
    """(status, JSON) of each of (method, path, body)."""

    async def main():
        engine = await engine_of(tmp_path, Doubles, **limits)
        transport = httpx.ASGITransport(rest_app(engine, token))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            sent = [client.request(method, path, content=body, headers=headers) for method, path, body in requests]
            answers = await asyncio.gather(*sent)
        await engine.close()
        return answers

    def read(answer):
        if not answer.headers["content-type"].startswith("application/json"):
            return answer.text
        return json.loads(answer.content)

    return [(answer.status_code, read(answer)) for answer in asyncio.run(main())]


def predict(body, path="/v1/models/m:predict"):
    return "POST", path, json.dumps(body) if not isinstance(body, str | bytes | AsyncIterator) else body


def test_rows_columns_versions_and_labels(tmp_path):
    answers = ask(
        tmp_path,
        predict({"instances": [1, 2.5]}),
        predict({"inputs": [3]}),
        predict({"inputs": {"x": [3]}}, "/v1/models/m/versions/1:predict"),
        predict({"inputs": {"x": [3]}, "signature_name": "serving_default"}, "/v1/models/m/labels/stable:predict"),
        predict({"inputs": {"x": [3]}}, "/V1/Models/m:PREDICT"),
    )
    assert answers == [(200, {"predictions": [2, 5]})] + 4 * [(200, {"outputs": [6]})]


def test_status_and_metadata(tmp_path):
    both, one, labelled, metadata = ask(
        tmp_path,
        ("GET", "/v1/models/m", None),
        ("GET", "/v1/models/m/versions/1", None),
        ("GET", "/v1/models/m/labels/stable", None),
        ("GET", "/v1/models/m/versions/2/metadata", None),
    )
    first = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert one == labelled == (200, {"model_version_status": [first]})
    assert both == (200, {"model_version_status": [{**first, "version": "2"}, first]})
    assert metadata[1] == {
        "model_spec": {"name": "m", "signature_name": "", "version": "2"},
        "metadata": {"signature_def": {"signature_def": Doubles(None).metadata}},
    }


@pytest.mark.parametrize(
    ("request_", "status", "what"),
    [
        (predict("{"), 400, "JSON Parse error"),
        (predict(b"\xff"), 400, "JSON Parse error"),
        (predict('{"inputs": [1, 1e400]}'), 400, "JSON Parse error: Number too big to be stored in double: 1e400"),
        (predict('{"inputs": [-1' + "0" * 400 + ".0]}"), 400, "Number too big to be stored in double: -1000"),
        (predict('{"inputs": [[1e39]]}'), 400, "Cannot convert JSON value: 1e+39 to float32 without loss of precision"),
        (predict({"inputs": [1] * 5000}), 400, "The request has 5000 rows; expected 4000 at most"),
        (predict({"inputs": ["a"]}), 400, 'JSON Value: "a" Type: String is not of expected type: float32'),
        (predict({"inputs": [[1]]}), 400, "Input x has shape [1,1], but the signature expects [?]"),
        (predict({"inputs": [1], "signature_name": "no"}), 400, 'Serving signature name: "no" not found in signature'),
        (predict({"inputs": [1], "signature_name": "fails"}), 400, "assertion failed: [x]"),
        (predict({"inputs": [1], "signature_name": "bug"}), 500, "ZeroDivisionError"),
        (predict({}, "/v1/models/no:predict"), 404, "Servable not found for request: Latest(no) (models: m)"),
        (predict({}, "/v1/models/m/versions/3:predict"), 404, "Specific(m, 3) (available versions: 1, 2)"),
        (predict({}, "/v1/models/m/labels/no:predict"), 400, "Unrecognized servable version label: no"),
        (predict({}, f"/v1/models/m/versions/{2**63}:predict"), 400, "Failed to convert version: 9223372036854775808"),
        (predict({}, "/v1/models/m/versions/" + "9" * 5000 + ":predict"), 400, "Failed to convert version"),
        (
            predict({}, "/v1/models/m/versions/x:predict"),
            400,
            "Malformed request: POST /v1/models/m/versions/x:predict",
        ),
        (predict({}, "/v1/models/m:classify"), 501, "only :predict"),
        (("GET", "/v1/models/m:predict", None), 400, "Malformed request: GET /v1/models/m:predict"),
        (("DELETE", "/v1/models/m", None), 400, "Malformed request: DELETE /v1/models/m"),
        (("GET", "/v1/models/no", None), 404, "Could not find any versions of model no"),
        (("GET", "/v1/models/m/versions/7", None), 404, "Could not find version 7 of model m"),
        (("GET", "/", None), 404, "the API is below /v1/models/"),
    ],
)
def test_errors_say_what_was_wrong_with_tf_servings_status(tmp_path, request_, status, what):
    ((got, body),) = ask(tmp_path, request_, rows=4000)
    assert got == status
    assert list(body) == ["error"] and what in body["error"]


def test_a_bug_is_counted_as_it_is_answered(tmp_path):
    async def main():
        engine = await engine_of(tmp_path, Doubles)
        with pytest.raises(ZeroDivisionError), engine.counted("m", "Predict", "REST"):
            raise ZeroDivisionError
        await engine.close()
        return engine.metrics.page().decode()

    assert [line for line in asyncio.run(main()).splitlines() if 'model_name="m",status="INTERNAL"' in line]


def test_a_body_that_is_too_large(tmp_path):
    small, large = ask(tmp_path, predict({"inputs": [1]}), predict({"inputs": [1] * 1000}), body_bytes=100)
    assert small[0] == 200
    assert large == (413, {"error": "the body has more than 100 bytes: send fewer rows, or raise --max-body-mb"})


def test_gzip_bodies(tmp_path):
    body = json.dumps({"inputs": [1, 2]}).encode()
    double = gzip.compress(body[:5]) + gzip.compress(body[5:])
    for encoding, sent in (("gzip", gzip.compress(body)), ("X-Gzip", double), ("identity", body)):
        (answer,) = ask(tmp_path, predict(sent), headers={"content-encoding": encoding})
        assert answer == (200, {"outputs": [2, 4]})
    for encoding, sent, status, said in (
        ("gzip", gzip.compress(b" " * 300_000), 413, "the body has more than 200000 bytes"),
        ("gzip", gzip.compress(body)[:-3], 400, "the body is not valid gzip data"),
        ("gzip", b"no gzip", 400, "the body is not valid gzip data"),
        ("gzip", b"", 400, "The document is empty"),
        ("br", body, 415, "Content-Encoding is 'br'; expected gzip"),
        ("gzip, gzip", gzip.compress(gzip.compress(body)), 415, "expected gzip"),
    ):
        ((got, told),) = ask(tmp_path, predict(sent), headers={"content-encoding": encoding}, body_bytes=200_000)
        assert got == status and said in told["error"], encoding


def test_bodies_share_a_budget(tmp_path):
    """A large body beside another one is refused until that one is answered; small ones are always taken."""
    large = json.dumps({"inputs": [1] * 50_000}).encode()

    async def main():
        engine = await engine_of(tmp_path, Doubles, bodies_bytes=100_000, rows=10**6)
        more = asyncio.Event()

        async def half():
            yield large[:100_000]
            await more.wait()
            yield large[100_000:]

        async def filled():
            async with asyncio.timeout(60):
                while not engine._bodies_bytes:
                    await asyncio.sleep(0)

        transport = httpx.ASGITransport(rest_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            first = asyncio.ensure_future(client.post("/v1/models/m:predict", content=half()))
            await filled()
            refused = await client.post("/v1/models/m:predict", content=large)
            small = await client.post("/v1/models/m:predict", content='{"inputs": [1]}')
            bomb = gzip.compress(b" " * 200_000)
            zipped = await client.post("/v1/models/m:predict", content=bomb, headers={"content-encoding": "gzip"})
            more.set()
            answers = [await first, small, await client.post("/v1/models/m:predict", content=large), refused, zipped]
        assert engine._bodies_bytes == 0
        await engine.close()
        return answers

    *answered, refused, zipped = asyncio.run(main())
    assert [answer.status_code for answer in answered] == [200, 200, 200]
    for answer in (refused, zipped):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "expected 100000 at most with this one: try again later" in answer.json()["error"]


def test_bodies_are_decoded_and_answers_encoded_beside_the_loop(tmp_path, monkeypatch):
    """Large ones: the loop's own thread answers others meanwhile."""
    threads = {}

    def watched(name, function):
        def call(*arguments):
            threads.setdefault(name, []).append(threading.current_thread() is threading.main_thread())
            return function(*arguments)

        return call

    monkeypatch.setattr(json_tensors, "decode", watched("decode", json_tensors.decode))
    monkeypatch.setattr(json_tensors, "encode", watched("encode", json_tensors.encode))
    answers = ask(tmp_path, predict({"inputs": [1] * 6000}))
    assert answers[0][0] == 200 and threads == {"decode": [False], "encode": [False]}
    threads.clear()
    assert ask(tmp_path, predict({"inputs": [1]}))[0][0] == 200
    assert threads == {"decode": [True], "encode": [True]}


def test_memory_is_given_back_once_after_large_requests(tmp_path, monkeypatch):
    trimmed = []
    monkeypatch.setattr(engine_module, "give_back_memory", lambda: trimmed.append(1))
    monkeypatch.setattr(engine_module, "GIVE_BACK_AFTER_S", 0)
    small, large = predict({"inputs": [1]}), predict({"inputs": [1] * 400_000})
    assert ask(tmp_path, small, small)[0][0] == 200 and not trimmed

    async def main():
        engine = await engine_of(tmp_path, Doubles, rows=10**6)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(rest_app(engine)), base_url="http://here") as client:
            assert (await client.request(large[0], large[1], content=large[2])).status_code == 200
            async with asyncio.timeout(60):
                while not trimmed:
                    await asyncio.sleep(0)
        await engine.close()

    asyncio.run(main())


class Lists(Doubles):
    """A model of ours of 1,000 items: the first ``k`` of them."""

    items = Items()

    def __init__(self, folder):
        strings = TensorSpec(STRING, (None, None))
        signature = Signature({"k": TensorSpec(np.dtype(np.int32), (None,))}, {"item_ids": strings, "scores": strings})
        self.signatures = {"serving_default": signature}
        self.joining = {"serving_default": Joining(signature, True, catalogue=100_000)}
        self.calls = {"serving_default": self._list}
        self.rows = []

    def _list(self, inputs):
        self.rows.append(len(inputs["k"]))
        shown = np.arange(inputs["k"].max()) < inputs["k"][:, np.newaxis]
        return {"item_ids": np.where(shown, b"i", b"").astype(object), "scores": shown.astype(np.float32)}


def test_a_large_request_is_answered_in_parts_and_others_in_between(tmp_path):
    """Each part is as wide as its own k; the answer is the one that a single call would give."""

    async def main():
        engine = await engine_of(tmp_path, Lists, workers=1)
        k = np.arange(500, dtype=np.int32) % 400 + 1
        with engine.models.hold("m") as version:
            order = []

            async def ask(name, k):
                answer = await engine.predict(version, "serving_default", {"k": k})
                order.append(name)
                return answer

            large, small = await asyncio.gather(ask("large", k), ask("small", k[:1]))
            rows = version.servable.rows
            whole = version.servable._list({"k": k})
        await engine.close()
        return large, small, whole, rows, order

    large, small, whole, rows, order = asyncio.run(main())
    assert order == ["small", "large"] and max(rows[:-1]) <= (1 << 24) // 100_000
    assert small["item_ids"].tolist() == [[b"i"]]
    for name, tensor in whole.items():
        np.testing.assert_array_equal(large[name], tensor)


def test_no_further_part_is_computed_once_a_request_is_given_up(tmp_path):
    """Its deadline is over or its client gone: either cancels what waits."""

    async def main():
        engine = await engine_of(tmp_path, Lists, workers=1)
        with engine.models.hold("m") as version:
            servable, begun, go = version.servable, threading.Event(), threading.Event()

            def waits(inputs):
                begun.set()
                assert go.wait(60)
                return servable._list(inputs)

            servable.calls["serving_default"] = waits
            asked = engine.predict(version, "serving_default", {"k": np.ones(1000, np.int32)})
            asked = asyncio.ensure_future(asked)
            assert await asyncio.to_thread(begun.wait, 60)
            asked.cancel()
            await asyncio.wait([asked])
            go.set()
            # The only worker answers this one last.
            await engine.predict(version, "serving_default", {"k": np.ones(1, np.int32)})
        await engine.close()
        return asked.cancelled(), servable.rows

    assert asyncio.run(main()) == (True, [(1 << 24) // 100_000, 1])


def test_a_client_that_sends_its_body_forever(tmp_path):
    async def forever():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    slow, quick = ask(tmp_path, predict(forever()), predict({"inputs": [1]}), timeout_s=0.2)
    assert quick[0] == 200
    assert slow[0] == 408 and "the body did not arrive within 0.2 s" in slow[1]["error"]


def test_a_deadline_that_is_over(tmp_path):
    slow = {"inputs": [1], "signature_name": "slow"}
    ((status, body),) = ask(tmp_path, predict(slow), timeout_s=0.05)
    assert (status, body["error"]) == (504, "no answer from m/2 within 0.05 s, waiting included")


def test_a_deadline_that_was_over_before(tmp_path):
    """A worker is free, and left alone."""

    async def main():
        engine = await engine_of(tmp_path, Doubles)
        with engine.models.hold("m") as version, pytest.raises(RequestError) as refused:
            async with engine.within(version, 0.0):
                await engine.predict(version, "bug", {"x": np.ones(1, np.float32)})
        await engine.close()
        return refused.value.code, engine.metrics.page().decode()

    code, page = asyncio.run(main())
    assert code is Code.DEADLINE_EXCEEDED and "tfllmrec_batch_requests_count 0.0" in page


def test_a_full_queue(tmp_path):
    slow = [predict({"inputs": [n], "signature_name": "slow"}) for n in range(5)]
    answers = ask(tmp_path, *slow, workers=1, queue=2, batch_rows=1)
    assert sorted(status for status, _ in answers) == [200, 200, 200, 503, 503]
    assert "queue to which this task was submitted is full" in next(b["error"] for s, b in answers if s == 503)


def test_a_token_is_asked_for_everything(tmp_path):
    requests = [
        ("GET", "/v1/models/m", None),
        ("GET", "/monitoring/prometheus/metrics", None),
        predict({"inputs": [1]}),
    ]
    assert [status for status, _ in ask(tmp_path, *requests, token="secret")] == 3 * [401]
    for wrong in ("Bearer secre", "secret", "Bearer secret ä"):
        headers = {"authorization": wrong.encode()}
        assert ask(tmp_path, *requests[:1], token="secret", headers=headers)[0][0] == 401
    right = {"authorization": "Bearer secret"}
    assert [status for status, _ in ask(tmp_path, *requests, token="secret", headers=right)] == 3 * [200]


def test_a_client_that_goes_away_is_not_computed_for(tmp_path):
    """One behind one that takes long; a body in two parts, and a server that says more than once that there is more."""
    computed, begun, go = [], threading.Event(), threading.Event()

    class Counts(Doubles):
        def _slow(self, inputs):
            begun.set()
            assert go.wait(60)
            return self._double(inputs)

        def _double(self, inputs):
            computed.append(inputs["x"].tolist())
            return super()._double(inputs)

    async def post(app, events, *values, signature="serving_default"):
        body = json.dumps({"inputs": values, "signature_name": signature}).encode()
        for part in (body[:9], body[9:]):
            events.put_nowait({"type": "http.request", "body": part, "more_body": part != body[9:]})
        events.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        sent = []

        async def send(event):
            sent.append(event)

        scope = {"type": "http", "method": "POST", "path": "/v1/models/m:predict", "headers": [], "query_string": b""}
        await app(scope, events.get, send)
        return sent[0]["status"]

    async def waiting(engine, count):
        async with asyncio.timeout(60):
            while f"tfllmrec_queue_requests {count}.0" not in engine.metrics.page().decode():
                await asyncio.sleep(0.01)

    async def main():
        engine = await engine_of(tmp_path, Counts, workers=1)
        app = rest_app(engine)
        events = [asyncio.Queue() for _ in range(3)]
        slow = asyncio.ensure_future(post(app, events[0], 0, signature="slow"))
        assert await asyncio.to_thread(begun.wait, 60)
        gone, stays = (asyncio.ensure_future(post(app, events[n], n)) for n in (1, 2))
        await waiting(engine, 2)
        events[1].put_nowait({"type": "http.disconnect"})
        assert await asyncio.wait_for(gone, 60) == 499
        await waiting(engine, 1)
        go.set()
        assert (await slow, await stays) == (200, 200)
        page = engine.metrics.page().decode()
        await engine.close()
        return page

    page = asyncio.run(main())
    assert computed == [[0], [2]]
    assert ':tensorflow:serving:request_count{model_name="m",status="CANCELLED"} 1.0' in page
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 2.0' in page


def test_metrics_have_tf_servings_names(tmp_path):
    async def main():
        engine = await engine_of(tmp_path, Doubles)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(rest_app(engine)), base_url="http://here") as client:
            for body in ("{}", '{"inputs": [1]}', '{"inputs": [1]}'):
                await client.post("/v1/models/m:predict", content=body)
            await client.post("/v1/models/made-up-by-a-client:predict", content="{}")
            answer = await client.get("/monitoring/prometheus/metrics")
        await engine.close()
        return answer

    page = asyncio.run(main()).text
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 2.0' in page
    assert ':tensorflow:serving:request_count{model_name="m",status="INVALID_ARGUMENT"} 1.0' in page
    assert ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="REST",model_name="m"} 2.0' in page
    assert "made-up" not in page  # or clients could fill the memory
    assert 'tfllmrec_version_loads_total{model_name="m",outcome="loaded"} 2.0' in page
    assert "tfllmrec_batch_requests_count 2.0" in page

"""The id of a request comes back with every answer and error, over both protocols; without TensorFlow."""

import asyncio
import json
import logging
import re

import grpc
import httpx
import numpy as np
import pytest

from tfllmrec.client.messages import MESSAGES, tensor_proto
from tfllmrec.server import request_ids
from tfllmrec.server.batching import Joining
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.grpc_service import Guard, WithRequestId, add_services
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import Signature, TensorSpec

FLOAT = TensorSpec(np.dtype(np.float32), (None,))
SAME = Signature({"x": FLOAT}, {"x": FLOAT})
VALID = ["a", "x" * 128, "0f8fad5b-d9cb-469f-a165-70867728950e", '!"~']
INVALID = ["", "x" * 129, "two words", "é", "tab\t", "line\n", "\x7f"]


class Same:
    """Answers with its input; ``bug`` fails."""

    alive = True

    def __init__(self, folder):
        self.signatures = {"serving_default": SAME, "bug": SAME}
        self.joining = {name: Joining(SAME, False) for name in self.signatures}
        self.calls = {"serving_default": lambda inputs: inputs, "bug": lambda inputs: 1 / 0}

    def close(self):
        pass


async def engine_of(folder):
    (folder / "m" / "1").mkdir(parents=True, exist_ok=True)
    (folder / "m" / "1" / "saved_model.pb").write_text("x")
    engine = Engine(Limits(body_bytes=1000), Same, settled_s=0)
    await engine.models.follow([ModelSource("m", folder / "m", "all")])
    return engine


@pytest.mark.parametrize("given", VALID)
def test_a_valid_id_is_taken(given):
    assert request_ids.take(given) == given == request_ids.request_id.get()


@pytest.mark.parametrize("given", [None, *INVALID])
def test_any_other_one_is_replaced(given):
    first, second = request_ids.take(given), request_ids.take(given)
    assert first != second and all(re.fullmatch("[0-9a-f]{32}", fresh) for fresh in (first, second))


# REST -----------------------------------------------------------------------------------------------------------------


def ask(folder, method, path, body=None, headers=(), **app):
    async def main():
        engine = await engine_of(folder)
        transport = httpx.ASGITransport(rest_app(engine, **app))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answer = await client.request(method, path, content=body, headers=headers)
        await engine.close()
        return answer

    return asyncio.run(main())


PREDICT = "/v1/models/m:predict"


@pytest.mark.parametrize(
    ("status", "request_", "app"),
    [
        (200, ("POST", PREDICT, '{"inputs": [1]}'), {}),
        (200, ("GET", "/v1/models/m"), {}),
        (200, ("GET", "/monitoring/prometheus/metrics"), {}),
        (400, ("POST", PREDICT, "{"), {}),
        (401, ("GET", "/v1/models/m"), {"token": "secret"}),
        (403, ("GET", "/v1/models/m"), {"hosts": ["there"]}),
        (404, ("GET", "/elsewhere"), {}),
        (404, ("GET", "/v1/models/no"), {}),
        (413, ("POST", PREDICT, "x" * 1001), {}),
        (500, ("POST", PREDICT, '{"inputs": [1], "signature_name": "bug"}'), {}),
    ],
)
def test_every_rest_answer_has_one(tmp_path, status, request_, app):
    own = ask(tmp_path, *request_, headers={"X-Request-Id": "mine-1"}, **app)
    assert (own.status_code, own.headers.get_list("x-request-id")) == (status, ["mine-1"])
    fresh = ask(tmp_path, *request_, **app)
    assert (fresh.status_code, len(fresh.headers["x-request-id"])) == (status, 32)


def test_an_invalid_header_is_replaced(tmp_path):
    for given in ("two words", "x" * 129, "é".encode("latin-1")):
        answer = ask(tmp_path, "GET", "/v1/models/m", headers={"x-request-id": given})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_the_log_names_failed_rest_requests(tmp_path, caplog):
    async def main():
        engine = await engine_of(tmp_path)
        transport = httpx.ASGITransport(rest_app(engine))
        body = json.dumps({"inputs": [1], "signature_name": "bug"})
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            sent = [client.post(PREDICT, content=body, headers={"x-request-id": f"r{n}"}) for n in range(3)]
            await asyncio.gather(*sent)  # at once: none of them has another's id
        await engine.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    logged = [record.getMessage() for record in caplog.records]
    assert sorted(logged) == [f"request r{n} ended in a bug of the server" for n in range(3)]


# gRPC -----------------------------------------------------------------------------------------------------------------


def call(folder, method, request, metadata=(), token=None):
    """(status code, ids in the initial metadata) of one call."""

    async def main():
        engine = await engine_of(folder)
        server = grpc.aio.server(interceptors=[WithRequestId(), *([Guard(token)] if token else [])])
        add_services(server, engine, None)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            sent = channel.unary_unary(f"/tensorflow.serving.{method}")(
                request.SerializeToString(), metadata=metadata, timeout=60
            )
            told = await sent.initial_metadata()
            code = await sent.code()
        await server.stop(None)
        await engine.close()
        return code.name, [value for name, value in told if name == "x-request-id"]

    return asyncio.run(main())


def predict(name="m", signature=""):
    request = MESSAGES["PredictRequest"](model_spec=MESSAGES["ModelSpec"](name=name, signature_name=signature))
    request.inputs["x"].CopyFrom(tensor_proto("x", [1.0]))
    return request


@pytest.mark.parametrize(
    ("code", "method", "request_", "token"),
    [
        ("OK", "PredictionService/Predict", predict(), None),
        ("OK", "ModelService/GetModelStatus", predict(), None),
        ("NOT_FOUND", "PredictionService/Predict", predict("no"), None),
        ("INTERNAL", "PredictionService/Predict", predict(signature="bug"), None),
        ("UNIMPLEMENTED", "PredictionService/Classify", predict(), None),
        ("UNIMPLEMENTED", "PredictionService/Nothing", predict(), None),
        ("UNAUTHENTICATED", "PredictionService/Predict", predict(), "secret"),
    ],
)
def test_every_grpc_answer_has_one(tmp_path, code, method, request_, token):
    own = call(tmp_path, method, request_, [("x-request-id", "mine-1")], token=token)
    assert own == (code, ["mine-1"])
    for metadata in ((), [("x-request-id", "two words")]):
        told, fresh = call(tmp_path, method, request_, metadata, token=token)
        assert told == code and [len(one) for one in fresh] == [32]


def test_the_log_names_failed_grpc_requests(tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        call(tmp_path, "PredictionService/Predict", predict(signature="bug"), [("x-request-id", "mine-2")])
    assert [record.getMessage() for record in caplog.records] == ["request mine-2 ended in a bug of the server"]

"""The client against small real servers that answer as TF Serving does, over REST and over gRPC, without TensorFlow."""

import gzip
import json
import math
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
import pytest

from tfllmrec.client import client as client_module
from tfllmrec.client.answers import (
    Explanation,
    Metadata,
    ModelVersion,
    Outputs,
    Recommendation,
    Signature,
    TensorSpec,
)
from tfllmrec.client.client import Client
from tfllmrec.client.messages import MESSAGES, tensor_proto, values_of
from tfllmrec.client.transports import CODES, ServingError
from tfllmrec.errors import ConfigError, DataError, ModelError

ROOT = Path(__file__).parents[2]
NAN = math.nan

# A model that anybody can compute ------------------------------------------------------------------------------------

CATALOGUE = ["a", "b", "c", "d", "é"]


def best(candidates, k, width):
    """Candidates in catalogue order; the first scores 1, the next 1/2, then 1/4."""
    found = candidates[:k] + [""] * (width - min(k, len(candidates)))
    return found, [0.5**rank if item else 0.0 for rank, item in enumerate(found)]


def made_model(signature, inputs):
    """Answers as the exported signatures do: "" is nobody, unknown ids are counted, rows are filled up with "".

    An item's category is its id.
    """
    if signature == "score":
        return {"scores": [[float(len(row)), 0.5, 0.25, 0.125, NAN] for row in inputs["history"]]}
    unknown = [sum(i not in CATALOGUE for i in row if i) for row in inputs.get("history", [])]
    if signature == "explain":
        rows = inputs["items"]
        return {
            "meaning": [[0.5 if i in CATALOGUE else 0.0 for i in row] for row in rows],
            "feedback": [[0.25 * (i == "b") for i in row] for row in rows],
            "because": [["a" if i in CATALOGUE else "" for i in row] for row in rows],
            "unknown": unknown,
        }
    if signature == "rank":
        # The later in the catalogue, the likelier; without a history this model predicts no ratings.
        weights = [[CATALOGUE.index(i) + 1 if i in CATALOGUE else 0 for i in row] for row in inputs["items"]]
        told = {"click_probability": [[w / max(sum(row), 1) for w in row] for row in weights], "unknown": unknown}
        return told | ({"rating": [[0.5 * w for w in row] for row in weights]} if inputs["history"][0][1:] else {})
    listing, _, full = signature.partition("_")
    if listing in ("similar", "related"):
        unknown = [int(i not in CATALOGUE) for i in inputs["item_id"]]
        candidates = [[i for i in CATALOGUE if i != item] if item in CATALOGUE else [] for item in inputs["item_id"]]
    elif listing == "search":
        candidates = [
            [i for i in CATALOGUE if i in text and i not in gone]
            for text, gone in zip(inputs["text"], inputs["exclude"], strict=True)
        ]
    else:
        candidates = [
            [i for i in CATALOGUE if i not in (*had, *gone)]
            for had, gone in zip(inputs["history"], inputs["exclude"], strict=True)
        ]
    if full:
        candidates = [
            [i for i in found if (i in allow or not any(allow)) and (i in kinds or not any(kinds))]
            for found, allow, kinds in zip(candidates, inputs["allow"], inputs["categories"], strict=True)
        ]
    rows = [best(c, k, max(inputs["k"])) for c, k in zip(candidates, inputs["k"], strict=True)]
    out = {"item_ids": [ids for ids, _ in rows], "scores": [scores for _, scores in rows], "unknown": unknown}
    if listing == "related":
        out["reasons"] = [["same author" if i else "" for i in ids] for ids, _ in rows]
    return out | ({"titles": [[i.upper() for i in ids] for ids, _ in rows]} if full else {})


NUMBERS = {"DT_FLOAT": 1, "DT_INT32": 3, "DT_STRING": 7}
MATRIX, ROW = (None, None), (None,)
FILTERS = dict.fromkeys(("allow", "categories"), TensorSpec("DT_STRING", MATRIX)) | {"k": TensorSpec("DT_INT32", ROW)}
FIELDS = dict.fromkeys(("history", "exclude", "context", "event_fields"), TensorSpec("DT_STRING", MATRIX))
FIELDS |= {"ratings": TensorSpec("DT_FLOAT", MATRIX), **FILTERS}
RULES = dict.fromkeys(("diversity", "tail_share"), TensorSpec("DT_FLOAT", ROW))
RULES |= dict.fromkeys(("pinned", "skip", "label_weights"), TensorSpec("DT_STRING", MATRIX))
RULES |= dict.fromkeys(("category_cap", "reasons"), TensorSpec("DT_INT32", ROW))
PERSON = {name: FIELDS[name] for name in ("history", "ratings", "event_fields", "context")}
OFFERED = PERSON | {"items": TensorSpec("DT_STRING", MATRIX)}
SCORES = {"scores": TensorSpec("DT_FLOAT", (None, 5))}
SIGNATURES = {
    "recommend_full": Signature(FIELDS | RULES, SCORES),
    "search_full": Signature(FIELDS | {"text": TensorSpec("DT_STRING", ROW)}, SCORES),
    "similar": Signature({"item_id": TensorSpec("DT_STRING", ROW)}, SCORES),
    "explain": Signature(OFFERED, SCORES),
    "rank": Signature(OFFERED, SCORES),
    "score": Signature(PERSON, SCORES),
    "similar_full": Signature(FILTERS | {"item_id": TensorSpec("DT_STRING", ROW)}, SCORES),
}


# Two servers that speak TF Serving's protocol -------------------------------------------------------------------------


class Served:
    """What a server was asked, and how it shall fail before it answers.

    Attributes:
      calls: (kind, signature, inputs) of each request that was read. targets: (model, version, label) of each.
      tokens: the authorization of each, or None. peers: the connection that each came through.
      request_ids: the id of each. answer_id: the one that is sent back; None for none, as stock TF Serving has none.
      failures: gRPC codes to answer with, one a request; or a number of seconds to sleep.
      signatures: of the model, for its metadata; a request with other inputs than these is refused.
    """

    def __init__(self):
        self.calls, self.targets, self.tokens, self.peers, self.failures = [], [], [], [], []
        self.request_ids, self.answer_id = [], None
        self.model, self.tensor_proto, self.signatures = made_model, tensor_proto, SIGNATURES

    @property
    def predictions(self):
        """(signature, inputs) of each call of the model."""
        return [(signature, inputs) for kind, signature, inputs in self.calls if kind == "predict"]

    def took(self, kind, target, headers, peer, signature="", inputs=None):
        self.calls.append((kind, signature, inputs))
        self.targets.append(target)
        self.tokens.append(headers.get("authorization"))
        self.request_ids.append(headers.get("x-request-id"))
        self.peers.append(peer)
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, float):
            time.sleep(failure)
            return None
        if (
            failure is None
            and signature.endswith("_full")
            and inputs.keys() != self.signatures[signature].inputs.keys()
        ):
            return "INVALID_ARGUMENT"  # as TF Serving's REST does
        return failure


STATUS_OF = {code: status for status, code in reversed(CODES.items())}
STATUS = [(2, "AVAILABLE", 30, ""), (1, "END", 50, "not enough memory")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    # Headers and body in one segment: otherwise the second waits for the first one's acknowledgement.
    wbufsize = -1

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.handle_one(
            "metadata" if self.path.endswith("/metadata") else "status", self.path.removesuffix("/metadata")
        )

    def do_POST(self):
        path, _, kind = self.path.rpartition(":")
        self.handle_one(kind, path)

    def handle_one(self, kind, path):
        served = self.server.served
        served.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = json.loads(body) if body else {}
        given = path.split("/v1/models/")[1].split("/")
        target = (given[0], int(given[2]) if "versions" in given else None, given[2] if "labels" in given else None)
        failure = served.took(
            kind,
            target,
            self.headers,
            self.client_address,
            asked.get("signature_name", ""),
            asked.get("inputs"),
        )
        if callable(failure):
            return failure(self)
        if failure:
            headers = {"Retry-After": served.retry_after} if served.retry_after else {}
            return self.say(STATUS_OF[failure], {"error": f"made {failure}"}, headers)
        if kind == "predict":
            outputs = served.model(asked["signature_name"], asked["inputs"])
            # TF Serving leaves out the name of an only output.
            return self.say(200, {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))})
        if kind == "status":
            versions = [
                {"version": str(v), "state": s, "status": {"error_code": "OK", "error_message": e}}
                for v, s, _, e in STATUS
            ]
            return self.say(200, {"model_version_status": versions})

        def infos(specs):
            return {
                name: {
                    "dtype": spec.dtype, "name": "x:0", "tensor_shape": {"unknown_rank": False, "dim": [
                        {"size": str(-1 if size is None else size), "name": ""} for size in spec.shape
                    ]},
                }
                for name, spec in specs.items()
            }  # fmt: skip

        signatures = {
            name: {"inputs": infos(signature.inputs), "outputs": infos(signature.outputs)}
            for name, signature in served.signatures.items()
        }
        init = {"inputs": {}, "outputs": {"__op": {"dtype": "DT_INVALID", "tensor_shape": {"unknown_rank": True}}}}
        found = {"signature_def": signatures | {"__saved_model_init_op": init}}
        spec = {"name": target[0], "signature_name": "", "version": "2"}
        return self.say(200, {"model_spec": spec, "metadata": {"signature_def": found}})

    def say(self, status, told, headers=()):
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        if self.server.served.answer_id:
            self.send_header("X-Request-Id", self.server.served.answer_id)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args):
        super().__init__(*args)
        self.connections = []

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def close(self):
        """As a process that ends does: connections that were kept go too."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        pass  # a client that gave up


@contextmanager
def rest_server(served, port=0, certificate=None):
    server = QuietServer(("127.0.0.1", port), Handler)
    served.paths, served.retry_after = [], None
    server.served = served
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://localhost:{server.server_port}"
    finally:
        server.close()
        thread.join()


class Services:
    """The methods of PredictionService and ModelService."""

    def __init__(self, served):
        self.served = served

    def took(self, kind, request, context, inputs=None):
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        if self.served.answer_id:
            context.send_initial_metadata((("x-request-id", self.served.answer_id),))
        failure = self.served.took(
            kind,
            (spec.name, version, spec.version_label or None),
            dict(context.invocation_metadata()),
            context.peer(),
            spec.signature_name,
            inputs,
        )
        if failure:
            context.abort(grpc.StatusCode[failure], f"made {failure}")

    def Predict(self, request, context):
        inputs = {name: values_of(name, tensor) for name, tensor in request.inputs.items()}
        self.took("predict", request, context, inputs)
        response = MESSAGES["PredictResponse"](model_spec=request.model_spec)
        for name, values in self.served.model(request.model_spec.signature_name, inputs).items():
            response.outputs[name].CopyFrom(self.served.tensor_proto(name, values))
        return response

    def GetModelMetadata(self, request, context):
        self.took("metadata", request, context)
        assert list(request.metadata_field) == ["signature_def"]  # TF Serving refuses anything else
        found = MESSAGES["SignatureDefMap"]()
        for signature, sides in self.served.signatures.items():
            for side in ("inputs", "outputs"):
                for name, spec in getattr(sides, side).items():
                    info = getattr(found.signature_def[signature], side)[name]
                    info.dtype = NUMBERS[spec.dtype]
                    for size in spec.shape:
                        info.tensor_shape.dim.add(size=-1 if size is None else size)
        found.signature_def["__saved_model_init_op"].outputs["__op"].tensor_shape.unknown_rank = True
        response = MESSAGES["GetModelMetadataResponse"](model_spec=request.model_spec)
        response.model_spec.version.value = 2
        response.metadata["signature_def"].value = found.SerializeToString()
        return response

    def GetModelStatus(self, request, context):
        self.took("status", request, context)
        response = MESSAGES["GetModelStatusResponse"]()
        for version, _, state, error in STATUS:
            response.model_version_status.add(version=version, state=state).status.error_message = error
        return response


METHODS = {
    "PredictionService": {
        "Predict": ("PredictRequest", "PredictResponse"),
        "GetModelMetadata": ("GetModelMetadataRequest", "GetModelMetadataResponse"),
    },
    "ModelService": {"GetModelStatus": ("GetModelStatusRequest", "GetModelStatusResponse")},
}


@contextmanager
def grpc_server(served, port=0, certificate=None, compression=None):
    server = grpc.server(ThreadPoolExecutor(16), compression=compression)
    services = Services(served)
    for service, methods in METHODS.items():
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                getattr(services, method), MESSAGES[asked].FromString, MESSAGES[told].SerializeToString
            )
            for method, (asked, told) in methods.items()
        }
        full = f"tensorflow.serving.{service}"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(full, handlers),))
    if certificate:
        pair = (Path(certificate[1]).read_bytes(), Path(certificate[0]).read_bytes())
        port = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"grpc{'s' if certificate else ''}://localhost:{port}"
    finally:
        server.stop(None).wait()


SERVERS = {"rest": rest_server, "grpc": grpc_server}


@pytest.fixture
def served():
    return Served()


@pytest.fixture(params=SERVERS)
def kind(request):
    return request.param


@pytest.fixture
def address(kind, served):
    with SERVERS[kind](served) as address:
        yield address


@pytest.fixture
def rest(served):
    with rest_server(served) as address:
        yield address


@pytest.fixture
def client(address):
    with Client(address, "made") as client:
        yield client


@pytest.fixture
def pauses(monkeypatch):
    """The widths that pauses were drawn from; nothing is slept."""
    drawn = []
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: drawn.append((low, high)) or 0.0)
    return drawn


def same(a, b):
    """Equality of nested lists in which NaN is itself; a float32 on the way may round."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


# What is asked and answered -------------------------------------------------------------------------------------------


def test_recommend(client, served):
    answer = client.recommend(["a", "nope"], ratings=[5, None], exclude=["c"], k=2)
    assert list(answer) == [Recommendation("b", "b", 1.0), Recommendation("d", "d", 0.5)]
    assert (len(answer), answer.unknown, answer[1].item_id) == (2, 1, "d")
    ((_, signature, inputs),) = served.calls
    assert signature == "recommend"
    assert inputs["history"] == [["", "a", "nope"]] and inputs["exclude"] == [["", "c"]] and inputs["k"] == [2]
    assert same(inputs["ratings"], [[NAN, 5.0, NAN]])


def test_nothing_is_known_and_little_is_left(client, served):
    assert [item.item_id for item in client.recommend([])] == CATALOGUE
    _, _, inputs = served.calls[0]
    assert inputs["history"] == inputs["exclude"] == [[""]] and inputs["k"] == [10]
    assert same(inputs["ratings"], [[NAN]])
    assert len(client.recommend(CATALOGUE[:2], exclude=CATALOGUE)) == 0


def test_many_people_in_one_request(client, served):
    answers = client.recommend_many(
        [["a"], [], ["b", "x", "y"]], 2, exclude=[["b"], [], []], ratings=[[1], [], [2, 3, 4]]
    )
    assert [[item.item_id for item in answer] for answer in answers] == [["c", "d"], ["a", "b"], ["a", "c"]]
    assert [answer.unknown for answer in answers] == [0, 0, 2]
    ((_, _, inputs),) = served.calls
    assert inputs["history"] == [["", "a", "", ""], ["", "", "", ""], ["", "b", "x", "y"]]
    assert same(inputs["ratings"], [[NAN, 1.0, NAN, NAN], [NAN] * 4, [NAN, 2.0, 3.0, 4.0]])
    assert inputs["exclude"] == [["", "b"], ["", ""], ["", ""]] and inputs["k"] == [2] * 3
    assert client.recommend_many([]) == []
    assert len(served.calls) == 1


def test_search(client, served):
    assert [item.item_id for item in client.search("dé", ["a"], exclude=["x"], k=3)] == ["d", "é"]
    inputs = {"text": ["dé"], "history": [["", "a"]], "exclude": [["", "x"]], "k": [3]}
    assert served.calls == [("predict", "search", inputs)]


def test_similar(client, served):
    assert [item.item_id for item in client.similar("é", k=3)] == ["a", "b", "c"]
    assert served.calls == [("predict", "similar", {"item_id": ["é"], "k": [3]})]
    with pytest.raises(DataError, match=r"No item 'nope' in the catalogue of 'made' at (http|grpc)://"):
        client.similar("nope")


def test_related(client, served):
    found = client.related("é", k=2)
    assert [(item.item_id, item.reason) for item in found] == [("a", "same author"), ("b", "same author")]
    assert served.calls == [("predict", "related", {"item_id": ["é"], "k": [2]})]
    with pytest.raises(DataError, match=r"No item 'nope' in the catalogue of 'made' at (http|grpc)://"):
        client.related("nope")


def test_filters_go_to_signatures_of_their_own(client, served):
    assert [item.item_id for item in client.recommend(["a"], allow=["c", "a", "x", "é"])] == ["c", "é"]
    assert [item.item_id for item in client.search("abc", categories=["c", "b"])] == ["b", "c"]
    assert [item.item_id for item in client.similar("a", allow=["b", "c"], categories=["c", "d"])] == ["c"]
    assert [(signature, inputs["allow"], inputs["categories"]) for signature, inputs in served.predictions] == [
        ("recommend_full", [["", "c", "a", "x", "é"]], [[""]]),
        ("search_full", [[""]], [["", "c", "b"]]),
        ("similar_full", [["", "b", "c"]], [["", "c", "d"]]),
    ]
    assert len(client.recommend(["a"], allow=[])) == len(client.similar("a", allow=[])) == 0
    answers = client.recommend_many([[], ["a"], []], allow=[None, ["a", "b"], []], categories=[["d"], [], []])
    assert [[item.item_id for item in answer] for answer in answers] == [["d"], ["b"], []]
    with pytest.raises(DataError, match="Expected categories as a list, got the string 'Drama'"):
        client.recommend([], categories="Drama")


def test_fields_go_with_all_inputs_and_titles_come_back(client, served):
    found = client.recommend(["a", "b"], context={"device": "tv", "age": 25.0}, event_fields=[{"kind": "view"}, None])
    assert [(item.item_id, item.title) for item in found] == [("c", "C"), ("d", "D"), ("é", "É")]
    client.search("abc", ["a"], ratings=[4], context={"age": None})
    many = client.recommend_many([["a"], []], context=[None, {"age": 3}])
    assert [len(answer) for answer in many] == [4, 5]
    (first, recommend), (second, search), (third, several) = served.predictions
    assert (first, second, third) == ("recommend_full", "search_full", "recommend_full")
    assert recommend["context"] == [["", "device=tv", "age=25"]]
    assert recommend["event_fields"] == [["", "kind=view", ""]] and recommend["history"] == [["", "a", "b"]]
    assert recommend["allow"] == recommend["categories"] == [[""]]
    assert search["context"] == search["event_fields"] == [[""]] and search["ratings"][0][1] == 4
    assert several["context"] == [["", ""], ["", "age=3"]] and several["event_fields"] == [[""], [""]]
    assert all(mark != mark for row in several["ratings"] for mark in row)


def rules_sent(served):
    """(signature, rules) of each call of the model."""
    return [
        (signature, {name: inputs[name] for name in RULES if name in inputs})
        for signature, inputs in served.predictions
    ]


def test_rules_go_with_all_inputs(client, served):
    none = {"diversity": [0], "tail_share": [0], "category_cap": [0], "pinned": [[""]], "skip": [[""]]}
    none |= {"label_weights": [[""]], "reasons": [0]}
    client.recommend(["a"], diversity=0.25)
    client.recommend_many([["a"], []], diversity=[0, 1], pinned=[["b", "c"], []], category_cap=[2, 0], tail_share=0.5)
    client.recommend(["a"], skip=["ranking"])
    client.recommend_many([["a"], []], diversity=0)
    client.recommend(["a"], titles=True)
    assert rules_sent(served) == [
        ("recommend_full", none | {"diversity": [0.25]}),
        ("recommend_full", {
            "diversity": [0, 1], "tail_share": [0.5, 0.5], "category_cap": [2, 0],
            "pinned": [["", "b", "c"], ["", "", ""]], "skip": [[""], [""]], "label_weights": [[""], [""]],
            "reasons": [0, 0],
        }),
        ("recommend_full", none | {"skip": [["", "ranking"]]}),
        ("recommend", {}),
        ("recommend_full", none),
    ]  # fmt: skip
    client.recommend(["a"], diversity=np.float32(0.5), category_cap=np.int64(3))
    assert rules_sent(served)[-1][1] == none | {"diversity": [0.5], "category_cap": [3]}
    client.recommend(["a"], label_weights={"Sci-Fi, a=b": 1, "Drama": np.float32(-0.5)})
    assert rules_sent(served)[-1][1] == none | {"label_weights": [["", "Sci-Fi, a=b=1", "Drama=-0.5"]]}
    client.recommend_many([["a"], []], label_weights=[{}, {"Drama": 1}])
    assert rules_sent(served)[-1][1]["label_weights"] == [["", ""], ["", "Drama=1"]]
    assert [kind for kind, _, _ in served.calls].count("metadata") == 1
    for name, values in {
        "label": ({"Drama": 2}, {"Drama": "up"}, {"Drama": math.nan}, {3: 1}, ["Drama"]),
        "diversity": (1.5, "high", None, math.nan, [0.1, 0.2], ["high"]),
        "tail_share": (-0.1, "high", [0.1, 0.2]),
        "category_cap": (-1, 1.5, "two", [1, 2], 2**31),
        "pinned": ("a", [3]),
        "skip": ("ranking", ["retrieval"]),
    }.items():
        for wrong in values:
            with pytest.raises(DataError, match=name):
                client.recommend(["a"], **{"label_weights" if name == "label" else name: wrong})
    with pytest.raises(DataError, match="one label_weights for each of 2 queries, got 1"):
        client.recommend_many([["a"], []], label_weights=[{"Drama": 1}])
    with pytest.raises(DataError, match="one list of pinned items for each of 2 queries, got 1"):
        client.recommend_many([["a"], []], pinned=[["b"]])


def test_a_model_of_another_version_gets_the_inputs_that_it_has(client, served):
    """Earlier exports have no rules; a later one may have inputs that this client does not know."""
    later = dict.fromkeys(("mood", "weights"), TensorSpec("DT_FLOAT", MATRIX)) | {"limit": TensorSpec("DT_INT32", ROW)}
    by_version = [
        {"recommend_full": Signature(inputs, {})} for inputs in (FIELDS, FIELDS | RULES | later, FIELDS | RULES)
    ]
    for signatures in by_version:  # each takes over from the one before
        served.signatures = signatures
        assert [item.item_id for item in client.recommend(["a"], allow=["c", "d"])] == ["c", "d"]
        sent = served.predictions[-1][1]
        assert sent.keys() == signatures["recommend_full"].inputs.keys()
    assert served.predictions[-3][1].keys() == (FIELDS | RULES | later).keys()
    assert same(served.predictions[-3][1]["mood"], [[NAN]]) and served.predictions[-3][1]["limit"] == [0]
    served.signatures = by_version[0]
    with pytest.raises(ModelError, match="was exported by an earlier version, without pinned, tail_share: export it"):
        client.recommend(["a"], pinned=["b"], tail_share=0.1)
    # What is wrong for another reason stays wrong, and a model without such a signature says so itself.
    served.failures = ["INVALID_ARGUMENT", None]
    with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
        client.recommend(["a"], allow=["c"])
    served.signatures = {}
    served.failures = [None, "NOT_FOUND"]
    with pytest.raises(ServingError, match="NOT_FOUND"):
        client.similar("a", allow=["c"])


def test_rank(client, served):
    told = client.rank(["a"], ["b", "nope", "é", "a"], ratings=[4])
    expected = [("é", 5 / 8, 2.5), ("b", 2 / 8, 1.0), ("a", 1 / 8, 0.5), ("nope", 0.0, None)]
    assert [line.item_id for line in told] == [item for item, _, _ in expected]
    for line, (item, probability, rating) in zip(told, expected, strict=True):
        assert line.title == item and line.click_probability == pytest.approx(probability)
        assert line.rating == rating
    ((signature, inputs),) = served.predictions
    assert signature == "rank" and inputs["items"] == [["", "b", "nope", "é", "a"]]
    assert inputs["history"] == [["", "a"]] and same(inputs["ratings"], [[NAN, 4.0]])
    unrated = client.rank([], ["b", "d"])
    assert [line.rating for line in unrated] == [None, None]
    assert [line.item_id for line in unrated] == ["d", "b"]
    with pytest.raises(DataError, match="Expected items as a list, got the string 'b'"):
        client.rank(["a"], "b")


def test_explain(client, served):
    told = client.explain(["a"], ["b", "nope", "é"], ratings=[4])
    assert told == [
        Explanation("b", {"meaning": 0.5, "feedback": 0.25}, "a"),
        Explanation("nope", {"meaning": 0.0, "feedback": 0.0}, ""),
        Explanation("é", {"meaning": 0.5, "feedback": 0.0}, "a"),
    ]
    ((_, inputs),) = served.predictions
    assert inputs["items"] == [["", "b", "nope", "é"]]
    assert (inputs["event_fields"], inputs["context"]) == ([[""]], [[""]])
    client.explain(["a"], ["b"], context={"device": "tv"}, event_fields=[{"kind": "buy"}])
    _, inputs = served.predictions[-1]
    assert (inputs["event_fields"], inputs["context"]) == ([["", "kind=buy"]], [["", "device=tv"]])


def test_answers_and_errors_name_the_request(client, served, pauses):
    """Stock TF Serving sends no id back; then it is the one that was sent."""
    calls = [
        lambda: client.recommend(["a"]),
        lambda: client.recommend_many([[], ["a"]])[1],
        lambda: client.search("a"),
        lambda: client.similar("a"),
        lambda: client.explain(["a"], ["b"]),
        lambda: client.rank(["a"], ["b"]),
        lambda: client.score(["a"]),
        lambda: client.predict("similar", {"item_id": ["a"], "k": [1]}),
        client.status,
        client.metadata,
    ]
    client.score(["a"])  # the first call that needs a whole signature asks for the metadata, too
    served.request_ids.clear()
    answers = [call() for call in calls]
    assert [answer.request_id for answer in answers] == served.request_ids
    assert len(set(served.request_ids)) == len(calls)
    served.answer_id = "of-a-proxy"
    assert [call().request_id for call in calls] == ["of-a-proxy"] * len(calls)
    served.failures = ["NOT_FOUND"]
    with pytest.raises(ServingError, match=r"\(1 attempt within 5 s, request of-a-proxy\)") as caught:
        client.status()
    assert caught.value.request_id == "of-a-proxy"
    served.answer_id = None
    served.failures = ["UNAVAILABLE"] * 4
    with pytest.raises(ServingError) as caught:
        client.status()
    assert served.request_ids[-4:] == [caught.value.request_id] * 4  # each attempt has the same one
    assert f"(4 attempts within 5 s, request {caught.value.request_id})" in str(caught.value)


def test_an_answer_of_another_form_names_the_request(client, served):
    served.model = lambda signature, inputs: {"dense_1": [[0.5]], "dense_2": [[0.5]]}
    with pytest.raises(ServingError, match=r"another form than expected .* \(request \w+\)") as caught:
        client.recommend(["a"])
    assert [caught.value.request_id] == served.request_ids and caught.value.request_id in str(caught.value)


def test_unknown_ids_are_counted_in_every_answer(client, served):
    asked = [client.explain(["nope"], ["b"]), client.rank(["nope", "a"], ["b"])]
    assert [answer.unknown for answer in asked] == [1, 1]


def test_score_is_an_output_without_a_name_over_rest(client):
    assert same(client.score(["a", "b"]), [3.0, 0.5, 0.25, 0.125, NAN])


def test_predict_calls_any_signature(client, served):
    out = client.predict("similar", {"item_id": ["a", "b"], "k": [1, 2]})
    assert out["item_ids"] == [["b", ""], ["a", "c"]] and out["unknown"] == [0, 0]
    assert out["scores"] == [[1.0, 0.0], [1.0, 0.5]]


def test_status_and_metadata(client, served):
    assert client.status() == [ModelVersion(2, "AVAILABLE"), ModelVersion(1, "END", "not enough memory")]
    assert client.metadata() == Metadata("made", 2, SIGNATURES)


@pytest.mark.parametrize(
    ("chosen", "target"),
    [({}, ("made", None, None)), ({"version": 7}, ("made", 7, None)), ({"label": "canary"}, ("made", None, "canary"))],
)
def test_version_or_label(address, served, chosen, target):
    with Client(address, "made", **chosen) as client:
        client.recommend([])
        client.status()
        client.metadata()
    assert [kind for kind, _, _ in served.calls] == ["predict", "status", "metadata"]
    assert served.targets == [target] * 3


def test_names_are_quoted_and_a_prefix_is_kept(rest, served):
    with Client(rest + "/behind/", "our model/2") as client:
        client.status()
    assert served.paths == ["/behind/v1/models/our%20model%2F2"]


def test_strange_ids_arrive_as_they_are(client, served):
    ids = ["漢字", "🙂", 'quo"te', "new\nline", "nul\0", "x" * 10_000]
    client.recommend(ids)
    assert served.calls[0][2]["history"] == [["", *ids]]


# When things go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_what_may_pass_is_tried_again(client, served, pauses, code):
    served.failures = [code, code]
    assert len(client.recommend([])) == 5
    assert len(served.calls) == 3
    assert pauses == [(0, 0.05), (0, 0.1)]


@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_what_stays_wrong_is_not(client, served, pauses, code):
    served.failures = [code]
    with pytest.raises(
        ServingError, match=rf"'made' at .*: {code}: made {code} \(1 attempt within 5 s, request \w+\)"
    ) as caught:
        client.recommend([])
    assert caught.value.code == code and caught.value.exit_code == 4
    assert len(served.calls) == 1 and len(pauses) == 1
    assert len(client.recommend([])) == 5


def test_retries_end(address, served, pauses):
    served.failures = ["UNAVAILABLE"] * 20
    with (
        Client(address, "made", retries=7) as client,
        pytest.raises(ServingError, match=r"\(8 attempts within 5 s, request \w+\)"),
    ):
        client.status()
    assert len(served.calls) == 8
    assert [high for _, high in pauses] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    served.failures = ["UNAVAILABLE"]
    with Client(address, "made", retries=0) as client, pytest.raises(ServingError, match=r"1 attempt "):
        client.status()
    assert len(served.calls) == 9


def test_no_pause_beyond_the_deadline(client, served, monkeypatch):
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: 2.0)
    monkeypatch.setattr(client_module.time, "sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    served.failures = ["UNAVAILABLE"]
    with pytest.raises(ServingError, match="UNAVAILABLE"):
        client.status(deadline_s=1.9)


def test_the_server_says_when_to_come_back(rest, served, pauses, monkeypatch):
    slept = []
    monkeypatch.setattr(client_module.time, "sleep", slept.append)
    with Client(rest, "made") as client:
        served.retry_after = "3"
        served.failures = ["UNAVAILABLE"]
        client.status()
        assert slept == [3.0]
        served.retry_after = "9"
        served.failures = ["UNAVAILABLE"]
        with pytest.raises(ServingError):  # later than the deadline
            client.status()
        served.retry_after = "Wed, 21 Oct 2026 07:28:00 GMT"
        served.failures = ["UNAVAILABLE"]
        client.status()
    assert slept == [3.0, 0.0]


def test_a_slow_server_meets_the_deadline(client, served):
    client.status()
    served.failures = [4.0]
    start = time.monotonic()
    with pytest.raises(ServingError) as caught:
        client.recommend([], deadline_s=0.1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert 0.09 < time.monotonic() - start < 3.5
    assert len(client.recommend([])) == 5


def test_attempts_share_the_deadline(pauses, monkeypatch):
    client = Client("http://localhost", "made", deadline_s=10)
    now, timeouts = [100.0], []
    monkeypatch.setattr(client_module.time, "monotonic", lambda: now[0])

    def status(timeout, request_id):
        timeouts.append(timeout)
        now[0] += 4
        raise ServingError("made", "UNAVAILABLE")

    monkeypatch.setattr(client._transport, "status", status)
    with pytest.raises(ServingError, match="3 attempts within 10 s"):
        client.status()
    assert timeouts == [10, 10 - 4, 10 - 8]


def drop(handler):
    handler.close_connection = True
    handler.connection.close()


def truncate(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"outputs": {}}')
    handler.close_connection = True


@pytest.mark.parametrize("failure", [drop, truncate])
def test_a_lost_connection_is_tried_again(rest, served, pauses, failure):
    with Client(rest, "made") as client:
        client.status()
        served.failures = [failure, failure]
        assert len(client.recommend([])) == 5
    assert len(served.calls) == 4 and len(pauses) == 2


def test_a_server_that_drips(rest, served):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(500):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    with Client(rest, "made", connections=1, retries=0) as client:
        served.failures = [drip]
        start = time.monotonic()
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED: the answer had begun but not ended"):
            client.recommend([], deadline_s=0.1)
        assert time.monotonic() - start < 8
        assert len(client.recommend([])) == 5  # the only connection is free again


def test_chunks_are_read(rest, served):
    def in_chunks(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (b'{"model_version_status"', b": []}", b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    with Client(rest, "made") as client:
        served.failures = [in_chunks]
        assert client.status() == []
        assert len(client.status()) == 2
    assert len(set(served.peers)) == 1


def test_a_server_that_comes_back(kind, served):
    with SERVERS[kind](served) as address:
        client = Client(address, "made", retries=100)
        assert len(client.status()) == 2
    port = int(address.rpartition(":")[2])
    with pytest.raises(ServingError) as caught:
        client.status(deadline_s=1)
    assert caught.value.code == "UNAVAILABLE"
    with SERVERS[kind](served, port):
        assert len(client.status(deadline_s=20)) == 2
    client.close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (502, b"<html>Bad Gateway", r"UNKNOWN: HTTP status 502 Bad Gateway \(1 attempt"),
        (408, b'{"error": "the body did not arrive"}', "DEADLINE_EXCEEDED: the body did not"),
        (404, b"", "NOT_FOUND: HTTP status 404 Not Found"),
        (301, b"", "UNKNOWN: HTTP status 301"),
        (400, b'{"error": "Missing named input: k"}', "INVALID_ARGUMENT: Missing named input: k"),
        (200, b"<html>hello", r"another form than expected .*is this TF Serving"),
        (200, b'{"predictions": []}', "another form than expected"),
        (200, b'{"outputs": {"dense_1": [[0.5]], "dense_2": [[0.5]]}}', "the model one of tfllmrec's"),
        (200, b'{"outputs": [[0.5]]}', "the model one of tfllmrec's"),
        (200, b"[]", "another form than expected"),
        (200, b"", "another form than expected"),
        (200, b"[" * 100_000, "another form than expected"),
    ],
)  # fmt: skip
def test_answers_that_are_not_tf_servings(rest, served, status, body, message):
    with Client(rest, "made") as client:
        served.failures = [lambda handler: handler.say(status, body)]
        with pytest.raises(ServingError, match=message):
            client.recommend([])
        for ask in (client.status, client.metadata):
            served.failures = [lambda handler: handler.say(status, body)]
            with pytest.raises(ServingError):
                ask()


def test_a_request_that_is_too_large_for_grpc_is_not_tried_again(served, pauses):
    too_large = "x" * (5 << 20)  # a server takes 4 MB unless told otherwise
    with grpc_server(served) as address, Client(address, "made") as client:
        with pytest.raises(ServingError, match=r"INVALID_ARGUMENT: .*larger than max .*\(1 attempt"):
            client.recommend([too_large])
        assert len(client.recommend([])) == 5


TOO_LARGE = (
    r"INVALID_ARGUMENT: the answer has more than 65536 bytes.*: ask for less, or raise max_answer_mb \(1 attempt"
)


def test_an_answer_that_is_too_large_is_refused_once(client, address, served, pauses):
    served.model = lambda signature, inputs: {"scores": [[0.5] * 50_000]}
    with Client(address, "made", max_answer_mb=1 / 16) as small:
        with pytest.raises(ServingError, match=TOO_LARGE):
            small.score(["a"])
        assert len(small.status()) == 2 and len(client.score(["a"])) == 50_000


@pytest.mark.parametrize("chunked", [False, True])
def test_a_compressed_answer_is_measured_decompressed(rest, served, chunked):
    zipped = gzip.compress(b" " * (1 << 20))
    assert len(zipped) < 1 << 16

    def send(handler):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(zipped)))
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(zipped), zipped) if chunked else zipped)

    with Client(rest, "made", max_answer_mb=1 / 16) as client:
        served.failures = [send]
        with pytest.raises(ServingError, match=TOO_LARGE):
            client.score(["a"])


def test_a_compressed_answer_is_measured_decompressed_over_grpc(served):
    served.model = lambda signature, inputs: {"scores": [[0.5] * 50_000]}
    with (
        grpc_server(served, compression=grpc.Compression.Gzip) as address,
        Client(address, "made", max_answer_mb=1 / 16) as client,
        pytest.raises(ServingError, match=TOO_LARGE),
    ):
        client.score(["a"])


@pytest.mark.parametrize("sizes", [[1, 1 << 40], [1 << 40, 0], [0, 1 << 40, 3]])
def test_a_few_bytes_that_declare_a_large_answer_are_refused(served, sizes):
    """Over gRPC one value may stand for all, and a tensor without values may have any number of rows."""

    def declare(name, values):
        tensor = tensor_proto(name, values)
        if name == "scores":
            del tensor.tensor_shape.dim[:]
            for size in sizes:
                tensor.tensor_shape.dim.add(size=size)
        return tensor

    served.tensor_proto = declare
    with grpc_server(served) as address, Client(address, "made") as client:
        with pytest.raises(ServingError, match=r"declares \d+ values; expected 33554432 at most: ask for less"):
            client.score(["a"])
        assert len(client.status()) == 2


def test_another_model_over_grpc(served):
    served.model = lambda signature, inputs: {"dense_1": [[0.5]], "dense_2": [[0.5]]}
    with grpc_server(served) as address, Client(address, "made") as client:
        for ask in (client.recommend, client.score, lambda history: client.explain(history, ["a"])):
            with pytest.raises(ServingError, match="the model one of tfllmrec's"):
                ask(["a"])


def test_a_closed_client_says_so(client):
    with client:
        client.status()
    with pytest.raises(ModelError, match=r"This client of .* was closed"):
        client.status()


# Connections ----------------------------------------------------------------------------------------------------------


def test_one_connection_is_kept(client, served):
    for _ in range(10):
        client.recommend([])
    assert len(set(served.peers)) == 1


def test_threads_share_a_client(address, served):
    with Client(address, "made", connections=3) as client:

        def ask(n):
            return [
                item.item_id for item in client.recommend([CATALOGUE[n % 5]], exclude=[CATALOGUE[(n + 1) % 5]], k=5)
            ]

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(ask, range(60)))
    for n, answer in enumerate(answers):
        assert answer == [i for i in CATALOGUE if i not in (CATALOGUE[n % 5], CATALOGUE[(n + 1) % 5])]
    assert len(served.calls) == 60 and len(set(served.peers)) <= 3


def test_a_busy_pool_is_waited_for_no_longer_than_the_deadline(rest, served):
    with Client(rest, "made", connections=1) as client, ThreadPoolExecutor(1) as threads:
        served.failures = [2.0]
        slow = threads.submit(client.status)
        while not served.calls:
            time.sleep(0.001)
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED: all connections were busy"):
            client.status(deadline_s=0.05)
        assert len(slow.result()) == 2
        assert len(served.calls) == 1


# Security -------------------------------------------------------------------------------------------------------------


def test_the_token_is_sent(address, served):
    with Client(address, "made", token="s3cret") as client:
        client.recommend([])
        client.status()
    with Client(address, "made") as client:
        client.status()
    assert served.tokens == ["Bearer s3cret", "Bearer s3cret", None]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) for localhost, signed by itself."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    made = (str(folder / "server.pem"), str(folder / "server.key"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-out", made[0], "-keyout", made[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


def test_tls(kind, served, certificate, pauses):
    with SERVERS[kind](served, certificate=certificate) as address:
        with Client(address, "made", ca_file=certificate[0], token="s3cret") as client:
            assert len(client.recommend([])) == 5
        with Client(address, "made") as stranger, pytest.raises(ServingError) as caught:
            stranger.status(deadline_s=2)
        # grpc does not tell an untrusted certificate from a server that is down.
        assert caught.value.code == ("UNAUTHENTICATED" if kind == "rest" else "UNAVAILABLE")
    assert served.tokens == ["Bearer s3cret"]


# What never leaves ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c: c.recommend("50"), "Expected history as a list, got the string '50'"),
        (lambda c: c.recommend([50]), "Expected history as strings, got 50: write '50'"),
        (lambda c: c.recommend([], exclude="50"), "Expected exclude as a list"),
        (lambda c: c.recommend([b"50"]), "Expected history as strings, got b'50': write '50'"),
        (lambda c: c.recommend([], k=0), "Expected k as a whole number above 0, got 0"),
        (lambda c: c.recommend([], k=2**31), "Expected k as at most 2147483647, got 2147483648"),
        (lambda c: c.recommend([], k=2.0), "got 2.0"),
        (lambda c: c.recommend([], k="5"), "got '5'"),
        (lambda c: c.recommend(["a"], ratings=[]), r"got \[0\] ratings for \[1\] items"),
        (lambda c: c.recommend(["a"], ratings=["good"]), "Expected ratings as numbers: .*'good'"),
        (lambda c: c.recommend_many([["a"], ["b"]], exclude=[[]]), "for each of 2 users, got 1"),
        (lambda c: c.recommend_many([["a"], ["b"]], ratings=[[1]]), r"got \[1\] ratings for \[1, 1\] items"),
        (lambda c: c.search(["a"]), r"as one str, got \['a'\]"),
        (lambda c: c.search(" "), "No words to search for: expected a text with words, got ' '"),
        (lambda c: c.search("half a pair: \ud83d"), "is not valid Unicode text"),
        (lambda c: c.similar(5), "as one str, got 5"),
        (lambda c: c.score(["a"], [1e39]), r"Expected ratings of at most 3.403e\+38 \(float32\), got 1e\+39"),
        (lambda c: c.score(["a"], [10**400]), "Expected ratings as numbers"),
    ],
)  # fmt: skip
def test_bad_requests(client, served, ask, message):
    with pytest.raises(DataError, match=message):
        ask(client)
    assert served.calls == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": [[1, 2], [3]]}, r"Input 'x': expected rows of one length, as in \[2, 2\]"),
        ({"x": [1, [2]]}, "Input 'x': expected rows of one length"),
        ({"x": [1, "2"]}, "expected values of one type, str, float, int or bool; got int, str"),
        ({"x": []}, "got no value"),
        ({"x": [None]}, "got NoneType"),
        ({"x": [2**31]}, "Input 'x': .*2147483648"),
        ({"x": [[1.0, -1e39]]}, r"Input 'x': expected values of at most 3.403e\+38 \(float32\), got -1e\+39"),
    ],
)
def test_inputs_that_are_no_tensor(served, inputs, message):
    with grpc_server(served) as address, Client(address, "made") as client, pytest.raises(DataError, match=message):
        client.predict("score", inputs)
    assert served.calls == []


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("localhost:8501", {}, "The address 'localhost:8501' is not valid: expected http://HOST:8501"),
        ("ftp://localhost", {}, "is not valid"),
        ("http://", {}, "is not valid"),
        ("http://me:pw@localhost", {}, "is not valid"),
        ("http://localhost:port", {}, "is not valid: "),
        ("http://localhost?x=1", {}, "is not valid"),
        ("grpc://localhost/v1", {}, "has a path, which gRPC has not"),
        ("grpc://localhost", {"label": ""}, "An empty label was given"),
        ("grpc://localhost", {"version": 1, "label": "stable"}, r"A version \(1\) and a label \('stable'\)"),
        ("grpc://localhost", {"deadline_s": 0}, "a deadline above 0"),
        ("grpc://localhost", {"retries": -1}, "at least 0 retries"),
        ("http://localhost", {"connections": 0}, "at least 1 connection"),
        ("http://localhost", {"max_answer_mb": 0}, "an answer of more than 0 and at most 2047 MB"),
        ("grpc://localhost", {"max_answer_mb": 2048}, "an answer of more than 0 and at most 2047 MB"),
        ("http://localhost", {"ca_file": "ca.pem"}, "without TLS: expected https://"),
        ("https://localhost", {"cert_file": "x.pem"}, "cert_file and key_file belong together"),
        ("https://localhost", {"ca_file": "/none/ca.pem"}, r"cannot be read \(/none/ca.pem\)"),
        ("grpcs://localhost", {"ca_file": "/none/ca.pem"}, "The certificate /none/ca.pem cannot be read"),
    ],
)  # fmt: skip
def test_bad_settings(address, options, message):
    with pytest.raises(ConfigError, match=message):
        Client(address, "made", **options)
    with pytest.raises(ConfigError, match="No model"):
        Client("http://localhost", "")


# What it needs --------------------------------------------------------------------------------------------------------

ALONE = """
import sys

class Only:
    # Nothing else of the core, and nothing that it requires, is installed here, as it were.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"tfllmrec_client", *sys.argv[2].split(","), *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"{name} was imported")

sys.meta_path.insert(0, Only())
from tfllmrec_client import Client, ModelError, ServingError
with Client(sys.argv[1], "made", deadline_s=20) as client:
    print([item.item_id for item in client.recommend(["a"], k=2)], len(client.status()), client.metadata().version)
    print(client._transport.__class__.__name__, "tensorflow" in sys.modules, issubclass(ServingError, ModelError))
"""


@pytest.mark.parametrize(("kind", "packages"), [("rest", "urllib3"), ("grpc", "grpc,google,typing_extensions")])
def test_the_client_s_own_distribution_imports_little_else(served, kind, packages):
    with SERVERS[kind](served) as address:
        done = subprocess.run(
            [sys.executable, "-c", ALONE, address, packages],
            env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['b', 'c'] 2 2", f"{kind.title()} False True"]


# The real model behind it ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(chain_version):
    """The ring's SavedModel, asked in this process."""
    from tfllmrec.serving.saved_model import SavedModel

    return SavedModel.open(chain_version)


@pytest.fixture(scope="module")
def signatures(exported):
    """(signature, inputs) -> outputs, all nested lists: what TF Serving runs between its messages."""
    import tensorflow as tf

    def call(signature, inputs):
        types = dict.fromkeys(("ratings", "diversity", "tail_share"), tf.float32)
        types |= dict.fromkeys(("k", "category_cap", "reasons"), tf.int32)
        given = {name: tf.constant(values, types.get(name, tf.string)) for name, values in inputs.items()}
        out = exported._loaded.signatures[signature](**given)
        return {
            name: tf.strings.unicode_transcode(value, "UTF-8", "UTF-8").numpy().astype(str).tolist()
            if value.dtype == tf.string
            else value.numpy().tolist()
            for name, value in out.items()
        }

    return call


@pytest.fixture
def patient(address):
    """A client that waits until TensorFlow has prepared a graph, which it does when first asked."""
    with Client(address, "made", deadline_s=300) as client:
        yield client


@pytest.mark.slow
@pytest.mark.tf
def test_the_answers_are_those_of_the_saved_model(patient, served, exported, signatures):
    served.model = signatures

    def agree(answer, expected):
        assert [item.item_id for item in answer] == expected.item_id.tolist()
        assert [item.score for item in answer] == pytest.approx(expected.score.tolist(), abs=1e-5)

    def both(call, asked, **more):
        """Compares a call of the client, which takes one query, with that of the SavedModel, which takes a list."""
        here = {"histories": [more["history"]]} if "history" in more else {}
        here |= {name: value for name, value in more.items() if name != "history"}
        agree(getattr(patient, call)(asked, **more), getattr(exported, call)([asked], **here))

    history, ratings = ["i3", "nope", "i4"], [5, 1, None]
    here = exported.recommend(histories=[history], ratings=[[5, 1, NAN]], exclude=["i7"], k=6)
    answer = patient.recommend(history, ratings, exclude=["i7"], k=6)
    agree(answer, here)
    assert answer.unknown == 1
    told = patient.recommend(history, ratings, exclude=["i7"], k=6, reasons=True)
    agree(told, here)
    assert [line.reason for line in told] == here.reason.tolist() and any(here.reason)
    assert not any(line.reason for line in answer)
    agree(patient.recommend([], k=50), exported.recommend(histories=[[]], k=50))
    people = [["i3"], [], ["i7", "i8", "i9"]]
    rows = exported.recommend(histories=people, k=4).groupby("query")
    for query, answer in enumerate(patient.recommend_many(people, 4)):
        agree(answer, rows.get_group(query))
    both("search", "red toy", history=["i3"], exclude=["i5"])
    both("similar", "i8", k=3)
    for allow in (["i9", "i3", "i1"], []):
        agree(patient.recommend(history, allow=allow), exported.recommend(histories=[history], allow=allow))
        both("search", "red toy", allow=allow)
        both("similar", "i8", allow=allow)
    diverse = exported.recommend(histories=[history], k=5, diversity=0.8)
    agree(patient.recommend(history, k=5, diversity=0.8), diverse)
    rules = {"pinned": ["i30", "i3"], "category_cap": 2, "tail_share": 0.5, "skip": ["ranking"]}
    rules["label_weights"] = {"nothing is said of the ring": 1}
    agree(patient.recommend(history, k=5, **rules), exported.recommend(histories=[history], k=5, **rules))
    assert diverse.item_id.tolist() != exported.recommend(histories=[history], k=5).item_id.tolist()
    items = here.item_id.tolist()
    told = zip(patient.explain(history, items, ratings), exported.explain(history, items, ratings), strict=True)
    for over_the_wire, in_here in told:
        assert over_the_wire.item_id == in_here.item_id and over_the_wire.because == in_here.because in ("i3", "i4")
        assert over_the_wire.terms == pytest.approx(in_here.terms, abs=1e-5)
    scores = dict(zip(exported.item_ids, patient.score(history, ratings), strict=True))
    plain = exported.recommend(histories=[history], ratings=[[5, 1, NAN]], exclude=["i7"], k=6, skip=["ranking"])
    assert [scores[item] for item in plain.item_id] == pytest.approx(plain.score.tolist(), abs=1e-5)


def as_tf_serving_batches(requests):
    """One request of several, as TF Serving merges them with ``pad_variable_length_inputs``.

    The shorter ones are filled up with their own first value (batching_util.cc).
    """

    def fill(rows, width):
        return [row + [rows[0][0]] * (width - len(row)) for row in rows]

    merged = {}
    for name in requests[0]:
        parts = [request[name] for request in requests]
        if isinstance(parts[0][0], list):
            assert all(rows[0] for rows in parts)  # TF Serving refuses an empty one
            width = max(len(rows[0]) for rows in parts)
            parts = [fill(rows, width) for rows in parts]
        merged[name] = [row for rows in parts for row in rows]
    return merged


@pytest.mark.tf
def test_what_is_sent_survives_tf_servings_batching(rest, served, signatures):
    served.model = signatures
    with Client(rest, "made", deadline_s=300) as client:
        alone = [
            client.recommend([], k=3),
            client.recommend(["i3", "i4"], [5, 1], exclude=["i5", "i6"], k=5),
            client.recommend(["i9"], [1], exclude=["i10"], k=2),
            client.recommend(["i9", "i3", "nope", "i20"], k=4),
        ]
    merged = as_tf_serving_batches([inputs for _, _, inputs in served.calls])
    together = client_module._answers(Outputs(signatures("recommend", merged), ""))
    for one, other in zip(alone, together, strict=True):
        assert [item.item_id for item in one] == [item.item_id for item in other]
        assert [item.score for item in one] == pytest.approx([item.score for item in other], abs=1e-5)
        assert one.unknown == other.unknown
    # Without the padding in front, the first item of the history would be there many times over.
    bare = [{name: [row[1:] if isinstance(row, list) and len(row) > 1 else row for row in rows]
             for name, rows in inputs.items()} for _, _, inputs in served.calls[1:]]  # fmt: skip
    spoilt = client_module._answers(Outputs(signatures("recommend", as_tf_serving_batches(bare)), ""))
    assert [item.score for item in spoilt[0]] != pytest.approx([item.score for item in alone[1]], abs=1e-3)

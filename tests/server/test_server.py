"""The embedded server over real sockets: httpx and TF Serving's own gRPC stubs against SavedModels of a few lines."""

import asyncio
import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from programs import killed_when_late

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.tf

grpc = pytest.importorskip("grpc")


def save(folder, tag):
    """A model of our kind: the history backwards, k of it; ``slow`` takes its time."""
    import tensorflow as tf

    strings, floats = tf.TensorSpec([None, None], tf.string), tf.TensorSpec([None, None], tf.float32)
    ints = tf.TensorSpec([None], tf.int32)

    class Backwards(tf.Module):
        def __init__(self):
            super().__init__()
            self.tag = tf.Variable(tag)

        @tf.function(input_signature=[strings, floats, strings, ints])
        def recommend(self, history, ratings, exclude, k):
            width = tf.reduce_max(k)
            kept = tf.ragged.boolean_mask(history, history != "")
            last = tf.reverse_sequence(kept.to_tensor(), tf.cast(kept.row_lengths(), tf.int32), seq_axis=1)
            padded = tf.pad(last, [[0, 0], [0, width]], constant_values="")[:, :width]
            shown = tf.range(width)[tf.newaxis] < k[:, tf.newaxis]
            known = tf.where(tf.math.is_nan(ratings), 0.0, ratings)
            rows = tf.shape(k)[0]
            return {
                "item_ids": tf.where(shown, padded, ""),
                "sum": tf.reduce_sum(known, axis=1),
                "tag": tf.repeat(self.tag[tf.newaxis], rows),
            }

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
        def slow(self, steps):
            last = tf.while_loop(
                lambda i, x: i < tf.reduce_max(steps), lambda i, x: (i + 1, x @ x / 50.0), (0, tf.ones([100, 100]))
            )
            return {"y": tf.repeat(last[1][0, 0], tf.shape(steps)[0])}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def positive(self, x):
            with tf.control_dependencies([tf.debugging.assert_positive(x, message="expected more than nothing")]):
                return {"y": tf.identity(x)}

    model = Backwards()
    signatures = {"slow": model.slow, "positive": model.positive, "serving_default": model.recommend}
    tf.saved_model.save(
        model, str(folder), signatures={name: f.get_concrete_function() for name, f in signatures.items()}
    )
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "tfllmrec.json").write_text("{}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two versions of our kind, and TFRS' BruteForce as TFRS exports it."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    folder = tmp_path_factory.mktemp("made")
    save(folder / "one", "one")
    save(folder / "two", "two")
    index = tfrs.layers.factorized_top_k.BruteForce(k=2)
    index.index(tf.constant([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), tf.constant(["right", "up", "both"]))
    index(tf.zeros([1, 2]))
    tf.saved_model.save(index, str(folder / "brute_force"))
    return folder


@pytest.fixture(scope="module")
def models(made, tmp_path_factory):
    """The folder that ``server`` watches."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(made / "one", folder / "shop" / "1")
    shutil.copytree(made / "brute_force", folder / "plain" / "7")
    return folder


@pytest.fixture(scope="module")
def server(models, serving):
    with serving(models, limits={"body_bytes": 1 << 20, "queue": 50}) as server:
        yield server


@pytest.fixture(scope="module")
def rest(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60) as client:
        yield client


def stubs(channel):
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    return SimpleNamespace(
        prediction=prediction_service_pb2_grpc.PredictionServiceStub(channel),
        model=model_service_pb2_grpc.ModelServiceStub(channel),
    )


@pytest.fixture(scope="module")
def raw(server):
    """TF Serving's own stubs."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield stubs(channel)


HISTORY = {"history": [["a", "b"]], "ratings": [[1.5, 2]], "exclude": [[]], "k": [3]}


def post(rest, body, path="/v1/models/shop:predict"):
    answer = rest.post(path, content=json.dumps(body))
    return answer.status_code, answer.json()


def request(name="shop", signature="", **inputs):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    made = predict_pb2.PredictRequest()
    made.model_spec.name, made.model_spec.signature_name = name, signature
    for key, value in inputs.items():
        made.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return made


def our_request(**given):
    inputs = {"history": [["a", "b"]], "ratings": np.array([[1.5, 2]], np.float32), "exclude": [["x"]], "k": [3]}
    inputs |= given
    return request(**inputs)


def refusal(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as refused:
        call(*arguments, **options)
    return refused.value.code().name, refused.value.details()


def test_rest_rows_and_columns(rest):
    tag = {"tag": "one"}
    status, answer = post(rest, {"inputs": HISTORY})
    assert (status, answer) == (200, {"outputs": {"item_ids": [["b", "a", ""]], "sum": [3.5], "tag": ["one"]}})
    row = {"history": ["a"], "ratings": [], "exclude": [], "k": 1}
    status, answer = post(rest, {"instances": [row, {**row, "history": ["b"]}], "signature_name": "serving_default"})
    assert answer == {"predictions": [{"item_ids": ["a"], "sum": 0.0, **tag}, {"item_ids": ["b"], "sum": 0.0, **tag}]}


def test_a_foreign_model_is_served_as_it_is(rest, raw):
    status, metadata = 0, rest.get("/v1/models/plain/metadata").json()
    (name,) = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    status, answer = post(rest, {"instances": [[2.0, 1.0], [0.0, 3.0]]}, "/v1/models/plain:predict")
    assert status == 200
    assert answer["predictions"] == [
        {"output_1": [2.0, 1.5], "output_2": ["right", "both"]},
        {"output_1": [3.0, 1.5], "output_2": ["up", "both"]},
    ]
    response = raw.prediction.Predict(request("plain", **{name: np.array([[2, 1]], np.float32)}), timeout=60)
    assert list(response.outputs["output_2"].string_val) == [b"right", b"both"]


def test_grpc_predict(raw):
    import tensorflow as tf

    asked = our_request()
    asked.model_spec.version.value = 1
    response = raw.prediction.Predict(asked, timeout=60)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("shop", 1, "serving_default")
    assert tf.make_ndarray(response.outputs["item_ids"]).tolist() == [[b"b", b"a", b""]]
    assert list(response.outputs["sum"].float_val) == [3.5]  # in fields, where C++ clients look
    asked.output_filter.append("sum")
    assert list(raw.prediction.Predict(asked, timeout=60).outputs) == ["sum"]


def test_answers_of_joined_requests_are_those_of_single_ones(rest, server):
    """Histories, ratings and batches of every width at once, as many as two workers cannot take one by one."""
    bodies = []
    for n in range(40):
        width, rows = n % 7, n % 3 + 1
        bodies.append({
            "history": [[f"{n}-{row}-{i}" for i in range(width)] for row in range(rows)],
            "ratings": [[float(n)] * min(n % 4, width)] * rows,
            "exclude": [[""] * (n % 2)] * rows,
            "k": [n % 5] * rows,
        })  # fmt: skip

    async def all_at_once():
        async with httpx.AsyncClient(base_url=rest.base_url, timeout=60) as client:
            sent = [client.post("/v1/models/shop:predict", content=json.dumps({"inputs": body})) for body in bodies]
            return await asyncio.gather(*sent)

    for body, answer in zip(bodies, asyncio.run(all_at_once()), strict=True):
        assert answer.status_code == 200, answer.text
        k = body["k"][0]
        outputs = answer.json()["outputs"]
        assert outputs["item_ids"] == [(row[::-1] + [""] * k)[:k] for row in body["history"]]
        assert outputs["sum"] == [sum(row) for row in body["ratings"]]
    joined = server.engine.metrics.page().decode()
    counts = dict(line.rsplit(" ", 1) for line in joined.splitlines() if line.startswith("tfllmrec_batch_requests_"))
    assert float(counts["tfllmrec_batch_requests_sum"]) > float(counts["tfllmrec_batch_requests_count"])


def test_errors_over_grpc(raw):
    from tensorflow_serving.apis import classification_pb2, get_model_status_pb2, predict_pb2

    predict = raw.prediction.Predict
    assert refusal(predict, predict_pb2.PredictRequest()) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert refusal(predict, request("nope"))[0] == "NOT_FOUND"
    assert refusal(predict, request(signature="no"))[0] == "FAILED_PRECONDITION"
    code, text = refusal(predict, our_request(k=["a"]))
    assert (code, text) == ("INVALID_ARGUMENT", "Expects input k to be int32 but string is provided")
    assert "Missing but required: {exclude,history,k,ratings}" in refusal(predict, request())[1]
    assert refusal(predict, our_request(history=["a"]))[1].startswith("Input history has shape [1], but the signature")
    code, text = refusal(predict, request(signature="positive", x=np.array([0], np.float32)))
    assert code == "INVALID_ARGUMENT" and "expected more than nothing" in text
    huge = our_request()
    huge.inputs["k"].tensor_shape.dim[0].size = 1 << 40  # a few bytes that would be terabytes
    assert "declares 1099511627776 elements of int32" in refusal(predict, huge)[1]
    torn = our_request()
    torn.inputs["k"].tensor_content = b"abc"
    assert "type, shape and content do not go together" in refusal(predict, torn)[1]
    nameless = our_request()
    nameless.inputs["k"].dtype = 999
    assert refusal(predict, nameless)[0] == "INVALID_ARGUMENT"
    assert refusal(predict, our_request(history=[["x" * (1 << 20)]]))[0] == "RESOURCE_EXHAUSTED"
    code, text = refusal(raw.prediction.Classify, classification_pb2.ClassificationRequest())
    assert (code, text) == (
        "UNIMPLEMENTED",
        "Classify is not answered here, only Predict: call the signature by its name",
    )
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "nope"
    assert refusal(raw.model.GetModelStatus, status) == ("NOT_FOUND", "Could not find any versions of model nope")
    assert refusal(predict, request(signature="slow", steps=[20_000]), timeout=0.2)[0] == "DEADLINE_EXCEEDED"
    assert list(predict(our_request(), timeout=60).outputs["tag"].string_val) == [b"one"]


def test_defaults_fill_in_over_grpc_and_not_over_rest(made, serving, tmp_path):
    """As in TF Serving, whose REST API asks for every input."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    from tfllmrec.client.client import Client

    shutil.copytree(made / "one", tmp_path / "shop" / "1")
    file = tmp_path / "shop" / "1" / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    defaults = model.meta_graphs[0].signature_def["serving_default"].defaults
    defaults["k"].CopyFrom(tf.make_tensor_proto([2]))
    defaults["exclude"].CopyFrom(tf.make_tensor_proto([[""]]))
    file.write_bytes(model.SerializeToString())
    asked = our_request()
    for name in ("k", "exclude"):
        del asked.inputs[name]
    row = {name: value[0] for name, value in HISTORY.items() if name != "k"}
    with serving(tmp_path) as server:
        where = f"127.0.0.1:{server.rest_port}"
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            outputs = stubs(channel).prediction.Predict(asked, timeout=60).outputs
            assert list(outputs["item_ids"].string_val) == [b"b", b"a"]
        with httpx.Client(base_url=f"http://{where}", timeout=60) as client:
            status, answer = post(client, {"inputs": {name: [value] for name, value in row.items()}})
            assert (status, answer["error"][:24]) == (400, "Missing named input: k i")
            status, answer = post(client, {"instances": [row]})
            assert status == 400 and "keys must be equal to: exclude,history,k,ratings" in answer["error"]
        for address in (f"http://{where}", f"grpc://127.0.0.1:{server.grpc_port}"):
            with Client(address, "shop", deadline_s=60) as ours:
                answer = ours.predict("", HISTORY | {"exclude": [[""]], "ratings": [[1.5, 2.0]]})
                assert answer["item_ids"] == [["b", "a", ""]]


def test_what_asks_for_too_much_is_refused_before_it_is_expanded(rest, raw, server):
    """Over gRPC a few bytes may declare any number of rows, with elements or without, to any model."""
    predict = raw.prediction.Predict
    rows = our_request()
    for name, sizes in (("history", [5_000_000, 0]), ("ratings", [5_000_000, 0])):
        del rows.inputs[name].tensor_shape.dim[:]
        for size in sizes:
            rows.inputs[name].tensor_shape.dim.add(size=size)
    code, text = refusal(predict, rows)
    assert code == "INVALID_ARGUMENT" and "declares 5000000 elements of" in text
    few = our_request(history=np.zeros((20_000, 0), str).astype(object), k=np.ones(20_000, np.int32))
    assert refusal(predict, few) == (
        "INVALID_ARGUMENT",
        "The request has 20000 rows; expected 10000 at most: send several requests",
    )
    (name,) = server.engine.models.status("plain")[0].servable.signatures["serving_default"].inputs
    foreign = request("plain", **{name: np.zeros((20_000, 2), np.float32)})
    assert "has 20000 rows; expected 10000 at most" in refusal(predict, foreign)[1]
    assert "k has 2 rows, history 1" in refusal(predict, our_request(k=[3, 3]))[1]
    status, answer = post(rest, {"inputs": HISTORY | {"ratings": [[1, 2, 3]]}})
    assert (status, answer["error"][:38]) == (400, "ratings has 3 columns, history 2: expe")
    status, answer = post(rest, {"inputs": {name: value * 20_000 for name, value in HISTORY.items()}})
    assert status == 400 and "has 20000 rows; expected 10000 at most" in answer["error"]


def test_bodies_share_a_budget_over_grpc_too(models, serving):
    with (
        serving(models, limits={"bodies_bytes": 100_000}) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        predict = stubs(channel).prediction.Predict
        code, text = refusal(predict, our_request(history=[["x" * 200_000]]), timeout=60)
        assert code == "UNAVAILABLE" and "expected 100000 at most with this one: try again later" in text
        assert predict(our_request(), timeout=60).outputs["tag"].string_val[0] == b"one"


def test_metadata_and_status_over_grpc(raw):
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "shop"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer = raw.prediction.GetModelMetadata(asked)
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def["serving_default"].inputs) == {"history", "ratings", "exclude", "k"}
    asked.metadata_field.append("x")
    assert refusal(raw.prediction.GetModelMetadata, asked)[0] == "INVALID_ARGUMENT"
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "shop"
    (version,) = raw.model.GetModelStatus(status).model_version_status
    assert (version.version, version.state, version.status.error_code) == (1, 30, 0)


def test_ten_megabytes_are_refused_and_the_next_request_is_answered(rest):
    status, answer = post(rest, {"inputs": {**HISTORY, "history": [["x" * 10_000_000]]}})
    assert (status, answer["error"][:35]) == (413, "the body has more than 1048576 byte")
    assert post(rest, {"inputs": HISTORY})[0] == 200


def open_files():
    return len(list(Path("/dev/fd").iterdir()))


def test_a_thousand_connections_are_no_hindrance_and_leave_nothing(models, serving, monkeypatch):
    """Others are answered beside idle and slow ones, who breaks the rules is told so, and of all nothing stays."""
    from tfllmrec.server.connections import Connection

    made, init = weakref.WeakSet(), Connection.__init__
    monkeypatch.setattr(Connection, "__init__", lambda self, **given: (made.add(self), init(self, **given))[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs 2,000 sockets in one process")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    slow = b"POST /v1/models/shop:predict HTTP/1.1\r\nContent-Le"
    broken = {
        b"\x16\x03\x01 no HTTP": b"Invalid HTTP request",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 65_536: b"The headers have more than 65536 bytes",
    }
    try:
        with serving(models) as server, contextlib.ExitStack() as mine:
            rest = mine.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60))

            def connected(stack, start):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_port), timeout=60))
                connection.sendall(start)
                return connection

            assert post(rest, {"inputs": HISTORY})[0] == 200
            before = open_files(), threading.active_count()
            with contextlib.ExitStack() as others:
                for n in range(1000):
                    connected(others, slow if n % 2 else b"")
                    if n % 100 == 0:
                        assert post(rest, {"inputs": HISTORY})[0] == 200
                wait_for(lambda: len(server._rest.server_state.connections) >= 1001)

                def is_told(start, told):
                    with contextlib.ExitStack() as one, contextlib.suppress(ConnectionError):
                        answer = connected(one, start).recv(1 << 16)
                        return answer.startswith(b"HTTP/1.1 400 ") and told in answer
                    return False  # the answer may be lost where the server closes on what was not read yet

                for start, told in broken.items():
                    wait_for(lambda start=start, told=told: is_told(start, told), 20)
                assert post(rest, {"inputs": HISTORY})[0] == 200
                assert len(made) >= 1001 and open_files() >= before[0] + 1900  # both ends are of this process
            assert post(rest, {"inputs": HISTORY})[0] == 200
            # A few may have come for other reasons, or a thousand for this one.
            wait_for(lambda: open_files() <= before[0] + 10, 20)
            wait_for(lambda: threading.active_count() <= before[1] + 10, 20)
            gc.collect()
            wait_for(lambda: len(made) <= 10, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nobody_is_computed_for_who_has_gone(server, monkeypatch):
    """Both workers are busy; then clients hang up, cancel, or are past their deadline, and one goes on waiting."""
    go, computed = threading.Event(), []

    def held(inputs):
        computed.append(inputs["steps"].tolist())
        assert go.wait(60)
        return {"y": np.zeros(len(inputs["steps"]), np.float32)}

    def waiting(count):
        wait_for(lambda: f"tfllmrec_queue_requests {count}.0" in server.engine.metrics.page().decode())

    with server.engine.models.hold("shop") as version:
        monkeypatch.setitem(version.servable.calls, "slow", held)
    body = json.dumps({"signature_name": "slow", "inputs": [3]}).encode()
    head = f"POST /v1/models/shop:predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        stack.callback(go.set)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
        predict = stubs(channel).prediction.Predict
        running = [predict.future(request(signature="slow", steps=[n]), timeout=60) for n in (1, 2)]
        wait_for(lambda: sorted(computed) == [[1], [2]])
        hanging_up = [socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) for _ in range(3)]
        for connection in hanging_up:
            connection.sendall(head + body)
        cancelled = [predict.future(request(signature="slow", steps=[4]), timeout=60) for _ in range(3)]
        stays = predict.future(request(signature="slow", steps=[6]), timeout=60)
        waiting(7)
        late = predict.future(request(signature="slow", steps=[5]), timeout=0.3)
        assert late.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for connection in hanging_up:
            connection.close()
        for call in cancelled:
            call.cancel()
        waiting(1)
        go.set()
        assert [len(call.result().outputs["y"].float_val) for call in (*running, stays)] == [1, 1, 1]
    assert sorted(computed) == [[1], [2], [6]]


def test_the_port_is_not_shared(server, models):
    from tfllmrec.errors import ConfigError
    from tfllmrec.server.server import Server, Settings

    for ports in ({"rest_port": server.rest_port, "grpc_port": 0}, {"rest_port": 0, "grpc_port": server.grpc_port}):
        with pytest.raises(ConfigError, match="cannot listen on"):
            asyncio.run(Server(Settings(models, **ports)).start())


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_rest_server_that_ends_at_once_is_no_start(tmp_path, monkeypatch):
    from tfllmrec.errors import ConfigError
    from tfllmrec.server.server import Server, Settings

    async def serve(uvicorn, sockets):
        raise ModuleNotFoundError("No module named 'httptools'")

    monkeypatch.setattr("tfllmrec.server.server._Uvicorn.serve", serve)
    with pytest.raises(ConfigError, match=r"No module named 'httptools'.*pip install --upgrade 'tfllmrec\[serve\]'"):
        asyncio.run(Server(Settings(tmp_path, rest_port=0, grpc_port=0, allow_reload=True)).start())


def test_versions_change_under_load_without_a_failed_request(rest, server, models, made):
    """New versions are copied bit by bit, one of them is broken, old ones are removed; nobody notices."""
    first = server.engine.models.status("shop")[0].servable.process
    answers, stop = [], threading.Event()

    def client():
        with httpx.Client(base_url=rest.base_url, timeout=60) as own:
            while not stop.is_set():
                status, answer = post(own, {"inputs": HISTORY})
                answers.append((status, answer["outputs"]["tag"][0] if status == 200 else answer))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number, source in ((2, "two"), (3, None), (4, "one"), (5, "two")):
            folder = models / "shop" / str(number)
            if source is None:
                (folder / "variables").mkdir(parents=True)
                (folder / "saved_model.pb").write_bytes((made / "two" / "saved_model.pb").read_bytes())
                wait_for(lambda: any(v.error for v in server.engine.models.status("shop")))
                assert server.engine.models.available("shop") == [2]
                assert "cannot be loaded" in rest.get("/v1/models/shop/versions/3").text
                continue
            folder.mkdir()
            for path in sorted((made / source).rglob("*")):
                copy = folder / path.relative_to(made / source)
                copy.mkdir() if path.is_dir() else shutil.copyfile(path, copy)
                time.sleep(0.03)
            wait_for(lambda number=number: server.engine.models.available("shop") == [number])
            for old in range(1, number - 1):
                shutil.rmtree(models / "shop" / str(old), ignore_errors=True)
        wait_for(lambda: answers[-1] == (200, "two"))
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert {status for status, _ in answers} == {200}
    tags = [tag for _, tag in answers]
    assert tags[0] == "one" and tags.count("one") > 0 and tags.count("two") > 0
    states = {v.number: v.state.name for v in server.engine.models.status("shop")}
    assert states[5] == "AVAILABLE" and states[2] == states[4] == "END"
    wait_for(lambda: not first.is_alive())


def test_a_model_that_crashes_is_loaded_again_and_disturbs_no_other(made, serving, tmp_path):
    shutil.copytree(made / "one", tmp_path / "shop" / "1")
    shutil.copytree(made / "brute_force", tmp_path / "plain" / "7")
    with serving(tmp_path) as server, grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        wait_for(lambda: server.loaded() == {"plain": [7], "shop": [1]})
        with server.engine.models.hold("shop") as version:
            process = version.servable.process
        loading = threading.Event()  # held up, or it might be over before it is seen
        load = server.engine.models._load
        server.engine.models._load = lambda folder: loading.wait(60) and load(folder)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60) as rest:
            other = {"instances": [[2.0, 1.0]]}
            assert post(rest, {"inputs": HISTORY})[0] == 200
            os.kill(process.pid, signal.SIGKILL)
            wait_for(lambda: "LOADING" in rest.get("/v1/models/shop").text)
            status, answer = post(rest, {"inputs": HISTORY})
            assert (status, answer) == (503, {"error": "shop/1 is being loaded; try again later"})
            assert refusal(stubs(channel).prediction.Predict, our_request())[0] == "UNAVAILABLE"
            assert post(rest, other, "/v1/models/plain:predict")[0] == 200
            loading.set()
            wait_for(lambda: post(rest, {"inputs": HISTORY})[0] == 200)


@pytest.mark.slow
def test_a_stop_does_not_wait_for_a_call_that_hangs(made, tmp_path):
    shutil.copytree(made / "one", tmp_path / "shop" / "1")
    program, url = started(tmp_path, "--grace-seconds", "1")
    try:
        asking, _ = asked_slowly(url, calls_before=0, steps=2_000_000_000)
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 0
        asking.join(60)
        assert not asking.is_alive()
    finally:
        program.kill()
        program.wait(30)
        program.stdout.close()


def test_tls_tokens_labels_and_reload(models, made, serving, tmp_path, caplog):
    from tensorflow_serving.apis import model_management_pb2

    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    for number, source in ((1, "one"), (2, "two")):
        shutil.copytree(made / source, tmp_path / "shop" / str(number))
    file = tmp_path / "models.config"
    text = """model_config_list { config { name: 'shop' base_path: 'shop' model_platform: 'tensorflow'
        model_version_policy { all {} } version_labels { key: 'stable' value: 1 } } }"""
    file.write_text(text)
    secret = [("authorization", "Bearer secret")]
    with serving(file, token="secret", certificate=certificate, key=key) as server:
        wait_for(lambda: server.loaded() == {"shop": [1, 2]})
        base = f"https://127.0.0.1:{server.rest_port}"
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=base, verify=trust, headers=dict(secret), timeout=60) as client:
            assert post(client, {"inputs": HISTORY}, "/v1/models/shop/labels/stable:predict")[1]["outputs"]["tag"] == [
                "one"
            ]
            assert post(client, {"inputs": HISTORY})[1]["outputs"]["tag"] == ["two"]
            assert httpx.get(f"{base}/v1/models/shop", verify=trust).status_code == 401
            # The file is read again when it changes, and what is wrong in it changes nothing.
            file.write_text("nonsense")
            wait_for(lambda: "expected a ModelServerConfig in protobuf text format" in caplog.text)
            assert client.get("/v1/models/shop/labels/stable").status_code == 200
            file.write_text(text.replace("value: 1", "value: 2"))
            wait_for(lambda: "2" in client.get("/v1/models/shop/labels/stable").text)
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", trusted) as channel:
            call = stubs(channel)
            assert refusal(call.prediction.Predict, our_request())[0] == "UNAUTHENTICATED"
            asked = model_management_pb2.ReloadConfigRequest()
            config = asked.config.model_config_list.config.add(
                name="again",
                base_path=str(tmp_path / "shop"),
                model_platform="tensorflow",
                version_labels={"canary": 2},
            )
            call.model.HandleReloadConfigRequest(asked, metadata=secret, timeout=60)
            canary = our_request()
            canary.model_spec.name, canary.model_spec.version_label = "again", "canary"
            response = call.prediction.Predict(canary, metadata=secret, timeout=60)
            assert list(response.outputs["tag"].string_val) == [b"two"]
            assert refusal(call.prediction.Predict, our_request(), metadata=secret)[0] == "NOT_FOUND"
            config.version_labels["canary"] = 9
            code, text = refusal(call.model.HandleReloadConfigRequest, asked, metadata=secret, timeout=60)
            assert code == "FAILED_PRECONDITION" and "assign label to version 9 of model again" in text
            config.model_platform = "torch"
            assert refusal(call.model.HandleReloadConfigRequest, asked, metadata=secret)[0] == "INVALID_ARGUMENT"


def program_of(models, *options):
    """The program; its messages are in ``models/messages``."""
    command = [sys.executable, "-m", "tfllmrec", "serve", models, "--rest-port", "0", "--grpc-port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"}
    with (models / "messages").open("w") as messages:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=environment,
            cwd=models,
            start_new_session=True,
        )


def started(models, *options):
    """The program, and where it answers for the model shop."""
    program = program_of(models, *options)
    with killed_when_late(program):
        url = next(line for line in program.stdout if line.startswith("REST")).split()[1]
    return program, url.replace("NAME", "shop")


def asked_slowly(url, calls_before, steps=20_000):
    """A thread that asks for what takes its time, when the model has begun with it; the answer comes into the list."""
    body, answers = json.dumps({"signature_name": "slow", "inputs": [steps]}), []
    asking = threading.Thread(target=lambda: answers.append(httpx.post(url, content=body, timeout=60)))
    asking.start()
    metrics = url.partition("/v1/")[0] + "/monitoring/prometheus/metrics"
    wait_for(lambda: f"tfllmrec_batch_requests_count {calls_before + 1}.0" in httpx.get(metrics).text)
    return asking, answers


def put_slow(source, target):
    """A version whose warm-up requests take longer than any test waits."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    beside = target.parent / "beside"
    shutil.copytree(source, beside)
    warm_up = prediction_log_pb2.PredictionLog()
    warm_up.predict_log.request.CopyFrom(request(signature="slow", steps=[20_000]))
    with tf.io.TFRecordWriter(str(beside / "assets.extra" / "tf_serving_warmup_requests")) as out:
        for _ in range(1000):
            out.write(warm_up.SerializeToString())
    beside.rename(target)


@pytest.mark.slow
def test_kill_while_loading_and_a_clean_stop(made, tmp_path):
    """The program itself: killed in the middle of a load it leaves nothing behind; SIGTERM finishes what runs."""
    shop = tmp_path / "shop"
    shutil.copytree(made / "one", shop / "1")
    program, url = started(tmp_path)
    try:
        put_slow(made / "two", shop / "2")
        wait_for(lambda: "LOADING" in httpx.get(url.removesuffix(":predict")).text)
        assert httpx.post(url, content=json.dumps({"inputs": HISTORY}), timeout=60).json()["outputs"]["tag"] == ["one"]
        program.kill()
        assert program.wait(30) == -signal.SIGKILL
        (shop / "2" / "assets.extra" / "tf_serving_warmup_requests").unlink()
        program.stdout.close()

        program, url = started(tmp_path)
        wait_for(lambda: "AVAILABLE" in httpx.get(url.replace(":predict", "/versions/2")).text)
        assert httpx.post(url, content=json.dumps({"inputs": HISTORY}), timeout=60).json()["outputs"]["tag"] == ["two"]
        asking, answers = asked_slowly(url, calls_before=1)
        os.killpg(program.pid, signal.SIGTERM)  # as systemd does: the processes of the models get it too
        asking.join(60)
        assert [answer.status_code for answer in answers] == [200]
        assert program.wait(60) == 0
    finally:
        program.kill()
        program.wait(30)
        program.stdout.close()


@pytest.mark.slow
def test_a_stop_does_not_wait_for_a_load(made, tmp_path):
    """Neither for that of a new version, beside which a request runs, nor for the first one of all."""
    shutil.copytree(made / "one", tmp_path / "shop" / "1")
    programs = []
    try:
        program, url = started(tmp_path)
        programs.append(program)
        put_slow(made / "two", tmp_path / "shop" / "2")
        wait_for(lambda: "LOADING" in httpx.get(url.removesuffix(":predict")).text)
        asking, answers = asked_slowly(url, calls_before=0)
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 0
        asking.join(10)
        assert [answer.status_code for answer in answers] == [200]

        program = program_of(tmp_path)
        programs.append(program)
        wait_for(lambda: "shop/2 is being loaded" in (tmp_path / "messages").read_text())
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 0
        assert program.stdout.read() == ""
    finally:
        for program in programs:
            program.kill()
            program.wait(30)
            program.stdout.close()

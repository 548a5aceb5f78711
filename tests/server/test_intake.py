"""Events over real sockets into a log, and the lists that are logged; the models need no TensorFlow."""

import asyncio
import contextlib
import gzip
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from logged_lists import requests_in, shown_in
from small_disks import small_files

from tfllmrec.client.answers import Refused
from tfllmrec.client.client import Client
from tfllmrec.client.messages import MESSAGES
from tfllmrec.client.status import Code, RequestError
from tfllmrec.client.transports import ServingError
from tfllmrec.data.files.event_log import LogReader
from tfllmrec.errors import DataError, WriteError
from tfllmrec.feedback.event_log import EventLog, Exposure, RequestRecord
from tfllmrec.server import intake as intake_module
from tfllmrec.server.batching import Joining
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.lists import Items, lists_of
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import STRING, Signature, TensorSpec

grpc = pytest.importorskip("grpc")


def click(n, **more):
    return {"user_id": f"u{n % 3}", "item_id": f"i{n}", "timestamp_s": 1.6e9 + n, **more}


@contextlib.contextmanager
def served(serving, tmp_path, **settings):
    """A server that only takes events: its folder of models is empty."""
    (tmp_path / "models").mkdir(exist_ok=True)
    with serving(tmp_path / "models", log=tmp_path / "log", **settings) as server:
        yield server


@contextlib.contextmanager
def clients(server, **options):
    """Our client by each protocol."""
    addresses = (f"http://127.0.0.1:{server.rest_port}", f"grpc://127.0.0.1:{server.grpc_port}")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(address, "m", deadline_s=30, **options)) for address in addresses]


def post(server, content, **headers):
    return httpx.post(f"http://127.0.0.1:{server.rest_port}/v1/events", content=content, headers=headers, timeout=60)


def figures(server):
    lines = server.engine.metrics.page().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_events_by_both_protocols_without_a_model(serving, tmp_path):
    with served(serving, tmp_path) as server:
        with clients(server) as (rest, rpc):
            for n, client in enumerate((rest, rpc)):
                events = [click(3 * n, dwell=1.5), click(3 * n, dwell=1.5), {"user_id": "é"}]
                receipt = client.send_events([*events, click(3 * n + 1) | {"timestamp_s": time.time() + 1e6}])
                assert (receipt.accepted, receipt.duplicates, receipt.late, receipt.skewed) == (2, 1, 2, 1)
                assert receipt.refused == (Refused(2, "no item_id: found event_id, user_id"),)
                assert receipt.request_id
                assert client.send_events(events[:1]).duplicates == 1
                plain = {"user_id": "u", "item_id": "now"}
                assert [client.send_events([plain]).accepted for _ in range(2)] == [1, 1]
                with pytest.raises(DataError, match="cannot be sent as JSON"):
                    client.send_events([click(1, rating=float("nan"))])
        counted = figures(server)
    assert counted['tfllmrec_events_total{outcome="accepted"}'] == 8
    assert counted['tfllmrec_events_total{outcome="duplicate"}'] == 4
    assert counted['tfllmrec_events_total{outcome="refused"}'] == 2
    assert (counted["tfllmrec_events_late_total"], counted["tfllmrec_events_skewed_total"]) == (6, 2)
    assert counted["tfllmrec_event_write_seconds_count"] == 8
    with EventLog(tmp_path / "log") as log:
        assert [event["item_id"] for event in log.replay()] == ["i0", "i1", "now", "now", "i3", "i4", "now", "now"]


def test_json_and_json_lines(serving, tmp_path):
    lines = "\n".join([json.dumps(click(1)), "", "{", "[]", json.dumps(click(2, rating=4)) + "\r", '{"user_id": NaN}'])
    with served(serving, tmp_path) as server:
        answer = post(server, json.dumps({"events": [click(1), 3]}), **{"x-request-id": "mine"})
        assert answer.status_code == 200 and answer.headers["x-request-id"] == "mine"
        assert answer.json() == {
            "accepted": 1, "duplicates": 0, "late": 1, "skewed": 0,
            "refused": [{"event": 1, "reason": "expected an object with user_id and item_id, found 3"}],
        }  # fmt: skip
        for kind in ("application/x-ndjson", "application/jsonl; charset=utf-8"):
            told = post(server, lines, **{"content-type": kind}).json()
            assert [refused["event"] for refused in told["refused"]] == [1, 2, 4]
            assert "JSON Parse error" in told["refused"][0]["reason"]
        assert (told["accepted"], told["duplicates"]) == (0, 2)
        zipped = post(
            server, gzip.compress(json.dumps({"events": [click(3)]}).encode()), **{"content-encoding": "gzip"}
        )
        assert zipped.json()["accepted"] == 1


@pytest.mark.parametrize(
    ("content", "headers", "status", "what"),
    [
        ("", {}, 400, "JSON Parse error"),
        ("[1]", {}, 400, "Is not object"),
        (json.dumps(click(1)), {}, 400, "a body of JSON lines needs the header"),
        ('{"events": {}}', {}, 400, 'expected {"events": [{...}, ...]}'),
        (json.dumps({"events": [{}] * 21}), {}, 400, "The request has more than 20 events"),
        ("{}\n" * 21, {"content-type": "application/x-ndjson"}, 400, "The request has more than 20 events"),
        ("x" * 5000, {}, 413, "the body has more than 4096 bytes"),
        ("x", {"content-encoding": "br"}, 415, "expected gzip"),
        ('{"events": []}', {"host": "elsewhere.example"}, 403, "is not a name of this server"),
    ],
)
def test_what_is_refused_as_a_whole(serving_small, content, headers, status, what):
    answer = post(serving_small, content, **headers)
    assert (answer.status_code, what in answer.json()["error"]) == (status, True), answer.text
    assert answer.headers["x-request-id"]


@pytest.fixture(scope="module")
def serving_small(serving, tmp_path_factory):
    with served(serving, tmp_path_factory.mktemp("small"), limits={"rows": 20, "body_bytes": 4096}) as server:
        yield server


def test_too_much_over_grpc(serving_small):
    with clients(serving_small) as (_, rpc):
        with pytest.raises(ServingError, match="The request has more than 20 events") as refused:
            rpc.send_events([click(n) for n in range(21)])
        assert refused.value.code == "INVALID_ARGUMENT"
        with pytest.raises(ServingError) as refused:
            rpc.send_events([click(1, note="x" * 5000)])
        assert refused.value.code == "INVALID_ARGUMENT"
    with grpc.insecure_channel(f"127.0.0.1:{serving_small.grpc_port}") as channel:
        send = channel.unary_unary(
            "/tfllmrec.EventService/SendEvents",
            MESSAGES["SendEventsRequest"].SerializeToString,
            MESSAGES["SendEventsResponse"].FromString,
        )
        told = send(MESSAGES["SendEventsRequest"](events=[b"{", b"\xff", json.dumps(click(1)).encode()]), timeout=30)
        assert told.accepted == 1 and [refused.event for refused in told.refused] == [0, 1]


def test_of_too_many_events_none_is_parsed(serving_small, monkeypatch):
    """Or a body of millions of short lines keeps a thread busy for minutes."""
    parsed = []
    monkeypatch.setattr(intake_module.json_tensors, "parse", parsed.append)
    intake = serving_small.engine.require_intake()
    endless = itertools.repeat(b"{}")
    with pytest.raises(RequestError, match="more than 20 events"):
        intake.of_lines(endless)
    assert parsed == []


def test_reading_the_events_counts_against_the_deadline(tmp_path):
    async def main():
        engine = Engine(Limits(timeout_s=0.05), Backwards, log=tmp_path / "log")
        go = threading.Event()
        try:
            with pytest.raises(RequestError, match="not written within") as refused:
                await asyncio.wait_for(engine.require_intake().take(1 << 20, lambda: go.wait(30) and []), 10)
            assert refused.value.code == Code.DEADLINE_EXCEEDED
        finally:
            go.set()
            await engine.close()

    asyncio.run(main())


def test_a_damaged_log_is_a_503_that_names_no_file(serving, tmp_path, monkeypatch):
    def damaged(log, *written):
        raise DataError(f"{log.folder} is damaged")

    with served(serving, tmp_path) as server:
        monkeypatch.setattr(EventLog, "write", damaged)
        answer = post(server, json.dumps({"events": [click(1)]}))
    assert answer.status_code == 503 and str(tmp_path) not in answer.text


def test_a_token_is_asked_for(serving, tmp_path):
    with served(serving, tmp_path, token="secret") as server:
        assert post(server, '{"events": []}').status_code == 401
        assert post(server, '{"events": []}', authorization="Bearer secret").status_code == 200
        with clients(server) as (_, rpc), pytest.raises(ServingError) as refused:
            rpc.send_events([click(1)])
        assert refused.value.code == "UNAUTHENTICATED"
        with clients(server, token="secret") as both:
            assert [client.send_events([click(1)]).accepted for client in both] == [1, 0]


def test_a_server_without_a_log_takes_no_events(serving, tmp_path):
    with serving(tmp_path, allow_reload=True) as server, clients(server) as both:
        for client in both:
            with pytest.raises(ServingError, match="start it with --log FOLDER") as refused:
                client.send_events([click(1)])
            assert refused.value.code == "UNIMPLEMENTED"


def test_a_full_disk_is_a_503_and_loses_nothing(serving, tmp_path):
    """The file of a log may not grow beyond the limit: events are refused, until there is room again."""
    with served(serving, tmp_path) as server, clients(server, retries=0) as both:
        events = [[click(n, event_id=f"{n}-{k}", note="x" * 4000) for k in range(20)] for n in range(40)]
        taken, refused = 0, None
        with small_files():
            for n, batch in enumerate(events):
                try:
                    taken += both[n % 2].send_events(batch).accepted
                except ServingError as error:
                    refused = error
                    break
            answer = post(server, json.dumps({"events": batch}))
        assert refused.code == "UNAVAILABLE" and "no event of this request was taken" in str(refused)
        assert str(tmp_path) not in str(refused)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert figures(server)["tfllmrec_event_write_failures_total"] == 2
        for batch in events[n:]:
            taken += both[0].send_events(batch).accepted
    assert taken == 800
    with EventLog(tmp_path / "log") as log:
        assert sorted(event["event_id"] for event in log.replay()) == sorted(e["event_id"] for b in events for e in b)


def test_concurrent_requests_share_durable_writes(serving, tmp_path):
    with served(serving, tmp_path) as server, clients(server) as both:
        with ThreadPoolExecutor(16) as pool:
            receipts = list(pool.map(lambda n: both[n % 2].send_events([click(n)]), range(200)))
        assert sum(receipt.accepted for receipt in receipts) == 200
        assert figures(server)["tfllmrec_event_write_seconds_count"] < 200
    with LogReader(tmp_path / "log") as reader:
        assert reader.last() >= 200


# Lists that were shown ---------------------------------------------------------------------------------------------

STRINGS = TensorSpec(STRING, (None, None))
LIST = Signature({"history": STRINGS}, {"item_ids": STRINGS})
FULL = Signature({"history": STRINGS, "context": STRINGS}, {"item_ids": STRINGS})


SEARCH = Signature({"history": STRINGS, "text": TensorSpec(STRING, (None,))}, {"item_ids": STRINGS})


class Backwards:
    """Answers with the history backwards."""

    alive = True
    items = Items(fields=frozenset({"device"}))

    def __init__(self, folder):
        self.signatures = {"serving_default": LIST, "recommend_full": FULL, "similar": LIST, "search": SEARCH}
        self.joining = {name: Joining(signature, False) for name, signature in self.signatures.items()}
        self.calls = dict.fromkeys(self.signatures, lambda inputs: {"item_ids": inputs["history"][:, ::-1]})

    def close(self):
        pass


def ask(tmp_path, *bodies, before=lambda engine: None):
    """Answers of a model; returns them and what the log has then."""

    async def main():
        (tmp_path / "m" / "3").mkdir(parents=True)
        (tmp_path / "m" / "3" / "saved_model.pb").write_text("x")
        engine = Engine(Limits(), Backwards, settled_s=0, log=tmp_path / "log")
        await engine.models.follow([ModelSource("m", tmp_path / "m", "all")])
        before(engine)
        transport = httpx.ASGITransport(rest_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answers = [
                await client.post("/v1/models/m:predict", content=json.dumps(body), headers={"x-request-id": f"r{n}"})
                for n, body in enumerate(bodies)
            ]
        await engine.close()
        return engine, answers

    engine, answers = asyncio.run(main())
    return engine, answers, shown_in(tmp_path / "log")


def test_lists_are_logged_with_what_made_them(tmp_path):
    start = time.time()
    _, answers, shown = ask(
        tmp_path,
        {"inputs": {"history": [["", "é", "b"]]}},
        {
            "signature_name": "recommend_full",
            "inputs": {"history": [["a", "b"], ["c", ""]], "context": [["device=tv", "user_id=42"], ["", ""]]},
        },
        {"signature_name": "similar", "inputs": {"history": [["x", "y"]]}},
        {"inputs": {"history": [[1]]}},
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400]
    assert all(start <= exposure.time_s <= time.time() for exposure in shown)
    assert [exposure._replace(time_s=0.0) for exposure in shown] == [
        Exposure("r0", 0.0, None, "m", 3, "recommend", "b", 0),
        Exposure("r0", 0.0, None, "m", 3, "recommend", "é", 1),
        Exposure("r1/0", 0.0, "42", "m", 3, "recommend_full", "b", 0),
        Exposure("r1/0", 0.0, "42", "m", 3, "recommend_full", "a", 1),
        Exposure("r1/1", 0.0, None, "m", 3, "recommend_full", "c", 0),
    ]


def test_a_request_is_logged_with_its_list(tmp_path):
    ask(
        tmp_path,
        {"inputs": {"history": [["", "é"], ["", ""]]}},
        {
            "signature_name": "recommend_full",
            "inputs": {"history": [["a"]], "context": [["device=tv", "user_id=42", "note=a secret"]]},
        },
        {"signature_name": "search", "inputs": {"history": [["a", ""]], "text": ["rote Schuhe"]}},
        {"signature_name": "similar", "inputs": {"history": [["x", "y"]]}},
    )
    assert [each._replace(time_s=0.0) for each in requests_in(tmp_path / "log")] == [
        RequestRecord("r0/0", 0.0, None, "m", 3, "recommend", 1, 1),
        RequestRecord("r0/1", 0.0, None, "m", 3, "recommend", 0, 0),
        RequestRecord("r1", 0.0, "42", "m", 3, "recommend_full", 1, 1, context='{"device":"tv"}'),
        RequestRecord("r2", 0.0, None, "m", 3, "search", 1, 1, letters=11, script="LATIN"),
    ]
    assert [(each.request_id, each.policy) for each in shown_in(tmp_path / "log")] == [
        ("r0/0", "recommend"), ("r1", "recommend_full"), ("r2", "search"),
    ]  # fmt: skip


def test_a_full_queue_drops_lists_and_not_requests(tmp_path, monkeypatch):
    monkeypatch.setattr("tfllmrec.feedback.event_writer.MOST_SHOWN", 5)
    monkeypatch.setattr("tfllmrec.feedback.event_writer.SHOWN_AFTER_S", 60)
    body = {"inputs": {"history": [["a", "b"]]}}
    engine, answers, shown = ask(tmp_path, body, body, body)
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [exposure.request_id for exposure in shown] == ["r0", "r0", "r1", "r1"]
    page = engine.metrics.page().decode()
    assert 'tfllmrec_shown_items_total{outcome="dropped"} 2.0' in page
    assert 'tfllmrec_shown_items_total{outcome="logged"} 4.0' in page


def test_a_full_disk_drops_lists_and_fails_no_request(tmp_path, monkeypatch):
    def full(log, *written):
        raise WriteError("no room")

    monkeypatch.setattr(EventLog, "write", full)
    engine, answers, shown = ask(tmp_path, {"inputs": {"history": [["a", "b"]]}})
    assert (answers[0].status_code, shown) == (200, [])
    page = engine.metrics.page().decode()
    assert 'tfllmrec_shown_items_total{outcome="dropped"} 2.0' in page
    assert "tfllmrec_event_write_failures_total 1.0" in page


def test_a_disk_that_hangs_delays_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("tfllmrec.feedback.event_writer.SHOWN_AFTER_S", 0)
    go = threading.Event()
    write = EventLog.write

    def hang(log, *written):
        assert go.wait(60)
        return write(log, *written)

    monkeypatch.setattr(EventLog, "write", hang)
    seen = []

    def before(engine):
        threading.Timer(1.0, lambda: (seen.append(time.monotonic()), go.set())).start()

    body = {"inputs": {"history": [["a", "b"]]}}
    _, answers, shown = ask(tmp_path, *[body] * 20, before=before)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert sum(answer.elapsed.total_seconds() for answer in answers) < 1.0
    assert len(shown) == 40


def test_a_context_for_all_rows_and_bytes_that_are_no_text():
    context = np.array([[b"user_id=7"]], object)
    ids = np.array([[b"a", b""], [b"\xff", b"b\0"]], object)
    shown, _ = intake_module.answered("r", 1.0, "m", 1, "p", ids, context, lists_of({}, {"item_ids": ids}, Items()))
    assert [(each.request_id, each.user_id, each.item_id, each.position) for each in shown] == [
        ("r/0", "7", "a", 0), ("r/1", "7", "�", 0), ("r/1", "7", "b�", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "context",
    [
        np.array([b"user_id=7", b""], object),
        np.array([[1.5], [2.5]]),
        np.array([[[b"user_id=7"]]], object),
        np.array([[b"user_id=7"]] * 3, object),
        np.array([], object),
    ],
)
def test_a_context_of_another_shape_or_type_names_nobody(context):
    ids = np.array([[b"a"], [b"b"]], object)
    lists = lists_of({"context": context}, {"item_ids": ids}, Items())
    shown, requests = intake_module.answered("r", 1.0, "m", 1, "p", ids, context, lists, frozenset({"user_id"}))
    assert [each.user_id for each in (*shown, *requests)] == [None] * 4
    assert [each.context for each in requests] == [None, None]

"""``tfllmrec monitor`` through the program, on logs that a server's own intake wrote."""

import asyncio
import json
import time
from itertools import count

import httpx
import numpy as np
import pandas as pd
import pytest
from html_pages import check, told
from logged_lists import requests_in, shown_in

from tfllmrec.feedback.event_log import EventLog, Exposure, RequestRecord
from tfllmrec.server.batching import Joining
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.lists import Items
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import STRING, Signature, TensorSpec
from tfllmrec.serving.layout import EXTRA, ITEMS
from tfllmrec.serving.promotion import PROMOTIONS, set_canary

IDS = TensorSpec(STRING, (None, None))
FULL = Signature(
    {"history": IDS, "context": IDS}, {"item_ids": IDS, "unknown": TensorSpec(np.dtype(np.int32), (None,))}
)


class Shop:
    """Recommends the items a to e; those of the history that are no letters are unknown to it."""

    alive = True

    def __init__(self, folder):
        self.signatures = {"recommend_full": FULL}
        self.joining = {"recommend_full": Joining(FULL, False)}
        self.calls = {"recommend_full": self.answer}
        self.items = Items.of(folder, {"schema": [{"name": "device", "owner": "request", "kind": "category"}]})

    def answer(self, inputs):
        rows = len(inputs["history"])
        unknown = np.vectorize(lambda item: item.isdigit(), [int])(inputs["history"]).sum(axis=1)
        ids = np.array([[letter.encode() for letter in "abcde"]] * rows, object)
        return {"item_ids": ids, "unknown": unknown.astype(np.int32)}

    def close(self):
        pass


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The folder of a model, and ``log(DAYS)``: serves a day for each (share of phones, share of clicks)."""
    folder = tmp_path_factory.mktemp("shop")
    version = folder / "models" / "shop" / "1"
    (version / EXTRA).mkdir(parents=True)
    (version / "saved_model.pb").write_text("x")
    strata = {
        "item_id": list("abcde"),
        "train_events": [9, 5, 2, 1, 0],
        "stratum": ["head", "tail", "tail", "tail", "cold"],
    }
    pd.DataFrame(strata).to_parquet(version / EXTRA / ITEMS)
    runs = count()

    def log(days):
        start = time.time() - len(days) * 86400  # the log goes on until now
        out, now, rng = folder / f"log{next(runs)}", [0.0], np.random.default_rng(len(days))

        async def serve():
            engine = Engine(Limits(), Shop, settled_s=0, log=out)
            engine.require_intake()._writer.log._clock = lambda: now[0]
            await engine.models.follow([ModelSource("shop", folder / "models" / "shop", "all")])
            transport = httpx.ASGITransport(rest_app(engine))
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                for day, (phones, clicks) in enumerate(days):
                    for hour in range(24):
                        now[0] = start + (24 * day + hour) * 3600
                        users = [f"u{n}" for n in rng.integers(0, 120, 10)]
                        context = [
                            [f"user_id={u}", f"device={'phone' if rng.random() < phones else 'tv'}"] for u in users
                        ]
                        body = {"inputs": {"history": [["a", "7"]] * 10, "context": context}}
                        name = f"r{day}-{hour}"
                        asked = {"signature_name": "recommend_full", **body}
                        answer = await client.post(
                            "/v1/models/shop:predict", json=asked, headers={"x-request-id": name}
                        )
                        assert answer.status_code == 200, answer.text
                        events = [
                            {
                                "user_id": user, "item_id": item, "kind": "click", "request_id": f"{name}/{row}",
                                "timestamp_s": now[0] + 60.0 + row, "stayed": 5.0,
                            }
                            for row, user in enumerate(users)
                            for item in "abcde"
                            if rng.random() < clicks
                        ]  # fmt: skip
                        sent = await client.post("/v1/events", json={"events": events})
                        assert sent.json()["accepted"] == len(events)
            await engine.close()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tfllmrec.server.intake.time.time", lambda: now[0])
            asyncio.run(serve())
        return out

    return folder / "models" / "shop", log


def test_a_shift_exits_5_and_a_steady_service_0(program, shop, tmp_path):
    model, log = shop
    moved = log([(0.5, 0.3), (0.95, 0.3)])
    shown, asked = shown_in(moved), requests_in(moved)
    assert (len(shown), len(asked)) == (2 * 24 * 10 * 5, 2 * 24 * 10)
    assert asked[0].context in ('{"device":"phone"}', '{"device":"tv"}')
    assert (asked[0].listed, asked[0].history_ids, asked[0].unknown_ids, asked[0].user_id[0]) == (5, 2, 1, "u")

    page = tmp_path / "page.html"
    answer = program("monitor", moved, "--since", "23h", "--dwell", "stayed", "--model", model, "--html", page)
    assert answer.code == 5, answer.err
    (alarm,) = [line for line in answer.out.splitlines() if line.startswith("alarm: ")]
    assert alarm.startswith("alarm: field device moved: population stability index") and "To do: " in alarm
    assert "stratum head" in answer.out and "dwell_s" in answer.out and "unknown_ids" in answer.out
    assert "Alarm: field device moved" in told(check(page)) and "page.html" in answer.err

    told_json = json.loads(program("monitor", moved, "--since", "23h", "--json").out)
    assert [each["about"] for each in told_json["alarms"]] == ["field device"]
    unknown = next(f for f in told_json["figures"] if f["measure"] == "unknown_ids")
    assert unknown["value"] == 0.5 and unknown["reference"] == 0.5

    steady = log([(0.5, 0.3), (0.5, 0.3)])
    answer = program("monitor", steady, "--since", "23h", "--model", model / "1")
    assert answer.code == 0 and answer.out.splitlines()[-1].endswith("compared with the 23 hours before: no alarm.")

    answer = program("monitor", steady, "--until", "2100-01-01")
    assert (
        answer.code == 3
        and "The log is old: " in answer.out
        and "alarm: the log is old at 2100-01-01 00:00 UTC" in answer.out
    )
    assert json.loads(program("monitor", steady, "--until", "2100-01-01", "--json").out)["state"] == "old"

    fell = log([(0.5, 0.1)])
    answer = program("monitor", fell, "--since", "30h", "--reference", steady, "--json")
    about = [each["about"] for each in json.loads(answer.out)["alarms"]]
    assert answer.code == 5 and about == ["ctr (all)", "bounce (all)"]


def test_a_canary_is_judged_when_enough_users_have_tried_it(program, tmp_path):
    model, hour = tmp_path / "shop", time.time() - 3600
    for version in ("1", "2"):
        (model / version / EXTRA).mkdir(parents=True)
        pd.DataFrame({"item_id": ["a"], "train_events": [1], "stratum": ["head"]}).to_parquet(
            model / version / EXTRA / ITEMS
        )
        state = set_canary(model, int(version))
    began = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(hour - 1))
    steps = [step.model_copy(update={"time": began}) for step in state.history]
    (model / PROMOTIONS).write_text(state.model_copy(update={"history": steps}).model_dump_json())

    def serve(version, clicks):
        lists, events = [], []
        for n in range(40):
            lists.append((f"r{version}-{n}", hour + 10 * n, f"u{version}-{n}", "shop", version, "recommend"))
            if n < clicks:
                of_list = {"user_id": lists[-1][2], "item_id": "a", "request_id": lists[-1][0]}
                events.append({**of_list, "kind": "click", "timestamp_s": lists[-1][1] + 1})
        with EventLog(tmp_path / "log") as log:
            shown, asked = [Exposure(*each, "a", 0) for each in lists], [RequestRecord(*each, 1) for each in lists]
            log.write([log.check(events)], shown, asked)

    serve(1, clicks=30)
    answer = program("monitor", tmp_path / "log", "--model", model, "--within", "5s")
    assert answer.code == 3 and "the canary shop/2 is not compared yet: expected 30 users" in answer.out
    assert program("monitor", tmp_path / "log", "--model", model / "1", "--within", "5s").code == 0
    serve(2, clicks=0)
    answer = program("monitor", tmp_path / "log", "--model", model, "--within", "5s")
    assert answer.code == 5 and "alarm: ctr (canary shop/2) is 0.00%, and 76.92% in the stable version" in answer.out
    (model / "2" / EXTRA / ITEMS).write_bytes(b"nothing")  # the items are those of the stable version
    assert program("monitor", tmp_path / "log", "--model", model, "--within", "5s").code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--since", "soon"], 2, "--since soon: expected a period such as 90s, 30m, 24h or 7d"),
        (["--reference", "nowhere"], 2, "--reference nowhere: expected a period"),
        (["--within", "0m"], 2, "--within 0m"),
        (["--until", "May"], 2, "Invalid value for '--until'"),
        (["--model", "nowhere"], 4, "nowhere does not exist"),
        ([], 3, "is not an event log"),
    ],
)
def test_wrong_usage(program, tmp_path, arguments, code, message):
    answer = program("monitor", tmp_path, *arguments)
    assert answer.code == code and message in " ".join(answer.err.replace("│", " ").split())


def test_an_export_without_strata_is_named(program, tmp_path):
    (tmp_path / "m" / "1" / EXTRA).mkdir(parents=True)
    pd.DataFrame({"item_id": ["a"]}).to_parquet(tmp_path / "m" / "1" / EXTRA / ITEMS)
    (tmp_path / "m" / "1" / "saved_model.pb").touch()
    answer = program("monitor", tmp_path, "--model", tmp_path / "m")
    assert answer.code == 4 and "wrote no strata: export the run again" in answer.err


def test_a_log_without_lists_is_an_error(program, tmp_path):
    EventLog(tmp_path / "log").close()
    answer = program("monitor", tmp_path / "log")
    assert answer.code == 3 and "has no lists: expected those that 'tfllmrec serve --log' writes" in answer.err

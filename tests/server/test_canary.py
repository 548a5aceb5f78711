"""A share of the users gets the canary."""

import asyncio
import json
from dataclasses import replace

import httpx
import numpy as np
import pandas as pd
import pytest
from logged_lists import shown_in

from tfllmrec.client.messages import MESSAGES
from tfllmrec.feedback.assignment import Experiment
from tfllmrec.feedback.event_files import export
from tfllmrec.feedback.experiments import Metric, analyze, users_of
from tfllmrec.server import request_ids
from tfllmrec.server.batching import Joining
from tfllmrec.server.canary import Arm, arm_of
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.grpc_service import _Prediction
from tfllmrec.server.lists import Items
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.protos import to_proto
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import STRING, Signature, TensorSpec

STRINGS = TensorSpec(STRING, (None, None))
ASKED = Signature({"history": STRINGS, "context": STRINGS}, {"item_ids": STRINGS})
ARMS = Experiment("m/2", {"stable": 0.7, "canary": 0.3})
USERS = [f"u{n}" for n in range(40)]
IN_ARM = dict(zip(USERS, ARMS.assign_all(USERS), strict=True))


STABLE_ONLY = Signature({"history": STRINGS, "context": STRINGS, "k": STRINGS}, {"item_ids": STRINGS, "why": STRINGS})


class Versioned:
    """Recommends the number of its version. The canary, version 2, lacks a signature, an input and an output."""

    alive = True
    items = Items()

    def __init__(self, folder):
        names = ["recommend", "full"] if folder.name == "2" else ["recommend", "full", "only_stable"]
        self.signatures = dict.fromkeys(names, ASKED)
        if folder.name != "2":
            self.signatures["full"] = replace(STABLE_ONLY, defaults={"k": np.array([[b""]], object)})
        self.joining = {name: Joining(signature, False) for name, signature in self.signatures.items()}
        answer = np.array([[folder.name.encode()]], object)

        def call(inputs):
            return dict.fromkeys(("item_ids", "why"), np.repeat(answer, len(inputs["history"]), 0))

        self.calls = dict.fromkeys(names, call)

    def close(self):
        pass


def serve(tmp_path, work, share=0.3, labels=None):
    """Serves three versions while ``work(engine, ask)`` runs; returns what the log has then."""

    async def main():
        for number in ("1", "2", "3"):
            (tmp_path / "m" / number).mkdir(parents=True, exist_ok=True)
            (tmp_path / "m" / number / "saved_model.pb").write_text("x")
        engine = Engine(Limits(), Versioned, settled_s=0, log=tmp_path / "log", canary_share=share)
        labels_ = {"stable": 1, "canary": 2} if labels is None else labels
        await engine.models.follow([ModelSource("m", tmp_path / "m", "all", labels=labels_)])
        transport = httpx.ASGITransport(rest_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:

            async def ask(*users, which="", signature="recommend", request_id=None):
                context = [[f"user_id={user}" if user else ""] for user in users]
                body = {"signature_name": signature, "inputs": {"history": [["a"]] * len(users), "context": context}}
                sent = {} if request_id is None else {"x-request-id": request_id}
                answer = await client.post(f"/v1/models/m{which}:predict", content=json.dumps(body), headers=sent)
                assert answer.status_code == 200, answer.text
                found = answer.json()["outputs"]
                return (found["item_ids"] if isinstance(found, dict) else found)[0][0]

            await work(engine, ask)
        await engine.close()

    asyncio.run(main())
    return [(each.user_id, each.item_id, each.experiment, each.arm) for each in shown_in(tmp_path / "log")]


def test_a_user_always_gets_the_same_arm_and_the_log_has_it(tmp_path):
    async def work(engine, ask):
        for user in USERS * 2:
            assert await ask(user) == {"stable": "1", "canary": "2"}[IN_ARM[user]]

    shown = serve(tmp_path, work)
    assert shown == [(u, "2" if IN_ARM[u] == "canary" else "1", "m/2", IN_ARM[u]) for u in USERS * 2]
    assert 5 < sum(arm == "canary" for arm in IN_ARM.values()) < 20
    export(tmp_path / "log", tmp_path / "shown.csv", exposures=True)
    exported = pd.read_csv(tmp_path / "shown.csv")
    assert exported["arm"].tolist() == [IN_ARM[u] for u in USERS * 2] and set(exported["experiment"]) == {"m/2"}
    analysis = analyze(users_of(exported, ARMS), ARMS, [Metric("exposures")])
    assert sum(analysis.sample_ratio.users.values()) == 40 and not analysis.alarms


def test_requests_that_name_a_version_and_those_of_several_users_are_not_assigned(tmp_path):
    canary, stable = (next(u for u in USERS if IN_ARM[u] == arm) for arm in ("canary", "stable"))

    async def work(engine, ask):
        assert await ask(canary, which="/labels/stable") == "1"
        assert await ask(stable, which="/versions/3") == "3"
        assert await ask(canary, stable) == "1"
        assert await ask(canary, canary) == "2"
        assert await ask(canary, signature="only_stable") == "1"  # the canary does not have this signature

    shown = serve(tmp_path, work)
    assert [arm for *_, arm in shown] == [None, None, None, None, "canary", "canary"]


def test_a_request_without_a_user_is_assigned_by_its_id(tmp_path):
    ids = [f"r{n}" for n in range(20)]

    async def work(engine, ask):
        for request_id in ids:
            assert await ask("", request_id=request_id) == {"stable": "1", "canary": "2"}[ARMS.assign(request_id)]

    assert [arm for *_, arm in serve(tmp_path, work)] == [ARMS.assign(request_id) for request_id in ids]
    assert arm_of("m", 2, 0.3, {}, "r0") == Arm("m/2", ARMS.assign("r0"))  # a model without a context


@pytest.mark.parametrize(
    ("share", "labels", "version"),
    [
        (0.3, {"stable": 1}, "1"),
        (0.3, {}, "3"),
        (0.3, {"stable": 2, "canary": 2}, "2"),
        (0.3, {"stable": 1, "canary": 9}, "1"),  # version 9 is not loaded
        (0.3, {"stable": 9, "canary": 2}, "3"),
        (None, None, "3"),
    ],
)
def test_without_a_canary_or_a_share_nobody_is_assigned(tmp_path, share, labels, version):
    async def work(engine, ask):
        assert {await ask(user) for user in USERS} == {version}

    assert {arm for *_, arm in serve(tmp_path, work, share, labels)} == {None}


def test_grpc_assigns_as_rest_does_and_tells_the_version(tmp_path):
    async def work(engine, ask):
        for user in USERS[:8]:
            request = MESSAGES["PredictRequest"]()
            request.model_spec.name, request.model_spec.signature_name = "m", "recommend"
            for name, value in (("history", b"a"), ("context", f"user_id={user}".encode())):
                request.inputs[name].CopyFrom(to_proto(np.array([[value]], object)))
            request_ids.take(None)
            answer = await _Prediction(engine).predict(request, None)
            assert answer.model_spec.version.value == {"stable": 1, "canary": 2}[IN_ARM[user]]
            request.model_spec.version_label = "stable"
            request_ids.take(None)
            assert (await _Prediction(engine).predict(request, None)).model_spec.version.value == 1

    assert [arm for *_, arm in serve(tmp_path, work)] == [arm for u in USERS[:8] for arm in (IN_ARM[u], None)]


@pytest.mark.parametrize(
    ("more", "outputs", "version"), [((), [], 2), ((), ["item_ids"], 2), ((), ["why"], 1), (("k",), [], 1)]
)
def test_a_request_that_the_canary_cannot_answer_gets_the_stable_version(tmp_path, more, outputs, version):
    user = next(u for u in USERS if IN_ARM[u] == "canary")

    async def work(engine, ask):
        request = MESSAGES["PredictRequest"](output_filter=outputs)
        request.model_spec.name, request.model_spec.signature_name = "m", "full"
        given = {"history": b"a", "context": f"user_id={user}".encode(), **dict.fromkeys(more, b"")}
        for name, value in given.items():
            request.inputs[name].CopyFrom(to_proto(np.array([[value]], object)))
        request_ids.take(None)
        answer = await _Prediction(engine).predict(request, None)
        assert answer.model_spec.version.value == version
        assert answer.outputs.keys() >= set(outputs)

    serve(tmp_path, work)

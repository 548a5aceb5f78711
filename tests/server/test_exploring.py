"""Lists that the server explores: the log's propensities are the frequencies, and what must not change does not."""

import asyncio
import json
from collections import Counter

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_versions import made_catalogue, write_version

from tfllmrec.data.files.event_log import LogReader
from tfllmrec.feedback.event_log import EventLog, Exposure
from tfllmrec.feedback.exploration import Exploration
from tfllmrec.server.batching import Joining
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.exploring import CANDIDATES, Explorer
from tfllmrec.server.lists import Items
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import STRING, Signature, TensorSpec
from tfllmrec.serving.rules.compiled import packed, places_items

pytest.importorskip("grpc")

CATALOGUE = 30
STRINGS, ROWS = TensorSpec(STRING, (None, None)), TensorSpec(np.dtype(np.int32), (None,))
FLOATS = TensorSpec(np.dtype(np.float32), (None, None))
LIST = Signature({"history": STRINGS, "k": ROWS}, {"item_ids": STRINGS, "scores": FLOATS})


class Ordered:
    """A model that lists i0, i1, ... with scores 3.0, 2.9, ...; as many as are asked for."""

    alive = True
    items = Items()
    ours = True

    def __init__(self, folder):
        self.signatures = {"recommend": LIST, "search": LIST}
        self.joining = {name: Joining(LIST, self.ours, CATALOGUE) for name in self.signatures}
        self.calls = dict.fromkeys(self.signatures, listed)

    def close(self):
        pass


def listed(inputs):
    k = np.clip(inputs["k"], 0, CATALOGUE)
    shown = np.arange(k.max(initial=0)) < k[:, np.newaxis]
    ids = np.array([f"i{n}".encode() for n in range(shown.shape[1])], object)
    scores = (3 - 0.1 * np.arange(shown.shape[1])).astype(np.float32)
    return {"item_ids": np.where(shown, ids, b""), "scores": np.where(shown, scores, np.float32(0))}


@pytest.fixture
def log(tmp_path):
    """i0 to i9 and i20 were shown once more than a tail item may be."""
    with EventLog(tmp_path / "log") as log:
        seen = [f"i{n}" for n in (*range(10), 20)] * 3
        shown = [Exposure(f"old{n}", 1.0, None, "m", 1, "recommend", item, 0) for n, item in enumerate(seen)]
        log.write([], shown)
    return tmp_path / "log"


def ask(tmp_path, log, *bodies, model=Ordered, content=None, **explore):
    """The answers of a server that explores, its engine, and the items that it logged."""

    async def main():
        version = write_version(tmp_path / "m", 3, made_catalogue())
        if content is not None:
            (version / "assets" / "rules.bin").write_bytes(content)
        exploration = Exploration(**{"places": 2, "epsilon": 0.4, "max_loss": 9.0, "tail_exposures": 2} | explore)
        with LogReader(log) as reader:
            before = reader.last("exposures")
        engine = Engine(Limits(), model, settled_s=0, log=log, exploration=exploration)
        await engine.models.follow([ModelSource("m", tmp_path / "m", "all")])
        transport = httpx.ASGITransport(rest_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answers = [
                await client.post("/v1/models/m:predict", content=json.dumps(body), headers={"x-request-id": f"r{n}"})
                for n, body in enumerate(bodies)
            ]
        page = engine.metrics.page().decode()
        await engine.close()
        with EventLog(log) as written:
            return [answer.json()["outputs"] for answer in answers], page, list(written.shown(before))

    return asyncio.run(main())


def body(rows=1, k=4, signature="recommend"):
    return {"signature_name": signature, "inputs": {"history": [[""]] * rows, "k": [k] * rows}}


def is_frequency(frequency, p, n):
    return abs(frequency - p) <= 4.5 * np.sqrt(p * (1 - p) / n) + 1e-9


def test_logged_propensities_are_frequencies_and_off_policy_reads_them(tmp_path, log, program):
    (answer,), page, shown = ask(tmp_path, log, body(rows=1000), max_loss=0.5)
    lists = [row["item_ids"] if isinstance(row, dict) else row for row in answer["item_ids"]]
    assert [len(row) for row in lists] == [4] * 1000 and all(len(set(row)) == 4 for row in lists)
    assert [shown_item.item_id for shown_item in shown] == [item for row in lists for item in row]
    propensity = {(each.position, each.item_id): each.propensity for each in shown}
    counted = Counter((each.position, each.item_id) for each in shown)
    # Places 2 and 3 have the scores 2.8 and 2.7, and the tail is i10 to i29 without i20.
    tail = [n for n in range(10, 30) if n != 20]
    epsilon = 0.5 / (2.8 + 2.7 - 2 * (3 - 0.1 * np.mean(tail)))
    assert {item for place, item in propensity if place == 3} <= {"i3", *(f"i{n}" for n in tail)}
    assert propensity[3, "i3"] == pytest.approx(1 - epsilon, abs=1e-6) and propensity[0, "i0"] == 1
    for key, p in propensity.items():
        assert is_frequency(counted[key] / 1000, p, 1000), key
    explored = sum(p < 0.5 for p in (each.propensity for each in shown))
    assert f'tfllmrec_explored_items_total{{model_name="m",version="3"}} {explored:.1f}' in page
    loss = next(float(line.split()[-1]) for line in page.splitlines() if line.startswith("tfllmrec_exploration_loss_"))
    assert loss == pytest.approx(0.5 * 1000)

    # A click for each explored item: a policy that never explores earns none of them, one that always does, all.
    with EventLog(log) as written:
        clicks = [
            {"user_id": "u", "item_id": each.item_id, "kind": "click", "request_id": each.request_id}
            | {"event_id": f"{each.request_id}-{each.position}"}
            for each in shown
            if each.propensity < 0.5
        ]
        written.append(clicks)
    out = tmp_path / "shown.parquet"
    assert program("events", "export", log, out, "--exposures", "--reward", "click").code == 0
    frame = pd.read_parquet(out)
    frame = frame[frame["request_id"].str.startswith("r0/") & (frame["position"] >= 2)]
    frame["never"] = (frame["propensity"] > 0.5).astype(float)
    frame["always"] = np.where(frame["propensity"] > 0.5, 0, 1 / len(tail))
    frame.to_parquet(out)
    for name, value in (("never", 0), ("always", 1)):
        answer = program("off-policy", out, "--target-column", name, "--json")
        assert json.loads(answer.out)["estimates"]["snips"]["value"] == pytest.approx(value)


@given(
    k=st.integers(1, 8),
    places=st.integers(1, 3),
    epsilon=st.floats(0.05, 1),
    max_loss=st.floats(0, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=5)
def test_propensities_are_frequencies_and_the_loss_is_bounded(tmp_path_factory, k, places, epsilon, max_loss, seed):
    folder = tmp_path_factory.mktemp("log")
    EventLog(folder).close()
    explorer = Explorer(Exploration(places, epsilon, max_loss), folder, np.random.default_rng(seed))
    inputs = {"history": np.full((600, 1), b"", object), "k": np.full(600, k, np.int32)}
    deeper = explorer.deeper(inputs)
    assert deeper["k"].tolist() == [k + CANDIDATES] * 600
    found = explorer.explored(inputs["k"], listed(deeper))
    ids, propensity = found.outputs["item_ids"], found.propensity
    assert found.loss / 600 <= max_loss + 1e-9 and ids.shape == propensity.shape == (600, k)
    scores = listed({"k": np.array([CATALOGUE])})["scores"][0]
    of_item = np.array([[int(item[1:]) for item in row] for row in ids])
    assert np.array_equal(found.outputs["scores"], scores[of_item])
    for place in range(k):
        of_place = pd.Series(propensity[:, place]).groupby(ids[:, place])
        assert (of_place.nunique() == 1).all()
        for p, count in zip(of_place.first(), of_place.size(), strict=True):
            assert is_frequency(count / 600, p, 600)


def test_lists_of_several_lengths_in_one_request(tmp_path, log):
    several = {"signature_name": "recommend", "inputs": {"history": [[""]] * 4, "k": [0, 1, 3, 29]}}
    (answer,), _, shown = ask(tmp_path, log, several, epsilon=1.0)
    rows = answer["item_ids"]
    assert [sum(item != "" for item in row) for row in rows] == [0, 1, 3, 29] and {len(row) for row in rows} == {29}
    assert rows[1][0] == "i0" and rows[2][0] == "i0" and "i1" not in rows[2]
    # Beyond 29 items one is left, which no more than one place can have.
    assert [each.propensity for each in shown if each.request_id == "r0/3"] == [1.0] * 29


@pytest.mark.parametrize(
    "what",
    [{"diversity": np.ones(1)}, {"category_cap": np.ones(1, int)}, {"tail_share": np.ones(1)},
     {"pinned": np.array([[b"i3"]], object)}],
)  # fmt: skip
def test_lists_that_rules_order_are_not_explored(log, what):
    explorer = Explorer(Exploration(1, 1.0, 9.0), log)
    plain = {"k": np.array([4], np.int32)}
    assert explorer.deeper(plain | what) is None
    assert explorer.deeper(plain | {name: np.zeros_like(value) for name, value in what.items() if name != "pinned"})
    assert explorer.deeper({"k": np.array([2**31 - 1], np.int32), "pinned": np.array([[b""]], object)})["k"] > 0


def test_what_is_never_explored(tmp_path, log):
    class OfAnotherKind(Ordered):
        ours = False

    placed = packed(b"c" * 32, b"r" * 32, {"sponsored_item": np.array([3])})
    for number, (content, model, signature) in enumerate(
        [(placed, Ordered, "recommend"), (None, OfAnotherKind, "recommend"), (None, Ordered, "search")]
    ):
        answers, _, shown = ask(
            tmp_path / str(number), log, body(50, 4, signature), content=content, model=model, epsilon=1.0
        )
        assert answers[0]["item_ids"] == [["i0", "i1", "i2", "i3"]] * 50
        assert {each.propensity for each in shown} <= {1.0}
    answers, _, _ = ask(tmp_path / "explored", log, body(50), epsilon=1.0)
    assert all("i3" not in row for row in answers[0]["item_ids"])


def test_the_head_of_a_rules_file_says_whether_items_are_placed(tmp_path):
    path = tmp_path / "rules.bin"
    assert not places_items(path)
    for content, expected in (
        (packed(b"c" * 32, b"r" * 32, {"sponsored_item": np.array([3])}), True),
        (packed(b"c" * 32, b"r" * 32, {"hidden": np.ones(3)}), False),
        (b"tfllmrec: no rules\n", False),
        (packed(b"c" * 32, b"r" * 32, {})[:60], False),
    ):
        path.write_bytes(content)
        assert places_items(path) == expected


def test_an_item_that_was_shown_often_is_no_tail_item_any_more(log):
    explorer = Explorer(Exploration(1, 1.0, 9.0, tail_exposures=2), log, np.random.default_rng(0))
    one = {"k": np.array([1], np.int32)}

    def reached():
        answers = [explorer.explored(one["k"], listed(explorer.deeper(one))) for _ in range(200)]
        return {answer.outputs["item_ids"][0, 0] for answer in answers}

    assert b"i20" not in reached() and b"i21" in reached()
    explorer.count([Exposure(f"r{n}", 2.0, None, "m", 1, "recommend", "i21", 0) for n in range(3)])
    assert b"i21" not in reached()

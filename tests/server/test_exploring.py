"""Lists that the server explores: the log's propensities are the frequencies, and what must not change does not."""

import asyncio
import gzip
import json
import zlib
from collections import Counter

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_lists import shown_in
from plain_versions import made_catalogue, write_version

from tfllmrec.client.client import Client
from tfllmrec.client.inputs import MOST_REASONS
from tfllmrec.client.status import invalid
from tfllmrec.data.files.event_log import LogReader
from tfllmrec.errors import ModelError
from tfllmrec.feedback.event_log import EventLog, Exposure
from tfllmrec.feedback.exploration import Exploration
from tfllmrec.server import intake
from tfllmrec.server.batching import Joining
from tfllmrec.server.engine import Engine, Limits
from tfllmrec.server.exploring import CANDIDATES, Explorer
from tfllmrec.server.lists import Items
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.rest import rest_app
from tfllmrec.server.tensors import STRING, Signature, TensorSpec
from tfllmrec.server.work import Work
from tfllmrec.serving.rules.compiled import packed, places_items, rules_digest

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


def no_limit(inputs):
    return Work(len(inputs["k"]))


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
        return [answer.json()["outputs"] for answer in answers], page, shown_in(log, before)

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
    explorer = Explorer(Exploration(epsilon, max_loss, places), folder, np.random.default_rng(seed))
    inputs = {"history": np.full((600, 1), b"", object), "k": np.full(600, k, np.int32)}
    deeper, _ = explorer.deeper(inputs, no_limit)
    assert deeper["k"].tolist() == [k + CANDIDATES] * 600
    found = explorer.explored(inputs, listed(deeper))
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
    assert rows[1][0] != "i0" and rows[2][0] == "i0" and "i1" not in rows[2]
    # Beyond 29 items one is left, which no more than one place can have.
    assert [each.propensity for each in shown if each.request_id == "r0/3"] == [1.0] * 29


@pytest.mark.parametrize(
    "what",
    [{"diversity": np.ones(1)}, {"category_cap": np.ones(1, int)}, {"tail_share": np.ones(1)},
     {"pinned": np.array([[b"i3"]], object)}],
)  # fmt: skip
def test_lists_that_rules_order_are_not_explored(log, what):
    explorer = Explorer(Exploration(1.0, 9.0, 1), log)
    plain = {"k": np.array([4], np.int32)}
    assert explorer.deeper(plain | what, no_limit) is None
    other = {name: np.full_like(value, b"" if name == "pinned" else 0) for name, value in what.items()}
    assert explorer.deeper(plain | other, no_limit)[0]["k"] == [4 + CANDIDATES]
    assert explorer.deeper({"k": np.array([2**31 - 1], np.int32)}, no_limit)[0]["k"] > 0
    # A rule of one row leaves the others as they are.
    both = {name: np.concatenate([what[name], other[name]]) for name in what}
    deeper, _ = explorer.deeper({"k": np.array([4, 4], np.int32)} | both, no_limit)
    assert deeper["k"].tolist() == [4, 4 + CANDIDATES]
    found = explorer.explored({"k": np.array([4, 4], np.int32)}, listed(deeper))
    assert found.outputs["item_ids"][:, 3].tolist() != [b"i3"] * 2 and found.outputs["item_ids"][0, 3] == b"i3"
    assert found.propensity[0].tolist() == [1.0] * 4 and found.propensity[1, 3] < 1


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
    damaged = bytearray(packed(b"c" * 32, b"r" * 32, {"sponsored_item": np.array([3])}))
    damaged[11] ^= 255  # a length
    with pytest.raises(zlib.error):
        gzip.decompress(damaged)
    for content, expected in (
        (packed(b"c" * 32, b"r" * 32, {"sponsored_item": np.array([3])}), True),
        (packed(b"c" * 32, b"r" * 32, {"hidden": np.ones(3)}), False),
        (b"tfllmrec: no rules\n", False),
        (packed(b"c" * 32, b"r" * 32, {})[:60], False),
        (damaged, False),
    ):
        path.write_bytes(content)
        assert places_items(path) == expected
    with pytest.raises(ModelError, match="cannot be read"):
        rules_digest(path)


def test_the_rules_are_read_again_when_they_were_replaced(tmp_path, monkeypatch):
    path, read = tmp_path / "rules.bin", []
    monkeypatch.setattr(intake, "places_items", lambda path: read.append(path) or places_items(path))
    assert not intake._places_items(path) and not read
    for sections in ({"hidden": np.ones(3)}, {"sponsored_item": np.array([3])}):
        path.write_bytes(packed(b"c" * 32, b"r" * 32, sections))
        assert [intake._places_items(path) for _ in range(3)] == ["sponsored_item" in sections] * 3
    assert len(read) == 2


def test_scores_that_do_not_descend_leave_a_list_as_it_is(log):
    explorer = Explorer(Exploration(1.0, 9.0), log, np.random.default_rng(0))
    inputs = {"k": np.array([4] * 4, np.int32)}
    outputs = listed(explorer.deeper(inputs, no_limit)[0])
    outputs["scores"][0, 2], outputs["scores"][1, 9], outputs["scores"][2, 0] = 9, np.nan, np.inf
    found = explorer.explored(inputs, outputs)
    assert np.array_equal(found.outputs["item_ids"][:3], outputs["item_ids"][:3, :4])
    assert (found.propensity[:3] == 1).all() and found.propensity[3, 3] < 1


def test_explored_items_have_reasons_where_their_places_have(log):
    explorer = Explorer(Exploration(1.0, 9.0, 2), log, np.random.default_rng(0))
    inputs = {"k": np.array([4, 4, 4, 0], np.int32), "reasons": np.array([2, 3, 99, 1], np.int32)}
    deeper, _ = explorer.deeper(inputs, no_limit)
    assert deeper["reasons"].tolist() == [2, MOST_REASONS, MOST_REASONS, 1]
    outputs = listed(deeper)
    told = (outputs["item_ids"] != b"") & (np.arange(CATALOGUE) < deeper["reasons"][:, np.newaxis])
    found = explorer.explored(inputs, outputs | {"reasons": np.where(told, outputs["item_ids"], b"")}).outputs
    shown = np.arange(4) < np.minimum(inputs["k"], inputs["reasons"])[:, np.newaxis]
    assert np.array_equal(found["reasons"], np.where(shown, found["item_ids"], b""))


def test_fewer_candidates_where_more_are_too_much_work(log):
    explorer, inputs = Explorer(Exploration(1.0, 9.0), log), {"k": np.array([4], np.int32)}

    def work(most):
        def of(inputs):
            if inputs["k"].max() > most:
                raise invalid("too much")
            return Work(1, int(inputs["k"].max()))

        return of

    deeper, found = explorer.deeper(inputs, work(60))
    assert deeper["k"] == [54] and found.row_cells == 54
    assert explorer.deeper(inputs, work(4)) is None


def test_a_request_at_the_limit_is_answered(tmp_path, log, monkeypatch):
    monkeypatch.setattr("tfllmrec.server.work.ANSWER_VALUES", 50 * 4)
    (answer,), _, shown = ask(tmp_path, log, body(rows=50), epsilon=1.0)
    assert answer["item_ids"] == [["i0", "i1", "i2", "i3"]] * 50 and {each.propensity for each in shown} == {1.0}


def test_an_item_that_was_shown_often_is_no_tail_item_any_more(log):
    explorer = Explorer(Exploration(1.0, 9.0, 1, tail_exposures=2), log, np.random.default_rng(0))
    one = {"k": np.array([1], np.int32)}

    def reached():
        answers = [explorer.explored(one, listed(explorer.deeper(one, no_limit)[0])) for _ in range(200)]
        return {answer.outputs["item_ids"][0, 0] for answer in answers}

    assert b"i20" not in reached() and b"i21" in reached()
    explorer.count([Exposure(f"r{n}", 2.0, None, "m", 1, "recommend", "i21", 0) for n in range(3)])
    assert b"i21" not in reached()


@pytest.mark.tf
@pytest.mark.long
@pytest.mark.slow
def test_lists_of_an_exported_model_are_explored(chain_version, serving, tmp_path):
    always = Exploration(1.0, 1e9)
    with serving(chain_version.parent.parent, log=tmp_path / "log", exploration=always) as server:
        for address in (f"http://127.0.0.1:{server.rest_port}", f"grpc://127.0.0.1:{server.grpc_port}"):
            with Client(address, "chain") as client:
                # Nothing is left to explore with.
                plain = client.recommend(["i1", "i2"], k=40, titles=True, reasons=True)
                lists = [client.recommend(["i1", "i2"], k=6, titles=True, reasons=True) for _ in range(20)]
                diverse = client.recommend(["i1", "i2"], k=6, diversity=0.01)
            known, best = {each.item_id: each for each in plain}, [each.item_id for each in plain]
            assert len(known) == 38 and len({each[5].item_id for each in lists}) > 3
            for one in lists:
                ids = [each.item_id for each in one]
                assert ids[:4] == best[:4] and not set(best[4:6]) & set(ids)
                assert [each.score for each in one] == pytest.approx([known[item].score for item in ids])
                assert [(each.title, each.reason) for each in one] == [
                    (known[item].title, known[item].reason) for item in ids
                ]
            assert any(each.reason for one in lists for each in one[4:]) and diverse[0].item_id == best[0]
    shown = shown_in(tmp_path / "log")
    assert {(each.position, each.propensity) for each in shown if each.policy == "recommend_full"} >= {
        (0, 1.0), (3, 1.0), (4, 1 / 32), (5, 1 / 32)
    }  # fmt: skip
    assert all(each.propensity in (1, 1 / 32) for each in shown)

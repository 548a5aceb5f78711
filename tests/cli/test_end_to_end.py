"""``fit``, ``export``, ``recommend`` and ``serve`` as users run them, with nothing replaced, on the planted ring."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import killed_when_late

pytestmark = [pytest.mark.tf, pytest.mark.slow]

HISTORY, NEXT = ["i3", "i4", "i5"], "i6"
SMALL = (
    "text.max_tokens=12", "model.embedding_dim=8", "model.blocks=0", "model.heads=2", "model.history_length=6",
    "model.terms=[meaning,behaviour]", "training.epochs=1", "ranking.epochs=0", "evaluation.baselines=[popularity]",
    "evaluation.bootstrap=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the tests write, one after the other."""
    return tmp_path_factory.mktemp("ring")


def settings(*pairs):
    return [argument for pair in pairs for argument in ("--set", pair)]


@pytest.fixture
def fitted(program, folder, chain_files, thin_hub, cache):
    """(run folder, figures): the ring, fitted by the first test that asks."""
    run, (events, items), (preprocessor, encoder) = folder / "run", chain_files, thin_hub
    if not run.exists():
        hub = f"text.encoder={encoder}", f"text.preprocessor={preprocessor}"
        done = program("fit", "--events", events, "--items", items, "--out", run, "--json", *settings(*hub, *SMALL))
        assert done.code == 0, done.err
        (folder / "figures.json").write_text(done.out)
        (folder / "told").write_text(done.err)
    return SimpleNamespace(
        run=run, figures=json.loads((folder / "figures.json").read_text()), told=(folder / "told").read_text()
    )


@pytest.fixture
def exported(program, folder, fitted):
    """``saved_models/ring``."""
    target = folder / "saved_models" / "ring"
    if not target.exists():
        done = program("export", fitted.run, target)
        assert done.code == 0, done.err
        assert done.out.split() == [str(target / "1")]
    return target


def test_fit(fitted):
    results = fitted.figures["results"]
    assert results["hybrid"]["recall@10"] > 2 * results["popularity"]["recall@10"]
    assert json.loads((fitted.run / "metrics.json").read_text()) == fitted.figures
    assert "item-item weights, try 1: " in fitted.told and f"complete: {fitted.run}" in fitted.told


@pytest.mark.long
@pytest.mark.parametrize(
    "split",
    [
        ["split.kind=random", "split.test_share=0.25", "split.validation_share=0.25"],
        ["split.kind=fixed", "split.test_events=test.csv", "split.validation_share=0.25"],
    ],
    ids=["random", "file"],
)
def test_fit_on_other_splits(program, tmp_path, chain_files, thin_hub, cache, monkeypatch, split):
    (events, items), (preprocessor, encoder) = chain_files, thin_hub
    monkeypatch.chdir(tmp_path)
    header, *rows = events.read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join([header, *rows[:5], *rows[-5:]]))
    named = {"test.csv": rows[:5] + rows[-5:]}.get(split[1].partition("=")[2])
    queries = len({row.partition(",")[0] for row in named or rows})
    hub = f"text.encoder={encoder}", f"text.preprocessor={preprocessor}"
    asked = settings(*hub, *SMALL, *split)
    done = program("fit", "--events", events, "--items", items, "--out", "run", "--json", *asked)
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert (figures["split"]["kind"], figures["split"]["queries"]) == (split[0].partition("=")[2], queries)
    targets = figures["data"]["events"] / 4 if named is None else len(named)
    assert figures["split"]["targets"] == pytest.approx(targets, abs=1 if named is None else 0)
    # The run's own copy of the data knows the test events, and its config makes the same run.
    again = program("fit", "run/config.yaml", "--out", "again", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["results"] == figures["results"]


def test_fit_keeps_what_is_there(program, fitted, chain_files):
    done = program("fit", "--events", chain_files[0], "--out", fitted.run)
    assert done.code == 2 and "is not empty: name another folder" in done.err and done.out == ""
    assert program("fit", "--resume", fitted.run).code == 0  # complete already


def test_recommend(program, exported):
    past = ",".join(["nothing", *HISTORY])
    done = program("recommend", exported, "--history", past, "--k", "5", "--exclude", "i9", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    items = [item["item_id"] for item in told["items"]]
    assert items[0] == NEXT and len(set(items)) == 5 and not {"i9", *HISTORY} & set(items)
    assert told["unknown"] == ["nothing"]


def test_explain(program, exported, tmp_path):
    page = tmp_path / "why.html"
    done = program("explain", exported, "--history", ",".join(HISTORY), "--item", NEXT, "--json", "--html", page)
    assert done.code == 0, done.err
    (item,) = json.loads(done.out)["items"]
    assert item["item_id"] == NEXT and len(item["events"]) == len(HISTORY) and item["reason"]
    added = [*item["anyone"].values(), *(value for event in item["events"] for value in event["added"].values())]
    assert sum(added) + item["fields"] + item["popularity"] == pytest.approx(item["score"], abs=1e-4)
    assert [word["word"] for word in item["words"]] == item["text"].split() and item["title"] in page.read_text()


def test_recommend_from_a_folder_without_a_model(program, folder):
    done = program("recommend", folder / "nothing", "--history", "i1")
    assert done.code == 4 and done.err.startswith("error: ") and done.out == ""


def test_serve(program, exported):
    """A process of its own, asked over both protocols, until SIGTERM."""
    from tfllmrec.client.client import Client

    command = [sys.executable, "-m", "tfllmrec", "serve", str(exported.parent), "--rest-port", "0", "--grpc-port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            told = {}
            with killed_when_late(server):
                for line in server.stdout:
                    name, _, rest = line.strip().partition(" ")
                    told[name] = rest.strip()
                    if name == "model":
                        break
            assert told["model"] == "ring, version 1"
            rest, grpc = told["REST"].partition("/v1/")[0], f"grpc://{told['gRPC']}"
            for address in (rest, grpc):
                with Client(address, "ring", deadline_s=60) as client:
                    items = [item.item_id for item in client.recommend(HISTORY, k=5)]
                    reasons = [item.reason for item in client.recommend(HISTORY, k=5, reasons=True)]
                assert items[0] == NEXT and len(set(items)) == 5 and all(reasons)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0

"""A round of watching, with stand-ins for what takes minutes."""

import json
import re
import shutil
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.graph import ItemGraph
from tfllmrec.data.schema import Schema
from tfllmrec.durable import locked
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.regression import Verdict
from tfllmrec.feedback.event_log import EventLog, RequestRecord
from tfllmrec.runs.run import UPDATE, Run
from tfllmrec.runs.update import NothingNew
from tfllmrec.serving import gate, promotion, watch
from tfllmrec.serving.gate import NotPromoted, _exported
from tfllmrec.serving.promotion import read_promotions

pytestmark = pytest.mark.tf


@pytest.fixture
def shop(monkeypatch, tmp_path):
    """A run, a log with an event, and a model's folder; ``done`` is what was called."""
    shop = types.SimpleNamespace(
        run=tmp_path / "run",
        log=tmp_path / "log",
        model=tmp_path / "shop",
        done=[],
        gate=None,
        told=[],
        events=0,
        known={"run": 0},
    )

    def finished(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch()
        (folder / "metrics.json").touch()
        return types.SimpleNamespace(folder=folder)

    def event():
        shop.events += 1
        with EventLog(shop.log) as log:
            log.append([{"user_id": "u", "item_id": "i", "timestamp_s": 1.7e9 + shop.events}])

    def update_run(parent, log, items, *, out, tell):
        if shop.known[parent.name] == shop.events:
            raise NothingNew("nothing was updated")
        shop.done.append(("update", parent.name, out.name))
        shop.known[out.name] = shop.events
        return finished(out)

    def promote_run(run, model, *, canary=False, tell):
        shop.done.append(("promote", run.folder.name, canary))
        if shop.gate is not None:
            raise shop.gate
        number = str(1 + max((int(path.name) for path in model.glob("[0-9]*")), default=0))
        (model / number / "assets.extra").mkdir(parents=True)
        (model / number / "assets.extra" / "tfllmrec.json").write_text(json.dumps({"run": str(run.folder.resolve())}))
        return promotion.set_canary(model, int(number)), None

    monkeypatch.setattr(watch, "update_run", update_run)
    monkeypatch.setattr(watch, "promote_run", promote_run)

    def once(**options):
        shop.done.clear()
        options = {"every_s": 0, **options}
        state = watch.watch_once(shop.run, shop.log, shop.model, tell=shop.told.append, **options)
        return state.stable, state.canary

    shop.once, shop.event, shop.promote = once, event, promote_run
    finished(shop.run)
    event()
    return shop


def test_a_canary_is_promoted_a_round_later(shop):
    assert shop.once() == (1, 2)
    assert shop.done == [("promote", "run", False), ("update", "run", "1"), ("promote", "1", True)]
    assert shop.once() == (2, None) and shop.done == []
    assert shop.told[-1] == "nothing was updated"


def test_a_run_in_the_working_folder_is_updated_beside_it(shop, monkeypatch):
    monkeypatch.chdir(shop.run)
    run, shop.run = shop.run, Path()
    assert shop.once() == (1, 2)
    assert run.with_name("run-updates").is_dir()


def test_a_canary_is_served_for_the_time_between_rounds(shop, monkeypatch):
    """Also if a watch is stopped, and started again at once."""
    assert shop.once(every_s=600) == (1, 2)
    shop.event()
    assert shop.once(every_s=600) == (1, 2) and shop.done == []
    assert re.fullmatch(r"version 2 waits: it must be the canary for 600 s, so far \d+ s", shop.told[-1])
    later = time.time() + 600
    monkeypatch.setattr(watch, "time", types.SimpleNamespace(time=lambda: later))
    assert shop.once(every_s=600) == (2, 3)


def test_a_canary_that_a_person_set_is_left_to_the_person(shop):
    shop.once()
    shop.once()
    other = shop.run.with_name("other")
    shop.promote(types.SimpleNamespace(folder=other), shop.model, canary=True, tell=shop.told.append)
    shop.event()
    assert shop.once() == (2, 3) and shop.done == []
    assert shop.told[-1].startswith("version 3 was not made by this watch: 'tfllmrec promote ")
    (shop.model / "3" / "assets.extra" / "tfllmrec.json").write_text("{}")  # not even exported from a run
    assert shop.once() == (2, 3)
    promotion.promote(shop.model)
    (shop.model / "3" / "assets.extra" / "tfllmrec.json").write_text(json.dumps({"run": str(shop.run)}))
    assert shop.once() == (3, 4)


def test_a_canary_that_replaced_the_tried_one_is_not_promoted(shop, monkeypatch):
    shop.once()
    other = types.SimpleNamespace(folder=shop.run.with_name("other"))

    def made_here(*args):
        shop.promote(other, shop.model, canary=True, tell=shop.told.append)  # by a person, at this moment
        return True

    monkeypatch.setattr(watch, "_made_here", made_here)
    with pytest.raises(ModelError, match=r"stable: 1, canary: 2 then, stable: 1, canary: 3 now"):
        shop.once()
    assert read_promotions(shop.model).labels == {"stable": 1, "canary": 3}


def test_a_log_without_anything_new_is_read_once(shop):
    shop.known["run"] = shop.events
    assert shop.once() == shop.once() == shop.once() == (1, None)
    assert [line.partition(" of ")[0] for line in shop.told] == [
        "nothing was updated",
        *["no event came since the last update"] * 2,
    ]
    shop.event()
    assert shop.once() == (1, 2)


def test_an_alarm_rolls_back_and_nothing_else_is_done(shop):
    def alarms(log, model):
        assert (log, model) == (shop.log, shop.model)
        return ["the click rate fell"]

    shop.once()
    assert shop.once(alarms=alarms) == (1, None) and shop.done == []  # the canary is withdrawn
    assert "alarm: the click rate fell" in shop.told


def test_a_canary_waits_while_the_check_fails(shop):
    """As 'tfllmrec monitor' does with a log that is old: nobody has tried the canary."""

    def alarms(log, model):
        return watch.alarms_of_command("sh -c 'exit 3'")(log, model)

    shop.once()
    for _ in range(2):
        with pytest.raises(ModelError, match="found 3"):
            shop.once(alarms=alarms)
        state = read_promotions(shop.model)
        assert (state.stable, state.canary) == (1, 2) and shop.done == []
    assert shop.once() == (2, None)


def test_an_alarm_that_stays_takes_back_one_step(shop):
    def alarms(log, model):
        return ["the click rate fell"]

    for _ in range(3):
        shop.once()
        shop.event()
    for _ in range(3):  # the canary is withdrawn, and nothing more
        assert shop.once(alarms=alarms) == (3, None) and shop.done == []
    assert "the last step was taken back already: version 3 stays; look for another cause" in shop.told
    assert shop.once() == (3, 5)


def test_without_a_version_before_the_stable_one_stays(shop):
    shop.once()
    promotion.rollback(shop.model)  # the canary
    shop.event()
    assert shop.once() == (1, 3)
    state = read_promotions(shop.model)
    path = shop.model / promotion.PROMOTIONS
    path.write_text(state.model_copy(update={"canary": None}).model_dump_json())
    assert shop.once(alarms=lambda log, model: ["bad"]) == (1, None)
    assert "there is no version before 1: it stays" in shop.told


def test_an_update_that_failed_is_tried_again_when_events_came(shop):
    shop.once()
    shop.once(alarms=lambda log, model: ["withdrawn"])
    shop.gate = NotPromoted(Verdict(False, [], [], 0.02, "ndcg@10"), "the gate")
    shop.event()
    with pytest.raises(NotPromoted, match="the gate"):
        shop.once()
    assert shop.once() == (1, None) and shop.done == []
    shop.event()
    shop.gate = None
    assert shop.once() == (1, 3) and shop.done[0][0] == "update"


def test_a_round_that_is_killed_in_the_gate_is_done_again(shop):
    shop.once()
    shop.once(alarms=lambda log, model: ["withdrawn"])
    shop.event()
    shop.gate = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        shop.once()
    shop.gate = None
    assert shop.once() == (1, 3) and [step[0] for step in shop.done] == ["update", "promote"]


def test_an_update_that_goes_on_may_lack_the_newest_events(shop):
    shop.once()
    shop.once(alarms=lambda log, model: ["withdrawn"])
    begun = Path(f"{shop.run}-updates") / "2"
    begun.mkdir()
    (begun / UPDATE).write_text(
        json.dumps({"parent": str(shop.run.resolve()), "new_events": 1, "new_items": 0, "new_users": 0})
    )
    shop.gate = NotPromoted(Verdict(False, [], [], 0.02, "ndcg@10"), "the gate")
    shop.event()
    for number in ("2", "3"):
        with pytest.raises(NotPromoted):
            shop.once()
        assert shop.done[0] == ("update", "run", number)
    assert shop.once() == (1, None) and shop.done == []


def test_a_version_that_was_not_exported_from_a_run_is_an_error(shop):
    shop.once()
    promotion.promote(shop.model)
    manifest = shop.model / "2" / "assets.extra" / "tfllmrec.json"
    manifest.write_text("{}")
    with pytest.raises(ModelError, match="was not exported from a run"):
        shop.once()
    watch._prune(shop.model, Path(f"{shop.run}-updates"), 1, shop.told.append)


def test_nothing_is_deleted_during_a_promotion(shop):
    shop.once()
    with locked(shop.model):
        watch._prune(shop.model, Path(f"{shop.run}-updates"), 1, shop.told.append)
    assert shop.told[-1].startswith("nothing is deleted in this round")


def test_the_run_of_a_version_that_was_rolled_back_is_exported_again(shop):
    """And that of the version which became stable again is not."""
    shop.once()
    shop.once()
    promotion.rollback(shop.model)
    runs = {}
    for number in ("1", "2"):
        manifest = shop.model / number / "assets.extra" / "tfllmrec.json"
        folder = Path(json.loads(manifest.read_text())["run"])
        manifest.write_text(json.dumps({"run": str(folder), "data_sha256": "ab"}))
        runs[number] = types.SimpleNamespace(folder=folder, record={"data_sha256": "ab"}, graph=None)
    assert _exported(runs["1"], shop.model) == 1
    assert _exported(runs["2"], shop.model) is None


def test_a_run_whose_graph_is_new_is_exported_again(shop):
    shop.once()
    manifest, graph = shop.model / "1" / "assets.extra" / "tfllmrec.json", ItemGraph(2, ())
    run = types.SimpleNamespace(folder=shop.run, record={"data_sha256": "ab"})

    def exported(of_version, of_run):
        manifest.write_text(json.dumps({"run": str(shop.run), "data_sha256": "ab", "graph_sha256": of_version}))
        run.graph = of_run
        return _exported(run, shop.model)

    assert exported(None, None) == exported(graph.fingerprint, graph) == 1
    assert exported(None, graph) is exported(graph.fingerprint, ItemGraph(3, ())) is None


def test_the_gate_needs_the_run_that_the_version_was_exported_from(shop, monkeypatch):
    shop.once()
    version = shop.model / "1"
    manifest = version / "assets.extra" / "tfllmrec.json"
    manifest.write_text(json.dumps({"run": str(shop.run), "data_sha256": "ab"}))
    changed = types.SimpleNamespace(folder=shop.run, record={"data_sha256": "cd"})
    monkeypatch.setattr(gate.Run, "open", lambda folder: changed)
    with pytest.raises(ModelError, match="has other data than when"):
        gate.compare_with_version(changed, version)


def test_a_run_is_not_promoted_over_a_version_that_became_stable_during_the_gate(shop, monkeypatch):
    shop.once()

    def compare(run, version, tell):
        assert version.name == "1"
        promotion.promote(shop.model)  # version 2, by someone else
        return types.SimpleNamespace(passed=True)

    def export(run, model, tell):
        (model / "3" / "assets.extra").mkdir(parents=True)
        return model / "3"

    monkeypatch.setattr(gate, "compare_with_version", compare)
    monkeypatch.setattr(gate, "export", export)
    other = types.SimpleNamespace(folder=shop.run.with_name("other"), record={"data_sha256": "ab"})
    with pytest.raises(ModelError, match=r"canary: 2 then, stable: 2, canary: none now\. Promote the run again"):
        gate.promote_run(other, shop.model, tell=shop.told.append)
    assert read_promotions(shop.model).labels == {"stable": 2}


def shop_split(lists, schema=None, **columns):
    """The split of users ``a``, ``b``, ... with these items; event number n of the whole log happens at n seconds."""
    rows = [("abc"[user], item) for user, row in enumerate(lists) for item in row]
    events = pd.DataFrame(rows, columns=["user", "item"]).assign(time=range(len(rows)), **columns)
    dataset = dataset_from_frames(events, config=DataConfig(repeats="all"))
    return make_split(dataset, SplitConfig(kind="leave_last_out"), seed=0, schema=schema)


def test_a_version_that_reads_a_column_that_the_run_lacks_gets_no_values(monkeypatch):
    read = shop_split(["xyz", "xyz"], device=[*"pqpqpq"], session=[f"s-{n}" for n in range(6)]).schema
    own = shop_split(["xyz", "xyz"])
    run = types.SimpleNamespace(split=own, split_by=lambda schema: shop_split(["xyz", "xyz"], schema))
    assert gate._split_by(run, own.schema) is own
    test = gate._split_by(run, read).test
    assert test.user_ids.tolist() == ["a", "b"] and test.fields["request.device"].tolist() == [0, 0]


def grown(used_text=(1.0,), encoder="e5", graph=None):
    """Stand-ins for a run with a new item and the run of a version: (run, its items, the version's run)."""
    items = pd.DataFrame({"item_id": [*"xyz"]})
    run = types.SimpleNamespace(text=np.ones((3, 1)), encoder_fingerprint="e5")
    used = types.SimpleNamespace(split=types.SimpleNamespace(items=items[:2], schema=Schema()), text_widths=None)
    used.text, used.encoder_fingerprint, used.exported_histories = np.array([used_text] * 2), encoder, "histories"
    used.training_data = types.SimpleNamespace(graph=graph)
    used.load_model = lambda: types.SimpleNamespace(config=None, extend=lambda catalogue, *rest: catalogue)
    return run, items, used


def test_new_items_are_added_with_the_graph_that_the_model_was_fitted_with():
    graph = ItemGraph(2, ())
    catalogue = gate._with_new_items(*grown(graph=graph), print)
    assert catalogue.item_ids.tolist() == [*"xyz"] and catalogue.graph.n_items == 3
    assert gate._with_new_items(*grown(), print).graph is None  # whatever 'tfllmrec graph' made since


def test_new_items_are_not_added_if_the_version_cannot_read_their_texts():
    assert gate._with_new_items(*grown(used_text=(0.0,)), print) is None
    assert gate._with_new_items(*grown(encoder="minilm"), print) is None


@pytest.mark.parametrize("repeats", [True, False])
def test_of_repeated_events_those_are_left_out_that_the_version_was_trained_on(repeats):
    """The test events of the users a, b and c are their last ones; items that they had before may come again."""
    split = shop_split(["xyzx", "xyxx", "xyzw"])
    run = types.SimpleNamespace(split=split, dataset=replace(split.dataset, repeats=repeats))

    def left_out(events):
        used = types.SimpleNamespace(split=types.SimpleNamespace(train=events), dataset=split.dataset, is_refit=False)
        return gate._trained_on(run, used, split.test).tolist()

    events = split.dataset.events
    assert left_out(split.train) == ([False] * 3 if repeats else [True, True, False])
    assert left_out(events[events["user_id"] != "b"]) == [True, False, True]
    assert left_out(events) == [True] * 3


def test_a_stable_version_whose_folder_is_gone_is_named(shop):
    shop.once()
    (shop.model / "1").rename(shop.model.parent / "away")
    run = types.SimpleNamespace(folder=shop.run.with_name("other"), record={"data_sha256": "ab"})
    with pytest.raises(ModelError, match="shop has no version 1: copy its folder back, or promote another one"):
        gate.promote_run(run, shop.model, tell=shop.told.append)
    promotion.rollback(shop.model)
    with pytest.raises(ModelError, match="shop has no version 1: copy its folder back"):
        shop.once()


@pytest.mark.parametrize("update", [None, "of a parent"])
def test_an_update_keeps_the_items_of_the_version_in_use(update):
    run = types.SimpleNamespace(folder="run", update=update)
    run.split = types.SimpleNamespace(items=pd.DataFrame({"item_id": ["i1", "i2"]}))
    passed, told = Verdict(True, [], [], 0.02, "ndcg@10"), []
    assert gate._without_lost_items(passed, run, "shop/2", pd.Index(["i2", "i1"]), told.append) == passed and told == []
    verdict = gate._without_lost_items(passed, run, "shop/2", pd.Index(["i1", "n1"]), told.append)
    if update is None:  # a fit has the catalogue that it was given
        assert verdict == passed
        assert told == ["gate: 1 items of shop/2 are not in run (such as 'n1') and will no longer be served"]
    else:
        assert not verdict.passed and told == []
        assert verdict.reasons[0].startswith("1 items of shop/2 are not in run (such as 'n1'): update the run of the")


def test_old_versions_and_runs_go_and_those_in_use_stay(shop):
    for _ in range(7):
        shop.event()
        shop.once(keep=1)
    state = read_promotions(shop.model)
    left = sorted(int(path.name) for path in shop.model.glob("[0-9]*"))
    assert {state.stable, state.canary, state.before[-1]} <= set(left) and len(left) < 6
    runs = {path.name for path in Path(f"{shop.run}-updates").iterdir() if path.name.isdigit()}
    assert len(runs) < 6 and shop.run.is_dir()
    for folder in (shop.model, Path(f"{shop.run}-updates")):
        assert not list(folder.glob(".*-*")) and not list(folder.glob(".*.tmp"))
    killed = shop.model / f".writing-{'0f' * 16}"  # by a round that was killed while it deleted version 1
    (killed / "1").mkdir(parents=True)
    shop.event()
    shop.once(keep=1)
    assert not killed.exists()


def test_exit_code_5_of_a_command_is_an_alarm(tmp_path):
    assert watch.alarms_of_command("true")(tmp_path, tmp_path) == []
    found = watch.alarms_of_command("sh -c 'echo too many unknown items; exit 5'")(tmp_path, tmp_path)
    assert found == ["too many unknown items"]


def test_a_check_that_does_not_end_is_no_alarm(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "ALARM_TIMEOUT_S", 0.05)
    with pytest.raises(ModelError, match=r"did not end within 0\.05 s"):
        watch.alarms_of_command("sleep 5")(tmp_path, tmp_path)


def test_an_old_log_is_no_alarm_about_the_model(tmp_path):
    with EventLog(tmp_path / "log") as log:
        log.write([], [], [RequestRecord("r", 1e9, "u", "m", 1, "recommend", 0, 3)])
    alarms = watch.alarms_of_command(f"{sys.executable} -m tfllmrec monitor {tmp_path / 'log'}")
    with pytest.raises(ModelError, match=r"found 3\. Nothing is promoted or rolled back .* the log is old"):
        alarms(tmp_path / "log", tmp_path)


@pytest.mark.parametrize("command", ["sh -c 'echo no lists; exit 3'", "no-such-program"])
def test_a_check_that_fails_is_no_alarm(tmp_path, command):
    with pytest.raises(ModelError, match="--alarm"):
        watch.alarms_of_command(command)(tmp_path, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_a_log_is_watched_from_events_to_a_rollback(chain_run, chain_version, newer_tables, tmp_path):
    """Nothing stands in for anything: a real log, update, gate and export."""
    run, model = tmp_path / "chain", tmp_path / "saved_models" / "chain"
    shutil.copytree(chain_run[0].folder, run)
    shutil.copytree(chain_version.parent, model)
    promotion.set_canary(model, 1)
    newer, newer_items = newer_tables
    events = pd.read_csv(newer).rename(columns={"user": "user_id", "item": "item_id", "timestamp": "timestamp_s"})
    told = []

    def once(**options):
        options |= {"items": newer_items, "every_s": 0}
        state = watch.watch_once(run, tmp_path / "log", model, tell=told.append, **options)
        return state.stable, state.canary

    with EventLog(tmp_path / "log") as log:
        receipt = log.append(events.to_dict("records"))
    assert receipt.accepted == len(events) - 1 and not receipt.refused  # one is there twice
    assert once() == (1, 2)
    made = Path(f"{run}-updates") / "1"
    manifest = json.loads((model / "2" / "assets.extra" / "tfllmrec.json").read_text())
    assert manifest["run"] == str(made.resolve()) and Run.open(made).update.parent == str(chain_run[0].folder.resolve())
    assert {"i40", "i41", "i42"} <= set(pd.read_parquet(model / "2" / "assets.extra" / "items.parquet")["item_id"])
    assert once() == (2, None)  # the canary is promoted, and nothing came since
    assert any(str(made) in line and "no" in line for line in told[-1:]), told[-5:]
    assert once(alarms=lambda log, model: ["the click rate fell"]) == (1, None)
    assert (model / "2" / "saved_model.pb").is_file() and Run.open(made).complete

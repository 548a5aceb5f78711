"""``tfllmrec update``, ``promote``, ``rollback`` and ``watch``."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tfllmrec.errors import TfllmrecError
from tfllmrec.evaluation.regression import Compared, Verdict
from tfllmrec.serving.promotion import Promotions, Step, read_promotions

STRATA = [
    Compared("all", 200, 0.1, 0.12, -0.001, 0.04, 0.11),
    Compared("tail", 120, 0.1, 0.05, -0.09, -0.01, 0.1),
]
METRICS = {"results": {}}


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the commands called; ``verdict`` is that of the gate."""
    made = types.SimpleNamespace(calls=[], verdict=Verdict(True, [], STRATA[:1], 0.02, "ndcg@10"))

    class NotPromoted(TfllmrecError):
        exit_code = 5

        def __init__(self, verdict, *lines):
            super().__init__(*lines)
            self.verdict = verdict

    class Made:
        def __init__(self, folder):
            self.folder, self.metrics = folder, METRICS
            self.record = {"parent": {"folder": "run", "data_sha256": "ab"}}

        open = classmethod(lambda cls, folder: cls(folder))

    def update_run(run, events, items, users, out, *, overrides):
        print("chatter of a library")
        made.calls.append(("update", run.name, events.name, items, users, out, list(overrides)))
        return Made(out or tmp_path / "run-2")

    def promote_run(run, model, *, canary, base_path):
        print("chatter of a library")
        made.calls.append(("promote", run.folder.name, model.name, canary, base_path))
        if not made.verdict.passed:
            raise NotPromoted(made.verdict, "it does not pass the gate")
        step = Step(time="2026-01-01T00:00:00+00:00", action="promote", version=2, stable_before=1)
        return Promotions(stable=2, served=[1, 2], before=[1], history=[step]), made.verdict

    for name, content in {
        "tfllmrec.runs.update": {"update_run": update_run},
        "tfllmrec.runs.run": {"Run": Made},
        "tfllmrec.serving.gate": {"promote_run": promote_run, "NotPromoted": NotPromoted},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("tfllmrec.cli.update.print_metrics", lambda metrics: print("scoreboard"))
    (tmp_path / "run").mkdir()
    (tmp_path / "june.csv").touch()
    return made


def test_an_update_alone(program, calls, tmp_path):
    answer = program("update", tmp_path / "run", "--events", tmp_path / "june.csv", "--set", "update.epochs=5")
    assert answer.code == 0 and answer.out == "scoreboard\n"
    assert calls.calls == [("update", "run", "june.csv", None, None, None, ["update.epochs=5"])]
    assert f"next: tfllmrec promote saved_models/NAME {tmp_path / 'run-2'}" in answer.err
    answer = program("update", tmp_path / "run", "--events", tmp_path / "june.csv", "--canary")
    assert answer.code == 2 and "go with --promote" in answer.err


@pytest.mark.parametrize("role", ["--events", "--items", "--users"])
def test_missing_data_exits_3_before_anything_is_loaded(program, calls, tmp_path, role):
    (tmp_path / "none").mkdir()
    files = {"--events": tmp_path / "june.csv", role: tmp_path / "none" / "none.csv"}
    answer = program("update", tmp_path / "run", *(word for pair in files.items() for word in pair))
    assert answer.code == 3 and f"none.csv does not exist. {tmp_path / 'none'} holds: nothing" in answer.err
    assert calls.calls == []
    watched = program("watch", tmp_path / "run", "--log", tmp_path / "none" / "log", "--model", tmp_path / "shop")
    assert watched.code == 3
    assert program("update", tmp_path / "none" / "run", "--events", tmp_path / "june.csv").code == 4


def test_an_update_that_is_promoted(program, calls, tmp_path):
    command = ["update", tmp_path / "run", "--events", tmp_path / "june.csv", "--promote", tmp_path / "shop"]
    answer = program(*command, "--base-path", "/models/shop")
    assert answer.code == 0 and calls.calls[1] == ("promote", "run-2", "shop", False, "/models/shop")
    row = next(line.split() for line in answer.out.splitlines() if line.split()[:1] == ["all"])
    assert row == ["all", "200", "0.1000", "0.1100", "0.1200", "+0.0200", "[-0.0010,", "+0.0400]"]
    assert answer.out.endswith(f"gate: passed\nstable: {tmp_path / 'shop'}/2\n")
    told = json.loads(program(*command, "--json").out)
    assert told["labels"] == {"stable": 2} and told["gate"]["passed"] and told["parent"]["folder"] == "run"


def test_a_run_that_does_not_pass_ends_with_5(program, calls, tmp_path):
    calls.verdict = Verdict(False, ["tail: worse beyond chance"], STRATA, 0.02, "ndcg@10")
    for command in (
        ["update", tmp_path / "run", "--events", tmp_path / "june.csv", "--promote", tmp_path / "shop"],
        ["promote", tmp_path / "shop", tmp_path / "run"],
    ):
        answer = program(*command)
        assert answer.code == 5 and "gate: not passed" in answer.out and "does not pass the gate" in answer.err
        assert next(line for line in answer.out.splitlines() if "tail" in line).split()[-1] == "worse"
        assert json.loads(program(*command, "--json").out)["gate"]["reasons"] == ["tail: worse beyond chance"]


def test_versions_are_promoted_and_rolled_back(program, tmp_path):
    model = tmp_path / "shop"
    answer = program("rollback", model)
    assert answer.code == 4 and "has no versions" in answer.err
    for number in ("1", "2"):
        (model / number).mkdir(parents=True)
    assert program("promote", model, "--version", 1).out == f"stable: {model}/1\n"
    answer = program("promote", model, "--version", 2, "--canary")
    assert answer.out == f"stable: {model}/1\ncanary: {model}/2\n"
    assert f"next: tfllmrec promote {model}, or tfllmrec rollback {model}" in answer.err
    assert json.loads(program("promote", model, "--json").out)["labels"] == {"stable": 2}
    told = json.loads(program("rollback", model, "--json").out)
    assert told["labels"] == {"stable": 1} and told["step"]["action"] == "rollback" and told["gate"] is None
    assert program("rollback", model).code == 4
    assert read_promotions(model).stable == 1
    assert program("promote", model, tmp_path, "--version", 1).code == 2


def test_a_canary_of_a_folder_without_labels_is_no_more_than_that(program, tmp_path):
    model = tmp_path / "shop"
    for number in ("1", "2", "3"):
        (model / number).mkdir(parents=True)
    answer = program("promote", model, "--version", 1, "--canary")
    assert answer.out == f"stable: {model}/3\ncanary: {model}/1\n" and "gate" not in answer.err


def test_a_folder_in_use_ends_the_first_round_only(program, monkeypatch, tmp_path):
    codes = [0, 2, 130]
    monkeypatch.setattr(subprocess, "run", lambda *args, **given: types.SimpleNamespace(returncode=codes.pop(0)))
    monkeypatch.setattr("tfllmrec.cli.watch.time", types.SimpleNamespace(sleep=lambda seconds: None))
    for name in ("log", "run"):
        (tmp_path / name).mkdir()
    command = ["watch", tmp_path / "run", "--log", tmp_path / "log", "--model", tmp_path / "shop"]
    assert program(*command).code == 130 and not codes
    codes[:] = [2]
    assert program(*command).code == 2 and not codes


@pytest.mark.parametrize("alarm", ["monitor 'log", " "])
def test_an_alarm_that_is_no_command_is_refused(program, tmp_path, alarm):
    command = ["watch", tmp_path, "--log", tmp_path, "--model", tmp_path / "shop", "--alarm", alarm]
    answer = program(*command, "--once")
    assert answer.code == 2 and "--alarm" in answer.err


def test_each_watched_round_prints_a_line_of_json_also_if_its_update_is_not_promoted(
    program, calls, monkeypatch, tmp_path
):
    def fails(*args, **given):
        verdict = Verdict(False, ["tail: worse beyond chance"], STRATA, 0.02, "ndcg@10")
        raise sys.modules["tfllmrec.serving.gate"].NotPromoted(verdict, "it does not pass the gate")

    made = types.SimpleNamespace(labels={"stable": 1}, history=[])
    watch = types.SimpleNamespace(watch_once=lambda *args, **given: made, alarms_of_command=None)
    monkeypatch.setitem(sys.modules, "tfllmrec.serving.watch", watch)
    (tmp_path / "log").mkdir()
    command = ["watch", tmp_path / "run", "--log", tmp_path / "log", "--model", tmp_path / "shop", "--once", "--json"]
    (line,) = program(*command).out.splitlines()
    assert json.loads(line) == {"labels": {"stable": 1}, "step": None}
    watch.watch_once = fails
    answer = program(*command)
    (line,) = answer.out.splitlines()
    assert answer.code == 5 and json.loads(line)["gate"]["reasons"] == ["tail: worse beyond chance"]


def test_watching_does_a_round_after_the_other(program, monkeypatch, tmp_path):
    codes, rounds, slept = [0, 5, 130], [], []

    def run(command, check):
        rounds.append(command)
        return types.SimpleNamespace(returncode=codes[len(rounds) - 1])

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("tfllmrec.cli.watch.time", types.SimpleNamespace(sleep=slept.append))
    log, run_folder = tmp_path / "log", tmp_path / "run"
    log.mkdir()
    run_folder.mkdir()
    command = ["watch", run_folder, "--log", log, "--model", tmp_path / "shop"]
    answer = program(*command, "--every", "90s", "--alarm", "monitor log")
    assert answer.code == 130 and slept == [90, 90]
    assert "this round ended with exit code 5" in answer.err
    assert rounds[0][1:] == [
        *("-m", "tfllmrec", "watch", str(run_folder), "--log", str(log), "--model", str(tmp_path / "shop"), "--once"),
        *("--every", "90s", "--keep", "5", "--alarm", "monitor log"),
    ]
    answer = program(*command, "--every", "ten")
    assert answer.code == 2 and "expected a period such as 90s" in answer.err
    assert Path(rounds[0][0]) == Path(sys.executable)

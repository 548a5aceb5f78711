"""The experiment commands as they run, without stand-ins."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from html_pages import check, told

from tfllmrec.feedback.assignment import Experiment

ARMS = ["--name", "e", "--arm", "control=0.5", "--arm", "new=0.5"]
IDS = [f"u{n}" for n in range(600)]
IN_ARM = Experiment("e", {"control": 0.5, "new": 0.5}).assign_all(IDS)


@pytest.fixture
def files(tmp_path):
    """A log with twice as many clicks in the new arm, and outcomes."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(600), 5)
    arm = IN_ARM[users]
    clicked = rng.random(3000) < np.where(arm == "new", 0.4, 0.2)
    log = pd.DataFrame({"user_id": np.array(IDS)[users], "arm": arm, "experiment": "e", "reward": clicked.astype(int)})
    log.to_parquet(tmp_path / "log.parquet")
    before = rng.normal(10, 3, 600)
    outcomes = pd.DataFrame({"user_id": IDS, "minutes": before + rng.normal(size=600), "before": before})
    outcomes.to_csv(tmp_path / "outcomes.csv", index=False)
    return tmp_path


def test_users_are_assigned_one_by_one_or_from_a_file(program, tmp_path):
    assert program("experiment", "assign", *ARMS, "--user", "u1", "--user", "u2").out.splitlines() == [
        f"u1: {IN_ARM[1]}", f"u2: {IN_ARM[2]}",
    ]  # fmt: skip
    told = json.loads(program("experiment", "assign", *ARMS, "--user", "u3", "--json").out)
    assert told == {
        "experiment": "e",
        "shares": {"control": 0.5, "new": 0.5},
        "assignments": [{"user_id": "u3", "arm": IN_ARM[3]}],
    }
    (tmp_path / "users.csv").write_text("user_id\n" + "\n".join(IDS))
    readers = {".csv": pd.read_csv, ".jsonl": partial(pd.read_json, lines=True), ".parquet": pd.read_parquet}
    for suffix, read in readers.items():
        out = tmp_path / f"arms{suffix}"
        answer = program("experiment", "assign", *ARMS, "--users", tmp_path / "users.csv", "--out", out)
        assert answer.code == 0 and f"new: {(IN_ARM == 'new').sum()} users" in answer.out
        assert read(out).values.tolist() == [[user, "e", arm] for user, arm in zip(IDS, IN_ARM, strict=True)]
    salted = program(
        "experiment", "assign", *ARMS, "--salt", "2", "--users", tmp_path / "users.csv", "--out", out, "--json"
    )
    assert sum(json.loads(salted.out)["users"].values()) == 600
    assert pd.read_parquet(out)["arm"].tolist() != IN_ARM.tolist()


def test_an_experiment_is_analyzed_as_a_table_as_json_and_as_a_page(program, files):
    asked = [
        "experiment", "analyze", files / "log.parquet", *ARMS, "--outcomes", files / "outcomes.csv",
        "--metric", "reward/exposures", "--metric", "minutes", "--covariate", "minutes=before",
    ]  # fmt: skip
    answer = program(*asked, "--html", files / "page.html")
    assert answer.code == 0, answer.err
    rows = [line.split() for line in answer.out.splitlines()]
    assert [row[-1] for row in rows if row[:2] == ["reward/exposures", "new"]] == ["yes"]
    assert "simultaneous 95 % intervals, valid at every look" in answer.out and "page.html" in answer.err
    found = json.loads(program(*asked, "--json", "--looks", "one").out)
    clicks, minutes = found["comparisons"]
    assert found["looks"] == "one" and not found["sample_ratio"]["alarm"] and found["alarms"] == []
    assert 0.1 < clicks["low"] < clicks["difference"] < clicks["high"] < 0.3 and clicks["significant"]
    assert minutes["variance_removed"] > 0.8 and not minutes["significant"]
    words = told(check(files / "page.html"))
    assert (
        "Experiment e" in words
        and "Significant differences to control: new +0.1" in words
        and "reward/exposures" in words
    )


def test_users_who_are_not_in_the_experiment_yet_are_ignored(program, files):
    log = pd.read_parquet(files / "log.parquet")
    pd.concat([log, log.assign(arm="rest", reward=0), log.assign(arm=None)]).to_parquet(files / "log.parquet")
    answer = program("experiment", "analyze", files / "log.parquet", *ARMS)
    assert answer.code == 3 and "--ignore-arm" in answer.err
    answer = program("experiment", "analyze", files / "log.parquet", *ARMS, "--ignore-arm", "rest")
    assert answer.code == 0 and "several arms" not in answer.out
    assert answer.out.splitlines()[-2:] == [
        "exposures without an arm, left out: 3,000", "exposures of ignored arms, left out: 3,000",
    ]  # fmt: skip


def test_a_wrong_sample_ratio_exits_with_5(program, files):
    answer = program("experiment", "analyze", files / "log.parquet", *ARMS[:-1], "new=0.2")
    assert answer.code == 5 and "alarm: The numbers of users do not fit the shares" in answer.out
    page = files / "page.html"
    program("experiment", "analyze", files / "log.parquet", *ARMS[:-1], "new=0.2", "--html", page, "--alpha", "0.1")
    assert "Alarm: The numbers of users" in told(check(page)) and "90 % interval" in page.read_text()
    log = pd.read_parquet(files / "log.parquet")
    log[log["arm"] == "control"].to_parquet(files / "log.parquet")
    answer = program("experiment", "analyze", files / "log.parquet", *ARMS)
    assert answer.code == 5 and "new 0 (expected " in answer.out and "Differences" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["assign", *ARMS], "expected --user ID, or else --users FILE"),
        (["assign", *ARMS, "--users", "x.csv"], "go together"),
        (["assign", *ARMS, "--users", "x.csv", "--out", "x.txt"], "ends in .csv"),
        (["assign", "--name", "e", "--arm", "a", "--user", "1"], "expected NAME=SHARE"),
        (["assign", "--name", "e", "--arm", "a=1", "--arm", "a=2", "--user", "1"], "each arm once"),
        (["assign", "--name", "e", "--arm", "a=1", "--user", "1"], "two or more arms"),
        (["analyze", "log.csv", *ARMS, "--covariate", "x"], "expected METRIC=COLUMN"),
        (["analyze", "log.csv", *ARMS, "--covariate", "x=y"], "expected one of the metrics reward/exposures"),
    ],
)
def test_wrong_usage_exits_2(program, arguments, message):
    answer = program("experiment", *arguments)
    assert answer.code == 2 and message in " ".join(answer.err.replace("│", " ").split())


def test_a_missing_log_exits_3(program, tmp_path):
    assert program("experiment", "analyze", tmp_path / "log.csv", *ARMS).code == 3

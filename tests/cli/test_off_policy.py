"""The off-policy command as it runs, without stand-ins."""

import json

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def files(tmp_path):
    """Two items at two positions, shown by a coin; item a is clicked twice as often."""
    rng = np.random.default_rng(1)
    item = rng.integers(0, 2, 2000)
    log = pd.DataFrame(
        {
            "item_id": np.array(["a", "b"])[item],
            "position": np.arange(2000) % 2,
            "propensity": 0.5,
            "reward": (rng.random(2000) < np.where(item == 0, 0.4, 0.2)).astype(int),
            "other": np.where(item == 0, 0.9, 0.1),
        }
    )
    log.to_csv(tmp_path / "log.csv", index=False)
    pd.DataFrame({"item_id": ["a", "b"], "probability": [0.9, 0.1]}).to_json(
        tmp_path / "policy.jsonl", orient="records", lines=True
    )
    return tmp_path


def test_estimates_are_printed_and_told(program, files):
    asked = ["off-policy", files / "log.csv", "--target", files / "policy.jsonl"]
    printed = program(*asked)
    assert printed.code == 0, printed.err
    assert [line.split()[0] for line in printed.out.splitlines() if "[0." in line] == ["all", "0", "1"]
    found = json.loads(program(*asked, "--json").out)
    for name in ("ips", "snips", "dr"):
        each = found["estimates"][name]
        assert each["low"] < 0.9 * 0.4 + 0.1 * 0.2 < each["high"]
    assert set(found["by_position"]) == {"0", "1"} and found["warnings"] == []
    by_column = json.loads(program("off-policy", files / "log.csv", "--target-column", "other", "--json").out)
    assert set(by_column["estimates"]) == {"ips", "snips"}
    assert by_column["estimates"]["snips"] == found["estimates"]["snips"]


def test_items_that_the_log_never_shows_are_a_warning(program, files):
    pd.DataFrame({"item_id": ["a", "c"], "probability": [0.9, 0.1]}).to_csv(files / "policy.csv", index=False)
    answer = program("off-policy", files / "log.csv", "--target", files / "policy.csv")
    assert "warning: 2 pairs of item and position that the target policy chooses, with 10.00%" in answer.out


def test_a_log_without_propensities_exits_3(program, files):
    log = pd.read_csv(files / "log.csv")
    log.drop(columns="propensity").to_csv(files / "bare.csv", index=False)
    answer = program("off-policy", files / "bare.csv", "--target", files / "policy.jsonl")
    assert answer.code == 3 and answer.out == "" and "Expected a column 'propensity'" in answer.err
    log.assign(propensity=0.0).to_csv(files / "zero.csv", index=False)
    assert "above 0 and at most 1; found 0 in row 1" in program(
        "off-policy", files / "zero.csv", "--target-column", "other"
    ).err  # fmt: skip


def test_one_target_is_expected(program, files):
    assert program("off-policy", files / "log.csv").code == 2
    both = ["--target", files / "policy.jsonl", "--target-column", "other"]
    assert program("off-policy", files / "log.csv", *both).code == 2
    assert program("off-policy", files / "log.csv", "--target-column", "nope").code == 3

"""Estimates of another policy: by hand, unbiased, covering, and refused where the log cannot tell."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.off_policy import PRIOR_EXPOSURES, ExposureLog, estimate, fitted_rewards, policy_table

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

BANDIT = Path(__file__).parents[3] / "shared" / "data" / "open-bandit"
LOG = pd.DataFrame(
    {
        "request_id": ["r1", "r1", "r2", "r3"],
        "item_id": ["a", "b", "a", "b"],
        "position": [0, 1, 0, 0],
        "propensity": [0.5, 0.25, 0.5, 0.5],
        "reward": [1.0, 0.0, 0.0, 1.0],
    }
)


def planted(rng, rows, target):
    """A log of a random policy over three items, whose click rates are .1, .3 and .5, and the target of each row."""
    item = rng.choice(3, rows, p=[0.5, 0.3, 0.2])
    frame = pd.DataFrame(
        {
            "item_id": [f"i{one}" for one in item],
            "propensity": np.array([0.5, 0.3, 0.2])[item],
            "reward": (rng.random(rows) < np.array([0.1, 0.3, 0.5])[item]).astype(float),
        }
    )
    return ExposureLog.from_frame(frame), np.tile(target, (rows, 1))


def test_estimates_by_hand():
    target = pd.DataFrame({"item_id": ["a", "b"], "probability": [0.75, 0.25]})
    log = ExposureLog.from_frame(LOG)
    predictions = np.array([[0.5, 0.25]] * 4)
    found = estimate(log, policy_table(log, target), predictions)
    weights = [0.75 / 0.5, 0.25 / 0.25, 0.75 / 0.5, 0.25 / 0.5]
    assert found.estimates["ips"].value == pytest.approx((weights[0] + weights[3]) / 4)
    assert found.estimates["snips"].value == pytest.approx((weights[0] + weights[3]) / sum(weights))
    expected = 0.75 * 0.5 + 0.25 * 0.25
    left = weights[0] * 0.5 - weights[1] * 0.25 - weights[2] * 0.5 + weights[3] * 0.75
    assert found.estimates["dr"].value == pytest.approx(expected + left / 4)
    assert found.effective == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    assert (found.exposures, found.requests, found.logged.value) == (4, 3, 0.5)
    assert found.mean_weight == pytest.approx(4.5 / 4) and found.largest_weight == 1.5
    first = found.by_position["0"]
    assert first.estimates["snips"].value == pytest.approx((1.5 + 0.5) / (1.5 + 1.5 + 0.5)) and first.exposures == 3
    assert found.by_position["1"].estimates["ips"].value == 0.0 and set(found.by_position) == {"0", "1"}
    plain = estimate(log, np.array([0.75, 0.25, 0.75, 0.25]))
    assert set(plain.estimates) == {"ips", "snips"} and plain.estimates["ips"] == found.estimates["ips"]


def test_estimates_are_near_the_truth_and_intervals_cover_it():
    target = np.array([0.2, 0.2, 0.6])
    truth = 0.2 * 0.1 + 0.2 * 0.3 + 0.6 * 0.5
    rng = np.random.default_rng(0)
    found = [estimate(*planted(rng, 400, target)).estimates for _ in range(200)]
    for name in ("ips", "snips", "dr"):
        values = np.array([each[name].value for each in found])
        assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(200))
        assert 0.9 <= np.mean([each[name].low <= truth <= each[name].high for each in found]) <= 0.99
        # The mean reward of the log is that of another policy.
        assert np.mean([each[name].low > 0.25 for each in found]) > 0.5
    spread = {name: np.std([each[name].value for each in found]) for name in found[0]}
    assert max(spread["snips"], spread["dr"]) < spread["ips"]


def test_the_logging_policy_itself_has_the_logs_mean():
    log, target = planted(np.random.default_rng(1), 300, [0.5, 0.3, 0.2])
    found = estimate(log, target)
    for name in ("ips", "snips"):
        assert found.estimates[name] == pytest.approx(found.logged)
    assert found.effective == pytest.approx(300) and not found.warnings


def test_rows_of_one_request_count_once():
    """Each row twice tells no more than once, if both are of one request; as requests of their own they would."""
    log, target = planted(np.random.default_rng(2), 300, [0.2, 0.2, 0.6])
    twice = np.repeat(np.arange(300), 2)
    found = [estimate(each, rows).estimates for each, rows in (
        (log, target), (log.take(twice), target[twice]),
    )]  # fmt: skip
    for name in ("ips", "snips"):
        assert found[1][name] == pytest.approx(found[0][name])


def test_rows_without_a_request_are_requests_of_their_own():
    log = LOG.assign(request_id=["r1", None, "", "r1"])
    checked = ExposureLog.from_frame(log)
    assert checked.request[0] == checked.request[3] and len(set(checked.request)) == 3
    found = estimate(checked, np.full(4, 0.5))
    assert found.requests == 3
    assert "2 exposures have no request_id and count as requests of their own" in found.warnings[0]
    assert not any("request_id" in each for each in estimate(ExposureLog.from_frame(LOG), np.full(4, 0.5)).warnings)


def test_the_reward_model_knows_nothing_of_its_own_fold():
    log = ExposureLog.from_frame(LOG)
    fitted = fitted_rewards(log)
    others = [1, 2]  # the rows at position 0 of other folds: of r2 and r3
    assert fitted[0] == pytest.approx(
        [
            (0 + PRIOR_EXPOSURES * len(others) / 4) / (1 + PRIOR_EXPOSURES),
            (1 + PRIOR_EXPOSURES / 2) / (1 + PRIOR_EXPOSURES),
        ]
    )
    assert fitted[1].tolist() == [0.0, 0.0]  # nothing else is known of position 1


def test_missing_support_is_counted():
    frame = pd.DataFrame(
        {"item_id": ["a", "a", "b"], "position": [0, 1, 1], "propensity": 0.5, "reward": [1.0, 0.0, 1.0]}
    )
    target = pd.DataFrame({"item_id": ["a", "b", "c"], "probability": [0.5, 0.3, 0.2]})
    log = ExposureLog.from_frame(frame, items=["c"])
    found = estimate(log, policy_table(log, target))
    # (b, 0), (c, 0) and (c, 1)
    assert found.warnings[0].startswith("3 pairs of item and position that the target policy chooses, with 30.00%")
    assert any("effective sample size is" in warning for warning in found.warnings)


def test_positions_without_randomness_are_told_and_a_log_of_them_is_refused():
    frame = pd.DataFrame({"item_id": ["a", "b"] * 50, "position": [0, 1] * 50, "propensity": 1.0, "reward": 1.0})
    target = np.full(100, 0.5)
    with pytest.raises(DataError, match="All propensities are 1: no item was chosen at random"):
        estimate(ExposureLog.from_frame(frame), target)
    same = estimate(ExposureLog.from_frame(frame), np.ones(100))  # a policy that shows the same items
    assert same.estimates["ips"].value == 1 and not any("at random" in each for each in same.warnings)
    log = ExposureLog.from_frame(frame.assign(propensity=[1.0, 0.5] * 50))
    (told,) = [each for each in estimate(log, target).warnings if "at random" in each]
    assert told.startswith("No item was chosen at random at 1 of 2 positions (0 to 0), where the target policy")
    as_shown = np.where(log.position == 0, 1.0, 0.5)
    assert not any("at random" in each for each in estimate(log, as_shown).warnings)


def test_propensities_that_do_not_fit_are_told():
    log, target = planted(np.random.default_rng(3), 2000, [0.2, 0.2, 0.6])
    wrong = ExposureLog(log.items, log.positions, log.item, log.position, log.request, log.propensity / 2, log.reward)
    assert not estimate(log, target).warnings
    assert any("The mean weight is 1.9" in each for each in estimate(wrong, target).warnings)


@pytest.mark.parametrize(("clicks", "there"), [(0, False), (3, False), (5, True)])
def test_few_clicks_have_no_interval(clicks, there):
    log, target = planted(np.random.default_rng(4), 300, [0.5, 0.3, 0.2])
    clicked = (np.arange(300) < clicks).astype(float)
    rare = ExposureLog(log.items, log.positions, log.item, log.position, log.request, log.propensity, clicked)
    found = estimate(rare, target)
    assert (found.estimates["ips"].low is not None) == (found.logged.high is not None) == there


def test_negative_rewards_have_a_plain_interval():
    log, target = planted(np.random.default_rng(5), 300, [0.5, 0.3, 0.2])
    lost = ExposureLog(log.items, log.positions, log.item, log.position, log.request, log.propensity, log.reward - 0.4)
    found, plain = estimate(lost, target).logged, estimate(log, target).logged
    assert found.high - found.value == pytest.approx(found.value - found.low)
    assert plain.high - plain.value > plain.value - plain.low > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "propensity"}, "Expected a column 'propensity' in the exposure log: .* cannot be estimated"),
        ({"drop": "reward"}, "Expected a column 'reward'"),
        ({"propensity": [0.5, 0.0, 0.5, 1.5]}, "above 0 and at most 1; found 0 in row 2, and 2 such rows"),
        ({"propensity": [0.5, None, 0.5, 0.5]}, "'propensity' of the exposure log; found a missing value in row 2"),
        ({"reward": [1, 0, 0, "x"]}, "'reward' of the exposure log; found 'x' in row 4"),
        ({"rows": 0}, "Expected rows in the exposure log"),
    ],
)
def test_logs_without_usable_propensities_are_refused(change, message):
    frame = (
        LOG.drop(columns=change["drop"]) if "drop" in change else LOG[:0] if "rows" in change else LOG.assign(**change)
    )
    with pytest.raises(DataError, match=message):
        ExposureLog.from_frame(frame)


def test_targets_that_are_no_policies_are_refused():
    log = ExposureLog.from_frame(LOG)
    for target, message in (
        (np.full(3, 0.5), r"found an array of \[3\]"),
        (np.full(4, 1.5), "between 0 and 1"),
        (np.full((4, 2), 0.9), "add up to at most 1 in a row, found 1.8"),
        (np.zeros(4), "none of the items that were shown"),
    ):
        with pytest.raises(DataError, match=message):
            estimate(log, target)
    with pytest.raises(DataError, match="Expected the probabilities of all items"):
        estimate(log, np.full(4, 0.5), np.zeros((4, 2)))
    with pytest.raises(DataError, match="finite predicted reward"):
        estimate(log, np.full((4, 2), 0.5), np.full((4, 2), np.nan))
    with pytest.raises(ConfigError, match="alpha"):
        estimate(log, np.full(4, 0.5), alpha=1)
    for rows, message in (
        ({"item_id": ["a", "c"], "probability": [0.5, 0.5]}, "not told of, such as 'c'"),
        ({"item_id": ["a", "a"], "probability": [0.5, 0.5]}, "found item 'a' twice"),
        ({"item_id": ["a", "b"], "probability": [0.5, 0.4]}, "add up to 0.9 at position 0"),
        ({"item_id": ["a", "b"], "probability": [0.5, 0.5], "position": [0, 0]}, "add up to 0 at position 1"),
        (
            {"item_id": ["a", "b"] * 3, "probability": [0.5] * 6, "position": [0, 0, 1, 1, 2, 2]},
            "has 2 rows at positions that the log does not have, such as 2; the log has 0, 1",
        ),
        ({"item_id": ["a"]}, "Expected a column 'probability' in the target policy"),
    ):
        with pytest.raises(DataError, match=message):
            policy_table(log, pd.DataFrame(rows))


def test_matrices_that_are_too_large_are_refused(monkeypatch):
    log = ExposureLog.from_frame(LOG)
    monkeypatch.setattr("tfllmrec.feedback.off_policy.MAX_CELLS", 8)
    assert policy_table(log, pd.DataFrame({"item_id": ["a"], "probability": [1.0]})).shape == (4, 2)
    with pytest.raises(DataError, match="at most 8 numbers; 4 rows, 2 positions and 2 items need 20"):
        fitted_rewards(log)  # a table of 5 folds, 2 positions and 2 items
    monkeypatch.setattr("tfllmrec.feedback.off_policy.MAX_CELLS", 7)
    with pytest.raises(DataError, match="need 8"):
        policy_table(log, pd.DataFrame({"item_id": ["a"], "probability": [1.0]}))


@pytest.mark.shared
@pytest.mark.skipif(not BANDIT.exists(), reason="needs ../shared/data/open-bandit")
@pytest.mark.parametrize("campaign", ["men", "women"])
def test_open_bandit_covers_the_click_rate_of_the_other_policy(campaign):
    import off_policy

    truth = off_policy.read_log(BANDIT, "bts", campaign)
    found = off_policy.estimated(off_policy.read_log(BANDIT, "random", campaign), off_policy.frequencies(truth))
    for name in ("snips", "dr"):
        assert off_policy.covers(found.estimates[name], truth["reward"].mean())
    # Published for this log, see data/README.md there.
    assert found.estimates["snips"].value == pytest.approx({"men": 0.0057, "women": 0.0058}[campaign], abs=5e-5)

"""Experiments: users as the unit, ratios, CUPED, several metrics, users that are left out, and false positives."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.assignment import Experiment
from tfllmrec.feedback.experiments import MIN_EFFECTIVE, Metric, Users, analyze, arm_estimates, difference_of, users_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

PAIR = Experiment("e", {"control": 0.5, "new": 0.5})
RATIO = Metric.parse("reward/exposures")


def exposures(*rows):
    return pd.DataFrame(rows, columns=["user_id", "arm", "reward"])


def table(control, new):
    """Users with one value each."""
    values = [*control, *new]
    arms = ["control"] * len(control) + ["new"] * len(new)
    return Users(pd.DataFrame({"user_id": range(len(values)), "arm": arms, "value": values}))


def test_users_are_collected_and_those_in_two_arms_left_out():
    log = exposures(
        ("1", "control", 1), ("1", "control", 0), ("2", "new", 1), ("3", "new", 1), ("3", "control", 1), ("", "new", 1),
        ("4", "new", 0),
    )  # fmt: skip
    log["experiment"] = "e"
    log = pd.concat([log, log.iloc[:1].assign(experiment="other", arm="x")])
    found = users_of(log, PAIR, pd.DataFrame({"user_id": [1, 2, 9], "spent": ["2.5", "", "7"]}))
    assert found.table.drop(columns="spent").values.tolist() == [
        ["1", "control", 2, 1.0], ["2", "new", 1, 1.0], ["4", "new", 1, 0.0],
    ]  # fmt: skip
    assert (found.in_two_arms, found.exposures_without_user, found.without_outcome) == (1, 1, 1)
    analysis = analyze(found, PAIR, [Metric("spent")])
    (each,) = analysis.comparisons
    assert (each.control_value, each.value, each.low) == (2.5, 0.0, None)
    assert analysis.sample_ratio.users == {"control": 1, "new": 2}
    assert analysis.left_out == [
        "users with exposures in several arms, left out: 1",
        "exposures without a user id, left out: 1",
        "users without a row in the outcomes, counted as 0: 1",
    ]
    assert "1 users were in several arms" in analysis.alarms[0]


def test_without_a_row_of_outcomes_all_users_count_as_0():
    log = exposures(("1", "control", 1), ("2", "new", 0), ("3", "new", 0))
    found = users_of(log, PAIR, pd.DataFrame({"user_id": [], "spent": []}))
    assert found.without_outcome == 3 and found.outcome_columns == ("spent",)
    assert found.table["spent"].isna().all()


def test_ignored_arms_and_rows_without_an_arm_are_left_out_and_counted():
    """User 3 moved from the rest into the experiment."""
    log = exposures(
        ("1", "control", 1), ("2", "new", 1), ("3", "rest", 1), ("3", "new", 0), ("4", "rest", 1), ("1", "", 1),
        ("5", None, 1),
    )  # fmt: skip
    found = users_of(log, PAIR, ignored_arms=["rest"])
    assert found.table.values.tolist() == [["1", "control", 1, 1.0], ["2", "new", 1, 1.0], ["3", "new", 1, 0.0]]
    assert found.in_two_arms == 0
    analysis = analyze(found, PAIR, [RATIO])
    assert (analysis.exposures_without_arm, analysis.exposures_of_ignored_arms) == (2, 2)
    assert analysis.left_out == ["exposures without an arm, left out: 2", "exposures of ignored arms, left out: 2"]
    with pytest.raises(ConfigError, match="either compared or ignored; 'new' is both"):
        users_of(log, PAIR, ignored_arms=["new"])


@pytest.mark.parametrize("seed", range(3))
def test_one_look_at_means_is_the_z_interval_of_statsmodels(seed):
    from statsmodels.stats.weightstats import CompareMeans

    rng = np.random.default_rng(seed)
    control, new = rng.exponential(1, 200), rng.exponential(1.2, 150)
    (each,) = analyze(table(control, new), PAIR, [Metric("value")], looks="one").comparisons
    oracle = CompareMeans.from_data(new, control)
    assert (each.low, each.high) == pytest.approx(oracle.zconfint_diff(usevar="unequal"))
    assert each.p == each.p_adjusted == pytest.approx(oracle.ztest_ind(usevar="unequal")[1])
    assert each.difference == pytest.approx(new.mean() - control.mean())


def test_one_look_at_proportions_is_about_that_of_statsmodels():
    from statsmodels.stats.proportion import confint_proportions_2indep

    hits = (60, 90)
    (each,) = analyze(table(*(np.arange(1000) < hit for hit in hits)), PAIR, [Metric("value")], looks="one").comparisons
    low, high = confint_proportions_2indep(hits[1], 1000, hits[0], 1000, method="wald")
    assert (each.low, each.high) == pytest.approx((low, high), rel=2e-3)  # n - 1 here


def test_the_variance_of_a_ratio_is_that_between_experiments():
    """Clicks of one user depend on each other: a test that takes exposures for the unit is far too sure."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        shown = rng.geometric(0.1, 300)
        clicks = rng.binomial(shown, rng.beta(0.5, 4.5, 300))
        each = arm_estimates(np.zeros(300, int), 1, clicks.astype(float), shown.astype(float))
        found.append((each.value[0], each.variance[0], shown.sum()))
    value, variance, total = np.array(found).T
    assert variance.mean() == pytest.approx(value.var(), rel=0.2)
    assert variance.mean() > 3 * (0.1 * 0.9 / total.mean())


def test_cuped_is_the_regression_on_the_covariate_and_removes_what_it_explains():
    from statsmodels.api import OLS

    rng = np.random.default_rng(1)
    before = rng.normal(10, 2, 800)
    arm = rng.integers(0, 2, 800)
    now = before + rng.normal(0, 1, 800) + 0.3 * arm
    users = Users(
        pd.DataFrame({"user_id": range(800), "arm": np.array(["control", "new"])[arm], "now": now, "before": before})
    )
    (plain,) = analyze(users, PAIR, [Metric("now")], looks="one").comparisons
    (cuped,) = analyze(users, PAIR, [Metric("now", covariate="before")], looks="one").comparisons
    regression = OLS(now, np.column_stack([np.ones(800), arm, before])).fit()
    assert cuped.difference == pytest.approx(regression.params[1])
    assert cuped.high - cuped.low == pytest.approx(2 * 1.96 * regression.bse[1], rel=0.02)
    assert cuped.variance_removed == pytest.approx(0.8, abs=0.03) and plain.variance_removed is None
    assert cuped.significant and not plain.significant
    # A covariate that explains nothing, and one that no user has, change next to nothing.
    users.table["before"] = rng.normal(size=800)
    (useless,) = analyze(users, PAIR, [Metric("now", covariate="before")], looks="one").comparisons
    assert useless.difference == pytest.approx(plain.difference, abs=0.05) and useless.variance_removed < 0.02


def test_a_user_without_covariate_has_its_mean():
    arm, values = np.repeat([0, 1], 50), np.arange(100.0) % 17
    covariate = values + np.arange(100) % 3
    gaps = covariate.copy()
    gaps[::4] = np.nan
    filled = np.where(np.isnan(gaps), np.nanmean(gaps), gaps)
    one, other = (arm_estimates(arm, 2, values, None, each) for each in (gaps, filled))
    assert one.value == pytest.approx(other.value) and one.variance == pytest.approx(other.variance)
    nobody = arm_estimates(arm, 2, values, None, np.full(100, np.nan))
    assert nobody.variance == pytest.approx(arm_estimates(arm, 2, values).variance)


def test_several_metrics_and_arms_share_the_error_rate():
    rng = np.random.default_rng(2)
    experiment = Experiment("e", {"control": 1, "a": 1, "b": 1})
    arms = np.repeat(["control", "a", "b"], 400)
    users = Users(
        pd.DataFrame({"user_id": range(1200), "arm": arms, "x": rng.normal(size=1200) + 0.5 * (arms == "b"),
                      "y": rng.normal(size=1200)})
    )  # fmt: skip
    alone = analyze(users, experiment, [Metric("y")], looks="one").comparisons
    found = analyze(users, experiment, [Metric("x"), Metric("y")], looks="one").comparisons
    assert [(each.metric, each.arm, each.significant) for each in found] == [
        ("x", "a", False), ("x", "b", True), ("y", "a", False), ("y", "b", False),
    ]  # fmt: skip
    width = {each.arm: each.high - each.low for each in alone}
    # 5 % over two and over four comparisons
    assert found[2].high - found[2].low == pytest.approx(width["a"] * 2.4977 / 2.2414, rel=1e-4)
    assert found[1].p_adjusted == pytest.approx(4 * found[1].p) and found[0].p_adjusted > found[0].p


def test_intervals_wait_until_enough_users_differ():
    few = np.arange(1000) < MIN_EFFECTIVE - 2
    assert difference_of(arm_estimates(np.repeat([0, 1], 1000), 2, np.r_[few, few]), 1, "many", 0.05, 1, 100) is None
    more = np.arange(1000) < MIN_EFFECTIVE + 1
    assert difference_of(arm_estimates(np.repeat([0, 1], 1000), 2, np.r_[more, more]), 1, "many", 0.05, 1, 100)
    (each,) = analyze(table([1.0] * 50, [1.0] * 50), PAIR, [Metric("value")]).comparisons
    assert each.low is None and not each.significant


def test_rounding_is_no_difference():
    """Sums of equal decimal numbers differ in their last bits from one arm to the other, by the number of users."""
    control, new = 1000, 1300
    values = [0.3] * (control + new)
    by_arm = np.repeat([0.1, 0.7], [control, new])
    shown = np.arange(control + new) % 7 + 1
    rng = np.random.default_rng(0)
    for value, per, covariate in (
        (values, 1, None),
        (shown * 0.3, shown, None),
        (by_arm, 1, None),
        (by_arm, 1, values),
        (noise := rng.normal(size=control + new), 1, noise),
    ):
        users = table(value[:control], value[control:])
        users.table["per"] = per
        users.table["before"] = 0.0 if covariate is None else covariate
        metric = Metric("value", "per", None if covariate is None else "before")
        (each,) = analyze(users, PAIR, [metric]).comparisons
        assert each.low is None and not each.significant
    arm = np.repeat([0, 1], [control, new])
    plain = arm_estimates(arm, 2, noise)
    some = np.where(shown > 1, 1.1, np.nan)
    for covariate in (some, by_arm):  # the same for all users that have it, or for all of an arm: it explains nothing
        cuped = arm_estimates(arm, 2, noise, covariate=covariate)
        assert cuped.value.tolist() == plain.value.tolist() and cuped.variance_removed == 0


def test_a_wrong_sample_ratio_is_an_alarm():
    for looks in ("one", "many"):
        analysis = analyze(table(np.arange(1000.0), np.arange(1300.0)), PAIR, [Metric("value")], looks=looks)
        assert analysis.sample_ratio.alarm and "control 1,000 (expected 1,150), new 1,300" in analysis.alarms[0]
        assert not analyze(table(np.arange(990.0), np.arange(1010.0)), PAIR, [Metric("value")], looks=looks).alarms


@pytest.mark.parametrize(("users", "alarm"), [(1000, True), (5, False)])
@pytest.mark.parametrize("lost", ["control", "new"])
def test_an_arm_without_users_is_an_alarm_if_it_should_have_some(users, alarm, lost):
    there = {"control": "new", "new": "control"}[lost]
    log = exposures(*((f"u{n}", there, n % 2) for n in range(users)))
    analysis = analyze(users_of(log, PAIR), PAIR, [RATIO])
    assert analysis.sample_ratio.users == {there: users, lost: 0} and analysis.comparisons == []
    assert bool(analysis.alarms) == analysis.sample_ratio.alarm == alarm
    three = Experiment("e", {**PAIR.arms, "rest": 0.001})
    log = exposures(*((f"u{n}", ("control", "new")[n % 2], n % 3) for n in range(users)))
    early = analyze(users_of(log, three), three, [RATIO])
    assert not early.alarms and [each.arm for each in early.comparisons] == ["new"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "arm"}, "Expected a column 'arm' in the exposure log"),
        ({"arm": "z"}, "Expected the arms control, new in the exposure log; found 'z'.*--ignore-arm"),
        ({"user_id": "1"}, "no user who is in exactly one arm of 'e'"),
        ({"reward": "much"}, "a finite number in each row of the column 'reward' of the exposure log; found 'much'"),
        ({"experiment": "f"}, "has no row of the experiment 'e'. It has: f"),
    ],
)  # fmt: skip
def test_logs_that_cannot_be_analyzed_are_refused(change, message):
    log = exposures(("1", "control", 1), ("2", "new", 0)).astype(object)
    log = log.drop(columns=change["drop"]) if "drop" in change else log.assign(**change)
    with pytest.raises(DataError, match=message):
        users_of(log, PAIR)


def test_outcomes_and_metrics_that_cannot_be_used_are_refused():
    log = exposures(("1", "control", 1), ("2", "new", 0))
    with pytest.raises(DataError, match="one row for each user in the outcomes; found user '1' twice"):
        users_of(log, PAIR, pd.DataFrame({"user_id": [1, 1], "x": [1, 2]}))
    with pytest.raises(DataError, match="column 'reward' of the outcomes is also"):
        users_of(log, PAIR, pd.DataFrame({"user_id": [1], "reward": [1]}))
    users = users_of(log, PAIR)
    with pytest.raises(DataError, match=r"Expected a column 'rewards' .*nearest: 'reward'"):
        analyze(users, PAIR, [Metric("rewards")])
    with pytest.raises(DataError, match="exposures/reward has no value in the arm 'new': reward adds up to 0"):
        analyze(users, PAIR, [Metric.parse("exposures/reward")])
    for metrics, given in (([], {}), ([RATIO, RATIO], {}), ([RATIO], {"alpha": 0.0}), ([RATIO], {"planned_users": 1})):
        with pytest.raises(ConfigError, match="Expected"):
            analyze(users, PAIR, metrics, **given)
    for text in ("", "/x", "x/"):
        with pytest.raises(ConfigError, match="Expected a metric such as"):
            Metric.parse(text)


def test_looking_again_and_again_gives_no_false_positives_but_finds_effects():
    """A reduced form of benchmarks/experiments.py."""
    import experiments

    found = experiments.simulated("conversion of 5 % of users", {"control": 0.5, "new": 0.5}, 60, 2000, 100, seed=5)
    many, one = (np.array([each.different[method].any() for each in found]) for method in ("many", "one"))
    assert many.mean() <= 0.05 < 0.12 < one.mean()
    assert np.mean([each.alarm["many"].any() for each in found]) <= 0.02
    rng = np.random.default_rng(0)
    arm = rng.integers(0, 2, 4000)
    clicks = (rng.random(4000) < 0.05 + 0.05 * arm).astype(float)
    assert difference_of(arm_estimates(arm, 2, clicks), 1, "many", 0.05, 1, 4000).low > 0

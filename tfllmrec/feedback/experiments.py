"""Analyzes an experiment, from the exposure log and outcomes of users.

experiment = Experiment("ranking-2", {"control": 0.5, "new": 0.5})
users = users_of(exposures, experiment, outcomes)
analysis = analyze(users, experiment, [Metric.parse("reward/exposures"), Metric.parse("revenue")])
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.columns import ARM, EXPERIMENT, REWARD, USER
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.assignment import Experiment
from tfllmrec.feedback.repeated_looks import Interval, Looks, holm, interval_of, sample_ratio_p
from tfllmrec.feedback.tables import numbers, require_columns, texts

#: The number of exposures of each user, which :func:`users_of` adds.
EXPOSURES = "exposures"
#: The error rate of the sample-ratio check.
RATIO_ALPHA = 0.01
#: An arm with a lower effective number of users has no interval; see :class:`ArmEstimates`.
MIN_EFFECTIVE = 10
#: Relative differences up to this size are attributed to rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Metric:
    """The mean of a column over users, or the ratio of the sums of two columns.

    Attributes:
      column: The column that is summed.
      per: The column whose sum is the denominator; ``None``: the number of users.
      covariate: A column from before the experiment, for CUPED; ``None``: none.
    """

    column: str
    per: str | None = None
    covariate: str | None = None

    @property
    def name(self) -> str:
        return self.column if self.per is None else f"{self.column}/{self.per}"

    @classmethod
    def parse(cls, text: str, covariate: str | None = None) -> Metric:
        """Parses a metric such as ``revenue`` or ``reward/exposures``.

        Raises:
          ConfigError: The name of a column is empty.
        """
        column, slash, per = (part.strip() for part in text.partition("/"))
        if not column or (slash and not per):
            raise ConfigError(f"Expected a metric such as revenue or reward/exposures, found {text!r}.")
        return cls(column, per or None, covariate)


@dataclass(frozen=True)
class Users:
    """The users of an experiment.

    Attributes:
      table: A row for each user with exposures in exactly one arm: ``user_id``, ``arm``, ``exposures``, ``reward`` if
        the log has it, and the columns of the outcomes.
      in_two_arms: The number of users with exposures in several arms, who are left out.
      exposures_without_user: The number of log rows without a user id, which are left out.
      exposures_without_arm: The number of log rows without an arm, left out before users are collected.
      exposures_of_ignored_arms: The number of log rows of ignored arms, left out before users are collected.
      without_outcome: The number of users in the table that are missing in the outcomes; their outcomes are 0.
      outcome_columns: The names of the columns that come from the outcomes.
    """

    table: pd.DataFrame
    in_two_arms: int = 0
    exposures_without_user: int = 0
    exposures_without_arm: int = 0
    exposures_of_ignored_arms: int = 0
    without_outcome: int = 0
    outcome_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleRatio:
    """Whether the arms have as many users as expected; an alarm means that no difference can be trusted.

    Attributes:
      users: The number of users in each arm.
      expected: The expected shares, which sum to 1.
      p: The p-value of the chi-squared test for one look, of the sequential test for many.
      alarm: Whether ``p`` is below .01.
    """

    users: dict[str, int]
    expected: dict[str, float]
    p: float
    alarm: bool


@dataclass(frozen=True)
class Comparison:
    """The comparison of an arm with the control in one metric.

    Attributes:
      metric: The name of the metric.
      arm: The name of the arm.
      control_value: The metric in the control; adjusted with CUPED.
      value: The metric in the arm; adjusted with CUPED.
      difference: ``value - control_value``.
      low: The lower end of the interval of the difference; ``None`` if the effective number of users of an arm is below
        :data:`MIN_EFFECTIVE`. All intervals of an experiment together cover with probability 1 - alpha (Bonferroni).
      high: The upper end of the interval.
      p: The p-value of no difference; ``None`` without an interval.
      p_adjusted: The p-value adjusted for the number of comparisons (Holm); ``None`` without an interval.
      significant: Whether ``p_adjusted`` is below alpha. Holm's test finds at least the differences that the intervals
        show.
      variance_removed: The share of the variance that CUPED removed; ``None`` without a covariate.
    """

    metric: str
    arm: str
    control_value: float
    value: float
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    significant: bool = False
    variance_removed: float | None = None


@dataclass(frozen=True)
class Analysis:
    """The result of an experiment; see :class:`SampleRatio` and :class:`Comparison`.

    Attributes:
      experiment: The name of the experiment.
      control: The name of the control arm.
      looks: ``one`` or ``many``; see :func:`analyze`.
      alpha: The error rate of all intervals together.
      planned_users: The number of users at which intervals of many looks are tightest.
      sample_ratio: The check of the sample ratio.
      comparisons: The comparisons of all metrics and arms, without arms that have no users.
      in_two_arms: See :class:`Users`.
      exposures_without_user: See :class:`Users`.
      exposures_without_arm: See :class:`Users`.
      exposures_of_ignored_arms: See :class:`Users`.
      without_outcome: See :class:`Users`.
      alarms: Reasons why the differences may be wrong, in words.
    """

    experiment: str
    control: str
    looks: Looks
    alpha: float
    planned_users: int
    sample_ratio: SampleRatio
    comparisons: list[Comparison]
    in_two_arms: int
    exposures_without_user: int
    exposures_without_arm: int
    exposures_of_ignored_arms: int
    without_outcome: int
    alarms: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns the analysis as JSON types."""
        return asdict(self)

    @property
    def described(self) -> str:
        """A short description of the intervals."""
        level = f"{100 * (1 - self.alpha):.4g} %"
        valid = "valid at every look" if self.looks == "many" else "valid at one look"
        several = len(self.comparisons) > 1
        return f"simultaneous {level} intervals, {valid}" if several else f"{level} interval, {valid}"

    @property
    def headline(self) -> str:
        """A sentence on the significant differences, or on their absence."""
        users = sum(self.sample_ratio.users.values())
        found = [each for each in self.comparisons if each.significant]
        said = "; ".join(f"{each.arm} {each.difference:+.4g} in {each.metric}" for each in found)
        return f"{users:,} users. " + (
            f"Significant differences to {self.control}: {said}." if said else "No difference is significant."
        )

    @property
    def left_out(self) -> list[str]:
        """Lines on the users and exposures that are missing in the comparisons."""
        return [
            f"{what}: {count:,}"
            for count, what in (
                (self.in_two_arms, "users with exposures in several arms, left out"),
                (self.exposures_without_user, "exposures without a user id, left out"),
                (self.exposures_without_arm, "exposures without an arm, left out"),
                (self.exposures_of_ignored_arms, "exposures of ignored arms, left out"),
                (self.without_outcome, "users without a row in the outcomes, counted as 0"),
            )
            if count
        ]

    @property
    def explained(self) -> list[str]:
        """Sentences that explain how to read the results."""
        return [
            "Users are the unit. A metric with a slash is the ratio of two sums, such as clicks per exposure.",
            "The result may be looked at as often as you like: the intervals cover the true differences at all looks "
            f"together (asymptotic confidence sequences, tightest at {self.planned_users:,} users in two arms)."
            if self.looks == "many"
            else "The intervals are valid for one look, at a time that was fixed before.",
            f"All intervals together miss with probability {self.alpha:g} at most (Bonferroni). A difference is "
            f"significant if its p-value, adjusted for the number of comparisons (Holm), is below {self.alpha:g}.",
            f"An arm has no interval while too few users have values that differ, such as fewer than {MIN_EFFECTIVE} "
            "buyers: wait for more users.",
        ]


def users_of(
    exposures: pd.DataFrame,
    experiment: Experiment,
    outcomes: pd.DataFrame | None = None,
    ignored_arms: Collection[str] = (),
) -> Users:
    """Collects the exposures and outcomes of each user.

    Args:
      exposures: The exposure log, a row for each item shown: ``user_id``, ``arm``, and optionally ``experiment`` and
        ``reward``. Rows of other experiments are ignored; rows without an arm are left out and counted.
      experiment: The experiment; its name and arms are used.
      outcomes: A row for each user: ``user_id`` and columns of numbers. Users without exposures are ignored. A user who
        is missing has the outcome 0. A missing value is 0, too, except for covariates; see :func:`analyze`.
      ignored_arms: Arms of the log whose rows are left out and counted, such as one for users who are not in the
        experiment yet. A user who moved from it into an arm of the experiment counts with the rows of that arm.

    Raises:
      ConfigError: An ignored arm is an arm of the experiment.
      DataError: A column is missing or holds other values than numbers; the log has no row of the experiment, has an
        arm that the experiment does not have, or has no user in a single arm; the outcomes have a user twice.
    """
    if both := sorted(set(ignored_arms) & set(experiment.arms)):
        raise ConfigError(f"Expected arms that are either compared or ignored; {both[0]!r} is both.")
    log = "the exposure log"
    require_columns(exposures, [USER, ARM], log)
    if EXPERIMENT in exposures:
        named = texts(exposures, EXPERIMENT)
        kept = (named == experiment.name).to_numpy()
        if not kept.any():
            there = ", ".join(sorted({name for name in named if name})[:10]) or "none"
            raise DataError(f"{log.capitalize()} has no row of the experiment {experiment.name!r}. It has: {there}.")
        exposures = exposures[kept]
    arm = texts(exposures, ARM)
    without_arm, ignored = (arm == "").to_numpy(), arm.isin(list(ignored_arms)).to_numpy()
    compared = ~(without_arm | ignored)
    exposures = exposures[compared]
    table = pd.DataFrame({USER: texts(exposures, USER), ARM: arm[compared]}).reset_index(drop=True)
    if unknown := sorted(set(table[ARM]) - set(experiment.arms)):
        raise DataError(
            f"Expected the arms {', '.join(experiment.arms)} in {log}; found {', '.join(map(repr, unknown[:10]))}. "
            "Name all arms with their shares, or ignore those that are not compared (--ignore-arm NAME)."
        )
    if REWARD in exposures:
        table[REWARD] = numbers(exposures, REWARD, log)
    with_user = (table[USER] != "").to_numpy()
    groups = table[with_user].groupby(USER, sort=False)
    of_users = groups.agg(**{ARM: (ARM, "first"), "arms": (ARM, "nunique"), EXPOSURES: (ARM, "size")})
    if REWARD in table:
        of_users[REWARD] = groups[REWARD].sum()
    in_one = of_users[of_users["arms"] == 1].drop(columns="arms").reset_index()
    if in_one.empty:
        raise DataError(f"{log.capitalize()} has no user who is in exactly one arm of {experiment.name!r}.")
    without, columns = 0, tuple[str, ...]()
    if outcomes is not None:
        in_one, without, columns = _with_outcomes(in_one, outcomes)
    return Users(
        in_one,
        len(of_users) - len(in_one),
        int((~with_user).sum()),
        int(without_arm.sum()),
        int(ignored.sum()),
        without,
        columns,
    )


def _with_outcomes(users: pd.DataFrame, outcomes: pd.DataFrame) -> tuple[pd.DataFrame, int, tuple[str, ...]]:
    what = "the outcomes"
    require_columns(outcomes, [USER], what)
    ids = texts(outcomes, USER)
    if ids.duplicated().any():
        raise DataError(
            f"Expected one row for each user in {what}; found user {ids[ids.duplicated()].iloc[0]!r} twice, and "
            f"{int(ids.duplicated().sum()):,} such rows in all. Add up the rows of each user first."
        )
    columns = tuple(str(name) for name in outcomes if name not in (USER, ARM, EXPERIMENT))
    if clash := [name for name in columns if name in users]:
        raise DataError(f"The column {clash[0]!r} of {what} is also a column of the users of the log. Rename it.")
    added = outcomes.set_axis(ids).reindex(users[USER]).reset_index(drop=True)
    without = int((~users[USER].isin(ids)).sum())
    return users.assign(**{name: added[name] for name in columns}), without, columns


def analyze(
    users: Users,
    experiment: Experiment,
    metrics: Sequence[Metric],
    *,
    looks: Looks = "many",
    alpha: float = 0.05,
    planned_users: int = 10_000,
) -> Analysis:
    """Checks the sample ratio, and compares each arm with the first one in each metric.

    Users are the unit, because clicks of one user depend on each other. For a metric ``sum(x) / sum(y)`` in an arm with
    ``n`` users, the value of a user is linearised (delta method), ``u = (x - ratio y) / mean(y)``, and the variance of
    the ratio is ``var(u) / n``; a plain mean has ``y = 1``.

    CUPED (Deng, Xu, Kohavi and Walker 2013) removes from ``u`` the part that a covariate from before the experiment
    explains: ``u - theta (c - mean(c))``, with ``theta = cov(u, c) / var(c)`` within the arms. It narrows the interval
    and does not change the expected difference. A user without a value of the covariate gets the mean.

    The intervals for many looks assume that the outcome of a user does not change after the user was counted. If
    outcomes take days, include only users whose days are over.

    Args:
      users: The result of :func:`users_of`.
      experiment: The experiment; its first arm is the control.
      metrics: At least one metric.
      looks: ``many``: intervals and sample ratio stay valid however often they are computed; ``one``: they are
        narrower, and valid if they are computed once, at a time that was fixed before; see
        :mod:`tfllmrec.feedback.repeated_looks`.
      alpha: The probability that any interval of the analysis misses its difference.
      planned_users: The number of users in two arms at which the intervals of many looks are tightest.

    Raises:
      ConfigError: There is no metric, or one occurs twice; or alpha or planned_users is out of range.
      DataError: A column is missing or holds other values than numbers, or a ratio's denominator is 0 in an arm.
    """
    if not metrics or len({metric.name for metric in metrics}) < len(metrics):
        raise ConfigError(f"Expected metrics, each once; found {', '.join(m.name for m in metrics) or 'none'}.")
    if not 0 < alpha < 0.5:
        raise ConfigError(f"Expected an alpha above 0 and below 0.5, found {alpha}.")
    if planned_users < 2:
        raise ConfigError(f"Expected at least 2 planned users, found {planned_users}.")
    arms = list(experiment.arms)
    arm_of = users.table[ARM].map({arm: place for place, arm in enumerate(arms)}).to_numpy()
    counts = np.bincount(arm_of, minlength=len(arms))
    shares = experiment.shares
    p = sample_ratio_p(counts.tolist(), list(shares.values()), looks)
    ratio = SampleRatio(dict(zip(arms, counts.tolist(), strict=True)), shares, p, p < RATIO_ALPHA)
    compared = []
    for metric in metrics:
        values, base, covariate = _columns_of(users, metric)
        estimates = arm_estimates(arm_of, len(arms), values, base, covariate)
        if len(without := np.flatnonzero(~np.isfinite(estimates.value) & (counts > 0))):
            arm = arms[int(without[0])]
            raise DataError(
                f"The metric {metric.name} has no value in the arm {arm!r}: {metric.per} adds up to 0 there."
            )
        compared += [
            (metric, arm, place, estimates) for place, arm in enumerate(arms) if place and counts[0] and counts[place]
        ]
    planned = len(metrics) * (len(arms) - 1)  # the same at all looks, also before each arm has users
    differences = [
        difference_of(estimates, place, looks, alpha, planned, planned_users) for _, _, place, estimates in compared
    ]
    adjusted = iter(holm([found.p for found in differences if found is not None]))
    comparisons = []
    for (metric, arm, place, each), found in zip(compared, differences, strict=True):
        control, value = float(each.value[0]), float(each.value[place])
        removed = None if metric.covariate is None else each.variance_removed
        known = {} if found is None else {**found._asdict(), "p_adjusted": (p_adjusted := next(adjusted))}
        significant = found is not None and p_adjusted < alpha
        comparisons.append(
            Comparison(
                metric.name,
                arm,
                control,
                value,
                value - control,
                significant=significant,
                variance_removed=removed,
                **known,
            )
        )
    return Analysis(
        experiment.name,
        arms[0],
        looks,
        alpha,
        planned_users,
        ratio,
        comparisons,
        users.in_two_arms,
        users.exposures_without_user,
        users.exposures_without_arm,
        users.exposures_of_ignored_arms,
        users.without_outcome,
        _alarms(users, ratio),
    )


@dataclass(frozen=True)
class ArmEstimates:
    """The estimates of a metric, ``[A]`` each, one for each arm.

    Attributes:
      value: Float64, the metric.
      variance: Float64, the variance of the value.
      users: Int64, the number of users.
      effective: Float64, ``sum(u^2)^2 / sum(u^4)`` of the users' linearised values: the effective number of users
        behind the variance. The relative standard error of the variance is about ``1 / sqrt(effective)``. It is a third
        of the users for normal values, and about the number of buyers if few users buy.
      variance_removed: The share of the variance within the arms that CUPED removed.
    """

    value: np.ndarray
    variance: np.ndarray
    users: np.ndarray
    effective: np.ndarray
    variance_removed: float


def arm_estimates(
    arm_of: np.ndarray,
    arms: int,
    values: np.ndarray,
    base: np.ndarray | None = None,
    covariate: np.ndarray | None = None,
) -> ArmEstimates:
    """Estimates a metric in each arm, and its variance; see :func:`analyze`.

    Args:
      arm_of: Int ``[n]``, the arm of each user.
      arms: The number of arms.
      values: Float64 ``[n]``, the numerator of each user.
      base: Float64 ``[n]``, the denominator of each user; ``None``: users are counted.
      covariate: Float64 ``[n]``, NaN for missing values; ``None``: no CUPED.
    """
    users = np.bincount(arm_of, minlength=arms)
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = np.bincount(arm_of, values, arms)
        below = users if base is None else np.bincount(arm_of, base, arms)
        value = sums / below
        expected = value[arm_of] * (1.0 if base is None else base)
        left = _without_rounding(values - expected, expected)
        left = left / (below / users)[arm_of]
        removed = 0.0
        if covariate is not None:
            known = np.isfinite(covariate)
            mean = covariate[known].mean() if known.any() else 0.0
            centred = _without_rounding(np.where(known, covariate - mean, 0.0), mean)
            means = np.bincount(arm_of, centred, arms) / users
            within = _without_rounding(centred - means[arm_of], means[arm_of])
            if spread := float(within @ within):
                theta = float(within @ left) / spread
                before = float(left @ left)
                explained = theta * within
                left = _without_rounding(left - explained, explained)
                value = value - theta * means
                removed = 1 - float(left @ left) / before if before else 0.0
        squares = np.bincount(arm_of, left**2, arms)
        effective = np.nan_to_num(squares**2 / np.bincount(arm_of, left**4, arms))
        variance = squares / (users - 1) / users
    return ArmEstimates(value, variance, users, effective, removed)


def _without_rounding(difference: np.ndarray, expected: np.ndarray | float) -> np.ndarray:
    """Sets differences to an expected value to 0 if they are below the share :data:`ROUNDING` of it."""
    return np.where(np.abs(difference) <= ROUNDING * np.abs(expected), 0.0, difference)


def difference_of(
    estimates: ArmEstimates, arm: int, looks: Looks, alpha: float, comparisons: int, planned_users: int
) -> Interval | None:
    """Returns the interval of the difference between an arm and the first one; ``None`` if there is too little data.

    Args:
      estimates: The estimates of a metric.
      arm: The index of the arm.
      looks: ``one`` or ``many``.
      alpha: The error rate of all comparisons together.
      comparisons: The number of comparisons among which ``alpha`` is divided (Bonferroni).
      planned_users: The number of users at which the interval of many looks is tightest.
    """
    pair = [0, arm]
    if estimates.effective[pair].min() < MIN_EFFECTIVE:
        return None
    difference = float(estimates.value[arm] - estimates.value[0])
    error = float(np.sqrt(estimates.variance[pair].sum()))
    users = int(estimates.users[pair].sum())
    return interval_of(difference, error, users, looks, alpha / comparisons, planned_users, alpha)


def _columns_of(users: Users, metric: Metric) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    what = "the log and the outcomes"
    named = [name for name in (metric.column, metric.per, metric.covariate) if name is not None]
    require_columns(users.table, named, what)

    def column(name: str) -> np.ndarray:
        return numbers(users.table, name, what, missing=name in users.outcome_columns)

    values = np.nan_to_num(column(metric.column))
    base = None if metric.per is None else np.nan_to_num(column(metric.per))
    covariate = None if metric.covariate is None else column(metric.covariate)
    return values, base, covariate


def _alarms(users: Users, ratio: SampleRatio) -> list[str]:
    alarms = []
    if ratio.alarm:
        total = sum(ratio.users.values())
        found = ", ".join(
            f"{arm} {count:,} (expected {total * ratio.expected[arm]:,.0f})" for arm, count in ratio.users.items()
        )
        alarms.append(
            f"The numbers of users do not fit the shares: {found}; p = {ratio.p:.2g}. Users were lost or assigned "
            "otherwise; do not trust the differences until you know why."
        )
    if users.in_two_arms > 0.01 * len(users.table):
        alarms.append(
            f"{users.in_two_arms:,} users were in several arms and are left out, more than 1 %: expected the same arm "
            "at each visit. Check how arms are assigned."
        )
    return alarms


def user_rows(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Returns the header and rows of a table of the users in each arm."""
    ratio = analysis.sample_ratio
    total = sum(ratio.users.values())
    rows = [
        [arm, f"{count:,}", f"{count / total:.2%}", f"{ratio.expected[arm]:.2%}"] for arm, count in ratio.users.items()
    ]
    verdict = "alarm" if ratio.alarm else "as expected"
    return ["arm", "users", "share", "expected"], [*rows, ["sample ratio", f"p = {ratio.p:.3g}", verdict, ""]]


def comparison_rows(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Returns the header and rows of a table of the comparisons."""
    header = ["metric", "arm", analysis.control, "arm's value", "difference", "interval", "p adjusted", "significant"]
    cuped = any(each.variance_removed is not None for each in analysis.comparisons)
    rows = []
    for each in analysis.comparisons:
        known = each.low is not None
        rows.append(
            [
                each.metric,
                each.arm,
                f"{each.control_value:.4g}",
                f"{each.value:.4g}",
                f"{each.difference:+.4g}",
                f"[{each.low:+.4g}, {each.high:+.4g}]" if known else "too little data",
                f"{each.p_adjusted:.3g}" if known else "",
                "yes" if each.significant else "no",
                *(["" if each.variance_removed is None else f"{each.variance_removed:.0%}"] if cuped else []),
            ]
        )
    return [*header, *(["variance removed"] if cuped else [])], rows

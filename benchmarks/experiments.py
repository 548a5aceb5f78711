"""Measures the false positives of experiments without an effect, analyzed every 100 users; a section of RESULTS.md.

    python benchmarks/experiments.py

Each simulated experiment assigns users by hash (``tfllmrec.feedback.assignment``) and is analyzed by
``tfllmrec.feedback.experiments`` every 100 users. Nothing is trained; it takes some minutes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats
from sections import made_by, replace_section

from tfllmrec.evaluation.report import markdown_table
from tfllmrec.feedback.assignment import Experiment
from tfllmrec.feedback.experiments import MIN_EFFECTIVE, RATIO_ALPHA, arm_estimates, difference_of
from tfllmrec.feedback.repeated_looks import Looks, sample_ratio_p

ALPHA = 0.05
METHODS: tuple[Looks, ...] = ("many", "one")


class Outcomes(NamedTuple):
    """The numerator, denominator and CUPED covariate of each user of an experiment, float64 ``[n]`` each."""

    values: np.ndarray
    base: np.ndarray | None = None
    covariate: np.ndarray | None = None


class Found(NamedTuple):
    """The findings of each method at each look, bool ``[L]``.

    Attributes:
      different: Whether the interval of the difference excludes 0.
      alarm: Whether the sample-ratio check raises an alarm.
    """

    different: dict[Looks, np.ndarray]
    alarm: dict[Looks, np.ndarray]


def clicks(rng: np.random.Generator, users: int) -> Outcomes:
    exposures = rng.geometric(0.1, users)
    return Outcomes(rng.binomial(exposures, rng.beta(2, 38, users)).astype(float), exposures.astype(float))


def conversion(rng: np.random.Generator, users: int) -> Outcomes:
    return Outcomes((rng.random(users) < 0.05).astype(float))


def revenue(rng: np.random.Generator, users: int) -> Outcomes:
    return Outcomes((rng.random(users) < 0.1) * rng.lognormal(3, 1, users))


def time_with_cuped(rng: np.random.Generator, users: int) -> Outcomes:
    before = rng.gamma(2, 5, users)
    now = 0.8 * before + rng.gamma(2, 2, users)
    before[rng.random(users) < 0.2] = np.nan  # new users
    return Outcomes(now, covariate=before)


METRICS: dict[str, Callable[[np.random.Generator, int], Outcomes]] = {
    "clicks per exposure, 10 exposures a user": clicks,
    "conversion of 5 % of users": conversion,
    "revenue, lognormal, of 10 % of users": revenue,
    "time spent, with CUPED": time_with_cuped,
}


def looked_at(experiment: Experiment, outcomes: Outcomes, users: np.ndarray, every: int, planned: int) -> Found:
    """Analyzes an experiment with two arms after each ``every`` users, in the order of ``users``."""
    arms = list(experiment.arms)
    arm_of = (experiment.assign_all(users) == arms[1]).astype(np.int64)
    shares = list(experiment.shares.values())
    different: dict[Looks, list[bool]] = {method: [] for method in METHODS}
    alarm: dict[Looks, list[bool]] = {method: [] for method in METHODS}
    for n in range(every, len(users) + 1, every):
        base, covariate = (None if each is None else each[:n] for each in outcomes[1:])
        estimates = arm_estimates(arm_of[:n], 2, outcomes.values[:n], base, covariate)
        for method in METHODS:
            found = difference_of(estimates, 1, method, ALPHA, 1, planned)
            different[method].append(found is not None and not found.low <= 0 <= found.high)
            alarm[method].append(sample_ratio_p(estimates.users.tolist(), shares, method) < RATIO_ALPHA)
    return Found(
        {method: np.array(each) for method, each in different.items()},
        {method: np.array(each) for method, each in alarm.items()},
    )


def simulated(metric: str, shares: dict[str, float], repeats: int, users: int, every: int, seed: int) -> list[Found]:
    """Simulates ``repeats`` experiments without an effect and returns the findings of each."""
    rng = np.random.default_rng(seed)
    found = []
    for repeat in range(repeats):
        ids = np.array([f"user-{n}" for n in range(users)], dtype=object)
        experiment = Experiment(f"simulated-{seed}-{repeat}", shares)
        found.append(looked_at(experiment, METRICS[metric](rng, users), ids, every, planned=users // 2))
    return found


def share(hits: np.ndarray) -> str:
    """Formats the share of ``hits`` with its exact 95 % interval (Clopper and Pearson)."""
    low, high = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci()
    return f"{hits.mean():.1%} [{low:.1%}, {high:.1%}]"


def rows_of(found: list[Found]) -> tuple[list[str], list[str]]:
    """Returns the cells of false positives and those of sample-ratio alarms, one for each column of the table."""
    cells = []
    for kind in ("different", "alarm"):
        by_method = {method: np.array([getattr(each, kind)[method] for each in found]) for method in METHODS}
        cells.append(
            [share(by_method["many"].any(axis=1)), share(by_method["one"][:, -1]), share(by_method["one"].any(axis=1))]
        )
    return cells[0], cells[1]


def section(repeats: int, users: int, every: int, seed: int, command: str) -> str:
    differences, ratios = [], []
    for shares in ({"control": 0.5, "new": 0.5}, {"control": 0.9, "new": 0.1}):
        split = "/".join(f"{100 * part:.0f}" for part in shares.values())
        together: list[Found] = []
        for place, metric in enumerate(METRICS):
            found = simulated(metric, shares, repeats, users, every, seed + place)
            differences.append([f"{metric}, {split}", *rows_of(found)[0]])
            together += found
            print(differences[-1], flush=True)
        ratios.append([f"sample ratio, {split}", *rows_of(together)[1]])
        print(ratios[-1], flush=True)
    header = ["", "method for many looks, any look", "method for one look, the last", "method for one look, any look"]
    return "\n".join(
        [
            made_by(command, seed),
            "",
            f"Experiments without an effect: {repeats:,} for each row, {users:,} users each, a look after each {every} "
            "users, users assigned by hash. Share of experiments in which the 95 % interval of the difference "
            "excludes 0, with its exact 95 % interval. The goal is at most 5 %. The last column shows what happens if "
            "the ordinary interval is looked at again and again. An arm has no interval below an effective number of "
            f"{MIN_EFFECTIVE} users; this bound was chosen in such experiments with other seeds, because with a bound "
            "of 30 users instead, rare and skewed outcomes had more than 5 % false positives at a split of 90/10.",
            "",
            *markdown_table(header, differences),
            "",
            f"Sample-ratio alarms at alpha {RATIO_ALPHA:g} where the ratio is as expected, in the same experiments. "
            "The goal is 1 % with one look, and at most 1 % with many.",
            "",
            *markdown_table(header, ratios),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000, help="Simulated experiments for each row.")
    parser.add_argument("--users", type=int, default=5000, help="Users of an experiment.")
    parser.add_argument("--every", type=int, default=100, help="Users between two looks.")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    command = shlex.join(["python", *sys.argv])
    replace_section("experiments", section(given.repeats, given.users, given.every, given.seed, command))


if __name__ == "__main__":
    main()

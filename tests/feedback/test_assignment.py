"""Users are in arms by hash: always the same one, in the given shares, and independently of other experiments."""

import hashlib
import math

import numpy as np
import pytest
from scipy import stats

from tfllmrec.errors import ConfigError
from tfllmrec.feedback.assignment import Experiment

USERS = [f"user-{n}" for n in range(20_000)]
HALVES = Experiment("halves", {"control": 0.5, "new": 0.5})


def test_the_arm_is_the_one_with_the_smallest_exponential():
    def value(arm, share, user):
        words = "".join(f"{len(word)}:{word}" for word in ("salt", "named", arm))
        digest = hashlib.sha256((words + user).encode()).digest()
        return -math.log(((int.from_bytes(digest[:8]) >> 11) + 0.5) / 2**53) / share

    arms = {"a": 1.0, "b": 2.0, "c": 0.5}
    experiment = Experiment("named", arms, "salt")
    for user in ("1", "2", "é", "x" * 200):
        assert experiment.assign(user) == min(arms, key=lambda arm: value(arm, arms[arm], user))


def test_assignments_stay_as_they_are_in_every_version():
    assert [HALVES.assign(user)[0] for user in ("1", "2", "3", "4", "u", "é")] == list("ccccnc")


def test_shares_are_as_given():
    arms = {"a": 7, "b": 2, "c": 1}
    found = Experiment("thirds", arms).assign_all(USERS)
    counts = [int((found == arm).sum()) for arm in arms]
    assert stats.chisquare(counts, np.array([0.7, 0.2, 0.1]) * len(USERS)).pvalue > 0.001
    assert Experiment("thirds", arms).shares == {"a": 0.7, "b": 0.2, "c": 0.1}


def test_experiments_are_independent_of_each_other():
    first = HALVES.assign_all(USERS) == "new"
    for other in (Experiment("other", HALVES.arms), Experiment("halves", HALVES.arms, salt="2")):
        second = other.assign_all(USERS) == "new"
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(USERS))
    assert (Experiment("halves", HALVES.arms).assign_all(USERS) == HALVES.assign_all(USERS)).all()


def test_users_move_only_into_an_arm_that_grows_or_is_added_and_out_of_one_that_shrinks():
    before = Experiment("e", {"a": 4, "b": 4, "c": 2}).assign_all(USERS)
    grown = Experiment("e", {"a": 4, "b": 4, "c": 8}).assign_all(USERS)
    moved = before != grown
    assert set(grown[moved]) == {"c"} and set(before[moved]) == {"a", "b"}
    assert moved.mean() == pytest.approx(0.5 - 0.2, abs=0.02)  # no more than the share grows by
    added = Experiment("e", {"a": 4, "b": 4, "c": 2, "d": 1}).assign_all(USERS)
    assert set(added[added != before]) == {"d"}
    shrunk = Experiment("e", {"a": 1, "b": 4, "c": 2}).assign_all(USERS)
    assert set(before[shrunk != before]) == {"a"}


def test_settings_that_make_no_experiment_are_refused():
    for name, arms in (
        ("", {"a": 1, "b": 1}),
        ("e", {"a": 1}),
        ("e", {"a": 1, "b": 0}),
        ("e", {"a": 1, "b": math.nan}),
    ):
        with pytest.raises(ConfigError, match="Expected"):
            Experiment(name, arms)
    with pytest.raises(ConfigError, match="found an empty one at place 2"):
        HALVES.assign_all(["1", ""])

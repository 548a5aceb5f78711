from types import SimpleNamespace

import numpy as np
import pytest

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.explain.reliance import field_importance, shuffled, term_shares

N = 6


def queries(n=200, seed=0):
    """The target is the user's number, which is a field; another field says nothing, and a third is always the same."""
    rng = np.random.default_rng(seed)
    own = rng.integers(0, N, n).astype(np.int32)
    fields = {"user.own": own, "request.noise": rng.permutation(own), "user.same": np.full(n, np.nan)}
    return Queries.from_histories([[0, 1]] * n, exclude=[[]] * n, targets=own[:, np.newaxis].tolist(), fields=fields)


class ByField:
    """Scores the item that ``user.own`` names; a third of what it says of items 0 to 2 is behaviour, else all."""

    term_names = ("meaning", "behaviour")
    reads = ("user.own", "request.noise", "user.same", "event.rating", "not.there")

    def score(self, asked):
        return np.eye(N, dtype=np.float32)[asked.fields["user.own"]]

    def explain(self, asked, items):
        behaviour = np.where(items < 3, 1.0, 3.0)
        return {"meaning": np.where(items < 3, -2.0, 0.0), "behaviour": behaviour, "because": items}


def test_only_the_field_that_matters_has_a_worth():
    found = field_importance(ByField(), queries(), np.ones(N, int), 3, 1)
    assert list(found) == ["user.own", "request.noise"]
    drop, low, high = found["user.own"]
    assert 0.3 < low < drop < high < 0.9
    assert found["request.noise"] == (0, 0, 0)
    nobody = queries(0)
    assert field_importance(ByField(), nobody, np.ones(N, int), 3, 1) == {}


def test_shuffling_moves_the_values_of_one_field_alone():
    asked = queries()
    moved = shuffled(asked, "user.own", 3)
    assert not np.array_equal(moved.fields["user.own"], asked.fields["user.own"])
    np.testing.assert_array_equal(np.sort(moved.fields["user.own"]), np.sort(asked.fields["user.own"]))
    assert moved.fields["request.noise"] is asked.fields["request.noise"]
    marks = Queries.from_histories([[1], [2, 3]], [[1], [2, 3]])
    rated = shuffled(marks, "event.rating", 0).ratings
    assert isinstance(rated, Ragged) and sorted(rated.values) == [1, 2, 3] and rated.lengths.tolist() == [1, 2]


def test_shares_of_terms_by_stratum():
    strata = {"head": np.arange(N) < 3, "tail": np.arange(N) >= 3, "cold": np.zeros(N, bool)}
    found = term_shares(ByField(), queries(), strata, 1)
    assert list(found) == ["head", "tail"] and sum(places for places, _ in found.values()) == 200
    assert found["head"][1] == pytest.approx({"meaning": 2 / 3, "behaviour": 1 / 3})
    assert found["tail"][1] == {"meaning": 0.0, "behaviour": 1.0}
    without_history = Queries.from_histories([[]])
    assert term_shares(SimpleNamespace(term_names=()), without_history, strata, 1) == {}

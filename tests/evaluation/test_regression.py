"""Whether a model may replace the one in use."""

import numpy as np
import pytest

from tfllmrec.data.queries import Queries
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.evaluation.regression import OfEarlierCatalogue, verdict_of, without_queries

USERS, ITEMS = 200, 40
HEAD = np.arange(ITEMS) < 8


class Fixed:
    def __init__(self, scores):
        self.scores = scores

    def score(self, queries):
        return self.scores[queries.user_ids.astype(int)]


def result(found):
    """Of a model that puts the target of each query first where ``found`` says so, and last elsewhere."""
    targets = np.arange(USERS) % ITEMS
    scores = np.tile(np.linspace(0, 1, ITEMS, dtype=np.float32), (USERS, 1))
    scores[np.arange(USERS), targets] = np.where(found, 2.0, -2.0)
    queries = Queries.from_histories(
        [[]] * USERS, targets=[[t] for t in targets], user_ids=[str(u) for u in range(USERS)]
    )
    strata = {"head": HEAD, "tail": ~HEAD, "cold": np.arange(ITEMS) == ITEMS - 1}
    counts = np.ones(ITEMS, np.int64)
    return evaluate(Fixed(scores), queries, train_counts=counts, strata=strata, ks=[10], bootstrap=0)


OF_HEAD = HEAD[np.arange(USERS) % ITEMS]
SOMETIMES = np.random.default_rng(0).random(USERS) < 0.5


def test_the_same_model_passes_and_a_better_one():
    for better in (SOMETIMES, SOMETIMES | OF_HEAD):
        verdict = verdict_of(result(better), result(SOMETIMES), tolerance=0.0)
        assert verdict.passed and verdict.reasons == []
        # Five targets are cold, fewer than the twenty that a figure needs.
        assert [(each.stratum, each.targets) for each in verdict.strata] == [("all", 200), ("head", 40), ("tail", 160)]
    assert verdict.strata[1].updated == 1.0 and verdict.strata[1].in_use == pytest.approx(SOMETIMES[OF_HEAD].mean())
    assert verdict.as_dict()["strata"][0]["stratum"] == "all"


def test_a_stratum_that_is_worse_beyond_chance_stops_it_though_all_is_better():
    worse_in_head = (SOMETIMES & ~OF_HEAD) | (~OF_HEAD & (np.arange(USERS) % 3 > 0))
    verdict = verdict_of(result(worse_in_head), result(SOMETIMES), tolerance=0.9)
    assert not verdict.passed
    (reason,) = verdict.reasons
    assert reason.startswith("head: worse beyond chance (ndcg@10 0.0000 against")
    assert verdict.strata[0].updated > verdict.strata[0].in_use


def test_ndcg_may_be_a_little_lower_and_no_more():
    one_lost = SOMETIMES.copy()
    one_lost[SOMETIMES.argmax()] = False
    share = 1 - one_lost.mean() / SOMETIMES.mean()
    assert verdict_of(result(one_lost), result(SOMETIMES), tolerance=share + 1e-6).passed
    verdict = verdict_of(result(one_lost), result(SOMETIMES), tolerance=share - 1e-6)
    assert not verdict.passed and "--set update.tolerance=" in verdict.reasons[0]


def test_few_targets_are_no_reason_to_promote():
    few = np.arange(USERS) >= 19
    targets = {"targets": 19, "targets/head": 8, "targets/tail": 11, "targets/cold": 0}
    same = without_queries(result(SOMETIMES), few, targets)
    verdict = verdict_of(same, same, tolerance=0.0)
    assert not verdict.passed and "expected at least 20, found 19" in verdict.reasons[0]


def test_a_model_of_an_earlier_catalogue_ignores_what_it_does_not_know():
    asked = []

    class Earlier:
        def score(self, queries):
            asked.append(queries)
            return np.array([[0.5, -3.0]], np.float32)

    # Of three items, the model knows the third as its first and the first as its second.
    model = OfEarlierCatalogue(Earlier(), np.array([1, -1, 0]))
    scores = model.score(Queries.from_histories([[0, 1, 2]]))
    assert scores.tolist() == [[-3.0, -4.0, 0.5]] and scores.dtype == np.float32
    assert asked[0].history[0].tolist() == [1, 0]

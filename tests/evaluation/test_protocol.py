import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tfllmrec.data.queries import Queries
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import (
    Result,
    averaged,
    evaluate,
    mean_interval,
    paired_difference,
    paired_differences,
    selection_gain,
    selection_value,
    users_of,
)
from tfllmrec.evaluation.report import shown_columns


@dataclass
class Fixed:
    """Scores set beforehand, found again by the user id (a row number)."""

    scores: np.ndarray

    def score(self, queries):
        return self.scores[queries.user_ids.astype(int)]


def queries(targets, exclude=None):
    n = len(targets)
    return Queries.from_histories([[]] * n, exclude=exclude, targets=targets, user_ids=[str(i) for i in range(n)])


COUNTS = np.array([5, 2, 1, 0])
STRATA = {
    "head": np.array([1, 0, 0, 0], bool),
    "tail": np.array([0, 1, 1, 1], bool),
    "cold": np.array([0, 0, 0, 1], bool),
}
SCORES = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


def run(scores, qs, **settings):
    return evaluate(
        Fixed(scores), qs, **{"train_counts": COUNTS, "strata": STRATA, "ks": [1, 2], "bootstrap": 50} | settings
    )


def test_metrics_and_counts_by_hand():
    result = run(SCORES, queries([[0], [2], []]))
    assert result.metrics["recall@1"] == (1 + 0) / 2
    assert result.metrics["recall@2"] == (1 + 1) / 2
    assert result.metrics["ndcg@2"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert result.metrics["mrr@2"] == (1 + 1 / 2) / 2
    assert result.metrics["recall@2/head"] == 1
    assert result.metrics["recall@1/tail"] == 0
    assert result.metrics["recall@2/cold"] is None
    assert "recall@2/cold" not in result.intervals
    # Lists of two: 0 1, 3 2, 0 1 - the query without a target is shown something too.
    assert result.metrics["coverage@2"] == 4 / 4
    assert result.metrics["coverage@1"] == 2 / 4
    assert result.metrics["coverage@1/tail"] == 1 / 3
    assert result.metrics["gini@1"] == (1 * 1 + 3 * 2) / (4 * 3)  # exposure 2 0 0 1
    shares = (COUNTS + 1) / 12
    assert result.metrics["novelty@1"] == pytest.approx(-(2 * np.log2(shares[0]) + np.log2(shares[3])) / 3)
    assert result.metrics["novelty@1/cold"] == pytest.approx(-np.log2(1 / 12))
    assert result.counts == {
        "queries": 3,
        "queries_without_targets": 1,
        "targets": 2,
        "targets/head": 1,
        "targets/tail": 1,
        "targets/cold": 0,
        "targets_excluded": 0,
    }


def test_a_function_is_measured_like_a_recommender():
    asked = queries([[0], [2], []])
    found = evaluate(Fixed(SCORES).score, asked, train_counts=COUNTS, strata=STRATA, ks=[1, 2], bootstrap=50)
    assert found.metrics == run(SCORES, asked).metrics

    def of_others(queries):
        return np.zeros((len(queries), 9), np.float32)

    with pytest.raises(ModelError, match=r"got \[3, 9\] from of_others"):
        evaluate(of_others, asked, train_counts=COUNTS, strata=STRATA)


def test_coverage_is_that_of_the_candidates():
    asked = replace(queries([[0], [2]]), candidates=np.array([True, False, True, False]))
    result = run(SCORES[:2], asked)
    assert result.metrics["coverage@1"] == 2 / 2 and result.metrics["coverage@1/tail"] == 1 / 1
    assert result.metrics["coverage@1/cold"] is None and result.metrics["recall@1"] == 1


def test_alarms_look_at_the_candidates_alone():
    asked = replace(queries([[0]] * 60), candidates=np.arange(100) < 30)
    scores = np.tile(np.arange(100, dtype=np.float32), (60, 1))
    few = evaluate(lambda asked: scores[: len(asked)], asked, train_counts=np.ones(100, int), strata={}, ks=[5])
    assert few.alarms == []  # 5 of 30 items are no small share
    scores[:, :30] = 1
    (alike,) = evaluate(lambda asked: scores, asked, train_counts=np.ones(100, int), strata={}, ks=[5]).alarms
    assert "all items score alike for 100%" in alike


def test_further_metrics_are_measured_on_demand():
    asked = queries([[0], [2], []])
    plain, result = run(SCORES, asked), run(SCORES, asked, further=["precision", "f1", "map", "accuracy", "auc"])
    assert plain.metrics.items() <= result.metrics.items() and not any("auc" in label for label in plain.metrics)
    assert result.metrics["precision@2"] == (1 / 2 + 1 / 2) / 2
    assert result.metrics["f1@2"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert result.metrics["map@2"] == (1 + 1 / 2) / 2
    assert result.metrics["accuracy"] == result.metrics["precision@1"] == 1 / 2
    assert result.metrics["auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert result.metrics["auc/head"] == 1 and result.metrics["auc/cold"] is None
    assert {"auc", "auc/tail", "map@1", "f1@2/head"} <= set(result.intervals)
    columns = shown_columns({"hybrid": Result(result.metrics, {}, {}, {}, [])})
    assert columns[-6:] == ["precision@2", "f1@2", "map@2", "accuracy", "auc", "coverage@2"]
    assert shown_columns({"hybrid": Result(plain.metrics, {}, {}, {}, [])}) == columns[:-6] + columns[-1:]
    with pytest.raises(ModelError, match=r"Expected metrics among recall, .* auc, got specificity\."):
        run(SCORES, asked, further=["specificity"])


def test_in_the_choice_of_settings_tail_targets_count_twice():
    half = 1 / np.log2(3)  # ndcg of a target in the second place
    three = queries([[0], [2], [1]])
    assert selection_value(run(SCORES, three)) == pytest.approx((1 + 2 * half + 2 * half) / 5)
    assert selection_value(run(SCORES, queries([[0]]))) == 1  # nothing in the tail
    assert selection_value(run(SCORES, three, strata={})) == pytest.approx((1 + half + half) / 3)
    wide = np.arange(12.0)[np.newaxis]  # item 11 first, item 1 in place 11
    missed = run(wide, queries([[1]]), ks=[10, 20], strata={}, train_counts=np.ones(12, int))
    assert selection_value(missed) == 0 < missed.metrics["ndcg@20"]


def test_a_gain_in_what_settings_are_chosen_by_has_the_interval_of_a_bootstrap():
    rng = np.random.default_rng(3)
    targets = rng.integers(4, size=(500, 1))
    scores = rng.normal(size=(500, 4)).astype(np.float32)
    better = scores + 0.5 * np.eye(4, dtype=np.float32)[targets[:, 0]]
    a, b = run(better, queries(targets)), run(scores, queries(targets))
    gain, low, high = selection_gain(a, b, seed=1)
    assert gain == pytest.approx(selection_value(a) - selection_value(b))
    # The slow version: the same formula on each resample.
    values = [[np.nan_to_num(r.per_query[label]) for label in ("ndcg@2", "ndcg@2/tail")] for r in (a, b)]
    size = 1 + STRATA["tail"][targets[:, 0]]
    slow = []
    for _ in range(1000):
        rows = rng.integers(500, size=500)
        slow.append((np.sum(values[0], axis=0) - np.sum(values[1], axis=0))[rows].sum() / size[rows].sum())
    assert (low, high) == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))), abs=0.004)
    assert low < gain < high
    same, low, high = selection_gain(b, b)
    assert (same, low, high) == (0, 0, 0)


def test_a_gain_needs_the_same_queries():
    a, b = run(SCORES, queries([[0], [1], [2]])), run(SCORES, queries([[0], [1], []]))
    with pytest.raises(ModelError, match="the same queries"):
        selection_gain(a, b)


def test_excluded_items_are_never_shown_and_count_as_misses():
    result = run(SCORES, queries([[0], [2], [1]], exclude=[[0], [3], []]))
    assert result.counts["targets_excluded"] == 1
    assert result.metrics["recall@1"] == pytest.approx((0 + 1 + 0) / 3)
    assert result.metrics["coverage@1/cold"] == 0


def test_the_batch_size_changes_nothing():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, size=(23, 4)).astype(np.float32)
    qs = queries([[int(i)] if i < 4 else [] for i in rng.integers(0, 5, 23)])
    seen = []
    whole, parts = run(scores, qs, batch_size=100), run(scores, qs, batch_size=5, progress=seen.append)
    assert whole.metrics == parts.metrics
    assert whole.intervals == parts.intervals
    assert seen == [5, 5, 5, 5, 3]


def test_list_lengths_in_any_order():
    qs = queries([[0], [2], []])
    assert run(SCORES, qs, ks=(2, 2, 1)).metrics == run(SCORES, qs).metrics


def test_a_result_is_plain_json_without_nan():
    result = run(SCORES, queries([[0], [], []]))
    json.dumps([result.metrics, result.intervals, result.counts, result.alarms], allow_nan=False)


def test_no_queries_at_all():
    result = run(SCORES, queries([]))
    assert result.metrics["ndcg@2"] is None
    assert result.counts["queries"] == 0


def test_intervals_are_those_of_a_bootstrap():
    rng = np.random.default_rng(1)
    hits = rng.random(400) < 0.3
    scores = np.where(hits[:, None], [2.0, 1, 0, 0], [1.0, 2, 0, 0]).astype(np.float32)
    result = run(scores, queries([[0]] * 400), bootstrap=2000, seed=7)
    low, high = result.intervals["recall@1"]
    p = hits.mean()
    error = 1.96 * np.sqrt(p * (1 - p) / 400)  # the normal approximation, good at n = 400
    assert (low, high) == pytest.approx((p - error, p + error), abs=0.005)
    assert result.intervals == run(scores, queries([[0]] * 400), bootstrap=2000, seed=7).intervals
    # A few resamples, whose quantiles differ by whole queries: with many, two seeds give the same interval.
    few = [run(scores, queries([[0]] * 400), bootstrap=5, seed=seed).intervals["recall@1"] for seed in (7, 8)]
    assert abs(few[0][0] - few[1][0]) > 1e-3
    assert run(scores, queries([[0]] * 400), bootstrap=0).intervals == {}


def test_queries_of_one_user_are_resampled_together():
    """Ten queries of each of 60 users, all right or all wrong: they say no more than one query of each."""
    rng = np.random.default_rng(4)
    right = rng.random(60) < 0.4
    users = np.repeat(np.arange(60), 10)
    one, ten = (np.where(hits[:, None], [2.0, 1, 0, 0], [1.0, 2, 0, 0]) for hits in (right, right[users]))
    other = np.where(rng.random(600)[:, None] < 0.4, [2.0, 1, 0, 0], [1.0, 2, 0, 0])

    def measured(scores, user_ids, **settings):
        asked = queries([[0]] * len(scores))
        ids = np.array([str(user) for user in user_ids], object)
        recommender = type("Fixed", (), {"score": lambda self, batch: scores[: len(batch)].astype(np.float32)})()
        asked = replace(asked, user_ids=ids)
        return evaluate(recommender, asked, train_counts=COUNTS, strata={}, ks=[1], batch_size=1000, **settings)

    alone, together = measured(one, range(60)), measured(ten, users)
    assert together.intervals == alone.intervals
    low, high = together.intervals["recall@1"]
    apart = measured(ten, range(600)).intervals["recall@1"]
    assert high - low > 2.5 * (apart[1] - apart[0])
    # In any order of the queries, and so for differences, averages and what settings are chosen by.
    order = rng.permutation(600)
    mixed = measured(ten[order], users[order])
    assert mixed.intervals["recall@1"] == pytest.approx((low, high), abs=0.02)
    against = measured(other, users), measured(other, range(600))
    wide, narrow = (
        paired_difference(a, b, "recall@1")[1:]
        for a, b in ((together, against[0]), (measured(ten, range(600)), against[1]))
    )
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])
    assert averaged([together, together]).intervals == together.intervals
    with pytest.raises(ModelError, match="assign them to different users"):
        averaged([together, measured(ten, range(600))])
    wide, narrow = (
        selection_gain(a, b)[1:] for a, b in ((together, against[0]), (measured(ten, range(600)), against[1]))
    )
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])
    # The slow version: users drawn with replacement, and of each all queries.
    values, sizes = rng.random(600), rng.integers(1, 20, 60)
    users = np.repeat(np.arange(60), sizes)[:600]
    values = values[: len(users)]
    slow = []
    for _ in range(2000):
        drawn = np.concatenate([values[users == user] for user in rng.integers(users.max() + 1, size=users.max() + 1)])
        slow.append(drawn.mean())
    assert mean_interval(values, users, bootstrap=2000) == pytest.approx(np.quantile(slow, (0.025, 0.975)), abs=0.004)


def test_queries_without_a_user_id_are_different_users():
    assert users_of(np.array(["b", "", "a", "b", ""], object)).tolist() == [0, 1, 2, 0, 3]
    assert users_of(np.array(["b", "a"])).tolist() == [0, 1]


def test_a_stratum_seen_once_has_an_interval_all_the_same():
    result = run(np.tile(SCORES[:1], (50, 1)), queries([[3]] + [[0]] * 49), ks=[4], bootstrap=100)
    assert result.intervals["mrr@4/cold"] == (1 / 4, 1 / 4)


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(2)
    scores = rng.random((300, 4)).astype(np.float32)
    better = scores.copy()
    better[:60, 0] = 2.0
    qs = queries([[0]] * 300)
    a, b = run(better, qs, bootstrap=500), run(scores, qs, bootstrap=500)
    difference, low, high = paired_difference(a, b, "recall@1")
    assert difference == pytest.approx(a.metrics["recall@1"] - b.metrics["recall@1"])
    assert 0 < low < difference < high
    assert high - low < a.intervals["recall@1"][1] - a.intervals["recall@1"][0]
    assert paired_difference(b, a, "recall@1")[0] == pytest.approx(-difference)
    assert paired_difference(a, a, "recall@1") == (0, 0, 0)


def test_a_paired_difference_needs_the_same_queries_and_a_ranking_metric():
    a = run(SCORES, queries([[0], [2], []]))
    with pytest.raises(ModelError, match="same queries"):
        paired_difference(a, run(SCORES, queries([[0], [2], [1]])), "recall@1")
    with pytest.raises(ModelError, match="coverage@1"):
        paired_difference(a, a, "coverage@1")
    with pytest.raises(ModelError, match="with targets"):
        paired_difference(a, a, "recall@1/cold")


def test_several_differences_are_those_of_each_metric():
    rng = np.random.default_rng(3)
    qs = queries(rng.integers(3, size=(200, 1)).tolist())
    a, b = (run(rng.random((200, 4)).astype(np.float32), qs) for _ in range(2))
    found = paired_differences(a, b, ["recall@1", "ndcg@2/tail", "recall@1/cold"])
    assert found == {label: paired_difference(a, b, label) for label in ("recall@1", "ndcg@2/tail")}  # none is cold
    assert paired_differences(a, b, ["recall@1"], bootstrap=0) == {}


def test_seeds_are_averaged_for_each_query_before_the_bootstrap():
    """Two seeds that disagree on every query: each has a wide interval, their mean has none."""
    qs = queries([[0], [2], []] * 40)
    first = run(SCORES, queries([[0], [2], []]))
    hits = np.tile([[2.0, 1, 0, 0], [2.0, 1, 0, 0]], (60, 1)).astype(np.float32)
    misses = np.tile([[1.0, 2, 0, 0], [1.0, 2, 0, 0]], (60, 1)).astype(np.float32)
    alternating = [np.where(np.arange(120)[:, None] % 2 == place, hits, misses) for place in (0, 1)]
    all_zero = queries([[0]] * 120)
    seeds = [run(scores, all_zero) for scores in alternating]
    both = averaged(seeds, bootstrap=50)
    assert both.metrics["recall@1"] == 1 / 2 and both.intervals["recall@1"] == (1 / 2, 1 / 2)
    assert all(high - low > 0.1 for low, high in (seed.intervals["recall@1"] for seed in seeds))
    assert both.spread["recall@1"] == (1 / 2, 1 / 2) and both.counts == seeds[0].counts
    always = averaged([run(hits, all_zero)] * 2)
    assert paired_difference(always, both, "recall@1") == (1 / 2, 1 / 2, 1 / 2)
    assert averaged([first]).spread == {} and averaged([first]).metrics == first.metrics
    assert np.isnan(averaged([run(np.tile(SCORES, (40, 1)), qs)] * 2).per_query["recall@1"][2])


def test_the_spread_is_that_of_each_metric_over_the_seeds():
    qs = queries([[0], [2], [1]])
    seeds = [run(SCORES, qs), run(SCORES[::-1].copy(), qs), run(np.ones((3, 4)), qs)]
    mean = averaged(seeds)
    for label in ("ndcg@2", "recall@1/tail", "coverage@1", "novelty@2"):
        values = [seed.metrics[label] for seed in seeds]
        assert mean.metrics[label] == pytest.approx(sum(values) / 3)
        assert mean.spread[label] == (min(values), max(values))
    assert mean.metrics["recall@2/cold"] is None and "recall@2/cold" not in mean.spread
    assert mean.alarms == seeds[2].alarms != []


def test_targets_that_the_seed_draws_are_averaged_over_the_seeds_that_have_them():
    mean = averaged([run(SCORES, queries([[0], [2], []])), run(SCORES, queries([[1], [], []]))])
    assert mean.per_query["recall@1"][:2].tolist() == [1 / 2, 0] and np.isnan(mean.per_query["recall@1"][2])
    assert mean.counts["targets"] == 1 and mean.counts["targets/head"] == 0


def test_what_cannot_be_averaged_is_refused():
    qs = queries([[0], [2], []])
    with pytest.raises(ModelError, match="at least one result to average"):
        averaged([])
    with pytest.raises(ModelError, match="same metrics and strata"):
        averaged([run(SCORES, qs), run(SCORES, qs, strata={})])
    with pytest.raises(ModelError, match="same queries"):
        averaged([run(SCORES, qs), run(SCORES, queries([[0], [2]]))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": []}, "at least 1 in ks"),
        ({"ks": [0, 5]}, "at least 1 in ks"),
        ({"strata": {"tail": np.ones(3, bool)}}, "stratum 'tail' as bool"),
        ({"strata": {"tail": np.ones(4)}}, "stratum 'tail' as bool"),
        ({"train_counts": np.ones(5, np.int64), "strata": {}}, r"\[3, 5\] .* got \[3, 4\] from Fixed"),
    ],
)
def test_what_does_not_fit_is_said(settings, message):
    with pytest.raises(ModelError, match=message):
        run(SCORES, queries([[0], [2], []]), **settings)


def test_collapse_is_alarmed():
    assert "all items score alike for 100%" in run(np.ones((3, 4)), queries([[0]] * 3)).alarms[0]
    assert run(SCORES, queries([[0]] * 3)).alarms == []

"""Golden numbers as arithmetic, and a slow oracle that averages over every order of the ties."""

from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.errors import ModelError
from tfllmrec.evaluation import metrics


def ragged(*rows):
    return Ragged.from_rows(rows, np.int64)


def asked(exclude, candidates=None):
    """Queries that exclude these items."""
    return replace(Queries.from_histories([[]] * len(exclude), exclude=list(exclude)), candidates=candidates)


def measured(scores, targets, exclude, k):
    ranks = metrics.rank_targets(metrics.masked(np.asarray(scores), asked(exclude)), targets)
    n = len(targets)
    return tuple(f(ranks, n, k) for f in (metrics.recall, metrics.ndcg, metrics.mrr))


def further(scores, targets, exclude, k):
    """precision, f1, average precision and auc"""
    ranks = metrics.rank_targets(metrics.masked(np.asarray(scores), asked(exclude)), targets)
    n = len(targets)
    return *(f(ranks, n, k) for f in (metrics.precision, metrics.f1, metrics.average_precision)), metrics.auc(ranks, n)


def log2(x):
    return np.log2(x)


def test_only_candidates_are_ranked():
    candidates = np.array([True, False, True, True])
    masked = metrics.masked(np.array([[1.0, 9.0, 3.0, 2.0]]), asked(ragged([3]), candidates))
    assert masked.tolist() == [[1.0, -np.inf, 3.0, -np.inf]]
    ranks = metrics.rank_targets(masked, ragged([0, 1]))
    assert ranks.better.tolist() == [1, metrics.UNREACHABLE] and ranks.unmasked.tolist() == [2, 2]


def test_one_target_without_ties():
    recall, ndcg, mrr = measured([[0.1, 0.9, 0.5, 0.3]], ragged([3]), ragged([]), 3)
    assert recall == [1.0]
    assert ndcg == pytest.approx([1 / log2(3 + 1)])  # third place
    assert mrr == pytest.approx([1 / 3])
    assert [float(x[0]) for x in measured([[0.1, 0.9, 0.5, 0.3]], ragged([3]), ragged([]), 2)] == [0, 0, 0]


def test_a_tie_counts_at_its_expected_value():
    # One item is better; the target shares ranks 2, 3, 4 with two others.
    recall, ndcg, mrr = measured([[5.0, 1.0, 1.0, 1.0, 0.0]], ragged([2]), ragged([]), 3)
    assert recall == pytest.approx([(3 - 1) / 3])
    assert ndcg == pytest.approx([(1 / log2(3) + 1 / log2(4)) / 3])
    assert mrr == pytest.approx([(1 / 2 + 1 / 3) / 3])


def test_a_constant_score_is_worth_no_more_than_chance():
    recall, _, _ = measured(np.zeros((1, 1000)), ragged([7]), ragged([]), 10)
    assert recall == pytest.approx([10 / 1000])


def test_excluded_items_are_masked_before_ranking_and_before_ties():
    recall, ndcg, mrr = measured([[5.0, 1.0, 1.0, 1.0]], ragged([2]), ragged([0, 1]), 1)
    assert recall == pytest.approx([1 / 2])  # only item 3 still ties
    assert ndcg == pytest.approx([1 / 2])
    assert mrr == pytest.approx([1 / 2])


def test_an_excluded_target_is_a_miss_at_every_k_and_counted():
    masked = metrics.masked(np.array([[3.0, 2.0, 1.0]]), asked(ragged([0])))
    ranks = metrics.rank_targets(masked, ragged([0, 1]))
    assert ranks.excluded == 1
    assert metrics.recall(ranks, 1, 100) == [1 / 2]
    assert metrics.ndcg(ranks, 1, 100) == pytest.approx([1 / (1 + 1 / log2(3))])
    assert metrics.mrr(ranks, 1, 100) == [1.0]


def test_several_targets_share_an_ideal_of_at_most_k():
    scores = [[9.0, 8.0, 7.0, 6.0, 5.0]]
    recall, ndcg, mrr = measured(scores, ragged([1, 3, 4]), ragged([]), 2)
    assert recall == pytest.approx([1 / 3])
    assert ndcg == pytest.approx([(1 / log2(3)) / (1 + 1 / log2(3))])
    assert mrr == pytest.approx([1 / 2])


def test_a_query_without_targets_has_no_value():
    for values in measured([[1.0, 2.0], [1.0, 2.0]], ragged([], [1]), ragged([], []), 1):
        assert np.isnan(values[0])
        assert values[1] == 1


def test_a_target_named_twice_counts_once():
    recall, _, _ = measured([[1.0, 2.0]], ragged([1, 1, 0]), ragged([]), 1)
    assert recall == [1 / 2]


def test_within_keeps_the_rank_among_the_whole_catalogue():
    ranks = metrics.rank_targets(np.array([[3.0, 2.0, 1.0]], np.float32), ragged([0, 2]))
    tail = ranks.within(np.array([False, True, True]))
    assert metrics.recall(tail, 1, 2) == [0.0]
    assert metrics.recall(tail, 1, 3) == [1.0]


@pytest.mark.parametrize("seed", range(8))
def test_the_mean_over_every_order_of_the_ties(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=7).astype(np.float32)  # many ties
    targets = rng.choice(7, size=rng.integers(1, 5), replace=False)
    exclude = rng.choice(7, size=rng.integers(0, 3), replace=False)
    k = int(rng.integers(1, 8))

    found, gains, firsts, precisions, areas = [], [], [], [], []
    open_items = [i for i in range(7) if i not in exclude]
    for order in permutations(open_items):
        if any(scores[a] < scores[b] for a, b in pairwise(order)):
            continue  # not a ranking by score
        ranks = [place + 1 for place, item in enumerate(order[:k]) if item in targets]
        found.append(len(ranks) / len(targets))
        gains.append(sum(1 / log2(r + 1) for r in ranks))
        firsts.append(1 / ranks[0] if ranks else 0)
        precisions.append(sum((hits + 1) / rank for hits, rank in enumerate(ranks)))
        place = {item: i for i, item in enumerate(order)}
        others = [i for i in order if i not in targets]
        areas.append(np.mean([place.get(t, 99) < place[o] for t in targets for o in others]) if others else np.nan)
    ideal = sum(1 / log2(r + 1) for r in range(1, min(k, len(targets)) + 1))

    recall, ndcg, mrr = measured(scores[None], ragged(targets), ragged(exclude), k)
    assert recall == pytest.approx([np.mean(found)])
    assert ndcg == pytest.approx([np.mean(gains) / ideal])
    assert mrr == pytest.approx([np.mean(firsts)])
    precision, f1, ap, auc = further(scores[None], ragged(targets), ragged(exclude), k)
    hits = np.mean(found) * len(targets)
    assert precision == pytest.approx([hits / k])
    assert f1 == pytest.approx([2 * hits / (k + len(targets))])
    assert ap == pytest.approx([np.mean(precisions) / min(k, len(targets))])
    assert auc == pytest.approx([np.mean(areas)], nan_ok=True)


def test_precision_f1_map_and_auc_by_hand():
    # Targets in places 1 and 4 of 5.
    values = further([[5.0, 4.0, 3.0, 2.0, 1.0]], ragged([0, 3]), ragged([]), 4)
    expected = [2 / 4, 2 * (2 / 4) * 1 / (2 / 4 + 1), (1 / 1 + 2 / 4) / 2, (3 / 3 + 1 / 3) / 2]
    assert [float(value[0]) for value in values] == pytest.approx(expected)
    for value in further([[1.0, 2.0], [1.0, 2.0]], ragged([], [1]), ragged([], []), 1):
        assert np.isnan(value[0]) and value[1] == 1
    # An excluded target is a miss; without another item there is no area.
    assert [float(value[0]) for value in further([[3.0, 2.0, 1.0]], ragged([0, 1]), ragged([0]), 2)] == pytest.approx(
        [1 / 2, 2 * 1 / (2 + 2), (1 / 1) / 2, (0 + 1) / 2]
    )
    assert np.isnan(further([[1.0, 2.0]], ragged([1]), ragged([0]), 1)[3][0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(bad):
    with pytest.raises(ModelError, match="query 1 of the batch, item_index 2"):
        metrics.masked(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, bad]]), asked(ragged([], [])))


@pytest.mark.parametrize("item", [-1, 3])
def test_items_outside_the_catalogue_are_an_error(item):
    with pytest.raises(ModelError, match=f"excluded items between 0 and 2, got {item}"):
        metrics.masked(np.zeros((1, 3)), asked(ragged([item])))
    with pytest.raises(ModelError, match=f"target items between 0 and 2, got {item}"):
        metrics.rank_targets(np.zeros((1, 3)), ragged([item]))


def test_shapes_must_fit():
    with pytest.raises(ModelError, match=r"\[2, N\]"):
        metrics.masked(np.zeros((1, 3)), asked(ragged([], [])))
    with pytest.raises(ModelError, match="targets for 1 queries, got 2"):
        metrics.rank_targets(np.zeros((1, 3)), ragged([], []))


def test_masking_leaves_the_given_scores_alone():
    scores = np.ones((1, 3), np.float32)
    metrics.masked(scores, asked(ragged([1])))
    assert scores.min() == 1


@pytest.mark.parametrize("k", [1, 3, 10, 60])
@pytest.mark.parametrize("levels", [1, 4, 10_000])
def test_top_items_against_a_full_sort(k, levels):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, levels, size=(20, 50)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    top = metrics.top_items(scores, k)
    for row in range(20):
        order = sorted((-s, i) for i, s in enumerate(scores[row]) if s > -np.inf)
        expected = [i for _, i in order[:k]]
        assert top[row].tolist() == expected + [-1] * (k - len(expected))


def test_list_metrics():
    exposure = np.array([0, 1, 3, 0])
    assert metrics.coverage(exposure) == 2 / 4
    # Ascending 0 0 1 3; weights 2i - N - 1 are -3 -1 1 3.
    assert metrics.gini(exposure) == (1 * 1 + 3 * 3) / (4 * 4)
    assert metrics.gini(np.array([2, 2, 2])) == 0
    surprise = metrics.self_information(np.array([3, 0, 2, 1]))  # + 1 each: shares 4, 1, 3, 2 of 10
    assert metrics.novelty(exposure, surprise) == pytest.approx((1 * log2(10 / 1) + 3 * log2(10 / 3)) / 4)


def test_list_metrics_of_nothing():
    nothing = np.zeros(3, np.int64)
    assert metrics.coverage(nothing) == 0
    assert np.isnan(metrics.gini(nothing))
    assert np.isnan(metrics.novelty(nothing, np.ones(3)))
    assert np.isnan(metrics.coverage(nothing[:0]))

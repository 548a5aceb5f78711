"""Explicit normal equations, a row at a time, are the oracle."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stand_ins import training_data

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.models.baselines import Popularity
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.ials import Ials

SHARED = Path(__file__).parents[3] / "shared" / "data" / "movielens-100k"


def slow_vector(others, events, weights, unobserved, l2):
    """The minimum of one row's loss: ``sum c (<x, o> - 1)^2 + a sum <x, o>^2 + l2 (n + a M) |x|^2``."""
    left = unobserved * others.T @ others
    left += l2 * (sum(weights) + unobserved * len(others)) * np.eye(others.shape[1])
    right = np.zeros(others.shape[1])
    for event, weight in zip(events, weights, strict=True):
        left += weight * np.outer(others[event], others[event])
        right += weight * others[event]
    return np.linalg.solve(left, right)


@pytest.mark.parametrize("dim", [2, 5, 40])  # histories of more and of fewer events than that
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_query_solves_the_normal_equations_of_its_history(dim, decay):
    rng = np.random.default_rng(0)
    model = Ials(dim=dim, unobserved_weight=0.2, l2=0.01, decay=decay)
    model.items = rng.normal(size=(30, dim)).astype(np.float32)
    histories = [[3], [], [7, 1, 2], [*range(5, 17)], [4, 9, 4], [*range(30)]]
    queries = Queries.from_histories(histories)
    scores = model.score(queries)
    assert [list(row) for row in queries.history] == histories  # in their order still
    assert scores.dtype == np.float32 and not scores[1].any()
    for history, row in zip(histories, scores, strict=True):
        weights, uses = {}, Counter()
        for steps_back, item in enumerate(reversed(history)):
            uses[item] += 1
            weights[item] = weights.get(item, 0.0) + decay**steps_back * np.log2(1 + 1 / uses[item])
        expected = model.items @ slow_vector(model.items.astype(float), weights, weights.values(), 0.2, 0.01)
        np.testing.assert_allclose(row, expected, atol=2e-4)


def test_fit_alternates_between_the_two_sides():
    rng = np.random.default_rng(1)
    rows = [rng.choice(12, size=size, replace=False) for size in rng.integers(1, 9, 20)]
    model = Ials(dim=3, unobserved_weight=0.3, l2=0.02).fit(training_data(Ragged.from_rows(rows, np.int64), 13))

    items = np.random.default_rng(0).standard_normal((13, 3), np.float32) * 0.1 / np.sqrt(3)
    by_item = [[user for user, row in enumerate(rows) if item in row] for item in range(13)]
    for _ in range(8):
        users = np.stack([slow_vector(items, row, np.ones(len(row)), 0.3, 0.02) for row in rows])
        items = np.stack([slow_vector(users, row, np.ones(len(row)), 0.3, 0.02) for row in by_item])
    np.testing.assert_allclose(model.items, items, atol=1e-3)
    assert not model.items[12].any()  # of an item without events


def test_repeated_events_count_once_in_fit():
    once, twice = (Ragged.from_rows(rows, np.int64) for rows in ([[0, 1], [1, 2]], [[0, 1, 0], [1, 2, 2]]))
    assert np.array_equal(Ials(dim=2).fit(training_data(once, 3)).items, Ials(dim=2).fit(training_data(twice, 3)).items)


def test_larger_l2_and_more_weight_on_the_unobserved_shrink_the_scores():
    rng = np.random.default_rng(2)
    data = training_data(Ragged.from_rows([rng.choice(9, size=4, replace=False) for _ in range(40)], np.int64), 9)
    queries = Queries.from_histories([[0, 1]])
    plain = np.abs(Ials(dim=4).fit(data).score(queries)).max()
    assert np.abs(Ials(dim=4, l2=0.1).fit(data).score(queries)).max() < plain
    assert np.abs(Ials(dim=4, unobserved_weight=3.0).fit(data).score(queries)).max() < plain


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not beside this checkout")
def test_movielens_100k():
    from tfllmrec.config import DataConfig, SplitConfig
    from tfllmrec.data import make_split, read_dataset

    split = make_split(read_dataset(DataConfig(source=str(SHARED))), SplitConfig(), seed=42)
    data = TrainingData(split, np.zeros((split.dataset.n_items, 1), np.float32))

    def ndcg(model):
        result = evaluate(model, split.validation, train_counts=split.train_counts, strata={}, ks=[10], bootstrap=0)
        return result.metrics["ndcg@10"]

    # A point of its grid, measured on validation.
    points = {name: values[0] for name, values in Ials.fit_grid.items()}
    fitted = Ials(**points).fit(data)
    fitted.decay = Ials.score_grid["decay"][-1]
    assert ndcg(fitted) > 0.09 > ndcg(Popularity().fit(data))

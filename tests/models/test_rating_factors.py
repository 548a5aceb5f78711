from dataclasses import replace

import numpy as np
import pytest

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.models import rating_factors
from tfllmrec.models.rating_factors import RatingFactors, fit_rating_factors

N_USERS, N_ITEMS = 120, 60


@pytest.fixture(scope="module")
def planted():
    """(users, items, ratings, text): biases, two factors, half of all pairs; items' factors are half in their text."""
    generator = np.random.default_rng(0)
    of_users, of_items = generator.normal(size=(N_USERS, 2)), generator.normal(size=(N_ITEMS, 2))
    text = np.concatenate([of_items, generator.normal(size=(N_ITEMS, 6))], axis=1)
    bias = 0.5 * generator.normal(size=N_ITEMS), 0.3 * generator.normal(size=N_USERS)
    users, items = np.nonzero(generator.random((N_USERS, N_ITEMS)) < 0.5)
    exact = 3 + bias[0][items] + bias[1][users] + (of_users[users] * of_items[items]).sum(axis=1)
    return users, items, exact + 0.3 * generator.normal(size=len(users)), text


def histories(users, items, ratings):
    rows = [users == user for user in range(N_USERS)]
    return Ragged.from_rows([items[row] for row in rows], np.int64), Ragged.from_rows(
        [ratings[row] for row in rows], np.float32
    )


def errors(model, train, test, planted):
    """The test errors of the model, by histories alone."""
    users, items, ratings, _ = planted
    known = model.users(*histories(users[train], items[train], ratings[train]))[users[test]]
    told = model.mean + known[:, 0] + model.item_bias[items[test]]
    told = told + (model.item_factors[items[test]] * known[:, 1:]).sum(axis=1)
    return np.sqrt(np.mean((told - ratings[test]) ** 2))


def test_planted_factors_are_found_down_to_the_noise(planted):
    users, items, ratings, text = planted
    test = np.random.default_rng(1).random(len(users)) < 0.1
    model = fit_rating_factors(users[~test], items[~test], ratings[~test], N_ITEMS, rank=4)
    biases = fit_rating_factors(users[~test], items[~test], ratings[~test], N_ITEMS, rank=0)
    assert errors(model, ~test, test, planted) < 0.45 < 1.2 < errors(biases, ~test, test, planted)
    assert 0.3**2 < model.noise < 0.45**2
    # Ratings that are dealt out at random have no factors, and the model knows: it does not do worse than biases.
    mixed = (users, items, np.random.default_rng(2).permutation(ratings), text)
    model, biases = (
        fit_rating_factors(users[~test], items[~test], mixed[2][~test], N_ITEMS, rank=rank) for rank in (4, 0)
    )
    assert errors(model, ~test, test, mixed) < 1.02 * errors(biases, ~test, test, mixed)


def test_a_user_is_the_solution_of_a_ridge_regression(planted):
    """The slow way: one user at a time, with what was met added up item by item."""
    users, items, ratings, _ = planted
    ratings = np.where(np.arange(len(ratings)) % 4 == 0, np.nan, ratings)
    model = fit_rating_factors(users, items, ratings, N_ITEMS, rank=3)
    known = model.users(*histories(users, items, ratings))
    for user in (0, 7):
        own = users == user
        met = sum(model.met[item] for item in items[own]) / np.sqrt(own.sum())
        length = np.clip((np.log1p(own.sum()) - model.count_shift) / model.count_scale, -2, 2)
        features = np.concatenate([[1, length], met])
        left, right = model.precision.astype(float), model.precision @ (features @ model.met_map)
        for item, rating in zip(items[own], ratings[own], strict=True):
            if np.isfinite(rating):
                vector = np.concatenate([[1], model.item_factors[item]])
                left = left + np.outer(vector, vector) / model.noise
                right = right + vector * (rating - model.mean - model.item_bias[item]) / model.noise
        assert known[user] == pytest.approx(np.linalg.solve(left, right), abs=1e-4)


def test_ratings_of_queries_are_within_the_scale(planted):
    users, items, ratings, _ = planted
    model = fit_rating_factors(users, items, np.clip(ratings, 1, 5), N_ITEMS, rank=3)
    queries = Queries.from_histories([[0, 1], [], [5]], ratings=[[5, 5], [], [np.nan]])
    told = model.ratings(queries, np.tile(np.arange(N_ITEMS), (3, 1)))
    assert told.shape == (3, N_ITEMS) and told.dtype == np.float32 and told.min() >= 1 and told.max() <= 5
    # Of somebody of whom nothing is known the items' biases remain.
    assert np.corrcoef(told[1], model.item_bias)[0, 1] > 0.8
    assert not np.allclose(told[0], told[1]) and not np.allclose(told[1], told[2])


def test_a_cold_item_is_rated_by_its_text(planted):
    users, items, ratings, text = planted
    cold = items >= 50
    told = {}
    for name, given in {"text": text, "none": None, "alike": np.ones_like(text)}.items():
        model = fit_rating_factors(users[~cold], items[~cold], ratings[~cold], N_ITEMS, given, rank=4)
        told[name] = errors(model, ~cold, cold, planted)
    assert told["text"] < 0.8 * told["none"] and told["alike"] == told["none"]


def test_what_was_met_says_something_of_a_user():
    """Two kinds of users meet items of their kind and common ones; one kind rates higher. Some users rate nothing."""
    generator = np.random.default_rng(3)
    kind = generator.integers(2, size=400)
    users = np.repeat(np.arange(400), 8)
    items = generator.integers(30, size=3200) + 30 * kind[users]
    items[::4] = 60 + generator.integers(10, size=800)
    ratings = 3 + 2 * kind[users] - 1 + 0.2 * generator.normal(size=3200)
    ratings[users >= 300] = np.nan
    model = fit_rating_factors(users, items, ratings, 70, rank=2)
    queries = Queries.from_histories([[1, 2, 3], [31, 32, 33], []])
    low, high, unknown = model.ratings(queries, np.tile(np.arange(60, 70), (3, 1))).mean(axis=1)
    assert high - low > 1.2 and low < unknown < high


def test_more_users_than_the_limit_are_sampled(planted, monkeypatch):
    users, items, ratings, _ = planted
    whole = fit_rating_factors(users, items, ratings, N_ITEMS, rank=4)
    monkeypatch.setattr(rating_factors, "USERS", 60)
    model = fit_rating_factors(users, items, ratings, N_ITEMS, rank=4)
    everything = np.ones(len(users), bool)
    assert errors(whole, everything, everything, planted) < errors(model, everything, everything, planted) < 0.45


def test_blocks_and_progress_change_nothing(planted, monkeypatch):
    users, items, ratings, _ = planted
    seen = []
    whole = fit_rating_factors(
        users, items, ratings, N_ITEMS, rank=2, progress=lambda done, total: seen.append((done, total))
    )
    monkeypatch.setattr(rating_factors, "BLOCK", 7)
    parts = fit_rating_factors(users, items, ratings, N_ITEMS, rank=2)
    assert parts.item_factors == pytest.approx(whole.item_factors, abs=1e-5) and parts.steps == whole.steps
    assert seen[0] == (1, 2 * rating_factors.STEPS) and seen[-1] == (rating_factors.STEPS + whole.steps,) * 2


@pytest.mark.parametrize("events", [2, 3, 12])
def test_very_few_ratings(events):
    users, items = np.arange(events) % 3, np.arange(events) % 4
    model = fit_rating_factors(users, items, 1.0 + np.arange(events) % 5, 6, rank=16)
    told = model.ratings(Queries.from_histories([[0], []], ratings=[[5], []]), np.arange(12).reshape(2, 6) % 6)
    assert np.isfinite(told).all()


def test_a_prediction_without_its_own_rating_is_that_of_a_regression_without_it():
    generator = np.random.default_rng(5)
    of_users, noise, prior = generator.normal(size=(30, 3)), 0.5, np.diag([2.0, 1.0, 3.0])
    features = np.column_stack([np.ones(30), of_users[:, 1:]])
    above = generator.normal(size=30)  # ratings above the mean and the user's bias, of one item

    def regression(rows):
        covariance = np.linalg.inv(prior + features[rows].T @ features[rows] / noise)
        return covariance, covariance @ features[rows].T @ above[rows] / noise

    covariance, vector = regression(np.arange(30))
    model = RatingFactors.empty(4, 2, 0)
    bias, factors, covariances = model.item_bias.copy(), model.item_factors.copy(), np.zeros((4, 3, 3))
    bias[2], factors[2], covariances[2] = vector[0], vector[1:], covariance
    model = replace(model, mean=3.0, noise=noise, item_bias=bias, item_factors=factors, item_covariances=covariances)
    higher = model.without(of_users, np.full(30, 2), 3 + of_users[:, 0] + above)
    for row in (0, 11, 29):
        _, without = regression(np.delete(np.arange(30), row))
        assert higher[row] == pytest.approx(features[row] @ (vector - without), abs=1e-6)

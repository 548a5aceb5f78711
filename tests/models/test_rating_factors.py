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
    alike = {"alike": np.ones_like(text), "repeated": np.tile(text[0].astype(np.float32), (N_ITEMS, 1))}
    for name, given in {"text": text, "none": None, **alike}.items():
        model = fit_rating_factors(users[~cold], items[~cold], ratings[~cold], N_ITEMS, given, rank=4)
        told[name] = errors(model, ~cold, cold, planted)
    assert told["text"] < 0.8 * told["none"] and told["alike"] == told["repeated"] == told["none"]


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


def test_a_step_knows_how_uncertain_the_other_side_is(planted):
    """The slow way: one user, with the expected outer products of its items."""
    users, items, ratings, _ = planted
    fit = rating_factors._Fit(rating_factors._Ratings(users, items, ratings, N_USERS, N_ITEMS, None), 2, seed=1)
    for _ in range(4):
        fit.step(0.3)
    of_items, precision = fit.items, fit.users.precision.copy()
    prior = fit.users.features @ fit.users.map
    fit.users.update(of_items, fit.table.there, fit.table.above, 0.3, learn_precision=False)
    free, own = [0, 2, 3], users == 9  # b_u and the factors; place 1 of a user is the fixed loading of b_i
    left, right = precision.copy(), precision @ prior[9]
    for item, rating in zip(items[own], ratings[own], strict=True):
        vector = of_items.vectors[item]
        outer = np.outer(vector, vector) + of_items.covariances[item]
        left += outer[np.ix_(free, free)] / 0.3
        right += (vector[free] * (rating - fit.table.mean) - outer[free, 1]) / 0.3
    assert np.abs(of_items.covariances).max() > 1e-3
    assert fit.users.vectors[9, free] == pytest.approx(np.linalg.solve(left, right))
    assert fit.users.covariances[9][np.ix_(free, free)] == pytest.approx(np.linalg.inv(left))
    assert (fit.users.vectors[:, 1] == 1).all() and (of_items.vectors[:, 0] == 1).all()


def test_where_there_is_no_noise_the_first_random_factors_are_not_believed():
    """Users like two of five kinds of items. With the last, tiny noise from the start EM would stay where it begins."""
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 20)
    items = np.concatenate([generator.choice(60, 20, replace=False) for _ in range(200)])
    likes = np.array([generator.permutation(5) < 2 for _ in range(200)])
    ratings = np.where(likes[users, items // 12], 5.0, 1.0)
    train = np.arange(len(users)) % 20 < 18
    model = fit_rating_factors(users[train], items[train], ratings[train], 60, rank=16)
    queries = Queries.from_histories(items[train].reshape(200, 18), ratings[train].reshape(200, 18))
    told = model.ratings(queries, items[~train].reshape(200, 2))
    assert np.mean((told.ravel() - ratings[~train]) ** 2) < 0.2


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


@pytest.mark.parametrize("n_events", [2, 5, 14])
def test_any_rating_may_be_held_out(n_events):
    """Users with one event each: often the last one's is held out, or all that are not the same."""
    users = np.arange(n_events)
    for ratings in (1.0 + users % 2, np.where(users % 3 == 1, 5.0, np.nan), np.where(users == 1, 4.1, 3.1)):
        for seed in range(20):
            model = fit_rating_factors(users, users % 4, ratings, 6, rank=2, seed=seed)
            told = model.ratings(Queries.from_histories([[0], []], ratings=[[5], []]), np.tile(np.arange(6), (2, 1)))
            assert np.isfinite(told).all() and model.low <= told.min() <= told.max() <= model.high
            assert (model.low, model.high) == (np.nanmin(ratings), np.nanmax(ratings))


def test_a_sample_of_users_has_ratings(monkeypatch):
    monkeypatch.setattr(rating_factors, "USERS", 3)
    users, ratings = np.arange(60), np.full(60, np.nan)
    ratings[[17, 41]] = 2.0, 4.0
    model = fit_rating_factors(users, users % 5, ratings, 5, rank=2)
    assert (model.low, model.high) == (2, 4) and np.isfinite(model.item_factors).all()


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

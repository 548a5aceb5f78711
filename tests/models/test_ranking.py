from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.config import ItemWeightSettings, ModelConfig, RankingConfig
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.layers import neighbour_scores
from tfllmrec.models import ranking, rating_factors
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.item_weights import PrunedWeights
from tfllmrec.models.ranking import RankingModel, RatingScale, Reranked
from tfllmrec.models.rating_factors import RatingFactors, fit_rating_factors

pytestmark = pytest.mark.tf
N, NAN = 12, float("nan")
RNG = np.random.default_rng(0)
COUNTS = np.array([5, 3, 0, 8, 1, 2, 2, 9, 4, 0, 1, 6])
SCALE = RatingScale.of(np.array([0, 0, 1, 3, 3, 3]), np.array([5, 3, 1, 4, NAN, 4], np.float32), N)
WEIGHTS = ItemWeightSettings(decay=0.7, neighbours=5)


def made_hybrid(**changes):
    settings = {"embedding_dim": 8, "blocks": 1, "heads": 2, "history_length": 4} | changes
    text = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
    text[-1] = 0
    model = Hybrid(Catalogue(np.arange(N).astype(str).astype(object), text), COUNTS, ModelConfig(**settings), WEIGHTS)
    generator = np.random.default_rng(2)
    neighbours = np.stack([generator.permutation(N)[:5] for _ in range(N)]).astype(np.int32)
    model.set_item_weights(PrunedWeights(neighbours, generator.random((N, 5)).astype(np.float32)))
    for variable in model.gates.output_map.weights:
        variable.assign(generator.normal(0, 0.05, variable.shape))
    model.gates.discount.assign(0.4)
    model.gates.cold_lift.assign(0.8)
    return model


def made_ranking(hybrid, scale=SCALE, spread=0.4):
    """Every learnt variable is something."""
    model = RankingModel(hybrid, RankingConfig(history_length=3, keys=4, hidden=5), scale, seed=3)
    generator = np.random.default_rng(4)
    for variable in model.network.trainable_variables:
        variable.assign(variable + spread * generator.normal(size=variable.shape))
    return model


@pytest.fixture(scope="module")
def hybrid():
    return made_hybrid()


@pytest.fixture(scope="module")
def model(hybrid):
    return made_ranking(hybrid)


HISTORIES = [[3, 0, 7, 1, 5], [4], [], [9, 2]]
RATINGS = [[5, NAN, 2, 1, 4], [3], [], [NAN, NAN]]
ITEMS = np.array([[2, 6, 11, 0], [N, 3, 3, 8], [1, 7, 2, 9], [10, N, N, N]], np.int32)


def asked(model, rows=range(4), length=6, items=ITEMS):
    queries = Queries.from_histories([HISTORIES[i] for i in rows], [RATINGS[i] for i in rows])
    return (
        model.item_vectors,
        {key: tf.constant(values) for key, values in queries.inputs(N, [RATING_KEY], length).items()},
        tf.constant(items[list(rows)]),
    )


@pytest.mark.parametrize("ratings", [[NAN, NAN], [4, NAN], [4, 4], [4, 2]])
def test_the_scale_asks_the_training_events_alone(ratings):
    train = pd.DataFrame({"item_index": [0, 1], "rating": np.array(ratings, np.float32)})
    split = SimpleNamespace(train=train, dataset=SimpleNamespace(n_items=N, has_ratings=True))
    assert (RatingScale.of_split(split) is not None) == (ratings == [4, 2])


# The hybrid's part ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms", [["meaning", "feedback", "behaviour"], ["feedback", "behaviour"], ["meaning"], ["behaviour"]]
)
def test_the_terms_of_a_few_items_are_those_that_explain_a_score(terms):
    hybrid = made_hybrid(terms=terms)
    model = made_ranking(hybrid)
    items = np.where(ITEMS < N, ITEMS, 0)
    found = hybrid.terms_of_items(*asked(model, items=items)).numpy()
    explained = hybrid.explain_items(*asked(model, items=items))
    told = np.stack([explained[name] for name in ("meaning", "feedback", "behaviour")], axis=-1)
    np.testing.assert_allclose(found, told, atol=1e-4)
    scores = hybrid.score_items(*asked(model)[:2]).numpy()
    known = [0, 1, 3]
    expected = np.take_along_axis(scores, items, axis=1)[known]
    np.testing.assert_allclose(found.sum(axis=-1)[known], expected, atol=1e-4)
    assert np.abs(found[known]).max() > 0.01 and not found[2].any()
    for at, name in enumerate(("meaning", "feedback", "behaviour")):
        assert found[..., at].any() == (name in terms)


# What is known before anything is learnt ------------------------------------------------------------------------------


def test_scale_by_hand():
    assert (SCALE.mean, SCALE.low, SCALE.high) == (pytest.approx((5 + 3 + 1 + 4 + 4) / 5), 1, 5)
    mean = 3.4
    expected = {0: (5 - mean + 3 - mean) / (10 + 2), 1: (1 - mean) / (10 + 1), 3: (4 - mean) * 2 / (10 + 2)}
    for item in range(N):
        assert SCALE.item_bias[item] == pytest.approx(expected.get(item, 0), abs=1e-6)
    without = SCALE.bias_without(np.array([0, 1]), np.array([5, 1], np.float32))
    assert without == pytest.approx([(3 - mean) / (10 + 1), 0], abs=1e-6)


def test_given_against_loops(model, hybrid):
    given = {name: value.numpy() for name, value in model.given(*asked(model)).items()}
    scores = hybrid.score_items(*asked(model)[:2]).numpy()
    for row, (history, ratings) in enumerate(zip(HISTORIES, RATINGS, strict=True)):
        rated = [(i, r) for i, r in zip(history, ratings, strict=True) if not np.isnan(r)]
        person = sum(r - 3.4 - SCALE.item_bias[i] for i, r in rated) / (10 + len(rated))
        newest = list(zip(history, ratings, strict=True))[-3:]
        assert given["recent"][row].tolist() == [i for i, _ in newest] + [N] * (3 - len(newest))
        marks = [r - 3.4 - SCALE.item_bias[i] - person for i, r in newest] + [NAN] * (3 - len(newest))
        np.testing.assert_allclose(given["marks"][row], marks, atol=1e-5)
        for place, item in enumerate(ITEMS[row]):
            if item < N:
                assert given["scores"][row, place] == pytest.approx(scores[row, item], abs=1e-4)
                assert given["prior"][row, place] == pytest.approx(3.4 + person + SCALE.item_bias[item], abs=1e-5)
                assert given["terms"][row, place, 3] == pytest.approx(np.log1p(COUNTS[item]), abs=1e-5)


def test_untrained_it_orders_as_the_hybrid_and_rates_as_the_biases(hybrid):
    plain = RankingModel(hybrid, RankingConfig(), SCALE)
    plain.network.log_weight.assign(np.log(2.0))
    probability, rating = (out.numpy() for out in plain.rank(*asked(plain)))
    given = {name: value.numpy() for name, value in plain.given(*asked(plain)).items()}
    for row in range(4):
        there = ITEMS[row] < N
        odds = np.exp(2.0 * given["scores"][row, there])
        np.testing.assert_allclose(probability[row, there], odds / odds.sum(), atol=1e-5)
        np.testing.assert_allclose(rating[row, there], np.clip(given["prior"][row, there], 1, 5), atol=1e-5)
    queries = Queries.from_histories(HISTORIES, RATINGS)
    recommenders = (hybrid, Reranked(hybrid, plain, 6))
    orders = [np.argsort(-recommender.score(queries), axis=1) for recommender in recommenders]
    for row, history in enumerate(HISTORIES):
        kept = [[i for i in order[row] if i not in history][:3] for order in orders]
        assert kept[0] == kept[1]


def test_biases_of_queries_are_the_prior(model):
    queries = Queries.from_histories(HISTORIES, RATINGS)
    prior = model.given(*asked(model))["prior"].numpy()
    told = SCALE.ratings(queries, np.where(ITEMS < N, ITEMS, 0))
    np.testing.assert_allclose(told[ITEMS < N], np.clip(prior, 1, 5)[ITEMS < N], atol=1e-5)


@pytest.fixture(scope="module")
def factors():
    generator = np.random.default_rng(6)
    users, items = np.nonzero(generator.random((60, N)) < 0.6)
    return fit_rating_factors(users, items, generator.integers(1, 6, len(users)).astype(float), N, rank=3)


def test_factors_rate_in_the_place_of_biases(hybrid, factors):
    model = RankingModel(hybrid, RankingConfig(), SCALE, factors=factors)
    queries = Queries.from_histories(HISTORIES, RATINGS)
    _, rating = (out.numpy() for out in model.rank(*asked(model)))
    expected = factors.ratings(queries, np.where(ITEMS < N, ITEMS, 0))
    np.testing.assert_allclose(rating[ITEMS < N], expected[ITEMS < N], atol=1e-3)
    plain = RankingModel(hybrid, RankingConfig(), SCALE)
    assert np.abs(plain.rank(*asked(plain))[1].numpy() - rating)[ITEMS < N].max() > 0.01
    # All variables hang on the network, and none of the factors' is trained.
    assert {id(variable) for variable in model.network.prior.variables} <= {id(v) for v in model.network.variables}
    assert len(model.trainable_variables) == len(plain.trainable_variables)


def test_factors_read_the_newest_events_alone(hybrid, factors, monkeypatch):
    assert ranking.LONGEST == rating_factors.LONGEST == neighbour_scores.LONGEST
    for module in (ranking, rating_factors):
        monkeypatch.setattr(module, "LONGEST", 3)
    model = RankingModel(hybrid, RankingConfig(), SCALE, factors=factors)
    prior = model.given(*asked(model))["prior"].numpy()
    newest = Queries.from_histories([row[-3:] for row in HISTORIES], [row[-3:] for row in RATINGS])
    items = np.where(ITEMS < N, ITEMS, 0)
    for queries in (newest, Queries.from_histories(HISTORIES, RATINGS)):
        expected = factors.ratings(queries, items)
        np.testing.assert_allclose(np.clip(prior, 1, 5)[ITEMS < N], expected[ITEMS < N], atol=1e-3)


def test_a_model_with_factors_is_made_again_from_its_config(hybrid, factors):
    model = RankingModel(hybrid, RankingConfig(history_length=3), SCALE, factors=factors)
    again = RankingModel.from_config(model.get_config())
    assert again.network.prior.get_config() == model.network.prior.get_config()
    again.set_weights(model.get_weights())
    for one, two in zip(again.network.prior.variables, model.network.prior.variables, strict=True):
        np.testing.assert_array_equal(one, two)


def test_items_that_came_after_the_factors_are_rated_by_the_users_bias(hybrid, factors):
    fewer = RatingFactors(**{**vars(factors), **{
        name: getattr(factors, name)[: N - 2] for name in ("item_bias", "item_factors", "met")
    }})  # fmt: skip
    model = RankingModel(hybrid, RankingConfig(), SCALE, factors=fewer)
    queries = Queries.from_histories([[3, 0, N - 1]], [[5, 4, 1]])
    known = fewer.users(
        *(Queries.from_histories([[3, 0]], [[5, 4]]).history, Queries.from_histories([[3, 0]], [[5, 4]]).ratings)
    )
    inputs = {key: tf.constant(values) for key, values in queries.inputs(N, [RATING_KEY]).items()}
    prior = model.given(model.item_vectors, inputs, tf.constant([[N - 1, N - 2, 2]]))["prior"][0].numpy()
    of_known = fewer.mean + known[0, 0] + fewer.item_bias[2] + fewer.item_factors[2] @ known[0, 1:]
    assert prior == pytest.approx([fewer.mean + known[0, 0]] * 2 + [of_known], abs=1e-3)


# What comes out -------------------------------------------------------------------------------------------------------


def test_probabilities_and_ratings(model):
    probability, rating = (out.numpy() for out in model.rank(*asked(model)))
    assert ((probability >= 0) & (probability <= 1)).all() and (probability[ITEMS < N] > 0).all()
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    assert ((rating[ITEMS < N] >= 1) & (rating[ITEMS < N] <= 5)).all()
    assert not probability[ITEMS == N].any() and not rating[ITEMS == N].any()
    assert probability[3, 0] == pytest.approx(1)  # alone
    assert probability[1, 1] == pytest.approx(probability[1, 2])  # twice the same
    nothing = model.rank(*asked(model, items=np.full((4, 2), N, np.int32)))
    assert not np.any(nothing)
    # It is not the untrained one.
    plain = RankingModel(made_hybrid(), RankingConfig(history_length=3, keys=4, hidden=5), SCALE)
    assert np.abs(plain.rank(*asked(model))[0] - probability).max() > 0.01


def test_padding_order_and_company_do_not_matter(model):
    whole = [out.numpy() for out in model.rank(*asked(model))]
    for row in range(4):
        alone = model.rank(*asked(model, [row], length=max(len(HISTORIES[row]), 1)))
        for one, all_rows in zip(alone, whole, strict=True):
            np.testing.assert_allclose(one[0], all_rows[row], atol=1e-5)
    turned = model.rank(*asked(model, items=ITEMS[:, ::-1].copy()))
    padded = model.rank(*asked(model, items=np.pad(ITEMS, ((0, 0), (2, 1)), constant_values=N)))
    for one, two, expected in zip(turned, padded, whole, strict=True):
        np.testing.assert_allclose(np.asarray(one)[:, ::-1], expected, atol=1e-5)
        np.testing.assert_allclose(np.asarray(two)[:, 2:-1], expected, atol=1e-5)
    # Among fewer, the odds between those that stay are the same.
    fewer = model.rank(*asked(model, items=ITEMS[:, :2].copy()))[0].numpy()
    assert fewer[0, 0] / fewer[0, 1] == pytest.approx(whole[0][0, 0] / whole[0][0, 1], rel=1e-4)


def test_ratings_of_the_history_matter_where_the_data_has_any(hybrid, model):
    vectors, query, items = asked(model)
    marks = query[RATING_KEY]
    liked = vectors, {**query, RATING_KEY: tf.where(tf.math.is_finite(marks), 6.0 - marks, marks)}, items
    before, after = model.rank(*asked(model)), model.rank(*liked)
    assert np.abs(before[1][0] - after[1][0]).max() > 0.01
    assert np.abs(before[0][3] - after[0][3]).max() < 1e-6  # nothing rated
    unrated = made_ranking(hybrid, scale=None)
    assert not unrated.rates
    assert np.isfinite(unrated.rank(*asked(model))).all()


def test_both_heads_are_tasks_of_tfrs_and_the_hybrid_is_frozen(model, hybrid):
    assert isinstance(model.click_task, tfrs.tasks.Ranking) and isinstance(model.rating_task, tfrs.tasks.Ranking)
    ours = {id(v) for v in model.trainable_variables}
    assert ours == {id(v) for v in model.network.trainable_variables}
    assert not ours & {id(v) for v in hybrid.variables}


def test_the_loss_by_hand(model):
    given = model.given(*asked(model))
    log_times = tf.constant(RNG.random(ITEMS.shape), tf.float32)
    label, rating = np.array([1, 3, 0, 0]), np.array([4, 1, 3, 5], np.float32)
    weight = np.array([1, 2, 1, 2], np.float32)
    inputs = {
        "lists": given | {"label": tf.constant(label, tf.int32), "log_times": log_times, "weight": tf.constant(weight)},
        "rated": {n: v if n in ("recent", "marks") else v[:, :1] for n, v in given.items()}
        | {"rating": tf.constant(rating)},
    }
    logits, told = (out.numpy() for out in model.learned(model.item_vectors, **given))
    odds = np.exp(logits + log_times.numpy())
    losses = [-np.log(odds[row, label[row]] / odds[row].sum()) for row in range(4)]
    expected = np.average(losses, weights=weight)
    expected += np.mean((told[:, 0] - rating) ** 2)
    assert float(model.compute_loss(inputs)) == pytest.approx(expected, rel=1e-4)


# In the place of the hybrid's order -----------------------------------------------------------------------------------


def test_reranked_puts_the_best_into_order_and_leaves_the_others(hybrid, model):
    queries = Queries.from_histories(HISTORIES, RATINGS)
    before, after = hybrid.score(queries), Reranked(hybrid, model, 4).score(queries)
    assert np.isfinite(after).all() and after.dtype == np.float32
    moved = 0
    for row, history in enumerate(HISTORIES):
        left = [i for i in np.argsort(-before[row], kind="stable") if i not in history]
        now = [i for i in np.argsort(-after[row], kind="stable") if i not in history]
        assert set(left[:4]) == set(now[:4]) and left[4:] == now[4:]
        items = np.array([left[:4]], np.int32)
        probability = model.rank(*asked(model, [row], items=np.tile(items, (4, 1))))[0].numpy()[0]
        assert now[:4] == [left[i] for i in np.argsort(-probability, kind="stable")]
        moved += now != left
    assert moved
    everything = Reranked(hybrid, model, 50).score(queries)
    assert np.isfinite(everything).all()

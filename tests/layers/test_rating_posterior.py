import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.layers.global_state import keras_policy
from tfllmrec.layers.rating_posterior import RatingPosterior
from tfllmrec.models.rating_factors import fit_rating_factors

pytestmark = pytest.mark.tf
N = 40
HISTORIES = [list(range(30)), [3], [], [5, 9, 9], [7, 8]]
RATINGS = [[1 + i % 5 for i in range(30)], [5], [], [1, np.nan, 4], [np.nan, np.nan]]


@pytest.fixture(scope="module")
def factors():
    generator = np.random.default_rng(0)
    users, items = np.nonzero(generator.random((80, N)) < 0.5)
    ratings = generator.integers(1, 6, len(users)).astype(float)
    ratings[::5] = np.nan
    return fit_rating_factors(users, items, ratings, N, generator.normal(size=(N, 7)), rank=3)


@pytest.fixture(scope="module")
def layer(factors):
    layer = RatingPosterior(N, 3, factors.met.shape[1])
    layer.set_weights(factors.weights)
    return layer


def asked(rows, length):
    queries = Queries.from_histories([HISTORIES[i] for i in rows], [RATINGS[i] for i in rows])
    inputs = queries.inputs(N, [RATING_KEY], length)
    return queries, tf.constant(inputs["history"]), tf.constant(inputs[RATING_KEY])


def test_it_is_the_numpy_model(factors, layer):
    items = np.tile(np.arange(N), (5, 1))
    queries, history, ratings = asked(range(5), 30)
    told = np.clip(layer(history, ratings, tf.constant(items, tf.int32)), 1, 5)
    np.testing.assert_allclose(told, factors.ratings(queries, items), atol=2e-4)
    assert not layer.trainable_variables and len(layer.variables) == 4


def test_padding_company_and_other_candidates_do_not_matter(layer):
    items = tf.constant([[1, 2, N, 39]] * 5)
    whole = layer(*asked(range(5), 37)[1:], items).numpy()
    for row in range(5):
        alone = layer(*asked([row], 30)[1:], items[:1]).numpy()
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-4)
    np.testing.assert_allclose(layer(*asked(range(5), 30)[1:], items[:, 3:]).numpy(), whole[:, 3:], atol=1e-4)


def test_ratings_and_what_was_met_matter(layer):
    _, history, ratings = asked([0, 3, 4], 30)
    items = tf.constant([[20, 21]] * 3)
    plain = layer(history, ratings, items).numpy()
    assert (np.abs(layer(history, 6 - ratings, items).numpy() - plain)[:2] > 1e-3).all()
    unrated = layer(history, tf.fill(ratings.shape, np.nan), items).numpy()
    assert unrated[2] == pytest.approx(plain[2]) and not np.allclose(unrated[0], plain[0], atol=1e-3)
    other = layer(tf.where(history < N, (history + 1) % N, N), tf.fill(ratings.shape, np.nan), items).numpy()
    assert not np.allclose(other[2], unrated[2], atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_does_not_reach_ratings(factors, layer, policy):
    with keras_policy(policy):
        same = RatingPosterior(N, 3, factors.met.shape[1])
        same.set_weights(factors.weights)
        inputs = *asked(range(5), 30)[1:], tf.constant([[1, 2]] * 5)
        np.testing.assert_array_equal(same(*inputs), layer(*inputs))


def test_only_core_operations(layer):
    def rate(history, ratings, items):
        return layer(history, ratings, items)

    numbers = tf.TensorSpec((None, None), tf.int32)
    specs = numbers, tf.TensorSpec((None, None), tf.float32), numbers
    graph = tf.function(rate, autograph=False).get_concrete_function(*specs).graph
    assert {"Cholesky", "MatrixTriangularSolve"} <= {op.type for op in graph.get_operations()}
    assert not [op.type for op in graph.get_operations() if op.type in ("PyFunc", "EagerPyFunc")]

"""Against pyversity, and on lists small enough to see what is chosen."""

import numpy as np
import pytest
import tensorflow as tf
from pyversity import Strategy, diversify

from tfllmrec.layers.diverse_order import diverse_order

pytestmark = pytest.mark.tf


def ordered(scores, vectors, places, diversity, method, valid=None):
    scores, vectors = np.float32(scores), np.float32(vectors)
    valid = np.ones(scores.shape, bool) if valid is None else np.array(valid)
    compiled = tf.function(diverse_order, autograph=False)
    found = compiled(
        tf.constant(scores),
        tf.constant(vectors),
        tf.constant(valid),
        tf.constant(places),
        tf.constant(diversity),
        method,
    )
    return found.numpy()


def drawn(rows, width, seed=0):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, width, 12)) + 0.7
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.sort(generator.normal(size=(rows, width)))[:, ::-1].astype(np.float32), vectors.astype(np.float32)


@pytest.mark.parametrize("method", ["mmr", "dpp"])
@pytest.mark.parametrize("diversity", [0.2, 0.5, 0.9])
def test_it_chooses_as_pyversity_does(method, diversity):
    scores, vectors = drawn(4, 30)
    found = ordered(scores, vectors, 8, [diversity] * 4, method)
    for row in range(4):
        own = scores[row]
        relevance = (own - own.min()) / (own.max() - own.min()) if method == "mmr" else own
        strategy = {"mmr": Strategy.MMR, "dpp": Strategy.DPP}[method]
        expected = diversify(vectors[row], relevance, 8, strategy, diversity=diversity).indices
        assert found[row, :8].tolist() == list(expected)
        left = [i for i in range(30) if i not in expected]
        assert found[row, 8:].tolist() == left  # in their own order


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_each_row_has_its_own_diversity_and_0_changes_nothing(method):
    scores, vectors = drawn(3, 20)
    found = ordered(scores, vectors, 5, [0.0, 0.5, 0.0], method)
    assert found[0].tolist() == found[2].tolist() == list(range(20))
    np.testing.assert_array_equal(found[1], ordered(scores[1:2], vectors[1:2], 5, [0.5], method)[0])
    assert found[1].tolist() != list(range(20))


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_twins_are_kept_apart_and_what_is_not_there_comes_last(method):
    twins = [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]]
    found = ordered([[1.0, 0.9, 0.8, 0.7, 0, 0]], [twins], 2, [0.5], method, [[True] * 4 + [False] * 2])
    assert found[0].tolist() == [0, 2, 1, 3, 4, 5]


def test_more_places_than_directions_are_filled_by_score():
    """Three vectors span the space: the determinant is 0 with any fourth one."""
    scores, vectors = drawn(1, 9)
    vectors[..., 3:] = 0
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    found = ordered(scores, vectors, 8, [0.5], "dpp")[0].tolist()
    assert found[3:] == sorted(found[3:])


@pytest.mark.parametrize("method", ["mmr", "dpp"])
@pytest.mark.parametrize("width", [0, 1, 3])
def test_fewer_candidates_than_places_and_equal_scores(method, width):
    scores, vectors = np.ones((2, width)), np.full((2, width, 2), 0.5**0.5)
    found = ordered(scores, vectors, 10, [0.5, 1.0], method)
    assert np.sort(found, axis=1).tolist() == [list(range(width))] * 2
    nobody = ordered(np.zeros((0, width)), np.zeros((0, width, 2)), 10, np.zeros(0, np.float32), method)
    assert nobody.shape == (0, width)

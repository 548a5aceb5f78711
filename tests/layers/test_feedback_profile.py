import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.feedback_profile import FeedbackProfile, centred_ratings

pytestmark = pytest.mark.tf
NAN = float("nan")


def test_centred_ratings_against_loops():
    ratings = np.array([[5, NAN, 1, 3, NAN], [NAN, NAN, 4, NAN, 2], [NAN] * 5], np.float32)
    centred, count = (out.numpy() for out in centred_ratings(tf.constant(ratings)))
    for row in range(3):
        for t in range(5):
            until = ratings[row, : t + 1]
            known = until[~np.isnan(until)]
            assert count[row, t] == len(known)
            for j in range(5):
                heard = j <= t and not np.isnan(ratings[row, j])
                assert centred[row, t, j] == pytest.approx(ratings[row, j] - known.mean() if heard else 0, abs=1e-6)


@pytest.fixture(scope="module")
def layer():
    layer = FeedbackProfile(4, dropout=0.0, seed=1)
    layer(tf.zeros((1, 2, 4)), tf.zeros((1, 2)), tf.ones((1, 2), tf.bool))
    layer.gate.kernel.assign([[0.7], [0.9]])
    return layer


def profile(layer, items, ratings):
    """The profile and the gate after each event; every event is there."""
    ratings = np.atleast_2d(np.asarray(ratings, np.float32))
    items = np.broadcast_to(np.asarray(items, np.float32), (*ratings.shape, 4))
    out, gate = layer(tf.constant(items), tf.constant(ratings), tf.ones(ratings.shape, tf.bool))
    return out.numpy(), gate.numpy()


ITEMS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def test_profile_and_gate_against_loops(layer):
    ratings = np.array([5, NAN, 2], np.float32)
    out, gate = profile(layer, ITEMS, ratings)
    keys = ITEMS @ layer.key.kernel.numpy() + layer.key.bias.numpy()
    for t in range(3):
        known = ratings[: t + 1][~np.isnan(ratings[: t + 1])]
        logits = np.array([keys[t] @ keys[j] / np.sqrt(4) for j in range(t + 1)])
        attention = np.exp(logits) / np.exp(logits).sum()
        centred = np.nan_to_num(ratings[: t + 1] - known.mean())
        # An untrained batch norm divides by sqrt(1 + epsilon).
        np.testing.assert_allclose(out[0, t], (attention * centred) @ ITEMS[: t + 1] / np.sqrt(1.001), atol=1e-5)
        spread = np.sqrt((centred**2).sum() / len(known) + 1e-6)
        logit = 0.7 * np.log(1 + len(known)) + 0.9 * spread + layer.gate.bias.numpy()[0]
        assert gate[0, t, 0] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_no_rating_leaves_no_trace(layer):
    _, gate = profile(layer, ITEMS, [NAN, NAN, 3])
    assert gate[0, :2].tolist() == [[0.0], [0.0]]  # exactly
    assert gate[0, 2, 0] > 0


def test_ratings_of_absent_events_do_not_count(layer):
    present = tf.constant([[True, True, False]])
    out = [layer(tf.constant(ITEMS[None]), tf.constant([[5.0, 1, last]]), present) for last in (NAN, 5.0)]
    for with_nan, with_rating in zip(*out, strict=True):
        assert np.array_equal(with_nan, with_rating)


def test_a_disliked_item_pushes_away_and_a_liked_one_pulls(layer):
    items = np.eye(4)[[0, 1]]  # item 0 and then item 1, at right angles
    liked, disliked = (profile(layer, items, ratings)[0][0, 1] for ratings in ([5, 1], [1, 5]))
    assert liked[0] > 0 > liked[1]
    assert disliked[0] < 0 < disliked[1]


def test_more_and_clearer_feedback_opens_the_gate(layer):
    _, gate = profile(layer, ITEMS[[0, 0, 0]], [[3, 3, 3], [1, 5, 1]])
    assert (np.diff(gate[0, :, 0]) > 0).all()
    assert gate[1, 2, 0] > gate[0, 2, 0]

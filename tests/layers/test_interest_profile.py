import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.interest_forecast import InterestForecast
from tfllmrec.layers.interest_profile import InterestProfile

pytestmark = pytest.mark.tf
N, C, P = 9, 7, 3
NAN = float("nan")


def made(decay=0.8, liking=0.5, spread=1.25):
    """Each item has up to three labels; the last one has none."""
    rng = np.random.default_rng(4)
    columns = np.array([rng.permutation(C)[:P] for _ in range(N)])
    weights = rng.random((N, P)) + 0.1
    for item, count in ((2, 1), (5, 2), (8, 0)):
        columns[item, count:], weights[item, count:] = C, 0
    profile = InterestProfile(columns, weights, C, decay, liking, spread)
    return profile, columns, weights.astype(np.float32)


def counted(profile, history, ratings, k):
    """The best labels as they are counted: labels, weights, positions, and how they grow."""
    history, ratings = tf.constant(history, tf.int32), tf.constant(ratings, tf.float32)
    answer = InterestForecast(profile)(history, ratings, None, None, tf.constant(k, tf.int32))
    return [out.numpy() for out in answer]


def slowly(columns, weights, history, ratings, k, decay=0.8, liking=0.5, spread=1.25):
    """(label, weight, position) of the best labels, by loops over a plain list of items."""
    marks = [r for r in ratings if not np.isnan(r)]
    total, added = dict.fromkeys(range(C), 0.0), {}
    for position, (item, mark) in enumerate(zip(history, ratings, strict=True)):
        strength = decay ** (len(history) - 1 - position)
        if spread and not np.isnan(mark):
            strength *= 1 + liking * (mark - sum(marks) / len(marks)) / spread
        for label, weight in zip(columns[item], weights[item], strict=True):
            if label < C:
                total[label] += strength * weight
                added[label, position] = strength * weight
    best = sorted((label for label in total if total[label] > 1e-7), key=lambda label: -total[label])[:k]
    whole = sum(total[label] for label in best)
    because = [max((a, p) for (other, p), a in added.items() if other == label)[1] for label in best]
    return [(label, total[label] / whole, p) for label, p in zip(best, because, strict=True)]


def ask(profile, histories, ratings, k):
    width = max(map(len, histories)) + 1
    history = np.array([[*row, *[N] * (width - len(row))] for row in histories], np.int32)
    marks = np.array([[*row, *[NAN] * (width - len(row))] for row in ratings], np.float32)
    return counted(profile, history, marks, k)


HISTORIES = [[0, 3, 3, 5, 1], [2], [], [8, 8], [7, 6, 4, 2, 0, 1], [4, 8, 0]]
RATINGS = [[5, 1, NAN, 3, 2], [NAN], [], [1, 5], [1, 1, 1, 5, 5, 1], [NAN, NAN, NAN]]


@pytest.mark.parametrize("k", [[4] * 6, [1, 2, 3, 4, 9, 0], [3], [100] * 6])
@pytest.mark.parametrize("at_once", [1 << 22, 1])
@pytest.mark.parametrize("settings", [{}, {"decay": 1.0}, {"spread": 0.0}, {"liking": 2.0}])
def test_against_loops(k, settings, at_once, monkeypatch):
    monkeypatch.setattr("tfllmrec.layers.interest_forecast.CELLS_AT_ONCE", at_once)
    profile, columns, weights = made(**settings)
    labels, shares, positions, _ = ask(profile, HISTORIES, RATINGS, k)
    assert labels.shape == shares.shape == positions.shape == (6, min(max(k), C))
    for row, (history, ratings) in enumerate(zip(HISTORIES, RATINGS, strict=True)):
        expected = slowly(columns, weights, history, ratings, (k * 6)[row], **settings)
        n = len(expected)
        assert labels[row, :n].tolist() == [label for label, _, _ in expected]
        np.testing.assert_allclose(shares[row, :n], [share for _, share, _ in expected], rtol=1e-4)
        assert positions[row, :n].tolist() == [position for _, _, position in expected]
        assert (labels[row, n:] == C).all() and (shares[row, n:] == 0).all() and (positions[row, n:] == -1).all()
        assert shares[row].sum() == pytest.approx(1 if n else 0)


def test_a_disliked_item_pushes_its_labels_down():
    """Labels 0 and 1 are of one item each; whoever liked one and disliked the other has the one alone."""
    profile = InterestProfile([[0], [1]], [[1.0], [1.0]], 2, decay=1.0, liking=0.5, spread=1.0)

    def of(ratings):
        labels, weights, *_ = counted(profile, [[0, 1]], [ratings], [2])
        return dict(zip(labels[0].tolist(), weights[0].tolist(), strict=True))

    # Centred: +1 and -1, which count for 1.5 and 0.5.
    assert of([4, 2]) == pytest.approx({0: 0.75, 1: 0.25})
    # +2 and -2, for 2 and 0: what adds up to nothing is no interest.
    assert of([5, 1]) == pytest.approx({0: 1.0, 2: 0.0})
    assert of([1, 5])[1] == 1.0
    # One alone has not said what a high mark is, and none says nothing.
    assert of([1, NAN]) == of([NAN, NAN]) == pytest.approx({0: 0.5, 1: 0.5})


def test_recency_and_order():
    profile = InterestProfile([[0], [1]], [[1.0], [1.0]], 2, decay=0.5, liking=0.5, spread=0.0)
    for history, expected in (([0, 1], {1: 2 / 3, 0: 1 / 3}), ([1, 0], {0: 2 / 3, 1: 1 / 3})):
        labels, weights, *_ = counted(profile, [history], [[NAN, NAN]], [2])
        assert dict(zip(labels[0], weights[0], strict=True)) == pytest.approx(expected)


def test_events_that_are_too_far_back_to_be_seen_are_left_out():
    profile, _, _ = made(decay=0.5)
    assert profile.reach == 10  # .5 ** 10 < .001
    long = [int(i) for i in np.random.default_rng(0).integers(0, N, 40)]
    labels, weights, positions, _ = ask(profile, [long, long[-10:]], [[NAN] * 40, [NAN] * 10], [4, 4])
    assert labels[0].tolist() == labels[1].tolist()
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)
    assert positions[0].tolist() == (positions[1] + 30).tolist()


def test_nobody_and_nothing():
    profile, _, _ = made()
    for out in ask(profile, [[], []], [[], []], [3, 3]):
        assert out.shape == (2, 3)
    nobody = counted(profile, np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    assert all(out.shape == (0, 0) for out in nobody)
    assert ask(profile, [[0]], [[NAN]], [-2])[0].shape == (1, 0)


def test_trend():
    """Label 0 is of item 0, label 1 of item 1, label 2 of both."""
    profile = InterestProfile([[0, 2], [1, 2]], [[1.0, 1.0], [1.0, 1.0]], 3, decay=0.9, liking=0.0, spread=0.0)

    def of(history, profile=profile):
        history = tf.constant([[*history, 2, 2]])  # padded
        return profile(history, tf.fill(tf.shape(history), NAN)).trend.numpy()[0].tolist()

    # The newest quarter of four events is one. Five events like all of them are added: (1 + 5 / 4) / (1 + 5) / (1 / 4).
    assert of([0, 0, 0, 1]) == pytest.approx([(0 + 15 / 4) / 6 / (3 / 4), (1 + 5 / 4) / 6 / (1 / 4), 1.0])
    # Of ten events three: an odd number is rounded up.
    newest = [0] * 7 + [1, 0, 1]
    expected = [(1 + 5 * 8 / 10) / (3 + 5) / (8 / 10), (2 + 5 * 2 / 10) / (3 + 5) / (2 / 10), 1.0]
    assert of(newest) == pytest.approx(expected)
    # A single event is all of the history. A label without events has no trend, and without an order none has any.
    assert of([0]) == [1.0, 0.0, 1.0] and of([]) == [0.0, 0.0, 0.0]
    no_order = InterestProfile([[0, 2], [1, 2]], [[1.0, 1.0], [1.0, 1.0]], 3, decay=1.0, liking=0.0, spread=0.0)
    assert of(newest, no_order) == [0.0, 0.0, 0.0]


def test_the_fast_decay_sees_the_newest_events_alone():
    profile = InterestProfile([[0], [1]], [[1.0], [1.0]], 2, decay=0.9, liking=0.0, spread=0.0, fast=0.5)
    read = profile(tf.constant([[0, 0, 1]]), tf.fill((1, 3), NAN))
    np.testing.assert_allclose(read.slow, [[0.9**2 + 0.9, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(read.fast, [[0.5**2 + 0.5, 1.0]], rtol=1e-6)

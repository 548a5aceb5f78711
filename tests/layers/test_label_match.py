import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.interest_forecast import LabelHead
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.layers.label_match import LabelMatch

pytestmark = pytest.mark.tf
N, C, R, P = 9, 6, 3, 2
NAN = float("nan")
COLUMNS = np.array([[0, 1], [2, C], [3, 1], [C, C], [5, 4], [0, 5], [1, 2], [4, 3], [2, 0]])
HISTORIES = np.array([[0, 2, 5, N], [4, N, N, N], [N, N, N, N], [3, N, N, N]], np.int32)
ITEMS = np.array([[1, 3, 8], [4, 4, 0], [6, 3, 2], [7, 0, 1]], np.int32)


def tables():
    generator = np.random.default_rng(1)
    weights = np.where(COLUMNS < C, generator.random((N, P)) + 0.1, 0)
    return weights, [generator.normal(size=shape) for shape in ((C, R), (C, R), (C, R), (C,))]


def made():
    weights, learned = tables()
    return LabelMatch(InterestProfile(COLUMNS, weights, C, 0.8, 0.0, 0.0, 0.4), LabelHead(*learned, 2.0), name="labels")


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum())


def test_candidates_against_loops():
    weights, (a, b, out, bias) = tables()
    unrated = tf.fill(HISTORIES.shape, NAN)
    found = made()(HISTORIES, unrated, ITEMS).numpy()
    for row, history in enumerate(HISTORIES):
        history = history[history < N]
        slow, fast = np.zeros(C + 1), np.zeros(C + 1)
        for back, item in enumerate(reversed(history)):
            np.add.at(slow, COLUMNS[item], weights[item] * 0.8**back)
            np.add.at(fast, COLUMNS[item], weights[item] * 0.4**back)
        slow, fast = (labels[:C] / max(labels[:C].sum(), 1e-9) for labels in (slow, fast))
        ahead = log_softmax(bias + np.tanh(2 * (slow @ a + fast @ b)) @ out.T) - log_softmax(bias)
        for column, item in enumerate(ITEMS[row]):
            has = COLUMNS[item] < C
            labels, of_labels = COLUMNS[item][has], weights[item][has]
            counted = np.sqrt((of_labels * slow[labels]).sum())
            learned = (of_labels * ahead[labels]).sum() / of_labels.sum() if has.any() else 0.0
            assert found[row, column] == pytest.approx([counted, learned], abs=1e-5)
    assert not found[0, 1].any()  # an item without labels
    assert not found[2].any() and not found[3].any()  # nothing is known of the user's labels


def test_ratings_count():
    weights, learned = tables()
    labels = LabelMatch(InterestProfile(COLUMNS, weights, C, 0.8, 0.5, 1.0, 0.4), LabelHead(*learned))
    liked, disliked = (
        labels(HISTORIES, np.tile(np.float32(row), (4, 1)), ITEMS) for row in ([1, 3, 5, NAN], [5, 3, 1, NAN])
    )
    assert float(liked[0, 2, 0]) > float(disliked[0, 2, 0]) + 0.05  # the newest event and the candidate share a label

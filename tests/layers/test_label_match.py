from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ModelConfig
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.layers.interest_forecast import LabelHead
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.models.hybrid import Catalogue, Hybrid

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


def test_a_hybrid_gives_choices_alone():
    """As the head of the labels has learned: rejections and impressions are no interests."""
    kind = Field("kind", "event", "category", vocabulary=("view", "dislike", "impression"))
    kind = replace(kind, weights={"view": 0.5, "dislike": -0.75, "impression": 0.0})
    view, dislike, impression = 2, 3, 4
    ids = np.arange(N).astype(str).astype(object)
    model = Hybrid(
        Catalogue(ids, np.eye(N, dtype=np.float32)), np.ones(N), ModelConfig(embedding_dim=8), schema=Schema((kind,))
    )
    given = {
        "history": np.array([[4, 1, 7, 3], [5, 2, N, N]], np.int32),
        RATING_KEY: np.array([[1, 2, NAN, 4], [5, 6, NAN, NAN]], np.float32),
        kind.key: np.array([[dislike, view, impression, view], [view, 0, 0, 0]], np.int32),
    }
    chosen = model.choices(given)
    assert chosen["history"].numpy().tolist() == [[1, 3, N, N], [5, 2, N, N]]  # an event without a kind is a view
    np.testing.assert_array_equal(chosen[RATING_KEY], [[2, 4, NAN, NAN], [5, 6, NAN, NAN]])


def test_ratings_count():
    weights, learned = tables()
    labels = LabelMatch(InterestProfile(COLUMNS, weights, C, 0.8, 0.5, 1.0, 0.4), LabelHead(*learned))
    liked, disliked = (
        labels(HISTORIES, np.tile(np.float32(row), (4, 1)), ITEMS) for row in ([1, 3, 5, NAN], [5, 3, 1, NAN])
    )
    assert float(liked[0, 2, 0]) > float(disliked[0, 2, 0]) + 0.05  # the newest event and the candidate share a label

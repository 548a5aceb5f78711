import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.interest_forecast import InterestForecast, LabelHead, Learned
from tfllmrec.layers.interest_profile import InterestProfile

pytestmark = pytest.mark.tf
N, C, R, P = 9, 6, 3, 2
NAN = float("nan")


def made(mixture=(0.5, 0.3, 0.2), sharpness=0.5):
    rng = np.random.default_rng(1)
    columns = np.array([rng.permutation(C)[:P] for _ in range(N)])
    weights = rng.random((N, P)).astype(np.float32) + 0.1
    columns[3, 1], weights[3, 1] = C, 0
    tables = [rng.normal(size=shape).astype(np.float32) for shape in ((C, R), (C, R), (C, R), (C,))]
    profile = InterestProfile(columns, weights, C, 0.8, 0.5, 1.25, 0.4)
    return InterestForecast(profile, Learned(LabelHead(*tables), mixture, sharpness)), columns, weights, tables


def slowly(columns, weights, tables, history, ratings, items, scores, mixture=(0.5, 0.3, 0.2), sharpness=0.5):
    """The distribution of labels of one row, by loops."""
    marks = [mark for mark in ratings if not np.isnan(mark)]
    slow, fast, liked = np.zeros(C + 1), np.zeros(C + 1), np.ones(len(history))
    for j, mark in enumerate(ratings):
        if not np.isnan(mark):
            liked[j] += 0.5 * (mark - sum(marks) / len(marks)) / 1.25
    for j, item in enumerate(history):
        for label, weight in zip(columns[item], weights[item], strict=True):
            slow[label] += weight * liked[j] * 0.8 ** (len(history) - 1 - j)
            fast[label] += weight * liked[j] * 0.4 ** (len(history) - 1 - j)
    share = np.exp(sharpness * np.asarray(scores))
    recommended = np.zeros(C + 1)
    for item, part in zip(items, share / share.sum(), strict=True):
        for label, weight in zip(columns[item], weights[item], strict=True):
            recommended[label] += weight * part
    slow, fast, recommended = (np.maximum(x[:C], 0) / np.maximum(x[:C], 0).sum() for x in (slow, fast, recommended))
    a, b, out, bias = tables
    logits = bias + np.tanh(10 * (slow @ a + fast @ b)) @ out.T
    learned = np.exp(logits) / np.exp(logits).sum()
    return mixture[0] * slow + mixture[1] * learned + mixture[2] * recommended


def ask(forecast, histories, ratings, items, scores, k):
    def padded(rows, fill, dtype):
        width = max(map(len, rows)) + 1
        return tf.constant([[*row, *[fill] * (width - len(row))] for row in rows], dtype)

    inputs = (padded(histories, N, tf.int32), padded(ratings, NAN, tf.float32), padded(items, N, tf.int32))
    return [o.numpy() for o in forecast(*inputs, padded(scores, 0.0, tf.float32), tf.constant(k))]


HISTORIES = [[0, 3, 5], [1], [], [7, 2, 2, 4]]
RATINGS = [[5, NAN, 3], [NAN], [], [2, 5, 5, 4]]
ITEMS, SCORES = [[1, 2], [3, 4, 5], [6], [0, 1]], [[3.0, 1.0], [0.0, -2.0, 1.0], [2.0], [5.0, 5.0]]


@pytest.mark.parametrize("at_once", [1 << 22, 1])
def test_against_loops(at_once, monkeypatch):
    monkeypatch.setattr("tfllmrec.layers.interest_forecast.CELLS_AT_ONCE", at_once)
    forecast, columns, weights, tables = made()
    labels, shares, because, trend = ask(forecast, HISTORIES, RATINGS, ITEMS, SCORES, [C] * 4)
    for row in (0, 1, 3):
        expected = slowly(columns, weights, tables, HISTORIES[row], RATINGS[row], ITEMS[row], SCORES[row])
        assert labels[row].tolist() == np.argsort(-expected).tolist()
        np.testing.assert_allclose(shares[row], np.sort(expected)[::-1], rtol=1e-4)
        # A label that no item of the history has is predicted all the same: nothing stands behind it.
        had = {label for item in HISTORIES[row] for label in columns[item]}
        assert (because[row] >= 0).tolist() == [label in had for label in labels[row]]
    assert labels[2].tolist() == [C] * C and not shares[2].any() and (because[2] == -1).all() and not trend[2].any()


def test_rows_are_answered_as_they_are_alone_and_may_ask_for_fewer():
    forecast, *_ = made()
    together = ask(forecast, HISTORIES, RATINGS, ITEMS, SCORES, [2, 1, 3, 0])
    assert together[0].shape == (4, 3)
    alone = ask(forecast, HISTORIES[:1], RATINGS[:1], ITEMS[:1], SCORES[:1], [2])
    assert together[0][0].tolist() == [*alone[0][0].tolist(), C] and together[1][0, 2] == 0
    np.testing.assert_allclose(together[1][0, :2], alone[1][0], rtol=1e-5)
    assert (together[0][3] == C).all()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_mixture_of_one_part_is_that_part(part):
    forecast, columns, weights, tables = made(mixture=np.eye(3)[part].tolist())
    labels, shares, *_ = ask(forecast, HISTORIES[:1], RATINGS[:1], ITEMS[:1], SCORES[:1], [C])
    expected = slowly(columns, weights, tables, HISTORIES[0], RATINGS[0], ITEMS[0], SCORES[0], np.eye(3)[part])
    there = np.sort(expected)[::-1]
    np.testing.assert_allclose(shares[0], there, rtol=1e-4, atol=1e-7)
    assert (labels[0] == C).sum() == (there == 0).sum()


def test_nothing_recommended_and_nothing_labelled():
    """Without candidates, or of items without labels, a part is nothing, and the others decide."""
    forecast, *_ = made()
    labels, shares, *_ = ask(forecast, [[0]], [[NAN]], [[]], [[]], [C])
    assert shares.sum() == pytest.approx(1) and np.isfinite(shares).all() and (labels[0] < C).all()

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.global_state import keras_policy
from tfllmrec.layers.target_attention import TargetAttention

pytestmark = pytest.mark.tf
B, M, L, D, X = 3, 4, 5, 6, 2
RNG = np.random.default_rng(0)
CANDIDATES, EVENTS = (RNG.normal(size=(B, n, D)).astype(np.float32) for n in (M, L))
FEATURES = RNG.normal(size=(B, L, X)).astype(np.float32)
PRESENT = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def layer():
    layer = TargetAttention(3, 7, seed=1)
    layer(*map(tf.constant, (CANDIDATES, EVENTS, FEATURES, PRESENT)))
    for variable in layer.variables:
        variable.assign(RNG.normal(0, 0.7, variable.shape))
    return layer


def slowly(layer, candidate, events, features):
    """One candidate and its events, by the formula."""
    key, unit = layer.key.kernel.numpy(), layer.of_event
    of_pair, of_cosine, to_weight = (v.numpy() for v in (layer.of_pair, layer.of_cosine, layer.to_weight))
    total, profile = 0.0, np.zeros(3 + X)
    for event, feature in zip(events, features, strict=True):
        hidden = [
            sum((candidate @ key[:, k]) * (event @ key[:, k]) * of_pair[k, h] for k in range(3))
            + of_cosine[h] * (candidate @ event)
            + feature @ unit.kernel.numpy()[:, h]
            + unit.bias.numpy()[h]
            for h in range(7)
        ]
        logit = sum(max(value, 0) * to_weight[h] for h, value in enumerate(hidden)) + float(layer.bias)
        weight = 1 / (1 + np.exp(-logit))
        total += weight
        profile += weight * np.concatenate([event @ key, feature])
    return np.concatenate([profile / (1 + total), [np.log(1 + total)]])


def test_against_loops(layer):
    out, keys = layer(*map(tf.constant, (CANDIDATES, EVENTS, FEATURES, PRESENT)))
    assert out.shape == (B, M, 3 + X + 1)
    np.testing.assert_allclose(keys, CANDIDATES @ layer.key.kernel.numpy(), atol=1e-5)
    for row in range(B):
        for place in range(M):
            there = PRESENT[row]
            expected = slowly(layer, CANDIDATES[row, place], EVENTS[row, there], FEATURES[row, there])
            np.testing.assert_allclose(out[row, place], expected, atol=1e-4)
    assert not out[2].numpy().any()  # nothing is known


def test_what_is_absent_does_not_matter(layer):
    noise = RNG.normal(size=EVENTS.shape).astype(np.float32)
    events = np.where(PRESENT[..., None], EVENTS, 100 * noise)
    features = np.where(PRESENT[..., None], FEATURES, 100 * noise[..., :X])
    whole, _ = layer(*map(tf.constant, (CANDIDATES, EVENTS, FEATURES, PRESENT)))
    odd, _ = layer(*map(tf.constant, (CANDIDATES, events, features, PRESENT)))
    np.testing.assert_allclose(odd, whole, atol=1e-5)


def test_candidates_and_rows_do_not_see_each_other(layer):
    whole, _ = layer(*map(tf.constant, (CANDIDATES, EVENTS, FEATURES, PRESENT)))
    alone, _ = layer(*(tf.constant(x[1:2]) for x in (CANDIDATES[:, 2:3], EVENTS, FEATURES, PRESENT)))
    np.testing.assert_allclose(alone[0, 0], whole[1, 2], atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_does_not_reach_the_weights_of_events(layer, policy):
    inputs = [*map(tf.constant, (CANDIDATES, EVENTS, FEATURES, PRESENT))]
    with keras_policy(policy):
        same = TargetAttention(3, 7, seed=1)
        same(*inputs)
        same.set_weights(layer.get_weights())
        np.testing.assert_array_equal(same(*inputs)[0], layer(*inputs)[0])

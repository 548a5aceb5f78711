import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.errors import ConfigError
from tfllmrec.layers.history_encoder import HistoryEncoder, SelfAttention, causal_mask

pytestmark = pytest.mark.tf
RNG = np.random.default_rng(0)


def test_causal_mask_written_out():
    mask = causal_mask(tf.constant([[True, True, False], [False, False, False]])).numpy()
    assert mask.shape == (2, 1, 3, 3)
    assert np.array_equal(mask[0, 0] == 0, [[1, 0, 0], [1, 1, 0], [1, 1, 0]])
    assert not (mask[1] == 0).any()
    assert mask.min() == -1e9


@pytest.fixture(scope="module", params=[0, 2], ids=["no blocks", "two blocks"])
def encoder(request):
    return HistoryEncoder(8, blocks=request.param, heads=2, dropout=0.5, max_length=6, seed=3)


def encode(encoder, items, lengths, **kwargs):
    present = np.arange(items.shape[1]) < np.asarray(lengths)[:, None]
    return encoder(tf.constant(items, tf.float32), tf.constant(present), **kwargs).numpy()


def test_a_later_event_changes_nothing_before(encoder):
    items = RNG.normal(size=(2, 5, 8))
    changed = items.copy()
    changed[:, 3] *= -1
    before, after = encode(encoder, items, [5, 5]), encode(encoder, changed, [5, 5])
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert (np.abs(before - after)[:, 3].max(axis=1) > 1e-2).all()
    if encoder.blocks:
        assert (np.abs(before - after)[:, 4].max(axis=1) > 1e-4).all()  # what came earlier is heard


def test_one_position_alone_is_as_among_all(encoder):
    items, lengths = RNG.normal(size=(3, 5, 8)), [5, 2, 0]
    last = np.maximum(np.array(lengths) - 1, 0)
    alone = encode(encoder, items, lengths, last=tf.constant(last, tf.int32))
    assert alone.shape == (3, 1, 8)
    every = encode(encoder, items, lengths)
    np.testing.assert_allclose(alone[:, 0], every[np.arange(3), last], rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing(encoder):
    items = RNG.normal(size=(2, 3, 8))
    padded = np.concatenate([items, RNG.normal(size=(2, 3, 8))], axis=1)
    np.testing.assert_allclose(
        encode(encoder, items, [3, 3]), encode(encoder, padded, [3, 3])[:, :3], atol=1e-6, rtol=1e-5
    )


def test_an_empty_history_is_finite(encoder):
    assert np.isfinite(encode(encoder, np.zeros((1, 4, 8)), [0])).all()


def test_positions_tell_the_order_apart():
    encoder = HistoryEncoder(8, blocks=1, heads=2, dropout=0.0, max_length=3, seed=3)
    items = RNG.normal(size=(1, 3, 8))
    swapped = items[:, [1, 0, 2]]
    assert np.abs(encode(encoder, items, [3]) - encode(encoder, swapped, [3]))[0, 2].max() > 1e-4
    encoder.positions.assign(tf.zeros_like(encoder.positions))
    np.testing.assert_allclose(encode(encoder, items, [3])[0, 2], encode(encoder, swapped, [3])[0, 2], atol=1e-5)


def test_dropout_is_for_training(encoder):
    items = RNG.normal(size=(1, 3, 8))
    assert np.array_equal(encode(encoder, items, [3]), encode(encoder, items, [3]))
    assert not np.array_equal(encode(encoder, items, [3]), encode(encoder, items, [3], training=True))


def test_attention_against_loops():
    layer = SelfAttention(4, heads=2, dropout=0.0, seed=1)
    x = RNG.normal(size=(1, 3, 4)).astype(np.float32)
    out = layer(tf.constant(x), causal_mask(tf.constant([[True] * 3]))).numpy()
    kernel, bias = (v.numpy() for v in layer.query_key_value.variables)
    query, key, value = np.split(x[0] @ kernel + bias, 3, axis=1)
    mixed = np.zeros((3, 4))
    for head in (slice(0, 2), slice(2, 4)):
        for t in range(3):
            logits = np.array([query[t, head] @ key[j, head] / np.sqrt(2) for j in range(t + 1)])
            weights = np.exp(logits) / np.exp(logits).sum()
            mixed[t, head] = weights @ value[: t + 1, head]
    kernel, bias = (v.numpy() for v in layer.output_map.variables)
    np.testing.assert_allclose(out[0], mixed @ kernel + bias, atol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"multiple of model\.heads: got 8 and 3"):
        HistoryEncoder(8, blocks=1, heads=3, dropout=0.0, max_length=3, seed=0)

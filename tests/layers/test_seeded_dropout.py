import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.seeded_dropout import SeededDropout

pytestmark = pytest.mark.tf
ONES = tf.ones((200, 50))


def test_noise_is_a_function_of_seed_and_count():
    first, again, other = SeededDropout(0.4, seed=1), SeededDropout(0.4, seed=1), SeededDropout(0.4, seed=2)
    draws = [first(ONES, training=True).numpy() for _ in range(2)]
    assert np.array_equal(draws, [again(ONES, training=True).numpy() for _ in range(2)])
    assert not np.array_equal(*draws)
    assert not np.array_equal(draws[0], other(ONES, training=True).numpy())


def test_the_count_is_saved_and_goes_on(tmp_path):
    layer = SeededDropout(0.4, seed=1)
    layer(ONES, training=True)
    saved = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "layer"))
    second = layer(ONES, training=True).numpy()
    resumed = SeededDropout(0.4, seed=1)
    tf.train.Checkpoint(layer=resumed).read(saved)
    assert resumed.calls.numpy() == 1
    assert np.array_equal(resumed(ONES, training=True), second)


def test_drops_its_share_and_keeps_the_mean():
    out = SeededDropout(0.4, seed=1)(ONES, training=True).numpy()
    assert np.unique(out) == pytest.approx([0, 1 / (1 - 102 / 256)])  # 0.4 to the nearest 256th
    assert (out == 0).mean() == pytest.approx(0.4, abs=0.02)  # 10,000 entries: a standard deviation of 0.005


def test_a_small_rate_still_drops_and_odd_sizes_are_filled():
    out = SeededDropout(0.001, seed=1)(tf.ones((333, 31)), training=True).numpy()  # 10,323 is no multiple of 4
    assert (out == 0).mean() == pytest.approx(1 / 256, abs=0.003)
    rows = SeededDropout(0.5, seed=1, noise_shape=(None, 1))(tf.ones((7, 3)), training=True).numpy()
    assert set(map(tuple, rows)) == {(0.0,) * 3, (2.0,) * 3}


def test_inference_and_rate_0_change_nothing():
    layer = SeededDropout(0.4, seed=1)
    assert np.array_equal(layer(ONES, training=False), ONES)
    assert layer.calls.numpy() == 0
    assert np.array_equal(SeededDropout(0.0, seed=1)(ONES, training=True), ONES)


def test_noise_shape_drops_rows():
    out = SeededDropout(0.4, seed=1, noise_shape=(None, 1))(ONES, training=True).numpy()
    assert (out == out[:, :1]).all()
    assert 0 < (out[:, 0] == 0).mean() < 1


def test_rate_1_is_refused():
    with pytest.raises(ValueError, match="rate < 1, got 1"):
        SeededDropout(1, seed=0)


def test_config_round_trip():
    layer = SeededDropout(0.4, seed=1, noise_shape=(None, 1))
    again = SeededDropout.from_config(layer.get_config())
    assert np.array_equal(again(ONES, training=True), layer(ONES, training=True))

import math

import pytest
import tensorflow as tf

from tfllmrec.training.optimizer import UNDECAYED, WarmupCosine, adamw

pytestmark = pytest.mark.tf


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.4 * (1 / 100) / 0.2),
        (9, 0.4 * (10 / 100) / 0.2),
        (19, 0.4),
        (20, 0.4),
        (60, 0.4 * 0.5 * (1 + math.cos(math.pi * (0.6 - 0.2) / 0.8))),
        (100, 0.0),
        (150, 0.0),
    ],
)
def test_warmup_then_cosine(step, expected):
    rate = WarmupCosine(0.4, total_steps=100, warmup_share=0.2)(tf.constant(step, tf.int64))
    assert float(rate) == pytest.approx(expected, abs=1e-7)


def test_without_warmup_it_starts_at_the_peak():
    assert float(WarmupCosine(0.4, 100, 0.0)(tf.constant(0))) == pytest.approx(0.4)


def test_schedule_round_trip():
    schedule = WarmupCosine(0.4, 100, 0.2)
    again = WarmupCosine.from_config(schedule.get_config())
    assert float(again(tf.constant(33))) == float(schedule(tf.constant(33)))


def test_weights_shrink_and_gates_norms_and_biases_do_not():
    decayed = tf.Variable(1.0, name="items/text_map")
    kept = [tf.Variable(1.0, name=f"layer/{name}/x") for name in UNDECAYED]
    optimizer = adamw(0.1, total_steps=10, warmup_share=0.0, weight_decay=0.5)
    optimizer.apply_gradients([(tf.zeros(()), v) for v in [decayed, *kept]])
    assert float(decayed) == pytest.approx(1 - 0.1 * 0.5)
    assert [float(v) for v in kept] == [1.0] * len(UNDECAYED)


def test_gradients_are_clipped_together():
    # AdamW's first step does not see the length of a gradient; its second moment does: (1 - beta_2) g^2.
    variables = [tf.Variable(0.0, name="a"), tf.Variable(0.0, name="b")]
    optimizer = adamw(0.1, total_steps=10, warmup_share=0.0, weight_decay=0.0)
    optimizer.apply_gradients(zip([tf.constant(30.0), tf.constant(40.0)], variables, strict=True))
    moments = sorted(float(v) for v in optimizer.variables if "/v/" in v.name)
    assert moments == pytest.approx([0.001 * (30 / 50) ** 2, 0.001 * (40 / 50) ** 2], rel=1e-4)


def test_the_config_of_an_optimizer_keeps_schedule_and_undecayed_variables():
    made = adamw(0.1, total_steps=10, warmup_share=0.3, weight_decay=0.5)
    optimizer = tf.keras.optimizers.deserialize(tf.keras.optimizers.serialize(made))
    assert optimizer.get_config() == made.get_config()
    decayed, kept = tf.Variable(1.0, name="items/text_map"), tf.Variable(1.0, name="layer/positions")
    optimizer.apply_gradients([(tf.zeros(()), decayed), (tf.zeros(()), kept)])
    first_rate = 0.1 * (1 / 10) / 0.3
    assert float(decayed) == pytest.approx(1 - first_rate * 0.5) and float(kept) == 1.0

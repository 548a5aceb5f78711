import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from tfllmrec.text.rank_allocation import RankAllocation, initial_rank  # noqa: E402


def triplets(*sizes, rng=None):
    """Of kernels of 5 rows and 4 columns with so many triplets each; random, or 1."""

    def made(*shape):
        return tf.Variable(np.ones(shape) if rng is None else rng.normal(size=shape), dtype=tf.float32)

    return [variable for size in sizes for variable in (made(5, size), made(size), made(size, 4))]


def at(ranks, step):
    """The same after so many steps."""
    ranks.state[0].assign(step)
    return ranks


def test_the_first_rank_is_half_as_much_again_and_no_more_than_there_are():
    assert initial_rank(8, 384, 1536) == 12
    assert initial_rank(3, 384, 1536) == 5  # 4.5
    assert initial_rank(8, 10, 384) == initial_rank(8, 384, 10) == 10


def test_the_budget_falls_by_the_cubic_schedule():
    ranks = RankAllocation(triplets(*[12] * 10), rank=8, steps=200)
    # From step 20 to step 100 it is 80 + 40 (1 - (t - 20) / 80)^3, rounded down.
    expected = {
        0: 120,
        20: 120,
        40: 80 + int(40 * (60 / 80) ** 3),
        60: 80 + 40 // 8,
        80: 80 + 40 // 64,
        100: 80,
        300: 80,
    }
    for step, budget in expected.items():
        assert int(at(ranks, step).budget) == budget, step


def test_a_budget_is_no_more_than_there_is():
    assert int(at(RankAllocation(triplets(4, 4), rank=8, steps=10), 10).budget) == 8


def test_what_is_kept_is_what_a_slow_loop_keeps():
    rng = np.random.default_rng(0)
    sizes, rank, steps = [6, 6, 3], 3, 40
    variables = triplets(*sizes, rng=rng)
    ranks = RankAllocation(variables, rank, steps)
    sensitivity = [np.zeros(v.shape) for v in variables]
    uncertainty = [np.zeros(v.shape) for v in variables]
    chosen_last = None
    for step in range(steps):
        gradients = [rng.normal(size=v.shape).astype(np.float32) for v in variables]
        ranks.observe([tf.constant(g) for g in gradients])
        if step < 0.5 * steps:
            for i, (v, g) in enumerate(zip(variables, gradients, strict=True)):
                now = np.abs(v.numpy() * g)
                sensitivity[i] = 0.85 * sensitivity[i] + 0.15 * now
                uncertainty[i] = 0.85 * uncertainty[i] + 0.15 * np.abs(now - sensitivity[i])
        scores = {}
        for kernel, size in enumerate(sizes):
            p, values, q = (
                s * u for s, u in list(zip(sensitivity, uncertainty, strict=True))[3 * kernel : 3 * kernel + 3]
            )
            for i in range(size):
                scores[kernel, i] = values[i] + sum(p[:, i]) / 5 + sum(q[i]) / 4
        t = step + 1
        first, last = sum(sizes), rank * len(sizes)
        budget = int(last + (first - last) * (1 - np.clip((t - 4) / (20 - 4), 0, 1)) ** 3)
        best = sorted(scores, key=scores.get, reverse=True)[:budget]
        kept = [[(kernel, i) in best for i in range(size)] for kernel, size in enumerate(sizes)]
        assert [k.numpy().tolist() for k in ranks.kept()] == kept
        if t >= 20:
            assert chosen_last in (None, kept)
            chosen_last = kept
    assert sum(map(sum, kept)) == 9 and kept != [[True] * 3 + [False] * 3] * 2 + [[True] * 3]
    assert int(ranks.state[0]) == steps
    for found, expected in zip(ranks.state[1:], sensitivity + uncertainty, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_between_two_choices_all_may_grow():
    ranks = RankAllocation(triplets(3, 3), rank=2, steps=500)  # a choice at each fifth step, and at all from 250 on
    steps = [*range(240, 254), 600]
    kept = [int(sum(map(tf.math.count_nonzero, at(ranks, step).kept()))) for step in steps]
    assert kept == [4, 6, 6, 6, 6, 4, 6, 6, 6, 6, 4, 4, 4, 4, 4]

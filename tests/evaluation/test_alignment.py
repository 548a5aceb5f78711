"""Distances between the vectors of two domains, on vectors whose distance is known."""

import numpy as np
import pytest

from tfllmrec.evaluation.alignment import distances, mmd, proxy_a_distance


def drawn(n=200, shift=0.0, seed=0, width=8):
    vectors = np.random.default_rng(seed).normal(size=(n, width))
    vectors[:, 0] += shift
    return vectors


def test_one_distribution_has_no_distance_and_two_have_one():
    same, apart = distances(drawn(seed=1), drawn(seed=2)), distances(drawn(seed=1), drawn(seed=2, shift=6))
    assert same.a_distance < 0.3 and same.mmd < 0.1
    assert apart.a_distance == pytest.approx(2, abs=0.05) and apart.mmd > 0.5


def test_both_grow_with_the_distance():
    found = [distances(drawn(seed=1), drawn(seed=2, shift=shift)) for shift in (0, 1, 2, 4)]
    assert np.all(np.diff([each.a_distance for each in found]) > 0)
    assert np.all(np.diff([each.mmd for each in found]) > 0)


def test_the_mmd_is_the_one_of_the_definition():
    """Sums over all pairs, one by one."""
    a, b = drawn(5, seed=1, width=2), drawn(4, seed=2, shift=1, width=2)
    both = [*a, *b]
    pairs = [np.sum((x - y) ** 2) for i, x in enumerate(both) for y in both[:i]]
    kernel = lambda x, y: np.exp(-np.sum((x - y) ** 2) / np.median(pairs))  # noqa: E731
    within = [
        np.mean([kernel(x, y) for i, x in enumerate(each) for j, y in enumerate(each) if i != j]) for each in (a, b)
    ]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert mmd(a, b) == pytest.approx(np.sqrt(max(sum(within) - 2 * between, 0)))


def test_a_classifier_that_guesses_has_distance_zero_and_is_not_below():
    assert proxy_a_distance(np.ones((6, 3)), np.ones((6, 3))) == 0.0


def test_vectors_of_nothing_do_not_count_and_few_say_nothing():
    a, b = drawn(seed=1), drawn(seed=2, shift=6)
    assert distances(np.vstack([a, np.zeros((200, 8))]), b).a_distance == pytest.approx(2, abs=0.05)
    assert distances(a, b[:3]) is None and distances(np.zeros((9, 8)), b) is None

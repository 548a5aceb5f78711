"""Against pyversity and a slow version in numpy, and on lists small enough to see what is chosen."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from pyversity import Strategy, diversify

from tfllmrec.layers.list_order import Rules, list_order

pytestmark = pytest.mark.tf

compiled = tf.function(list_order, autograph=False, reduce_retracing=True)


def rules_of(rows, width, pinned=0, categories=None, cap=0, tail=False, tail_share=0.0):
    """Those that apply; by default none. Numbers stand for every row."""
    categories = np.full((rows, width, 0), -1) if categories is None else np.asarray(categories)
    return Rules(
        tf.constant(np.broadcast_to(pinned, rows), tf.int32),
        tf.constant(categories, tf.int32),
        tf.constant(np.broadcast_to(cap, rows), tf.int32),
        tf.constant(np.broadcast_to(tail, (rows, width)), tf.bool),
        tf.constant(np.broadcast_to(tail_share, rows), tf.float32),
    )


def listed(scores, vectors, places, diversity, method="dpp", valid=None, **rules):
    """Positions int ``[B, C]``, and how many are in the list, int ``[B]``."""
    scores, vectors = np.float32(scores), np.float32(vectors)
    valid = np.ones(scores.shape, bool) if valid is None else np.array(valid)
    order, count = compiled(
        tf.constant(scores),
        tf.constant(vectors),
        tf.constant(valid),
        tf.constant(places),
        tf.constant(diversity, tf.float32),
        rules_of(*scores.shape, **rules),
        method,
    )
    return order.numpy(), count.numpy()


def ordered(*args, **kwargs):
    return listed(*args, **kwargs)[0]


def drawn(rows, width, seed=0):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, width, 12)) + 0.7
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.sort(generator.normal(size=(rows, width)))[:, ::-1].astype(np.float32), vectors.astype(np.float32)


# Diversity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mmr", "dpp"])
@pytest.mark.parametrize("diversity", [0.2, 0.5, 0.9])
def test_it_chooses_as_pyversity_does(method, diversity):
    scores, vectors = drawn(4, 30)
    found = ordered(scores, vectors, 8, [diversity] * 4, method)
    for row in range(4):
        own = scores[row]
        relevance = (own - own.min()) / (own.max() - own.min()) if method == "mmr" else own
        strategy = {"mmr": Strategy.MMR, "dpp": Strategy.DPP}[method]
        expected = diversify(vectors[row], relevance, 8, strategy, diversity=diversity).indices
        assert found[row, :8].tolist() == list(expected)
        left = [i for i in range(30) if i not in expected]
        assert found[row, 8:].tolist() == left  # in their own order


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_each_row_has_its_own_diversity_and_0_changes_nothing(method):
    scores, vectors = drawn(3, 20)
    found = ordered(scores, vectors, 5, [0.0, 0.5, 0.0], method)
    assert found[0].tolist() == found[2].tolist() == list(range(20))
    np.testing.assert_array_equal(found[1], ordered(scores[1:2], vectors[1:2], 5, [0.5], method)[0])
    assert found[1].tolist() != list(range(20))


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_twins_are_kept_apart_and_what_is_not_there_comes_last(method):
    twins = [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]]
    found = ordered([[1.0, 0.9, 0.8, 0.7, 0, 0]], [twins], 2, [0.5], method, [[True] * 4 + [False] * 2])
    assert found[0].tolist() == [0, 2, 1, 3, 4, 5]


def test_more_places_than_directions_are_filled_by_score():
    """Three vectors span the space: the determinant is 0 with any fourth one."""
    scores, vectors = drawn(1, 9)
    vectors[..., 3:] = 0
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    found = ordered(scores, vectors, 8, [0.5], "dpp")[0].tolist()
    assert found[3:] == sorted(found[3:])


@pytest.mark.parametrize("method", ["mmr", "dpp"])
@pytest.mark.parametrize("width", [0, 1, 3])
def test_fewer_candidates_than_places_and_equal_scores(method, width):
    scores, vectors = np.ones((2, width)), np.full((2, width, 2), 0.5**0.5)
    found = ordered(scores, vectors, 10, [0.5, 1.0], method, cap=1, tail_share=1)
    assert np.sort(found, axis=1).tolist() == [list(range(width))] * 2
    nobody = ordered(np.zeros((0, width)), np.zeros((0, width, 2)), 10, np.zeros(0, np.float32), method)
    assert nobody.shape == (0, width)


# Rules ----------------------------------------------------------------------------------------------------------------


def by_hand(scores, vectors, valid, places, d, pinned, categories, cap, tail, share, method):
    """One list: the positions that it shows, in order. Determinants and cosines anew at each place, in float64."""
    z = np.zeros(len(scores))
    if valid.any():
        own = scores[valid].astype(float)
        if method == "mmr":
            z[valid] = (own - own.min()) / max(own.max() - own.min(), 1e-9)
        else:
            z[valid] = (own - own.mean()) / max(own.std(), 1e-6)
    cosines = vectors.astype(float) @ vectors.T
    weights = np.exp((1 - d) * z)
    chosen = []
    for place in range(min(places, len(scores))):
        left = [i for i in range(len(scores)) if valid[i] and i not in chosen]
        if place < pinned:
            chosen.append(place)
            continue
        groups = [group for i in chosen for group in categories[i] if group >= 0]
        may = [i for i in left if not cap or all(groups.count(g) < cap for g in categories[i] if g >= 0)]
        if sum(tail[i] for i in chosen) < np.floor(round(share * (place + 1), 6)):
            may = [i for i in may if tail[i]] or may
        if not may:
            break
        if not d:
            chosen.append(may[0])
        elif method == "mmr":
            chosen.append(max(may, key=lambda i: (1 - d) * z[i] - d * max([0, *cosines[i, chosen]])))
        else:

            def determinant(i):
                some = [*chosen, i]
                return np.linalg.det(np.outer(weights[some], weights[some]) * cosines[np.ix_(some, some)])

            chosen.append(max(may, key=determinant))
    if cap:
        return chosen
    return chosen + [i for i in range(len(scores)) if valid[i] and i not in chosen]


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 16),
    places=st.integers(0, 8),
    d=st.sampled_from([0.0, 0.0, 0.4, 0.9]),
    pinned=st.integers(0, 3),
    cap=st.integers(0, 3),
    share=st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.7, 1.0]),
    method=st.sampled_from(["mmr", "dpp"]),
)
def test_all_rules_together_choose_as_the_slow_version(seed, width, places, d, pinned, cap, share, method):
    generator = np.random.default_rng(seed)
    scores, vectors = drawn(2, width, seed)
    valid = np.ones((2, width), bool)
    valid[:, generator.integers(0, width + 1) :] = False
    pinned = np.minimum(pinned, valid.sum(axis=1))
    categories = generator.integers(-1, 4, (2, width, 3))
    categories[1] = np.where(categories[1] == categories[1, :, :1], -1, categories[1])  # some have none
    categories = np.stack([[one_of_each(item) for item in row] for row in categories])
    tail = generator.random((2, width)) < 0.4
    given_ = {"pinned": pinned, "categories": categories, "cap": cap, "tail": tail, "tail_share": share}
    order, count = listed(scores, vectors, places, [d, d], method, valid, **given_)
    for row in range(2):
        expected = by_hand(
            scores[row], vectors[row], valid[row], places, d, pinned[row], categories[row], cap, tail[row], share,
            method,
        )  # fmt: skip
        assert order[row, : count[row]].tolist() == expected
        assert sorted(order[row]) == list(range(width))


def one_of_each(categories):
    """The categories of an item, each once, filled up with -1."""
    kept = sorted(set(categories.tolist()) - {-1})
    return kept + [-1] * (len(categories) - len(kept))


def plain(width):
    """Scores and vectors of one list without diversity."""
    return np.arange(width, 0, -1, dtype=np.float32)[np.newaxis], np.zeros((1, width, 0), np.float32)


def test_a_cap_counts_an_item_in_each_of_its_categories():
    categories = [[[0, 1], [0, -1], [1, -1], [2, -1], [-1, -1], [2, 1]]]
    order, count = listed(*plain(6), 6, [0.0], categories=categories, cap=1)
    # The first has both 0 and 1, which closes all others of these; one without a category is never closed.
    assert order[0, : count[0]].tolist() == [0, 3, 4]
    order, count = listed(*plain(6), 6, [0.0], categories=categories, cap=2)
    assert order[0, : count[0]].tolist() == [0, 1, 2, 3, 4]  # 5 would be the third of category 1
    order, count = listed(*plain(6), 6, [0.0], categories=categories, cap=0)
    assert order[0, : count[0]].tolist() == [0, 1, 2, 3, 4, 5]


def test_every_beginning_of_a_list_has_its_share_of_the_tail_as_long_as_there_is_any():
    tail = np.array([[False] * 6 + [True] * 4])
    order, count = listed(*plain(10), 10, [0.0], tail=tail, tail_share=0.5)
    assert order[0].tolist() == [0, 6, 1, 7, 2, 8, 3, 9, 4, 5] and count[0] == 10
    for share in (0.1, 0.29, 0.3, 0.7):  # in float32, .29 * 100 and .7 * 10 are a little less
        tail = np.arange(200)[np.newaxis] >= 100
        order, _ = listed(*plain(200), 100, [0.0], tail=tail, tail_share=share)
        found = np.cumsum(tail[0, order[0, :100]])
        assert found.tolist() == [n * round(100 * share) // 100 for n in range(1, 101)]


def test_pinned_items_come_first_and_count_in_the_other_rules():
    categories = np.array([[[0], [0], [1], [0], [1], [2]]])
    tail = np.array([[False, False, False, False, False, True]])
    order, count = listed(*plain(6), 6, [0.0], pinned=2, categories=categories, cap=1, tail=tail, tail_share=0.5)
    # The pinned ones break both rules, which hold again behind them.
    assert order[0, : count[0]].tolist() == [0, 1, 5, 2]


def test_rows_have_rules_of_their_own():
    categories = np.array([[[0], [0], [1]]] * 3)
    scores, vectors = (np.repeat(part, 3, axis=0) for part in plain(3))
    order, count = listed(scores, vectors, 3, [0.0] * 3, categories=categories, cap=[0, 1, 0], pinned=[0, 0, 3])
    assert order.tolist() == [[0, 1, 2], [0, 2, 1], [0, 1, 2]] and count.tolist() == [3, 2, 3]

import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from item_pairs import as_dense, pruned_to
from scipy import sparse

from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.models import item_weights
from tfllmrec.models.item_weights import (
    ItemWeightSettings,
    ItemWeightStatistics,
    PrunedWeights,
    between_domains,
    check_domains,
    co_occurrence,
    ease_weights,
    interactions,
    recency_matrix,
    score_history,
    solve,
    solve_item_weights,
    strongest,
)
from tfllmrec.text.centring import centred_unit


def views(decay, l2, co_occurrence, text, next_item=1.0, popularity=0.0, itself=None):
    strengths = {"l2": l2, "co_occurrence": co_occurrence, "text": text, "next_item": next_item}
    return ItemWeightSettings(decay=decay, popularity=popularity, itself=itself, **strengths)


SETTINGS = views(0.8, 1.0, 0.5, 5.0)


def but(**changes):
    """The settings with others, unchecked."""
    return SETTINGS.model_copy(update=changes)


TEXT = centred_unit(np.array([[1.0, 0], [0, 1], [0, 1.1], [1, 0.1]]))


def ragged(*rows):
    return Ragged.from_rows(rows, np.int64)


def solved(histories, n_items, settings, text=None, **how):
    return solve_item_weights(histories, n_items, settings.model_copy(update=how), text)


def all_weights(histories, n_items, settings, text=None):
    """``[N, N]``, with nothing left out."""
    return as_dense(solved(histories, n_items, settings, text, rank=n_items, neighbours=n_items))


def ridge_by_column(x, l2):
    """The same regression, one item at a time: x_i from all the other columns, solved as it stands."""
    n = x.shape[1]
    weights = np.zeros((n, n))
    for i in range(n):
        others = np.delete(np.arange(n), i)
        a = x[:, others]
        weights[others, i] = np.linalg.solve(a.T @ a + l2 * np.eye(n - 1), a.T @ x[:, i])
    return weights


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    return ragged(*(rng.choice(11, size=rng.integers(0, 6), replace=False) for _ in range(40)))


def dense(histories, n_items):
    x = np.zeros((len(histories), n_items))
    for user, items in enumerate(histories):
        x[user, items] = 1
    return x


def test_ease_of_two_items_by_hand():
    # G = [[3, 2], [2, 2]]: three users had item 0, two both. W[0, 1] = n_01 / (n_00 + l2).
    weights = ease_weights(ragged([0, 1], [1, 0], [0]), 2, l2=1.0)
    assert weights == pytest.approx(np.array([[0, 2 / (3 + 1)], [2 / (2 + 1), 0]]))


@pytest.mark.parametrize("block", [4, 1024])
def test_ease_against_ridge_regression_column_by_column(histories, block, monkeypatch):
    monkeypatch.setattr(item_weights, "_BLOCK", block)
    weights = ease_weights(histories, 12, l2=0.7)
    assert weights.dtype == np.float32
    assert weights == pytest.approx(ridge_by_column(dense(histories, 12), 0.7), abs=1e-5)


def test_ease_sees_neither_repeats_nor_order(histories):
    shuffled = ragged(*([*row[::-1], *row] for row in histories))
    assert np.array_equal(ease_weights(shuffled, 12, 1.0), ease_weights(histories, 12, 1.0))


def prefix_regression(histories, n_items, settings, text):
    """The normal equations written out: one row for each prefix of each history, then the two other views.

    Each item from all the others: its own row and column are taken out.
    """
    known, target = np.zeros((n_items, n_items)), np.zeros((n_items, n_items))
    for items in histories:
        for end in range(1, len(items)):
            m = np.zeros(n_items)
            for steps_back, item in enumerate(items[:end][::-1]):
                m[item] += settings.decay**steps_back
            known += settings.next_item * np.outer(m, m)
            target[:, items[end]] += settings.next_item * m
    x = dense(histories, n_items)
    for strength, gram in ((settings.co_occurrence, x.T @ x), (settings.text, text @ text.T)):
        known += strength * gram
        target += strength * gram
    weights = np.zeros((n_items, n_items))
    for i in range(n_items):
        others = np.delete(np.arange(n_items), i)
        a = known[np.ix_(others, others)] + settings.l2 * np.eye(n_items - 1)
        weights[others, i] = np.linalg.solve(a, target[others, i])
        # What is left of item i when the others have explained what they can, beside l2.
        left = known[i, i] + settings.l2 - known[i, others] @ np.linalg.solve(a, known[others, i])
        weights[:, i] *= (settings.l2 / left) ** settings.popularity
        weights[i, i] = settings.itself or 0.0
    return weights


@pytest.fixture(params=["exact", "exact in blocks", "low rank", "low rank in blocks"])
def way(request, monkeypatch):
    """How weights that leave nothing out are solved: exactly, or in the low-rank form of the highest rank."""
    if "blocks" in request.param:
        monkeypatch.setattr(item_weights, "_BLOCK", 4)
        monkeypatch.setattr(item_weights, "_CELLS", 40)  # three rows at once
        monkeypatch.setattr(item_weights, "_DENSE_CELLS", 0)
        monkeypatch.setattr(item_weights, "_DENSE_ITEMS", 0)
    if "low rank" in request.param:
        monkeypatch.setattr(item_weights, "MAX_EXACT_ITEMS", 0)


@pytest.mark.parametrize(
    "settings",
    [
        views(0.5, 0.7, 0.0, 0.0),
        views(1.0, 0.7, 0.0, 0.0),
        views(0.8, 0.7, 0.6, 0.0),
        views(0.8, 0.7, 0.0, 2.0),
        views(0.7, 0.7, 0.3, 1.5),
        views(0.7, 0.7, 0.3, 1.5, next_item=0.4, popularity=0.3),
        views(1.0, 0.7, 1.0, 1.5, next_item=0.0, popularity=1.0),
        views(0.7, 0.7, 0.3, 1.5, next_item=0.4, popularity=0.3, itself=2.5),
        views(1.0, 0.7, 1.0, 1.5, next_item=0.0, itself=0.5),
    ],
)
@pytest.mark.usefixtures("way")
def test_weights_against_every_prefix_written_out(histories, settings):
    vectors = centred_unit(np.random.default_rng(1).normal(size=(12, 5)))
    with_repeats = ragged(*histories, [1, 2, 1, 1, 3])
    weights = solved(with_repeats, 12, settings, vectors, rank=12, neighbours=12)
    assert (weights.neighbours.dtype, weights.weights.dtype) == (np.int32, np.float32)
    expected = prefix_regression(with_repeats, 12, settings, vectors)
    assert as_dense(weights) == pytest.approx(expected, abs=1e-4)
    four = solved(with_repeats, 12, settings, vectors, rank="all", neighbours=4)
    assert np.abs(four.weights) == pytest.approx(np.abs(strongest(expected, 4)[1]), abs=1e-4)


def test_who_had_both_alone_is_ease(histories):
    settings = views(1.0, 0.7, 1.0, 0.0, next_item=0.0)
    assert all_weights(histories, 12, settings) == pytest.approx(ease_weights(histories, 12, 0.7), abs=1e-5)


@pytest.mark.parametrize("co_occurrence", [0.0, 0.5])
def test_without_the_next_item_what_is_known_and_asked_for_is_one_matrix(histories, co_occurrence):
    settings = views(0.8, 1.0, co_occurrence, 0.0, next_item=0.0)
    known, target = ItemWeightStatistics.of(histories, 12, settings).weighted(settings)
    assert known is target
    x = interactions(histories, 12).toarray()
    assert known.toarray() == pytest.approx(co_occurrence * x.T @ x)


def test_the_next_item_is_told_from_the_one_before():
    weights = all_weights(ragged([0, 1], [0, 1], [0, 1]), 2, views(0.5, 1.0, 0.0, 0.0))
    assert weights == pytest.approx(np.array([[0, 3 / (3 + 1)], [0, 0]]))


@pytest.mark.parametrize("decay", [0.7, 1.0])
def test_pairs_counted_a_few_lags_at_a_time_are_the_same(histories, decay, monkeypatch):
    settings = but(decay=decay, text=0.0)
    at_once = all_weights(histories, 12, settings)
    monkeypatch.setattr(item_weights, "_PAIRS_AT_ONCE", 7)
    assert all_weights(histories, 12, settings) == pytest.approx(at_once, abs=1e-6)


def test_an_item_without_events_and_text_has_zeros(histories):
    text = np.vstack([centred_unit(np.random.default_rng(1).normal(size=(12, 5))), np.zeros(5)]).astype(np.float32)
    for weights in (ease_weights(histories, 13, 1.0), all_weights(histories, 13, SETTINGS, text)):
        assert not weights[12].any()
        assert not weights[:, 12].any()
        assert np.isfinite(weights).all()


@pytest.mark.parametrize("fit", [lambda h: ease_weights(h, 4, 1.0), lambda h: all_weights(h, 4, SETTINGS, TEXT)])
def test_fitting_leaves_the_histories_as_they_were(fit):
    histories = ragged([3, 1, 2], [2, 0, 2])
    fit(histories)
    assert histories.values.tolist() == [3, 1, 2, 2, 0, 2]


def test_text_links_items_that_nobody_had_together():
    without = all_weights(ragged([0]), 4, but(text=0.0), TEXT)
    with_text = all_weights(ragged([0]), 4, SETTINGS, TEXT)
    assert not without.any()
    assert with_text[0, 3] > 0 > with_text[0, 1]


@pytest.mark.parametrize(
    ("settings", "text", "n_items", "message"),
    [
        (but(l2=0.0), TEXT, 4, "l2 above 0, got 0.0"),
        (but(l2=float("nan")), TEXT, 4, "l2 above 0"),
        (but(decay=0.0), TEXT, 4, "recency decay above 0 and up to 1, got 0.0"),
        (SETTINGS, None, 4, "text vectors for 4 items .* got none"),
        (SETTINGS, TEXT[:3], 4, "got 3 rows"),
        (but(text=0.0), None, 3, "between 0 and 2, got 3 in row 1"),
        (but(rank=0), TEXT, 4, "rank of 1 or more, got 0"),
    ],
)
def test_what_cannot_be_fitted_is_said(settings, text, n_items, message):
    with pytest.raises(ModelError, match=message):
        solved(ragged([0], [1, 3]), n_items, settings, text)


def test_ease_has_limits():
    with pytest.raises(ModelError, match="at most 30,000"):
        ease_weights(ragged([0]), 30_001, 1.0)
    with pytest.raises(ModelError, match="between 0 and 2, got 3 in row 0"):
        ease_weights(ragged([3]), 3, 1.0)


def test_a_matrix_that_is_not_positive_definite_is_said():
    together = ragged(*[[0, 1]] * 4)  # each of the two explains the other
    with pytest.raises(ModelError, match="raise l2"):
        all_weights(together, 2, but(l2=1e-9, co_occurrence=1.0, next_item=0.0, text=0.0))
    with pytest.raises(ModelError, match="raise l2"):
        ease_weights(together, 2, 1e-9)


@pytest.mark.parametrize(
    ("rank", "n_items", "used"),
    [("all", 7, 7), ("all", 30_000, 30_000), ("all", 30_001, 1536), (8, 7, 7), (6, 7, 6), (2000, 40_000, 1536)],
)
def test_a_rank_has_the_bounds_of_the_catalogue(rank, n_items, used):
    assert item_weights.rank_of(rank, n_items) == used


# Low rank -------------------------------------------------------------------------------------------------------------


def neighbourhoods(n_items, size=5, seed=0):
    """Blocks of items that are only met together, and text (one item in each block has no events)."""
    rng = np.random.default_rng(seed)
    blocks = np.arange(n_items).reshape(-1, size)
    histories = ragged(*(rng.permutation(block[1:]) for block in blocks for _ in range(3)))
    text = np.repeat(rng.normal(size=(len(blocks), 32)), size, axis=0) + 0.1 * rng.normal(size=(n_items, 32))
    return histories, centred_unit(text)


def test_less_rank_is_further_from_exact_but_never_loses_the_diagonal():
    histories, text = neighbourhoods(60)
    exact = all_weights(histories, 60, SETTINGS, text)
    off = {}
    for rank in (59, 30, 10, 1):
        low_rank = as_dense(solved(histories, 60, SETTINGS, text, rank=rank, neighbours=60))
        off[rank] = np.linalg.norm(low_rank - exact) / np.linalg.norm(exact)
    assert 0 < off[59] < off[30] < off[10] < off[1]
    # One direction says next to nothing of twelve blocks: what is left is D^-1 B, whose neighbours are those met.
    low_rank = solved(histories, 60, but(text=0.0), rank=1, neighbours=3)
    for item in (1, 17, 59):
        assert set(low_rank.neighbours[item] // 5) == {item // 5}


def test_low_rank_takes_the_diagonal_out_of_what_it_cannot_hold():
    # Two people had 0 then 1, nothing else: A = [[2 + l2, 0], [0, l2]] of the next-item view, C = [[0, 2], [0, 0]].
    low_rank = solved(ragged([0, 1], [0, 1]), 2, views(0.5, 1.0, 0.0, 0.0), rank=1, neighbours=2)
    assert as_dense(low_rank) == pytest.approx(np.array([[0, 2 / (2 + 1)], [0, 0]]))


@pytest.mark.parametrize("rank", [12, 32])
def test_items_without_events_get_the_neighbours_that_read_alike(rank):
    histories, text = neighbourhoods(60)
    weights = as_dense(solved(histories, 60, SETTINGS, text, rank=rank, neighbours=60))
    for item in range(0, 60, 5):
        assert set(np.argsort(-weights[item])[:3] // 5) == {item // 5}
        assert weights[item + 1 : item + 5, item].mean() > 0.05  # and is a neighbour itself
    without = solved(histories, 60, but(text=0.0), rank=rank, neighbours=60)
    assert not as_dense(without)[::5].any()


def test_nothing_but_text_and_nothing_at_all():
    text = np.vstack([TEXT, np.zeros((1, 2), np.float32)])
    for histories in (ragged([0]), ragged([], []), ragged()):
        low_rank = as_dense(solved(histories, 5, SETTINGS, text, rank=4, neighbours=5))
        assert low_rank == pytest.approx(all_weights(histories, 5, SETTINGS, text), abs=1e-5)
        assert not low_rank[4].any() and not low_rank[:, 4].any()


def test_low_rank_never_holds_a_matrix_of_all_pairs(monkeypatch):
    monkeypatch.setattr(item_weights, "_CELLS", 300_000)
    n_items = 6_000
    rng = np.random.default_rng(0)
    home = rng.integers(n_items // 5, size=(2000, 1)) * 5
    histories = ragged(*(home + rng.integers(5, size=(2000, 4))))
    text = centred_unit(rng.normal(size=(n_items, 4)))
    tracemalloc.start()
    try:
        low_rank = solved(histories, n_items, SETTINGS, text, rank=4, neighbours=8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert low_rank.neighbours.shape == (n_items, 8)
    assert peak < 0.1 * 4 * n_items**2


def test_low_rank_is_the_same_every_time():
    histories, text = neighbourhoods(60)
    one, two = (solved(histories, 60, SETTINGS, text, rank=8, neighbours=6) for _ in range(2))
    assert np.array_equal(one.neighbours, two.neighbours) and np.array_equal(one.weights, two.weights)


def test_the_eigenpairs_of_largest_magnitude_are_found():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(80, 80)))[0]
    spectrum = np.array([3.0, -2.5, 2.0, -1.5, *(0.01 * rng.normal(size=76))])
    matrix = sparse.csr_array((basis * spectrum @ basis.T).astype(np.float32))
    values, vectors = item_weights.leading_eigenpairs(matrix, 4)
    assert values == pytest.approx([3.0, -2.5, 2.0, -1.5], abs=1e-5)
    assert np.abs(vectors.T @ basis[:, :4]) == pytest.approx(np.eye(4), abs=1e-4)


def test_long_histories_are_read_in_pieces_where_there_are_too_many_pairs(monkeypatch):
    long = ragged([0, 1, 2, 3, 4, 5, 6], [], [7, 8])
    # Pieces of 3: pairs of 3 + 3 + 1 and 2 events, 3^2 + 3^2 + 1 + 2^2 = 23; pieces of 4: 4^2 + 3^2 + 2^2 = 29.
    monkeypatch.setattr(item_weights, "_PAIRS", 28)
    low_rank = solved(long, 9, but(text=0.0), rank=9, neighbours=9)
    pieces = ragged([0, 1, 2], [3, 4, 5], [6], [7, 8])
    assert as_dense(low_rank) == pytest.approx(all_weights(pieces, 9, but(text=0.0)), abs=1e-6)
    monkeypatch.setattr(item_weights, "_PAIRS", 0)  # single events, at the least
    assert not solved(long, 9, but(text=0.0), rank=9, neighbours=9).weights.any()


# Statistics -----------------------------------------------------------------------------------------------------------

VIEWS = ("co_occurrence", "known", "target")


def matrices(statistics):
    return [getattr(statistics, name).toarray() for name in VIEWS]


def halves(histories):
    return histories.slice(0, 15), histories.slice(15, len(histories))


def every_prefix(histories, n_items, decay):
    """The three matrices, one event and one prefix after the other."""
    both, known, target = np.zeros((3, n_items, n_items))
    for items in histories:
        had = np.isin(np.arange(n_items), items).astype(float)
        both += np.outer(had, had)
        m = np.zeros(n_items)
        for item, following in pairwise(items):
            m *= decay
            m[item] += 1
            known += np.outer(m, m)
            target[:, following] += m
    return both, known, target


@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_statistics_of_two_halves_add_up_to_those_of_all(histories, decay):
    users = ragged(*histories, [1, 2, 1, 1, 3])
    settings = but(decay=decay)
    first, second = (ItemWeightStatistics.of(part, 12, settings) for part in halves(users))
    added = first + second
    at_once, expected = ItemWeightStatistics.of(users, 12, settings), every_prefix(users, 12, decay)
    for got, whole, oracle in zip(matrices(added), matrices(at_once), expected, strict=True):
        assert got == pytest.approx(oracle, rel=1e-6) and whole == pytest.approx(oracle, rel=1e-6)
        assert oracle.any()
    assert np.array_equal(added.co_occurrence.toarray(), expected[0])  # users are counted, without any rounding
    if decay == 1:
        assert all(map(np.array_equal, matrices(added), expected))
    text = centred_unit(np.random.default_rng(1).normal(size=(12, 5)))
    how = settings.model_copy(update={"neighbours": 12})
    got, whole = (as_dense(solve(s, how, text)) for s in (added, at_once))
    assert got == pytest.approx(whole, abs=1e-5)


def test_statistics_without_a_user_are_those_of_the_others(histories):
    others, alone = ragged(*histories), ragged([2, 7, 11, 7, 11])  # nobody else has had item 11
    statistics = ItemWeightStatistics.of(ragged(*histories, *alone), 12, SETTINGS)
    left = statistics - ItemWeightStatistics.of(alone, 12, SETTINGS)
    for got, expected in zip(matrices(left), every_prefix(others, 12, 0.8), strict=True):
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert np.array_equal(got != 0, expected != 0)  # no rounding is left where the user was the only one
    with pytest.raises(ModelError, match="fewer users than are subtracted"):
        left - ItemWeightStatistics.of(alone, 12, SETTINGS)


def test_a_user_with_later_events_is_subtracted_and_added_again(histories):
    others, before, after = ragged(*histories), ragged([2, 7]), ragged([2, 7, 11, 2])
    statistics = ItemWeightStatistics.of(ragged(*others, *before), 12, SETTINGS)
    old, new = (ItemWeightStatistics.of(history, 12, SETTINGS) for history in (before, after))
    expected = every_prefix(ragged(*others, *after), 12, 0.8)
    assert all(
        got == pytest.approx(e, rel=1e-6) for got, e in zip(matrices(statistics - old + new), expected, strict=True)
    )


def test_what_is_added_and_subtracted_again_leaves_nothing(histories):
    first, second = (ItemWeightStatistics.of(part, 12, SETTINGS) for part in halves(histories))
    start = first + first
    assert all(map(np.array_equal, matrices(start + second - second), matrices(start)))


def test_rounding_is_no_trace(histories):
    """A pair that only one user had is gone with the user, whatever rounding left of its value."""
    statistics = ItemWeightStatistics.of(ragged([0, 1], [2, 3]), 4, SETTINGS)
    rounded = replace(statistics, known=statistics.known * (1 + 1e-7))
    left = rounded - ItemWeightStatistics.of(ragged([2, 3]), 4, SETTINGS)
    assert all(set(view.indices) <= {0, 1} and view.nnz for view in (left.known, left.target))


def test_statistics_grow_with_the_catalogue(histories):
    grown = ItemWeightStatistics.of(histories, 12, SETTINGS).extend(15)
    assert all(map(np.array_equal, matrices(grown), matrices(ItemWeightStatistics.of(histories, 15, SETTINGS))))
    more = grown + ItemWeightStatistics.of(ragged([14, 3]), 15, SETTINGS)
    assert more.target.toarray()[14, 3] == 1
    with pytest.raises(ModelError, match="at least 15 items, got 12"):
        grown.extend(12)


@pytest.mark.parametrize(
    ("n_items", "changes"), [(3, {}), (12, {"decay": 0.5}), (12, {"next_item": 0.0})], ids=["items", "decay", "views"]
)
def test_statistics_that_do_not_fit_are_refused(histories, n_items, changes):
    statistics = ItemWeightStatistics.of(histories, 12, SETTINGS)
    other = ItemWeightStatistics.of(ragged([0]), n_items, but(**changes))
    for operation in (statistics.__add__, statistics.__sub__):
        with pytest.raises(ModelError, match=r"Expected statistics of 12 items with decay 0\.8, got"):
            operation(other)


def test_statistics_with_another_decay_are_not_solved(histories):
    statistics = ItemWeightStatistics.of(histories, 12, SETTINGS)
    with pytest.raises(ModelError, match=r"with decay 0\.5, got 0\.8: make them again"):
        solve(statistics, but(decay=0.5, text=0.0))
    # Without the next-item view, the decay is that of scoring alone.
    solve(statistics, but(decay=0.5, text=0.0, next_item=0.0))
    bare = ItemWeightStatistics.of(histories, 12, but(next_item=0.0))
    assert bare.decay is None and not bare.known.nnz
    with pytest.raises(ModelError, match=r"with decay 0\.8, got None"):
        solve(bare, but(text=0.0))


@pytest.mark.parametrize("next_item", [1.0, 0.0])
def test_stored_statistics_give_the_same_weights(histories, next_item, tmp_path):
    settings = but(next_item=next_item, text=0.0, rank=5, neighbours=4)
    statistics = ItemWeightStatistics.of(histories, 12, settings)
    statistics.save(tmp_path / "deep" / "statistics.npz")
    back = ItemWeightStatistics.load(tmp_path / "deep" / "statistics.npz")
    assert (back.decay, back.n_items) == (statistics.decay, 12)
    assert all(map(np.array_equal, matrices(back), matrices(statistics)))
    assert [getattr(back, name).dtype for name in VIEWS] == [np.float32] * 3
    one, other = (solve(s, settings) for s in (statistics, back))
    assert np.array_equal(one.weights, other.weights) and np.array_equal(one.neighbours, other.neighbours)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["statistics.npz"]


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("known_indices", lambda part: part + 99),
        ("known_indices", lambda part: part[1:]),
        ("known_indptr", lambda part: part[::-1]),
        ("target_data", lambda part: np.full_like(part, np.nan)),
        ("target_data", lambda part: part.astype(object)),
        ("target_data", lambda part: part.astype(int)),
        ("target_indptr", lambda part: np.append(part, part[-1])),
        ("co_occurrence_indptr", lambda part: np.zeros((2, 2), np.int64)),
        ("decay", lambda part: part + 7),
    ],
)
def test_damaged_statistics_are_refused(histories, part, damage, tmp_path):
    path = tmp_path / "statistics.npz"
    ItemWeightStatistics.of(histories, 12, SETTINGS).save(path)
    with np.load(path) as stored:
        np.savez(path, **{**stored, part: damage(stored[part])})
    with pytest.raises(ModelError, match=r"statistics.npz cannot be read .*make the statistics again"):
        ItemWeightStatistics.load(path)


def test_missing_statistics_are_told(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4")
    for name in ("none.npz", "cut.npz"):
        with pytest.raises(ModelError, match=f"{name} cannot be read"):
            ItemWeightStatistics.load(tmp_path / name)


# Pruning and scoring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "kept"), [(1, 1), (7, 7), (50, 3), (101, 10), (400, 1), (400, 399)])
def test_the_strongest_are_those_of_a_full_sort(columns, kept):
    rows = np.random.default_rng(0).normal(size=(9, columns)).astype(np.float32)
    rows[1] = 0
    rows[2, 1:] = 0
    places, values = strongest(rows, kept)
    assert np.array_equal(np.abs(values), -np.sort(-np.abs(rows), axis=1)[:, :kept])
    assert np.array_equal(values, np.take_along_axis(rows, places, 1))
    assert all(len(set(row)) == kept for row in places)


def test_scores_of_all_weights_are_those_of_the_matrix():
    weights = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    history = ragged([0, 3], [], [6])
    assert score_history(history, pruned_to(weights, 7), 0.5) == pytest.approx(score_history(history, weights, 0.5))


def test_scores_fade_with_the_steps_back():
    weights = np.array([[0, 1, 10], [2, 0, 20], [3, 30, 0]], np.float32)
    history = ragged([0, 1], [], [2, 2])
    twice = 1 + 0.5 * np.log2(1.5)  # n uses without a decay count log2(1 + n)
    expected = [[0.5 * 0 + 2, 0.5 * 1 + 0, 0.5 * 10 + 20], [0, 0, 0], [twice * 3, twice * 30, 0]]
    for form in (weights, PrunedWeights(np.tile(np.arange(3, dtype=np.int32), (3, 1)), weights)):
        scores = score_history(history, form, decay=0.5)
        assert scores == pytest.approx(np.array(expected))
        assert scores.dtype == np.float32


def test_uses_of_an_item_count_logarithmically_and_events_by_their_weight():
    used = recency_matrix(ragged([4, 1, 4, 4], [1]), 5, 1.0).toarray()
    assert used[0] == pytest.approx([0, np.log2(2), 0, 0, np.log2(4)]) and used[1, 1] == 1
    weights = Ragged(np.array([0.5, 1, -0.75, 0.25, 0.5], np.float32), np.array([0, 4, 5]))
    found = recency_matrix(ragged([4, 1, 4, 4], [1]), 5, 0.5, weights).toarray()
    newest, second, third = 0.25, -0.75 * 0.5 * np.log2(3 / 2), 0.5 * 0.125 * np.log2(4 / 3)
    assert found[0, 4] == pytest.approx(newest + second + third) and found[0, 1] == pytest.approx(0.25)
    assert found[1, 1] == pytest.approx(0.5)


def test_scoring_a_slice_of_a_batch():
    weights = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    history = ragged([0, 1], [2], [], [3, 4, 0])
    assert score_history(history.slice(1, 4), weights, 0.7) == pytest.approx(score_history(history, weights, 0.7)[1:])


@pytest.mark.parametrize("decay", [0.0, 1.1, -1.0])
def test_decay_has_limits(decay):
    with pytest.raises(ModelError, match="recency decay"):
        score_history(ragged([0]), np.zeros((1, 1), np.float32), decay)


def test_unknown_items_do_not_belong_in_a_history():
    with pytest.raises(ModelError, match="between 0 and 1, got -1 in row 1"):
        score_history(ragged([0], [-1]), np.zeros((2, 2), np.float32))


def test_co_occurrence_counts_users(histories, monkeypatch):
    monkeypatch.setattr(item_weights, "_BLOCK", 5)
    x = dense(histories, 12)
    assert np.array_equal(interactions(histories, 12).toarray(), x)
    assert np.array_equal(np.vstack([block for _, block in co_occurrence(histories, 12)]), x.T @ x)


def test_factors_between_domains_reach_the_pairs_that_they_name():
    domains = np.array(["a", "b", "a|b"], object)
    weights = PrunedWeights(np.tile(np.arange(3, dtype=np.int32), (3, 1)), np.ones((3, 3), np.float32))
    found = between_domains(weights, domains, {"a>b": 0.5}).weights
    assert found.tolist() == [[1, 0.5, 1], [1, 1, 1], [1, 1, 1]]  # an item of both shares a domain with either
    assert between_domains(weights, None, {"a>b": 0.5}) is weights and between_domains(weights, domains, {}) is weights


def test_factors_name_domains_that_there_are():
    domains = np.array(["a", "b", "a|b"], object)
    check_domains(domains, ItemWeightSettings(domains={"a>b": 0.5}))
    check_domains(domains, ItemWeightSettings(map=True))
    check_domains(None, ItemWeightSettings(domains={"a>c": 0.5}))  # it has no effect, which a warning says
    with pytest.raises(ConfigError, match="domains a, b, found c"):
        check_domains(domains, ItemWeightSettings(domains={"a>c": 0.5}))
    with pytest.raises(ConfigError, match="joined data of several domains"):
        check_domains(None, ItemWeightSettings(map=True))


def test_scaled_statistics_are_those_of_as_many_users():
    histories = Ragged.from_rows([[0, 1, 2], [2, 1]], np.int64)
    settings = ItemWeightSettings(decay=0.8)
    once, thrice = (
        ItemWeightStatistics.of(h, 3, settings) for h in (histories, Ragged.from_rows([*histories] * 3, np.int64))
    )
    for name in ("co_occurrence", "known", "target"):
        np.testing.assert_allclose(
            getattr(once.scaled(3.0), name).toarray(), getattr(thrice, name).toarray(), rtol=1e-6
        )

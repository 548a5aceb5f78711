import numpy as np
import pytest

from tfllmrec.layers import item_cells
from tfllmrec.layers.item_cells import RECALL, exact_best, partition, recall_by_probes

RNG = np.random.default_rng(0)
CENTRES = 10 * RNG.normal(size=(12, 8)).astype(np.float32)
PLANTED = np.repeat(np.arange(12), 40)
VECTORS = CENTRES[PLANTED] + 0.3 * RNG.normal(size=(480, 8)).astype(np.float32)
QUERIES = CENTRES[RNG.integers(0, 12, 30)] + 0.3 * RNG.normal(size=(30, 8)).astype(np.float32)


def test_clusters_are_found_and_one_probe_is_enough():
    cells = partition(VECTORS, QUERIES, seed=1, cells=24)
    # More cells than clusters: none holds items of two clusters.
    assert all(len(np.unique(PLANTED[cells.cell_of == cell])) <= 1 for cell in range(24))
    for cell in np.unique(cells.cell_of):
        np.testing.assert_allclose(cells.centroids[cell], VECTORS[cells.cell_of == cell].mean(axis=0), atol=1e-4)
    assert cells.probes <= 6 and cells.recall >= RECALL
    assert cells.centroids.dtype == np.float32 and cells.cell_of.dtype == np.int32


def test_as_many_probes_as_are_needed_and_no_more():
    noise = RNG.normal(size=(600, 16)).astype(np.float32)
    queries = RNG.normal(size=(50, 16)).astype(np.float32)
    cells = partition(noise, queries, seed=1)
    assert len(cells.centroids) == round(2 * 600**0.5)
    recalls, errors = recall_by_probes(noise, queries, cells.centroids, cells.cell_of)
    low = recalls - 1.645 * errors
    assert 1 < cells.probes < len(cells.centroids)
    assert low[cells.probes - 1] >= RECALL > low[cells.probes - 2]
    assert cells.recall == recalls[cells.probes - 1] > RECALL


@pytest.mark.parametrize("exclusive", [False, True])
def test_recall_by_probes_is_what_probing_finds(exclusive):
    noise, queries = RNG.normal(size=(90, 4)).astype(np.float32), RNG.normal(size=(7, 4)).astype(np.float32)
    centroids, cell_of = noise[:9], RNG.integers(0, 9, 90).astype(np.int32)
    # Nothing (90), or the three best.
    ranking = np.argsort(-(queries @ noise.T), axis=1)
    exclude = ranking[:, :3] if exclusive else np.full((7, 3), 90)
    recalls, errors = recall_by_probes(noise, queries, centroids, cell_of, exclude)
    for probes in range(1, 10):
        shares = []
        for query, ranked in zip(queries, ranking, strict=True):
            near = np.argsort(-(centroids @ query))[:probes]
            best = ranked[3:13] if exclusive else ranked[:10]
            shares.append(np.isin(cell_of[best], near).mean())
        assert np.isclose(recalls[probes - 1], np.mean(shares))
        assert np.isclose(errors[probes - 1], np.std(shares) / 7**0.5)


def test_the_exact_best_are_those_of_a_sort_without_the_excluded(monkeypatch):
    monkeypatch.setattr(item_cells, "_SCORES_AT_ONCE", 7 * len(VECTORS))
    ranking = np.argsort(-(QUERIES @ VECTORS.T), axis=1)
    exclude = ranking[:, [0, 3]].astype(np.int32)
    exclude[::2, 1] = len(VECTORS)  # nothing
    for found, ranked, gone in zip(exact_best(VECTORS, QUERIES, exclude), ranking, exclude, strict=True):
        assert sorted(found) == sorted([item for item in ranked if item not in gone][:10])
    for found, ranked in zip(exact_best(VECTORS, QUERIES), ranking, strict=True):
        assert sorted(found) == sorted(ranked[:10])


def test_fewer_items_than_cells_and_equal_items():
    cells = partition(np.ones((3, 2), np.float32), np.ones((2, 2), np.float32), seed=0, cells=10)
    assert len(cells.centroids) == 3 and cells.recall == 1.0
    assert len(np.unique(cells.cell_of)) == 1


def test_the_seed_decides():
    one, same, other = (partition(VECTORS, QUERIES, seed, cells=20) for seed in (1, 1, 2))
    assert np.array_equal(one.cell_of, same.cell_of)
    assert not np.array_equal(one.cell_of, other.cell_of)

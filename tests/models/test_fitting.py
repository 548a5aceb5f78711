"""What the fits of one data set share."""

from dataclasses import replace

import numpy as np
import pytest

from tfllmrec.config import ItemWeightSettings
from tfllmrec.models import fitting
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import ItemWeightStatistics

SETTINGS = ItemWeightSettings(decay=0.8, l2=1.0, co_occurrence=0.5, text=5.0, next_item=1.0, popularity=0.0)


@pytest.fixture
def data(chain_split):
    return TrainingData(chain_split, np.zeros((chain_split.dataset.n_items, 1), np.float32))


@pytest.fixture
def computed(monkeypatch):
    """The decay of all statistics that are computed."""
    decays, of = [], ItemWeightStatistics.of
    monkeypatch.setattr(
        ItemWeightStatistics,
        "of",
        lambda histories, n_items, settings: decays.append(settings.decay) or of(histories, n_items, settings),
    )
    return decays


def matrices(statistics):
    return [each.toarray() for each in (statistics.co_occurrence, statistics.known, statistics.target)]


def but(**changes):
    return SETTINGS.model_copy(update=changes)


def test_statistics_are_computed_once_for_settings_that_share_them(data, computed, tmp_path):
    for settings in (SETTINGS, but(l2=30.0, text=0.0), but(popularity=1.0)):
        found = data.item_weight_statistics(settings)
        assert all(map(np.array_equal, matrices(found), matrices(data.item_weight_statistics(SETTINGS))))
    data.store_item_weight_statistics(tmp_path / "statistics.npz", SETTINGS, print)
    assert computed == [0.8]
    assert data.item_weight_statistics(but(decay=0.5)).decay == 0.5
    assert data.item_weight_statistics(but(next_item=0.0)).decay is None
    assert computed == [0.8, 0.5, 0.8]  # without a next-item view the decay is not used


def test_statistics_of_histories_that_were_cut_are_not_stored(data, tmp_path, monkeypatch):
    path, told = tmp_path / "statistics.npz", []
    pairs = data.n_items**2
    assert pairs < int((data.histories.lengths**2).sum())
    monkeypatch.setattr("tfllmrec.models.item_weights._PAIRS", pairs - 1)
    data.store_item_weight_statistics(path, SETTINGS, told.append)
    assert len(told) == 1 and "long histories were cut" in told[0] and not path.exists()
    monkeypatch.setattr("tfllmrec.models.item_weights._PAIRS", pairs)
    data.store_item_weight_statistics(path, SETTINGS, told.append)
    assert len(told) == 1 and path.exists()


def test_statistics_of_too_many_pairs_are_not_stored_nor_kept_if_there_are_more(data, computed, tmp_path, monkeypatch):
    told, path = [], tmp_path / "statistics.npz"
    pairs = sum(len(row) ** 2 for row in data.histories)
    assert pairs > data.n_items**2 == 1600
    monkeypatch.setattr(fitting, "MAX_STORED_PAIRS", 1599)
    data.store_item_weight_statistics(path, SETTINGS, told.append)
    assert len(told) == 1 and "not stored (1,600 pairs of items, more than 1,599)" in told[0] and not path.exists()
    assert not data._statistics
    assert data.item_weight_statistics(SETTINGS) is data.item_weight_statistics(SETTINGS)
    data._statistics.clear(), computed.clear()
    monkeypatch.setattr(fitting, "MAX_KEPT_PAIRS", 1599)
    first, second = data.item_weight_statistics(SETTINGS), data.item_weight_statistics(SETTINGS)
    assert first is not second and computed == [0.8, 0.8]
    with_sources = replace(data, source_histories=data.histories)
    for _ in range(2):
        with_sources.source_statistics(but(source=0.5))
    assert computed[2:] == [0.8, 0.8]
    monkeypatch.setattr(fitting, "MAX_KEPT_PAIRS", 1600)
    for _ in range(2):
        with_sources.source_statistics(but(source=0.5))
    assert computed[2:] == [0.8, 0.8, 0.8]
    monkeypatch.setattr(fitting, "MAX_STORED_PAIRS", 1600)
    data.store_item_weight_statistics(path, SETTINGS, told.append)
    assert len(told) == 1
    assert all(map(np.array_equal, matrices(ItemWeightStatistics.load(path)), matrices(first)))

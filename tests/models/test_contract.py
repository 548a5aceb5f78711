"""Every recommender in ``tfllmrec.models`` is found here, and must keep the contract."""

import importlib
import inspect
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
from stand_ins import halves

from tfllmrec import models
from tfllmrec.config import ItemWeightSettings, ModelConfig, SplitConfig
from tfllmrec.data import make_split
from tfllmrec.data.domains import with_event_domains
from tfllmrec.data.queries import Queries
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.baselines import BASELINES
from tfllmrec.models.fitting import TrainingData

pytestmark = pytest.mark.tf


def text_of(split):
    vectors = np.random.default_rng(0).normal(size=(split.dataset.n_items, 6)).astype(np.float32)
    vectors[-1] = 0  # an item without text
    return vectors


def baseline(name):
    def make(split):
        dataset = replace(split.dataset, items=split.dataset.items.assign(**halves(split.dataset.n_items)))
        joined = make_split(with_event_domains(dataset), SplitConfig(), seed=42)
        return BASELINES[name]().fit(TrainingData(joined, text_of(split)))

    return make


def two_tower(split):
    from tfllmrec.models.two_tower import TwoTower

    return TwoTower(split.dataset.users["user_id"].to_numpy(), split.dataset.n_items)


def hybrid(split):
    from tfllmrec.models.hybrid import Catalogue, Hybrid
    from tfllmrec.models.item_weights import solve_item_weights

    config = ModelConfig(embedding_dim=8, blocks=1, heads=2, history_length=4)
    ids = split.dataset.items["item_id"].to_numpy(object)
    settings = ItemWeightSettings(decay=0.8, l2=10.0, co_occurrence=0.1, text=0.0)
    model = Hybrid(Catalogue(ids, text_of(split)), split.train_counts, config, settings)
    model.set_item_weights(solve_item_weights(split.train_queries().history, len(ids), settings))
    return model


def reranked(split):
    from tfllmrec.config import RankingConfig
    from tfllmrec.models.ranking import RankingModel, RatingScale, Reranked

    made = hybrid(split)
    model = RankingModel(made, RankingConfig(keys=4, hidden=4), RatingScale.of_split(split))
    for variable in model.network.trainable_variables:
        variable.assign(variable + 0.3 * np.random.default_rng(0).normal(size=variable.shape))
    return Reranked(made, model, 20)


def two_tower_servable(split):
    import tensorflow as tf

    from tfllmrec.models.two_tower_servable import TwoTowerServable

    vectors = np.random.default_rng(1).normal(size=(split.dataset.n_items, 5)).astype(np.float32)

    class Mean(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = tf.Variable(np.vstack([vectors, np.zeros((1, 5), np.float32)]))

        def __call__(self, history):
            return tf.reduce_sum(tf.gather(self.table, history), axis=1)

    return TwoTowerServable(Mean(), vectors, split.train_counts, split.schema, "history")


ENROLLED = {kind.__name__: baseline(name) for name, kind in BASELINES.items()}
ENROLLED |= {"TwoTower": two_tower, "Hybrid": hybrid, "Reranked": reranked, "TwoTowerServable": two_tower_servable}


def discovered():
    for found in pkgutil.iter_modules(models.__path__):
        module = importlib.import_module(f"{models.__name__}.{found.name}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if (
                kind.__module__ == module.__name__
                and hasattr(kind, "score")
                and not getattr(kind, "_is_protocol", False)
            ):
                yield name


def test_every_model_is_enrolled():
    assert sorted(discovered()) == sorted(ENROLLED)


@pytest.fixture(scope="module", params=sorted(ENROLLED))
def recommender(request, chain_split):
    return ENROLLED[request.param](chain_split)


@pytest.fixture
def queries(chain_split):
    """Known people, one nobody knows, an empty history, an item that nobody has met, marks and none."""
    cold = int(np.flatnonzero(chain_split.train_counts == 0)[0])
    made = Queries.from_histories(
        [[1, 2, 3], [4], [], [cold], [5, 6, 7, 8, 9, 10, 5]],
        ratings=[[5, 1, 3], [np.nan], [], [4], [1, 2, np.nan, 4, 5, 5, 5]],
        user_ids=["u1", "nobody", "u2", "u3", "u4"],
    )
    return made


def test_scores_are_finite_for_every_item(recommender, queries, chain_split):
    assert isinstance(recommender, Recommender)
    scores = recommender.score(queries)
    assert scores.shape == (len(queries), chain_split.dataset.n_items)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert recommender.score(queries.slice(0, 0)).shape == (0, chain_split.dataset.n_items)


def test_a_query_is_answered_alike_in_any_batch(recommender, queries):
    together = recommender.score(queries)
    alone = np.concatenate([recommender.score(queries.slice(i, i + 1)) for i in range(len(queries))])
    np.testing.assert_allclose(alone, together, atol=1e-4, rtol=1e-5)
    backwards = recommender.score(queries.take(np.arange(len(queries))[::-1]))
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-4, rtol=1e-5)


def test_scoring_changes_nothing(recommender, queries):
    values = queries.history.values.copy(), queries.ratings.values.copy()
    first, second = recommender.score(queries), recommender.score(queries)
    assert np.array_equal(first, second)
    assert np.array_equal(values[0], queries.history.values)
    assert np.array_equal(values[1], queries.ratings.values, equal_nan=True)

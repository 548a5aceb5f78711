"""Ratings by factors in an exported model."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ItemWeightSettings, ModelConfig, RankingConfig
from tfllmrec.data.queries import Queries
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.ranking import RankingModel, RatingScale
from tfllmrec.models.rating_factors import fit_rating_factors
from tfllmrec.serving.signatures import ServingModel

pytestmark = pytest.mark.tf
N, NAN = 20, float("nan")


@pytest.mark.slow
@pytest.mark.long
def test_rank_answers_with_ratings_by_factors(tmp_path):
    generator = np.random.default_rng(0)
    users, items = np.nonzero(generator.random((60, N)) < 0.6)
    ratings = generator.integers(1, 6, len(users)).astype(np.float32)
    factors = fit_rating_factors(users, items, ratings, N, rank=3)
    text = generator.normal(size=(N, 5)).astype(np.float32)
    ids = np.array([f"i{item}" for item in range(N)], object)
    config = ModelConfig(embedding_dim=8, blocks=0, heads=2, history_length=4, terms=["meaning"])
    hybrid = Hybrid(Catalogue(ids, text), np.arange(N) % 9, config, ItemWeightSettings())
    ranking = RankingModel(hybrid, RankingConfig(), RatingScale.of(items, ratings, N), factors=factors)
    served = ServingModel(hybrid, ids, text, None, Queries.from_histories([[1, 2]]), ranking=ranking)
    tf.saved_model.save(served, str(tmp_path / "1"), signatures={"rank": served.signatures()["rank"]})
    # A history that is longer than what the hybrid looks at counts as a whole.
    history, marks = [3, 9, 1, 17, 4, 6], [5, NAN, 1, 2, 4, 3]
    answer = tf.saved_model.load(str(tmp_path / "1")).signatures["rank"](
        event_fields=tf.fill((1, 0), ""),
        context=tf.fill((1, 0), ""),
        history=tf.constant([[*(f"i{item}" for item in history), ""], ["nope", *[""] * 6]]),
        ratings=tf.constant([[*marks, NAN], [NAN] * 7]),
        items=tf.constant([["i0", "i5", "", "i19"]] * 2),
    )
    queries = Queries.from_histories([history, []], [marks, []])
    expected = factors.ratings(queries, np.array([[0, 5, 0, 19]] * 2))
    expected[:, 2] = 0
    np.testing.assert_allclose(answer["rating"], expected, atol=1e-3)
    assert np.ptp(expected[0, [0, 1, 3]]) > 0.05

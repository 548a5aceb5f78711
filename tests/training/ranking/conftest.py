import pytest
import tensorflow as tf
from liked_kinds import CONFIG, data_of, events, split_of, untrained

from tfllmrec.training.ranking.fit import fit_ranking
from tfllmrec.training.ranking.record import RankingRecord


@pytest.fixture(scope="module")
def planted():
    return split_of(events())


@pytest.fixture(scope="module")
def hybrid(planted):
    return untrained(planted)


@pytest.fixture(scope="module")
def whole_hybrid(planted):
    """One that has an order, whatever it is worth."""
    return untrained(planted, ["meaning", "feedback", "behaviour"])


@pytest.fixture(scope="module")
def fitted(planted, hybrid, tmp_path_factory):
    """(model, record, TensorBoard's folder)"""
    tf.keras.utils.set_random_seed(1)
    logs = tmp_path_factory.mktemp("logs")
    made = fit_ranking(data_of(planted), CONFIG, hybrid, logs)
    return made.model, RankingRecord(**made.figures), logs

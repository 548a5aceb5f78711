import numpy as np
import pytest
import tensorflow_recommenders as tfrs

from tfllmrec.columns import ITEM_INDEX, USER_INDEX
from tfllmrec.data.queries import Queries
from tfllmrec.evaluation.protocol import selection_value
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.two_tower import TwoTower, fit_two_tower

pytestmark = pytest.mark.tf


def test_it_knows_people_by_id_and_nobody_else():
    model = TwoTower(np.array(["a", "b"]), n_items=5, dim=3, seed=1)
    users, items = model.users.embeddings.numpy(), model.items.embeddings.numpy()
    queries = Queries.from_histories([[0], [1], [2]], user_ids=["b", "nobody", "a"])
    expected = np.stack([users[1], users.mean(axis=0), users[0]]) @ items.T
    np.testing.assert_allclose(model.score(queries), expected, atol=1e-6)


def test_the_loss_is_the_in_batch_softmax_of_tfrs():
    model = TwoTower(np.array(["a", "b"]), n_items=5, dim=3, seed=1)
    assert type(model.task) is tfrs.tasks.Retrieval
    pairs = {USER_INDEX: np.array([0, 1]), ITEM_INDEX: np.array([4, 2])}
    logits = model.users.embeddings.numpy() @ model.items.embeddings.numpy()[[4, 2]].T
    expected = sum(np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits))  # TFRS sums over the batch
    assert float(model.compute_loss(pairs)) == pytest.approx(expected, rel=1e-5)


def test_fit_gives_back_the_best_epoch(chain_split):
    """Weights of one and the same fit after each epoch: the longer fit must hold the best of them."""
    data = TrainingData(chain_split, np.zeros((chain_split.dataset.n_items, 1), np.float32), seed=1)
    told = []

    def value(epochs):
        fitted = fit_two_tower(data, epochs, progress=lambda done, of: told.append((done, of)))
        value = selection_value(data.measure(fitted.model))
        assert fitted.options["epochs"] == epochs and fitted.figures == {"selection": value}
        return value, fitted.model.score(data.sample)

    values = [value(epochs) for epochs in (1, 2, 2)]
    assert told[:3] == [(0, 1), (0, 2), (1, 2)]
    assert values[1][0] >= values[0][0]
    assert np.array_equal(values[1][1], values[2][1])  # the same seed, the same model

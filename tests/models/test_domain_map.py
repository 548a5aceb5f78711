"""Two domains whose users have the same taste in both: what they did in one tells what they do in the other."""

import numpy as np
import pandas as pd
import pytest
from stand_ins import training_data
from stand_ins import two_domains as planted

from tfllmrec.data import Queries, Ragged
from tfllmrec.errors import ModelError
from tfllmrec.models.baselines import BASELINES, Popularity
from tfllmrec.models.domain_map import DomainMap, Emcdr, users_of_several
from tfllmrec.models.domain_weights import SingularVectors


def recall(data, model):
    return data.measure(model).metrics["recall@10"]


@pytest.mark.parametrize("model", [DomainMap(), Emcdr(dim=16)])
def test_a_taste_that_both_domains_share_is_found_and_vanishes_when_it_is_not_shared(model):
    data = planted()
    by_chance = recall(data, Popularity().fit(data))
    assert recall(data, model.fit(data)) > 0.9 > 2 * by_chance
    data = planted(same_taste=False)
    assert recall(data, model.fit(data)) < 2 * recall(data, Popularity().fit(data))


@pytest.mark.parametrize("kind", ["items", "text", "vectors"])
def test_each_kind_of_feature_tells_the_taste_alone(kind, monkeypatch):
    data = planted()
    monkeypatch.setattr(DomainMap, "kinds", (kind,))
    assert recall(data, DomainMap().fit(data)) > 0.9


def test_the_scores_are_those_of_the_normal_equations():
    data = planted()
    model = DomainMap(ridge=0.5).fit(data)
    queries = data.split.validation
    histories = [h for h in data.histories if (h < 40).any() and (h >= 40).any()]
    known = Queries.from_histories(histories)

    def features(queries):
        """Of each user, the three kinds of features of the books, each of length 1."""
        books, text = model.domains["books"], []
        x = np.zeros((len(queries), 40))
        for row, history in zip(x, queries.history, strict=True):
            row[history[history < 40]] = 1
        unit = books.text
        weighed = x / np.sqrt(np.maximum(x.sum(axis=1, keepdims=True), 1))
        text = [x * books.rarity, x @ unit, weighed @ books.vectors.axes[:, :128]]
        return np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in text])

    films = model.domains["films"].vectors
    y = np.zeros((len(histories), 40))
    for row, history in zip(y, histories, strict=True):
        row[history[history >= 40] - 40] = 1
    vectors = y / np.sqrt(y.sum(axis=1, keepdims=True)) @ films.axes
    kernel = features(known) @ features(known).T
    ridge = 0.5 * kernel.diagonal().mean() * np.eye(len(kernel))
    coefficients = np.linalg.solve(kernel + ridge, vectors - vectors.mean(axis=0))
    expected = (vectors.mean(axis=0) + features(queries) @ features(known).T @ coefficients) @ films.items.T
    np.testing.assert_allclose(model.score(queries)[:, 40:], expected, atol=1e-4)


def test_events_of_the_domain_itself_and_unknown_users_change_nothing():
    data = planted()
    model = DomainMap().fit(data)
    scores = model.score(Queries.from_histories([[3, 5], [3, 45, 5], [], [70]]))
    np.testing.assert_allclose(scores[0, 40:], scores[1, 40:], atol=1e-5)
    np.testing.assert_array_equal(scores[2, 40:], scores[3, 40:])  # the mean of the users of both
    assert scores.shape == (4, 80) and scores.dtype == np.float32 and np.isfinite(scores).all()


def test_both_directions_are_learned_and_a_domain_without_shared_users_scores_0():
    data = planted()
    model = DomainMap().fit(data)
    assert set(model.maps) == {"books", "films"} and model.score(Queries.from_histories([[45]]))[0, :40].any()
    events = data.split.train
    lonely = events[~((events.domain == "films") & events.user_id.str.startswith("u"))]
    histories = Ragged.from_rows([g.to_numpy() for _, g in lonely.groupby("user_id").item_index], np.int64)
    nobody = training_data(histories, 80, text=data.text)
    nobody.split.dataset.items, nobody.split.schema = data.split.dataset.items, data.split.schema
    assert not len(users_of_several(nobody)) and len(users_of_several(data)) == 72
    with pytest.raises(ModelError, match="users with events in two domains"):
        DomainMap().fit(nobody)


def test_data_that_is_not_joined_is_refused():
    data = training_data(Ragged.from_rows([[0, 1], [1, 2]], np.int64), 3)
    data.split.dataset.items = pd.DataFrame({"item_id": ["1", "2", "3"]})
    with pytest.raises(ModelError, match="tfllmrec data join"):
        BASELINES["domain_map"]().fit(data)


def test_singular_vectors_of_the_weighed_events():
    rng = np.random.default_rng(3)
    from scipy import sparse

    x = (rng.random((30, 8)) < 0.4).astype(np.float32)
    x[:, 0] = 1
    found = SingularVectors.of(sparse.csr_array(x))
    weighed = x / np.sqrt(x.sum(axis=1, keepdims=True)) / x.sum(axis=0) ** 0.25
    _, sizes, right = np.linalg.svd(weighed, full_matrices=False)
    # With all of its axes a user's vector gives back what the user has had.
    np.testing.assert_allclose(
        found.users(sparse.csr_array(x)) @ found.items.T, x / np.sqrt(x.sum(1, keepdims=True)), atol=1e-4
    )
    axis = found.axes[:, 0] * x.sum(axis=0) ** 0.25
    assert abs(axis @ right[0]) == pytest.approx(1, abs=1e-4) and sizes[0] > sizes[1]

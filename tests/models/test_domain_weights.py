"""Item-item weights between two domains whose users have the same taste in both."""

from dataclasses import replace

import numpy as np
import pytest
from item_pairs import pruned_to
from stand_ins import two_domains

from tfllmrec.data.domains import domain_bits
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import DataError, ModelError
from tfllmrec.models import domain_weights
from tfllmrec.models.baselines import Popularity
from tfllmrec.models.domain_weights import RIDGE, SingularVectors, maps_between, with_maps
from tfllmrec.models.item_weights import PrunedWeights, score_history

N = 80  # 40 books, 40 films


def nothing(n_items=N, value=0.0):
    return PrunedWeights(np.tile(np.arange(n_items), (n_items, 1)), np.full((n_items, n_items), value, np.float32))


class Served:
    """The weights as they are served: events do not decay for items of the other domain."""

    def __init__(self, data, kept=N):
        maps = maps_between(data.histories, data.domains, data.unit_text)
        whole = with_maps(nothing(), maps, data.domains)
        self.weights = pruned_to(dense(whole), kept)
        self.bits = domain_bits(data.domains)

    def score(self, queries):
        return score_history(queries.choices, self.weights, 0.01, domains=self.bits)


def dense(weights):
    table = np.zeros((len(weights.weights),) * 2, np.float32)
    np.put_along_axis(table, weights.neighbours, weights.weights, 1)
    return table


def recall(data, model):
    return data.measure(model).metrics["recall@10"]


def test_a_taste_that_both_domains_share_is_found_and_vanishes_when_it_is_not_shared():
    data = two_domains()
    assert recall(data, Served(data, kept=12)) > 0.9 > 2 * recall(data, Popularity().fit(data))
    data = two_domains(same_taste=False)
    assert recall(data, Served(data)) < 2 * recall(data, Popularity().fit(data))


def test_the_weights_are_those_of_the_normal_equations():
    data = two_domains()
    x = np.zeros((len(data.histories), N))
    for row, history in zip(x, data.histories, strict=True):
        row[history] = 1
    books, films = x[:, :40], x[:, 40:]
    there, here = books.any(axis=1), films.any(axis=1)
    of_books, of_films = (SingularVectors.of(sparse_of(each)) for each in (books[there], films[here]))
    text = data.unit_text[:40] - data.unit_text[:40].mean(axis=0)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    both = there & here

    def scaled(kind):
        """A kind of features, such that those of the users of both have a mean squared length of 1."""
        return kind / np.sqrt(np.mean(np.sum((by_activity(books[both]) @ kind) ** 2, axis=1)))

    def by_activity(rows):
        return rows / np.sqrt(rows.sum(axis=1, keepdims=True))

    rare = np.diag(1 / np.sqrt(1 + books.sum(axis=0)))
    items = np.hstack([scaled(each) for each in (rare, text, of_books.axes[:, :128])])
    users, wanted = by_activity(books[both]) @ items, by_activity(films[both]) @ of_films.axes
    kernel = users @ users.T
    solved = np.linalg.solve(kernel + RIDGE * kernel.diagonal().mean() * np.eye(len(kernel)), wanted)
    expected = items @ users.T @ solved @ of_films.items.T
    onto = next(each for each in maps_between(data.histories, data.domains, data.unit_text) if 40 in each.items)
    assert not onto.outside[40:].any()
    np.testing.assert_allclose(onto.outside[:40] @ onto.inside.T, expected, atol=1e-4)


def sparse_of(rows):
    from scipy import sparse

    return sparse.csr_array(rows.astype(np.float32))


def test_weights_within_a_domain_and_of_shared_items_stay_and_an_event_counts_as_much_in_both():
    data = two_domains()
    domains = data.domains.copy()
    domains[40] = "books|films"
    maps = maps_between(data.histories, domains, data.unit_text)
    found = dense(with_maps(nothing(value=0.5), maps, domains))
    np.testing.assert_array_equal(found[:40, :40], 0.5)
    np.testing.assert_array_equal(found[40], 0.5)
    np.testing.assert_array_equal(found[:, 40], 0.5)
    assert not (found[:40, 41:] == 0.5).any() and found[41:, :40].any()
    lengths = np.linalg.norm(found[:40, 41:], axis=1)
    assert 0.5 < lengths[lengths > 0].mean() / (0.5 * np.sqrt(40)) < 1.5


def test_weights_towards_a_domain_without_a_map_stay():
    data = two_domains()
    domains = np.append(data.domains, ["games"] * 5)  # no user of it has books or films
    histories = Ragged.from_rows([*data.histories, np.arange(N, N + 5)], np.int64)
    maps = maps_between(histories, domains, np.vstack([data.unit_text, data.unit_text[:5]]))
    found = dense(with_maps(nothing(N + 5, value=0.5), maps, domains))
    np.testing.assert_array_equal(found[:N, N:], 0.5)
    np.testing.assert_array_equal(found[N:, N:], 0.5)
    assert not (found[:40, 40:N] == 0.5).any() and not (found[N:, :N] == 0.5).any()


def test_the_order_of_events_has_no_effect_on_the_other_domain_alone():
    data = two_domains()
    served = Served(data)
    weights = replace(served.weights, weights=np.ones_like(served.weights.weights))
    one, other = (
        score_history(Ragged.from_rows([row], np.int64), weights, 0.5, domains=served.bits)[0]
        for row in ([3, 5, 41], [41, 5, 3])
    )
    np.testing.assert_allclose(one[40:], 1 + 2)  # the film is the newest event, and books count in full
    np.testing.assert_allclose(one[:40], 1 + 0.5 + 0.25)
    np.testing.assert_allclose((other[:40], other[40:]), ([2.5] * 40, [2.25] * 40))


def test_a_map_needs_users_of_both():
    data = two_domains()
    alone = data.histories.where(data.histories.values < 40)
    with pytest.raises(ModelError, match="users with events in two domains"):
        maps_between(alone, data.domains, data.unit_text)


def test_at_most_so_many_users_are_learned_from(monkeypatch):
    data = two_domains()
    monkeypatch.setattr(domain_weights, "MOST_USERS", 50)
    assert recall(data, Served(data)) > 0.8


def test_domains_are_bits_and_an_item_without_one_is_in_all():
    assert domain_bits(np.array(["b", "a", "a|b", ""], object)).tolist() == [2, 1, 3, 3]
    with pytest.raises(DataError, match="at most 62 domains, found 63"):
        domain_bits(np.array([f"d{i}" for i in range(63)], object))

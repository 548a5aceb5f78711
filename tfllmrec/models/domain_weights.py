"""Item-item weights between domains: a linear map of users' vectors, fitted on the users of both.

EMCDR (Man et al., "Cross-Domain Recommendation: An Embedding and Mapping Approach", IJCAI 2017) maps the vector of a
user in one domain to the user's vector in another one. If the map is linear, and if both vectors are linear in the
user's events, then the three steps together are equivalent to item-item weights. They are served like item-item
weights, at the same cost.

For each domain, where S are the users who have events inside and outside of it:

    W[j, i] = <f_j G, V_i>,    G = F^T (F F^T + ridge I)^-1 R

``f_j`` are the features of an item j of another domain: its identity, where rare items count more; its text; and its
vector, learned from the events outside the domain. ``F`` ``[S, F]`` are the sums of the features of each user's items,
``R`` ``[S, d]`` the users' vectors in the domain, and ``V_i`` the vector of an item of the domain
(:class:`SingularVectors`). ``F`` and ``R`` are sums over a user's events, divided by the square root of their number.
There is no intercept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from scipy import sparse

from tfllmrec.data.domains import domain_bits
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ModelError
from tfllmrec.models.item_weights import PrunedWeights, interactions, leading_eigenpairs, strongest
from tfllmrec.text.centring import centred_unit

MOST_USERS = 5000
"""Largest number of users that a map is fitted on. The size of its system of equations is the number of users."""

WIDTH = 512
"""Largest width of the vectors of a domain's users and items."""

SOURCE_WIDTH = 128
"""Number of the leading dimensions of these vectors that are features for the maps onto other domains."""

RIDGE = 3.0
"""Ridge penalty of the map, in units of the mean of the diagonal of ``F F^T``."""

_CELLS = 16_000_000  # largest number of dense weights in memory at once


class Vectors(Protocol):
    """Vectors of the M items of a domain and of its users; their inner products are the scores.

    Attributes:
      items: The vectors of the items, float32 ``[M, d]``.
    """

    items: np.ndarray

    def users(self, events: sparse.csr_array) -> np.ndarray:
        """Returns the vectors of users with ``events`` ``[B, M]``, float32 ``[B, d]``; zeros if there are no events."""

    def source(self, events: sparse.csr_array) -> np.ndarray:
        """Returns the features of users with ``events`` ``[B, M]`` for maps onto other domains, float32 ``[B, F]``."""


@dataclass(frozen=True, eq=False)
class SingularVectors(Vectors):
    """The leading singular vectors of the event matrix, scaled so that active users and popular items count less.

        A = D_u^-1/2 X D_i^-1/4,    A = P S Q^T,    user: row of A times Q,    item: row of D_i^1/4 Q

    ``D_u`` and ``D_i`` are diagonal matrices with the numbers of events of users and items (compare Nikolakopoulos et
    al., "EigenRec", KAIS 2019, where the exponent is a setting).

    Attributes:
      items: The vectors of the items, float32 ``[M, d]``.
      axes: ``D_i^-1/4 Q``, float32 ``[M, d]``.
    """

    items: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, events: sparse.csr_array) -> Self:
        """Computes the singular vectors of a binary user-by-item matrix ``[U, M]``."""
        scale = np.maximum(events.sum(axis=0), 1).astype(np.float32) ** -0.25
        weighed = (by_activity(events) @ sparse.diags_array(scale)).tocsr()
        axes = leading_eigenpairs((weighed.T @ weighed).tocsr(), WIDTH)[1]
        return cls(axes / scale[:, np.newaxis], axes * scale[:, np.newaxis])

    def users(self, events: sparse.csr_array) -> np.ndarray:
        return by_activity(events) @ self.axes

    def source(self, events: sparse.csr_array) -> np.ndarray:
        return by_activity(events) @ self.axes[:, :SOURCE_WIDTH]


def by_activity(events: sparse.csr_array) -> sparse.csr_array:
    """Divides the events of each user by the square root of their number."""
    return (sparse.diags_array(np.maximum(events.sum(axis=1), 1).astype(np.float32) ** -0.5) @ events).tocsr()


def rarity(events: sparse.csr_array) -> np.ndarray:
    """Returns ``1 / sqrt(1 + n_i)`` for each item, where n_i is its number of events; float32 ``[M]``."""
    return (1 / np.sqrt(1 + events.sum(axis=0))).astype(np.float32)


def some_users(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Samples at most :data:`MOST_USERS` of the users and keeps their order."""
    return users if len(users) <= MOST_USERS else np.sort(rng.choice(users, MOST_USERS, replace=False))


@dataclass(frozen=True, eq=False)
class MapOnto:
    """The weights from items of other domains to the items of a domain, ``outside @ inside.T``.

    Attributes:
      items: The items of the domain, int64 ``[M]``.
      outside: ``f_j G``, float32 ``[N, d]``; zeros for items of the domain.
      inside: ``V_i``, float32 ``[M, d]``.
    """

    items: np.ndarray
    outside: np.ndarray
    inside: np.ndarray


def maps_between(
    histories: Ragged, domains: np.ndarray, text: np.ndarray, widths: Sequence[int] | None = None, seed: int = 42
) -> list[MapOnto]:
    """Fits a map onto each domain that shares users with the others.

    Args:
      histories: Item indices of each training user; order and repeats do not matter.
      domains: The domain of each item, object ``[N]``; the domains of a shared item are separated by ``|``.
      text: Text vectors of the items, float32 ``[N, Dt]``.
      widths: As in :func:`tfllmrec.text.centring.centred_unit`.
      seed: Random seed of the sample of users, which is drawn if there are more than :data:`MOST_USERS`.

    Raises:
      ModelError: No user has events in two domains.
    """
    events, bits, found = interactions(histories, len(domains)), domain_bits(domains), []
    rng = np.random.default_rng(seed)
    for bit in np.unique(bits[bits & (bits - 1) == 0]):
        inside, outside = np.flatnonzero(bits & bit), np.flatnonzero(bits & bit == 0)
        of_domain, elsewhere = events[:, inside].tocsr(), events[:, outside].tocsr()
        there, here = np.diff(elsewhere.indptr) > 0, np.diff(of_domain.indptr) > 0
        users = some_users(np.flatnonzero(there & here), rng)
        if len(users):
            vectors = SingularVectors.of(of_domain[here])
            kinds: list[Any] = [
                sparse.diags_array(rarity(elsewhere)).tocsr(),
                centred_unit(text[outside], widths=widths),
                SingularVectors.of(elsewhere[there]).axes[:, :SOURCE_WIDTH],
            ]
            mapped = _mapped(kinds, by_activity(elsewhere[users]), vectors.users(of_domain[users]))
            of_all = np.zeros((len(domains), mapped.shape[1]), np.float32)
            of_all[outside] = mapped
            found.append(MapOnto(inside, of_all, vectors.items))
    if not found:
        raise ModelError(
            "item_weights.map: expected users with events in two domains to learn from, found none. Set "
            "item_weights.map=false, or join data sets that share users."
        )
    return found


def _mapped(kinds: Sequence[Any], users: sparse.csr_array, onto: np.ndarray) -> np.ndarray:
    """Solves for ``f_j G`` of M items, float32 ``[M, d]``.

    Each kind of features is scaled so that the users' features have a mean squared length of 1.

    Args:
      kinds: The features of the items, one dense or sparse matrix ``[M, F]`` for each kind.
      users: The events of the users, divided by the square root of their number, ``[S, M]``.
      onto: The vectors of these users in the domain, float32 ``[S, d]``.
    """
    summed: list[Any] = [users @ kind for kind in kinds]
    sizes = [float((each**2).sum()) / len(onto) for each in summed]
    parts = [(kind, each, size) for kind, each, size in zip(kinds, summed, sizes, strict=True) if size > 0]
    kernel = np.zeros((len(onto), len(onto)), np.float32)
    for _, each, size in parts:
        product = (each @ each.T) / size
        kernel += product if isinstance(product, np.ndarray) else product.toarray()
    kernel[np.diag_indices(len(onto))] += RIDGE * kernel.trace() / len(onto)
    solved = np.linalg.solve(kernel, onto)
    return np.sum([(kind @ (each.T @ solved)) / size for kind, each, size in parts], axis=0)


def with_maps(weights: PrunedWeights, maps: Sequence[MapOnto], domains: np.ndarray) -> PrunedWeights:
    """Replaces the weights from other domains to the items of a mapped domain by the weights of the map.

    Weights to a domain without a map are unchanged. The rows of a map are scaled to the mean length that the rows of
    its domain have within the domain, so that events inside and outside the domain count about the same. Each row keeps
    as many weights as before.
    """
    bits, kept = domain_bits(domains), weights.neighbours.shape[1]
    between = _disjoint(bits[:, np.newaxis], bits[weights.neighbours])
    within = np.where(between, np.float32(0), weights.weights)
    scales = [(_mean_length(within[each.items]) or 1.0) / max(_mean_length_of(each), 1e-12) for each in maps]
    replaced = np.zeros(len(bits), bool)
    for each in maps:
        replaced[each.items] = True
    out = PrunedWeights(np.empty_like(weights.neighbours), np.empty_like(weights.weights))
    at_once = max(1, _CELLS // len(bits))
    for start in range(0, len(bits), at_once):
        rows = slice(start, start + at_once)
        block = np.zeros((len(bits[rows]), len(bits)), np.float32)
        neighbours = weights.neighbours[rows]
        staying = np.where(between[rows] & replaced[neighbours], np.float32(0), weights.weights[rows])
        np.put_along_axis(block, neighbours, staying, 1)
        for each, scale in zip(maps, scales, strict=True):
            elsewhere = _disjoint(bits[rows, np.newaxis], bits[each.items])
            block[:, each.items] += elsewhere * (each.outside[rows] @ (scale * each.inside.T))
        out.neighbours[rows], out.weights[rows] = strongest(block, kept)
    return out


def _disjoint(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a & b == 0


def _mean_length(rows: np.ndarray) -> float:
    """Returns the mean length of the rows that are not zero; 0 if there is no such row."""
    lengths = np.linalg.norm(rows, axis=1)
    return float(lengths[lengths > 0].mean()) if lengths.any() else 0.0


def _mean_length_of(weights: MapOnto) -> float:
    products = weights.inside.T @ weights.inside
    lengths = np.sqrt(np.maximum(np.sum(weights.outside @ products * weights.outside, axis=1), 0))
    return float(lengths[lengths > 0].mean()) if lengths.any() else 0.0

"""Baselines that recommend items of one domain from a user's events in the others: closed-form maps between domains.

Both models need joined data (:func:`tfllmrec.data.domains.join_datasets`), whose items have a column ``domain``. The
items of a domain are scored by events of other domains only; events in the same domain are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from scipy import sparse

from tfllmrec.columns import DOMAIN
from tfllmrec.data.queries import Queries
from tfllmrec.errors import ModelError
from tfllmrec.models.domain_weights import SingularVectors, Vectors, rarity, some_users
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.ials import Ials
from tfllmrec.models.item_weights import interactions
from tfllmrec.text.centring import centred_unit

Block = np.ndarray | sparse.csr_array
LearnVectors = Callable[[sparse.csr_array], "Vectors"]


@dataclass(frozen=True, eq=False)
class Factors(Vectors):
    """The iALS matrix factorization of the events, with settings that work well on the beauty and toys data."""

    items: np.ndarray
    model: Ials

    @classmethod
    def of(cls, events: sparse.csr_array, dim: int) -> Self:
        """Factorizes a binary user-by-item matrix ``[U, M]`` into vectors of ``dim`` numbers."""
        model = Ials(dim=dim, unobserved_weight=0.005, l2=0.01).fit_matrix(events)
        return cls(model.items, model)

    def users(self, events: sparse.csr_array) -> np.ndarray:
        return self.model.user_vectors(events)

    source = users


@dataclass(frozen=True, eq=False)
class _Domain:
    """The items of a domain, and what is learned from this domain alone.

    Attributes:
      items: Indices in the catalogue, int64 ``[M]``.
      vectors: The vectors of items and users, learned from the domain's events.
      text: Text vectors, centred within the domain, float32 ``[M, Dt]``.
      rarity: ``1 / sqrt(1 + n_i)``, where n_i is the number of training events of item i; float32 ``[M]``.
    """

    items: np.ndarray
    vectors: Vectors
    text: np.ndarray
    rarity: np.ndarray

    @classmethod
    def of(cls, events: sparse.csr_array, items: np.ndarray, data: TrainingData, learn: LearnVectors) -> Self:
        """Builds the domain of ``items`` from ``events`` ``[U, N]`` and from the texts of ``data``."""
        own = events[:, items]
        own = own[np.diff(own.indptr) > 0]
        text = centred_unit(data.text[items], widths=data.text_widths)
        return cls(items, learn(own), text, rarity(own))

    def features(self, events: sparse.csr_array) -> dict[str, Callable[[], Block]]:
        """Returns functions that compute the features of users with ``events`` ``[B, N]``, by kind of feature."""
        own = events[:, self.items].tocsr()
        return {
            "items": lambda: (own @ sparse.diags_array(self.rarity)).tocsr(),
            "text": lambda: own @ self.text,
            "vectors": lambda: self.vectors.source(own),
        }


@dataclass(frozen=True, eq=False)
class _Map:
    """The ridge regression onto a domain, in the eigenbasis of its kernel, which makes another ridge cheap to solve.

    Attributes:
      features: The features of the S users that the map is fitted on, blocks ``[S, F]``.
      spectrum: The eigenvalues of the kernel, float32 ``[S]``.
      axes: The eigenvectors of the kernel, float32 ``[S, S]``.
      mean: The mean of the users' vectors in the domain, float32 ``[d]``.
      turned: ``axes^T (vectors - mean)``, float32 ``[S, d]``.
      solved: The coefficients ``[S, d]`` computed so far, by ridge.
    """

    features: list[Block]
    spectrum: np.ndarray
    axes: np.ndarray
    mean: np.ndarray
    turned: np.ndarray
    solved: dict[float, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, features: list[Block], vectors: np.ndarray) -> Self:
        """Fits the map from ``features`` to ``vectors`` ``[S, d]``."""
        spectrum, axes = np.linalg.eigh(_products(features, features))
        mean = vectors.mean(axis=0)
        return cls(features, np.maximum(spectrum, 0), axes, mean, axes.T @ (vectors - mean))

    def vectors(self, features: list[Block], ridge: float) -> np.ndarray:
        """Predicts the vectors in the domain of users with ``features``, float32 ``[B, d]``.

        Args:
          features: The users' features, blocks ``[B, F]``.
          ridge: The strength of the ridge penalty, in units of the mean of the kernel's diagonal.
        """
        if ridge not in self.solved:  # solved once, not for each batch of queries
            strength = max(ridge * float(self.spectrum.mean()), 1e-9)
            self.solved[ridge] = self.axes @ (self.turned / (self.spectrum + strength)[:, np.newaxis])
        return (self.mean + _products(features, self.features) @ self.solved[ridge]).astype(np.float32)


def users_of_several(data: TrainingData) -> np.ndarray:
    """Returns the rows of ``data.histories`` with events in at least two domains, int64 ``[S]``."""
    events = interactions(data.histories, data.n_items)
    return np.flatnonzero(np.sum(list(_has(events, data.items_of_domains).values()), axis=0) > 1)


def _has(events: sparse.csr_array, of_domain: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns which users have events in each domain, bool ``[U]``, by the name of the domain."""
    return {name: np.diff(events[:, items].indptr) > 0 for name, items in of_domain.items()}


@dataclass
class DomainMap:
    """Kernel ridge regression from a user's events in other domains onto the user's vector in this one.

    F(u) are the features of user u in the other domains, S the users with events both there and in this domain, and V
    the item vectors of this domain (:class:`SingularVectors`):

        score(u, i) = <mean + sum over s in S of k(u, s) c_s, V_i>,    c = (K + ridge I)^-1 (R - mean)
        k(u, s) = sum over the kinds of features of the cosine of F(u) and F(s)

    ``R`` are the vectors of the users S in this domain, and ``mean`` is their mean. So a user without events in other
    domains gets the items that users of several domains like most. Each other domain has three kinds of features: the
    user's items, where rare items count more; the mean of their text vectors; and the user's vector in that domain.

    Args:
      ridge: The strength of the ridge penalty, above 0, in units of the mean of the kernel's diagonal. Larger values
        pull the predictions towards the mean of all users.
    """

    kinds: ClassVar[tuple[str, ...]] = ("items", "text", "vectors")
    cosine: ClassVar[bool] = True
    fit_grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    score_grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"ridge": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)}
    ridge: float = 3.0
    n_items: int = field(init=False, repr=False)
    domains: dict[str, _Domain] = field(init=False, repr=False)
    maps: dict[str, _Map] = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        """Learns the vectors of each domain, and fits a map onto each domain from all others.

        Raises:
          ModelError: The data is not joined, or no user has events in two domains.
        """
        self.n_items, of_domain = data.n_items, data.items_of_domains
        if len(of_domain) < 2:
            raise ModelError(
                f"Expected joined data, whose items and events have a column '{DOMAIN}' with several domains. Join "
                "data sets with 'tfllmrec data join'."
            )
        events = interactions(data.histories, data.n_items)
        has = {name: there for name, there in _has(events, of_domain).items() if there.any()}
        self.domains = {name: _Domain.of(events, of_domain[name], data, self._learn) for name in has}
        rng, self.maps = np.random.default_rng(data.seed), {}
        for name, domain in self.domains.items():
            users = some_users(np.flatnonzero(has[name] & (np.sum(list(has.values()), axis=0) > 1)), rng)
            if len(users):
                vectors = domain.vectors.users(events[users][:, domain.items].tocsr())
                self.maps[name] = _Map.of(self._features(events[users], name), vectors)
        if not self.maps:
            raise ModelError("Expected users with events in two domains to learn from, found none.")
        return self

    def _learn(self, events: sparse.csr_array) -> Vectors:
        """Learns the vectors of a domain from the events of its users."""
        return SingularVectors.of(events)

    def _features(self, events: sparse.csr_array, target: str) -> list[Block]:
        """Returns a block ``[B, F]`` for each kind of features in each domain except ``target``."""
        found = [domain.features(events) for name, domain in self.domains.items() if name != target]
        blocks = [of_kind[kind]() for of_kind in found for kind in self.kinds]
        return [_unit(block) for block in blocks] if self.cosine else blocks

    def score(self, queries: Queries) -> np.ndarray:
        """Scores all items, float32 ``[B, N]``; the scores are 0 in a domain that shares no user with the others."""
        events = interactions(queries.choices, self.n_items)
        scores = np.zeros((len(queries), self.n_items), np.float32)
        for name, learned in self.maps.items():
            vectors = learned.vectors(self._features(events, name), self.ridge)
            scores[:, self.domains[name].items] = vectors @ self.domains[name].vectors.items.T
        return scores


@dataclass
class Emcdr(DomainMap):
    """EMCDR (Man et al., "Cross-Domain Recommendation: An Embedding and Mapping Approach", IJCAI 2017), linear case.

    Each domain is factorized on its own. A linear map from a user's vectors in the other domains to the vector in this
    domain is fitted on the users of both. The paper factorizes by gradient descent (MF or BPR) and its map has no
    intercept; here the factorization is iALS and the map has an intercept.

    Args:
      dim: Width of the vectors.
      ridge: As in :class:`DomainMap`.
    """

    kinds = ("vectors",)
    cosine = False
    fit_grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"dim": (128, 256)}
    dim: int = 128

    def _learn(self, events: sparse.csr_array) -> Vectors:
        return Factors.of(events, int(self.dim))


def _unit(block: Block) -> Block:
    """Scales the rows to length 1; rows of zeros stay zero."""
    if isinstance(block, np.ndarray):
        length = np.linalg.norm(block, axis=1, keepdims=True)
        return np.divide(block, length, out=np.zeros_like(block), where=length > 0)
    length = np.sqrt(np.asarray(block.multiply(block).sum(axis=1), np.float32))
    return (sparse.diags_array(1 / np.where(length > 0, length, 1)) @ block).tocsr()


def _products(a: list[Block], b: list[Block]) -> np.ndarray:
    """Returns the inner products of the rows of two lists of blocks, float32 ``[A, B]``."""
    parts = [one @ other.T for one, other in zip(a, b, strict=True)]
    return np.sum([part if isinstance(part, np.ndarray) else part.toarray() for part in parts], axis=0)

"""Baselines that recommend in one domain from a user's events in the others: closed-form maps between domains.

Both models work on joined data (:func:`tfllmrec.data.domains.join_datasets`), whose items say in a column ``domain``
which domain they belong to. Items of a domain are scored by the events of the other domains alone; in-domain events
are for other models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import pandas as pd
from scipy import sparse

from tfllmrec.columns import DOMAIN
from tfllmrec.data.domains import domain_names, items_of_domain
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
    """The matrix factorization of the events, iALS, with settings that are good on beauty and toys."""

    items: np.ndarray
    model: Ials

    @classmethod
    def of(cls, events: sparse.csr_array, dim: int) -> Self:
        """Those of a user-by-item matrix ``[U, M]`` of ones, ``dim`` wide."""
        model = Ials(dim=dim, unobserved_weight=0.005, l2=0.01).fit_matrix(events)
        return cls(model.items, model)

    def users(self, events: sparse.csr_array) -> np.ndarray:
        return self.model.user_vectors(events)

    source = users


@dataclass(frozen=True, eq=False)
class _Domain:
    """The items of a domain, and what is learned of them alone.

    Attributes:
      items: int64 ``[M]``, indices of the catalogue.
      vectors: of the items and users, from the domain's events.
      text: float32 ``[M, Dt]``, centred within the domain.
      rarity: float32 ``[M]``, ``1 / sqrt(1 + n_i)`` with the item's n_i training events.
    """

    items: np.ndarray
    vectors: Vectors
    text: np.ndarray
    rarity: np.ndarray

    @classmethod
    def of(cls, events: sparse.csr_array, items: np.ndarray, data: TrainingData, learn: LearnVectors) -> Self:
        """What ``events`` ``[U, N]`` and the texts of ``data`` say of ``items``."""
        own = events[:, items]
        own = own[np.diff(own.indptr) > 0]
        text = centred_unit(data.text[items], widths=data.text_widths)
        return cls(items, learn(own), text, rarity(own))

    def features(self, events: sparse.csr_array) -> dict[str, Callable[[], Block]]:
        """By kind, how to compute the features of users with ``events`` ``[B, N]``."""
        own = events[:, self.items].tocsr()
        return {
            "items": lambda: (own @ sparse.diags_array(self.rarity)).tocsr(),
            "text": lambda: own @ self.text,
            "vectors": lambda: self.vectors.source(own),
        }


@dataclass(frozen=True, eq=False)
class _Map:
    """The ridge regression onto a domain, in the eigenbasis of its kernel, so that any ridge is quick.

    Attributes:
      features: blocks ``[S, F]`` of the S users that it is fitted on.
      spectrum, axes: float32 ``[S]`` and ``[S, S]``, eigenvalues and eigenvectors of the kernel.
      mean: float32 ``[d]``, of the users' vectors in the domain.
      turned: float32 ``[S, d]``, ``axes^T (vectors - mean)``.
      solved: coefficients ``[S, d]`` by the ridge that they were asked for.
    """

    features: list[Block]
    spectrum: np.ndarray
    axes: np.ndarray
    mean: np.ndarray
    turned: np.ndarray
    solved: dict[float, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, features: list[Block], vectors: np.ndarray) -> Self:
        """The map from ``features`` to ``vectors`` ``[S, d]``."""
        spectrum, axes = np.linalg.eigh(_products(features, features))
        mean = vectors.mean(axis=0)
        return cls(features, np.maximum(spectrum, 0), axes, mean, axes.T @ (vectors - mean))

    def vectors(self, features: list[Block], ridge: float) -> np.ndarray:
        """The vectors in the domain of users with ``features``, float32 ``[B, d]``.

        Args:
          ridge: in units of the mean of the kernel's diagonal.
        """
        if ridge not in self.solved:  # once, not for each batch of queries
            strength = max(ridge * float(self.spectrum.mean()), 1e-9)
            self.solved[ridge] = self.axes @ (self.turned / (self.spectrum + strength)[:, np.newaxis])
        return (self.mean + _products(features, self.features) @ self.solved[ridge]).astype(np.float32)


def users_of_several(data: TrainingData) -> np.ndarray:
    """The rows of ``data.histories`` with events in at least two domains, int64 ``[S]``."""
    events, items = interactions(data.histories, data.n_items), data.split.dataset.items
    return np.flatnonzero(np.sum(list(_has(events, _items_of(items)).values()), axis=0) > 1)


def _items_of(items: pd.DataFrame) -> dict[str, np.ndarray]:
    """By domain, its items, int64 ``[M]``."""
    return {name: np.flatnonzero(items_of_domain(items, name)) for name in domain_names(items)}


def _has(events: sparse.csr_array, of_domain: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By domain, which users have events there, bool ``[U]``."""
    return {name: np.diff(events[:, items].indptr) > 0 for name, items in of_domain.items()}


@dataclass
class DomainMap:
    """Kernel ridge regression from a user's events in other domains onto the user's vector in this one.

    With F(u) the features of user u in the other domains, S the users of both, and V the item vectors of this domain
    (:class:`SingularVectors`):

        score(u, i) = <mean + sum over s in S of k(u, s) c_s, V_i>,    c = (K + ridge I)^-1 (R - mean)
        k(u, s) = sum over the kinds of features of the cosine of F(u) and F(s)

    ``R`` are the vectors of S in this domain and ``mean`` is their mean, so a user without any event elsewhere gets
    the items that users of several domains like most. Each other domain has three kinds of features: its items, with
    rare ones counting more; the mean of their text vectors; and the user's vector in that domain.

    Args:
      ridge: above 0, in units of the mean of the kernel's diagonal; larger pulls towards the mean of all users.
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
        """Finds the vectors of each domain, and learns a map onto each from all others.

        Raises:
          ModelError: the data is not joined, or no user has events in two domains.
        """
        items, self.n_items = data.split.dataset.items, data.n_items
        of_domain = _items_of(items)
        if len(of_domain) < 2:
            raise ModelError(
                f"Expected joined data, whose items have a column '{DOMAIN}' with several domains. Join data sets with "
                "'tfllmrec data join'."
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
        """The vectors of a domain with these events of its users."""
        return SingularVectors.of(events)

    def _features(self, events: sparse.csr_array, target: str) -> list[Block]:
        """Blocks ``[B, F]`` for the kinds of features in each domain but ``target``."""
        found = [domain.features(events) for name, domain in self.domains.items() if name != target]
        blocks = [of_kind[kind]() for of_kind in found for kind in self.kinds]
        return [_unit(block) for block in blocks] if self.cosine else blocks

    def score(self, queries: Queries) -> np.ndarray:
        """The scores of all items, float32 ``[B, N]``; 0 in a domain that shares no user with the others."""
        events = interactions(queries.choices, self.n_items)
        scores = np.zeros((len(queries), self.n_items), np.float32)
        for name, learned in self.maps.items():
            vectors = learned.vectors(self._features(events, name), self.ridge)
            scores[:, self.domains[name].items] = vectors @ self.domains[name].vectors.items.T
        return scores


@dataclass
class Emcdr(DomainMap):
    """EMCDR (Man et al., "Cross-Domain Recommendation: An Embedding and Mapping Approach", IJCAI 2017), linear case.

    Each domain is factorized on its own, and a linear map from the vectors of the other domains to that of this one is
    fitted on the users of both. The paper factorizes by gradient descent (MF or BPR), here it is iALS; the paper's map
    has no intercept, here it has.

    Args:
      dim: width of the vectors. ridge: as in :class:`DomainMap`.
    """

    kinds = ("vectors",)
    cosine = False
    fit_grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"dim": (128, 256)}
    dim: int = 128

    def _learn(self, events: sparse.csr_array) -> Vectors:
        return Factors.of(events, int(self.dim))


def _unit(block: Block) -> Block:
    """Rows of length 1; rows of zeros stay."""
    if isinstance(block, np.ndarray):
        length = np.linalg.norm(block, axis=1, keepdims=True)
        return np.divide(block, length, out=np.zeros_like(block), where=length > 0)
    length = np.sqrt(np.asarray(block.multiply(block).sum(axis=1), np.float32))
    return (sparse.diags_array(1 / np.where(length > 0, length, 1)) @ block).tocsr()


def _products(a: list[Block], b: list[Block]) -> np.ndarray:
    """The inner products of the rows of two lists of blocks, float32 ``[A, B]``."""
    parts = [one @ other.T for one, other in zip(a, b, strict=True)]
    return np.sum([part if isinstance(part, np.ndarray) else part.toarray() for part in parts], axis=0)

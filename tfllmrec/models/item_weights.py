"""Closed-form item-item weights: the behaviour term ``<m_u, W_i>``, and EASE as a baseline.

Both are ridge regressions with a closed form, solved once; no gradient, no epochs. :func:`solve_item_weights` is the
entry. All that the weights take from events is in :class:`ItemWeightStatistics`, which are sums over users: users are
added or subtracted, and :func:`solve` gives the weights again.

The weights predict the next item from the recency-weighted history before it. Each *view* of the data
adds a Gram matrix of what is known and a target matrix of what is asked for:

    A = nu G_next + beta X^T X + alpha T T^T + gamma S + l2 I
    B = nu C_next + beta X^T X + alpha T T^T + gamma S
    W = A^-1 (B - diag(g)),    g such that diag W = 0

``G_next`` and ``C_next`` are sums over all prefixes of all histories: of ``m m^T``, with ``m`` the prefix weighted by
``decay ** steps_back``, and of ``m`` times the item that came next. ``X`` is the binary user-by-item matrix (who had
both, in whatever order) and ``T`` the unit text vectors (what reads alike), which reach items that few or none have
met. ``S`` is the graph of the items, where there is one (:func:`tfllmrec.models.graph.view_of`). No item may explain
itself: with ``P = A^-1`` that takes ``g_i = (P B)_ii / P_ii``, as in EASE, which is this with the co-occurrence view
alone. The next-item view is the linear form of a sequential model (compare SLIT in Choe et al., "Session-aware Linear
Item-Item Models", WWW 2021). Where users come back to items that they know, ``W_ii`` is then set to ``itself``: solved
with all others, it would explain every event, and nothing would be left for neighbours.

``1 / P_ii`` is what the other items leave unexplained of item i, plus ``l2``: it grows with the item's events. The
weights towards item i are multiplied by ``(l2 P_ii) ** popularity``, which takes candidates down that many have met.

:func:`ease_weights` is EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, eq. 8):
``P = (X^T X + l2 I)^-1, W = I - P diag(1 / diag P)``.

``W[j, i]`` is what history item j says for candidate i. An item with neither events nor text has only zeros.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from tfllmrec.config import ItemWeightSettings
from tfllmrec.data.domains import BOTH
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import UNKNOWN_CODE
from tfllmrec.durable import reading_npz, replacing
from tfllmrec.errors import ConfigError, ModelError

MAX_EXACT_ITEMS = 30_000
"""With more items, a few N x N matrices (3.6 GB each) pass common memory: there is no EASE and no rank *all*."""

MAX_RANK = 1536
"""The highest rank of the weights of more than :data:`MAX_EXACT_ITEMS` items; a higher one takes too long."""

STATISTICS = "item_weights_statistics.npz"
"""The file of a run's ``model`` folder with its :class:`ItemWeightStatistics`."""

MAX_STORED_PAIRS, MAX_KEPT_PAIRS = 20_000_000, 100_000_000
"""Statistics of more pairs of items than the first may take more than 200 MB and a minute to write, and are not stored;
those of more than the second may take more than 2 GB, and are not kept in memory."""

_BLOCK = 1024
_DENSE_ITEMS = 6000
_PAIRS = 200_000_000
_PAIRS_AT_ONCE = 4_000_000
_OVERSAMPLING = 16
_ROUNDS = 2
_WIDTH = 384  # of low-rank weights, at least: a lower rank is for what events say, and keeps what texts say
_CELLS = 32_000_000  # of low-rank weights that are there at once
_DENSE_CELLS = 400_000_000


class NotPositiveDefinite(ModelError):
    """Settings with which there are no weights: ``l2`` is too small beside the other strengths."""


@dataclass(frozen=True)
class PrunedWeights:
    """The strongest P weights of each item; row j is what history item j points to.

    Attributes:
      neighbours: int32 ``[N, P]``, candidate items, strongest first. All different within a row.
      weights: float32 ``[N, P]``, positive or negative; 0 where an item has fewer than P neighbours.
    """

    neighbours: np.ndarray
    weights: np.ndarray

    def save(self, path: Path) -> None:
        """Writes an ``.npz``, whole or not at all.

        Raises:
          WriteError: The disk is full, read-only or broken; ``path`` is as it was.
        """
        with replacing(path) as fresh, fresh.open("wb") as stream:
            np.savez(stream, allow_pickle=False, neighbours=self.neighbours, weights=self.weights)

    @classmethod
    def load(cls, path: Path) -> PrunedWeights:
        """Reads what :meth:`save` wrote.

        Raises:
          ModelError: The file is missing or damaged.
        """
        with reading_npz(path, "copy it back, or fit again") as stored:
            found = cls(stored["neighbours"], stored["weights"])
            if found.neighbours.shape != found.weights.shape or found.neighbours.ndim != 2:
                raise ValueError("shapes")
        return found


def solve_item_weights(
    histories: Ragged,
    n_items: int,
    settings: ItemWeightSettings,
    text_vectors: np.ndarray | None = None,
    graph: sparse.csr_array | None = None,
) -> PrunedWeights:
    """The item-item weights of a catalogue of any size, pruned.

    Args:
      histories: Item indices of each training user, oldest first.
      n_items: N.
      settings: See there. Where they say *auto*, :meth:`ItemWeightSettings.settled`. The weights are solved exactly
        where ``rank`` is *all* or at least N (see :func:`rank_of`), and all of them are kept where N is less than
        ``neighbours``.
      text_vectors: float32 ``[N, D]``, see :func:`tfllmrec.text.centring.centred_unit`; needed where ``settings.text``
        is above 0.
      graph: sparse ``[N, N]``, positive semidefinite; needed where ``settings.graph`` is above 0.

    Raises:
      ModelError: An item outside the catalogue, a bad setting, or text or a graph of another catalogue.
    """
    return solve(ItemWeightStatistics.of(histories, n_items, settings), settings, text_vectors, graph)


def solve(
    statistics: ItemWeightStatistics,
    settings: ItemWeightSettings,
    text_vectors: np.ndarray | None = None,
    graph: sparse.csr_array | None = None,
) -> PrunedWeights:
    """The weights of :func:`solve_item_weights`, from statistics that were stored or added up.

    Args:
      statistics: Of all events, with the decay of ``settings`` where ``settings.next_item`` is above 0.
      settings, text_vectors, graph: As in :func:`solve_item_weights`.

    Raises:
      ModelError: A bad setting, statistics with another decay, or text or a graph of another catalogue.
    """
    n_items, settings = statistics.n_items, settings.settled()
    assert settings.rank is not None
    rank = rank_of(settings.rank, n_items)
    text = _checked_text(n_items, settings, text_vectors)
    known, target = statistics.weighted(settings, graph)
    if rank == n_items <= MAX_EXACT_ITEMS:
        return _exact(known, target, settings, text)
    return _low_rank(known, target, settings, text, rank)


def rank_of(rank: int | Literal["all"], n_items: int) -> int:
    """The rank of the weights of N items: at most N, and at most :data:`MAX_RANK` where N x N values are too many.

    Raises:
      ModelError: It is below 1.
    """
    most = n_items if n_items <= MAX_EXACT_ITEMS else MAX_RANK
    if rank == "all":
        return most
    if rank < 1:
        raise ModelError(f"Expected a rank of 1 or more, got {rank}.")
    return min(rank, most)


def _exact(
    known: sparse.csr_array, target: sparse.csr_array, settings: ItemWeightSettings, text: np.ndarray | None
) -> PrunedWeights:
    """The formula as it stands: about 15 s for 12,000 items on two cores, and ``12 N^2`` bytes while it runs.

    Args:
      known, target: A and B, as far as they come from events and the graph, sparse ``[N, N]``.
      settings: The strengths of the text, the ridge and the discount.
      text: float32 ``[N, D]``, or none.
    """
    n_items = known.shape[0]
    assert settings.l2 is not None and settings.text is not None and settings.itself is not None
    matrix = known.toarray()
    if text is not None:
        for start in range(0, n_items, _BLOCK):
            matrix[start : start + _BLOCK] += (settings.text * text[start : start + _BLOCK]) @ text.T
    matrix[np.diag_indices(n_items)] += settings.l2
    inverse = _inverse(matrix, settings.l2)
    del matrix

    if known is target:  # then B = A - l2 I, so A^-1 B = I - l2 A^-1
        weights = -settings.l2 * inverse
        weights[np.diag_indices(n_items)] += 1.0
    else:
        # A sparse target is multiplied as it is, a small or dense one is faster through BLAS.
        if n_items <= _DENSE_ITEMS or target.nnz > 0.05 * n_items**2:
            weights = inverse @ target.toarray()
        else:
            weights = np.ascontiguousarray((target.T.tocsr() @ inverse).T)
        if text is not None:
            projected = inverse @ (settings.text * text)
            for start in range(0, n_items, _BLOCK):
                weights[start : start + _BLOCK] += projected[start : start + _BLOCK] @ text.T
    left = inverse.diagonal().copy()
    own = weights.diagonal() / left
    discount = _discount(left, settings)
    kept = min(settings.neighbours, n_items)
    pruned = PrunedWeights(np.empty((n_items, kept), np.int32), np.empty((n_items, kept), np.float32))
    for start in range(0, n_items, _BLOCK):
        rows = slice(start, start + _BLOCK)
        weights[rows] -= inverse[rows] * own
        weights[rows] *= discount
        weights[np.arange(n_items)[rows], np.arange(n_items)[rows]] = settings.itself
        pruned.neighbours[rows], pruned.weights[rows] = strongest(weights[rows], kept)
    return pruned


def _low_rank(
    known: sparse.csr_array, target: sparse.csr_array, settings: ItemWeightSettings, text: np.ndarray | None, rank: int
) -> PrunedWeights:
    """The formula with a diagonal plus low rank in the place of A.

    With ``M`` what A has from events and the graph, ``D = l2 I + diag M`` and ``E = D^-1/2 offdiag(M) D^-1/2``,

        A = D^1/2 (I + E + U U^T) D^1/2,    U = sqrt(alpha) D^-1/2 T.

    ``E`` is kept in its ``rank`` eigenpairs of largest magnitude and ``U`` as it is, so that the inverse follows from
    the Woodbury identity: ``A^-1 = D^-1/2 (I + L R^T) D^-1/2``. Each item keeps its own ``l2`` and counts on the
    diagonal, which is most of A where few users had the same two items; a projection onto leading directions would
    lose that, and the tail with it. ``W`` is then ``D^-1`` times the (sparse) target from events plus a low-rank
    product, which is looked through block by block for each item's strongest weights. To save time it is cut first, to
    ``rank`` or 384, whichever is more: with fewer, items without events would lose what their texts say. What ``E``
    leaves out may well be noise: where items have few events, lists are often better than with all N x N weights.

    Memory grows with N and the pairs of items that users have had; looking for the strongest weights compares all items
    with each other, so time grows with N^2: about four minutes of one core for 100,000 items at rank 384.

    The eigenpairs of a sum are not the sum of the eigenpairs, so nothing can be added to the low-rank factors without
    error. The sparse statistics are stored and added to, and the eigenpairs are computed from them again.

    Args:
      known, target, settings, text: As in :func:`_exact`.
      rank: Of ``E``.
    """
    assert settings.l2 is not None and settings.text is not None and settings.itself is not None
    diagonal = known.diagonal()
    scale = 1 / np.sqrt(diagonal + np.float32(settings.l2))
    scaled_known = _scaled((known - sparse.diags_array(diagonal)).tocsr(), scale, scale)  # E
    values, vectors = leading_eigenpairs(scaled_known, rank)
    del scaled_known
    if not values.min(initial=0) > -1 + 1e-5:  # nearer to it, rounding decides
        raise NotPositiveDefinite(f"The item-item matrix is not positive definite (l2 {settings.l2}): raise l2.")
    gain = 1 / (1 + values) - 1  # (I + E)^-1 = I + Q gain Q^T

    target = _scaled(target, scale)
    left, inverse = vectors * gain, vectors  # L and R of the inverse
    asked_for = _for_products(target).T
    right = asked_for @ vectors
    if text is not None:
        root = np.float32(np.sqrt(settings.text))
        scaled = root * scale[:, None] * text  # U
        solved = scaled + left @ (vectors.T @ scaled)
        core = np.linalg.inv(np.eye(text.shape[1], dtype=np.float32) + scaled.T @ solved)
        left, inverse = np.hstack([left, solved @ core]), np.hstack([inverse, -solved])
        right = np.hstack([right, root * text - asked_for @ solved])
    del asked_for
    unexplained = 1 + np.einsum("nr,nr->n", left, inverse)  # P_ii = scale_i^2 unexplained_i
    own = (target.diagonal() + np.einsum("nr,nr->n", left, right)) / unexplained
    discount = _discount(scale**2 * unexplained, settings).astype(np.float32)
    right -= own[:, None] * inverse
    right *= discount[:, None]
    left *= scale[:, None]
    direct = _scaled((target - sparse.diags_array(own)).tocsr(), scale, discount)
    return _strongest_of_sum(direct, *_cut(left, right, max(rank, _WIDTH)), settings.neighbours, settings.itself)


def _scaled(matrix: sparse.csr_array, rows: np.ndarray, columns: np.ndarray | None = None) -> sparse.csr_array:
    """``diag(rows) matrix diag(columns)``, in float32."""
    values = matrix.data * np.repeat(rows.astype(np.float32, copy=False), np.diff(matrix.indptr))
    if columns is not None:
        values *= columns[matrix.indices]
    return sparse.csr_array((values.astype(np.float32, copy=False), matrix.indices, matrix.indptr), matrix.shape)


def _for_products(matrix: sparse.csr_array) -> sparse.csr_array | np.ndarray:
    """The matrix as it is multiplied fastest with a few hundred columns: dense if it is rather full, and not too large.

    BLAS with two cores takes less time than the sparse product from about one value in seven on.
    """
    cells = matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if cells / 7 < matrix.nnz and cells <= _DENSE_CELLS else matrix


def _discount(inverse_diagonal: np.ndarray, settings: ItemWeightSettings) -> np.ndarray:
    """What multiplies the weights towards each item, ``[N]`` in (0, 1]; 1 for an item without events and text."""
    assert settings.l2 is not None and settings.popularity is not None
    # Above 1 only where a low rank leaves out more than it may.
    return np.minimum(settings.l2 * inverse_diagonal, 1.0) ** settings.popularity


def leading_eigenpairs(matrix: sparse.csr_array, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ``[r]`` of largest magnitude of a symmetric matrix, and their vectors ``[N, r]``.

    Randomized subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4), always from the same
    start; ``r`` is ``rank``, or that of the matrix. Directions that are still mixed after the few rounds have nearly
    the same eigenvalue.
    """
    n_items, fast = matrix.shape[0], _for_products(matrix)
    start = np.random.default_rng(0).standard_normal((n_items, min(rank + _OVERSAMPLING, n_items)), np.float32)
    basis = _orthonormal(start)
    for _ in range(_ROUNDS):
        basis = _orthonormal(fast @ basis)
    values, vectors = np.linalg.eigh(basis.T @ (fast @ basis))
    kept = np.argsort(-np.abs(values), kind="stable")[:rank]
    return values[kept], basis @ vectors[:, kept]


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what float32 columns span; by their inner products, which is far faster than QR."""
    for _ in range(2):  # what rounding leaves after the first time, the second takes
        sizes, axes = np.linalg.eigh(_gram(columns))
        kept = sizes > 1e-8 * sizes.max(initial=0)
        columns = columns @ (axes[:, kept] / np.sqrt(sizes[kept])).astype(np.float32)
    return columns


def _cut(left: np.ndarray, right: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Two factors, no wider than ``rank``, of the best approximation to ``left right^T`` in the Frobenius norm."""
    if left.shape[1] <= rank:
        return left, right
    sizes, axes = np.linalg.eigh(_gram(left))
    kept = sizes > 1e-12 * sizes.max(initial=0)
    axes, root = axes[:, kept], np.sqrt(sizes[kept])
    directions = np.linalg.eigh((axes * root).T @ _gram(right) @ (axes * root))[1][:, -rank:]
    return (
        left @ ((axes / root) @ directions).astype(np.float32),
        right @ ((axes * root) @ directions).astype(np.float32),
    )


def _gram(columns: np.ndarray) -> np.ndarray:
    """``columns^T columns`` in float64, without a float64 copy of the columns."""
    gram = np.zeros((columns.shape[1], columns.shape[1]))
    for start in range(0, len(columns), _BLOCK):
        block = columns[start : start + _BLOCK].astype(np.float64)
        gram += block.T @ block
    return gram


def _strongest_of_sum(
    direct: sparse.csr_array, left: np.ndarray, right: np.ndarray, neighbours: int, itself: float
) -> PrunedWeights:
    """Prunes ``direct + left right^T``, which is never there as a whole, with ``itself`` as its diagonal."""
    n_items = len(left)
    kept = min(neighbours, n_items)
    pruned = PrunedWeights(np.empty((n_items, kept), np.int32), np.empty((n_items, kept), np.float32))
    at_once = max(1, _CELLS // n_items)
    for start in range(0, n_items, at_once):
        rows = slice(start, start + at_once)
        own = direct[rows].tocoo()
        weights = left[rows] @ right.T
        weights[own.coords] += own.data
        weights[np.arange(len(weights)), start + np.arange(len(weights))] = itself
        pruned.neighbours[rows], pruned.weights[rows] = strongest(weights, kept)
    return pruned


# --- Statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ItemWeightStatistics:
    """The sums over users that item-item weights are solved from; they can be added, subtracted and stored.

    ``of(a) + of(b)`` are the statistics of the users of both, and ``of(a) - of(b)`` those of the users of ``a`` without
    those of ``b``. Where users have later events, their old histories are subtracted and their longer ones added.

    Adding and subtracting is done in float64, where sums of float32 numbers are as good as exact: ``s + t - t`` is
    ``s``. Counts of users are exact. :meth:`of` sums the next-item views in float32, so the sums of all users at once
    and of two halves differ by rounding, by less than 1e-6 of a value; with a decay of 1 they are counts, and equal up
    to 2^24. A small remainder after a subtraction keeps the rounding error of the larger value.

    Attributes:
      co_occurrence: ``X^T X``, sparse ``[N, N]``: how many users have had both items.
      known: ``G_next``, sparse ``[N, N]``.
      target: ``C_next``, sparse ``[N, N]``.
      decay: recency weight of ``known`` and ``target``; ``None`` where they were left out, and are empty.

    The matrices are float32 as :meth:`of` makes them, and float64 after adding or subtracting.
    """

    co_occurrence: sparse.csr_array
    known: sparse.csr_array
    target: sparse.csr_array
    decay: float | None

    @classmethod
    def of(cls, histories: Ragged, n_items: int, settings: ItemWeightSettings) -> ItemWeightStatistics:
        """The statistics of some users.

        Args:
          histories: Item indices of each user, oldest first.
          n_items: N.
          settings: The next-item views are left out where ``next_item`` is 0; else they have ``decay``. Where very
            many pairs of items would be met, long histories are cut into pieces, so that time and memory have a bound
            (:func:`are_cut`). Then the statistics of parts differ from those of all.

        Raises:
          ModelError: An item outside the catalogue, or a bad decay.
        """
        settings = settings.settled()
        assert settings.decay is not None
        _check_decay(settings.decay)
        histories.check_items(n_items, "history")
        if are_cut(histories, n_items):
            histories = _pieces(histories, _PAIRS)
        x = interactions(histories, n_items)
        both = (x.T @ x).tocsr()
        if not settings.next_item:
            return cls(both, _nothing(n_items), _nothing(n_items), None)
        return cls(both, *next_item_statistics(histories, n_items, settings.decay), settings.decay)

    @property
    def n_items(self) -> int:
        return self.co_occurrence.shape[0]

    def weighted(
        self, settings: ItemWeightSettings, graph: sparse.csr_array | None = None
    ) -> tuple[sparse.csr_array, sparse.csr_array]:
        """The matrices A and B that come from events and the graph, before ``l2``, as sparse float32 ``[N, N]``.

        Returns:
          ``nu G_next + beta X^T X + gamma S`` and ``nu C_next + beta X^T X + gamma S``; where nu is 0 these are one and
          the same array.

        Raises:
          ModelError: ``settings`` have a next-item view, and the statistics have none or one with another decay; or
            they have the view of a graph, and there is none of as many items.
        """
        both = _nothing(self.n_items)
        if settings.co_occurrence:
            both = np.float32(settings.co_occurrence) * self.co_occurrence.astype(np.float32, copy=False)
        if settings.graph:
            if graph is None or graph.shape != both.shape:
                given = "none" if graph is None else f"one of {graph.shape[0]} items"
                raise ModelError(
                    f"Expected a graph of {self.n_items} items because item_weights.graph is {settings.graph}, got "
                    f"{given}. Set graph.relations, or item_weights.graph=0."
                )
            both = (both + np.float32(settings.graph) * graph).tocsr()
        if not settings.next_item:
            return both, both
        if settings.decay != self.decay:
            raise ModelError(
                f"Expected statistics of item-item weights with decay {settings.decay}, got {self.decay}: make them "
                "again from the events, or set this decay."
            )
        strength = np.float32(settings.next_item)
        known, target = (strength * each.astype(np.float32, copy=False) for each in (self.known, self.target))
        return known + both, target + both

    def scaled(self, factor: float) -> ItemWeightStatistics:
        """Statistics in which each user counts ``factor`` times."""
        return self._each(lambda view: factor * view)

    def __add__(self, other: ItemWeightStatistics) -> ItemWeightStatistics:
        """Adds the users of ``other``.

        Raises:
          ModelError: They are of catalogues of different size, or have different decays.
        """
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: ItemWeightStatistics) -> ItemWeightStatistics:
        """Subtracts the users of ``other``; pairs of items that nobody else has had leave no trace.

        Raises:
          ModelError: They are of catalogues of different size, have different decays, or ``other`` has users that were
            never added.
        """
        left = self._with(other, lambda a, b: a - b)
        if left.co_occurrence.data.min(initial=0) < 0:
            raise ModelError(
                "Expected to subtract users whose events were added; some pairs of items have fewer users than are "
                "subtracted. Take the same events of these users as before."
            )
        had = left.co_occurrence > 0

        def kept(view: sparse.csr_array) -> sparse.csr_array:
            view = (had * view).tocsr()
            view.eliminate_zeros()
            return view

        return left._each(kept)

    def extend(self, n_items: int) -> ItemWeightStatistics:
        """The same statistics for a catalogue with further items at its end.

        Raises:
          ModelError: ``n_items`` is below N.
        """
        if n_items < self.n_items:
            raise ModelError(f"Expected at least {self.n_items} items, got {n_items}: items cannot be taken out.")
        return self._each(lambda view: larger(view, n_items))

    def save(self, path: Path) -> None:
        """Writes a compressed ``.npz``, whole or not at all; of the two symmetric matrices, the upper triangles.

        Raises:
          WriteError: The disk is full, read-only or broken; ``path`` is as it was.
        """
        arrays: dict[str, Any] = {"decay": np.array(np.nan if self.decay is None else self.decay)}
        halves = (sparse.triu(self.co_occurrence, format="csr"), sparse.triu(self.known, format="csr"), self.target)
        for name, view in zip(_VIEWS, halves, strict=True):
            arrays |= {f"{name}_{part}": getattr(view, part) for part in _CSR}
        with replacing(path) as fresh, fresh.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> ItemWeightStatistics:
        """Reads what :meth:`save` wrote.

        Raises:
          ModelError: The file is missing or damaged.
        """
        with reading_npz(path, "copy it back, or make the statistics again from the events") as stored:
            decay = float(stored["decay"])
            halves = [_checked_csr(*(stored[f"{name}_{part}"] for part in _CSR)) for name in _VIEWS]
            if len({half.shape for half in halves}) > 1 or not (np.isnan(decay) or 0 < decay <= 1):
                raise ValueError("sizes or decay")
        co_occurrence, known = ((half + sparse.triu(half, 1).T).tocsr() for half in halves[:2])
        return cls(co_occurrence, known, halves[2], None if np.isnan(decay) else decay)

    def _each(self, change: Callable[[sparse.csr_array], sparse.csr_array]) -> ItemWeightStatistics:
        views = change(self.co_occurrence), change(self.known), change(self.target)
        return ItemWeightStatistics(*views, self.decay)

    def _with(
        self,
        other: ItemWeightStatistics,
        operation: Callable[[sparse.csr_array, sparse.csr_array], sparse.csr_array],
    ) -> ItemWeightStatistics:
        if (self.n_items, self.decay) != (other.n_items, other.decay):
            raise ModelError(
                f"Expected statistics of {self.n_items} items with decay {self.decay}, got {other.n_items} items with "
                f"decay {other.decay}: extend the smaller ones, or make both with the same settings."
            )

        def combined(ours: sparse.csr_array, theirs: sparse.csr_array) -> sparse.csr_array:
            return operation(ours.astype(np.float64), theirs.astype(np.float64))

        return ItemWeightStatistics(
            combined(self.co_occurrence, other.co_occurrence),
            combined(self.known, other.known),
            combined(self.target, other.target),
            self.decay,
        )


_VIEWS = ("co_occurrence", "known", "target")
_CSR = ("data", "indices", "indptr")


def _nothing(n_items: int) -> sparse.csr_array:
    none = np.empty(0, np.int32)
    return sparse.csr_array((none.astype(np.float32), (none, none)), shape=(n_items, n_items))


def _checked_csr(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray) -> sparse.csr_array:
    """A square sparse array of floats from its parts as they were stored.

    Raises:
      ValueError: They do not fit together.
    """
    if any(part.ndim != 1 for part in (data, indices, indptr)) or data.dtype.kind != "f" or not np.isfinite(data).all():
        raise ValueError("expected finite floats and their places")
    n_items = len(indptr) - 1
    matrix = sparse.csr_array((data, indices, indptr), shape=(n_items, n_items))
    matrix.check_format(full_check=True)
    return matrix


def larger(matrix: sparse.csr_array, n_items: int) -> sparse.csr_array:
    """A square matrix with empty rows and columns at its end: ``[n_items, n_items]``, of the same type."""
    ends = np.pad(matrix.indptr, (0, n_items - matrix.shape[0]), mode="edge")
    return sparse.csr_array((matrix.data, matrix.indices, ends), shape=(n_items, n_items))


def next_item_statistics(histories: Ragged, n_items: int, decay: float) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Sums over all prefixes ``m`` of all histories, and the items ``y`` that came next.

    With positions p <= q in a history of n events, the pair enters ``m m^T`` for every prefix that ends at q or later
    and has a next item: ``decay^(q-p) (1 + decay^2 + ... + decay^(2 (n - 2 - q)))``, so no prefix is ever built.
    Pairs so far apart that ``decay^(q-p)`` is below 0.001 are left out.

    Returns:
      ``sum m m^T`` and ``sum m y^T``, sparse float32 ``[N, N]``.
    """
    items = histories.values.astype(np.int32)
    place = _place(histories)
    prefixes = np.repeat(histories.lengths, histories.lengths) - 1.0 - place  # that end here or later, and have a next
    seen = prefixes if decay == 1 else (1 - decay ** (2 * prefixes)) / (1 - decay**2)

    so_far = np.cumsum(np.bincount(place)[::-1].cumsum()[::-1][1:])  # pairs of events up to 1, 2, ... apart
    reach = len(so_far) if decay == 1 else min(len(so_far), int(np.ceil(np.log(1e-3) / np.log(decay))))
    lags = np.arange(1, reach + 1)
    shape = (n_items, n_items)
    none = items[:0]
    above = target = sparse.csr_array((none.astype(np.float32), (none, none)), shape=shape)
    # A matrix for each lag would be added up dozens of times, one for all lags would have every repeat in memory.
    for few in np.split(lags, np.flatnonzero(np.diff(so_far[:reach] // _PAIRS_AT_ONCE)) + 1):
        later = [np.flatnonzero(place >= lag) for lag in few]
        lag = np.repeat(few, [len(events) for events in later])
        at = np.concatenate([*later, np.empty(0, np.int64)])
        where = (items[at - lag], items[at])
        above = above + sparse.coo_array(((decay**lag * seen[at]).astype(np.float32), where), shape=shape).tocsr()
        target = target + sparse.coo_array(((decay ** (lag - 1.0)).astype(np.float32), where), shape=shape).tocsr()
    alone = np.bincount(items, seen, minlength=n_items).astype(np.float32)
    return (above + above.T + sparse.diags_array(alone)).tocsr(), target


def are_cut(histories: Ragged, n_items: int) -> bool:
    """Whether :meth:`ItemWeightStatistics.of` cuts long histories; users cannot be subtracted from such statistics."""
    return pairs_bound(histories, n_items) > _PAIRS


def pairs_bound(histories: Ragged, n_items: int) -> int:
    """Upper bound of the number of pairs of items in the statistics of histories."""
    return min(n_items**2, int((histories.lengths**2).sum()))


def _pieces(histories: Ragged, pairs: int) -> Ragged:
    """The histories cut into pieces of the same length, the longest that leaves at most ``pairs`` pairs of events."""
    lengths = histories.lengths

    def pairs_in(length: int) -> int:
        return int((lengths // length * length**2 + (lengths % length) ** 2).sum())

    length = max(1, bisect.bisect_right(range(1, int(lengths.max(initial=0)) + 1), pairs, key=pairs_in))
    starts = np.flatnonzero(_place(histories) % length == 0)
    return Ragged(histories.values, np.append(starts, len(histories.values)))


def _place(histories: Ragged) -> np.ndarray:
    """Of each event, how many there are before it in its history."""
    return np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], histories.lengths)


# --- EASE -------------------------------------------------------------------------------------------------------------


def ease_weights(histories: Ragged, n_items: int, l2: float) -> np.ndarray:
    """EASE: float32 ``[N, N]`` with a zero diagonal. Takes about 12 s for 12,000 items on two cores.

    Args:
      histories: Item indices of each training user; order and repeats do not matter.
      n_items: N.
      l2: Lambda, above 0. Larger is smoother; good values grow with the number of users.

    Raises:
      ModelError: Too many items, an item outside the catalogue, or a bad ``l2``.
    """
    _check_size(n_items)
    _check_l2(l2)
    gram = np.empty((n_items, n_items), dtype=np.float32)
    for rows, block in co_occurrence(histories, n_items):
        gram[rows] = block
    gram[np.diag_indices(n_items)] += l2
    inverse = _inverse(gram, l2)
    inverse /= -inverse.diagonal().copy()
    inverse[np.diag_indices(n_items)] = 0.0
    return inverse


def _inverse(matrix: np.ndarray, l2: float) -> np.ndarray:
    """The inverse of a symmetric positive definite float32 ``[N, N]``, in its own memory."""
    n_items = len(matrix)
    # The transpose of a symmetric C array is the same matrix in LAPACK's own order: nothing is copied.
    lower, failed = lapack.spotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    if not failed:
        lower, failed = lapack.spotri(lower, lower=1, overwrite_c=1)
    if failed:
        raise NotPositiveDefinite(f"The item-item matrix is not positive definite in float32 (l2 {l2}): raise l2.")
    inverse = lower.T  # C order again, and only its upper triangle is filled
    for start in range(0, n_items, _BLOCK):
        rows = slice(start, start + _BLOCK)
        square = inverse[rows, rows]
        inverse[rows, rows] = np.triu(square) + np.triu(square, 1).T
        inverse[start + _BLOCK :, rows] = inverse[rows, start + _BLOCK :].T
    return inverse


def _check_size(n_items: int) -> None:
    if n_items > MAX_EXACT_ITEMS:
        raise ModelError(
            f"Expected at most {MAX_EXACT_ITEMS:,} items for EASE (N x N floats), got {n_items:,}. Leave 'ease' out of "
            "evaluation.baselines."
        )


def _check_l2(l2: float) -> None:
    if not l2 > 0:
        raise ModelError(f"Expected l2 above 0, got {l2}.")


def _checked_text(n_items: int, settings: ItemWeightSettings, text_vectors: np.ndarray | None) -> np.ndarray | None:
    """The text vectors where the settings use them."""
    assert settings.l2 is not None
    _check_l2(settings.l2)
    if settings.text and (text_vectors is None or len(text_vectors) != n_items):
        given = "none" if text_vectors is None else f"{len(text_vectors)} rows"
        raise ModelError(f"Expected text vectors for {n_items} items because text is {settings.text}, got {given}.")
    return text_vectors if settings.text else None


# --- Pruning and scoring ----------------------------------------------------------------------------------------------


def between_domains(
    weights: PrunedWeights, domains: np.ndarray | None, factors: Mapping[str, float] | None
) -> PrunedWeights:
    """The weights times the factor of each pair of domains: how much an event in one domain says of items of another.

    Args:
      weights: of joined data.
      domains: object ``[N]``, the domain of each item; those of a shared item are separated by ``|``.
      factors: by ``FROM>TO``; 1 for pairs that it lacks, and for items that share a domain.

    Returns:
      The same weights where there are no domains or no factors.
    """
    if domains is None or not factors:
        return weights
    cells, codes = np.unique(np.asarray(domains, str), return_inverse=True)
    names = [set(cell.split(BOTH)) for cell in cells]
    table = [[1.0 if a & b else max(factors.get(f"{x}>{y}", 1.0) for x in a for y in b) for b in names] for a in names]
    of_pair = np.asarray(table, np.float32)[codes[:, np.newaxis], codes[weights.neighbours]]
    return PrunedWeights(weights.neighbours, weights.weights * of_pair)


def check_domains(domains: np.ndarray | None, settings: ItemWeightSettings) -> None:
    """Checks what the settings say of domains; without domains, factors have no effect.

    Raises:
      ConfigError: a factor names a domain that no item has, or there is a map and only one domain.
    """
    known = set() if domains is None else {name for cell in set(domains) for name in cell.split(BOTH)}
    unknown = {name for pair in settings.domains or () for name in pair.split(">")} - known
    if known and unknown:
        raise ConfigError(
            f"item_weights.domains: expected FROM>TO of the domains {', '.join(sorted(known))}, found "
            f"{', '.join(sorted(unknown))}."
        )
    if settings.map and len(known) < 2:
        raise ConfigError(
            "item_weights.map: expected joined data of several domains, found one. Join data sets with 'tfllmrec data "
            "join', or set item_weights.map=false."
        )


def strongest(rows: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns int64 and values ``[R, kept]`` of the largest magnitudes in each of R rows, strongest first."""
    n_rows, n_columns = rows.shape
    # The `kept` groups of columns with the largest maxima have the `kept` largest values among them; finding those
    # groups first is several times as fast.
    depth = max(1, int(np.sqrt(n_columns / kept)))
    width = -(-n_columns // depth)
    magnitude = np.full((n_rows, depth * width), -1, rows.dtype)
    np.abs(rows, out=magnitude[:, :n_columns])
    groups = np.argpartition(-magnitude.reshape(n_rows, depth, width).max(axis=1), kept - 1, axis=1)[:, :kept]
    within = (groups[:, None] + width * np.arange(depth)[:, None]).reshape(n_rows, -1)
    best = np.argpartition(-np.take_along_axis(magnitude, within, 1), kept - 1, axis=1)[:, :kept]
    columns = np.sort(np.take_along_axis(within, best, 1), axis=1)  # equal weights: item order
    order = np.argsort(-np.take_along_axis(magnitude, columns, 1), axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, 1)
    return columns, np.take_along_axis(rows, columns, 1)


def score_history(
    history: Ragged,
    weights: np.ndarray | PrunedWeights,
    decay: float = 1.0,
    of_events: Ragged | None = None,
    domains: np.ndarray | None = None,
) -> np.ndarray:
    """Scores all items from recency-weighted histories, ``m_u W``.

    The most recent item of a history weighs 1, the one before it ``decay``, then ``decay^2``; earlier uses of an item
    that is used again count for less, see :func:`recency_matrix`. An empty history scores 0 everywhere.

    Args:
      history: B rows of item indices, oldest first.
      weights: float32 ``[N, N]`` or its pruned form.
      decay: Above 0, up to 1 (order does not matter).
      of_events: :func:`event_weights`.
      domains: int64 ``[N]`` (:func:`tfllmrec.data.domains.domain_bits`), with pruned weights: the order of events has
        no effect on items of other domains, as ``item_weights.map`` has it. By default it has.

    Returns:
      float32 ``[B, N]``.

    Raises:
      ModelError: A history item outside the catalogue, or a bad ``decay``.
    """
    if isinstance(weights, PrunedWeights):
        n_items, width = weights.neighbours.shape
        starts = np.arange(0, n_items * width + 1, width)

        def after(values: np.ndarray, decay: float) -> np.ndarray:
            table = sparse.csr_array((values.ravel(), weights.neighbours.ravel(), starts), shape=(n_items, n_items))
            return (recency_matrix(history, n_items, decay, of_events) @ table).toarray()

        if domains is None:
            return after(weights.weights, decay)
        between = domains[:, np.newaxis] & domains[weights.neighbours] == 0
        return after(weights.weights * ~between, decay) + after(weights.weights * between, 1.0)
    return recency_matrix(history, len(weights), decay, of_events) @ weights


def recency_matrix(history: Ragged, n_items: int, decay: float, of_events: Ragged | None = None) -> sparse.csr_array:
    """``m_u`` of every history as a sparse float32 ``[B, N]``.

    An event of weight w (1 without ``of_events``) adds ``w * decay ** steps_back * log2(1 + 1 / c)`` to its item, which
    is the c-th newest use of the item by this user. So n uses without a decay add up to ``log2(1 + n)``: an item that
    was used a hundred times counts 7 times as much as one that was used once. Events of weight 0 are no steps and no
    uses.
    """
    _check_decay(decay)
    history.check_items(n_items, "history")
    if of_events is not None:
        counted = of_events.values != 0
        history, of_events = history.where(counted), of_events.where(counted)
    steps_back = np.repeat(history.offsets[1:], history.lengths) - 1 - np.arange(len(history.values))
    strength = (np.power(decay, steps_back) * np.log2(1 + 1 / _uses(history, n_items))).astype(np.float32)
    if of_events is not None:
        strength *= of_events.values
    return sparse.csr_array((strength, history.values, history.offsets), shape=(len(history), n_items))


def event_weights(queries: Queries, settings: ItemWeightSettings) -> Ragged | None:
    """How much each event of the histories counts: by its kind, and by whether it shares the context of the request.

    The weight of an event is that of its kind, times ``exp(k_f)`` for each field f of the request that has the same
    value in the event. A missing or unknown value equals no other.

    Args:
      queries: with the fields ``event.f`` and ``request.f``, categories of one value.
      settings: ``context`` has k by the name of the field; ``kinds`` says whether kinds count.

    Returns:
      float32 in rows like the histories; ``None``: all count 1.
    """
    of_kinds = queries.weights if settings.kinds else None
    if not settings.context:
        return of_kinds
    exponent = np.zeros(len(queries.history.values), np.float32)
    for name, strength in settings.context.items():
        of_events, of_requests = queries.fields[f"event.{name}"], queries.fields[f"request.{name}"]
        assert isinstance(of_events, Ragged) and isinstance(of_requests, np.ndarray)
        asked = of_requests[queries.history.row_of_value]
        exponent += np.float32(strength) * ((of_events.values == asked) & (asked > UNKNOWN_CODE))
    weights = np.exp(exponent)
    if of_kinds is not None:
        weights *= of_kinds.values
    return Ragged(weights, queries.history.offsets)


def _uses(history: Ragged, n_items: int) -> np.ndarray:
    """int ``[E]``: 1 for the newest use of an item in its history, 2 for the one before, and so on."""
    newest_first = (history.row_of_value * n_items + history.values)[::-1]
    order = np.argsort(newest_first, kind="stable")
    of_item = newest_first[order]
    uses = np.empty(len(order), np.int64)
    uses[order] = np.arange(len(order)) - np.searchsorted(of_item, of_item) + 1
    return uses[::-1]


def interactions(histories: Ragged, n_items: int) -> sparse.csr_array:
    """X: float32 ``[U, N]``, 1 where the user has had the item, however often."""
    histories.check_items(n_items, "history")
    ones = np.ones(len(histories.values), dtype=np.float32)
    # A copy: sum_duplicates sorts in place, and these rows are somebody's histories, oldest first.
    shape = (len(histories), n_items)
    matrix = sparse.csr_array((ones, histories.values, histories.offsets), shape=shape, copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def co_occurrence(histories: Ragged, n_items: int) -> Iterator[tuple[slice, np.ndarray]]:
    """``X^T X`` in blocks of rows: how many users have had both items, the item's own users on the diagonal.

    Yields:
      The rows, and float32 ``[R, N]``.
    """
    x = interactions(histories, n_items)
    by_item = x.T.tocsr()
    for start in range(0, n_items, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n_items))
        yield rows, (by_item[rows] @ x).toarray()


def _check_decay(decay: float) -> None:
    if not 0 < decay <= 1:
        raise ModelError(f"Expected a recency decay above 0 and up to 1, got {decay}.")

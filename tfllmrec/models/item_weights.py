"""Closed-form item-item weights: the behaviour term ``<m_u, W_i>``, and EASE as a baseline.

Both are ridge regressions with a closed form. They are solved once, without gradients or epochs;
:func:`solve_item_weights` is the entry point. The weights depend on events only through :class:`ItemWeightStatistics`,
which are sums over users: users can be added or subtracted, and :func:`solve` computes the new weights.

The weights predict the next item from the recency-weighted history before it. Each *view* of the data adds a Gram
matrix of the inputs to A and a matrix of the targets to B:

    A = nu G_next + beta X^T X + alpha T T^T + gamma S + l2 I
    B = nu C_next + beta X^T X + alpha T T^T + gamma S
    W = A^-1 (B - diag(g)),    g such that diag W = 0

``G_next`` and ``C_next`` are sums over all prefixes of all histories: of ``m m^T``, where ``m`` is the prefix weighted
by ``decay ** steps_back``, and of ``m`` times the item that came next. ``X`` is the binary user-by-item matrix, so
``X^T X`` counts common users regardless of order. ``T`` are the unit text vectors; they also give weights to items that
few or no users have had. ``S`` is the graph of the items, if there is one (:func:`tfllmrec.models.graph.view_of`). No
item may explain itself: with ``P = A^-1`` this requires ``g_i = (P B)_ii / P_ii``, as in EASE, which is the special
case with the co-occurrence view alone. The next-item view is the linear form of a sequential model (compare SLIT in
Choe et al., "Session-aware Linear Item-Item Models", WWW 2021). If users use items again, ``W_ii`` is set to ``itself``
afterwards. If it were solved together with the other weights, it would explain every event and leave nothing for the
neighbours.

``1 / P_ii`` is the part of item i that the other items leave unexplained, plus ``l2``; it grows with the number of the
item's events. The weights towards item i are multiplied by ``(l2 P_ii) ** popularity``, which lowers the scores of
popular candidates.

:func:`ease_weights` is EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, eq. 8):
``P = (X^T X + l2 I)^-1, W = I - P diag(1 / diag P)``.

``W[j, i]`` is the weight of history item j for candidate i. An item with neither events nor text has only zeros.
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
from tfllmrec.data.domains import BOTH, domain_names
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import UNKNOWN_CODE, Field
from tfllmrec.durable import reading_npz, replacing
from tfllmrec.errors import ConfigError, ModelError

MAX_EXACT_ITEMS = 30_000
"""Largest number of items for EASE and exact weights: both need a few N x N matrices, here of 3.6 GB each."""

MAX_RANK = 1536
"""Highest rank of the weights of more than :data:`MAX_EXACT_ITEMS` items; a higher rank would take too long."""

STATISTICS = "item_weights_statistics.npz"
"""The file with the :class:`ItemWeightStatistics` in the ``model`` folder of a run."""

MAX_STORED_PAIRS, MAX_KEPT_PAIRS = 20_000_000, 100_000_000
"""Largest numbers of pairs of items in statistics that are stored and that are kept in memory.

Statistics with more pairs than the first may take more than 200 MB and a minute to write. Statistics with more pairs
than the second may take more than 2 GB of memory.
"""

_BLOCK = 1024
_DENSE_ITEMS = 6000
_PAIRS = 200_000_000
_PAIRS_AT_ONCE = 4_000_000
_OVERSAMPLING = 16
_ROUNDS = 2
_WIDTH = 384  # smallest width of low-rank weights: a lower rank limits only the part from events, not that from texts
_CELLS = 32_000_000  # largest number of values of low-rank weights in memory at once
_DENSE_CELLS = 400_000_000


class NotPositiveDefinite(ModelError):
    """The weights cannot be solved, because ``l2`` is too small compared with the strengths of the other terms."""


@dataclass(frozen=True)
class PrunedWeights:
    """The strongest P weights of each item; row j has the weights of history item j.

    Attributes:
      neighbours: The candidate items, int32 ``[N, P]``, strongest first; all different within a row.
      weights: The weights, float32 ``[N, P]``, positive or negative; 0 where an item has fewer than P neighbours.
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
    """Solves the item-item weights of a catalogue of any size, and prunes them.

    Args:
      histories: Item indices of each training user, oldest first.
      n_items: N.
      settings: The settings. Each *auto* is replaced by :meth:`ItemWeightSettings.settled`. The weights are solved
        exactly if ``rank`` is *all* or at least N and N is at most :data:`MAX_EXACT_ITEMS` (see :func:`rank_of`). All
        weights are kept if N is less than ``neighbours``.
      text_vectors: Text vectors, float32 ``[N, D]``, see :func:`tfllmrec.text.centring.centred_unit`. Required if
        ``settings.text`` is above 0.
      graph: The view of the graph, sparse ``[N, N]``, positive semidefinite. Required if ``settings.graph`` is above 0.

    Raises:
      ModelError: An item is not in the catalogue, a setting is invalid, or text or graph belong to another catalogue.
    """
    return solve(ItemWeightStatistics.of(histories, n_items, settings), settings, text_vectors, graph)


def solve(
    statistics: ItemWeightStatistics,
    settings: ItemWeightSettings,
    text_vectors: np.ndarray | None = None,
    graph: sparse.csr_array | None = None,
) -> PrunedWeights:
    """Solves the weights of :func:`solve_item_weights` from statistics, such as stored or updated ones.

    Args:
      statistics: The statistics of all events. If ``settings.next_item`` is above 0, they must have the decay of
        ``settings``.
      settings, text_vectors, graph: As in :func:`solve_item_weights`.

    Raises:
      ModelError: A setting is invalid, the statistics have another decay, or text or graph belong to another catalogue.
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
    """Returns the rank of the weights of N items: at most N, and at most :data:`MAX_RANK` if N x N values are too many.

    Raises:
      ModelError: ``rank`` is below 1.
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
    """Solves the weights exactly. Takes about 15 s for 12,000 items on two cores, and ``12 N^2`` bytes of memory.

    Args:
      known, target: The parts of A and B that come from events and the graph, sparse ``[N, N]``.
      settings: The strengths of the text, the ridge and the discount.
      text: Text vectors, float32 ``[N, D]``, if they are used.
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
        # A small or rather dense target is multiplied faster by BLAS, after conversion to a dense matrix.
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
    """Solves the weights with A approximated by a diagonal plus a low-rank matrix.

    With ``M`` the part of A from events and the graph, ``D = l2 I + diag M`` and ``E = D^-1/2 offdiag(M) D^-1/2``,

        A = D^1/2 (I + E + U U^T) D^1/2,    U = sqrt(alpha) D^-1/2 T.

    ``E`` is approximated by its ``rank`` eigenpairs of largest magnitude and ``U`` is exact, so the inverse follows
    from the Woodbury identity: ``A^-1 = D^-1/2 (I + L R^T) D^-1/2``. Each item keeps its own ``l2`` and counts on the
    diagonal, which is most of A if few users have had the same two items. A projection onto leading directions would
    lose the diagonal, and with it the tail items. ``W`` is then ``D^-1`` times the (sparse) target from events plus a
    low-rank product, which is searched block by block for the strongest weights of each item. To save time, the product
    is first cut to ``rank`` or 384, whichever is larger; a lower rank would lose the text weights of items without
    events. The part of ``E`` that is left out may well be noise: if items have few events, lists are often better than
    with all N x N weights.

    Memory grows with N and with the number of pairs of items that users have had. The search for the strongest weights
    compares all items with each other, so time grows with N^2: about four minutes on one core for 100,000 items at rank
    384.

    The eigenpairs of a sum are not the sum of the eigenpairs, so the low-rank factors cannot be updated without error.
    Therefore the sparse statistics are stored and updated, and the eigenpairs are computed from them again.

    Args:
      known, target, settings, text: As in :func:`_exact`.
      rank: The rank of the approximation of ``E``.
    """
    assert settings.l2 is not None and settings.text is not None and settings.itself is not None
    diagonal = known.diagonal()
    scale = 1 / np.sqrt(diagonal + np.float32(settings.l2))
    scaled_known = _scaled((known - sparse.diags_array(diagonal)).tocsr(), scale, scale)  # E
    values, vectors = leading_eigenpairs(scaled_known, rank)
    del scaled_known
    if not values.min(initial=0) > -1 + 1e-5:  # closer to -1, rounding errors dominate
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
    """Returns ``diag(rows) matrix diag(columns)`` in float32."""
    values = matrix.data * np.repeat(rows.astype(np.float32, copy=False), np.diff(matrix.indptr))
    if columns is not None:
        values *= columns[matrix.indices]
    return sparse.csr_array((values.astype(np.float32, copy=False), matrix.indices, matrix.indptr), matrix.shape)


def _for_products(matrix: sparse.csr_array) -> sparse.csr_array | np.ndarray:
    """Returns the matrix in the form that is faster to multiply with a few hundred columns: sparse or dense.

    From about one nonzero value in seven on, BLAS on two cores is faster than the sparse product. Matrices too large to
    be dense stay sparse.
    """
    cells = matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if cells / 7 < matrix.nnz and cells <= _DENSE_CELLS else matrix


def _discount(inverse_diagonal: np.ndarray, settings: ItemWeightSettings) -> np.ndarray:
    """Returns the factor of the weights towards each item, ``[N]`` in (0, 1]; 1 for an item without events and text."""
    assert settings.l2 is not None and settings.popularity is not None
    # The product exceeds 1 only through the error of a low rank.
    return np.minimum(settings.l2 * inverse_diagonal, 1.0) ** settings.popularity


def leading_eigenpairs(matrix: sparse.csr_array, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the eigenvalues ``[r]`` of largest magnitude of a symmetric matrix, and the eigenvectors ``[N, r]``.

    The method is randomized subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4), always
    from the same start. ``r`` is ``rank``, or the rank of the matrix if that is lower. Directions that are still mixed
    after the few rounds have nearly the same eigenvalue.
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
    """Returns an orthonormal basis of the span of float32 columns, from inner products: far faster than QR."""
    for _ in range(2):  # the second pass removes the rounding errors of the first
        sizes, axes = np.linalg.eigh(_gram(columns))
        kept = sizes > 1e-8 * sizes.max(initial=0)
        columns = columns @ (axes[:, kept] / np.sqrt(sizes[kept])).astype(np.float32)
    return columns


def _cut(left: np.ndarray, right: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns factors, at most ``rank`` wide, of the best approximation to ``left right^T`` in the Frobenius norm."""
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
    """Computes ``columns^T columns`` in float64, without a float64 copy of all columns."""
    gram = np.zeros((columns.shape[1], columns.shape[1]))
    for start in range(0, len(columns), _BLOCK):
        block = columns[start : start + _BLOCK].astype(np.float64)
        gram += block.T @ block
    return gram


def _strongest_of_sum(
    direct: sparse.csr_array, left: np.ndarray, right: np.ndarray, neighbours: int, itself: float
) -> PrunedWeights:
    """Prunes ``direct + left right^T`` with ``itself`` as its diagonal; the sum is never in memory as a whole."""
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
    the users of ``b``. When users have new events, their old histories are subtracted and their longer ones are added.

    Statistics are added and subtracted in float64, where sums of float32 numbers are practically exact: ``s + t - t``
    is ``s``. Counts of users are exact. :meth:`of` sums the next-item views in float32, so the sum over all users at
    once differs from the sum of two halves by rounding errors, less than 1e-6 of a value. With a decay of 1 these views
    are counts, which are equal up to 2^24. A small remainder after a subtraction keeps the rounding error of the larger
    value.

    The matrices from :meth:`of` are float32. After adding or subtracting they are float64.

    Attributes:
      co_occurrence: ``X^T X``, sparse ``[N, N]``: the number of users who have had both items.
      known: ``G_next``, sparse ``[N, N]``.
      target: ``C_next``, sparse ``[N, N]``.
      decay: The recency decay of ``known`` and ``target``; ``None`` if they were left out and are empty.
    """

    co_occurrence: sparse.csr_array
    known: sparse.csr_array
    target: sparse.csr_array
    decay: float | None

    @classmethod
    def of(cls, histories: Ragged, n_items: int, settings: ItemWeightSettings) -> ItemWeightStatistics:
        """Computes the statistics of some users.

        If the histories may have very many pairs of items, long histories are cut into pieces to bound time and memory
        (:func:`are_cut`). The statistics of some of the users then do not add up to those of all.

        Args:
          histories: Item indices of each user, oldest first.
          n_items: N.
          settings: If ``next_item`` is 0, the next-item views are left out; otherwise their decay is ``decay``.

        Raises:
          ModelError: An item is not in the catalogue, or the decay is invalid.
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
        """Computes the parts of A and B that come from events and the graph, without ``l2``, sparse float32 ``[N, N]``.

        Returns:
          ``nu G_next + beta X^T X + gamma S`` and ``nu C_next + beta X^T X + gamma S``. If nu is 0, both are the same
          object.

        Raises:
          ModelError: ``settings`` use the next-item view, but the statistics lack it or have another decay; or
            ``settings`` use the graph, but there is no graph of N items.
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
        """Returns the statistics with each user counted ``factor`` times."""
        return self._each(lambda view: factor * view)

    def __add__(self, other: ItemWeightStatistics) -> ItemWeightStatistics:
        """Adds the users of ``other``.

        Raises:
          ModelError: The statistics have different numbers of items or different decays.
        """
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: ItemWeightStatistics) -> ItemWeightStatistics:
        """Subtracts the users of ``other``; pairs of items that no other user has had are removed completely.

        Raises:
          ModelError: The statistics have different numbers of items or different decays, or ``other`` has users that
            were never added.
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
        """Returns the same statistics for a catalogue with further items at its end.

        Raises:
          ModelError: ``n_items`` is below N.
        """
        if n_items < self.n_items:
            raise ModelError(f"Expected at least {self.n_items} items, got {n_items}: items cannot be taken out.")
        return self._each(lambda view: larger(view, n_items))

    def save(self, path: Path) -> None:
        """Writes a compressed ``.npz`` atomically, with only the upper triangles of the two symmetric matrices.

        Raises:
          WriteError: The disk is full, read-only or broken; ``path`` is then unchanged.
        """
        arrays: dict[str, Any] = {"decay": np.array(np.nan if self.decay is None else self.decay)}
        halves = (sparse.triu(self.co_occurrence, format="csr"), sparse.triu(self.known, format="csr"), self.target)
        for name, view in zip(_VIEWS, halves, strict=True):
            arrays |= {f"{name}_{part}": getattr(view, part) for part in _CSR}
        with replacing(path) as fresh, fresh.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> ItemWeightStatistics:
        """Reads the file that :meth:`save` wrote.

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
    """Builds a square sparse array of floats from its stored parts.

    Raises:
      ValueError: The parts do not fit together, or a value is not finite.
    """
    if any(part.ndim != 1 for part in (data, indices, indptr)) or data.dtype.kind != "f" or not np.isfinite(data).all():
        raise ValueError("expected finite floats and their places")
    n_items = len(indptr) - 1
    matrix = sparse.csr_array((data, indices, indptr), shape=(n_items, n_items))
    matrix.check_format(full_check=True)
    return matrix


def larger(matrix: sparse.csr_array, n_items: int) -> sparse.csr_array:
    """Appends empty rows and columns to a square matrix: ``[n_items, n_items]``, of the same dtype."""
    ends = np.pad(matrix.indptr, (0, n_items - matrix.shape[0]), mode="edge")
    return sparse.csr_array((matrix.data, matrix.indices, ends), shape=(n_items, n_items))


def next_item_statistics(histories: Ragged, n_items: int, decay: float) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Computes sums over all prefixes ``m`` of all histories and the items ``y`` that came next.

    For positions p <= q in a history of n events, the pair is in ``m m^T`` of every prefix that ends at q or later and
    has a next item. These summands are ``decay^(q-p) (1 + decay^2 + ... + decay^(2 (n - 2 - q)))``, so no prefix has to
    be built. Pairs so far apart that ``decay^(q-p)`` is below 0.001 are left out.

    Returns:
      ``sum m m^T`` and ``sum m y^T``, sparse float32 ``[N, N]``.
    """
    items = histories.values.astype(np.int32)
    place = _place(histories)
    prefixes = np.repeat(histories.lengths, histories.lengths) - 1.0 - place  # ending here or later, with a next item
    seen = prefixes if decay == 1 else (1 - decay ** (2 * prefixes)) / (1 - decay**2)

    so_far = np.cumsum(np.bincount(place)[::-1].cumsum()[::-1][1:])  # pairs of events up to 1, 2, ... apart
    reach = len(so_far) if decay == 1 else min(len(so_far), int(np.ceil(np.log(1e-3) / np.log(decay))))
    lags = np.arange(1, reach + 1)
    shape = (n_items, n_items)
    none = items[:0]
    above = target = sparse.csr_array((none.astype(np.float32), (none, none)), shape=shape)
    # Lags are grouped: one matrix per lag would take dozens of additions, one for all lags too much memory.
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
    """Returns whether :meth:`ItemWeightStatistics.of` cuts long histories.

    Users cannot be subtracted from statistics of cut histories.
    """
    return pairs_bound(histories, n_items) > _PAIRS


def pairs_bound(histories: Ragged, n_items: int) -> int:
    """Returns an upper bound of the number of pairs of items in the statistics of the histories."""
    return min(n_items**2, int((histories.lengths**2).sum()))


def _pieces(histories: Ragged, pairs: int) -> Ragged:
    """Cuts the histories into pieces of the greatest length with which they have at most ``pairs`` pairs of events."""
    lengths = histories.lengths

    def pairs_in(length: int) -> int:
        return int((lengths // length * length**2 + (lengths % length) ** 2).sum())

    length = max(1, bisect.bisect_right(range(1, int(lengths.max(initial=0)) + 1), pairs, key=pairs_in))
    starts = np.flatnonzero(_place(histories) % length == 0)
    return Ragged(histories.values, np.append(starts, len(histories.values)))


def _place(histories: Ragged) -> np.ndarray:
    """Returns the number of events before each event in its history."""
    return np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], histories.lengths)


# --- EASE -------------------------------------------------------------------------------------------------------------


def ease_weights(histories: Ragged, n_items: int, l2: float) -> np.ndarray:
    """Solves EASE: float32 ``[N, N]`` with a zero diagonal. Takes about 12 s for 12,000 items on two cores.

    Args:
      histories: Item indices of each training user; order and repeats do not matter.
      n_items: N.
      l2: Lambda, above 0. Larger values smooth more; good values grow with the number of users.

    Raises:
      ModelError: There are too many items, an item is not in the catalogue, or ``l2`` is invalid.
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
    """Inverts a symmetric positive definite float32 ``[N, N]`` in place."""
    n_items = len(matrix)
    # The transpose of a symmetric C-ordered array is the same matrix in Fortran order, so LAPACK does not copy it.
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
    """Returns the text vectors if the settings use them, after checking ``l2`` and their number of rows."""
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
    """Multiplies the weights between items of different domains by the factor of the two domains.

    Args:
      weights: The weights of joined data.
      domains: The domain of each item, object ``[N]``; the domains of a shared item are separated by ``|``.
      factors: The factors by ``FROM>TO``. The factor is 1 for missing pairs, and for items that share a domain. If
        items have several domains, the largest factor counts.

    Returns:
      The new weights; ``weights`` itself if there are no domains or no factors.
    """
    if domains is None or not factors:
        return weights
    cells, codes = np.unique(np.asarray(domains, str), return_inverse=True)
    names = [set(cell.split(BOTH)) for cell in cells]
    table = [[1.0 if a & b else max(factors.get(f"{x}>{y}", 1.0) for x in a for y in b) for b in names] for a in names]
    of_pair = np.asarray(table, np.float32)[codes[:, np.newaxis], codes[weights.neighbours]]
    return PrunedWeights(weights.neighbours, weights.weights * of_pair)


def check_domains(domains: np.ndarray | None, settings: ItemWeightSettings) -> None:
    """Checks the settings about domains; without domains, factors have no effect and are not checked.

    Raises:
      ConfigError: A factor names a domain that no item has, or ``settings.map`` is set and there are fewer than two
        domains.
    """
    known = set(domain_names(domains))
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
    """Returns columns int64 and values ``[R, kept]`` of the largest magnitudes in each of R rows, strongest first."""
    n_rows, n_columns = rows.shape
    # The `kept` groups of columns with the largest maxima contain the `kept` largest values. Finding these groups first
    # is several times faster.
    depth = max(1, int(np.sqrt(n_columns / kept)))
    width = -(-n_columns // depth)
    magnitude = np.full((n_rows, depth * width), -1, rows.dtype)
    np.abs(rows, out=magnitude[:, :n_columns])
    groups = np.argpartition(-magnitude.reshape(n_rows, depth, width).max(axis=1), kept - 1, axis=1)[:, :kept]
    within = (groups[:, None] + width * np.arange(depth)[:, None]).reshape(n_rows, -1)
    best = np.argpartition(-np.take_along_axis(magnitude, within, 1), kept - 1, axis=1)[:, :kept]
    columns = np.sort(np.take_along_axis(within, best, 1), axis=1)  # equal weights are ordered by item
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

    The newest item of a history weighs 1, the one before it ``decay``, then ``decay^2``. Earlier uses of an item that
    is used again count less, see :func:`recency_matrix`. All scores of an empty history are 0.

    Args:
      history: B rows of item indices, oldest first.
      weights: The weights, float32 ``[N, N]``, or their pruned form.
      decay: The recency decay, above 0 and up to 1; with 1, the order does not matter.
      of_events: The result of :func:`event_weights`.
      domains: The domains of the items, int64 ``[N]`` (:func:`tfllmrec.data.domains.domain_bits`); only for pruned
        weights. If given, there is no decay for weights between different domains, as ``item_weights.map`` requires.

    Returns:
      The scores, float32 ``[B, N]``.

    Raises:
      ModelError: An item of a history is not in the catalogue, or ``decay`` is invalid.
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
    """Computes ``m_u`` of every history, sparse float32 ``[B, N]``.

    An event with weight w (1 without ``of_events``) adds ``w * decay ** steps_back * log2(1 + 1 / c)`` to its item if
    it is the user's c-th newest use of the item. So n uses without decay add up to ``log2(1 + n)``: an item used a
    hundred times counts 7 times as much as an item used once. Events with weight 0 count neither as steps nor as uses.
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


def event_weights(queries: Queries, settings: ItemWeightSettings, kind: Field | None = None) -> Ragged | None:
    """Computes the weight of each event of the histories, also from the context that it shares with the request.

    The weight of an event is that of its kind and dwell time (``queries.weights``), times the factor of its kind, times
    ``exp(k_f)`` for each field f that has the same value in the request and in the event. Missing and unknown values
    are not equal to any value.

    Args:
      queries: Queries with the fields ``event.f`` and ``request.f``, categories with a single value.
      settings: ``context`` has k by the name of the field; ``kinds`` tells whether ``queries.weights`` count, and has
        factors of them by kind.
      kind: The field that has the kind of the events; without it, all factors are 1.

    Returns:
      The weights, float32, one row per history; ``None`` if all weights are 1.
    """
    of_kinds = None if settings.kinds is False else queries.weights
    if of_kinds is not None and kind is not None and settings.factors_of_kinds:
        codes = queries.fields[kind.key]
        assert isinstance(codes, Ragged)
        factors = kind.code_factors(settings.factors_of_kinds)
        of_kinds = Ragged(of_kinds.values * factors[codes.values], of_kinds.offsets)
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
    """Numbers the uses of each item in a history, int ``[E]``: 1 for the newest use, 2 for the one before, ..."""
    newest_first = (history.row_of_value * n_items + history.values)[::-1]
    order = np.argsort(newest_first, kind="stable")
    of_item = newest_first[order]
    uses = np.empty(len(order), np.int64)
    uses[order] = np.arange(len(order)) - np.searchsorted(of_item, of_item) + 1
    return uses[::-1]


def interactions(histories: Ragged, n_items: int) -> sparse.csr_array:
    """Returns X, sparse float32 ``[U, N]``: 1 where the user has had the item, regardless of repeats."""
    histories.check_items(n_items, "history")
    ones = np.ones(len(histories.values), dtype=np.float32)
    # A copy, because sum_duplicates sorts in place, and the rows are the caller's histories, oldest first.
    shape = (len(histories), n_items)
    matrix = sparse.csr_array((ones, histories.values, histories.offsets), shape=shape, copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def co_occurrence(histories: Ragged, n_items: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields ``X^T X`` in blocks of rows: the number of users who have had both items; on the diagonal, of each item.

    Yields:
      The rows, and the block, float32 ``[R, N]``.
    """
    x = interactions(histories, n_items)
    by_item = x.T.tocsr()
    for start in range(0, n_items, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n_items))
        yield rows, (by_item[rows] @ x).toarray()


def _check_decay(decay: float) -> None:
    if not 0 < decay <= 1:
        raise ModelError(f"Expected a recency decay above 0 and up to 1, got {decay}.")

"""Closed-form item-item weights: the behaviour term ``<m_u, W_i>``, and EASE as a baseline.

Both are ridge regressions with a closed form, solved once by LAPACK; no gradient, no epochs.

:func:`fit_item_weights` predicts the next item from the recency-weighted history before it. Each *view* of the data
adds a Gram matrix of what is known and a target matrix of what is asked for:

    A = G_next + beta X^T X + alpha T T^T + l2 I
    W = A^-1 (C_next + beta offdiag(X^T X) + alpha offdiag(T T^T))

``G_next`` and ``C_next`` are sums over all prefixes of all histories: of ``m m^T``, with ``m`` the prefix weighted by
``decay ** steps_back``, and of ``m`` times the item that came next. ``X`` is the binary user-by-item matrix (who had
both, in whatever order) and ``T`` the unit text vectors (what reads alike), which reach items that few or none have
met. Taking the diagonal out of a target keeps an item from explaining itself. The next-item view is the linear form of
a sequential model (compare SLIT in Choe et al., "Session-aware Linear Item-Item Models", WWW 2021).

:func:`ease_weights` is EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, eq. 8):
``P = (X^T X + l2 I)^-1, W = I - P diag(1 / diag P)``.

``W[j, i]`` is what history item j says for candidate i. An item with neither events nor text has only zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ModelError

MAX_ITEMS = 40_000
"""Beyond this, a few N x N matrices (6.4 GB each) pass common memory."""

_BLOCK = 1024
_DENSE_ITEMS = 6000


@dataclass(frozen=True)
class PrunedWeights:
    """The strongest P weights of each item; row j is what history item j points to.

    Attributes:
      neighbours: int32 ``[N, P]``, candidate items, strongest first. All different within a row.
      weights: float32 ``[N, P]``, positive or negative; 0 where an item has fewer than P neighbours.
    """

    neighbours: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class ItemWeightSettings:
    """How :func:`fit_item_weights` weighs its views.

    Attributes:
      decay: recency weight of an event one step further back, in (0, 1]; the same is used to score.
      l2: lambda, above 0.
      co_occurrence: beta, strength of "who had both, in whatever order".
      text: alpha, strength of "reads alike"; 0 leaves the text out.
    """

    decay: float
    l2: float
    co_occurrence: float
    text: float


def fit_item_weights(
    histories: Ragged, n_items: int, settings: ItemWeightSettings, text_vectors: np.ndarray | None = None
) -> np.ndarray:
    """Solves for the next-item weights.

    Takes about 15 s for 12,000 items on two cores, and ``12 N^2`` bytes while it runs.

    Args:
      histories: Item indices of each training user, oldest first.
      n_items: N.
      settings: See there.
      text_vectors: float32 ``[N, D]`` from :func:`centred_unit`; needed where ``settings.text`` is above 0.

    Returns:
      float32 ``[N, N]``.

    Raises:
      ModelError: Too many items, an item outside the catalogue, a bad setting, or text of another catalogue.
    """
    _check_size(n_items, settings.l2)
    if settings.text and (text_vectors is None or len(text_vectors) != n_items):
        given = "none" if text_vectors is None else f"{len(text_vectors)} rows"
        raise ModelError(f"Expected text vectors for {n_items} items because text is {settings.text}, got {given}.")
    text = text_vectors if settings.text else None

    known, target = next_item_statistics(histories, n_items, settings.decay)
    if settings.co_occurrence:
        x = interactions(histories, n_items)
        both = (settings.co_occurrence * (x.T @ x)).tocoo()
        np.add.at(known.reshape(-1), both.coords[0].astype(np.int64) * n_items + both.coords[1], both.data)
        apart = both.coords[0] != both.coords[1]
        target = target + sparse.coo_array(
            (both.data[apart], (both.coords[0][apart], both.coords[1][apart])), shape=both.shape
        )
    if text is not None:
        for start in range(0, n_items, _BLOCK):
            known[start : start + _BLOCK] += (settings.text * text[start : start + _BLOCK]) @ text.T
    known[np.diag_indices(n_items)] += settings.l2
    inverse = _inverse(known, settings.l2)

    # A sparse target is multiplied as it is, a small or dense one is faster through BLAS.
    target = target.tocsr()
    if n_items <= _DENSE_ITEMS or target.nnz > 0.05 * n_items**2:
        weights = inverse @ target.toarray()
    else:
        weights = np.ascontiguousarray((target.T.tocsr() @ inverse).T)
    if text is not None:
        projected = inverse @ (settings.text * text)
        own = settings.text * (text * text).sum(axis=1)
        for start in range(0, n_items, _BLOCK):
            rows = slice(start, start + _BLOCK)
            weights[rows] += projected[rows] @ text.T
            weights[rows] -= inverse[rows] * own
    return weights


def next_item_statistics(histories: Ragged, n_items: int, decay: float) -> tuple[np.ndarray, sparse.csr_array]:
    """Sums over all prefixes ``m`` of all histories, and the items ``y`` that came next.

    With positions p <= q in a history of n events, the pair enters ``m m^T`` for every prefix that ends at q or later
    and has a next item: ``decay^(q-p) (1 + decay^2 + ... + decay^(2 (n - 2 - q)))``, so no prefix is ever built.
    Pairs so far apart that ``decay^(q-p)`` is below 0.001 are left out.

    Returns:
      ``sum m m^T`` float32 ``[N, N]`` and ``sum m y^T`` sparse float32 ``[N, N]``.
    """
    _check_items(histories, n_items)
    _check_decay(decay)
    items = histories.values.astype(np.int64)
    after = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(items))  # events after this one
    prefixes = after.astype(np.float64)  # prefixes that end here or later and have a next item
    seen = prefixes if decay == 1 else (1 - decay ** (2 * prefixes)) / (1 - decay**2)
    known = np.zeros((n_items, n_items), np.float32)
    longest = int(histories.lengths.max(initial=0))
    reach = longest if decay == 1 else min(longest, int(np.ceil(np.log(1e-3) / np.log(decay))) + 1)
    none = items[:0]
    target = sparse.csr_array((none.astype(np.float32), (none, none)), shape=(n_items, n_items))
    flat = known.reshape(-1)
    for lag in range(reach):
        later = np.flatnonzero(after[: len(items) - lag] >= lag) + lag
        earlier = later - lag
        value = (decay**lag * seen[later]).astype(np.float32)
        np.add.at(flat, items[earlier] * n_items + items[later], value)
        if lag:
            np.add.at(flat, items[later] * n_items + items[earlier], value)
            step = np.full(len(later), decay ** (lag - 1), np.float32)
            target = target + sparse.csr_array((step, (items[earlier], items[later])), shape=(n_items, n_items))
    return known, target


def ease_weights(histories: Ragged, n_items: int, l2: float) -> np.ndarray:
    """EASE: float32 ``[N, N]`` with a zero diagonal. Takes about 12 s for 12,000 items on two cores.

    Args:
      histories: Item indices of each training user; order and repeats do not matter.
      n_items: N.
      l2: Lambda, above 0. Larger is smoother; good values grow with the number of users.

    Raises:
      ModelError: Too many items, an item outside the catalogue, or a bad ``l2``.
    """
    _check_size(n_items, l2)
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
        raise ModelError(f"The item-item matrix is not positive definite in float32 (l2 {l2}): raise l2.")
    inverse = lower.T  # C order again, and only its upper triangle is filled
    for start in range(0, n_items, _BLOCK):
        rows = slice(start, start + _BLOCK)
        square = inverse[rows, rows]
        inverse[rows, rows] = np.triu(square) + np.triu(square, 1).T
        inverse[start + _BLOCK :, rows] = inverse[rows, start + _BLOCK :].T
    return inverse


def _check_size(n_items: int, l2: float) -> None:
    if n_items > MAX_ITEMS:
        raise ModelError(
            f"Expected at most {MAX_ITEMS:,} items for closed-form weights (N x N floats), got {n_items:,}. Leave "
            "'behaviour' out of model.terms and 'ease' out of evaluation.baselines, or drop rare items."
        )
    if not l2 > 0:
        raise ModelError(f"Expected l2 above 0, got {l2}.")


def prune(weights: np.ndarray, neighbours: int) -> PrunedWeights:
    """Keeps the ``neighbours`` weights of largest magnitude in each row (all of them where N is smaller)."""
    n_items = len(weights)
    kept = min(neighbours, n_items)
    indices = np.empty((n_items, kept), dtype=np.int32)
    values = np.empty((n_items, kept), dtype=np.float32)
    for start in range(0, n_items, _BLOCK):
        rows = slice(start, start + _BLOCK)
        indices[rows], values[rows] = strongest(weights[rows], kept)
    return PrunedWeights(indices, values)


def strongest(rows: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns int64 and values ``[R, kept]`` of the largest magnitudes in each of R rows, strongest first."""
    magnitude = np.abs(rows)
    columns = np.sort(np.argpartition(-magnitude, kept - 1, axis=1)[:, :kept], axis=1)  # equal weights: item order
    order = np.argsort(-np.take_along_axis(magnitude, columns, 1), axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, 1)
    return columns, np.take_along_axis(rows, columns, 1)


def score_history(history: Ragged, weights: np.ndarray | PrunedWeights, decay: float = 1.0) -> np.ndarray:
    """Scores all items from recency-weighted histories, ``m_u W``.

    The most recent item of a history weighs 1, the one before it ``decay``, then ``decay^2``; an item that is there
    twice weighs the sum. An empty history scores 0 everywhere.

    Args:
      history: B rows of item indices, oldest first.
      weights: float32 ``[N, N]`` or its pruned form.
      decay: Above 0, up to 1 (order does not matter).

    Returns:
      float32 ``[B, N]``.

    Raises:
      ModelError: A history item outside the catalogue, or a bad ``decay``.
    """
    if isinstance(weights, PrunedWeights):
        n_items, width = weights.neighbours.shape
        starts = np.arange(0, n_items * width + 1, width)
        table = sparse.csr_array(
            (weights.weights.ravel(), weights.neighbours.ravel(), starts), shape=(n_items, n_items)
        )
        return (recency_matrix(history, n_items, decay) @ table).toarray()
    return recency_matrix(history, len(weights), decay) @ weights


def recency_matrix(history: Ragged, n_items: int, decay: float) -> sparse.csr_array:
    """``m_u`` of every history as a sparse float32 ``[B, N]``: ``decay`` to the power of the steps back."""
    _check_decay(decay)
    _check_items(history, n_items)
    steps_back = np.repeat(history.offsets[1:], history.lengths) - 1 - np.arange(len(history.values))
    strength = np.power(decay, steps_back).astype(np.float32)
    return sparse.csr_array((strength, history.values, history.offsets), shape=(len(history), n_items))


def interactions(histories: Ragged, n_items: int) -> sparse.csr_array:
    """X: float32 ``[U, N]``, 1 where the user has had the item, however often."""
    _check_items(histories, n_items)
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


def centred_unit(vectors: np.ndarray) -> np.ndarray:
    """Text vectors without what all texts share, at unit length.

    Sentence vectors of one shop all point the same way; only what is left after taking the mean off tells items apart.

    Args:
      vectors: float ``[N, D]``; rows of zeros are items without text and stay zero.

    Returns:
      float32 ``[N, D]``.
    """
    has_text = np.any(vectors != 0, axis=1, keepdims=True)
    mean = vectors.sum(axis=0) / max(1, np.count_nonzero(has_text))
    centred = np.where(has_text, vectors - mean, 0.0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    # Where all texts are the same, nothing but rounding is left: no direction, rather than a random one.
    known = length > 1e-6 * np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=known).astype(np.float32)


def _check_decay(decay: float) -> None:
    if not 0 < decay <= 1:
        raise ModelError(f"Expected a recency decay above 0 and up to 1, got {decay}.")


def _check_items(items: Ragged, n_items: int) -> None:
    outside = (items.values < 0) | (items.values >= n_items)
    if outside.any():
        at = int(np.argmax(outside))
        raise ModelError(
            f"Expected history items between 0 and {n_items - 1}, got {items.values[at]} in row "
            f"{items.row_of_value[at]}: leave unknown items out of the history."
        )

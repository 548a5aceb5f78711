"""Finds the best items for a query in the graph: by an exact scan in blocks, in the nearest cells, or with ScaNN.

The score of item i is ``<q, e_i> + sum of the values paired with i``: a dense part for all items, and a sparse part for
a few items, which is never approximated. No matrix of queries by items is computed unless the catalogue is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.layers.item_cells import RECALL_AT, Cells, partition
from tfllmrec.layers.item_scann import Scann
from tfllmrec.layers.item_vectors import ALIGNMENT, ItemVectors
from tfllmrec.layers.rows_of import rows_of
from tfllmrec.layers.traced_once import traced_once

Form = Literal["auto", "exact", "partitioned", "scann"]

EXACT_ITEMS = 200_000
"""Largest number of items for which ``auto`` scans, which takes a few milliseconds."""

SCANN_ITEMS = 1000
"""With fewer items, the form ``scann`` is an exact scan, because there is too little data to learn codes from."""

NOTHING = -1
"""Padding of the rows of allow-lists and category filters."""

LISTED = 65_536
"""If a filter leaves at most this number of items, these are scored directly, without the partition."""

_SCORES_AT_ONCE = 1 << 20
_NUMBERS_AT_ONCE = 1 << 22
_GROUP = 32
_FAINT = 1e-9


class _Rows(NamedTuple):
    """A batch of requests, or one request (without the first dimension); items are given by their slots."""

    query: tf.Tensor  # float32 [B, D]
    exclude: tf.Tensor  # int32 [B, E], including the slots beyond the items
    paired: tf.Tensor  # int32 [B, S]
    values: tf.Tensor  # float32 [B, S]
    allowed: tf.Tensor  # int32 [B, A]
    categories: tf.Tensor  # int32 [B, F]
    domains: tf.Tensor  # int32 [B, G]
    unknown: tf.Tensor  # bool [B]
    banned: tf.Tensor  # bool [B, n_slots], or [B, 0] if no item is banned


class _Best(NamedTuple):
    """Scores in descending order and their slots, ``[..., K]``; the score is -inf where there is no item."""

    scores: tf.Tensor
    slots: tf.Tensor


class ItemIndex(tf.Module):
    """Returns the top k of item vectors with core TensorFlow operations, for any batch size and any ``k``.

    Without ``cells``, the result is exact, and equal scores are in the order of the items. With cells of a partition,
    only the items in the cells nearest to the query, and the items of the sparse part, are scored. With ScaNN, only
    those items in the nearest cells are scored that are best by their codes.

    In every form, excluded items are never returned, and if filters leave few items, all of these are found: the result
    is exact if a filter leaves at most :data:`LISTED` items, or if the probed cells contain too few items. With a
    weaker filter, the number of probed cells grows in inverse proportion to the share of items left. Items with a
    negative value in the sparse part count as filtered out there, as long as there are enough other items.

    Args:
      vectors: Float32 ``[N, D]``.
      cells: A partition of the vectors by :func:`~tfllmrec.layers.item_cells.partition`, or a ScaNN searcher; ``None``
        for an exact scan.
      prior: Float32 ``[N]``, added to the scores of requests without a history; by default all 0.
      categories: For each category, the indices of its items, for category filters. An item may be in several.

    Raises:
      ModelError: ``categories`` contains an index that is not that of an item.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        cells: Cells | Scann | None = None,
        prior: np.ndarray | None = None,
        categories: Sequence[np.ndarray] = (),
    ) -> None:
        super().__init__(name="item_index")
        vectors = np.asarray(vectors, np.float32)
        self.cells = cells
        # Slots contain the items in their order or, with a partition, sorted by cell.
        order = np.argsort(cells.cell_of, kind="stable") if isinstance(cells, Cells) else np.arange(len(vectors))
        self.vectors = ItemVectors(vectors[order])
        self.n_items = len(vectors)
        slot_of = np.full(self.n_items + 1, self.n_items, np.int32)
        slot_of[order] = np.arange(self.n_items)
        item_of = np.full(self.vectors.n_slots, self.n_items, np.int32)
        item_of[: self.n_items] = order
        self.item_of = tf.Variable(item_of, trainable=False, name="item_of")
        slots_prior = np.zeros(self.vectors.n_slots, np.float32)
        slots_prior[: self.n_items] = 0 if prior is None else np.asarray(prior)[order]
        self.prior = tf.Variable(slots_prior, trainable=False, name="prior")
        self.n_categories = len(categories)
        # An additional category, without items, is that of unknown names.
        ends = np.cumsum([0, *map(len, categories), 0])
        members = np.concatenate([np.zeros(0, np.int32), *(np.asarray(items, np.int32) for items in categories)])
        if len(members) and not (members.min() >= 0 and members.max() < self.n_items):
            wrong = members.min() if members.min() < 0 else members.max()
            raise ModelError(f"categories: expected item indices from 0 to {self.n_items - 1}, got {wrong}")
        self.category_ends = tf.Variable(ends.astype(np.int32), trainable=False, name="category_ends")
        self.category_slots = tf.Variable(slot_of[members], trainable=False, name="category_slots")
        if isinstance(cells, Cells):
            self.slot_of = tf.Variable(slot_of, trainable=False, name="slot_of")
            self.centroids = tf.Variable(cells.centroids, trainable=False, dtype=tf.float32, name="centroids")
            cell_ends = np.searchsorted(cells.cell_of[order], np.arange(len(cells.centroids) + 1))
            self.cell_ends = tf.Variable(cell_ends.astype(np.int32), trainable=False, name="cell_ends")

    @property
    def about(self) -> dict[str, str | float]:
        """The form of the index and its recall of the exact top 10."""
        if self.cells is None:
            return {"form": "exact", "recall": 1.0}
        return {"form": "scann" if isinstance(self.cells, Scann) else "partitioned", "recall": self.cells.recall}

    @traced_once
    def top_k(
        self,
        query: tf.Tensor,
        k: tf.Tensor,
        exclude: tf.Tensor | None = None,
        pairs: tuple[tf.Tensor, tf.Tensor] | None = None,
        allowed: tf.Tensor | None = None,
        categories: tf.Tensor | None = None,
        unknown: tf.Tensor | None = None,
        banned: tf.Tensor | None = None,
        domains: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the best ``k`` items of each request.

        Args:
          query: Float32 ``[B, D]``; with zeros, the dense part of all scores is 0.
          k: Int32 ``[B]`` or ``[1]``; negative numbers count as 0.
          exclude: Int32 ``[B, E]``, items that must not be returned; N counts as none.
          pairs: The sparse part, int32 items and float32 values ``[B, S]``; the values of an item add up. Pairs with
            the value 0 are ignored.
          allowed: Int32 ``[B, A]``, allow-lists: only these items may be returned. Rows are padded with
            :data:`NOTHING`; a row with nothing else allows all items. N is an item that does not exist, so a row of
            ``[N]`` allows none.
          categories: Int32 ``[B, F]``, categories: only items in one of these may be returned. Rows are padded like
            those of ``allowed``. The number of categories stands for a category that does not exist.
          unknown: Bool ``[B]``, requests to whose scores ``prior`` is added; their results are exact.
          banned: Bool ``[B, N]``, or ``[B, 0]`` for none: further items that must not be returned. ``exclude`` is for
            few items, and ``banned`` for many.
          domains: Int32 ``[B, G]``, further numbers like those of ``categories``: an item needs one of these, too.

        Returns:
          Indices int32 and scores float32, ``[B, min(max(k), N)]``, so a ``k`` above N takes no additional memory. A
          row with fewer items or a smaller ``k`` is padded with index N and score 0.
        """
        batch = tf.shape(query)[0]
        k = tf.maximum(tf.broadcast_to(k, (batch,)), 0)
        rows = self._rows(query, exclude, pairs, allowed, categories, domains, unknown, banned)
        wanted = tf.minimum(tf.reduce_max(tf.concat([k, [0]], axis=0)), self.n_items)
        nobody = _Best(tf.zeros((0, wanted)), tf.zeros((0, wanted), tf.int32))
        best = _Best(*tf.cond(batch > 0, lambda: self._best(rows, wanted), lambda: nobody))
        shown = tf.math.is_finite(best.scores) & (tf.range(wanted)[tf.newaxis] < k[:, tf.newaxis])
        indices = tf.where(shown, rows_of(self.item_of, best.slots), self.n_items)
        return indices, tf.where(shown, best.scores, 0.0)

    @tf.autograph.experimental.do_not_convert
    def scores_of(
        self,
        items: tf.Tensor,
        query: tf.Tensor,
        exclude: tf.Tensor | None = None,
        pairs: tuple[tf.Tensor, tf.Tensor] | None = None,
        allowed: tf.Tensor | None = None,
        categories: tf.Tensor | None = None,
        unknown: tf.Tensor | None = None,
        banned: tf.Tensor | None = None,
        domains: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the scores of ``items``, int32 ``[B, P]``, that :meth:`top_k` computes: float32 ``[B, P]``.

        The score is minus infinity for N and for items that must not be returned. The other arguments are those of
        :meth:`top_k`.
        """
        rows = self._rows(query, exclude, pairs, allowed, categories, domains, unknown, banned)
        slots = self._slots_of(items)
        scores = tf.linalg.matvec(self.vectors.read(slots), query)
        scores += tf.gather(_sums(rows.paired, 0, self.vectors.n_slots, rows.values), slots, batch_dims=1)
        scores += tf.where(rows.unknown[:, tf.newaxis], rows_of(self.prior, slots), 0.0)
        return tf.where(tf.gather(self._may_come_back(rows), slots, batch_dims=1), scores, -np.inf)

    def read(self, items: tf.Tensor) -> tf.Tensor:
        """Returns the stored vectors of ``items``: int32 ``[...]`` -> float32 ``[..., D]``; zeros for N."""
        return self.vectors.read(self._slots_of(items))

    def _slots_of(self, items: tf.Tensor) -> tf.Tensor:
        return rows_of(self.slot_of, items) if isinstance(self.cells, Cells) else items

    def _rows(self, query, exclude, pairs, allowed, categories, domains, unknown, banned) -> _Rows:
        batch = tf.shape(query)[0]
        none = tf.zeros((batch, 0), tf.int32)
        surplus = tf.range(self.n_items, self.vectors.n_slots)[tf.newaxis]
        paired, values = (none, tf.cast(none, tf.float32)) if pairs is None else pairs
        allowed = none if allowed is None else allowed
        return _Rows(
            query,
            tf.concat([self._slots_of(none if exclude is None else exclude), tf.tile(surplus, (batch, 1))], axis=1),
            self._slots_of(paired),
            values,
            tf.where(allowed == NOTHING, NOTHING, self._slots_of(tf.maximum(allowed, 0))),
            none if categories is None else categories,
            none if domains is None else domains,
            tf.zeros_like(query[:, 0], tf.bool) if unknown is None else unknown,
            tf.zeros((batch, 0), tf.bool) if banned is None else self._in_slots(banned),
        )

    def _in_slots(self, banned: tf.Tensor) -> tf.Tensor:
        """Reorders bool ``[B, N]`` by slots, ``[B, n_slots]``; ``[B, 0]`` is returned as it is."""

        def moved() -> tf.Tensor:
            if not isinstance(self.cells, Cells):
                return tf.pad(banned, [[0, 0], [0, self.vectors.n_slots - self.n_items]])
            return tf.gather(tf.pad(banned, [[0, 0], [0, 1]]), self.item_of, axis=1)

        return tf.cond(tf.shape(banned)[1] > 0, moved, lambda: banned)

    def _best(self, rows: _Rows, wanted: tf.Tensor) -> _Best:
        """Returns the best ``wanted`` items of a batch that is not empty."""

        if self.cells is None:
            return self._scan(rows, wanted)  # the vectors are read once for all requests
        each = _Best(tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32))
        return tf.map_fn(lambda row: self._probe(row, wanted), rows, fn_output_signature=each)

    # Exact ----------------------------------------------------------------------------------------------------------

    def _scan(self, rows: _Rows, wanted: tf.Tensor) -> _Best:
        """Scores all items, block by block."""
        batch, n_slots = tf.shape(rows.query)[0], self.vectors.n_slots
        block = tf.maximum(_SCORES_AT_ONCE // batch // ALIGNMENT, 1) * ALIGNMENT
        filtered = _is_filtered(rows)
        may = tf.cond(filtered, lambda: self._may_come_back(rows), lambda: tf.zeros((batch, 0), tf.bool))

        def of_block(start: tf.Tensor, *best: tf.Tensor) -> tuple[tf.Tensor, ...]:
            size = tf.minimum(block, n_slots - start)
            scores = self.vectors.scan(rows.query, start, size)
            scores += _sums(rows.paired, start, size, rows.values)
            scores = tf.cond(
                tf.reduce_any(rows.unknown),
                lambda: scores + tf.where(rows.unknown[:, tf.newaxis], self.prior[start : start + size], 0.0),
                lambda: scores,
            )
            scores = tf.cond(filtered, lambda: tf.where(may[:, start : start + size], scores, -np.inf), lambda: scores)
            cells = _cells_within(rows.exclude, start, size)
            scores = tf.tensor_scatter_nd_update(scores, cells, tf.fill(tf.shape(cells)[:1], -np.inf))
            return start + size, *_merged(_Best(*best), _best_of_block(scores, start, wanted), wanted)

        nothing = _Best(tf.fill((batch, wanted), -np.inf), tf.fill((batch, wanted), self.n_items))
        return _looped(of_block, n_slots, nothing)

    # Partitioned ----------------------------------------------------------------------------------------------------

    def _probe(self, row: _Rows, wanted: tf.Tensor) -> _Best:
        """Answers one request with a partition or with ScaNN."""
        may = self._may_come_back(_Rows(*(x[tf.newaxis] for x in row)))[0]
        filtered = _is_filtered(row)
        left = tf.cond(filtered, lambda: tf.math.count_nonzero(may, dtype=tf.int32), lambda: self.n_items)
        lowered, _ = tf.unique(tf.boolean_mask(row.paired, row.values < 0))
        lowered = tf.math.count_nonzero(tf.gather(may, lowered), dtype=tf.int32)
        share = tf.maximum(tf.cast((left - lowered) / self.n_items, tf.float32), _FAINT)
        few = filtered & (left <= LISTED)
        slots = tf.cond(few, lambda: _where(may), lambda: self._near(row, may, share, wanted))
        slots = tf.cond(tf.size(slots) - lowered < wanted, lambda: _where(may), lambda: slots)

        def scanned() -> _Best:
            return _Best(*(x[0] for x in self._scan(_Rows(*(x[tf.newaxis] for x in row)), wanted)))

        return tf.cond(row.unknown, scanned, lambda: self._listed(row, slots, wanted))

    def _near(self, row: _Rows, may: tf.Tensor, share: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        """Returns the slots, int32 ``[M]``, of the paired and near items that ``may``, bool ``[n_slots]``, permits."""
        paired, _ = tf.unique(tf.boolean_mask(row.paired, row.values != 0))
        paired = tf.boolean_mask(paired, tf.gather(may, paired))
        once = tf.tensor_scatter_nd_update(may, paired[:, tf.newaxis], tf.zeros_like(paired, tf.bool))
        near = self._by_scann(row, share, wanted) if isinstance(self.cells, Scann) else self._in_cells(row, share)
        return tf.concat([paired, tf.boolean_mask(near, tf.gather(once, near))], axis=0)

    def _in_cells(self, row: _Rows, share: tf.Tensor) -> tf.Tensor:
        assert isinstance(self.cells, Cells)
        probes = _up_to(self.cells.probes / share, len(self.cells.centroids))
        cells = tf.math.top_k(tf.linalg.matvec(self.centroids, row.query), probes, sorted=False).indices
        return _ranges(self.cell_ends, cells)

    def _by_scann(self, row: _Rows, share: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        """Returns items found by ScaNN; more are fetched if a filter is active or items are excluded."""
        assert isinstance(self.cells, Scann)
        each = self.cells.candidates / RECALL_AT * tf.cast(tf.maximum(wanted, RECALL_AT), tf.float32)
        # Padding does not count, because the width of a batch must not change a result.
        out = tf.cast(tf.math.count_nonzero(row.exclude < self.n_items), tf.float32)
        probes = _up_to(self.cells.probes / share, self.cells.cells)
        return self.cells.near(row.query, probes, _up_to(each / share + out, self.n_items))

    def _listed(self, row: _Rows, slots: tf.Tensor, wanted: tf.Tensor) -> _Best:
        """Answers one request from the items in ``slots``, int32 ``[M]``."""
        block = max(_NUMBERS_AT_ONCE // self.vectors.dim, 1)
        sparse = tf.tensor_scatter_nd_add(tf.zeros(self.vectors.n_slots), row.paired[:, tf.newaxis], row.values)

        def of_block(start: tf.Tensor, *best: tf.Tensor) -> tuple[tf.Tensor, ...]:
            some = slots[start : start + block]
            scores = tf.linalg.matvec(self.vectors.read(some), row.query) + tf.gather(sparse, some)
            return start + block, *_merged(_Best(*best), _Best(scores, some), wanted)

        return _looped(of_block, tf.size(slots), _Best(tf.fill((wanted,), -np.inf), tf.fill((wanted,), self.n_items)))

    # Filters --------------------------------------------------------------------------------------------------------

    def _may_come_back(self, rows: _Rows) -> tf.Tensor:
        """Returns which slots each request permits: bool ``[B, n_slots]``."""
        batch, n_slots = tf.shape(rows.query)[0], self.vectors.n_slots

        def only(row: tf.Tensor, slots: tf.Tensor) -> tf.Tensor:
            """Returns bool ``[B, n_slots]``, True in the ``slots`` of each ``row``."""
            at = tf.stack([row, slots], axis=1)
            return tf.tensor_scatter_nd_update(tf.zeros((batch, n_slots), tf.bool), at, tf.ones_like(row, tf.bool))

        def if_any(filters: tf.Tensor, slots_of: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]):
            given = filters != NOTHING
            all_ = ~tf.reduce_any(given, axis=1, keepdims=True)
            entries = tf.cast(tf.where(given)[:, 0], tf.int32), tf.boolean_mask(filters, given)
            return tf.cond(
                tf.reduce_any(given),
                lambda: all_ | only(*slots_of(*entries)),
                lambda: tf.ones((batch, n_slots), tf.bool),
            )

        def members(row: tf.Tensor, category: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ends = self.category_ends
            row = tf.repeat(row, rows_of(ends, category + 1) - rows_of(ends, category))
            return row, rows_of(self.category_slots, _ranges(ends, category))

        may = if_any(rows.allowed, lambda row, slots: (row, slots))
        may &= if_any(rows.categories, members) & if_any(rows.domains, members)
        if rows.banned.shape[1] != 0:
            may = tf.cond(tf.shape(rows.banned)[1] > 0, lambda: may & ~rows.banned, lambda: may)
        row = tf.repeat(tf.range(batch), tf.shape(rows.exclude)[1])
        at = tf.stack([row, tf.reshape(rows.exclude, (-1,))], axis=1)
        return tf.tensor_scatter_nd_update(may, at, tf.zeros_like(at[:, 0], tf.bool))


def is_exact(form: Form, n_items: int) -> bool:
    """Returns whether an index of the ``form`` scans ``n_items`` items; any other index is measured on queries."""
    return form == "exact" or (form == "auto" and n_items <= EXACT_ITEMS) or (form == "scann" and n_items < SCANN_ITEMS)


def build_index(
    vectors: np.ndarray,
    queries: np.ndarray | None,
    form: Form = "auto",
    prior: np.ndarray | None = None,
    categories: Sequence[np.ndarray] = (),
    seed: int = 42,
    exclude: np.ndarray | None = None,
) -> ItemIndex:
    """Builds an index of the ``form``.

    *auto* is exact up to :data:`EXACT_ITEMS` items and partitioned beyond. *scann* requires a server with ScaNN's
    operations; it is exact below :data:`SCANN_ITEMS` items.

    Args:
      vectors: As in :class:`ItemIndex`.
      queries: Float32 ``[Q, D]``, a sample of a few thousand queries to expect, on which the recall is measured. Not
        needed if the index :func:`is_exact`.
      form: See above.
      prior: As in :class:`ItemIndex`.
      categories: As in :class:`ItemIndex`.
      seed: Random seed of the partition; ScaNN has none.
      exclude: Int32 ``[Q, E]``, the items that must not be returned for each of ``queries``; N counts as none.

    Raises:
      ModelError: ``form`` is unknown, the required queries are missing or have the wrong width, or scann is missing.
    """
    if form not in get_args(Form):
        raise ModelError(f"form of the item index: expected one of {', '.join(get_args(Form))}, got {form!r}")
    if is_exact(form, len(vectors)):
        return ItemIndex(vectors, None, prior, categories)
    asked = np.asarray([] if queries is None else queries, np.float32)
    some = np.any(asked != 0, axis=-1) if asked.ndim == 2 else np.zeros(len(asked), bool)
    if not some.any() or asked.shape[-1] != vectors.shape[1]:
        raise ModelError(
            f"{form} item index: expected queries [Q, {vectors.shape[1]}], not only zeros, to measure recall on; "
            f"got shape {list(asked.shape)}; give some, or take form=exact"
        )
    asked, exclude = asked[some], None if exclude is None else np.asarray(exclude)[some]
    cells = Scann(vectors, asked, exclude) if form == "scann" else partition(vectors, asked, seed, exclude=exclude)
    return ItemIndex(vectors, cells, prior, categories)


def _is_filtered(rows: _Rows) -> tf.Tensor:
    """Returns whether any of the ``rows`` has an allow-list, a filter of categories or domains, or banned items."""
    given = [tf.reduce_any(numbers != NOTHING) for numbers in (rows.allowed, rows.categories, rows.domains)]
    return tf.reduce_any(given) | (tf.shape(rows.banned)[-1] > 0)


def _up_to(number: tf.Tensor, largest: int) -> tf.Tensor:
    return tf.cast(tf.minimum(tf.math.ceil(number), largest), tf.int32)


def _where(mask: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.where(mask)[:, 0], tf.int32)


def _ranges(ends: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    """Concatenates the ranges ``ends[i]`` to ``ends[i + 1]`` for each i in ``which``."""
    return tf.ragged.range(rows_of(ends, which), rows_of(ends, which + 1)).flat_values


def _looped(of_block: Callable[..., tuple[tf.Tensor, ...]], until: tf.Tensor | int, best: _Best) -> _Best:
    """Repeats ``(start, *best) -> (next start, *best)`` from 0 ``until`` the end, sequentially to bound the memory."""
    any_size = tf.TensorShape([None] * len(best.scores.shape))
    _, *found = tf.while_loop(
        lambda start, *_: start < until,
        of_block,
        (0, *best),
        shape_invariants=(tf.TensorShape([]), any_size, any_size),
        parallel_iterations=1,
    )
    return _Best(*found)


def _cells_within(slots: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the positions, int32 ``[*, 2]``, of those ``slots`` ``[B, S]`` that are in a block, in its scores."""
    at = slots - start
    within = (at >= 0) & (at < size)
    rows = tf.cast(tf.where(within)[:, 0], tf.int32)
    return tf.stack([rows, tf.boolean_mask(at, within)], axis=1)


def _sums(slots: tf.Tensor, start: tf.Tensor | int, size: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Sums the ``values`` ``[B, S]`` of each slot of a block in each row, float32 ``[B, size]``.

    Weighted counts give the same result as a scatter, but several times as fast.
    """
    at = tf.cond(tf.equal(start, 0), lambda: slots, lambda: tf.where(slots < start, size, slots - start))
    with tf.device("CPU:0"):  # there is no deterministic kernel for GPUs
        return tf.raw_ops.DenseBincount(input=at, size=size, weights=values)


def _best_of_block(scores: tf.Tensor, start: tf.Tensor, k: tf.Tensor) -> _Best:
    """Returns the top ``k`` of ``[B, M]`` (all, if M is smaller); equal scores are in the order of the slots.

    M is a multiple of the group size. The best k scores are in the k groups with the highest maxima, so most scores are
    only compared within their group. That is vectorised, and several times as fast as a plain top k.
    """
    groups = tf.reshape(scores, (tf.shape(scores)[0], -1, _GROUP))
    highest = tf.reduce_max(groups, axis=-1)
    few = tf.math.top_k(highest, tf.minimum(k, tf.shape(highest)[1])).indices
    few = tf.sort(few, axis=1)
    some = tf.reshape(tf.gather(groups, few, batch_dims=1), (tf.shape(scores)[0], -1))
    found = tf.math.top_k(some, tf.minimum(k, tf.shape(some)[1]))
    slots = tf.gather(few, found.indices // _GROUP, batch_dims=1) * _GROUP + found.indices % _GROUP
    return _Best(found.values, start + slots)


def _merged(best: _Best, more: _Best, k: tf.Tensor) -> _Best:
    """Returns the top ``k`` of both; ``best`` has ``k`` entries, which come first among equal scores."""
    return _top(tf.concat([best.scores, more.scores], axis=-1), tf.concat([best.slots, more.slots], axis=-1), k)


def _top(scores: tf.Tensor, slots: tf.Tensor, k: tf.Tensor) -> _Best:
    """Returns the top ``k`` of at least ``k`` scores."""
    found = tf.math.top_k(scores, k)
    return _Best(found.values, tf.gather(slots, found.indices, batch_dims=len(slots.shape) - 1))

"""Applies business rules inside the graph, which reads their file at each request.

TF Serving and the embedded server load a version once, but its assets remain files. The path of the rules is an asset
of the SavedModel, and the graph reads the file for each request, so new rules apply from the next request on. The file
is replaced by a rename, so a request reads either the old or the new rules. If the file is missing, damaged or belongs
to another catalogue, the request fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfllmrec.layers.field_decoder import names_and_texts, plain_numbers, times
from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.layers.traced_once import traced_once
from tfllmrec.serving.rules.compiled import (
    CONTEXT_NAMES,
    HEADER_BYTES,
    MAGIC,
    NO_RULES,
    RULES,
    SECTIONS,
    SIZES_BYTES,
    digest_of_ids,
)

_OWNER = r"^(user|request)\."
_DAMAGED = (
    "The file of business rules is damaged or of another catalogue, so no item is shown: replace it with 'tfllmrec "
    "rules apply' or 'tfllmrec rules clear'."
)
# Added before rounding down, because 0.29 times 100 must be 29.
_ROUNDING = 1e-9


class Ruled(NamedTuple):
    """The effect of the rules on each request of a batch.

    Attributes:
      banned: Bool ``[B, N]``, or ``[B, 0]`` without rules: items that must not be returned.
      sponsored: Int32 ``[B, P]``, sponsored items; N for placements that do not apply to the time or the context of the
        request.
      places: Int32 ``[P]``, the positions of the sponsored items, counted from 0, ascending.
      share: Float64, the largest share of a list that sponsored items may take.
      read: Bool ``[B, C]``, the entries of the context that the rules in force read.
    """

    banned: tf.Tensor
    sponsored: tf.Tensor
    places: tf.Tensor
    share: tf.Tensor
    read: tf.Tensor


class BusinessRules(tf.Module):
    """Reads the rules of a catalogue.

    Args:
      item_ids: The ids of the catalogue's items. With a file of rules for another catalogue, requests fail.
    """

    def __init__(self, item_ids: Sequence[str]) -> None:
        super().__init__(name="business_rules")
        self.n_items = len(item_ids)
        self.file = tf.saved_model.Asset(str(Path(__file__).with_name(RULES)))
        self._start = MAGIC + digest_of_ids(item_ids)

    def __call__(self, batch: tf.Tensor, context: tf.Tensor | None = None) -> Ruled:
        """Returns the effect of the rules on a batch of requests.

        Args:
          batch: Int32, the number of requests.
          context: String ``[B, C]``, entries ``name=value``; ``None`` for none.
        """
        return Ruled(*self._of_requests(tf.fill((batch, 0), "") if context is None else context))

    @traced_once
    def _of_requests(self, context: tf.Tensor) -> tuple[tf.Tensor, ...]:
        stored, batch = tf.io.read_file(self.file.asset_path), tf.shape(context)[0]
        nothing = Ruled(
            tf.zeros((batch, 0), tf.bool),
            tf.zeros((batch, 0), tf.int32),
            tf.zeros(0, tf.int32),
            tf.constant(0.0, tf.float64),
            tf.zeros_like(context, tf.bool),
        )
        return tf.cond(stored == NO_RULES, lambda: nothing, lambda: self._ruled(self._sections(stored), context))

    def without_banned(self, items: tf.Tensor, ruled: Ruled) -> tf.Tensor:
        """Replaces banned items by N in ``items``, int32 ``[B, M]``."""

        def kept() -> tf.Tensor:
            banned = tf.gather(tf.pad(ruled.banned, [[0, 0], [0, 1]]), items, batch_dims=1)
            return tf.where(banned, self.n_items, items)

        return tf.cond(tf.shape(ruled.banned)[1] > 0, kept, lambda: items)

    def placed(
        self,
        items: tf.Tensor,
        scores: tf.Tensor,
        k: tf.Tensor,
        ruled: Ruled,
        index: ItemIndex,
        request: Mapping[str, Any],
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Inserts sponsored items into lists at their positions.

        An item is placed if it may be returned and its position is within the list. If an item has several positions,
        the first one counts; if several items have the same position, the first one in the file. If the placements
        exceed the share of the list, only the first ones count. The other items keep their order, and the list keeps
        its length.

        Args:
          items: Int32 ``[B, K]``, lists padded with N.
          scores: Float32 ``[B, K]``, the scores of ``items``.
          k: Int32 ``[B]``, the requested length of each list.
          ruled: The effect of the rules on the requests.
          index: The index with which the items were found; it computes the scores of sponsored items.
          request: The arguments of ``index.top_k`` with which the items were found, except ``k``.

        Returns:
          Items, int32 ``[B, K]``; scores, float32 ``[B, K]``; and whether each item is sponsored, bool ``[B, K]``.
        """

        def as_they_are() -> tuple[tf.Tensor, ...]:
            return items, scores, tf.zeros_like(items, tf.bool)

        def with_placements() -> tuple[tf.Tensor, ...]:
            return self._placed(items, scores, k, ruled, index.scores_of(ruled.sponsored, **request))

        return tf.cond(tf.reduce_any(ruled.sponsored < self.n_items), with_placements, as_they_are)

    def _placed(
        self, items: tf.Tensor, scores: tf.Tensor, k: tf.Tensor, ruled: Ruled, own: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batch, width = tf.unstack(tf.shape(items))
        length = tf.reduce_sum(tf.cast(items < self.n_items, tf.int32), axis=1)
        one, places = ruled.sponsored, tf.broadcast_to(ruled.places, tf.shape(ruled.sponsored))
        may = tf.math.is_finite(own) & (places < length[:, tf.newaxis])
        may &= _first_of_each(one, may)
        may &= _first_of_each(places, may)
        most = tf.cast(ruled.share * tf.cast(length, tf.float64) + _ROUNDING, tf.int32)
        may &= tf.cumsum(tf.cast(may, tf.int32), axis=1) <= most[:, tf.newaxis]
        row = tf.tile(tf.range(batch)[:, tf.newaxis], (1, tf.shape(one)[1]))
        # Items that are not placed are written to an additional column (or item), which is cut off (or not read).
        at = tf.stack([row, tf.where(may, places, width)], axis=-1)
        placed = tf.tensor_scatter_nd_update(tf.fill((batch, width + 1), self.n_items), at, one)[:, :width]
        own = tf.tensor_scatter_nd_update(tf.zeros((batch, width + 1)), at, own)[:, :width]
        is_placed = tf.tensor_scatter_nd_update(
            tf.zeros((batch, self.n_items + 1), tf.bool),
            tf.stack([row, tf.where(may, one, self.n_items)], axis=-1),
            tf.ones_like(may),
        )
        left = (items < self.n_items) & ~tf.gather(is_placed, items, batch_dims=1)
        order = tf.argsort(tf.cast(~left, tf.int32), axis=1, stable=True)
        taken = placed < self.n_items
        source = tf.gather(order, tf.maximum(tf.cumsum(tf.cast(~taken, tf.int32), axis=1) - 1, 0), batch_dims=1)
        others = tf.where(left, items, self.n_items)
        items = tf.where(taken, placed, tf.gather(others, source, batch_dims=1))
        scores = tf.where(taken, own, tf.gather(scores, source, batch_dims=1))
        shown = (tf.range(width) < k[:, tf.newaxis]) & (items < self.n_items)
        return tf.where(shown, items, self.n_items), tf.where(shown, scores, 0.0), taken

    def _sections(self, stored: tf.Tensor) -> dict[str, tf.Tensor]:
        """Checks a file and splits it into its sections, strings; see :mod:`tfllmrec.serving.rules.compiled`."""
        content = tf.io.decode_compressed(stored, "GZIP")
        length, start = tf.strings.length(content), HEADER_BYTES + SIZES_BYTES
        whole = length >= start
        sizes = tf.strings.substr(tf.where(whole, content, b"\0" * start), HEADER_BYTES, SIZES_BYTES)
        sizes = tf.cast(tf.io.decode_raw(sizes, tf.int64), tf.int32)
        ours = tf.strings.substr(content, 0, tf.minimum(len(self._start), length)) == self._start
        whole &= ours & (length == start + tf.reduce_sum(sizes))
        with tf.control_dependencies([tf.debugging.Assert(whole, [_DAMAGED])]):
            content = tf.identity(content)
        places = start + tf.cumsum(sizes, exclusive=True)
        return {name: tf.strings.substr(content, places[n], sizes[n]) for n, name in enumerate(SECTIONS)}

    def _ruled(self, sections: Mapping[str, tf.Tensor], context: tf.Tensor) -> Ruled:
        batch = tf.shape(context)[0]
        entries = tf.concat([context, tf.fill((batch, 1), "")], axis=1)
        names, texts = names_and_texts(entries)
        names = tf.strings.regex_replace(names, _OWNER, "")
        columns = tf.range(tf.shape(names)[1])

        def given(wanted: tf.Tensor) -> tf.Tensor:
            """Returns the values of the fields named ``wanted``, string ``[M]``: string ``[B, M]``, ``""`` for none."""
            is_it = names[:, tf.newaxis] == wanted[:, tf.newaxis]
            last = tf.reduce_max(tf.where(is_it, columns, -1), axis=2)
            return tf.where(last >= 0, tf.gather(texts, tf.maximum(last, 0), batch_dims=1), "")

        def in_force(section: str) -> tf.Tensor:
            return tf.strings.length(sections[section]) > 0

        limit, age, region, now = tf.unstack(given(tf.constant(CONTEXT_NAMES)), axis=1)
        now = times(now)
        # The clock is only read if it is needed: with TensorFlow's deterministic operations enabled, as after a fit in
        # the same process, reading it is an error.
        timed = in_force("shown_from") | in_force("sponsored_from")
        unsaid = tf.math.is_nan(now)
        clock = tf.cond(timed & tf.reduce_any(unsaid), tf.timestamp, lambda: tf.constant(0.0, tf.float64))
        now = tf.where(unsaid, clock, now)[:, tf.newaxis]

        def numbers(name: str) -> tf.Tensor:
            kind = SECTIONS[name]
            return tf.io.decode_raw(sections[name], tf.as_dtype(kind))

        def texts_of(name: str) -> tf.Tensor:
            return tf.strings.split(sections[name], "\n")

        def also(banned: tf.Tensor, name: str, more: Any) -> tf.Tensor:
            return tf.cond(in_force(name), lambda: banned | more(), lambda: banned)

        def read(text: tf.Tensor) -> tf.Tensor:
            """Reads numbers, float64 ``[B, 1]``; a text that is not a number gives the smallest float64.

            It does not give NaN, because TensorFlow's optimizer turns ``~(a <= b)`` into ``a > b``, which is false for
            NaN.
            """
            number = plain_numbers(text)
            return tf.where(tf.math.is_nan(number), number.dtype.min, number)[:, tf.newaxis]

        def too_dear() -> tf.Tensor:
            return (limit != "")[:, tf.newaxis] & (numbers("price") > read(limit))

        def too_young() -> tf.Tensor:
            least = tf.cast(numbers("minimum_age"), tf.float64)
            return (least > 0) & (read(age) < least)

        def elsewhere() -> tf.Tensor:
            known = texts_of("region_names")
            is_it = tf.strings.upper(region)[:, tf.newaxis] == known
            number = 2 + tf.argmax(is_it, axis=1, output_type=tf.int32)
            column = tf.where(region == "", 0, tf.where(tf.reduce_any(is_it, axis=1), number, 1))
            permitted = tf.reshape(numbers("region_table"), (-1, 2 + tf.size(known))) != 0
            return ~tf.gather(tf.gather(tf.transpose(permitted), column), numbers("region_set"), axis=1)

        def not_now() -> tf.Tensor:
            return (now < numbers("shown_from")) | (now >= numbers("shown_until"))

        banned = tf.zeros((batch, self.n_items), tf.bool)
        banned = also(banned, "hidden", lambda: numbers("hidden") != 0)
        banned = also(banned, "price", too_dear)
        banned = also(banned, "minimum_age", too_young)
        banned = also(banned, "region_set", elsewhere)
        banned = also(banned, "shown_from", not_now)

        items = numbers("sponsored_item")
        holds = (now >= numbers("sponsored_from")) & (now < numbers("sponsored_until"))
        of = numbers("match_placement")
        count = tf.size(of)
        matched = texts_of("match_name")[:count]
        differs = given(matched) != texts_of("match_value")[:count]
        misses = tf.math.unsorted_segment_sum(tf.cast(tf.transpose(differs), tf.int32), of, tf.size(items))
        sponsored = tf.where(holds & (tf.transpose(misses) == 0), items, self.n_items)
        share = tf.reduce_sum(numbers("sponsored_share"))
        by = tf.stack([in_force("price"), in_force("minimum_age"), in_force("region_set"), timed])
        wanted = tf.concat([tf.boolean_mask(tf.constant(CONTEXT_NAMES), by), matched], axis=0)
        reads = tf.reduce_any(names[..., tf.newaxis] == wanted, axis=2)[:, :-1]
        return Ruled(banned, sponsored, numbers("sponsored_place"), share, reads)


def _first_of_each(values: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Returns where each valid value of int32 ``[B, P]`` occurs for the first time among the valid ones of its row."""
    same = (values[:, :, tf.newaxis] == values[:, tf.newaxis]) & valid[:, tf.newaxis]
    return tf.reduce_sum(tf.cast(tf.linalg.band_part(same, -1, 0), tf.int32), axis=2) == tf.cast(valid, tf.int32)

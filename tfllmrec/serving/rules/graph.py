"""Business rules inside the graph: read from their file at each request, so that a new file holds from the next one on.

TF Serving and the embedded server load a version once; its assets stay files. The path of the rules is an asset of the
SavedModel, and the graph reads what is there when a request comes. The file is replaced by a rename, so a request sees
the old rules or the new ones. A missing or damaged file, or one for another catalogue, is an error of the request.
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
    HEADER_BYTES,
    MAGIC,
    NO_RULES,
    RULES,
    SECTIONS,
    SIZES_BYTES,
    digest_of_ids,
)

#: Fields of a request's context that rules read, beside those that placements ask for.
MAX_PRICE, AGE, REGION, NOW = CONTEXT_NAMES = ("max_price", "age", "region", "now")
_OWNER = r"^(user|request)\."
_DAMAGED = (
    "The file of business rules is damaged or of another catalogue, so no item is shown: replace it with 'tfllmrec "
    "rules apply' or 'tfllmrec rules clear'."
)
# Added before rounding down: .29 times 100 must be 29.
_ROUNDING = 1e-9


class Ruled(NamedTuple):
    """What the rules say of each request of a batch.

    Attributes:
      banned: bool ``[B, N]``, or ``[B, 0]`` without rules: items that must not come back.
      sponsored: int32 ``[B, P]``, sponsored items, N for those whose time or context is another one. places: int32
        ``[P]``, theirs, ascending. share: float64, the largest share of a list that they may take.
    """

    banned: tf.Tensor
    sponsored: tf.Tensor
    places: tf.Tensor
    share: tf.Tensor


class BusinessRules(tf.Module):
    """Reads the rules of a catalogue.

    Args:
      item_ids: of the catalogue; a file of rules for another one is an error.
    """

    def __init__(self, item_ids: Sequence[str]) -> None:
        super().__init__(name="business_rules")
        self.n_items = len(item_ids)
        self.file = tf.saved_model.Asset(str(Path(__file__).with_name(RULES)))
        self._start = MAGIC + digest_of_ids(item_ids)

    def __call__(self, batch: tf.Tensor, context: tf.Tensor | None = None) -> Ruled:
        """The rules for requests.

        Args:
          batch: int32, how many requests. context: string ``[B, C]``, entries ``name=value``; ``None`` for none.
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
        )
        return tf.cond(stored == NO_RULES, lambda: nothing, lambda: self._ruled(self._sections(stored), context))

    def without_banned(self, items: tf.Tensor, ruled: Ruled) -> tf.Tensor:
        """``items`` int32 ``[B, M]``, N in place of banned ones."""

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
        """Lists with sponsored items at their places.

        An item is placed if it may come back and its place is within the list. Of several places of an item the first
        one counts, of several items for a place the first one in the file, and of all no more than the share of the
        list, the first places. Other items keep their order around them, and the list its length.

        Args:
          items, scores: int32 and float32 ``[B, K]``, lists; N at the end.
          k: int32 ``[B]``, the length that is asked for.
          index, request: that found the items, for the scores of sponsored ones.

        Returns:
          Items, scores, and bool ``[B, K]``, where an item is sponsored.
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
        # What is not placed goes to a column, or an item, that is cut off.
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
        """The sections of a file as they are kept, strings; see :mod:`tfllmrec.serving.rules.compiled`."""
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
            """The texts of the fields named string ``[M]``: string ``[B, M]``, ``""`` where a request has none."""
            is_it = names[:, tf.newaxis] == wanted[:, tf.newaxis]
            last = tf.reduce_max(tf.where(is_it, columns, -1), axis=2)
            return tf.where(last >= 0, tf.gather(texts, tf.maximum(last, 0), batch_dims=1), "")

        limit, age, region, now = tf.unstack(given(tf.constant(CONTEXT_NAMES)), axis=1)
        now = times(now)
        # The clock is not asked without need: with TensorFlow's deterministic operations on, as after a fit in the same
        # process, asking it is an error.
        timed = tf.strings.length(sections["shown_from"]) + tf.strings.length(sections["sponsored_from"]) > 0
        unsaid = tf.math.is_nan(now)
        clock = tf.cond(timed & tf.reduce_any(unsaid), tf.timestamp, lambda: tf.constant(0.0, tf.float64))
        now = tf.where(unsaid, clock, now)[:, tf.newaxis]

        def numbers(name: str) -> tf.Tensor:
            kind = SECTIONS[name]
            return tf.io.decode_raw(sections[name], tf.as_dtype(kind))

        def texts_of(name: str) -> tf.Tensor:
            return tf.strings.split(sections[name], "\n")

        def also(banned: tf.Tensor, name: str, more: Any) -> tf.Tensor:
            return tf.cond(tf.strings.length(sections[name]) > 0, lambda: banned | more(), lambda: banned)

        def read(text: tf.Tensor) -> tf.Tensor:
            """float64 ``[B, 1]``, the smallest one where a text is no number.

            Not NaN: TensorFlow's optimizer turns ``~(a <= b)`` into ``a > b``, which is false of NaN.
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
        differs = given(texts_of("match_name")[:count]) != texts_of("match_value")[:count]
        misses = tf.math.unsorted_segment_sum(tf.cast(tf.transpose(differs), tf.int32), of, tf.size(items))
        sponsored = tf.where(holds & (tf.transpose(misses) == 0), items, self.n_items)
        share = tf.reduce_sum(numbers("sponsored_share"))
        return Ruled(banned, sponsored, numbers("sponsored_place"), share)


def _first_of_each(values: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Where a value of int32 ``[B, P]`` stands for the first time among the ``valid`` ones."""
    same = (values[:, :, tf.newaxis] == values[:, tf.newaxis]) & valid[:, tf.newaxis]
    return tf.reduce_sum(tf.cast(tf.linalg.band_part(same, -1, 0), tf.int32), axis=2) == tf.cast(valid, tf.int32)

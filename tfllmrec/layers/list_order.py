"""Orders a list greedily, by diversity, pinned items, a cap per category, and a minimum share of tail items."""

from __future__ import annotations

from typing import Literal, NamedTuple

import tensorflow as tf

Method = Literal["mmr", "dpp"]
# A standard deviation of scores below _FAINT, and a residual share of a variance below _LEFT, are rounding errors.
_FAINT, _LEFT = 1e-6, 1e-4
# Added before rounding down, because 0.29 times 100 must be 29 in float32.
_ROUNDING = 1e-5


class Rules(NamedTuple):
    """The rules that each list must follow, independently of scores.

    Attributes:
      pinned: Int32 ``[B]``, the number of first candidates that are placed first, in their given order. They count in
        the other rules, but are not removed by them.
      categories: Int32 ``[B, C, M]``, the categories of each candidate, padded with -1.
      cap: Int32 ``[B]``, the largest number of items of one category; an item counts in each of its categories. 0 means
        no cap.
      tail: Bool ``[B, C]``, the candidates that belong to the tail.
      tail_share: Float32 ``[B]``, s in [0, 1]: for each n, at least ``floor(s n)`` of the first n items are tail items,
        as long as there are tail candidates that the cap permits.
    """

    pinned: tf.Tensor
    categories: tf.Tensor
    cap: tf.Tensor
    tail: tf.Tensor
    tail_share: tf.Tensor


class _State(NamedTuple):
    """The state of the loop over the positions of a list.

    Attributes:
      step: Int32, the current position.
      rank: Int32 ``[B, C]``, the position of each candidate.
      open: Bool ``[B, C]``, the candidates that are not chosen yet.
      value: Float32 ``[B, C]``. For *mmr*, the highest cosine to a chosen candidate; for *dpp*, the residual variance.
      parts: Float32 ``[B, C, T]``. For *dpp*, the components along the chosen candidates; for *mmr*, ``T`` is 0.
      counts: Int32 ``[B, G + 1]``, the number of chosen items of each category. The first column is that of no
        category, and stays 0.
      from_tail: Int32 ``[B]``, the number of chosen tail items.
    """

    step: tf.Tensor
    rank: tf.Tensor
    open: tf.Tensor
    value: tf.Tensor
    parts: tf.Tensor
    counts: tf.Tensor
    from_tail: tf.Tensor


def list_order(
    scores: tf.Tensor,
    vectors: tf.Tensor,
    valid: tf.Tensor,
    places: tf.Tensor,
    diversity: tf.Tensor,
    rules: Rules,
    method: Method = "dpp",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses the order of the candidates of each list, one position after the other.

    Of the candidates that :class:`Rules` permit at a position, the chosen one is

    - without diversity, the first;
    - with *mmr* (Carbonell and Goldstein 1998), the one with the highest ``(1 - d) r - d s``, where ``r`` is its score,
      scaled to [0, 1] over the candidates, and ``s`` its highest cosine to an already chosen candidate (at least 0);
    - with *dpp* (Chen et al. 2018, arXiv:1709.05135), the one that increases most the determinant of
      ``w_i w_j cos(i, j)`` over the chosen candidates, where ``w = exp((1 - d) z)`` and ``z`` is its score,
      standardised over the candidates.

    The share of the tail is kept as in DetGreedy (Geyik et al. 2019, arXiv:1905.01989, algorithm 1): if the first n
    items would have too few tail items, only tail items are candidates for position n.

    Args:
      scores: Float32 ``[B, C]``, in descending order, except for pinned candidates.
      vectors: Float32 ``[B, C, D]`` of length 1; ``D`` may be 0 if no row is diverse.
      valid: Bool ``[B, C]``; other candidates are placed after all valid ones. Pinned candidates are valid.
      places: Int32, the number of candidates to choose; the others follow in their given order.
      diversity: Float32 ``[B]``, d in [0, 1].
      rules: The rules. A row without diversity to which no rule applies keeps its order.
      method: See above.

    Returns:
      The order of the candidates, as positions in the input, int32 ``[B, C]``; and the number of candidates that are in
      the list, int32 ``[B]``: all valid ones or, with a cap, the chosen ones.
    """
    batch, width = tf.unstack(tf.shape(scores))
    position = tf.tile(tf.range(width)[tf.newaxis], (batch, 1))
    d = tf.clip_by_value(diversity, 0.0, 1.0)[:, tf.newaxis]
    there = tf.reduce_sum(tf.cast(valid, tf.int32), axis=1)
    count = tf.maximum(tf.cast(there, tf.float32), 1.0)[:, tf.newaxis]
    places = tf.minimum(places, width)
    if method == "mmr":
        least = tf.reduce_min(tf.where(valid, scores, scores.dtype.max), axis=1, keepdims=True)
        most = tf.reduce_max(tf.where(valid, scores, scores.dtype.min), axis=1, keepdims=True)
        scaled = (1.0 - d) * tf.math.divide_no_nan(scores - least, most - least)
        start, components = tf.zeros_like(scores), tf.constant(0)
    else:
        mean = tf.reduce_sum(tf.where(valid, scores, 0.0), axis=1, keepdims=True) / count
        spread = tf.sqrt(tf.reduce_sum(tf.where(valid, (scores - mean) ** 2, 0.0), axis=1, keepdims=True) / count)
        scaled = tf.exp((1.0 - d) * tf.where(spread > _FAINT, (scores - mean) / tf.maximum(spread, _FAINT), 0.0))
        start, components = scaled**2, tf.where(tf.reduce_any(d > 0.0), places, 0)
    categories = rules.categories + 1
    most_of_one = tf.where(rules.cap > 0, rules.cap, tf.int32.max)[:, tf.newaxis, tf.newaxis]
    share = tf.clip_by_value(rules.tail_share, 0.0, 1.0)
    row = tf.range(batch)

    def permitted(state: _State) -> tf.Tensor:
        """Returns the candidates that the rules permit at this position, bool ``[B, C]``."""
        counts = tf.gather(state.counts, categories, batch_dims=1)
        may = state.open & tf.reduce_all(counts < most_of_one, axis=2)
        due = tf.cast(share * tf.cast(state.step + 1, tf.float32) + _ROUNDING, tf.int32) > state.from_tail
        of_tail = may & rules.tail
        may = tf.where((due & tf.reduce_any(of_tail, axis=1))[:, tf.newaxis], of_tail, may)
        return tf.where((state.step < rules.pinned)[:, tf.newaxis], position == state.step, may)

    def choose(state: _State) -> _State:
        worth = scaled - d * state.value if method == "mmr" else state.value
        worth = tf.where(d > 0.0, worth, -tf.cast(position, tf.float32))
        may = permitted(state)
        best = tf.argmax(tf.where(may, worth, worth.dtype.min), axis=1, output_type=tf.int32)
        chosen = (position == best[:, tf.newaxis]) & may
        like = tf.einsum("bcd,bd->bc", vectors, tf.gather(vectors, best, batch_dims=1))
        parts, value = state.parts, state.value
        if method == "mmr":
            value = tf.maximum(value, like)
        else:
            own = tf.gather(parts, best, batch_dims=1)
            product = scaled * tf.gather(scaled, best, batch_dims=1)[:, tf.newaxis] * like
            left = tf.maximum(tf.gather(value, best, batch_dims=1), _FAINT)[:, tf.newaxis]
            part = (product - tf.einsum("bct,bt->bc", parts, own)) / tf.sqrt(left)
            now = tf.range(components) == state.step
            parts = tf.where(now, part[..., tf.newaxis], parts)
            value -= part**2
            value = tf.where(value > _LEFT * start, value, 0.0)  # ties go to the highest score
        of_best = tf.gather(categories, best, batch_dims=1)
        more = tf.cast(tf.reduce_any(chosen, axis=1, keepdims=True) & (of_best > 0), tf.int32)
        cells = tf.stack([tf.broadcast_to(row[:, tf.newaxis], tf.shape(of_best)), of_best], axis=-1)
        after = _State(
            state.step + 1,
            tf.where(chosen, state.step, state.rank),
            state.open & ~chosen,
            value,
            parts,
            tf.tensor_scatter_nd_add(state.counts, cells, more),
            state.from_tail + tf.cast(tf.reduce_any(chosen & rules.tail, axis=1), tf.int32),
        )
        for tensor, shape in zip(after, shapes, strict=True):
            tensor.set_shape(shape)  # tf.while_loop requires constant shapes
        return after

    highest = tf.reduce_max(tf.concat([[0], tf.reshape(categories, [-1])], axis=0))
    behind = tf.where(valid, places, places + width) + position
    first = _State(
        tf.constant(0),
        behind,
        valid,
        start,
        tf.zeros([batch, width, components]),
        tf.zeros([batch, highest + 1], tf.int32),
        tf.zeros([batch], tf.int32),
    )
    shapes = _State(*(tf.TensorShape([None] * tensor.shape.rank) for tensor in first))
    final = _State(
        *tf.while_loop(
            lambda *state: state[0] < places, lambda *state: choose(_State(*state)), first, shape_invariants=shapes
        )
    )
    chosen = tf.reduce_sum(tf.cast(valid & ~final.open, tf.int32), axis=1)
    return tf.argsort(final.rank, axis=1, stable=True), tf.where(rules.cap > 0, chosen, there)

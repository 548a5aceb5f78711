"""Re-ranking of a list so that its items differ: maximal marginal relevance, and a determinantal point process."""

from __future__ import annotations

from typing import Literal, NamedTuple

import tensorflow as tf

Method = Literal["mmr", "dpp"]
# Below the first, a spread of scores is rounding error; below the second, so is the share of a variance that is left.
_FAINT, _LEFT = 1e-6, 1e-4


class _State(NamedTuple):
    """What a loop over the places of a list keeps.

    Attributes:
      step: int32. rank: int32 ``[B, C]``, the place of each candidate. open: bool ``[B, C]``, those not chosen yet.
      value: float32 ``[B, C]``: of *mmr*, the highest cosine to a chosen one; of *dpp*, the residual variance.
      parts: float32 ``[B, C, T]``: of *dpp*, the components along the chosen ones; of *mmr*, ``T`` is 0.
    """

    step: tf.Tensor
    rank: tf.Tensor
    open: tf.Tensor
    value: tf.Tensor
    parts: tf.Tensor


def diverse_order(
    scores: tf.Tensor,
    vectors: tf.Tensor,
    valid: tf.Tensor,
    places: tf.Tensor,
    diversity: tf.Tensor,
    method: Method = "dpp",
) -> tf.Tensor:
    """The order in which a list shows its candidates, chosen one by one.

    - *mmr* (Carbonell and Goldstein 1998): the next one is highest in ``(1 - d) r - d s``, where ``r`` is its score,
      scaled to 0 to 1 over the candidates, and ``s`` its highest cosine to one that is chosen already (0 at least).
    - *dpp* (Chen et al. 2018, arXiv:1709.05135): the next one adds most to the determinant of ``w_i w_j cos(i, j)``
      over the chosen ones, where ``w = exp((1 - d) z)`` and ``z`` is its score in standard deviations over the
      candidates.

    Args:
      scores: float32 ``[B, C]``, descending. vectors: float32 ``[B, C, D]`` of length 1.
      valid: bool ``[B, C]``; other candidates stay behind all valid ones.
      places: int32, how many are chosen; those that are not keep their order behind them.
      diversity: float32 ``[B]``, d, from 0 to 1. A row of 0 keeps its order.

    Returns:
      int32 ``[B, C]``, positions.
    """
    batch, width = tf.unstack(tf.shape(scores))
    position = tf.tile(tf.range(width)[tf.newaxis], (batch, 1))
    d = tf.clip_by_value(diversity, 0.0, 1.0)[:, tf.newaxis]
    count = tf.maximum(tf.reduce_sum(tf.cast(valid, tf.float32), axis=1, keepdims=True), 1.0)
    places = tf.minimum(places, width)
    if method == "mmr":
        least = tf.reduce_min(tf.where(valid, scores, scores.dtype.max), axis=1, keepdims=True)
        most = tf.reduce_max(tf.where(valid, scores, scores.dtype.min), axis=1, keepdims=True)
        scaled = (1.0 - d) * tf.math.divide_no_nan(scores - least, most - least)
        start = tf.zeros_like(scores)
    else:
        mean = tf.reduce_sum(tf.where(valid, scores, 0.0), axis=1, keepdims=True) / count
        spread = tf.sqrt(tf.reduce_sum(tf.where(valid, (scores - mean) ** 2, 0.0), axis=1, keepdims=True) / count)
        scaled = tf.exp((1.0 - d) * tf.where(spread > _FAINT, (scores - mean) / tf.maximum(spread, _FAINT), 0.0))
        start = scaled**2

    def choose(state: _State) -> _State:
        worth = scaled - d * state.value if method == "mmr" else state.value
        best = tf.argmax(tf.where(state.open, worth, worth.dtype.min), axis=1, output_type=tf.int32)
        chosen = (position == best[:, tf.newaxis]) & state.open
        like = tf.einsum("bcd,bd->bc", vectors, tf.gather(vectors, best, batch_dims=1))
        parts, value = state.parts, state.value
        if method == "mmr":
            value = tf.maximum(value, like)
        else:
            own = tf.gather(parts, best, batch_dims=1)
            product = scaled * tf.gather(scaled, best, batch_dims=1)[:, tf.newaxis] * like
            left = tf.maximum(tf.gather(value, best, batch_dims=1), _FAINT)[:, tf.newaxis]
            part = (product - tf.einsum("bct,bt->bc", parts, own)) / tf.sqrt(left)
            now = tf.range(places) == state.step
            parts = tf.where(now, part[..., tf.newaxis], parts)
            value -= part**2
            value = tf.where(value > _LEFT * start, value, 0.0)  # ties go to the highest score
        rank = tf.where(chosen, state.step, state.rank)
        after = _State(state.step + 1, rank, state.open & ~chosen, value, parts)
        for tensor, shape in zip(after, shapes, strict=True):
            tensor.set_shape(shape)  # tf.while_loop needs shapes that do not change
        return after

    parts = tf.zeros([batch, width, 0 if method == "mmr" else places])
    behind = tf.where(valid, places, places + width) + position
    first = _State(tf.constant(0), behind, valid, start, parts)
    shapes = _State(*(tf.TensorShape([None] * tensor.shape.rank) for tensor in first))
    final = tf.while_loop(
        lambda *state: state[0] < places, lambda *state: choose(_State(*state)), first, shape_invariants=shapes
    )
    rank = tf.where(d > 0.0, final[1], position)
    return tf.argsort(rank, axis=1, stable=True)

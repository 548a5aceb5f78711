"""Retrieval objectives on top of TFRS' ``Retrieval`` task."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.layers.rows_of import rows_of


@tf.custom_gradient
def softmax_cross_entropy(targets: tf.Tensor, logits: tf.Tensor):
    """``-log softmax(logits)[target]`` of each row: int ``[R]`` and float32 ``[R, N]`` -> float32 ``[R]``.

    With deterministic operations TensorFlow's own takes a gather whose gradient adds up ``R x N`` numbers one by one,
    longer than everything else in a step. A chance below 1e-30 counts as 1e-30 in the loss; the gradient is exact.
    """
    chances = tf.nn.softmax(logits)
    at = _entries(targets)

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
        return None, tf.tensor_scatter_nd_sub(chances * upstream[:, tf.newaxis], at, upstream)

    return -tf.math.log(tf.maximum(tf.gather_nd(chances, at), 1e-30)), gradient


@tf.custom_gradient
def catalogue_cross_entropy(targets: tf.Tensor, queries: tf.Tensor, candidates: tf.Tensor, bias: tf.Tensor):
    """:func:`softmax_cross_entropy` of ``queries @ candidates^T + bias``, without a gradient to the bias.

    The gradient of the logits, softmax minus one-hot, is never built: its two parts are multiplied out one by one, so
    that a step passes over ``R x N`` numbers as seldom as can be.

    Args:
      targets: int ``[R]``. queries: float32 ``[R, D]``. candidates: float32 ``[N, D]``. bias: float32 ``[N]``.

    Returns:
      float32 ``[R]``.
    """
    chances = tf.nn.softmax(tf.nn.bias_add(tf.matmul(queries, candidates, transpose_b=True), bias))

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor, tf.Tensor, None]:
        weighted = queries * upstream[:, tf.newaxis]
        of_queries = tf.matmul(chances, candidates) - tf.gather(candidates, targets)
        of_candidates = tf.matmul(chances, weighted, transpose_a=True) - tf.math.unsorted_segment_sum(
            weighted, targets, tf.shape(candidates)[0]
        )
        return None, of_queries * upstream[:, tf.newaxis], of_candidates, None

    return -tf.math.log(tf.maximum(tf.gather_nd(chances, _entries(targets)), 1e-30)), gradient


def _entries(targets: tf.Tensor) -> tf.Tensor:
    """Row and column of each row's target, int32 ``[R, 2]``."""
    return tf.stack([tf.range(tf.shape(targets)[0]), tf.cast(targets, tf.int32)], axis=1)


def mean_loss(losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """The loss of a batch: ``sum_r w_r l_r / sum_r w_r``, and 0 for an empty batch or weights that sum to 0.

    Args:
      losses: float32 ``[R]``, of each example.
      weights: float32 ``[R]``, at least 0; by default all examples count the same.
    """
    if weights is None:
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32))
    weights = tf.cast(weights, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def _constant(value: tf.Tensor, name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, name=name)


class CatalogueRetrieval(tfrs.tasks.Retrieval):
    """TFRS ``Retrieval`` with the whole catalogue as candidates: an exact softmax, no sampling, nothing to correct.

    The stock task labels query i with candidate i; here any number of queries point at rows of one candidate matrix,
    which is what lets every position of a history be a training example without encoding its target again.

    Args:
      candidate_mask: bool ``[N]``; candidates that count as negatives. Leaving cold items out keeps the text part from
        learning that what nobody has met yet is bad.
    """

    def __init__(self, candidate_mask: tf.Tensor | None = None, **kwargs) -> None:
        super().__init__(loss=softmax_cross_entropy, **kwargs)
        # A variable, as are the constants of SampledRetrieval: a model that is loaded has them from its weights.
        self.candidate_bias = None
        if candidate_mask is not None:
            self.candidate_bias = _constant(tf.where(candidate_mask, 0.0, -1e9), "candidate_bias")
        self.built = True

    def call(
        self,
        query_embeddings: tf.Tensor,
        candidate_embeddings: tf.Tensor,
        targets: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """:func:`mean_loss` of :meth:`per_example`, with ``sample_weight`` float32 ``[R]``."""
        return mean_loss(self.per_example(query_embeddings, candidate_embeddings, targets), sample_weight)

    def per_example(
        self, query_embeddings: tf.Tensor, candidate_embeddings: tf.Tensor, targets: tf.Tensor
    ) -> tf.Tensor:
        """Cross-entropy of each query at its target, float32 ``[R]``.

        Args:
          query_embeddings: ``[R, D]``. candidate_embeddings: ``[N, D]``. targets: int ``[R]``, rows of the candidates.
        """
        queries, candidates = tf.cast(query_embeddings, tf.float32), tf.cast(candidate_embeddings, tf.float32)
        # No variable: functions with gradients of their own take tensors.
        none = tf.zeros_like(candidates[:, 0])
        bias = none if self.candidate_bias is None else tf.convert_to_tensor(self.candidate_bias)
        return self._noted(catalogue_cross_entropy(targets, queries, candidates, bias))

    def per_example_of_logits(self, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """:meth:`per_example` for scores that are no single product, ``[R, N]``."""
        logits = tf.cast(logits, tf.float32)
        if self.candidate_bias is not None:
            logits = tf.nn.bias_add(logits, self.candidate_bias)
        return self._noted(self._loss(targets, logits))

    def _noted(self, losses: tf.Tensor) -> tf.Tensor:
        """The losses, after the metrics of the task have seen them."""
        for metric in self._loss_metrics:
            metric.update_state(losses)
        return losses


class SampledRetrieval(tfrs.tasks.Retrieval):
    """TFRS ``Retrieval`` with in-batch positives plus shared sampled negatives, and log-q correction of set strength.

    :meth:`draw` comes first: only the vectors of targets and drawn items are needed.

    Args:
      sampling_probabilities: float32 ``[N]``, the chance of an item to be drawn as a negative; sums to 1.
      n_negatives: drawn per step, with replacement.
      log_q: strength s of the correction ``logit - s log q``; 0 is none, 1 the full one (Yi et al. 2019).
      seed: of the draw, which also depends on a saved count of steps.
    """

    def __init__(self, sampling_probabilities: tf.Tensor, n_negatives: int, log_q: float, seed: int, **kwargs) -> None:
        each = tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction=tf.keras.losses.Reduction.NONE)
        super().__init__(loss=each, remove_accidental_hits=True, **kwargs)
        self.cumulative = _constant(tf.cumsum(tf.cast(sampling_probabilities, tf.float64)), "cumulative")
        # TFRS clips chances to 1e-6 and above. A common factor cancels in the softmax, so the largest may be 1.
        largest = tf.maximum(tf.reduce_max(sampling_probabilities), 1e-30)
        self.probabilities = _constant(tf.cast(sampling_probabilities / largest, tf.float32), "probabilities")
        self.n_negatives = n_negatives
        self.log_q = log_q
        self.seed = seed
        self.steps = self.add_weight(name="steps", shape=(), dtype=tf.int64, initializer="zeros", trainable=False)
        self.built = True

    def draw(self) -> tf.Tensor:
        """The negatives of the next step, int32 ``[n_negatives]``, by their probabilities."""
        step = self.steps.assign_add(1)
        uniform = tf.random.stateless_uniform(
            (self.n_negatives,), tf.stack([tf.constant(self.seed, tf.int64), step]), dtype=tf.float64
        )
        last = tf.shape(self.cumulative)[0] - 1
        cumulative = tf.convert_to_tensor(self.cumulative)
        return tf.minimum(tf.searchsorted(cumulative, uniform * cumulative[-1], side="right"), last)

    def draw_evenly(self) -> tf.Tensor:
        """A uniform sample of all items, int32 ``[n_negatives]``; the same one until the next :meth:`draw`."""
        seed = tf.stack([tf.constant(self.seed + 1, tf.int64), tf.convert_to_tensor(self.steps)])
        return tf.random.stateless_uniform(
            (self.n_negatives,), seed, maxval=tf.shape(self.cumulative)[0], dtype=tf.int32
        )

    def call(
        self,
        query_embeddings: tf.Tensor,
        candidate_embeddings: tf.Tensor,
        candidate_ids: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """:func:`mean_loss` of :meth:`per_example`, with ``sample_weight`` float32 ``[R]``."""
        return mean_loss(self.per_example(query_embeddings, candidate_embeddings, candidate_ids), sample_weight)

    def per_example(
        self, query_embeddings: tf.Tensor, candidate_embeddings: tf.Tensor, candidate_ids: tf.Tensor
    ) -> tf.Tensor:
        """Cross-entropy of each query, float32 ``[R]``; candidates equal to its own target are masked by TFRS.

        Args:
          query_embeddings: ``[R, D]``.
          candidate_embeddings: ``[R + n_negatives, D]``, the target of each query, then what was drawn.
          candidate_ids: int32 ``[R + n_negatives]``, the items that these are.
        """
        # An in-batch candidate appears in proportion to its share of events, as a sampled one does.
        chance = rows_of(self.probabilities, candidate_ids)
        return _loss_of_tfrs()(
            self,
            tf.cast(query_embeddings, tf.float32),
            tf.cast(candidate_embeddings, tf.float32),
            candidate_sampling_probability=chance**self.log_q,
            candidate_ids=candidate_ids,
            compute_metrics=False,
        )


@functools.cache
def _loss_of_tfrs() -> Callable[..., tf.Tensor]:
    """The ``call`` of TFRS' task, which needs AutoGraph, for training steps that are traced without it."""
    return tf.autograph.to_graph(tfrs.tasks.Retrieval.call)

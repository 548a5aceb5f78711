"""Retrieval objectives on top of TFRS' ``Retrieval`` task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.layers.rows_of import rows_of


@tf.custom_gradient
def softmax_cross_entropy(targets: tf.Tensor, logits: tf.Tensor):
    """Returns ``-log softmax(logits)[target]`` of each row, float32 ``[R]``, for int ``[R]`` and float32 ``[R, N]``.

    With deterministic operations, TensorFlow's own function uses a gather whose gradient adds up ``R x N`` numbers one
    by one, which takes longer than everything else in a step. Probabilities below 1e-30 count as 1e-30 in the loss; the
    gradient is exact.
    """
    chances = tf.nn.softmax(logits)
    at = _entries(targets)

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
        return None, tf.tensor_scatter_nd_sub(chances * upstream[:, tf.newaxis], at, upstream)

    return -tf.math.log(tf.maximum(tf.gather_nd(chances, at), 1e-30)), gradient


@tf.custom_gradient
def catalogue_cross_entropy(targets: tf.Tensor, queries: tf.Tensor, candidates: tf.Tensor, bias: tf.Tensor):
    """Returns :func:`softmax_cross_entropy` of ``queries @ candidates^T + bias``, without a gradient to the bias.

    The gradient of the logits, softmax minus one-hot, is never built: its two parts are multiplied separately, so that
    a step makes as few passes over ``R x N`` numbers as possible.

    Args:
      targets: Int ``[R]``, rows of the candidates.
      queries: Float32 ``[R, D]``.
      candidates: Float32 ``[N, D]``.
      bias: Float32 ``[N]``.

    Returns:
      Float32 ``[R]``.
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
    """Returns row and column of each row's target, int32 ``[R, 2]``."""
    return tf.stack([tf.range(tf.shape(targets)[0]), tf.cast(targets, tf.int32)], axis=1)


def mean_loss(losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Returns the loss of a batch: ``sum_r w_r l_r / sum_r w_r``, or 0 for an empty batch or weights that sum to 0.

    Args:
      losses: Float32 ``[R]``, the loss of each example.
      weights: Float32 ``[R]``, at least 0; by default all examples have the same weight.
    """
    if weights is None:
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32))
    weights = tf.cast(weights, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def _constant(value: tf.Tensor, name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, name=name)


class CatalogueRetrieval(tfrs.tasks.Retrieval):
    """TFRS ``Retrieval`` with the whole catalogue as candidates: an exact softmax, without sampling and correction.

    TFRS' own task labels query i with candidate i. Here, any number of queries refer to rows of one candidate matrix,
    so that every position of a history can be a training example without encoding its target again.

    Args:
      candidate_mask: Bool ``[N]``, the candidates that count as negatives. Excluding cold items prevents the text part
        from learning that items without events are bad.
      name: The name of the layer.
      loss_metrics: Keras metrics that are updated with the loss of each example.
    """

    def __init__(
        self,
        candidate_mask: tf.Tensor | None = None,
        name: str | None = None,
        loss_metrics: Sequence[tf.keras.metrics.Metric] = (),
    ) -> None:
        super().__init__(loss=softmax_cross_entropy, loss_metrics=list(loss_metrics), name=name)
        # A variable, like the constants of SampledRetrieval: a loaded model restores it from its weights.
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
        """Returns :func:`mean_loss` of :meth:`per_example`, with ``sample_weight`` float32 ``[R]``."""
        return mean_loss(self.per_example(query_embeddings, candidate_embeddings, targets), sample_weight)

    def per_example(
        self, query_embeddings: tf.Tensor, candidate_embeddings: tf.Tensor, targets: tf.Tensor
    ) -> tf.Tensor:
        """Returns the cross-entropy of each query at its target, float32 ``[R]``.

        Args:
          query_embeddings: ``[R, D]``.
          candidate_embeddings: ``[N, D]``.
          targets: Int ``[R]``, rows of the candidates.
        """
        queries, candidates = tf.cast(query_embeddings, tf.float32), tf.cast(candidate_embeddings, tf.float32)
        # Not a variable: functions with custom gradients take tensors.
        none = tf.zeros_like(candidates[:, 0])
        bias = none if self.candidate_bias is None else tf.convert_to_tensor(self.candidate_bias)
        return self._noted(catalogue_cross_entropy(targets, queries, candidates, bias))

    def per_example_of_logits(self, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Returns :meth:`per_example` for scores ``[R, N]`` that are not a single matrix product."""
        logits = tf.cast(logits, tf.float32)
        if self.candidate_bias is not None:
            logits = tf.nn.bias_add(logits, self.candidate_bias)
        return self._noted(self._loss(targets, logits))

    def _noted(self, losses: tf.Tensor) -> tf.Tensor:
        """Updates the metrics of the task with the losses, and returns the losses."""
        for metric in self._loss_metrics:
            metric.update_state(losses)
        return losses


class SampledRetrieval(tfrs.tasks.Retrieval):
    """TFRS ``Retrieval`` with in-batch positives, shared sampled negatives, and log-q correction of given strength.

    Call :meth:`draw` first: only the vectors of the targets and the drawn items are needed.

    Args:
      sampling_probabilities: Float32 ``[N]``, the probability that an item is drawn as a negative; sums to 1.
      n_negatives: The number of negatives per step, drawn with replacement.
      log_q: The strength s of the correction ``logit - s log q``; 0 is none, 1 the full one (Yi et al. 2019).
      seed: The seed of the draw, which also depends on a saved count of steps.
    """

    def __init__(self, sampling_probabilities: tf.Tensor, n_negatives: int, log_q: float, seed: int, **kwargs) -> None:
        each = tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction=tf.keras.losses.Reduction.NONE)
        super().__init__(loss=each, remove_accidental_hits=True, **kwargs)
        self.cumulative = _constant(tf.cumsum(tf.cast(sampling_probabilities, tf.float64)), "cumulative")
        # TFRS clips probabilities to at least 1e-6. A common factor cancels in the softmax, so the largest may be 1.
        largest = tf.maximum(tf.reduce_max(sampling_probabilities), 1e-30)
        self.probabilities = _constant(tf.cast(sampling_probabilities / largest, tf.float32), "probabilities")
        self.n_negatives = n_negatives
        self.log_q = log_q
        self.seed = seed
        self.steps = self.add_weight(name="steps", shape=(), dtype=tf.int64, initializer="zeros", trainable=False)
        self.built = True

    def draw(self) -> tf.Tensor:
        """Draws the negatives of the next step by their probabilities, int32 ``[n_negatives]``."""
        step = self.steps.assign_add(1)
        uniform = tf.random.stateless_uniform(
            (self.n_negatives,), tf.stack([tf.constant(self.seed, tf.int64), step]), dtype=tf.float64
        )
        last = tf.shape(self.cumulative)[0] - 1
        cumulative = tf.convert_to_tensor(self.cumulative)
        return tf.minimum(tf.searchsorted(cumulative, uniform * cumulative[-1], side="right"), last)

    def draw_evenly(self) -> tf.Tensor:
        """Draws a uniform sample of all items, int32 ``[n_negatives]``; it is the same until the next :meth:`draw`."""
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
        """Returns :func:`mean_loss` of :meth:`per_example`, with ``sample_weight`` float32 ``[R]``."""
        return mean_loss(self.per_example(query_embeddings, candidate_embeddings, candidate_ids), sample_weight)

    def per_example(
        self, query_embeddings: tf.Tensor, candidate_embeddings: tf.Tensor, candidate_ids: tf.Tensor
    ) -> tf.Tensor:
        """Returns the cross-entropy of each query, float32 ``[R]``; TFRS masks candidates equal to the query's target.

        Args:
          query_embeddings: ``[R, D]``.
          candidate_embeddings: ``[R + n_negatives, D]``, the target of each query, followed by the drawn items.
          candidate_ids: Int32 ``[R + n_negatives]``, the items of the candidates.
        """
        # An in-batch candidate occurs in proportion to its share of events, like a sampled one.
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
    """Returns the ``call`` of TFRS' task, converted by AutoGraph, for training steps that are traced without it."""
    return tf.autograph.to_graph(tfrs.tasks.Retrieval.call)

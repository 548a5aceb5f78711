"""Adversarial alignment: moves text vectors so that a classifier cannot tell them from those of another domain."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfllmrec.evaluation.alignment import distances

#: Number of training steps, and number of vectors of each domain in a step.
STEPS, BATCH = 600, 128
#: Width of the classifier's hidden layer.
HIDDEN = 64
#: Number of steps between two measurements of the distance.
MEASURED = 50
#: Weight of the penalty on the change of the vectors.
KEEP = 0.05
LEARNING_RATE = 1e-3


@tf.custom_gradient
def reversed_gradient(values: tf.Tensor, strength: tf.Tensor):
    """Returns the same values; the gradient is multiplied by ``-strength`` (Ganin et al., JMLR 2016)."""
    return tf.identity(values), lambda upstream: (-strength * upstream, None)


def adversarial(vectors: np.ndarray, onto: np.ndarray, seed: int = 42) -> np.ndarray:
    """Returns ``v - mean + (v - mean) A + b + mean_onto``, with A and b trained so that a classifier confuses domains.

    A classifier with one hidden layer learns to tell the result from ``onto``. A and b are trained with its reversed
    gradient, whose strength rises from 0 to 1, and with a penalty on the change (Ganin et al., "Domain-Adversarial
    Training of Neural Networks", JMLR 2016). CORAL only matches means and covariances; this method also detects other
    differences, but has no closed form. The result is the state with the smallest maximum mean discrepancy of those
    measured during training.

    Args:
      vectors: Float ``[N, D]``; rows of zeros are items without text and stay zero.
      onto: Float ``[M, D]``, vectors of the domain that a model was trained on.
      seed: The seed of the classifier's weights and of the training batches.

    Returns:
      Float32 ``[N, D]``.
    """
    known, trained = np.any(vectors != 0, axis=1), onto[np.any(onto != 0, axis=1)].astype(np.float32)
    out = np.zeros(vectors.shape, np.float32)
    if not known.any() or not len(trained):
        return out
    mean, size = trained.mean(axis=0), max(float(trained.std()), 1e-6)
    theirs = (trained - mean) / size
    own = vectors[known].astype(np.float32)
    own = (own - own.mean(axis=0)) / size
    rng, width = np.random.default_rng(seed), own.shape[1]
    change, shift = (tf.Variable(tf.zeros(shape)) for shape in ((width, width), (width,)))
    first = tf.Variable(rng.normal(0, width**-0.5, (width, HIDDEN)).astype(np.float32))
    second = tf.Variable(rng.normal(0, HIDDEN**-0.5, (HIDDEN, 1)).astype(np.float32))
    of_first, of_second = tf.Variable(tf.zeros(HIDDEN)), tf.Variable(tf.zeros(1))
    learned = [change, shift, first, second, of_first, of_second]
    optimizer = tf.keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build(learned)

    @tf.function(input_signature=[tf.TensorSpec((None, width)), tf.TensorSpec((None, width)), tf.TensorSpec(())])
    def step(ours: tf.Tensor, others: tf.Tensor, strength: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            added = tf.matmul(ours, change) + shift
            judged = tf.concat([reversed_gradient(ours + added, strength), others], axis=0)
            logits = tf.matmul(tf.nn.relu(tf.matmul(judged, first) + of_first), second) + of_second
            truth = tf.concat([tf.ones_like(ours[:, :1]), tf.zeros_like(others[:, :1])], axis=0)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(truth, logits))
            loss += KEEP * tf.reduce_mean(added**2)
        optimizer.apply_gradients(zip(tape.gradient(loss, learned), learned, strict=True))

    nearest, best = np.inf, own
    for done in range(STEPS + 1):
        if done % MEASURED == 0:
            moved = own + own @ change.numpy() + shift.numpy()
            found = distances(moved, theirs)
            if found is None:  # too few vectors to compare
                break
            if found.mmd < nearest:  # with equal means, a linear classifier (so the A-distance) hardly sees differences
                nearest, best = found.mmd, moved
        ours, others = (each[rng.integers(0, len(each), BATCH)] for each in (own, theirs))
        step(ours, others, tf.constant(2 / (1 + np.exp(-10 * done / STEPS)) - 1, tf.float32))
    out[known] = size * best + mean
    return out

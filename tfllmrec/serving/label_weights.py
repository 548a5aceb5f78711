"""Lets a request raise or lower the scores of items by their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.layers.field_decoder import plain_numbers
from tfllmrec.layers.rows_of import rows_of
from tfllmrec.layers.static_table import static_table
from tfllmrec.models.interests import Interests

SPREADS = 2.0
"""A label of weight 1 adds this many standard deviations of the request's scores to the score of each of its items."""


class Weighed(NamedTuple):
    """The labels that requests weigh.

    Attributes:
      labels: Int32 ``[B, W]``, C for none.
      weights: Float32 ``[B, W]``, the weights of the labels.
    """

    labels: tf.Tensor
    weights: tf.Tensor

    @property
    def any(self) -> tf.Tensor:
        """Whether each request weighs any label, bool ``[B]``."""
        return tf.reduce_any(self.weights != 0, axis=1)


class LabelWeights(tf.Module):
    """Reads the entries ``name=weight`` of requests, and finds the items whose scores they change.

    Args:
      found: The labels of the catalogue. ``None`` if it has none; then every entry is unreadable.
      n_items: The number N of items.
      padded: ``InterestProfile.columns`` of the same labels, to share the variable; ``None`` to create a new one.
    """

    def __init__(self, found: Interests | None, n_items: int, padded: tf.Variable | None = None) -> None:
        super().__init__(name="label_weights")
        names = [] if found is None else [str(label) for label in found.labels]
        self.n_labels = len(names)
        columns = np.full((n_items, 1), self.n_labels, np.int32) if found is None else found.columns
        self.label_of = static_table({"": self.n_labels} | {name: i for i, name in enumerate(names)}, self.n_labels)
        if padded is None:  # the last row is the padding item
            rows = np.vstack([columns, np.full_like(columns[:1], self.n_labels)]).astype(np.int32)
            padded = tf.Variable(rows, trainable=False, name="columns")
        self.columns = padded
        # The items of label c are items[ends[c]:ends[c + 1]]; C, the padding label, has none.
        item, column = np.nonzero(columns < self.n_labels)
        order = np.argsort(columns[item, column], kind="stable")
        counts = np.bincount(columns[item, column], minlength=self.n_labels + 1)
        self.ends = tf.constant(np.cumsum([0, *counts]), tf.int32)
        self.items = tf.Variable(item[order].astype(np.int32), trainable=False, name="items")

    def read(self, entries: tf.Tensor) -> tuple[Weighed, tf.Tensor]:
        """Reads the labels and weights of entries, and counts the unreadable entries.

        Weights are clipped to -1 to 1, and so is the sum of the weights of a label that is given several times. An
        entry is unreadable if no label has its name, or if its weight is not a number. Blanks around names and weights
        are ignored.

        Args:
          entries: String ``[B, W]``, padded with ``""``.

        Returns:
          The weighed labels, each once per row, in ascending order of their indices; and the number of unreadable
          entries, int32 ``[B]``.
        """
        names, numbers = (
            tf.strings.strip(tf.strings.regex_replace(entries, pattern, ""))
            for pattern in (r"(?s)=[^=]*$", r"(?s)^.*=")
        )
        labels, weights = self.label_of.lookup(names), tf.cast(plain_numbers(numbers), tf.float32)
        read = (labels < self.n_labels) & tf.math.is_finite(weights)
        unread = tf.reduce_sum(tf.cast((entries != "") & ~read, tf.int32), axis=1)
        weights = tf.where(read, tf.clip_by_value(weights, -1.0, 1.0), 0.0)
        return self._summed(tf.where(read, labels, self.n_labels), weights), unread

    def _summed(self, labels: tf.Tensor, weights: tf.Tensor) -> Weighed:
        """Returns each label of a row once, with the clipped sum of its weights."""
        batch, width = tf.unstack(tf.shape(labels))
        order = tf.argsort(labels, axis=1, stable=True)
        labels, weights = (tf.gather(values, order, batch_dims=1) for values in (labels, weights))
        first = labels != tf.pad(labels, ((0, 0), (1, 0)), constant_values=-1)[:, :width]
        run = tf.cumsum(tf.cast(first, tf.int32), axis=1) - 1 + tf.range(batch)[:, tf.newaxis] * width
        with tf.device("CPU:0"):  # on GPUs, these sums are not deterministic
            sums = tf.math.unsorted_segment_sum(weights, run, batch * width)
        weights = tf.where(first, tf.clip_by_value(tf.gather(sums, run), -1.0, 1.0), 0.0)
        return Weighed(tf.where(weights != 0, labels, self.n_labels), weights)

    def pairs(self, weighed: Weighed, spread: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the items of the labels, int32 ``[B, S]``, and the amounts added to their scores, float32 ``[B, S]``.

        Args:
          weighed: The labels and weights of the requests.
          spread: Float32 ``[B]``, the standard deviation of the scores of each request.
        """
        batch, width = tf.unstack(tf.shape(weighed.labels))
        labels = tf.reshape(weighed.labels, [-1])
        start, end = rows_of(self.ends, labels), rows_of(self.ends, labels + 1)
        added = SPREADS * tf.reshape(weighed.weights * spread[:, tf.newaxis], [-1])
        items = rows_of(self.items, tf.ragged.range(start, end).flat_values)
        lengths = tf.reduce_sum(tf.reshape(end - start, (batch, width)), axis=1)
        # Padding adds 0 to the first item.
        return tuple(
            tf.RaggedTensor.from_row_lengths(values, lengths, validate=False).to_tensor(0)
            for values in (items, tf.repeat(added, end - start))
        )

    def added(self, weighed: Weighed, items: tf.Tensor) -> tf.Tensor:
        """Returns the number of standard deviations to add to the score of each item, float32 ``[B, M]``.

        Args:
          weighed: The labels and weights of the requests.
          items: Int32 ``[B, M]``; N for no item.
        """
        has = rows_of(self.columns, items)[..., tf.newaxis] == weighed.labels[:, tf.newaxis, tf.newaxis]
        has = tf.cast(tf.reduce_any(has, axis=2), tf.float32)  # [B, M, W]
        return SPREADS * tf.einsum("bmw,bw->bm", has, weighed.weights)

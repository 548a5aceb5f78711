"""Training sequences as ``tf.data`` batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfllmrec.data.queries import Ragged
from tfllmrec.data.schema import padding_of
from tfllmrec.data.splits import Split

BUCKET = 16  # batches per bucket, whose windows are sorted by length: less padding, order still random


class Texts(Protocol):
    """A store of text vectors, such as :class:`tfllmrec.text.user_texts.UserTexts`."""

    @property
    def table(self) -> np.ndarray:
        """Float32 ``[U + 1, width]``: one vector for each of U texts; row 0 is NaN and stands for no text."""

    def codes(self, texts: np.ndarray) -> np.ndarray:
        """Returns the table row of each text, int32 of the same shape; texts missing from the table are added first."""


@dataclass(frozen=True)
class Sequences:
    """The events of each training user, and which of them are held out for training the gates.

    Attributes:
      items: Int64 item indices, oldest first.
      held_out: Bool, one per item: whether only the gates may be trained on it as a target.
      n_items: The number of items N, also used as the padding value.
      fields: Encoded values by key: for ``event.NAME`` a Ragged with one value per item, for ``user.NAME`` an array
        ``[U]`` or ``[U, width]``.
      requests: Names of the event fields that belong to a request; their values for the target are known when it is
        predicted.
      weights: Float32, the weight of each event according to its kind; ``None`` if all events have weight 1. Events
        with a weight of 0 or less are part of histories, but are not targets.
    """

    items: Ragged
    held_out: Ragged
    n_items: int
    fields: Mapping[str, Ragged | np.ndarray] = field(default_factory=dict)
    requests: Sequence[str] = ()
    weights: Ragged | None = None

    @classmethod
    def from_split(cls, split: Split, gate_holdout: float, seed: int) -> Sequences:
        """Returns the training histories of a split, with the last events of a share of the users held out."""
        queries = split.train_queries()
        held_out = hold_out(queries.history, gate_holdout, seed, queries.weights)
        requests = [field.name for field in split.schema.of("request")]
        fields = {key: values for key, values in queries.fields.items() if not key.startswith("request.")}
        return cls(queries.history, held_out, split.dataset.n_items, fields, requests, queries.weights)

    @property
    def keys(self) -> list[str]:
        """The keys of all fields that :func:`training_batches` can provide."""
        return [*self.fields, *(f"request.{name}" for name in self.requests)]

    def values_of(self, key: str) -> np.ndarray:
        """Returns the flat values of a field: one per item for ``event.NAME`` and ``request.NAME``, one per row for
        ``user.NAME``.

        Raises:
          KeyError: There is no such field.
        """
        owner, _, name = key.partition(".")
        values = self.fields[f"event.{name}" if owner == "request" and name in self.requests else key]
        return values.values if isinstance(values, Ragged) else values

    def take(self, rows: np.ndarray) -> Sequences:
        """Returns the users at ``rows``, in that order; ``rows`` is int ``[R]`` or a bool ``[U]`` mask."""
        return replace(
            self,
            items=self.items.take(rows),
            held_out=self.held_out.take(rows),
            fields={k: v.take(rows) if isinstance(v, Ragged) else v[rows] for k, v in self.fields.items()},
            weights=None if self.weights is None else self.weights.take(rows),
        )

    def choices(self, held_out: bool) -> Ragged:
        """Returns the items that each user chose, without rejections and impressions.

        Args:
          held_out: Whether to include the held-out events.
        """
        kept = np.ones(len(self.items.values), bool) if held_out else ~self.held_out.values
        if self.weights is not None:
            kept &= self.weights.values > 0
        return self.items.where(kept)


def hold_out(items: Ragged, share: float, seed: int, weights: Ragged | None = None) -> Ragged:
    """Marks the last events of a random share of the users as held out: a bool for each event.

    For each selected user the last tenth of the choices is marked, rounded down but at least one, together with all
    other events after the last unmarked choice. Users with fewer than two choices are never selected, because nothing
    comes before their only choice. If no user is drawn, the one with the most choices is selected.

    Args:
      items: The histories.
      share: Share of the users to select.
      seed: Seed of the selection.
      weights: Weights of the events, as in :class:`Sequences`. Events with a weight above 0 are choices; by default
        all.
    """
    generator = np.random.default_rng(seed)
    is_choice = np.ones(len(items.values), bool) if weights is None else weights.values > 0
    up_to = np.concatenate([[0], np.cumsum(is_choice)])
    n_choices = np.diff(up_to[items.offsets])
    taken = (generator.random(len(items)) < share) & (n_choices >= 2)
    if not taken.any() and (n_choices >= 2).any():
        taken[np.argmax(n_choices)] = True
    n_held = np.where(taken, np.maximum(n_choices // 10, 1), 0)
    # The number of the user's choices from each event on: 1 for the last choice, 0 for the events after it.
    from_end = np.repeat(up_to[items.offsets[1:]], items.lengths) - up_to[1:] + is_choice
    held = np.repeat(n_held, items.lengths)
    return Ragged((held > 0) & (from_end <= held), items.offsets)


def windows(lengths: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Cuts histories into windows and returns them as int64 ``[W, 3]``: row, first event, end.

    The inputs of a window [first, end) are the events first to end - 2, at most ``size`` of them; the target of each
    input is the event after it. The newest window always ends with the newest event. If a history is longer than one
    window, its second window ends at a random position, so that over the epochs each event is predicted from contexts
    of all lengths; the first two windows then share some targets.
    """
    result = []
    for row in np.flatnonzero(lengths >= 2):
        end = int(lengths[row])
        step = int(generator.integers(1, size + 1)) if end - 1 > size else size
        while end >= 2:
            result.append((row, max(end - 1 - size, 0), end))
            end -= step
            step = size
    return np.asarray(result, np.int64).reshape(-1, 3)


def training_batches(
    sequences: Sequences,
    batch_size: int,
    length: int,
    seed: int,
    epochs: int,
    first_epoch: int = 0,
    keys: Iterable[str] | None = None,
    texts: Texts | None = None,
) -> tf.data.Dataset:
    """Returns the batches for ``Hybrid.fit``: those of all epochs, one epoch after another, each in a new order.

        batches = training_batches(sequences, 128, 50, seed=42, epochs=20)
        model.fit(batches, epochs=20, steps_per_epoch=len(batches) // 20)

    The windows of all epochs are drawn immediately and take 24 bytes each; the content of a batch is gathered in the
    TensorFlow graph when it is needed. The data set can therefore be sharded, and be read by several processes.

    Args:
      sequences: The histories, from :meth:`Sequences.from_split`.
      batch_size: Number of windows in a step.
      length: Length L of the longest window.
      seed: Random seed. A batch depends only on seed and epoch, so that a resumed run continues with the right batches.
      epochs: Total number of epochs.
      first_epoch: Number of completed epochs, which are left out.
      keys: Keys of the fields that the model reads; by default all.
      texts: Provides the vectors of all string fields among ``keys``, for a model that reads them. Only a code for each
        event and a vector for each distinct text are stored. By default texts stay strings.

    Yields:
      ``history`` int32 ``[B, L]``, padded with N; ``targets`` int32 ``[B, L]``, the event after each history event;
      ``held_out`` bool ``[B, L]``, whether only the gates are trained on the target; if events have weights,
      ``target_weights`` float32 ``[B, L]``; and the fields: ``event.NAME`` ``[B, L]`` of each history event,
      ``request.NAME`` ``[B, L]`` of each target, ``user.NAME`` ``[B]``. Fields whose values have several numbers, such
      as the vector of a text, have one more dimension.
    """
    drawn = [
        cuts
        for epoch in range(first_epoch, epochs)
        for cuts in epoch_windows(sequences.items.lengths, batch_size, length, seed, epoch)
    ]
    windows_of_batch = tf.data.Dataset.from_tensor_slices(
        tf.RaggedTensor.from_row_lengths(np.concatenate([np.empty((0, 3), np.int64), *drawn]), list(map(len, drawn)))
    )
    keys = sequences.keys if keys is None else list(keys)
    items, offsets = tf.constant(sequences.items.values, tf.int32), tf.constant(sequences.items.offsets)
    held_out, values_of = tf.constant(sequences.held_out.values), {key: sequences.values_of(key) for key in keys}
    coded = [key for key in keys if texts is not None and values_of[key].dtype == object]
    if texts is not None:
        values_of |= {key: texts.codes(values_of[key]) for key in coded}
    table = tf.constant(texts.table) if texts is not None and coded else None
    fields = {key: tf.constant(values) for key, values in values_of.items()}
    weights = None if sequences.weights is None else tf.constant(np.maximum(sequences.weights.values, 0.0))
    padding = {key: padding_of(values.dtype) for key, values in values_of.items()}

    def gathered(cuts: tf.Tensor) -> dict[str, tf.Tensor]:
        position = cuts[:, 1:2] + tf.range(tf.reduce_max(cuts[:, 2] - cuts[:, 1]) - 1)
        inside = position < cuts[:, 2:] - 1
        at = tf.where(inside, tf.gather(offsets, cuts[:, 0])[:, tf.newaxis] + position, 0)
        target = tf.where(inside, at + 1, 0)
        batch = {
            "history": tf.where(inside, tf.gather(items, at), sequences.n_items),
            "targets": tf.where(inside, tf.gather(items, target), sequences.n_items),
            "held_out": inside & tf.gather(held_out, target),
        }
        if weights is not None:
            batch["target_weights"] = tf.where(inside, tf.gather(weights, target), 0.0)
            batch["targets"] = tf.where(batch["target_weights"] > 0, batch["targets"], sequences.n_items)
        for key, values in fields.items():
            if key.startswith("user."):
                batch[key] = tf.gather(values, cuts[:, 0])
                continue
            read = tf.gather(values, target if key.startswith("request.") else at)
            there = tf.reshape(inside, tf.concat([tf.shape(inside), [1] * (values.shape.rank - 1)], 0))
            batch[key] = tf.where(there, read, tf.constant(padding[key], read.dtype))
        return batch | {key: tf.gather(table, batch[key]) for key in coded}

    return windows_of_batch.map(gathered, num_parallel_calls=2, deterministic=True).prefetch(4)


def n_windows(lengths: np.ndarray, size: int) -> int:
    """Returns the number of windows in an epoch: as many as are needed to cover every target once."""
    return int(np.ceil(np.maximum(lengths - 1, 0) / size).sum())


def steps_per_epoch(sequences: Sequences, batch_size: int, length: int) -> int:
    """Returns the number of batches in an epoch."""
    return -(-n_windows(sequences.items.lengths, length) // batch_size)


def epoch_windows(lengths: np.ndarray, batch_size: int, length: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yields the windows of each batch of one epoch, int64 ``[B, 3]`` as returned by :func:`windows`.

    For the same histories and settings they depend only on seed and epoch, so a resumed run gets the same windows.
    """
    generator = np.random.default_rng([seed, epoch])
    cuts = windows(lengths, length, generator)
    # Random offsets make the number of windows vary between epochs; Keras needs the same number in each epoch.
    order = generator.permutation(len(cuts))[: n_windows(lengths, length)]
    for rows in like_lengths(order, (cuts[:, 2] - cuts[:, 1])[order], batch_size, generator):
        yield cuts[rows]


def like_lengths(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yields batches of rows with similar lengths. Each bucket of :data:`BUCKET` batches is sorted by length, and its
    batches are returned in random order.

    Args:
      order: Int ``[R]``, the rows, shuffled.
      lengths: Int ``[R]``, the length of each row in ``order``.
      batch_size: Number of rows in a batch.
      generator: Source of the random order of the batches.
    """
    for start in range(0, len(order), batch_size * BUCKET):
        bucket = order[start : start + batch_size * BUCKET]
        bucket = bucket[np.argsort(lengths[start : start + batch_size * BUCKET], kind="stable")]
        pieces = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        for piece in generator.permutation(len(pieces)):
            yield pieces[piece]

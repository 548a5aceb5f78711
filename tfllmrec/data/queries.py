"""A batch of queries: what is known at the time of a request, and (for evaluation) what the user did next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tfllmrec.data.schema import RATING_KEY, Field, padding_of
from tfllmrec.errors import ModelError

#: The largest number of events of a history that are used, the newest ones. It limits the memory needed for scoring.
LONGEST = 1000


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, stored flat.

    Attributes:
      values: ``[V]`` or ``[V, width]`` of any dtype, the rows one after another.
      offsets: Int64 ``[B + 1]``; row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence | np.ndarray], dtype: type | np.dtype) -> Ragged:
        """Creates a Ragged from rows, in their order; without rows it is empty."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        return cls(np.concatenate(arrays) if arrays else np.empty(0, dtype), _offsets([len(a) for a in arrays]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        i = range(len(self))[i]  # negative indices count from the end; indices out of range raise IndexError
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Int64 ``[B]``: the length of each row."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> np.ndarray:
        """Int64 ``[V]``: the row that each flat value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def check_items(self, n_items: int, kind: str) -> None:
        """Checks that all values are item indices of a catalogue.

        Args:
          n_items: Number of items in the catalogue.
          kind: The role of the items, such as ``history``, for the error message.

        Raises:
          ModelError: A value is below 0, or not below ``n_items``.
        """
        outside = (self.values < 0) | (self.values >= n_items)
        if outside.any():
            at = int(np.argmax(outside))
            raise ModelError(
                f"Expected {kind} items between 0 and {n_items - 1}, got {self.values[at]} in row "
                f"{self.row_of_value[at]}: leave unknown items out, and use a model and data with the same catalogue."
            )

    def slice(self, start: int, stop: int) -> Ragged:
        """Returns rows ``start`` to ``stop`` (exclusive), as list slicing does, without copying the values."""
        start, stop, _ = slice(start, stop).indices(len(self))
        stop = max(start, stop)
        lo, hi = self.offsets[start], self.offsets[stop]
        return Ragged(self.values[lo:hi], self.offsets[start : stop + 1] - lo)

    def take(self, rows: np.ndarray) -> Ragged:
        """Returns the rows at ``rows``, in that order; ``rows`` is int ``[R]`` or a bool ``[B]`` mask."""
        rows = np.arange(len(self))[rows]
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[flat], offsets)

    def where(self, mask: np.ndarray) -> Ragged:
        """Returns the values for which ``mask`` bool ``[V]`` is true, in the same rows."""
        return Ragged(self.values[mask], np.concatenate([[0], np.cumsum(mask)])[self.offsets])

    def last(self, length: int) -> Ragged:
        """Returns the last ``length`` values of each row; shorter rows are kept whole."""
        lengths = np.minimum(self.lengths, length)
        offsets = _offsets(lengths)
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[1:] - offsets[1:], lengths)
        return Ragged(self.values[flat], offsets)

    def padded(self, length: int, fill: float | str) -> np.ndarray:
        """Returns ``[B, length]``: the last ``length`` values of each row, left-aligned and padded with ``fill``."""
        out = np.full((len(self), length, *self.values.shape[1:]), fill, dtype=self.values.dtype)
        from_end = np.repeat(self.offsets[1:], self.lengths) - np.arange(len(self.values))  # 1 = the last one
        kept = from_end <= length
        column = np.minimum(np.repeat(self.lengths, self.lengths), length) - from_end
        out[self.row_of_value[kept], column[kept]] = self.values[kept]
        return out


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


@dataclass(frozen=True)
class Queries:
    """B queries against a catalogue of N items.

    Attributes:
      user_ids: Object ``[B]``, for reports only; no model needs to know the user.
      history: Int64 item indices, oldest first.
      exclude: Int64 item indices that must not be recommended: :attr:`had`, or nothing if re-use is the task.
      targets: Int64 item indices of what the user did next; empty rows if this is unknown (a live request).
      fields: Encoded values (:meth:`tfllmrec.data.schema.Field.encode`) by the field's key. ``event.NAME`` is a Ragged
        with one value for each history entry. ``request.NAME`` and ``user.NAME`` are arrays ``[B]`` or ``[B, width]``;
        the values of ``request.NAME`` are those of the request whose first target came next. ``event.rating`` is always
        present, NaN if the event has none.
      weights: Float32, the weight of each history entry according to its kind and dwell time, see
        :meth:`tfllmrec.data.schema.Schema.event_weights`; ``None`` if all entries have weight 1.
      candidates: Bool ``[N]``, the items that may be recommended, such as those of one domain in joined data; ``None``
        for all.

    Raises:
      ValueError: The parts do not have the same number of rows, or an event field does not have one value for each
        event.
    """

    user_ids: np.ndarray
    history: Ragged
    exclude: Ragged
    targets: Ragged
    fields: Mapping[str, Ragged | np.ndarray]
    weights: Ragged | None = None
    candidates: np.ndarray | None = None

    def __post_init__(self) -> None:
        parts = {"history": self.history, "exclude": self.exclude, "targets": self.targets, **self.fields}
        if self.weights is not None:
            parts["weights"] = self.weights
        for name, part in parts.items():
            if len(part) != len(self.user_ids):
                raise ValueError(f"Queries: {len(self.user_ids)} user ids but {len(part)} rows of {name}.")
        for key, field in self.fields.items():
            if isinstance(field, Ragged) and not np.array_equal(field.offsets, self.history.offsets):
                raise ValueError(f"Queries: {key} needs one entry for each history entry.")

    @classmethod
    def from_histories(
        cls,
        histories: Sequence[Sequence[int] | np.ndarray],
        ratings: Sequence[Sequence[float] | np.ndarray] | None = None,
        exclude: Sequence[Sequence[int] | np.ndarray] | None = None,
        targets: Sequence[Sequence[int] | np.ndarray] | None = None,
        user_ids: Sequence[str] | None = None,
        fields: Mapping[str, Ragged | np.ndarray] | None = None,
    ) -> Queries:
        """Creates queries from lists; ``exclude=None`` excludes the history of each query."""
        history = Ragged.from_rows(histories, np.int64)
        n = len(history)
        marks = Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets)
        return cls(
            user_ids=np.asarray(user_ids if user_ids is not None else [""] * n, dtype=object),
            history=history,
            exclude=history if exclude is None else Ragged.from_rows(exclude, np.int64),
            targets=Ragged.from_rows(targets if targets is not None else [[]] * n, np.int64),
            fields={RATING_KEY: marks if ratings is None else Ragged.from_rows(ratings, np.float32), **(fields or {})},
        )

    @cached_property
    def choices(self) -> Ragged:
        """The history events with a weight above 0, that is, without rejections and impressions."""
        return self.history if self.weights is None else self.history.where(self.weights.values > 0)

    @property
    def had(self) -> Ragged:
        """The history events with a weight other than 0: events of weight 0, such as impressions, bar no item."""
        return self.history if self.weights is None else self.history.where(self.weights.values != 0)

    @property
    def ratings(self) -> Ragged:
        """The field ``event.rating``: float32, one value for each history entry, NaN for no rating."""
        ratings = self.fields[RATING_KEY]
        assert isinstance(ratings, Ragged)
        return ratings

    def inputs(self, n_items: int, keys: Iterable[str], length: int | None = None) -> dict[str, np.ndarray]:
        """Returns the inputs of a model.

        Args:
          n_items: The number of items N, which is also the padding value of histories.
          keys: Keys of the fields that the model reads.
          length: L, the number of newest events to use; by default the length of the longest history, at least 1.

        Returns:
          ``history`` int32 ``[B, L]``, left-aligned, and the fields of ``keys``; those of events are ``[B, L]``.

        Raises:
          KeyError: The queries lack a field.
        """
        if length is None:
            length = max(int(self.history.lengths.max(initial=1)), 1)
        inputs: dict[str, np.ndarray] = {"history": self.history.padded(length, n_items).astype(np.int32)}
        for key in keys:
            field = self.fields[key]
            if isinstance(field, Ragged):
                field = field.padded(length, padding_of(field.values.dtype))
            inputs[key] = field
        return inputs

    def with_missing(self, fields: Iterable[Field]) -> Queries:
        """Returns these queries with all of ``fields``; an absent field gets its default, or else the missing value."""
        lacking = {field.key: field.encode([""]) for field in fields if field.key not in self.fields}
        if not lacking:
            return self
        added: dict[str, Ragged | np.ndarray] = {}
        for key, value in lacking.items():
            of_events = key.startswith("event.")
            values = np.repeat(value, len(self.history.values) if of_events else len(self), axis=0)
            added[key] = Ragged(values, self.history.offsets) if of_events else values
        return replace(self, fields={**self.fields, **added})

    def renumbered(self, places: np.ndarray) -> Queries:
        """Returns the same requests for another catalogue, without events, exclusions and targets that are not in it.

        The result has no ``candidates``: a model scores all items; the caller that ranks them keeps the candidates.

        Args:
          places: Int64 ``[N]``, the index of each item in the other catalogue; -1 if it is not in it.
        """

        def of(items: Ragged) -> Ragged:
            found = Ragged(places[items.values], items.offsets)
            return found.where(found.values >= 0)

        known = places[self.history.values] >= 0
        fields = {key: v.where(known) if isinstance(v, Ragged) else v for key, v in self.fields.items()}
        weights = None if self.weights is None else self.weights.where(known)
        return Queries(self.user_ids, of(self.history), of(self.exclude), of(self.targets), fields, weights)

    def without_histories(self) -> Queries:
        """Returns the same requests by users without known events; nothing is excluded."""
        none = Ragged(self.history.values[:0], np.zeros(len(self) + 1, np.int64))
        fields = {k: Ragged(v.values[:0], none.offsets) if isinstance(v, Ragged) else v for k, v in self.fields.items()}
        weights = None if self.weights is None else Ragged(self.weights.values[:0], none.offsets)
        return replace(self, history=none, exclude=none, fields=fields, weights=weights)

    def __len__(self) -> int:
        return len(self.user_ids)

    def slice(self, start: int, stop: int) -> Queries:
        """Returns queries ``start`` to ``stop`` (exclusive)."""
        return Queries(
            self.user_ids[start:stop],
            self.history.slice(start, stop),
            self.exclude.slice(start, stop),
            self.targets.slice(start, stop),
            {k: v.slice(start, stop) if isinstance(v, Ragged) else v[start:stop] for k, v in self.fields.items()},
            None if self.weights is None else self.weights.slice(start, stop),
            self.candidates,
        )

    def take(self, rows: np.ndarray) -> Queries:
        """Returns the queries at ``rows``, in that order; ``rows`` is int ``[R]`` or a bool ``[B]`` mask."""
        rows = np.arange(len(self))[rows]
        return Queries(
            self.user_ids[rows],
            self.history.take(rows),
            self.exclude.take(rows),
            self.targets.take(rows),
            {k: v.take(rows) if isinstance(v, Ragged) else v[rows] for k, v in self.fields.items()},
            None if self.weights is None else self.weights.take(rows),
            self.candidates,
        )

    def batches(self, size: int) -> Iterator[Queries]:
        """Yields all queries in order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.slice(start, min(start + size, len(self)))

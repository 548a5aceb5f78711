"""A batch of queries: what is known when a request comes, and (for evaluation) what the person did next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, stored flat.

    Attributes:
      values: any dtype ``[V]``, the rows one after another.
      offsets: int64 ``[B + 1]``; row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence | np.ndarray], dtype: type | np.dtype) -> Ragged:
        """The rows as they come; no rows at all give an empty Ragged."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        return cls(np.concatenate(arrays) if arrays else np.empty(0, dtype), _offsets([len(a) for a in arrays]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        i = range(len(self))[i]  # negative ones count from the end, others raise IndexError
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """int64 ``[B]``."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> np.ndarray:
        """int64 ``[V]``: the row that each flat value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def slice(self, start: int, stop: int) -> Ragged:
        """Rows ``start`` to ``stop`` (exclusive), cut like a list's, without copying the values."""
        start, stop, _ = slice(start, stop).indices(len(self))
        stop = max(start, stop)
        lo, hi = self.offsets[start], self.offsets[stop]
        return Ragged(self.values[lo:hi], self.offsets[start : stop + 1] - lo)

    def take(self, rows: np.ndarray) -> Ragged:
        """The rows at ``rows``, in that order; int ``[R]``, or a bool ``[B]`` mask."""
        rows = np.arange(len(self))[rows]
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[flat], offsets)

    def padded(self, length: int, fill: float) -> np.ndarray:
        """``[B, length]``: the last ``length`` values of each row, left-aligned, then ``fill``."""
        out = np.full((len(self), length), fill, dtype=self.values.dtype)
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
      user_ids: object ``[B]``; for reports only, no model needs to know the person.
      history: int64 item indices, oldest first.
      ratings: float32, one per history entry, NaN where the event carried none.
      exclude: int64 item indices that must not come back (by default the history).
      targets: int64 item indices of what came next; empty rows when nothing is known (a live request).
    """

    user_ids: np.ndarray
    history: Ragged
    ratings: Ragged
    exclude: Ragged
    targets: Ragged

    def __post_init__(self) -> None:
        parts = {"history": self.history, "ratings": self.ratings, "exclude": self.exclude, "targets": self.targets}
        for name, part in parts.items():
            if len(part) != len(self.user_ids):
                raise ValueError(f"Queries: {len(self.user_ids)} user ids but {len(part)} rows of {name}.")
        if not np.array_equal(self.ratings.offsets, self.history.offsets):
            raise ValueError("Queries: ratings need one entry for each history entry.")

    @classmethod
    def from_histories(
        cls,
        histories: Sequence[Sequence[int] | np.ndarray],
        ratings: Sequence[Sequence[float] | np.ndarray] | None = None,
        exclude: Sequence[Sequence[int] | np.ndarray] | None = None,
        targets: Sequence[Sequence[int] | np.ndarray] | None = None,
        user_ids: Sequence[str] | None = None,
    ) -> Queries:
        """Builds queries from lists; ``exclude=None`` excludes each history."""
        history = Ragged.from_rows(histories, np.int64)
        n = len(history)
        return cls(
            user_ids=np.asarray(user_ids if user_ids is not None else [""] * n, dtype=object),
            history=history,
            ratings=Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets)
            if ratings is None
            else Ragged.from_rows(ratings, np.float32),
            exclude=history if exclude is None else Ragged.from_rows(exclude, np.int64),
            targets=Ragged.from_rows(targets if targets is not None else [[]] * n, np.int64),
        )

    def __len__(self) -> int:
        return len(self.user_ids)

    def slice(self, start: int, stop: int) -> Queries:
        """Queries ``start`` to ``stop`` (exclusive)."""
        return Queries(
            self.user_ids[start:stop],
            self.history.slice(start, stop),
            self.ratings.slice(start, stop),
            self.exclude.slice(start, stop),
            self.targets.slice(start, stop),
        )

    def take(self, rows: np.ndarray) -> Queries:
        """The queries at ``rows``, in that order; int ``[R]``, or a bool ``[B]`` mask."""
        rows = np.arange(len(self))[rows]
        return Queries(
            self.user_ids[rows],
            self.history.take(rows),
            self.ratings.take(rows),
            self.exclude.take(rows),
            self.targets.take(rows),
        )

    def batches(self, size: int) -> Iterator[Queries]:
        """All queries in order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.slice(start, min(start + size, len(self)))

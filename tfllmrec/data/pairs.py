"""Pairs of items that the same users read close together, for contrastive training of text encoders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfllmrec.data.queries import Ragged


@dataclass(frozen=True, eq=False)
class ItemPairs:
    """P pairs of different items of a catalogue of N items; each pair occurs once.

    Attributes:
      left: Int64 ``[P]``, the smaller item index of each pair; pairs are sorted by ``left``, then by ``right``.
      right: Int64 ``[P]``, the larger item index.
      count: Int64 ``[P]``, how often the two items were read together.
      weight: Float64 ``[P]``, the probability with which a pair is drawn; the weights sum to 1.
      items: Int64 ``[M]``, the items that are paired with themselves, ascending.
      n_items: The number of items N.
    """

    left: np.ndarray
    right: np.ndarray
    count: np.ndarray
    weight: np.ndarray
    items: np.ndarray
    n_items: int

    def __len__(self) -> int:
        return len(self.left)

    @cached_property
    def partners(self) -> Ragged:
        """The items that each of the N items was read together with, ascending."""
        n = self.n_items
        both = np.concatenate([_keys(self.left, self.right, n), _keys(self.right, self.left, n)])
        both.sort()
        item, partner = np.divmod(both, max(n, 1))
        return Ragged(partner, np.concatenate([[0], np.cumsum(np.bincount(item, minlength=n))]))

    def read_together(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns which items must not be negatives of each other: they were read together or are the same item.

        For a batch of pairs ``read_together(left, right)`` is also true on the diagonal, at the positives; for the
        unique items of a batch use ``read_together(items, items)``. The run time depends on the number of partners of
        ``left``, not on the total number of pairs.

        Args:
          left: Int ``[A]`` item indices, which may repeat.
          right: Int ``[B]`` item indices, which may repeat.

        Returns:
          Bool ``[A, B]``.
        """
        rows, row_of_left = np.unique(left, return_inverse=True)
        columns, column_of_right = np.unique(right, return_inverse=True)
        column_of_item = np.full(self.n_items, -1)
        column_of_item[columns] = np.arange(len(columns))
        partners = self.partners.take(rows)
        column = column_of_item[partners.values]
        together = rows[:, np.newaxis] == columns
        together[partners.row_of_value[column >= 0], column[column >= 0]] = True
        return together[np.ix_(row_of_left, column_of_right)]

    def batches(
        self, batch_size: int, seed: int, epoch: int = 0, steps: int | None = None, itself: float = 0.5
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the batches of an epoch: pairs that were read together, and items paired with themselves.

        An item paired with itself stands for two views of its text: the only positive of an item that nobody read.
        Pairs are drawn by their weights, items with equal probability, both without replacement (Efraimidis and
        Spirakis 2006: the smallest of exponential variates divided by weight); when all have been drawn, the next round
        begins. Which item of a pair is on the left is random.

        Args:
          batch_size: B.
          seed: Random seed. The same seed and epoch give the same batches.
          epoch: Number of the epoch.
          steps: Number of batches in the epoch; by default the smallest number in which each item is paired with itself
            once, or, if ``itself`` is 0, in which each pair occurs once.
          itself: The share of a batch that are items paired with themselves; 1 if there are no pairs.

        Yields:
          left, right: int64 ``[B]``, the items paired with themselves last.

        Raises:
          ValueError: A setting is out of range, or there is nothing to draw from.
        """
        own = round(batch_size * itself) if len(self) else batch_size
        pool = len(self.items) if own else len(self)
        if batch_size < 1 or not 0 <= itself <= 1 or not pool:
            raise ValueError(
                f"expected batch_size >= 1, itself in [0, 1] and something to draw from, got batch_size {batch_size}, "
                f"itself {itself}, {len(self)} pairs and {len(self.items)} items"
            )
        if steps is None:
            steps = -(-pool // (own or batch_size))
        rng = np.random.default_rng([seed, epoch])
        pairs = _drawn(self.weight, steps * (batch_size - own), rng).reshape(steps, -1)
        items = self.items[_drawn(np.ones(len(self.items)), steps * own, rng)].reshape(steps, -1)
        for pair, item in zip(pairs, items, strict=True):
            swapped = rng.random(len(pair)) < 0.5
            left, right = self.left[pair], self.right[pair]
            yield (
                np.concatenate([np.where(swapped, right, left), item]),
                np.concatenate([np.where(swapped, left, right), item]),
            )


def item_pairs(
    histories: Ragged,
    n_items: int,
    window: int = 3,
    power: float = 0.5,
    min_count: int = 1,
    readable: np.ndarray | None = None,
) -> ItemPairs:
    """Finds the items that are at most ``window`` positions apart in a user's history.

    A pair is drawn with a probability proportional to ``count * (events(left) * events(right)) ** -power``. With power
    0 a pair is drawn as often as it was read, so most pairs consist of two popular items; .5 uses the cosine of the two
    items' readers, which makes up for the low counts that tail items have by chance; 1 uses lift.

    Args:
      histories: Item indices, oldest first, one row per user.
      n_items: The number of items N.
      window: The largest distance in a history; 1 uses direct neighbours only.
      power: How much frequent items are weighted down, 0 or more.
      min_count: Pairs that were read together less often are ignored: they are neither drawn nor excluded as negatives.
        If most of the catalogue has been read together once (a window of 5 on MovieLens), a value above 1 leaves some
        negatives.
      readable: Bool ``[N]``, which items have a text; the others are in no pair. By default all.

    Returns:
      The pairs, and each readable item paired with itself.

    Raises:
      ValueError: An item index is not in [0, N), or a setting is out of range.
    """
    items = histories.values.astype(np.int64, copy=False)
    if len(items) and (items.min() < 0 or items.max() >= n_items):
        raise ValueError(f"expected item indices in [0, {n_items}), got {items.min()} to {items.max()}")
    if window < 1 or power < 0 or min_count < 1:
        raise ValueError(f"expected window >= 1, power >= 0, min_count >= 1, got {window}, {power}, {min_count}")
    readable = np.ones(n_items, bool) if readable is None else np.asarray(readable, bool)
    row = histories.row_of_value
    events = np.bincount(items, minlength=n_items)
    keys = []
    for distance in range(1, window + 1):
        a, b = items[:-distance], items[distance:]
        met = (row[:-distance] == row[distance:]) & (a != b) & readable[a] & readable[b]
        keys.append(_keys(np.minimum(a, b)[met], np.maximum(a, b)[met], n_items))
    key, count = np.unique(np.concatenate(keys), return_counts=True)
    key, count = key[count >= min_count], count[count >= min_count]
    left, right = np.divmod(key, n_items)
    weight = count * (events[left].astype(np.float64) * events[right]) ** -power
    return ItemPairs(left, right, count, weight / max(weight.sum(), 1e-300), np.flatnonzero(readable), n_items)


def _keys(first: np.ndarray, second: np.ndarray, n_items: int) -> np.ndarray:
    """Encodes each pair as one number: sorting these is many times as fast as sorting by two columns."""
    return first * n_items + second


def _drawn(weight: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Returns int64 ``[n]``: rows drawn by ``weight``; no row is drawn twice before all have been drawn."""
    rounds = []
    while n > 0:
        waiting = rng.exponential(size=len(weight)) / weight
        taken = min(n, len(weight))
        first = np.argpartition(waiting, taken - 1)[:taken]
        rounds.append(first[np.argsort(waiting[first])])
        n -= taken
    return np.concatenate(rounds) if rounds else np.empty(0, np.int64)

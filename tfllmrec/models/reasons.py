"""Writes the reasons of recommendations in words. A reason states only facts.

A reason names the event behind the term that adds the most to the score. There is one exception: if an item and its
closest event share at least two labels, and the meaning term is at least a quarter of the sum of the positive terms,
the reason is the similar text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.layers.rows_of import rows_of
from tfllmrec.models.interests import content_words

#: The terms of a score that reasons are made of.
TERMS = ("meaning", "feedback", "behaviour")
#: If another term adds more, similar text is the reason nevertheless if the meaning term is at least this share of the
#: sum of the positive terms, and at least this many labels are shared.
SUBSTANTIAL, SEVERAL = 0.25, 2
#: Largest number of labels that a reason names.
NAMED = 3
#: Largest number of labels of an item that are compared.
PER_ITEM = 12
#: Labels of more than this share of the items are never named. With fewer than :data:`FEW` items, the share is computed
#: as if there were that many.
COMMON, FEW = 0.5, 20


class Subjects(NamedTuple):
    """The labels of the items, such as categories and title words.

    Attributes:
      columns: The labels of each item as indices into ``names``, int32 ``[N + 1, P]``, padded with C; the last row is
        padding.
      names: The names of the labels, string ``[C]``; a label with the name ``""`` is never shown.
    """

    columns: tf.Tensor | tf.Variable
    names: Sequence[str]

    @classmethod
    def of_texts(cls, titles: Iterable[str], categories: Iterable[Sequence[str]]) -> Subjects:
        """Collects the categories and the title's content words of each item; very common labels are never shown."""
        places: dict[str, int] = {}
        names: list[str] = []
        rows = []
        for title, own in zip(titles, categories, strict=True):
            words = dict.fromkeys([(name.casefold(), name) for name in own] + content_words(title))
            for key, word in words:
                if key not in places:
                    places[key] = len(names)
                    names.append(word)
            rows.append(list(dict.fromkeys(places[key] for key, _ in words))[:PER_ITEM])
        columns = np.full((len(rows) + 1, PER_ITEM), len(names), np.int32)
        for row, of_item in zip(columns, rows, strict=False):
            row[: len(of_item)] = of_item
        share = np.bincount(columns.ravel(), minlength=len(names) + 1)[:-1] / max(len(rows), FEW)
        return cls(tf.constant(columns), telling(names, share))


def telling(names: Sequence[str], share: np.ndarray) -> list[str]:
    """Replaces the names of labels that too many items have by ``""``.

    Args:
      names: The names of the C labels.
      share: The share of the items with each label, float ``[C]``.
    """
    return [name if of <= COMMON else "" for name, of in zip(names, share, strict=True)]


class Reasons(tf.Module):
    """Writes the reasons inside a TensorFlow graph, so that a server returns them in the same call as the list.

    Args:
      titles: The titles of the items, string ``[N + 1]``; the last one is ``""``.
      subjects: The labels of the items.
      popular: Whether an item is among those with the most training events, bool ``[N]``.
      ordered: Whether the order of events is known. If not, no reason says that an item was chosen after another.
    """

    def __init__(self, titles: tf.Tensor, subjects: Subjects, popular: np.ndarray, ordered: bool) -> None:
        super().__init__(name="reasons")
        self.titles, self.columns = titles, subjects.columns
        self.n_items = len(popular)
        self.names = tf.constant([*subjects.names, ""])
        self.popular = tf.constant(np.append(popular, False))
        self.followed = "often chosen after " if ordered else "often chosen with "

    def __call__(
        self, explained: Mapping[str, tf.Tensor], history: tf.Tensor, ratings: tf.Tensor, items: tf.Tensor
    ) -> tf.Tensor:
        """Returns the reason for each item, string ``[B, M]``; ``""`` if no fact explains the score.

        Args:
          explained: The result of :meth:`Hybrid.explain_items`.
          history, ratings: The events and ratings of the queries, ``[B, L]``.
          items: The recommended items, int32 ``[B, M]``; N for no item.
        """
        terms = tf.stack([explained[term] for term in TERMS], axis=-1)
        behind = explained["behind"]
        there = behind >= 0
        at = tf.maximum(behind, 0)
        shape = tf.shape(at)
        flat = tf.reshape(at, [shape[0], -1])
        events = tf.where(there, tf.reshape(tf.gather(history, flat, batch_dims=1), shape), self.n_items)
        closest, rated, followed = tf.unstack(tf.gather(self.titles, events), axis=-1)
        shared, several = self._shared(items, events[..., 0])
        speaks = tf.where(there, terms, -np.inf)
        leads = tf.argmax(speaks, axis=-1, output_type=tf.int32)
        for_it = tf.reduce_sum(tf.maximum(terms, 0.0), axis=-1)
        of_text = several & (terms[..., 0] > 0) & (terms[..., 0] >= SUBSTANTIAL * for_it)
        alike = tf.where(shared != "", "similar text to " + closest + ": " + shared, "similar to " + closest)
        heard = tf.cast(tf.math.is_finite(ratings), tf.float32)
        mean = tf.math.divide_no_nan(tf.reduce_sum(tf.where(heard > 0, ratings, 0.0), 1), tf.reduce_sum(heard, 1))
        low = tf.gather(ratings, tf.maximum(behind[..., 1], 0), batch_dims=1) < mean[:, tf.newaxis]
        by_rating = tf.where(
            low, "you rated " + rated + " low and this is unlike it", "you rated " + rated + " high and this is like it"
        )
        found = tf.where(leads == 2, self.followed + followed, tf.where(leads == 1, by_rating, alike))
        found = tf.where(of_text, alike, found)
        nobody = tf.reduce_all(history >= self.n_items, axis=1, keepdims=True)
        popular = tf.where(nobody & tf.gather(self.popular, items), "popular with all users", "")
        return tf.where(tf.reduce_any(there, axis=-1), found, popular)

    def _shared(self, items: tf.Tensor, events: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the labels that each item shares with an event.

        Args:
          items: The items, int32 ``[B, M]``.
          events: The item of the event compared with each of them, int32 ``[B, M]``.

        Returns:
          The names of up to :data:`NAMED` shared labels, joined by commas, string ``[B, M]``; and whether at least
          :data:`SEVERAL` labels are shared, bool ``[B, M]``.
        """
        own, others = rows_of(self.columns, items), rows_of(self.columns, events)
        both = tf.reduce_any(own[..., tf.newaxis] == others[..., tf.newaxis, :], axis=-1)
        names = tf.gather(self.names, own)
        both &= names != ""
        named = both & (tf.cumsum(tf.cast(both, tf.int32), axis=-1) <= NAMED)
        words = tf.where(named, ", " + names, "")
        joined = tf.strings.reduce_join(words, axis=-1)
        return tf.strings.regex_replace(joined, "^, ", ""), tf.math.count_nonzero(both, axis=-1) >= SEVERAL

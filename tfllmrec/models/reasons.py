"""The reasons of recommendations, in words that say nothing but facts.

A reason names the event behind the part of a score that adds the most, with one exception: where the texts of an item
and of the closest event share two labels and the meaning term is a quarter of what speaks for the item, the reason says
so.
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
#: Where another term adds more, a shared text is the reason if the meaning term is at least this share of what speaks
#: for an item, and at least so many labels are shared.
SUBSTANTIAL, SEVERAL = 0.25, 2
#: Labels that a reason names.
NAMED = 3
#: Labels of an item that are looked at.
PER_ITEM = 12
#: A label of more than this share of the items says nothing; among fewer than :data:`FEW` items no share is known.
COMMON, FEW = 0.5, 20


class Subjects(NamedTuple):
    """What the items are about.

    Attributes:
      columns: int32 ``[N + 1, P]``, places in ``names``, padded with C; the last row is padding.
      names: string ``[C]``; ``""`` is never named.
    """

    columns: tf.Tensor | tf.Variable
    names: Sequence[str]

    @classmethod
    def of_texts(cls, titles: Iterable[str], categories: Iterable[Sequence[str]]) -> Subjects:
        """The categories of each item, and the words of its title but for those that say nothing."""
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
    """The names with ``""`` in the place of those that too many items have; ``share`` float ``[C]`` of the items."""
    return [name if of <= COMMON else "" for name, of in zip(names, share, strict=True)]


class Reasons(tf.Module):
    """Writes the reasons inside a graph, so that a server answers with them in the same call as with the list.

    Args:
      titles: string ``[N + 1]``; the last one is ``""``.
      subjects: what the items are about.
      popular: bool ``[N]``, the items with the most training events.
      ordered: whether the order of events is known; without it nothing is said to come after something else.
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
        """The reason of each item, string ``[B, M]``; ``""`` where no fact is behind a score.

        Args:
          explained: as :meth:`Hybrid.explain_items` gives it. history, ratings: of the query, ``[B, L]``.
          items: int32 ``[B, M]``; N for none.
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
        """Up to :data:`NAMED` labels of items that an event has, too, joined: string ``[B, M]``; and if several are."""
        own, others = rows_of(self.columns, items), rows_of(self.columns, events)
        both = tf.reduce_any(own[..., tf.newaxis] == others[..., tf.newaxis, :], axis=-1)
        names = tf.gather(self.names, own)
        both &= names != ""
        named = both & (tf.cumsum(tf.cast(both, tf.int32), axis=-1) <= NAMED)
        words = tf.where(named, ", " + names, "")
        joined = tf.strings.reduce_join(words, axis=-1)
        return tf.strings.regex_replace(joined, "^, ", ""), tf.math.count_nonzero(both, axis=-1) >= SEVERAL

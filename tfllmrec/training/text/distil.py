"""Distillation of a text encoder into a small tower for queries, and measures of their agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfllmrec.errors import DataError, ModelError
from tfllmrec.layers.global_state import random_state_kept
from tfllmrec.progress import show_progress
from tfllmrec.text.side_by_side import Encoder
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.student import Student
from tfllmrec.text.words import WORD
from tfllmrec.training.callbacks import StepProgress
from tfllmrec.training.fit import set_seeds
from tfllmrec.training.optimizer import WarmupCosine

ALL = "all"
_LONGEST_PHRASE = 5
_TOP = 10
# Number of texts whose scores for all items are in memory at once.
_CHUNK = 512


@dataclass(frozen=True)
class Agreement:
    """The agreement of a student with its teacher, as means over ``texts`` texts.

    Attributes:
      texts: The number of texts.
      cosine: The cosine of the two vectors of a text.
      top: The share of the teacher's top 10 items that are among the student's top 10.
      ndcg: NDCG@10 of the student's list with the teacher's list as truth: its r-th item (of 10) has the gain 11 - r.
    """

    texts: int
    cosine: float
    top: float
    ndcg: float


@dataclass(frozen=True)
class Distilled:
    """A trained student, with its agreement on texts of items that it was not trained on.

    Attributes:
      student: The student.
      report: The agreement by kind of text (``item``, ``title``, ``word``, ``phrase``) and for ``all`` texts; kinds
        without a held-out text are missing.
      held_out: Int ``[H]``, the rows of the held-out items.
    """

    student: Student
    report: dict[str, Agreement]
    held_out: np.ndarray


def short_queries(
    texts: Sequence[str], titles: Sequence[str] | None = None, *, per_item: int = 4, seed: int = 42
) -> list[tuple[str, str, int]]:
    """Cuts short queries from items' texts, which are longer than the queries that people type.

    The queries of an item are its title (if ``titles`` are given), and ``per_item`` pieces of its text, half of them
    single words, half phrases of 2 to 5 successive words, drawn with ``seed``. A word is one of
    :data:`tfllmrec.text.words.WORD`, such as a Chinese character. White space and case are unchanged.

    Returns:
      (kind, query, row of the item); each query once, with the first item that has it.
    """
    drawn = np.random.default_rng(seed)
    found: dict[str, tuple[str, str, int]] = {}
    for row, text in enumerate(texts):
        queries = [("title", titles[row])] if titles is not None else []
        spans = [match.span() for match in WORD.finditer(text)]
        for i in range(per_item if spans else 0):
            length = 1 if i % 2 == 0 else min(int(drawn.integers(2, _LONGEST_PHRASE + 1)), len(spans))
            first = int(drawn.integers(len(spans) - length + 1))
            piece = text[spans[first][0] : spans[first + length - 1][1]]
            queries.append(("word" if length == 1 else "phrase", piece))
        for kind, query in queries:
            if query.strip():
                found.setdefault(query, (kind, query, row))
    return list(found.values())


class MatchTeacher(tf.keras.losses.Loss):
    """``1 - <s, t> + w T KL(softmax(C t / T) || softmax(C s / T))``: matches the teacher's vectors and item ranking.

    The first term treats all directions alike. The second term, on similarities to items, emphasizes the directions in
    which items differ (as Tejankar et al. 2021, arXiv:2010.15577, do with anchors). The factor T keeps its gradient
    from growing as T falls.

    Args:
      items: Float32 ``[C, D]``, the teacher's vectors of items.
      weight: w.
      temperature: T.
    """

    def __init__(self, items: np.ndarray, weight: float = 1.0, temperature: float = 0.05):
        super().__init__(name="match_teacher")
        self.items, self.weight, self.temperature = tf.constant(items, tf.float32), weight, temperature

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Maps the teacher's and the student's vectors, float32 ``[B, D]``, to losses, float32 ``[B]``."""
        loss = 1.0 - tf.reduce_sum(y_true * y_pred, axis=1)
        if not self.weight:
            return loss
        wanted, got = (tf.matmul(y, self.items, transpose_b=True) / self.temperature for y in (y_true, y_pred))
        truth = tf.nn.softmax(wanted)
        divergence = tf.reduce_sum(truth * (tf.nn.log_softmax(wanted) - tf.nn.log_softmax(got)), axis=1)
        return loss + self.weight * self.temperature * divergence


class _Tower(tf.keras.Model):
    """A Keras model around a student's graph."""

    def __init__(self, text_to_vector: tf.Module):
        super().__init__(dtype="float32")
        self.text_to_vector = text_to_vector

    def call(self, texts: tf.Tensor) -> tf.Tensor:
        return self.text_to_vector(texts)


@random_state_kept()
def distil(
    teacher: Encoder,
    text_to_vector: tf.Module,
    texts: Sequence[str],
    titles: Sequence[str] | None = None,
    *,
    per_item: int = 4,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    ranking: float = 1.0,
    temperature: float = 0.05,
    candidates: int = 4096,
    held_out: float = 0.1,
    seed: int = 42,
    store: VectorStore | None = None,
) -> Distilled:
    """Trains a small tower to reproduce the teacher's vectors (Hinton et al. 2015, arXiv:1503.02531, for vectors).

    It learns from the items' texts and from short queries cut from them, see :func:`short_queries`. A share of the
    distinct texts is held out, together with all items that have them and all queries cut from them, and their vectors
    are not used in the loss. The report is on the held-out texts, with a search of the whole catalogue. The same seed
    gives the same student.

    Args:
      teacher: An encoder of the items, tuned or not. If its query prefix differs from its item prefix, the student
        learns the teacher's vectors of queries, not those of items.
      text_to_vector: A :class:`tfllmrec.text.student.HashedNgrams`, or the result of ``few_layers`` or
        ``static_tower``; trained in place. Suitable values of ``learning_rate`` are 2e-3 for ``HashedNgrams``, and
        3e-4 with few epochs for ``few_layers``.
      texts: The item texts of the catalogue.
      titles: The titles of the same items.
      per_item: The number of short queries that are cut from an item's text.
      epochs: The number of passes over the texts and queries.
      batch_size: The number of texts in a step.
      learning_rate: The peak learning rate.
      ranking: The weight of the second term of :class:`MatchTeacher`.
      temperature: The temperature of this term.
      candidates: The maximum number of items in this term, drawn once.
      held_out: The share of the distinct texts that is held out.
      seed: The seed of the queries, the held-out texts and the order of training.
      store: Stores the teacher's vectors, so that a second distillation encodes nothing.

    Raises:
      DataError: There are fewer than two distinct texts.
      ModelError: The widths differ, or the loss is not a number.
    """
    set_seeds(seed)
    if (width := text_to_vector(tf.constant([""])).shape[-1]) != teacher.dim:
        raise ModelError(f"expected a student of the teacher's width {teacher.dim}, got one of {width}")
    owner = {text: row for row, text in reversed(list(enumerate(texts)))}  # the first item with this text
    lessons = {text: ("item", row) for text, row in owner.items()}
    for kind, text, row in short_queries(texts, titles, per_item=per_item, seed=seed):
        lessons.setdefault(text, (kind, row))
    words = list(lessons)
    asking = teacher.for_queries
    with show_progress("Encoding by the teacher", "texts") as progress:
        targets = encode_items(words, asking, store, progress)
    if asking is teacher:
        place = {text: i for i, text in enumerate(words)}
        catalogue = targets[[place[text] for text in texts]]
    else:
        catalogue = encode_items(texts, teacher, store)  # usually in the store already
    # Items with the same text count as one item: a text that one of them is trained on cannot be held out.
    first = np.array([owner[text] for text in texts])
    distinct = np.unique(first[catalogue.any(axis=1)])
    if len(distinct) < 2:
        raise DataError(f"expected at least two distinct item texts to distil from, got {len(distinct)}")

    drawn = np.random.default_rng(seed).permutation(distinct)
    n_aside = round(held_out * len(distinct))
    aside = np.isin(first, drawn[:n_aside])
    item_of = np.array([row for _, row in lessons.values()])
    usable = targets.any(axis=1)
    learnt, tested = (np.flatnonzero(usable & (aside[item_of] == side)) for side in (False, True))

    steps = epochs * -(-len(learnt) // batch_size)
    loss = MatchTeacher(catalogue[drawn[n_aside:][:candidates]], ranking, temperature)
    model = _Tower(text_to_vector)
    model.compile(tf.keras.optimizers.Adam(WarmupCosine(learning_rate, steps, 0.05), global_clipnorm=1.0), loss)
    with show_progress("Distilling", "steps") as progress:
        callbacks = [StepProgress(progress, steps), tf.keras.callbacks.TerminateOnNaN()]
        batches = _batches([words[i] for i in learnt], targets[learnt], batch_size, seed)
        history = model.fit(batches, epochs=epochs, callbacks=callbacks, verbose=0).history
    if not np.isfinite(history["loss"]).all():
        raise ModelError(f"the loss is not a number after epoch {len(history['loss'])}: lower learning_rate")

    student = Student(text_to_vector, asking.fingerprint)
    got = student.encode([words[i] for i in tested])
    kinds = np.array([kind for kind, _ in lessons.values()])[tested]
    report = {
        kind: agreement(got[of_kind], targets[tested][of_kind], catalogue)
        for kind in (*dict.fromkeys(kinds.tolist()), ALL)
        if (of_kind := (kinds == kind) | (kind == ALL)).any()
    }
    return Distilled(student, report, np.flatnonzero(aside))


def agreement(got: np.ndarray, expected: np.ndarray, items: np.ndarray) -> Agreement:
    """Compares a student's vectors with its teacher's, and the lists of items that they retrieve.

    Args:
      got: Float32 ``[B, D]``, the student's vectors.
      expected: Float32 ``[B, D]``, the teacher's vectors of the same texts.
      items: Float32 ``[N, D]``, the teacher's vectors of the catalogue. With fewer than 10 items, the lists have all.
    """
    k = min(_TOP, len(items))
    worth = np.arange(k, 0, -1)
    discount = 1 / np.log2(np.arange(k) + 2)
    shared, gained = np.zeros(len(got)), np.zeros(len(got))
    for start in range(0, len(got), _CHUNK):
        rows = slice(start, start + _CHUNK)
        ours, truth = (tf.math.top_k(v[rows] @ items.T, k).indices.numpy() for v in (got, expected))
        same = ours[:, :, np.newaxis] == truth[:, np.newaxis, :]
        shared[rows] = same.sum(axis=(1, 2)) / k
        gained[rows] = (same @ worth) @ discount
    cosine = np.einsum("bd,bd->b", got, expected)
    return Agreement(len(got), *(float(v.mean()) for v in (cosine, shared, gained / (worth @ discount))))


def _batches(texts: Sequence[str], targets: np.ndarray, batch_size: int, seed: int) -> tf.data.Dataset:
    """Returns a dataset of (string ``[B]``, float32 ``[B, D]``), in a different order each epoch."""
    strings, vectors = tf.constant(texts), tf.constant(targets)
    order = tf.data.Dataset.range(len(texts)).shuffle(len(texts), seed=seed).batch(batch_size)
    return order.map(lambda rows: (tf.gather(strings, rows), tf.gather(vectors, rows))).prefetch(2)

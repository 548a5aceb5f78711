"""Labels that describe the topics of items, and thereby the interests of users, in the catalogue's own words.

A label is a name in the catalogue (a category, a tag, an author, a brand) or a phrase of one to three words of its
titles and descriptions. Every label is shared by several items. A phrase is a good label if

- its words belong together: normalised pointwise mutual information (G. Bouma, Normalized (Pointwise) Mutual
  Information in Collocation Extraction, GSCL 2009; for three words divided by two, as in T. Van de Cruys, Two
  Multivariate Generalizations of Pointwise Mutual Information, DiSCo 2011);
- it is complete: it is often at the start or the end of a text segment, like names and nouns, but unlike "ultra". Where
  it is part of a longer label, only the longer label counts ("nail polish" instead of "nail" and "polish"; the idea is
  that of C-value: K. Frantzi, S. Ananiadou, H. Mima, Automatic Recognition of Multi-Word Terms, IJDL 2000);
- users choose by it: users who have had one item with the label have had others with it more often than by chance
  (lift). The lift must exceed that of 99 % of random sets of as many items (a permutation test). Boilerplate fails
  this test in every language.

Labels that describe the topic of an item take precedence over people: of two labels of the same items, the category or
the phrase ("Harry Potter") is kept and the author's name is dropped. Of several people, only the first is a label, so
illustrators and translators are not.

Items without events have labels like any other item. Labels of a history are counted, with sparse matrices. The labels
of a user's next items are predicted by a learned model (:class:`LabelForecast`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from tfllmrec.columns import NAME_COLUMNS, PEOPLE_COLUMNS
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.durable import reading_npz, replacing
from tfllmrec.progress import Progress

#: Smallest number of items with a label, and largest share of the catalogue.
MIN_ITEMS, MAX_SHARE = 5, 0.5
#: Smallest normalised pointwise mutual information of a phrase of several words.
MIN_COHESION = 0.4
#: Smallest share of the occurrences of two adjacent words of a three-word phrase in which they are part of the phrase.
INSEPARABLE = 0.6
#: Smallest share of the occurrences of a phrase at the start, or at the end, of a text segment.
MIN_FREE = 0.4
#: Smallest lift of a phrase, and number of pairs of events at chance level that are added to the counts (a prior).
MIN_LIFT, PRIOR_PAIRS = 2.0, 5.0
#: Number of random sets of items of each size, and the share of them that the lift of a phrase must exceed.
RANDOM_SETS, BETTER_THAN = 200, 0.99
#: Of two labels whose items overlap by at least this share (Jaccard), only one is kept.
SAME = 0.8
#: Largest number of labels of an item; the most specific ones are kept.
PER_ITEM = 12
#: Number of characters of a text that are read. The most important words come first, and the words of a catalogue have
#: to fit in memory.
MAX_CHARACTERS = 2000
#: With more training events, users are left out at regular intervals: more events do not improve the lifts.
MAX_EVENTS = 1_000_000
#: How much more a rare label counts. At 0, the lists have labels that half of the catalogue shares; at 1, labels that
#: users seldom meet again (``benchmarks/interests.py``).
SPECIFICITY = 0.25
#: A label of at least this share of the items is broad; all others are specific.
BROAD = 0.02
#: Weight of an event relative to the next newer one, and weight of a rating that is one standard deviation above the
#: mean; see :class:`Interests`.
DECAY, LIKING = 0.95, 0.25
#: The decay if only the newest events are to count; see :class:`LabelForecast`.
FAST = 0.6


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Marks belong to the preceding letter. Vowels of Hindi and Thai are marks, which are not word characters to ``re``.
_MARKS = "".join(map(chr, filter(lambda code: unicodedata.category(chr(code)).startswith("M"), range(0x300, 0x2000))))
_TOKEN = re.compile(rf"(?:[^\W_][{_MARKS}]*)+(?:['’.\-](?:[^\W_][{_MARKS}]*)+)*|[^\w\s{_MARKS}]")
_CELL_END = "\n"
_CONTENT, _CONNECTOR, _WORD, _END = range(4)
# Allowed inside a phrase of three words, never at its ends.
_CONNECTORS = _set("& of the and n de la le du des del di el y und der van von")
# A phrase that follows or precedes one of these words is complete there.
_BOUNDARIES = _set(
    """
    for with by from without
    bulk count ct edition fl gm gr gram grams kg kit lb lbs liter mg ml mm cm inch inches ounce ounces oz pack packs
    package pair pc pcs pce piece pieces pkg pkt pound pounds qty quantity set size sized value vol volume book part
    """
)
# The most common English words, and words that shops add to names. Most would fail the lift test; this list makes sure.
_WORDS = _set(
    """
    a about above after again against all also am among an another any are aren't around as at away back be became
    because become been before begin being below best between both but came can can't cannot come could couldn't day
    did didn't do does doesn't doing don't down during each either else etc even every everyone everything few find
    further get give go goes good got great had has have haven't having he he'd he's help her here hers herself him
    himself his how i i'm if in into is isn't it it's its itself just keep know last let like long made make many may
    me might more most much must my myself near need never new no nor not now off on once one only onto or other others
    our out over own per please put really s same see she should since so some someone something soon still such take
    than that that's their them themselves then there these they thing this those three through time to together too
    two under until up upon us use used using very via want was way we well were what when where whether which while
    who whom whose why will within won't would yet you you'll you're your yours
    assorted exclusive free genuine gift import imported item large limited lot ltd mini model newest oem official
    original packaging product products sample small medium style type unit version ii iii iv vi
    """
)


@dataclass(frozen=True, eq=False)
class Interests:
    """The labels of a catalogue, and of each item.

    The weight of label c for a user is ``sum_j decay**back_j (1 + liking (r_j - mean r) / spread) w_jc``. The sum is
    over the user's events j, and ``back_j`` is the number of newer events. r are the user's ratings; an event without a
    rating counts like one with the mean rating. A label with a weight below 0 is not an interest.

    Attributes:
      labels: The labels in the catalogue's most frequent spelling, object ``[C]``.
      named: Whether a label is a name in the catalogue, such as a category, bool ``[C]``.
      columns: The labels of each item, int32 ``[N, P]``, padded with C.
      weights: The weights w of the labels of each item, float32 ``[N, P]``: the inverse document frequency of a label,
        ``log(N / items)``, to the power of :data:`SPECIFICITY`, scaled so that the squares of an item sum to 1; 0 for
        padding.
      decay: The weight of an event relative to the next newer one; 1 if the order of events has no meaning.
      liking: The amount that a rating of one ``spread`` above the mean adds.
      spread: The standard deviation of the ratings. 0 if there are none or all are equal; ratings then have no effect.
    """

    labels: np.ndarray
    named: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    decay: float = DECAY
    liking: float = LIKING
    spread: float = 0.0

    @property
    def share(self) -> np.ndarray:
        """The share of the items that have each label, float64 ``[C]``."""
        return np.bincount(self.columns.ravel(), minlength=len(self.labels) + 1)[:-1] / len(self.columns)

    @property
    def broad(self) -> np.ndarray:
        """Whether a label belongs to at least a share of :data:`BROAD` of the items, bool ``[C]``."""
        return self.share >= BROAD

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file atomically.

        Raises:
          WriteError: The disk is full, read-only or broken; ``path`` is then unchanged.
        """
        with replacing(path) as fresh, fresh.open("wb") as stream:
            np.savez_compressed(stream, **vars(self) | {"labels": self.labels.astype(str)})

    @classmethod
    def load(cls, path: Path, remedy: str) -> Interests:
        """Reads the file that :meth:`save` wrote.

        Raises:
          ModelError: The file is missing or damaged.
        """
        with reading_npz(path, remedy) as stored:
            arrays: dict[str, Any] = {name: stored[name] for name in cls.__dataclass_fields__}
            c, shapes = len(arrays["labels"]), {name: arrays[name].shape for name in arrays}
            wanted = dict.fromkeys(("labels", "named"), (c,)) | {"columns": shapes["weights"]}
            numbers = ("decay", "liking", "spread")
            if shapes != shapes | wanted | dict.fromkeys(numbers, ()) or len(shapes["weights"]) != 2:
                raise ValueError(f"the tables do not fit together: {shapes}")
        return cls(**arrays | {"labels": arrays["labels"].astype(object)} | {n: float(arrays[n]) for n in numbers})


@dataclass(frozen=True, eq=False)
class LabelForecast:
    """The learned parameters of ``layers.interest_forecast.InterestForecast``, which predicts labels of the next items.

    The distribution of labels is a mixture of three distributions:

    - the labels counted in the history, see :class:`Interests`;
    - a softmax head that has learned which labels follow which:
      ``softmax(bias + tanh(10 (slow^T p + fast^T p')) out)``, where p is the counted distribution, and p' the same
      distribution with a faster decay, so that mainly the newest events count (:data:`FAST`);
    - the labels of the items that the model recommends, weighted by ``softmax(sharpness score)``.

    Attributes:
      labels: The labels, object ``[C]``.
      slow: The map of p, float32 ``[C, R]``.
      fast: The map of p', float32 ``[C, R]``.
      out: The output map, transposed, float32 ``[C, R]``.
      bias: The bias of each label, float32 ``[C]``.
      mixture: The weights of the three distributions, float32 ``[3]``; they sum to 1.
      sharpness: The factor of the scores in the softmax.
      fast_decay: The decay of p', see :class:`tfllmrec.layers.interest_profile.InterestProfile`.
      scale: The factor of p and p', 10 in the formula above.
    """

    labels: np.ndarray
    slow: np.ndarray
    fast: np.ndarray
    out: np.ndarray
    bias: np.ndarray
    mixture: np.ndarray
    sharpness: float
    fast_decay: float
    scale: float

    def of_labels(self, labels: np.ndarray) -> LabelForecast:
        """Returns the forecast for other labels, object ``[C']``.

        An unknown label gets zero weights and the lowest bias. Two labels are the same if their words have the same
        stems, because the spelling of a label may change with new items.
        """
        place = self._place(labels)
        known = (place >= 0)[:, np.newaxis]
        slow, fast, out = (np.where(known, table[place], np.float32(0)) for table in (self.slow, self.fast, self.out))
        bias = np.where(place >= 0, self.bias[place], self.bias.min())
        return replace(self, labels=labels, slow=slow, fast=fast, out=out, bias=bias)

    def knows(self, labels: np.ndarray) -> np.ndarray:
        """Returns whether the forecast has learned each of ``labels``, object ``[C']``: bool ``[C']``."""
        return self._place(labels) >= 0

    def _place(self, labels: np.ndarray) -> np.ndarray:
        return pd.Index([_key(label) for label in self.labels]).get_indexer(pd.Index([_key(label) for label in labels]))

    def save(self, path: Path) -> None:
        np.savez(path, **asdict(self) | {"labels": self.labels.astype(str)})

    @classmethod
    def load(cls, path: Path, remedy: str) -> LabelForecast:
        """Loads the file that :meth:`save` wrote.

        Raises:
          ModelError: The file is missing or damaged.
        """
        with reading_npz(path, remedy) as stored:
            arrays: dict[str, Any] = {name: stored[name] for name in cls.__dataclass_fields__}
            shapes = {name: arrays[name].shape for name in arrays}
            c, r = arrays["slow"].shape
            wanted = dict.fromkeys(("slow", "fast", "out"), (c, r)) | dict.fromkeys(("labels", "bias"), (c,))
            if shapes != wanted | {"mixture": (3,)} | dict.fromkeys(_NUMBERS, ()):
                raise ValueError(f"the tables do not fit together: {shapes}")
        numbers: dict[str, Any] = {name: float(arrays.pop(name)) for name in _NUMBERS}
        return cls(labels=arrays.pop("labels").astype(object), **arrays, **numbers)


_NUMBERS = ("sharpness", "fast_decay", "scale")


def fit_interests(
    items: pd.DataFrame,
    columns: Sequence[str],
    users: Queries,
    *,
    ordered: bool = True,
    progress: Progress | None = None,
) -> Interests | None:
    """Chooses the labels of a catalogue.

    Args:
      items: A table like :attr:`tfllmrec.data.dataset.Dataset.items`; items without events may be appended.
      columns: The columns of ``items`` that labels are taken from. Columns in :data:`tfllmrec.columns.NAME_COLUMNS`
        contain names, all others contain texts with phrases.
      users: The training histories and ratings of the users. Events with a weight of 0 or less, such as rejections, are
        left out.
      ordered: Whether the order of a history has a meaning.
      progress: Called with the number of candidates examined so far.

    Returns:
      The labels; ``None`` if the catalogue has no suitable label.
    """
    had = _had(users.choices, len(items))
    subjects = [column for column in columns if column in NAME_COLUMNS and column not in PEOPLE_COLUMNS]
    people = [column for column in columns if column in PEOPLE_COLUMNS]
    prose = [column for column in columns if column not in NAME_COLUMNS]
    found = [_names(items, subjects)]
    if prose:
        found += _phrases(_read(items, prose), had, progress)
    labels = _merged([*found, _names(items, people, first_only=True)])
    if not len(labels.spelling):
        return None
    weighted = sp.csr_array(labels.items.multiply(np.log(len(items) / labels.items.sum(axis=0)) ** SPECIFICITY))
    columns_of, weights = _strongest(weighted, PER_ITEM)
    ratings = users.ratings.values[np.isfinite(users.ratings.values)]
    return Interests(
        labels.spelling,
        labels.named,
        columns_of,
        weights,
        decay=DECAY if ordered else 1.0,
        # Rounding may make the standard deviation of equal numbers differ from 0.
        spread=float(ratings.std()) if len(ratings) and np.ptp(ratings) else 0.0,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """Labels of one kind.

    Attributes:
      keys: The keys of the labels, object ``[C]``; all spellings of a label have the same key.
      spelling: The spelling of each label, object ``[C]``.
      named: Whether a label is a name in the catalogue, bool ``[C]``.
      items: 1 where an item has the label, float32 ``[N, C]``.
    """

    keys: np.ndarray
    spelling: np.ndarray
    named: np.ndarray
    items: sp.csr_array

    def take(self, which: np.ndarray) -> _Found:
        return _Found(self.keys[which], self.spelling[which], self.named[which], self.items[:, which])


@dataclass(frozen=True, eq=False)
class _Words:
    """The words of some columns of all items, concatenated, with an end marker after each cell.

    Attributes:
      item: The item of each word, int ``[T]``.
      surface: The index of each word in ``surfaces``, int ``[T]``.
      stem: The index of the stem of each word in ``stems``, int ``[T]``.
      kind: The kind of each word, such as ``_CONTENT``, int ``[T]``.
      surfaces: The distinct words, object.
      stems: The distinct stems, object.
      n_items: N.
    """

    item: np.ndarray
    surface: np.ndarray
    stem: np.ndarray
    kind: np.ndarray
    surfaces: np.ndarray
    stems: np.ndarray
    n_items: int


def _had(histories: Ragged, n_items: int) -> sp.csr_array:
    """Returns the binary user-by-item matrix, float32 ``[users, N]``, of at most about :data:`MAX_EVENTS` events."""
    some = histories.take(np.arange(0, len(histories), max(1, math.ceil(len(histories.values) / MAX_EVENTS))))
    return _ones(some.row_of_value, some.values, (len(some), n_items))


def _ones(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    """Returns a sparse matrix with 1 at the given entries, regardless of repeats."""
    matrix = sp.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _shared(items: sp.csr_array) -> np.ndarray:
    """Returns whether a label belongs to neither too few nor too many items, bool ``[C]``."""
    count = items.sum(axis=0)
    return (count >= MIN_ITEMS) & (count <= MAX_SHARE * items.shape[0])


def _stem(word: str) -> str:
    """Returns the stem that a word shares with its plural and its possessive; stems are never shown."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]
    return word


def _key(label: str) -> str:
    """Returns the key of a label, which is the same for all its spellings."""
    return " ".join(map(_stem, _TOKEN.findall(unicodedata.normalize("NFC", label))))


def content_words(text: str) -> list[tuple[str, str]]:
    """Returns the content words of a text as pairs of key and word; all spellings of a word have the same key."""
    words = _TOKEN.findall(unicodedata.normalize("NFC", text[:MAX_CHARACTERS]))
    return [(_stem(word), word) for word in words if _kind(word) == _CONTENT]


def _kind(word: str) -> int:
    lower = word.lower().replace("’", "'")
    if lower in _CONNECTORS:
        return _CONNECTOR
    if lower in _WORDS or (len(word) == 1 and word.isalpha()):
        return _WORD
    # Punctuation, numbers, sizes such as 150ml.
    return _END if lower in _BOUNDARIES or not word[0].isalpha() else _CONTENT


def _names(items: pd.DataFrame, columns: Sequence[str], first_only: bool = False) -> _Found:
    """Collects the names in some columns of the items, such as categories; ``first_only``: only one of each cell."""
    pairs = [
        (row, name)
        for column in columns
        for row, cell in enumerate(items[column])
        for name in category_names(cell)[: 1 if first_only else None]
    ]
    rows = np.array([row for row, _ in pairs], int)
    surface, surfaces = pd.factorize(np.array([name for _, name in pairs], object))
    keys = [_key(name) for name in surfaces]
    label_of, labels = pd.factorize(np.array(keys, object))
    # The most frequent spelling comes first; of equally frequent ones, the one that occurred first.
    order = np.argsort(-np.bincount(surface, minlength=len(surfaces)), kind="stable")
    first = order[np.unique(label_of[order], return_index=True)[1]] if len(order) else order
    matrix = _ones(rows, label_of[surface] if len(rows) else rows, (len(items), len(labels)))
    found = _Found(labels, surfaces[first], np.ones(len(labels), bool), matrix)
    return found.take(np.flatnonzero(_shared(matrix)))


def _read(items: pd.DataFrame, columns: Sequence[str]) -> _Words:
    flat: list[str] = []
    lengths = []
    for column in columns:
        for cell in items[column]:
            before = len(flat)
            flat += _TOKEN.findall(unicodedata.normalize("NFC", cell[:MAX_CHARACTERS]))
            flat.append(_CELL_END)
            lengths.append(len(flat) - before)
    surface, surfaces = pd.factorize(np.array(flat, object))
    stem_of, stems = pd.factorize(np.array([_stem(word) for word in surfaces], object))
    kind = np.array([_kind(word) for word in surfaces])
    item = np.repeat(np.tile(np.arange(len(items)), len(columns)), lengths)
    return _Words(item, surface, stem_of[surface], kind[surface], surfaces, stems, len(items))


def _phrases(words: _Words, had: sp.csr_array, progress: Progress | None) -> list[_Found]:
    """Finds phrases that are good labels, the longest first: shorter phrases inside a longer label do not count."""
    needed = _NeededLift(had)
    inside = {length: np.zeros(len(words.stem), bool) for length in (3, 2, 1)}
    found, done = [], 0
    for length in inside:
        places, stems = _places(words, length)
        cohesion = _cohesion(words, places, stems)
        free = ~inside[length][places.start]
        start, phrase = places.start[free], places.phrase[free]
        good = _shared(_ones(words.item[start], phrase, (words.n_items, len(stems)))) & (cohesion >= MIN_COHESION)
        # Each cell ends with an end marker. Before the first word, index -1 is the marker of the last cell.
        ends = np.stack([words.kind[start - 1] == _END, words.kind[start + length] == _END])
        count = np.maximum(np.bincount(phrase, minlength=len(stems)), 1)
        good &= np.max([np.bincount(phrase, at, minlength=len(stems)) / count for at in ends], axis=0) >= MIN_FREE
        # Of overlapping phrases, such as "glossy nail" and "nail polish", the one with the higher cohesion is kept.
        holds = np.zeros(len(words.stem) + length)
        holds[start] = np.where(good, cohesion, 0)[phrase]
        beside = [holds[start + offset] for offset in range(1 - length, length) if offset]
        meant = good[phrase] & (holds[start] >= np.max([*beside, np.zeros(len(start))], axis=0))
        start, phrase = start[meant], phrase[meant]
        items = _ones(words.item[start], phrase, (words.n_items, len(stems)))
        candidates = np.flatnonzero(_shared(items))
        lifts = lift(had, items[:, candidates])
        chosen = candidates[lifts >= needed.of(items[:, candidates].sum(axis=0))]
        done += len(candidates)
        if progress:
            progress(done, None)

        place = np.isin(phrase, chosen)
        start, phrase = start[place], phrase[place]
        for shorter in range(1, length):
            for offset in range(length - shorter + 1):
                inside[shorter][start + offset] = True
        spelt = pd.DataFrame({"phrase": phrase} | {str(i): words.surface[start + i] for i in range(length)})
        spelt = spelt.value_counts(sort=False).reset_index().sort_values("count", ascending=False, kind="stable")
        spelt = spelt.drop_duplicates("phrase").sort_values("phrase")
        spelling = [" ".join(words.surfaces[row]) for row in spelt[[str(i) for i in range(length)]].to_numpy()]
        keys = [" ".join(row) for row in words.stems[stems[chosen]]]
        found.append(
            _Found(np.array(keys, object), np.array(spelling, object), np.zeros(len(chosen), bool), items[:, chosen])
        )
    return found


@dataclass(frozen=True, eq=False)
class _Places:
    """The occurrences of phrases.

    Attributes:
      start: The position of the first word of each occurrence, int ``[S]``.
      phrase: The number of the phrase of each occurrence, int ``[S]``.
      example: The start of one occurrence of each phrase, int ``[phrases]``.
    """

    start: np.ndarray
    phrase: np.ndarray
    example: np.ndarray


def _places(words: _Words, length: int) -> tuple[_Places, np.ndarray]:
    """Finds all phrases of ``length`` words; also returns the stems of each phrase, int ``[phrases, length]``."""
    n = len(words.stem)
    start = np.arange(n - length + 1)
    start = start[(words.kind[start] == _CONTENT) & (words.kind[start + length - 1] == _CONTENT)]
    if length == 3:
        start = start[words.kind[start + 1] <= _CONNECTOR]
    # The phrases are numbered word by word, so that no number exceeds occurrences times words.
    phrase = np.zeros(len(start), np.int64)
    for offset in range(length):
        _, phrase = np.unique(phrase * len(words.stems) + words.stem[start + offset], return_inverse=True)
    _, first = np.unique(phrase, return_index=True)
    return _Places(start, phrase, start[first]), words.stem[start[first][:, np.newaxis] + np.arange(length)]


def _cohesion(words: _Words, places: _Places, stems: np.ndarray) -> np.ndarray:
    """Computes the cohesion of each phrase, float64 ``[phrases]``; 1 if its words occur only together.

    The result is 0 for three words of which two adjacent ones often occur without the third: these two are the phrase.
    """
    length = stems.shape[1]
    if length == 1:
        return np.ones(len(stems))
    count = np.bincount(places.phrase, minlength=len(stems))
    joint = np.log(count / len(words.stem))
    alone = np.log(np.bincount(words.stem) / len(words.stem))[stems].sum(axis=1)
    cohesion = (joint - alone) / (-joint * (length - 1))
    if length == 3:
        pairs, _ = _places(words, 2)
        of_pair = np.zeros(len(words.stem))
        of_pair[pairs.start] = np.bincount(pairs.phrase)[pairs.phrase]
        cohesion[count < INSEPARABLE * np.maximum(of_pair[places.example], of_pair[places.example + 1])] = 0
    return cohesion


def lift(had: sp.csr_array, items: sp.csr_array) -> np.ndarray:
    """Computes how many times more often than by chance two items of one user share a label.

    The lift is ``(pairs + 5) / (expected + 5)``, with
    ``expected = sum_u n_u (n_u - 1) / 2 ((sum_i p_i)**2 - sum_i p_i**2)`` over the items i that have the label. By
    chance, users choose an item with the probability ``p_i``, its share of all events, and no item twice. Because few
    pairs are weak evidence, :data:`PRIOR_PAIRS` pairs at chance level are added to both counts.

    Args:
      had: 1 where a user has had an item, sparse float32 ``[users, N]``.
      items: 1 where an item has a label, sparse float32 ``[N, C]``.

    Returns:
      The lift of each label, float64 ``[C]``.
    """
    each = had.sum(axis=1, dtype=np.float64)
    share = had.sum(axis=0, dtype=np.float64) / max(each.sum(), 1)
    expected = ((items.T @ share) ** 2 - items.T @ share**2) * (each * (each - 1)).sum() / 2
    pairs = np.zeros(items.shape[1])
    by_column = items.tocsc()
    for start in range(0, items.shape[1], 1000):  # bounds the memory
        counts = had @ by_column[:, start : start + 1000]
        once = counts.sum(axis=0, dtype=np.float64)
        counts.data **= 2
        pairs[start : start + 1000] = (counts.sum(axis=0, dtype=np.float64) - once) / 2
    return (pairs + PRIOR_PAIRS) / (np.maximum(expected, 0) + PRIOR_PAIRS)


class _NeededLift:
    """The lift that random sets of items seldom exceed, by the size of the set."""

    def __init__(self, had: sp.csr_array) -> None:
        n_items = had.shape[1]
        rng = np.random.default_rng(42)
        # Larger sets are not needed: from a few hundred items on, MIN_LIFT decides.
        self.sizes = np.unique(np.minimum(MIN_ITEMS * 2 ** np.arange(7), n_items))
        self.lifts = []
        for size in self.sizes:
            items = np.concatenate([rng.choice(n_items, size, replace=False) for _ in range(RANDOM_SETS)])
            made = lift(had, _ones(items, np.arange(RANDOM_SETS).repeat(size), (n_items, RANDOM_SETS)))
            self.lifts.append(max(float(np.quantile(made, BETTER_THAN)), MIN_LIFT))

    def of(self, sizes: np.ndarray) -> np.ndarray:
        return np.interp(np.log(np.maximum(sizes, 1)), np.log(self.sizes), self.lifts)


def _merged(found: Sequence[_Found]) -> _Found:
    """Merges labels with the same key, and labels of nearly the same items, into the first of them.

    ``found`` has names of topics, such as categories, first, then phrases, then people.
    """
    keys, first = pd.factorize(np.concatenate([part.keys for part in found]))
    row = np.unique(keys, return_index=True)[1]
    same_key = _ones(np.arange(len(keys)), keys, (len(keys), len(first)))
    items = sp.csr_array(sp.hstack([part.items for part in found], format="csr") @ same_key)
    items.data[:] = 1
    together = sp.coo_array(items.T @ items)
    count = items.sum(axis=0)
    a, b = together.coords
    alike = (a < b) & (together.data >= SAME * (count[a] + count[b] - together.data))
    stands_for = np.arange(len(first))
    for kept, other in sorted(zip(a[alike], b[alike], strict=True)):
        if stands_for[kept] == kept and stands_for[other] == other:
            stands_for[other] = kept
    # An item gets the merged label if it has either: new items may have only one of the two.
    items = sp.csr_array(items @ _ones(np.arange(len(first)), stands_for, (len(first), len(first))))
    items.data[:] = 1
    labels = _Found(
        first,
        np.concatenate([part.spelling for part in found])[row],
        np.concatenate([part.named for part in found])[row],
        items,
    ).take(np.unique(stands_for))
    # Merged labels may have become too common.
    return labels.take(np.flatnonzero(_shared(labels.items)))


def _strongest(weighted: sp.csr_array, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ``kept`` largest entries of each row: columns, int32 ``[N, P]``, and values scaled to unit length."""
    n_rows, n_columns = weighted.shape
    row = np.repeat(np.arange(n_rows), np.diff(weighted.indptr))
    order = np.lexsort((weighted.indices, -weighted.data, row))
    row = row[order]
    rank = np.arange(len(order)) - weighted.indptr[row]
    order, row, rank = (values[rank < kept] for values in (order, row, rank))
    columns = np.full((n_rows, kept), n_columns, np.int32)
    weights = np.zeros((n_rows, kept), np.float32)
    columns[row, rank] = weighted.indices[order]
    weights[row, rank] = weighted.data[order]
    length = np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return columns, np.divide(weights, length, out=weights, where=length > 0)

"""The baselines that every result is compared with. They use only numpy and scipy.

Each baseline is a small class: the constructor takes the settings, ``fit`` takes training data, and ``score`` takes any
query, whether its user is known or not. The class also declares its grid of settings: ``fit_grid`` has settings that
need a new fit for each value, ``score_grid`` has those that do not. :func:`select` chooses settings from the grid on
the same validation queries and by the same measure as the hybrid's settings, so that the comparison is fair. The chosen
baseline stays fitted on training events only. It sees later events only in the history of a query, like every model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from scipy import sparse

from tfllmrec.columns import TIMESTAMP
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import MISSING_CODE, UNKNOWN_CODE, Field
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import selection_value
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.domain_map import DomainMap, Emcdr
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.ials import Ials
from tfllmrec.models.item_weights import (
    PrunedWeights,
    co_occurrence,
    ease_weights,
    interactions,
    recency_matrix,
    score_history,
    strongest,
)

Grid = Mapping[str, tuple[float, ...]]
DECAYS = (1.0, 0.9, 0.75, 0.5, 0.3)

R = TypeVar("R", bound=Recommender)
B = TypeVar("B", bound="Baseline")


class Baseline(Recommender, Protocol):
    """A recommender that can be tuned and fitted in seconds."""

    fit_grid: ClassVar[Grid]
    score_grid: ClassVar[Grid]

    def fit(self, data: TrainingData) -> Self:
        """Fits the baseline to the training histories and, if it uses text, to the items' text vectors."""
        ...


@dataclass
class Popularity(Baseline):
    """Recommends the most popular items to every user: the score is the number of training events."""

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {}
    counts: np.ndarray = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        self.counts = _counts(data)
        return self

    def score(self, queries: Queries) -> np.ndarray:
        return np.tile(self.counts, (len(queries), 1))


@dataclass
class RecentPopularity(Baseline):
    """Recommends recently popular items to every user: the weight of a training event decreases with its age.

    An event adds ``2 ** (-age / half_life)`` to the score of its item. ``age`` is the share of the training events that
    are newer (:func:`ages`), so busy and quiet days count alike. With a half-life of .1, an event that is followed by a
    tenth of all events counts half.
    """

    fit_grid: ClassVar[Grid] = {"half_life": (0.01, 0.03, 0.1, 0.3, 1.0)}
    score_grid: ClassVar[Grid] = {}
    half_life: float = 0.1
    popularity: np.ndarray = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        found = ages(data)
        if found is None:
            raise ModelError("recent_popularity: expected events with times or an order: leave it out.")
        weight = np.exp2(-found / self.half_life)
        self.popularity = np.bincount(data.histories.values, weight, minlength=data.n_items).astype(np.float32)
        return self

    def score(self, queries: Queries) -> np.ndarray:
        return np.tile(self.popularity, (len(queries), 1))


def ages(data: TrainingData) -> np.ndarray | None:
    """Returns the age of each event of ``data.histories``, float64 ``[E]`` from 0 to 1; ``None`` if they have no order.

    The age is the share of all training events that are newer. If events have an order but no times, it is the share of
    the user's own training events that are newer.
    """
    split, weights = data.split, data.split.train_queries().weights
    chosen = np.ones(len(split.train), bool) if weights is None else weights.values > 0
    times = split.train[TIMESTAMP].to_numpy()[chosen]
    if len(times) and not np.isnan(times).any() and times.min() < times.max():
        ordered = np.sort(times)
        return 1.0 - np.searchsorted(ordered, times, "right") / len(times)
    if not split.dataset.ordered:
        return None
    lengths = np.repeat(data.histories.lengths, data.histories.lengths)
    return (np.repeat(data.histories.offsets[1:], data.histories.lengths) - 1 - np.arange(len(lengths))) / lengths


@dataclass
class SegmentPopularity(Baseline):
    """The most popular items among similar users and requests: naive Bayes over their fields.

    ``score(i) = log p_i + sum over fields f of log((n_if + s p_i) / ((n_f + s) p_i))``, where ``p_i`` is the share of
    item i in the training events, ``n_f`` the number of training events with this value of the field, ``n_if`` the
    number of these events that have item i, and ``s`` the ``smoothing``. Numbers are binned by quantiles, and times by
    the hour of the day. Missing values and values not seen in training are ignored. The history is not read.
    """

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {"smoothing": (30.0, 300.0, 3000.0, 30_000.0)}
    smoothing: float = 300.0
    counts: np.ndarray = field(init=False, repr=False)
    fields: list[Field] = field(init=False, repr=False)
    by_value: list[sparse.csr_array] = field(init=False, repr=False)  # counts for each field, [V, N]

    def fit(self, data: TrainingData) -> Self:
        self.counts = _counts(data)
        self.fields = [known for known in data.split.schema.of_query() if segmented(known)]
        known, self.by_value = data.split.train_queries(), []
        for each in self.fields:
            if each.owner == "user":
                of_user = known.fields[each.key]
                assert isinstance(of_user, np.ndarray)
                values = np.repeat(_segments(each, of_user), known.history.lengths)
            else:
                of_events = known.fields[f"event.{each.name}"]
                assert isinstance(of_events, Ragged)
                values = _segments(each, of_events.values)
            chosen = slice(None) if known.weights is None else known.weights.values > 0
            values = values[chosen]
            at = values, known.choices.values
            shape = (int(values.max(initial=0)) + 1, data.n_items)
            self.by_value.append(sparse.coo_array((np.ones(len(values), np.float32), at), shape=shape).tocsr())
        return self

    def score(self, queries: Queries) -> np.ndarray:
        share = (self.counts + 1e-3) / (self.counts + 1e-3).sum()
        scores = np.tile(np.log(share), (len(queries), 1)).astype(np.float32)
        queries = queries.with_missing(self.fields)
        for each, counts in zip(self.fields, self.by_value, strict=True):
            values = queries.fields[each.key]
            assert isinstance(values, np.ndarray)
            segment = _segments(each, values)
            rows = np.flatnonzero((segment > 0) & (segment < counts.shape[0]))
            own = counts[segment[rows]].tocoo()
            # The constant summand of items without events in the segment is omitted. The order stays the same.
            np.add.at(
                scores,
                (rows[own.coords[0]], own.coords[1]),
                np.log1p(own.data / (self.smoothing * share[own.coords[1]])),
            )
        return scores


def segmented(field: Field) -> bool:
    """Returns whether :class:`SegmentPopularity` reads a field, that is, whether it has few distinct segments."""
    return field.kind in ("category", "number", "time") and not field.width


def _segments(field: Field, values: np.ndarray) -> np.ndarray:
    """Returns the segment of each encoded value, int64 ``[R]``; 0 for a missing value."""
    if field.kind == "category":
        return np.where(values == UNKNOWN_CODE, MISSING_CODE, values).astype(np.int64)
    known = np.isfinite(values)
    there = np.where(known, values, 0.0)
    bins = there % 86_400 // 3600 if field.kind == "time" else np.digitize(there, field.edges[1:-1])
    return np.where(known, bins + 1, 0).astype(np.int64)


@dataclass
class Markov(Baseline):
    """First-order Markov chain: recommends the items that most often followed the newest item of the history.

    ``P(j | i) = (n_ij + smoothing * share_j) / (n_i + smoothing)``, where n_ij counts how often j directly followed i
    in training histories, n_i is the sum of n_ij over j, and share_j is the popularity of j. After an item that nothing
    ever followed, and for an empty history, the scores are the popularity.
    """

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {"smoothing": (1.0, 100.0, 10_000.0)}
    smoothing: float = 1.0
    successions: sparse.csr_array = field(init=False, repr=False)
    shares: np.ndarray = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        row, item, n_items = data.histories.row_of_value, data.histories.values, data.n_items
        follows = row[1:] == row[:-1]
        pairs = (item[:-1][follows], item[1:][follows])
        ones = np.ones(len(pairs[0]), dtype=np.float32)
        self.successions = sparse.coo_array((ones, pairs), shape=(n_items, n_items)).tocsr()  # sums repeats
        counts = _counts(data)
        self.shares = counts / max(1.0, counts.sum())
        return self

    def score(self, queries: Queries) -> np.ndarray:
        newest = recency_matrix(queries.choices.last(1), len(self.shares), decay=1.0)
        followed = newest @ self.successions
        known = followed.sum(axis=1)[:, None]
        return ((followed.toarray() + self.smoothing * self.shares) / (known + self.smoothing)).astype(np.float32)


@dataclass
class ItemKNN(Baseline):
    """Item-based nearest neighbours by common users (Sarwar et al. 2001), with shrinkage.

    ``sim(i, j) = n_ij / (sqrt(n_i n_j) + shrinkage)``, where n_ij is the number of users who have had both items and
    n_i the number of users of item i. Each item keeps its ``neighbours`` most similar items. The score of a candidate
    is the recency-weighted sum of its similarities to the items of the history.
    """

    fit_grid: ClassVar[Grid] = {"shrinkage": (1.0, 30.0), "neighbours": (100, 300)}
    score_grid: ClassVar[Grid] = {"decay": DECAYS}
    shrinkage: float = 10.0
    neighbours: int = 100
    decay: float = 1.0
    weights: PrunedWeights = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        histories, n_items = data.histories, data.n_items
        kept = min(self.neighbours, n_items)
        users = interactions(histories, n_items).sum(axis=0)
        self.weights = PrunedWeights(np.empty((n_items, kept), np.int32), np.empty((n_items, kept), np.float32))
        for rows, both in co_occurrence(histories, n_items):
            scale = np.sqrt(users[rows, None] * users) + self.shrinkage
            similar = np.divide(both, scale, out=np.zeros_like(both), where=both > 0)
            np.fill_diagonal(similar[:, rows], 0.0)
            self.weights.neighbours[rows], self.weights.weights[rows] = strongest(similar, kept)
        return self

    def score(self, queries: Queries) -> np.ndarray:
        return score_history(queries.choices, self.weights, self.decay)


@dataclass
class Ease(Baseline):
    """EASE (Steck 2019), see :mod:`tfllmrec.models.item_weights`; with a ``decay`` below 1, older events count less."""

    fit_grid: ClassVar[Grid] = {"l2": (50.0, 200.0, 1000.0)}
    score_grid: ClassVar[Grid] = {"decay": DECAYS}
    l2: float = 200.0
    decay: float = 1.0
    weights: np.ndarray = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        self.weights = ease_weights(data.histories, data.n_items, self.l2)
        return self

    def score(self, queries: Queries) -> np.ndarray:
        return score_history(queries.choices, self.weights, self.decay)


@dataclass
class TextSimilarity(Baseline):
    """Cosine between an item's text vector and the recency-weighted mean of the history's text vectors.

    Vectors are centred first (:func:`centred_unit`). The score is 0 for items without text, and for queries whose
    history has no item with text.
    """

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {"decay": DECAYS}
    decay: float = 1.0
    vectors: np.ndarray = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        self.vectors = data.unit_text
        return self

    def score(self, queries: Queries) -> np.ndarray:
        # The sum replaces the mean: the cosine depends only on the direction.
        profile = recency_matrix(queries.choices, len(self.vectors), self.decay) @ self.vectors
        length = np.linalg.norm(profile, axis=1, keepdims=True)
        unit = np.divide(profile, length, out=np.zeros_like(profile), where=length > 0)
        return unit @ self.vectors.T


@dataclass
class EaseText(Baseline):
    """The sum of two baselines, ``EASE + text_weight * text similarity``. Each keeps its own settings."""

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {"text_weight": (0.03, 0.1, 0.3, 1.0)}
    text_weight: float = 0.1
    ease: Ease = field(default_factory=Ease, repr=False)
    text: TextSimilarity = field(default_factory=TextSimilarity, repr=False)

    def fit(self, data: TrainingData) -> Self:
        self.text.fit(data)
        self.ease.fit(data)
        return self

    def score(self, queries: Queries) -> np.ndarray:
        return self.ease.score(queries) + self.text_weight * self.text.score(queries)


@dataclass
class Star(Baseline):
    """The retrieval stage of STAR (Lee et al. 2024, arXiv:2410.16458, section 3.2): text and user similarity.

    ``score(x) = sum over j of decay^(j - 1) [text_share R_S(s_j, x) + (1 - text_share) R_C(s_j, x)]`` over the
    ``history_length`` newest events, ``s_1`` being the newest. ``R_S`` is the cosine of the items' text vectors, and
    ``R_C`` the cosine of their columns in the user-by-item matrix, ``n_ij / sqrt(n_i n_j)``. An item without training
    events is scored by its text alone, and an item without text by its users alone.

    The defaults are the paper's settings. Its factors ``1 / n`` and ``decay`` are omitted, because they are the same
    for every candidate. All ratings are 1, because the paper finds no gain from using them. The text vectors are
    centred (:func:`centred_unit`), unlike the paper's: on toys (validation) the selection value is .0745 against .0729.
    """

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {
        "text_share": (0.2, 0.35, 0.5, 0.7),
        "history_length": (3, 10),
        "decay": (0.9, 0.7, 0.5),
    }
    text_share: float = 0.5
    history_length: int = 3
    decay: float = 0.7
    vectors: np.ndarray = field(init=False, repr=False)
    collaborative: sparse.csr_array = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        self.vectors = data.unit_text
        x = interactions(data.histories, data.n_items)
        columns = x @ sparse.diags_array(1 / np.sqrt(np.maximum(x.sum(axis=0), 1)))  # columns of length 1
        self.collaborative = (columns.T @ columns).tocsr()
        return self

    def score(self, queries: Queries) -> np.ndarray:
        newest = recency_matrix(queries.choices.last(self.history_length), len(self.vectors), self.decay)
        scores = (self.text_share * (newest @ self.vectors)) @ self.vectors.T
        scores += ((1 - self.text_share) * newest @ self.collaborative).toarray()
        return scores


BASELINES: dict[str, type[Baseline]] = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "popularity_by_segment": SegmentPopularity,
    "markov": Markov,
    "item_knn": ItemKNN,
    "ials": Ials,
    "ease": Ease,
    "text": TextSimilarity,
    "ease_text": EaseText,
    "star": Star,
    "emcdr": Emcdr,
    "domain_map": DomainMap,
}


def fit_baseline(data: TrainingData, name: str) -> Fitted[Baseline, dict[str, float]]:
    """Fits a baseline with the settings of its grid that are best on the validation sample.

    Each baseline is fitted only once for the same ``data``, because several steps use it: ``ease_text`` is built from
    ``ease`` and ``text``, and the lift of cold items is measured against ``text``.

    Args:
      data: Training histories, text vectors and validation queries.
      name: A key of :data:`BASELINES`.

    Returns:
      The fitted baseline and its settings. The figure ``selection`` is its :func:`selection_value`.

    Raises:
      ModelError: The name is unknown, or no validation query has a target.
    """
    if name not in BASELINES:
        raise ModelError(f"Expected a baseline among {', '.join(BASELINES)}; got {name!r}.")
    if name not in data.baselines:
        kind = BASELINES[name]
        if name == "ease_text":
            ease, text = (fit_baseline(data, part).model for part in ("ease", "text"))
            assert isinstance(ease, Ease) and isinstance(text, TextSimilarity)
            points: Iterator[Baseline] = _score_points(EaseText(ease=ease, text=text))
        else:
            points = candidates(kind, data)
        model, value = select(points, data)
        settings = {setting: getattr(model, setting) for setting in (*kind.fit_grid, *kind.score_grid)}
        data.baselines[name] = Fitted(model, settings, {"selection": value})
    return data.baselines[name]


def candidates(kind: type[B], data: TrainingData) -> Iterator[B]:
    """Yields a fitted baseline for every point of the grid; points that differ only in ``score_grid`` share a fit."""
    for settings in _points(kind.fit_grid):
        yield from _score_points(kind(**settings).fit(data))


def _score_points(fitted: B) -> Iterator[B]:
    """Yields copies of a fitted baseline, one for every point of its ``score_grid``."""
    for changes in _points(fitted.score_grid):
        point = copy.copy(fitted)
        for setting, value in changes.items():
            setattr(point, setting, value)
        yield point


def select(candidates: Iterable[R], data: TrainingData) -> tuple[R, float]:
    """Returns the candidate with the highest :func:`selection_value` on the validation sample, and that value.

    The first of several equal candidates wins. Only the best candidate so far is kept in memory, so ``candidates`` may
    be an iterator of large models.

    Raises:
      ModelError: There is no candidate, or no validation query has a target.
    """
    if not data.sample.targets.lengths.any():
        raise ModelError("Expected validation queries with targets to choose settings by, got none: use another split.")
    best: tuple[float, R] | None = None
    for candidate in candidates:
        value = selection_value(data.measure(candidate))
        if best is None or value > best[0]:
            best = (value, candidate)
    if best is None:
        raise ModelError("Expected at least one candidate to select from, got none.")
    return best[1], best[0]


def _points(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _counts(data: TrainingData) -> np.ndarray:
    """Returns the number of training events of each item, float32 ``[N]``."""
    return np.bincount(data.histories.values, minlength=data.n_items).astype(np.float32)

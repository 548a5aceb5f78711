"""The baselines that every result is shown beside, in numpy and scipy alone.

Each is a small class: settings in the constructor, ``fit`` on training data, ``score`` for any query, known user
or not. Its grid of settings is declared beside the class (``fit_grid`` needs another fit for each value, ``score_grid``
does not). :func:`select` picks among the grid on the same validation queries, by the same measure, as the hybrid's
settings are chosen, so that no baseline is a straw man. The chosen baseline stays fitted on training events only. Later
events reach it through the history of a query, as they reach every model.
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
        """Learns from training histories and, if it is about text, from the items' text vectors."""
        ...


@dataclass
class Popularity(Baseline):
    """Every user gets the most popular items: the score is the number of training events."""

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
    """Every user gets the items that are popular lately: training events fade with age.

    An event adds ``2 ** (-age / half_life)`` to its item; ``age`` is the share of the training events that are newer
    (:func:`ages`), so busy and quiet days count alike. With a half-life of .1, an event before a tenth of all events
    counts half.
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
    """The age of each event of ``data.histories``, float64 ``[E]`` from 0 to 1; ``None``: the events have no order.

    It is the share of the training events that are newer, or where events have an order and no times, the share of the
    user's own training events that are.
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
    """The most popular items among users and requests like this one: naive Bayes over their fields.

    ``score(i) = log p_i + sum over fields f of log((n_if + s p_i) / ((n_f + s) p_i))`` with ``p_i`` the share of item
    i in the training events, ``n_f`` the training events with this value of the field and ``n_if`` those of item i
    among them. A number stands for the bin between two quantiles, a time for the hour of the day. A value that is
    missing or new says nothing. The history is not read.
    """

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {"smoothing": (30.0, 300.0, 3000.0, 30_000.0)}
    smoothing: float = 300.0
    counts: np.ndarray = field(init=False, repr=False)
    fields: list[Field] = field(init=False, repr=False)
    by_value: list[sparse.csr_array] = field(init=False, repr=False)  # of each field, [V, N]

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
            # Items that the segment never had share a constant, which does not change the order.
            np.add.at(
                scores,
                (rows[own.coords[0]], own.coords[1]),
                np.log1p(own.data / (self.smoothing * share[own.coords[1]])),
            )
        return scores


def segmented(field: Field) -> bool:
    """Whether :class:`SegmentPopularity` reads a field: one that divides requests into few segments."""
    return field.kind in ("category", "number", "time") and not field.width


def _segments(field: Field, values: np.ndarray) -> np.ndarray:
    """The segment of each encoded value, int64 ``[R]``; 0 for a missing one."""
    if field.kind == "category":
        return np.where(values == UNKNOWN_CODE, MISSING_CODE, values).astype(np.int64)
    known = np.isfinite(values)
    there = np.where(known, values, 0.0)
    bins = there % 86_400 // 3600 if field.kind == "time" else np.digitize(there, field.edges[1:-1])
    return np.where(known, bins + 1, 0).astype(np.int64)


@dataclass
class Markov(Baseline):
    """First-order Markov chain: what followed the last item most often.

    ``P(j | i) = (n_ij + smoothing * share_j) / (n_i + smoothing)`` with n_ij the direct successions in training
    histories and share the popularity of j. An item that nothing ever followed, and an empty history, leave popularity.
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
    """Nearest neighbours by who has had what (Sarwar et al. 2001), with shrinkage.

    ``sim(i, j) = n_ij / (sqrt(n_i n_j) + shrinkage)`` over the users of each item; an item keeps its ``neighbours``
    most similar ones, and a candidate scores the recency-weighted sum over the history.
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
    """EASE (Steck 2019): see :mod:`tfllmrec.models.item_weights`; the history may fade with ``decay``."""

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

    Vectors are centred first (:func:`centred_unit`). Items without text, and queries whose history has none, score 0.
    """

    fit_grid: ClassVar[Grid] = {}
    score_grid: ClassVar[Grid] = {"decay": DECAYS}
    decay: float = 1.0
    vectors: np.ndarray = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        self.vectors = data.unit_text
        return self

    def score(self, queries: Queries) -> np.ndarray:
        # A mean and a sum point the same way, and a cosine sees only that.
        profile = recency_matrix(queries.choices, len(self.vectors), self.decay) @ self.vectors
        length = np.linalg.norm(profile, axis=1, keepdims=True)
        unit = np.divide(profile, length, out=np.zeros_like(profile), where=length > 0)
        return unit @ self.vectors.T


@dataclass
class EaseText(Baseline):
    """The plain sum of two baselines: ``EASE + text_weight * text similarity``, each with settings of its own."""

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
    """The retrieval stage of STAR (Lee et al. 2024, arXiv:2410.16458, section 3.2): similar texts, shared users.

    ``score(x) = sum over j of decay^(j - 1) [text_share R_S(s_j, x) + (1 - text_share) R_C(s_j, x)]`` over the
    ``history_length`` newest events, ``s_1`` being the newest. ``R_S`` is the cosine of the items' text vectors, and
    ``R_C`` the cosine of their columns in the user-by-item matrix, ``n_ij / sqrt(n_i n_j)``. An item without training
    events is scored by its text alone, an item without text by its users alone.

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
        columns = x @ sparse.diags_array(1 / np.sqrt(np.maximum(x.sum(axis=0), 1)))  # of length 1
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

    Each baseline is fitted once for the same ``data``, since several steps use it: ``ease_text`` takes ``ease`` and
    ``text``, and the lift of cold items is measured against ``text``.

    Args:
      data: training histories, text vectors and validation queries.
      name: Of :data:`BASELINES`.

    Returns:
      The baseline; its settings; and under ``selection`` its :func:`selection_value`.

    Raises:
      ModelError: An unknown name, or no validation query with a target.
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
    """Every point of the grid, fitted one at a time; points that differ in ``score_grid`` alone share one fit."""
    for settings in _points(kind.fit_grid):
        yield from _score_points(kind(**settings).fit(data))


def _score_points(fitted: B) -> Iterator[B]:
    """A fitted baseline at every point of its ``score_grid``."""
    for changes in _points(fitted.score_grid):
        point = copy.copy(fitted)
        for setting, value in changes.items():
            setattr(point, setting, value)
        yield point


def select(candidates: Iterable[R], data: TrainingData) -> tuple[R, float]:
    """The candidate with the best :func:`selection_value` on the validation sample, the first of equals, and the value.

    Only the best one so far is kept, so an iterator of large models is fine.

    Raises:
      ModelError: No candidate, or no validation query with a target to choose by.
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
    """Training events of each item, float32 ``[N]``."""
    return np.bincount(data.histories.values, minlength=data.n_items).astype(np.float32)

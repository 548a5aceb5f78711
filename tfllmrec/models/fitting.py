"""The common interface of all fits, ``fit_NAME(data, options)``: from :class:`TrainingData` to :class:`Fitted`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
from scipy import sparse

from tfllmrec.config import ExperimentConfig, ItemWeightSettings
from tfllmrec.data.domains import domain_names, item_domains, items_of_domain
from tfllmrec.data.graph import ItemGraph
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.splits import Split
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import Result, evaluate
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.domain_weights import MapOnto, maps_between
from tfllmrec.models.graph import view_of
from tfllmrec.models.item_weights import MAX_KEPT_PAIRS, MAX_STORED_PAIRS, ItemWeightStatistics, are_cut, pairs_bound
from tfllmrec.progress import Tell
from tfllmrec.text.centring import centred_unit
from tfllmrec.text.user_texts import UserTexts

#: Largest number of validation queries that settings are compared on. With 3,000 of the 22,363 queries of beauty, the
#: search for item-item weights chose other settings than with all of them.
SAMPLE = 6000
#: Largest number of scores in memory at once: 0.8 GB. A validation sample has half as many, as it may need two arrays.
SCORES = 200_000_000

M = TypeVar("M")
O = TypeVar("O")  # noqa: E741


@dataclass(frozen=True)
class Fitted(Generic[M, O]):
    """The result of a fit.

    Attributes:
      model: The fitted model.
      options: The options of the fit; each *auto* is replaced by the chosen value.
      figures: The measurements of the fit on validation queries, as JSON values. Empty for a hybrid: use
        :meth:`TrainingData.measure` for its metrics.
      chosen: A line of text for each setting that was chosen from the data.
    """

    model: M
    options: O
    figures: Mapping[str, Any]
    chosen: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The data that a fit may read: training events, validation queries and text vectors; never the test queries.

    Values that several fits need are computed once.

    Attributes:
      split: The split. Fits read its training events and its validation queries.
      text: Text vectors, float32 ``[N, Dt]``, in the order of the items table; a row of zeros is an item without text.
      head_share: Share of the items that are head items, by training events.
      seed: Random seed of the sample of validation queries, and of each fit whose options have no seed.
      text_widths: Widths of the encoders' vectors that are concatenated in ``text``; ``None`` if there is one encoder.
      user_texts: Encodes the texts of users into vectors as wide as those of ``text``; ``None`` if these texts are not
        read.
      graph: The graph of the items; ``None`` if there is none.
      source_histories: Histories of users of other domains, restricted to items of this catalogue, oldest first. Their
        weight in the item-item weights is ``item_weights.source``. ``None`` if there are none.
      baselines: The baselines fitted so far, by name; see :func:`tfllmrec.models.baselines.fit_baseline`.
      tried_item_weights: The validation results of the item-item weights tried so far, by their settings as JSON; see
        :func:`tfllmrec.training.item_weight_search.item_weights_result`.

    Raises:
      ModelError: ``text`` does not have a row for each item.
    """

    split: Split
    text: np.ndarray
    head_share: float = 0.2
    seed: int = 42
    text_widths: Sequence[int] | None = None
    user_texts: UserTexts | None = None
    graph: ItemGraph | None = None
    source_histories: Ragged | None = None
    baselines: dict[str, Fitted[Any, Any]] = field(default_factory=dict, init=False, repr=False)
    tried_item_weights: dict[str, Result] = field(default_factory=dict, init=False, repr=False)
    # The keys are the decay, and for the statistics of the sources ("sources", decay).
    _statistics: dict[Any, ItemWeightStatistics] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if np.ndim(self.text) != 2 or len(self.text) != self.n_items:
            raise ModelError(
                f"Training data: expected a row of text for each of {self.n_items:,} items, [{self.n_items}, Dt], "
                f"found shape {list(np.shape(self.text))}. Encode the texts of the same items table."
            )

    @classmethod
    def of(
        cls,
        split: Split,
        text: np.ndarray,
        config: ExperimentConfig,
        text_widths: Sequence[int] | None = None,
        user_texts: UserTexts | None = None,
        graph: ItemGraph | None = None,
    ) -> Self:
        """Returns the data of an experiment, with the head share and the seed of its config."""
        head_share, seed = config.evaluation.head_share, config.seed
        return cls(split, np.asarray(text), head_share, seed, text_widths, user_texts, graph)

    @property
    def n_items(self) -> int:
        return self.split.dataset.n_items

    @cached_property
    def histories(self) -> Ragged:
        """Item indices of each training user, oldest first, without rejected items."""
        return self.split.train_queries().choices

    @property
    def domains(self) -> np.ndarray | None:
        """The domain of each item, object ``[N]``; ``None`` if the data is not joined."""
        return item_domains(self.split.dataset.items, self.split.schema)

    @cached_property
    def items_of_domains(self) -> dict[str, np.ndarray]:
        """The items of each domain, int64 ``[M]``, by the name of the domain; empty if the data is not joined."""
        items = self.split.dataset.items
        return {name: np.flatnonzero(items_of_domain(items, name)) for name in domain_names(self.domains)}

    @cached_property
    def unit_text(self) -> np.ndarray:
        """The text vectors after :func:`centred_unit`, float32 ``[N, Dt]``."""
        return centred_unit(self.text, widths=self.text_widths)

    @cached_property
    def graph_view(self) -> sparse.csr_array | None:
        """The graph as a view for the item-item weights, see :func:`tfllmrec.models.graph.view_of`."""
        return None if self.graph is None else view_of(self.graph)

    @cached_property
    def maps_between_domains(self) -> list[MapOnto]:
        """The maps between the domains, see :func:`tfllmrec.models.domain_weights.maps_between`. Needs joined data."""
        assert self.domains is not None
        return maps_between(self.histories, self.domains, self.unit_text, self.text_widths, self.seed)

    def item_weight_statistics(self, settings: ItemWeightSettings) -> ItemWeightStatistics:
        """Returns the statistics that item-item weights are solved from, of :attr:`histories` and of the sources.

        The most recent statistics are kept in memory, because the search for settings, the fit and the run folder use
        the same ones. Statistics that may have more than :data:`~tfllmrec.models.item_weights.MAX_KEPT_PAIRS` pairs
        are not kept.

        Raises:
          ModelError: See :meth:`tfllmrec.models.item_weights.ItemWeightStatistics.of`.
        """
        needed = _decay_of(settings)
        if needed not in self._statistics:
            self._statistics.clear()  # before the new ones are computed, because both may be large
            statistics = ItemWeightStatistics.of(self.histories, self.n_items, settings)
            if pairs_bound(self.histories, self.n_items) > MAX_KEPT_PAIRS:
                return self._with_sources(statistics, settings)
            self._statistics[needed] = statistics
        return self._with_sources(self._statistics[needed], settings)

    def _with_sources(self, statistics: ItemWeightStatistics, settings: ItemWeightSettings) -> ItemWeightStatistics:
        of_sources = self.source_statistics(settings)
        return statistics if of_sources is None else statistics + of_sources

    def source_statistics(self, settings: ItemWeightSettings) -> ItemWeightStatistics | None:
        """Returns the statistics of :attr:`source_histories` times ``item_weights.source``; ``None`` if not used."""
        if not settings.source or self.source_histories is None:
            return None
        key = ("sources", _decay_of(settings))
        if key in self._statistics:
            return self._statistics[key].scaled(settings.source)
        statistics = ItemWeightStatistics.of(self.source_histories, self.n_items, settings)
        if pairs_bound(self.source_histories, self.n_items) <= MAX_KEPT_PAIRS:
            self._statistics[key] = statistics
        return statistics.scaled(settings.source)

    def set_item_weight_statistics(self, settings: ItemWeightSettings, statistics: ItemWeightStatistics) -> None:
        """Sets the statistics that :meth:`item_weight_statistics` returns, such as updated ones of an earlier fit.

        Args:
          settings: The settings that the statistics were computed for.
          statistics: The statistics of :attr:`histories`.
        """
        self._statistics.clear()
        self._statistics[_decay_of(settings)] = statistics

    def store_item_weight_statistics(self, path: Path, settings: ItemWeightSettings, tell: Tell) -> None:
        """Writes :meth:`item_weight_statistics` to a file and drops the copy in memory.

        With this file, an update reads only the users whose events have changed. Statistics are not written if they may
        have more than :data:`~tfllmrec.models.item_weights.MAX_STORED_PAIRS` pairs of items, or if long histories were
        cut (:func:`~tfllmrec.models.item_weights.are_cut`), because users cannot be subtracted from such statistics.

        Args:
          path: The ``.npz`` file; see :meth:`tfllmrec.models.item_weights.ItemWeightStatistics.load`.
          settings: The settings of the item-item weights.
          tell: Called with a line of text if nothing is written.

        Raises:
          ModelError: See :meth:`tfllmrec.models.item_weights.ItemWeightStatistics.of`.
          WriteError: The disk is full, read-only or broken.
        """
        pairs = pairs_bound(self.histories, self.n_items)
        if are_cut(self.histories, self.n_items):
            tell(
                "item-item weights: their statistics are not stored, because long histories were cut: an update will "
                "read all events"
            )
        elif pairs <= MAX_STORED_PAIRS:
            self.item_weight_statistics(settings).save(path)
        else:
            tell(
                f"item-item weights: their statistics are not stored ({pairs:,} pairs of items, more than "
                f"{MAX_STORED_PAIRS:,}): an update will read all events"
            )
        self._statistics.clear()

    @cached_property
    def strata(self) -> dict[str, np.ndarray]:
        """The items of the strata ``head``, ``tail`` and ``cold``, bool ``[N]`` each."""
        return self.split.strata(self.head_share)

    @cached_property
    def sample(self) -> Queries:
        """The validation queries that all choices are based on; see :meth:`drawn`."""
        return self.drawn()

    def drawn(self, among: np.ndarray | None = None) -> Queries:
        """Draws at most :data:`SAMPLE` of the validation queries at random by the seed; their order is kept.

        Every choice in a fit is based on such queries: the hybrid's settings, gates and epoch, the text tower, and the
        settings of every baseline. Fewer queries are drawn if the scores of all items for them would not fit in memory.

        Args:
          among: The queries to draw from, bool ``[B]``; used for the lift of cold items. By default all.
        """
        size = min(SAMPLE, max(1, SCORES // (2 * self.n_items)))
        rows = np.random.default_rng(self.seed).permutation(len(self.split.validation))
        rows = rows if among is None else rows[among[rows]]
        return self.split.validation.take(np.sort(rows[:size]))

    def measure(self, recommender: Recommender, queries: Queries | None = None, ks: Sequence[int] = (10,)) -> Result:
        """Evaluates a recommender on ``queries``, without confidence intervals.

        Args:
          recommender: The recommender.
          queries: The queries; by default :attr:`sample`.
          ks: Lengths of the lists.
        """
        return evaluate(
            recommender,
            self.sample if queries is None else queries,
            train_counts=self.split.train_counts,
            strata=self.strata,
            ks=ks,
            bootstrap=0,
        )


def _decay_of(settings: ItemWeightSettings) -> float | None:
    """Returns the decay of the statistics that item-item weights are solved from; ``None`` if they need none."""
    settings = settings.settled()
    return settings.decay if settings.next_item else None

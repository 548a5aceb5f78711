"""The shape that all fits share: ``fit_NAME(data, options)``, from :class:`TrainingData` to :class:`Fitted`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
from scipy import sparse

from tfllmrec.columns import DOMAIN
from tfllmrec.config import ExperimentConfig, ItemWeightSettings
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

#: Validation queries that settings are compared on. With 3,000 of beauty's 22,363 the search for item-item weights
#: ended at others than with all of them.
SAMPLE = 6000
#: Numbers in a block of scores, at most: 0.8 GB. A validation sample has two such blocks, of half the rows.
SCORES = 200_000_000

M = TypeVar("M")
O = TypeVar("O")  # noqa: E741


@dataclass(frozen=True)
class Fitted(Generic[M, O]):
    """The result of a fit.

    Attributes:
      model: the fitted model.
      options: the options of the fit, with a value for each *auto*.
      figures: what the fit measured on validation queries, as JSON values; empty for a hybrid, whose metrics
        :meth:`TrainingData.measure` gives.
      chosen: a line for each setting that was chosen from the data.
    """

    model: M
    options: O
    figures: Mapping[str, Any]
    chosen: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All that a fit may look at: training events, validation queries and text vectors; never the test queries.

    Values that several fits need are computed once.

    Attributes:
      split: fits read its training events and its validation queries.
      text: float32 ``[N, Dt]``, in the order of the items table; a row of zeros is an item without text.
      head_share: share of the items, by training events, that are head.
      text_widths: the widths of the encoders' vectors concatenated in ``text``; ``None`` if there is one encoder.
      graph: of the items; ``None``: there is none.
      user_texts: encodes what users write, into vectors as wide as those of ``text``; ``None``: that is not read.
      source_histories: of other domains: items of this catalogue that their users had, oldest first; they count in
        item-item weights where ``item_weights.source`` says so. ``None``: there are none.
      seed: of the sample of validation queries, and of each fit whose options have no seed.
      baselines: the baselines fitted so far, by name; see :func:`tfllmrec.models.baselines.fit_baseline`.
      tried_item_weights: the validation figures of the item-item weights tried so far, by their settings as JSON; see
        :func:`tfllmrec.training.defaults.item_weights_result`.

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
    # By their decay, those of the sources by "sources" and their decay.
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
        """The data of an experiment, with the head share and the seed of its config."""
        head_share, seed = config.evaluation.head_share, config.seed
        return cls(split, np.asarray(text), head_share, seed, text_widths, user_texts, graph)

    @property
    def n_items(self) -> int:
        return self.split.dataset.n_items

    @cached_property
    def histories(self) -> Ragged:
        """Item indices of each training user, oldest first, without what was rejected."""
        return self.split.train_queries().choices

    @property
    def domains(self) -> np.ndarray | None:
        """The domain of each item, object ``[N]``; ``None`` where data is not joined."""
        items = self.split.dataset.items
        return items[DOMAIN].to_numpy(object) if DOMAIN in items else None

    @cached_property
    def unit_text(self) -> np.ndarray:
        """float32 ``[N, Dt]``: the text vectors by :func:`centred_unit`."""
        return centred_unit(self.text, widths=self.text_widths)

    @cached_property
    def graph_view(self) -> sparse.csr_array | None:
        """The graph as a view of the item-item weights, see :func:`tfllmrec.models.graph.view_of`."""
        return None if self.graph is None else view_of(self.graph)

    @cached_property
    def maps_between_domains(self) -> list[MapOnto]:
        """See :func:`tfllmrec.models.domain_weights.maps_between`; for data with domains."""
        assert self.domains is not None
        return maps_between(self.histories, self.domains, self.unit_text, self.text_widths, self.seed)

    def item_weight_statistics(self, settings: ItemWeightSettings) -> ItemWeightStatistics:
        """The statistics of :attr:`histories`, and of the sources that count, from which item-item weights are solved.

        The most recent statistics are kept, because tries of the search, the fit and the run folder use the same ones.
        Statistics that may have more than :data:`~tfllmrec.models.item_weights.MAX_KEPT_PAIRS` pairs are not kept.

        Raises:
          ModelError: see :meth:`tfllmrec.models.item_weights.ItemWeightStatistics.of`.
        """
        needed = _decay_of(settings)
        if needed not in self._statistics:
            self._statistics.clear()  # first, because both may be large
            statistics = ItemWeightStatistics.of(self.histories, self.n_items, settings)
            if pairs_bound(self.histories, self.n_items) > MAX_KEPT_PAIRS:
                return self._with_sources(statistics, settings)
            self._statistics[needed] = statistics
        return self._with_sources(self._statistics[needed], settings)

    def _with_sources(self, statistics: ItemWeightStatistics, settings: ItemWeightSettings) -> ItemWeightStatistics:
        of_sources = self.source_statistics(settings)
        return statistics if of_sources is None else statistics + of_sources

    def source_statistics(self, settings: ItemWeightSettings) -> ItemWeightStatistics | None:
        """The statistics of :attr:`source_histories`, times ``item_weights.source``; ``None`` if they do not count."""
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
        """Makes :meth:`item_weight_statistics` return statistics that were made of earlier ones.

        Args:
          settings: for which they hold.
          statistics: of :attr:`histories`.
        """
        self._statistics.clear()
        self._statistics[_decay_of(settings)] = statistics

    def store_item_weight_statistics(self, path: Path, settings: ItemWeightSettings, tell: Tell) -> None:
        """Writes :meth:`item_weight_statistics` and drops the copy in memory.

        With the file, an update need only read the users that changed. Statistics that may have more than
        :data:`~tfllmrec.models.item_weights.MAX_STORED_PAIRS` pairs of items are not written, nor those of histories
        that were cut (:func:`~tfllmrec.models.item_weights.are_cut`), from which users cannot be subtracted.

        Args:
          path: of the ``.npz``; see :meth:`tfllmrec.models.item_weights.ItemWeightStatistics.load`.
          settings: of the item-item weights.
          tell: called with a line if nothing is written.

        Raises:
          ModelError: see :meth:`tfllmrec.models.item_weights.ItemWeightStatistics.of`.
          WriteError: the disk is full, read-only or broken.
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
        """``head``, ``tail`` and ``cold``, bool ``[N]`` each."""
        return self.split.strata(self.head_share)

    @cached_property
    def sample(self) -> Queries:
        """The validation queries that all choices are made on; see :meth:`drawn`."""
        return self.drawn()

    def drawn(self, among: np.ndarray | None = None) -> Queries:
        """At most :data:`SAMPLE` of the validation queries, drawn by seed, in their order.

        Every choice in a fit is made on such queries: the hybrid's settings, gates and epoch, the text tower, and the
        settings of every baseline. There are fewer where the scores of so many items would not fit into memory.

        Args:
          among: bool ``[B]``; only these queries are drawn, as for the lift of cold items.
        """
        size = min(SAMPLE, max(1, SCORES // (2 * self.n_items)))
        rows = np.random.default_rng(self.seed).permutation(len(self.split.validation))
        rows = rows if among is None else rows[among[rows]]
        return self.split.validation.take(np.sort(rows[:size]))

    def measure(self, recommender: Recommender, queries: Queries | None = None, ks: Sequence[int] = (10,)) -> Result:
        """Figures of a recommender on ``queries``, by default :attr:`sample`, without intervals.

        Args:
          ks: lengths of the lists.
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
    """The decay of the statistics that item-item weights are solved from; ``None`` if they need none."""
    settings = settings.settled()
    return settings.decay if settings.next_item else None

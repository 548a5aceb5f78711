"""What the fits of an update go on from: its parent's weights, and the statistics of its item-item weights.

:mod:`tfllmrec.runs.update` makes the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.config import ExperimentConfig
from tfllmrec.data.extension import known_occurrences
from tfllmrec.data.queries import Queries
from tfllmrec.errors import DataError
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.item_weights import STATISTICS, ItemWeightStatistics
from tfllmrec.progress import Tell
from tfllmrec.runs.run import INTERESTS, Run
from tfllmrec.training.fit import WarmStart
from tfllmrec.training.interests import HeadStart
from tfllmrec.training.ranking import RankingStart, weights_of


@dataclass(frozen=True, eq=False)
class Start:
    """The start of an update.

    Attributes:
      hybrid: of the hybrid. config: to fit it with.
      ranking: of the ranking model; ``None`` if it is fitted as in a fit, or not at all.
      interests: of the head of labels; ``None`` if the parent has none.
    """

    hybrid: WarmStart
    config: ExperimentConfig
    ranking: RankingStart | None
    interests: HeadStart | None


def warm_start(run: Run, data: TrainingData, config: ExperimentConfig, tell: Tell) -> Start:
    """The start of an update.

    The statistics of ``data`` are those of the parent, without the users whose training events changed and with these
    users as they are now. Trained on are the users with new training events, and ``update.replay`` times as many
    others, drawn by the seed.

    Args:
      run: an update that was begun.
      data: of the run; its statistics of item-item weights are set where the parent stored its own.
      config: of the run.
      tell: called with a line for each step.

    Raises:
      DataError: no event is new to the training.
      ModelError: the parent is gone or damaged.
    """
    assert run.update is not None
    parent = Run.open(Path(run.update.parent))
    before, now = parent.split.train_queries(), data.split.train_queries()
    new_events, changed, gone = _changes(before, now, data.n_items)
    active = np.bincount(now.history.row_of_value, new_events, len(now)) > 0
    if not active.any():
        raise DataError(
            f"{run.dataset.name}: none of the new events is a training event, so there is nothing to learn: expected "
            "more events. For new items alone: tfllmrec export RUN saved_models/NAME --items FILE."
        )
    stored = parent.folder / "model" / STATISTICS
    if "behaviour" in config.model.terms and stored.is_file():
        statistics, settings = ItemWeightStatistics.load(stored).extend(data.n_items), config.item_weights
        for users, queries, sign in ((gone, before, -1), (changed, now, 1)):
            if users.any():
                some = ItemWeightStatistics.of(queries.choices.take(users), data.n_items, settings)
                statistics = statistics + some if sign > 0 else statistics - some
        data.set_item_weight_statistics(settings, statistics)
        tell(f"item-item weights: {int(gone.sum()):,} users subtracted, {int(changed.sum()):,} added")
    others = np.random.default_rng(config.seed).permutation(np.flatnonzero(~active))
    replayed = others[: round(config.update.replay * int(active.sum()))]
    tell(
        f"training on {int(active.sum()):,} users with {int(new_events.sum()):,} new training events, and on "
        f"{len(replayed):,} others"
    )
    active[replayed] = True
    of_hybrid = config.model_copy(deep=True)
    of_hybrid.training.epochs = config.update.epochs
    of_hybrid.training.learning_rate *= config.update.learning_rate_share
    model, here = parent.load_model(), np.arange(data.n_items)
    return Start(
        WarmStart(model, np.where(here < model.n_items, here, -1), active, new_events, keeps_choices=True),
        of_hybrid,
        _ranking_start(parent, model, data.split.validation, active, config) if config.ranking.epochs else None,
        HeadStart.of(parent.folder / INTERESTS, active),
    )


def _ranking_start(
    parent: Run, hybrid: Hybrid, validation: Queries, users: np.ndarray, config: ExperimentConfig
) -> RankingStart | None:
    """The start of the ranking model; ``None`` if the parent has none, or one of other settings.

    Args:
      hybrid: the parent's.
    """
    record = parent.ranking_record
    if record is None or parent.config.ranking != config.ranking:
        return None
    model = parent.load_ranking(hybrid) if any(record.strengths) else None
    return RankingStart(
        record,
        [] if model is None else weights_of(model, record.temperature),
        ~_next_items(validation).isin(_next_items(parent.split.validation)),
        users,
        config.update.epochs,
        config.update.learning_rate_share,
    )


def _next_items(queries: Queries) -> pd.MultiIndex:
    """The user and the first target of each query, -1 for none."""
    has = queries.targets.lengths > 0
    first = np.full(len(queries), -1)
    first[has] = queries.targets.values[queries.targets.offsets[:-1][has]]
    return pd.MultiIndex.from_arrays([queries.user_ids, first])


def _changes(before: Queries, now: Queries, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What became of the training histories of some queries, one for each user.

    Returns:
      bool ``[E]``, the events of ``now`` that are not in ``before``; bool ``[U]``, the users of ``now`` with other
      choices than before, or none before; bool ``[V]``, the users of ``before`` with other choices now, or none.
    """
    row = pd.Index(before.user_ids).get_indexer(pd.Index(now.user_ids))
    was = row[now.history.row_of_value]
    known = pd.Series(before.history.row_of_value * n_items + before.history.values)
    key = pd.Series(was * n_items + now.history.values)  # below 0 for new users
    new_events = ~known_occurrences(key, known)
    changed = np.array(
        [at < 0 or not np.array_equal(now.choices[user], before.choices[at]) for user, at in enumerate(row)], bool
    )
    gone = np.ones(len(before), bool)
    gone[row[~changed]] = False
    return new_events, changed, gone

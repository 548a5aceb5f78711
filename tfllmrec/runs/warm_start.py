"""Prepares the fits of an update: the parent's weights, and the statistics of its item-item weights.

:mod:`tfllmrec.runs.update` creates the run.
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
from tfllmrec.training.ranking.fit import RankingStart, weights_of


@dataclass(frozen=True, eq=False)
class Start:
    """The starting point of an update.

    Attributes:
      hybrid: The starting point of the hybrid.
      config: The config to fit the hybrid with.
      ranking: The starting point of the ranking model; ``None`` if it is fitted from scratch, or not at all.
      interests: The starting point of the head of labels; ``None`` if the parent has none.
    """

    hybrid: WarmStart
    config: ExperimentConfig
    ranking: RankingStart | None
    interests: HeadStart | None


def warm_start(run: Run, data: TrainingData, config: ExperimentConfig, tell: Tell) -> Start:
    """Returns the starting point of an update.

    The item-item statistics of ``data`` are those of the parent: users whose training events changed are subtracted,
    and added again in their present state. The models are trained on the users with new training events, and on
    ``update.replay`` times as many other users, drawn with the seed.

    Args:
      run: An update that was started.
      data: The training data of the run; its statistics of item-item weights are set if the parent stored its own.
      config: The config of the run.
      tell: Called with a line of text for each step.

    Raises:
      DataError: None of the new events is a training event.
      ModelError: The parent is missing or damaged.
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
    """Returns the starting point of the ranking model; ``None`` if the parent has none, or one with other settings.

    Args:
      parent: The run that the update continues from.
      hybrid: The parent's model.
      validation: The validation queries of the update.
      users: Bool ``[U]``, the users to train on.
      config: The config of the update.
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
    """Returns the user and the first target of each query, -1 for no target."""
    has = queries.targets.lengths > 0
    first = np.full(len(queries), -1)
    first[has] = queries.targets.values[queries.targets.offsets[:-1][has]]
    return pd.MultiIndex.from_arrays([queries.user_ids, first])


def _changes(before: Queries, now: Queries, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares the earlier and the present training histories, with one query for each user.

    Returns:
      Bool ``[E]``, the events of ``now`` that are not in ``before``; bool ``[U]``, the users of ``now`` who had other
      choices before, or none; bool ``[V]``, the users of ``before`` who have other choices now, or none.
    """
    row = pd.Index(before.user_ids).get_indexer(pd.Index(now.user_ids))
    was = row[now.history.row_of_value]
    known = pd.Series(before.history.row_of_value * n_items + before.history.values)
    key = pd.Series(was * n_items + now.history.values)  # negative for new users
    new_events = ~known_occurrences(key, known)
    changed = np.array(
        [at < 0 or not np.array_equal(now.choices[user], before.choices[at]) for user, at in enumerate(row)], bool
    )
    gone = np.ones(len(before), bool)
    gone[row[~changed]] = False
    return new_events, changed, gone

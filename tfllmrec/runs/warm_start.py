"""What the fit of an update goes on from: its parent's weights, and the statistics of its item-item weights.

:mod:`tfllmrec.runs.update` makes the run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tfllmrec.config import ExperimentConfig
from tfllmrec.data.extension import known_occurrences
from tfllmrec.data.queries import Queries
from tfllmrec.errors import DataError
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import STATISTICS, ItemWeightStatistics
from tfllmrec.progress import Tell
from tfllmrec.runs.run import Run
from tfllmrec.training.fit import WarmStart


def warm_start(
    run: Run, data: TrainingData, config: ExperimentConfig, tell: Tell
) -> tuple[WarmStart, ExperimentConfig]:
    """The start of an update's fit, and the config to fit with.

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
    config = config.model_copy(deep=True)
    config.training.epochs = config.update.epochs
    config.training.learning_rate *= config.update.learning_rate_share
    model, here = parent.load_model(), np.arange(data.n_items)
    return WarmStart(model, np.where(here < model.n_items, here, -1), active, new_events), config


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

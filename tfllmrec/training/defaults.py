"""Chooses the *auto* settings from the data, and returns a line with the reason for each choice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tfllmrec.columns import TIMESTAMP
from tfllmrec.config import ExperimentConfig
from tfllmrec.data.splits import Split
from tfllmrec.errors import ModelError
from tfllmrec.models.fitting import SCORES, TrainingData
from tfllmrec.models.item_weights import (
    MAX_EXACT_ITEMS,
)
from tfllmrec.progress import Tell

FULL_SOFTMAX_ITEMS = 60_000
#: Smallest number of steps in an epoch, as far as batches of 16 histories allow.
STEPS = 64
#: With more training events, fitting the grid of the baseline ials takes longer than training the hybrid.
MAX_IALS_EVENTS = 5_000_000
#: The values of ``model.history_length`` that *auto* chooses from, ascending.
HISTORY_LENGTHS = (50, 100, 150, 200)
#: Mean number of events per item from which ids are learned well, so that much dropout does more harm than good.
OFTEN = 100
#: ``model.dropout`` and ``model.id_dropout``, first with at least :data:`OFTEN` events per item, then with fewer.
DROPOUTS = ((0.2, 0.1), (0.4, 0.3))
#: Largest number of distinct texts of users that *auto* reads; encoding these takes a quarter of an hour on two cores.
MAX_TEXTS = 100_000


def sizes(split: Split, config: ExperimentConfig) -> list[str]:
    """Sets the *auto* sizes of the training in ``config``, and returns lines with the choices and their reasons."""
    lengths = split.train_queries().history.lengths
    mean, n_items, n_events = float(lengths.mean()), split.dataset.n_items, len(split.train)
    training, model, said = config.training, config.model, []
    if model.history_length is None:
        long = float(np.quantile(lengths, 0.9)) if len(lengths) else 0.0
        model.history_length = next((length for length in HISTORY_LENGTHS if length >= long), HISTORY_LENGTHS[-1])
        tried = ", ".join(map(str, HISTORY_LENGTHS))
        which = f"the shortest of {tried} that is enough" if long <= model.history_length else f"the longest of {tried}"
        said.append(
            f"model.history_length {model.history_length}: {which}; 90 % of histories have at most {long:.0f} events"
        )
    per_item = events_per_item(split)
    dropout, id_dropout = DROPOUTS[0] if per_item >= OFTEN else DROPOUTS[1]
    if model.dropout is None:
        model.dropout = dropout
        said.append(f"model.dropout {model.dropout}: {per_item:.0f} events per item on average")
    if model.id_dropout is None:
        model.id_dropout = id_dropout
        said.append(f"model.id_dropout {model.id_dropout}: {per_item:.0f} events per item on average")
    if training.batch_size is None:
        # About 1000 targets in a step, for histories of any length. Few users make small batches: in a few steps, the
        # dense side learns nothing, and the gates leave it out.
        targets, users = min(mean, float(model.history_length)), len(lengths)
        of_targets = int(np.clip(2 ** np.round(np.log2(1000 / targets)), 16, 256))
        training.batch_size = int(np.clip(2 ** np.floor(np.log2(max(users / STEPS, 1))), 16, of_targets))
        reached = training.batch_size == of_targets
        why = f"{mean:.0f} events per history on average" if reached else f"{users:,} histories"
        said.append(f"training.batch_size {training.batch_size}: {why}")
    if training.epochs is None:
        training.epochs = int(np.clip(round(12_000_000 / n_events), 4, 12))
        said.append(f"training.epochs {training.epochs} at most: {n_events:,} training events")
    if training.negatives is None:
        training.negatives = 0 if n_items <= FULL_SOFTMAX_ITEMS else 8192
        how = "the whole catalogue" if training.negatives == 0 else "sampled"
        said.append(f"training.negatives {training.negatives} ({how}): {n_items:,} items")
    block = max(1, SCORES // n_items)
    if config.evaluation.batch_size > block:
        config.evaluation.batch_size = block
        said.append(f"evaluation.batch_size {block}: {n_items:,} items")
    wide = [name for name in config.evaluation.baselines if name in ("ease", "ease_text")]
    if wide and n_items > MAX_EXACT_ITEMS:
        config.evaluation.baselines = [name for name in config.evaluation.baselines if name not in wide]
        said.append(f"evaluation.baselines without {', '.join(wide)}: {n_items:,} items are too many for EASE")
    if "ials" in config.evaluation.baselines and n_events > MAX_IALS_EVENTS:
        config.evaluation.baselines = [name for name in config.evaluation.baselines if name != "ials"]
        said.append(f"evaluation.baselines without ials: {n_events:,} training events take too long for its grid")
    return said


def choose_user_text(data: TrainingData, config: ExperimentConfig, tell: Tell) -> list[str]:
    """Sets ``model.user_text`` in ``config`` if it is *auto*; returns a line on the choice if one was made.

    Args:
      data: The data with the texts and their encoder.
      config: The settings of the fit.
      tell: Called with a warning about texts that may have been written after the test events.

    Raises:
      ModelError: ``model.user_text`` is true, but there is no encoder.
    """
    fields, model = data.split.schema.texts_of_users(), config.model
    if not fields or not model.fields or "meaning" not in model.terms:
        model.user_text = bool(model.user_text)
        return []
    if model.user_text and data.user_texts is None:
        raise ModelError(
            "model.user_text=true: expected an encoder, because the data has texts of users "
            f"({', '.join(field.key for field in fields)}), found none. Pass TrainingData(user_texts=...), "
            "add texts of items, or set model.user_text=false."
        )
    said: list[str] = []
    if model.user_text is None and data.user_texts is not None:
        encoded = data.split.encoded
        columns = [encoded[f"event.{field.name}" if field.owner == "request" else field.key] for field in fields]
        different = int((pd.unique(np.concatenate(columns)) != "").sum())
        model.user_text = different <= MAX_TEXTS
        said.append(
            f"model.user_text {str(model.user_text).lower()}: {', '.join(field.key for field in fields)}, "
            f"{different:,} different texts" + ("" if model.user_text else f", more than {MAX_TEXTS:,}")
        )
    model.user_text = bool(model.user_text)
    timeless = [field.key for field in fields if field.owner == "user"]
    if model.user_text and timeless and data.split.dataset.events[TIMESTAMP].nunique() > 1:
        tell(
            f"warning: {', '.join(timeless)}: a text of a user has no time, so it may have been written after the test "
            "event. Give it with the events instead, if it changes."
        )
    return said


def events_per_item(split: Split) -> float:
    """Returns the mean number of training events of the items that have any."""
    return len(split.train) / max(1, int(np.count_nonzero(split.train_counts)))

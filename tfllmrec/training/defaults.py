"""Settings that say *auto*, chosen from the data; each choice comes with a line that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tfllmrec.config import ExperimentConfig
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.errors import ConfigError
from tfllmrec.evaluation.protocol import evaluate, selection_value
from tfllmrec.models.item_weights import (
    MAX_ITEMS,
    ItemWeightSettings,
    PrunedWeights,
    centred_unit,
    resolved,
    score_history,
    solve_item_weights,
)

#: Validation queries that settings are compared on. With 3,000 of beauty's 22,363 the search for item-item weights
#: ended at others than with all of them.
SAMPLE = 6000
#: What the search for item-item weights may cost: tries times items cubed for exact ones, times items in the low-rank
#: form. Some minutes on two cores: 14 tries with 12,000 items, 4 with 18,000, 20 with 50,000 in low rank. Where
#: there would be only one, the starting point is taken as it is.
SEARCH_WORK = {"exact": 2.5e13, "low_rank": 1e6}
#: A search never comes near a larger limit, which is not worth a word.
SHOWN_TRIES = 100
FULL_SOFTMAX_ITEMS = 60_000
#: Numbers in a block of scores, at most: 0.8 GB. A validation sample has two such blocks, of half the rows.
SCORES = 200_000_000
#: With more training events, fitting the grid of the baseline ials takes longer than training the hybrid.
MAX_IALS_EVENTS = 5_000_000
#: With this many events per item on average, ids are learnt well, and noise costs more than it brings.
OFTEN = 100
#: ``model.dropout`` and ``model.id_dropout`` from :data:`OFTEN` events per item on, and below.
DROPOUTS = ((0.2, 0.1), (0.4, 0.3))


def sizes(split: Split, config: ExperimentConfig) -> list[str]:
    """Fills in *auto* sizes of the training, in place; returns lines that say which were chosen and why."""
    lengths = split.train_queries().history.lengths
    mean, n_items, n_events = float(lengths.mean()), split.dataset.n_items, len(split.train)
    training, model, said = config.training, config.model, []
    if model.history_length is None:
        long = float(np.quantile(lengths, 0.9)) if len(lengths) else 0.0
        model.history_length = int(np.clip(50 * np.ceil(long / 50), 50, 200))
        said.append(f"model.history_length {model.history_length}: nine in ten histories have up to {long:.0f} events")
    per_item = events_per_item(split)
    dropout, id_dropout = DROPOUTS[0] if per_item >= OFTEN else DROPOUTS[1]
    if model.dropout is None:
        model.dropout = dropout
        said.append(f"model.dropout {model.dropout}: {per_item:.0f} events of an item on average")
    if model.id_dropout is None:
        model.id_dropout = id_dropout
        said.append(f"model.id_dropout {model.id_dropout}: {per_item:.0f} events of an item on average")
    if training.batch_size is None:
        # About 1000 targets in a step, whatever the histories' length.
        targets = min(mean, float(model.history_length))
        training.batch_size = int(np.clip(2 ** np.round(np.log2(1000 / targets)), 16, 256))
        said.append(f"training.batch_size {training.batch_size}: histories of {mean:.0f} events on average")
    if training.epochs is None:
        training.epochs = int(np.clip(round(12_000_000 / n_events), 4, 12))
        said.append(f"training.epochs {training.epochs} at most: {n_events:,} training events")
    if training.negatives is None:
        training.negatives = 0 if n_items <= FULL_SOFTMAX_ITEMS else 8192
        how = "the whole catalogue" if training.negatives == 0 else "sampled"
        said.append(f"training.negatives {training.negatives} ({how}): {n_items:,} items")
    if "behaviour" in model.terms:
        if model.item_weights == "auto":
            model.item_weights = resolved("auto", n_items)
            said.append(f"model.item_weights {model.item_weights}: {n_items:,} items")
        if model.item_weights == "exact" and n_items > MAX_ITEMS:
            raise ConfigError(
                f"model.item_weights exact takes at most {MAX_ITEMS:,} items, not {n_items:,}: say auto or low_rank."
            )
    block = max(1, SCORES // n_items)
    if config.evaluation.batch_size > block:
        config.evaluation.batch_size = block
        said.append(f"evaluation.batch_size {block}: {n_items:,} items")
    wide = [name for name in config.evaluation.baselines if name in ("ease", "ease_text")]
    if wide and n_items > MAX_ITEMS:
        config.evaluation.baselines = [name for name in config.evaluation.baselines if name not in wide]
        said.append(f"evaluation.baselines without {', '.join(wide)}: {n_items:,} items are too many for EASE")
    if "ials" in config.evaluation.baselines and n_events > MAX_IALS_EVENTS:
        config.evaluation.baselines = [name for name in config.evaluation.baselines if name != "ials"]
        said.append(f"evaluation.baselines without ials: {n_events:,} training events take too long for its grid")
    return said


def events_per_item(split: Split) -> float:
    """Mean number of training events of the items that have any."""
    return len(split.train) / max(1, int(np.count_nonzero(split.train_counts)))


def validation_sample(split: Split, seed: int, among: np.ndarray | None = None) -> Queries:
    """At most :data:`SAMPLE` of the validation queries, drawn by seed, in their order.

    Every choice in a fit is made on these queries: the hybrid's settings, gates and epoch, the text tower, and the
    settings of every baseline. There are fewer where the scores of so many items would not fit into memory.

    Args:
      split: for its validation queries.
      seed: of the draw.
      among: bool ``[B]``; only these queries are drawn, as for the lift of cold items.
    """
    size = min(SAMPLE, max(1, SCORES // (2 * split.dataset.n_items)))
    rows = np.random.default_rng(seed).permutation(len(split.validation))
    rows = rows if among is None else rows[among[rows]]
    return split.validation.take(np.sort(rows[:size]))


#: Where the search goes from a value, upwards and downwards; in the order in which it looks.
MOVES: dict[str, Callable[[float], tuple[float | None, float | None]]] = {
    "text": lambda v: (v * 3, v / 3),
    "l2": lambda v: (v * 3, v / 3),
    "decay": lambda v: (0.5 * (1 + v), 2 * v - 1 if v > 0.6 else None),
    "popularity": lambda v: (v + 0.25 if v < 1 else None, v - 0.25 if v > 0 else None),
    "co_occurrence": lambda v: (v * 3, v / 3),
}


class _Weights:
    """Item-item weights as a Recommender."""

    def __init__(self, weights: PrunedWeights, decay: float) -> None:
        self.weights, self.decay = weights, decay

    def score(self, queries: Queries) -> np.ndarray:
        return score_history(queries.history, self.weights, self.decay)


def starting_item_weights(split: Split, text: np.ndarray) -> ItemWeightSettings:
    """The settings that the search of :func:`choose_item_weights` starts from.

    They depend on whether events have an order, whether training histories are long, and whether items have text.

    Args:
      split: Its training histories are looked at.
      text: float32 ``[N, Dt]``; zeros where no item has text.
    """
    long = split.train_queries().history.lengths.mean() > 30
    if split.dataset.ordered:
        start = ItemWeightSettings(
            decay=0.9 if long else 0.6,
            l2=300.0 if long else 100.0,
            co_occurrence=0.1,
            text=10.0 if long else 50.0,
            next_item=1.0,
            popularity=0.25,
        )
    else:
        start = ItemWeightSettings(decay=1.0, l2=100.0, co_occurrence=1.0, text=30.0, next_item=0.0, popularity=0.5)
    return start if np.any(text) else replace(start, text=0.0)


def searched_settings(split: Split, text: np.ndarray) -> set[str]:
    """The settings that a search moves: those of recency need events with an order, that of the text needs texts."""
    unordered = set() if split.dataset.ordered else {"decay", "co_occurrence"}
    unread = set() if np.any(text) else {"text"}
    return MOVES.keys() - unordered - unread


def item_weights_value(
    split: Split, text: np.ndarray, config: ExperimentConfig
) -> Callable[[ItemWeightSettings], float]:
    """A function that solves the item-item weights for given settings and returns their selection value on validation.

    Args:
      split: Weights are solved from its training histories, and measured on :func:`validation_sample`.
      text: float32 ``[N, Dt]``, as the encoder gives it.
      config: Form, rank and number of neighbours of the weights, share of head items, seed of the sample.
    """
    histories, n_items = split.train_queries().history, split.dataset.n_items
    unit, model = centred_unit(text), config.model
    sample = validation_sample(split, config.seed)
    strata = split.strata(config.evaluation.head_share)

    def value_of(settings: ItemWeightSettings) -> float:
        weights = solve_item_weights(
            histories,
            n_items,
            settings,
            unit,
            form=model.item_weights,
            rank=model.item_weights_rank,
            neighbours=model.item_weights_neighbours,
        )
        recommender = _Weights(weights, settings.decay)
        result = evaluate(recommender, sample, train_counts=split.train_counts, strata=strata, ks=[10], bootstrap=0)
        return selection_value(result)

    return value_of


def choose_item_weights(
    split: Split, text: np.ndarray, config: ExperimentConfig, progress: Callable[[str], None] | None = None
) -> tuple[ItemWeightSettings, list[str]]:
    """The settings for :func:`solve_item_weights`: those that the config sets, the others by search on validation.

    A coordinate search from :func:`starting_item_weights`: each open setting in turn is moved as long as that helps
    and :data:`SEARCH_WORK` is not used up.

    Args:
      split: Training histories and validation queries are used.
      text: float32 ``[N, Dt]``, as the encoder gives it.
      config: It is not changed.
      progress: Called with a line after each try: its number, settings and selection value.

    Returns:
      The settings, and lines that say which were chosen and why.
    """
    n_items, model = split.dataset.n_items, config.model
    given = model.item_weight_settings
    start = replace(starting_item_weights(split, text), **given)
    moves = {name: step for name, step in MOVES.items() if name in searched_settings(split, text) - given.keys()}
    if not moves:
        return start, []
    form = resolved(model.item_weights, n_items)
    tries = int(SEARCH_WORK[form] // (n_items**3 if form == "exact" else n_items))
    if tries < 2:
        return start, [f"model.item_weights {_said(start)} (not searched: {n_items:,} items)"]
    limit = f" of at most {tries}" if tries <= SHOWN_TRIES else ""
    measured, tried = item_weights_value(split, text, config), 0

    def value_of(settings: ItemWeightSettings) -> float:
        nonlocal tried
        tried, value = tried + 1, measured(settings)
        if progress is not None:
            progress(f"item-item weights, try {tried}{limit}: {_said(settings)}; selection value {value:.4f}")
        return value

    best, best_value = start, value_of(start)
    for name, step in moves.items():
        for direction in range(2):
            moved = False
            while tried < tries:
                there = step(getattr(best, name))[direction]
                if there is None:
                    break
                candidate = replace(best, **{name: round(there, 6)})
                value = value_of(candidate)
                if value <= best_value:
                    break
                best, best_value, moved = candidate, value, True
            if moved:
                break
    return best, [f"model.item_weights {_said(best)}: best of {tried} on validation (selection value {best_value:.4f})"]


def _said(settings: ItemWeightSettings) -> str:
    return (
        f"decay {settings.decay:.3g}, l2 {settings.l2:.3g}, next item {settings.next_item:.3g}, "
        f"co-occurrence {settings.co_occurrence:.3g}, text {settings.text:.3g}, popularity {settings.popularity:.3g}"
    )

"""Chooses the *auto* settings of the item-item weights by searches on validation data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tfllmrec.config import ItemWeightSettings
from tfllmrec.data.domains import domain_bits
from tfllmrec.data.graph import READ
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.evaluation.protocol import Result, selection_gain, selection_value
from tfllmrec.models.domain_weights import with_maps
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import (
    MAX_EXACT_ITEMS,
    MAX_RANK,
    NotPositiveDefinite,
    PrunedWeights,
    between_domains,
    event_weights,
    rank_of,
    score_history,
    solve,
)
from tfllmrec.progress import Tell
from tfllmrec.training.checks import contexts

#: Largest cost of the search for item-item weights: tries times items, times rank / 384 if the rank is higher; for
#: exact weights, tries times items cubed. It takes some minutes on two cores: 20 tries with 50,000 items, or 14 exact
#: ones with 12,000. If only one try is possible, the starting point is used without a search.
SEARCH_WORK, EXACT_SEARCH_WORK = 1e6, 2.5e13
#: The rank at which the search starts.
RANK = 384
#: Exponents to try: an event with the same field value as the request weighs ``exp(k)`` times more; see
#: :func:`choose_context`.
CONTEXT_STRENGTHS = (0.5, 1.0, 1.5)
#: Strengths of the item graph in the item-item weights to try; see :func:`choose_view`.
GRAPH_STRENGTHS = (10.0, 30.0, 100.0)
#: Weights of events of other domains in the item-item weights to try; see :func:`choose_view`.
SOURCE_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
_LEFT_OUT = {"graph": "the graph is left out", "source": "the sources' events are left out"}
#: Factors of the weights between two domains to try, other than 1; see :func:`choose_domains`.
DOMAIN_FACTORS = (0.0, 0.25, 0.5, 2.0, 4.0)
#: Factors of the weights of kinds of events in histories to try, other than 1; see :func:`choose_kinds`.
KIND_FACTORS = (0.0, 0.5, 2.0)
#: Largest number of kinds of events whose factor is chosen, the most frequent ones.
MOST_KINDS = 8
#: Largest number of pairs of domains whose factor is chosen: all pairs of 8 domains.
MOST_PAIRS_OF_DOMAINS = 56
#: The next value that the search tries, upwards and downwards from a value, by setting in the order of the search. The
#: rank is searched before and after the other settings.
MOVES: dict[str, Callable[[float], tuple[float | None, float | None]]] = {
    "text": lambda v: (v * 3, v / 3),
    "l2": lambda v: (v * 3, v / 3),
    "decay": lambda v: (0.5 * (1 + v), 2 * v - 1 if v > 0.6 else None),
    "popularity": lambda v: (v + 0.25 if v < 1 else None, v - 0.25 if v > 0 else None),
    "co_occurrence": lambda v: (v * 3, v / 3),
    "itself": lambda v: (v * 3, v / 3),
}


class _Weights:
    """Item-item weights as a recommender."""

    def __init__(self, weights: PrunedWeights, settings: ItemWeightSettings, data: TrainingData) -> None:
        self.weights, self.settings = weights, settings
        self.domains, self.kind = None, data.split.schema.kind_of_event
        if settings.map and data.domains is not None:
            self.domains = domain_bits(data.domains)

    def score(self, queries: Queries) -> np.ndarray:
        assert self.settings.decay is not None
        of_events = event_weights(queries, self.settings, self.kind)
        return score_history(queries.history, self.weights, self.settings.decay, of_events, self.domains)


def starting_item_weights(data: TrainingData) -> ItemWeightSettings:
    """Returns the settings at which the search of :func:`choose_item_weights` starts.

    They depend on whether events have an order, whether users return to items, whether training histories are long, and
    whether items have text.
    """
    long = data.histories.lengths.mean() > 30
    if data.split.dataset.ordered:
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
    start.rank = RANK
    start.graph = start.source = 0.0  # see choose_view
    start.itself = 3.0 if data.split.dataset.repeats else 0.0
    return start if np.any(data.text) else start.model_copy(update={"text": 0.0})


def searched_settings(data: TrainingData) -> set[str]:
    """Returns the names of the settings that a search changes.

    The settings of recency require events with an order, ``text`` requires texts, and ``itself``, the weight of an item
    for itself, requires users who return to items.
    """
    unordered = set() if data.split.dataset.ordered else {"decay", "co_occurrence"}
    unread = set() if np.any(data.text) else {"text"}
    returning = set() if data.split.dataset.repeats else {"itself"}
    return {"rank", *MOVES} - unordered - unread - returning


def item_weights_value(data: TrainingData, settings: ItemWeightSettings) -> float:
    """Returns the selection value on the validation sample of item-item weights solved from the training histories."""
    return selection_value(item_weights_result(data, settings))


def item_weights_result(data: TrainingData, settings: ItemWeightSettings) -> Result:
    """Returns the validation result of item-item weights solved from the training histories; cached in ``data``."""
    settings = settings.settled()
    key = settings.model_dump_json()
    if key not in data.tried_item_weights:
        data.tried_item_weights[key] = data.measure(_Weights(_solved(data, settings), settings, data))
    return data.tried_item_weights[key]


def most_tries(rank: int | Literal["all"] | None, n_items: int) -> int:
    """Returns the number of tries of a rank (``None``: :data:`RANK`) that :data:`SEARCH_WORK` allows a search."""
    solved = rank_of(rank or RANK, n_items)
    if solved == n_items:
        return int(EXACT_SEARCH_WORK // n_items**3)
    return int(SEARCH_WORK // (n_items * max(1, solved / RANK)))


def ranks_from(rank: int | Literal["all"], n_items: int) -> tuple[int | None, int | Literal["all"] | None]:
    """Returns the lower and the higher rank that a search tries next; ``None`` if there is none.

    Ranks are halved and doubled. Instead of a rank above a quarter of the items, an exact solution is tried, which
    takes no longer.
    """
    now = rank_of(rank, n_items)
    lower = now // 2 if now > 24 else None
    if now == n_items:
        return lower, None
    if 8 * now <= n_items or n_items > MAX_EXACT_ITEMS:
        return lower, 2 * now if 2 * now <= MAX_RANK else None
    return lower, "all"


def open_views(data: TrainingData, given: ItemWeightSettings) -> dict[str, Sequence[float]]:
    """Returns the views whose strengths are chosen separately after the search, with the strengths to try."""
    views: dict[str, Sequence[float]] = {}
    if given.graph is None and data.graph is not None and any(each.kind in READ for each in data.graph.relations):
        views["graph"] = GRAPH_STRENGTHS
    if given.source is None and data.source_histories is not None and len(data.source_histories.values):
        views["source"] = SOURCE_STRENGTHS
    return views


def _solved(data: TrainingData, settings: ItemWeightSettings) -> PrunedWeights:
    weights = solve(data.item_weight_statistics(settings), settings, data.unit_text, data.graph_view)
    if settings.map and data.domains is not None:
        weights = with_maps(weights, data.maps_between_domains, data.domains)
    return between_domains(weights, data.domains, settings.domains)


def choose_item_weights(
    data: TrainingData, given: ItemWeightSettings, tried: list[ItemWeightSettings], tell: Tell | None = None
) -> tuple[ItemWeightSettings, list[str]]:
    """Chooses the settings of the item-item weights that are not given, by a search on validation data.

    It is a coordinate search that starts at :func:`starting_item_weights`: each open setting in turn is changed as long
    as the result improves and :data:`SEARCH_WORK` is not used up. A part of this work is reserved for
    :func:`choose_view`.

    Args:
      data: Training histories, text vectors and validation queries.
      given: The given settings; they are not changed.
      tried: An empty list, to which the settings of each try are added, also if :attr:`TrainingData.tried_item_weights`
        has their result. :func:`choose_view` gets what these tries leave of the work.
      tell: Called with a line after each try: its number, settings and selection value.

    Returns:
      The settings, and lines with the choices and their reasons.
    """
    n_items, fixed = data.n_items, given.model_dump(exclude_none=True)
    start = starting_item_weights(data).model_copy(update=fixed)
    moves: dict[str, Callable[[Any], tuple[Any, Any]]] = MOVES | {"rank": lambda rank: ranks_from(rank, n_items)}
    searched = searched_settings(data) - fixed.keys()
    order = [name for name in ("rank", *MOVES, "rank") if name in searched]
    if not order:
        return start, []
    kept = sum(map(len, open_views(data, given).values()))
    if most_tries(start.rank, n_items) - kept < 2:
        return start, [f"item_weights {_said(start)} (not searched: {n_items:,} items)"]

    def value_of(settings: ItemWeightSettings) -> float:
        tried.append(settings)
        try:
            value = item_weights_value(data, settings)
        except NotPositiveDefinite:  # there is no solution for these settings
            value = -np.inf
        if tell is not None:
            tell(f"item-item weights, try {len(tried)}: {_said(settings)}; selection value {value:.4f}")
        return value

    best, best_value = start, value_of(start)
    for name in order:
        for direction in range(2):
            moved = False
            while (there := moves[name](getattr(best, name))[direction]) is not None:
                candidate = best.model_copy(update={name: round(there, 6) if isinstance(there, float) else there})
                if candidate in tried or len(tried) >= most_tries(candidate.rank, n_items) - kept:
                    break
                value = value_of(candidate)
                if value <= best_value:
                    break
                best, best_value, moved = candidate, value, True
            if moved:
                break
    return best, [f"item_weights {_said(best)}: best of {len(tried)} on validation (selection value {best_value:.4f})"]


def choose_view(
    name: Literal["graph", "source"],
    data: TrainingData,
    given: ItemWeightSettings,
    settings: ItemWeightSettings,
    tried: list[ItemWeightSettings],
    tell: Tell,
) -> tuple[ItemWeightSettings, list[str]]:
    """Sets ``graph``, the strength of the item graph, or ``source``, the weight of the events of other domains.

    It is the best of :data:`GRAPH_STRENGTHS` or :data:`SOURCE_STRENGTHS` on validation data if its gain is significant
    (as for the popularity discount of the gates), else 0, so that a graph or events that make the lists worse are not
    used. The number of tries is limited to what the search for the other settings left of :data:`SEARCH_WORK`.

    Args:
      name: Which of the two is set.
      data: The data, with or without :attr:`TrainingData.graph` and :attr:`TrainingData.source_histories`.
      given: The given settings. If they contain a strength, there is nothing to choose.
      settings: The settings of the item-item weights, all chosen except ``graph``, ``source``, ``domains`` and
        ``context``. They are not changed.
      tried: The settings that this fit has tried so far, to which those of each try are added.
      tell: Called with a line for each try.

    Returns:
      The settings, and a line on the choice; no line if nothing was chosen.
    """
    views = open_views(data, given)
    if name not in views:
        return settings, []
    untried = [] if settings in tried else [settings]
    left = most_tries(settings.rank, data.n_items) - len(tried + untried)
    strengths = views[name][: max(0, left)]
    if not strengths:
        said = (
            f"item_weights.{name} 0 (not tried: {data.n_items:,} items; {_LEFT_OUT[name]} unless item_weights.{name} "
            "is set)"
        )
        return settings.model_copy(update={name: 0.0}), [said]
    without, found = item_weights_result(data, settings), {}
    tried += untried
    for strength in strengths:
        candidate = settings.model_copy(update={name: strength})
        found[strength] = item_weights_result(data, candidate)
        tried.append(candidate)
        tell(f"item_weights.{name} {strength:g}: selection value {selection_value(found[strength]):.4f}")
    best = max(strengths, key=lambda strength: selection_value(found[strength]))
    gain, low, high = selection_gain(found[best], without, confidence=1 - 0.05 / len(strengths))
    taken = best if low > 0 else 0.0
    why = "" if taken else f" ({_LEFT_OUT[name]}: {best:g} gains no more than chance)"
    said = f"item_weights.{name} {taken:g}{why}: {gain:+.4f} [{low:+.4f}, {high:+.4f}] on validation with {best:g}"
    return settings.model_copy(update={name: taken}), [said]


def choose_domains(
    data: TrainingData, settings: ItemWeightSettings, tell: Tell
) -> tuple[ItemWeightSettings, list[str]]:
    """Sets ``domains``, the factors of the weights between pairs of domains of joined data.

    For each pair of a domain of histories and one of targets, one after the other, the best of :data:`DOMAIN_FACTORS`
    replaces 1 if its gain on validation data is significant for all factors and pairs together (Bonferroni). A factor
    below 1 means that events of the other domain do harm at their full weight (negative transfer); with 0, they are
    ignored.

    Args:
      data: Validation queries and training events. If the items have no domains, there is nothing to choose.
      settings: The settings of the item-item weights, all chosen except ``domains`` and ``context``. They are not
        changed.
      tell: Called with a line for each factor.

    Returns:
      The settings, and a line for each pair of domains, with the metric in the strata head and tail. All factors are 1
      if there are more than :data:`MOST_PAIRS_OF_DOMAINS` pairs.
    """
    if settings.domains is not None or len(data.items_of_domains) < 2:
        return settings, []
    known, wanted = (
        [name for name, own in data.items_of_domains.items() if np.isin(own, items.values).any()]
        for items in (data.sample.history, data.sample.targets)
    )
    pairs = [(a, b) for b in wanted for a in known if a != b]
    if len(pairs) > MOST_PAIRS_OF_DOMAINS:
        what = f"expected at most {MOST_PAIRS_OF_DOMAINS} pairs of domains to try, found {len(pairs):,}"
        return settings.model_copy(update={"domains": {}}), [f"item_weights.domains 1: {what}"]
    weights = _solved(data, settings)

    def measured(factors: dict[str, float]) -> Result:
        return data.measure(_Weights(between_domains(weights, data.domains, factors), settings, data))

    chosen, said = _choose_factors("domains", [">".join(pair) for pair in pairs], DOMAIN_FACTORS, measured, tell)
    return settings.model_copy(update={"domains": chosen}), said


def choose_kinds(data: TrainingData, settings: ItemWeightSettings, tell: Tell) -> tuple[ItemWeightSettings, list[str]]:
    """Sets ``kinds``, the factors of the weights of kinds of events in histories.

    The strongest kind of the validation histories keeps its weight. For each other kind whose weight is not 0, the best
    of :data:`KIND_FACTORS` replaces 1 by the rule of :func:`choose_domains`. With 0, events of the kind are ignored in
    histories. They are targets even so, and are known to the user.

    Args:
      data: Validation queries. If all events have the same weight, there is nothing to choose.
      settings: The settings of the item-item weights, all chosen except ``kinds`` and ``context``. They are not
        changed.
      tell: Called with a line for each factor.

    Returns:
      The settings, and a line for each kind, as in :func:`choose_domains`.
    """
    kind = data.split.schema.kind_of_event
    if settings.kinds is not None or kind is None:
        return settings, []
    codes = data.sample.fields[kind.key]
    assert isinstance(codes, Ragged)
    there = [code for code in range(2, kind.size_in_data) if kind.code_weights[code] and (codes.values == code).any()]
    strongest = max(there, key=lambda code: kind.code_weights[code], default=None)
    others = [kind.vocabulary[code - 2] for code in there if code != strongest][:MOST_KINDS]
    if not others:
        return settings.model_copy(update={"kinds": True}), []
    weights = _solved(data, settings)

    def measured(factors: dict[str, float]) -> Result:
        return data.measure(_Weights(weights, settings.model_copy(update={"kinds": factors}), data))

    chosen, said = _choose_factors("kinds", others, KIND_FACTORS, measured, tell)
    return settings.model_copy(update={"kinds": chosen or True}), said


def _choose_factors(
    setting: str,
    keys: Sequence[str],
    factors: Sequence[float],
    measured: Callable[[dict[str, float]], Result],
    tell: Tell,
) -> tuple[dict[str, float], list[str]]:
    """Chooses a factor for each of ``keys``, one after the other; those that stay 1 are left out.

    The best factor is taken if its gain is significant for all factors and keys together (Bonferroni).
    """
    chosen: dict[str, float] = {}
    said: list[str] = []
    best = measured({})
    for key in keys:
        tried = {}
        for factor in factors:
            tried[factor] = measured(chosen | {key: factor})
            tell(f"item_weights.{setting} {key} {factor:g}: selection value {selection_value(tried[factor]):.4f}")
        factor = max(factors, key=lambda factor: selection_value(tried[factor]))
        confidence = 1 - 0.05 / (len(factors) * len(keys))
        found, low, high = selection_gain(tried[factor], best, confidence=confidence)
        strata = ", ".join(
            f"{label} {best.metrics[label]:.4f} with 1, {tried[factor].metrics[label]:.4f} with {factor:g}"
            for label in ("ndcg@10/head", "ndcg@10/tail")
            if best.metrics.get(label) is not None
        )
        taken = factor if low > 0 else 1.0
        said.append(
            f"item_weights.{setting} {key} {taken:g}: {found:+.4f} [{low:+.4f}, {high:+.4f}] on validation with "
            f"{factor:g}; {strata}"
        )
        if low > 0:
            chosen[key], best = factor, tried[factor]
    return chosen, said


def choose_context(
    data: TrainingData, settings: ItemWeightSettings, tell: Tell
) -> tuple[ItemWeightSettings, list[str]]:
    """Sets ``context``, the additional weight of events that share a field, such as the weekday, with the request.

    Each field is tried alone. Then, the fields are added one after the other, the best first, each with the best of
    :data:`CONTEXT_STRENGTHS`. They are kept if the gain of all together is significant for all strengths and fields
    (Bonferroni).

    Args:
      data: Validation queries, whose single-valued categories of the request are tried.
      settings: The settings of the item-item weights, all chosen except ``context``. They are not changed.
      tell: Called with a line for each field that is added.

    Returns:
      The settings, and a line on the choice; no line if there are no such fields, or ``context`` is given.
    """
    fields = contexts(data.split.schema)
    if settings.context is not None or not fields:
        return settings, []
    weights = _solved(data, settings)

    def measured(context: dict[str, float]) -> Result:
        return data.measure(_Weights(weights, settings.model_copy(update={"context": context}), data))

    plain = best = measured({})
    alone = {name: selection_value(measured({name: CONTEXT_STRENGTHS[0]})) for name in fields}
    context: dict[str, float] = {}
    for name in sorted(fields, key=lambda name: -alone[name]):
        if alone[name] <= selection_value(plain):
            break
        strength, result = max(
            ((strength, measured(context | {name: strength})) for strength in CONTEXT_STRENGTHS),
            key=lambda tried: selection_value(tried[1]),
        )
        if selection_value(result) > selection_value(best):
            context, best = context | {name: strength}, result
            tell(f"item-item weights: context {name} {strength:g}; selection value {selection_value(best):.4f}")
    tries = len(fields) * len(CONTEXT_STRENGTHS)
    if context and selection_gain(best, plain, confidence=1 - 0.05 / tries)[1] <= 0:
        context = {}
    said = ", ".join(f"{name} {strength:g}" for name, strength in context.items()) or "does not help"
    figures = f"selection value {selection_value(plain):.4f} without it, {selection_value(best):.4f} with the best"
    settings = settings.model_copy(update={"context": context})
    return settings, [f"item_weights context: {said} ({figures}, on validation)"]


def _said(settings: ItemWeightSettings) -> str:
    return (
        f"decay {settings.decay:.3g}, l2 {settings.l2:.3g}, next item {settings.next_item:.3g}, "
        f"co-occurrence {settings.co_occurrence:.3g}, text {settings.text:.3g}, popularity {settings.popularity:.3g}, "
        f"rank {settings.rank}" + (f", itself {settings.itself:.3g}" if settings.itself else "")
    )

"""Exploration: rarely shown items are randomly placed in some lists, with known probabilities.

    settings = Exploration(epsilon=0.2, max_loss=0.01, places=2, method="thompson")
    choice = settings.plan(items, scores, exposures, k=10, clicks=clicks, rng=rng).draw(rng)
    choice.items, choice.propensity  # the list to show, and the probabilities to log

At each of the last ``places`` positions of a list, or at all positions of a shorter list, the best item is kept with
probability ``1 - epsilon`` and otherwise replaced by a tail item. Tail items are candidates that are not on the list
and have had at most ``tail_exposures`` exposures; only the best :data:`MAX_TAIL` of them are used. Two methods order
them:

- ``uniform``: each order is equally likely (epsilon-greedy).
- ``thompson`` (Thompson 1933): the click rate of each item has a Beta distribution. Its prior counts as
  :data:`PRIOR_EXPOSURES` exposures with the click rate that the model predicts, the score. :data:`DRAWS` draws from
  these distributions give as many orders, and one of them is chosen. With probability :data:`FLOOR` the order is
  uniform instead, so that each tail item has a probability above 0.

An explored position gets the item at the same position of the order, so no item appears twice.

**Propensities** are exact. With ``uniform``, each of T tail items has the probability ``epsilon / T`` at a position.
With ``thompson``, an item that is at the position in m of the M drawn orders has ``epsilon (0.9 m / M + 0.1 / T)``.
This is the probability given the draws, which are made before the choice and do not depend on it. Inverse propensity
scores (:mod:`tfllmrec.feedback.off_policy`) need nothing else.

**Loss.** The expected loss of a list is the sum over the explored positions of ``epsilon (best - tail)``: the score of
the position's best item minus the expected score of the tail item. Its unit is that of the scores: expected clicks per
list if scores are click rates. It relies on the scores and does not correct them for position. A list whose expected
loss would be above ``max_loss`` is explored with a smaller ``epsilon``, so that its expected loss is ``max_loss``.

``tfllmrec serve --explore`` explores the lists of a server (:mod:`tfllmrec.server.exploring`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tfllmrec.errors import ConfigError, DataError

Method = Literal["uniform", "thompson"]
#: The number of exposures that the prior of a click rate counts as.
PRIOR_EXPOSURES = 20.0
#: The number of orders drawn for a list, and the share of uniform orders.
DRAWS, FLOOR = 256, 0.1
#: The maximum number of tail items for a list.
MAX_TAIL = 500


@dataclass(frozen=True)
class Choice:
    """A list to show, ``[K]`` each, best first.

    Attributes:
      items: Object, the item ids.
      propensity: Float64, the probability of the item at its position.
      explored: Bool, whether the position was explored.
    """

    items: np.ndarray
    propensity: np.ndarray
    explored: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The probabilities of a list, from which any number of lists can be drawn.

    Attributes:
      best: Object ``[K]``, the list without exploration.
      tail: Object ``[T]``, the items that may be explored.
      orders: Int64 ``[M, places]``, drawn orders of the tail; empty if all orders are equally likely.
      floor: The share of uniform orders.
      epsilon: The probability of exploration at each of the last positions; smaller than in the settings if
        ``max_loss`` requires it.
      probability: Float64 ``[places, T]``, the probability of each tail item at each of the last positions.
      expected_loss: The expected loss of a list, in the unit of the scores.
    """

    best: np.ndarray
    tail: np.ndarray
    orders: np.ndarray
    floor: float
    epsilon: float
    probability: np.ndarray
    expected_loss: float

    def draw(self, rng: np.random.Generator) -> Choice:
        """Draws a list."""
        items, places = self.best.copy(), len(self.probability)
        propensity, explored = np.ones(len(items)), np.zeros(len(items), dtype=bool)
        if places:
            last = slice(len(items) - places, None)
            explored[last] = rng.random(places) < self.epsilon
            if rng.random() < self.floor:
                order = rng.permutation(len(self.tail))[:places]
            else:
                order = self.orders[rng.integers(len(self.orders))]
            items[last] = np.where(explored[last], self.tail[order], items[last])
            of_tail = self.probability[np.arange(places), order]
            propensity[last] = np.where(explored[last], of_tail, 1 - self.epsilon)
        return Choice(items, propensity, explored)


@dataclass(frozen=True)
class Exploration:
    """The settings of exploration; see the module.

    Attributes:
      epsilon: The probability of exploration at each position that may be explored.
      max_loss: The largest expected loss of a list, in the unit of the scores; ``epsilon`` is lowered to respect it.
      places: The number of positions that may be explored, at the end of a list; all positions of a shorter list.
      method: ``uniform`` or ``thompson``.
      tail_exposures: An item with at most this many exposures belongs to the tail.

    Raises:
      ConfigError: A setting is out of range.
    """

    epsilon: float
    max_loss: float
    places: int = 2
    method: Method = "uniform"
    tail_exposures: int = 100

    def __post_init__(self) -> None:
        for name, right, expected in (
            ("epsilon", 0 < self.epsilon <= 1, "a number above 0 and at most 1"),
            ("max_loss", 0 <= self.max_loss < np.inf, "a number that is 0 or more"),
            ("places", self.places >= 1, "1 or more"),
            ("method", self.method in ("uniform", "thompson"), "uniform or thompson"),
            ("tail_exposures", self.tail_exposures >= 0, "0 or more"),
        ):
            if not right:
                raise ConfigError(f"Expected {expected} for {name} of exploration, found {getattr(self, name)!r}.")

    def plan(
        self,
        items: Sequence[object],
        scores: np.ndarray,
        exposures: np.ndarray,
        k: int,
        *,
        clicks: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Plan:
        """Plans a list for one request.

        With fewer tail items than ``places``, only as many of the last positions are explored; without tail items,
        none are.

        Args:
          items: The ids of the candidates, best first, ``[N]``.
          scores: Float ``[N]``, descending; click rates for ``thompson``.
          exposures: Int ``[N]``, how often each item was shown.
          k: The length of the list.
          clicks: Int ``[N]``, how often each item was clicked; required for ``thompson``.
          rng: The random numbers of the drawn orders; required for ``thompson``.

        Raises:
          ConfigError: ``k`` is below 0, or ``thompson`` lacks ``clicks`` or ``rng``.
          DataError: The arrays differ in length, an item occurs twice, the scores do not descend or, for ``thompson``,
            are not rates, or counts are impossible.
        """
        scores, exposures = np.asarray(scores, dtype=np.float64), np.asarray(exposures, dtype=np.float64)
        n = len(items)
        if k < 0:
            raise ConfigError(f"Expected 0 or more items in a list, found k={k}.")
        if scores.shape != (n,) or exposures.shape != (n,) or len(set(items)) < n:
            raise DataError(
                f"Expected a score and a number of exposures for each of {n:,} items, each once; found "
                f"{len(set(items)):,} items, {scores.size:,} scores and {exposures.size:,} numbers of exposures."
            )
        if not np.isfinite(scores).all() or (np.diff(scores) > 0).any():
            raise DataError("Expected scores that descend, found others: give the best item first.")
        if not (exposures >= 0).all():
            raise DataError("Expected numbers of exposures that are 0 or more, found others.")
        ids = np.array(list(items), dtype=object)
        tail = k + np.flatnonzero(exposures[k:] <= self.tail_exposures)[:MAX_TAIL]
        places = min(self.places, k, len(tail))
        if places == 0:
            return Plan(ids[:k], ids[:0], np.zeros((0, 0), np.int64), 1.0, self.epsilon, np.zeros((0, 0)), 0.0)
        share = np.full((places, len(tail)), 1 / len(tail))
        orders, floor = np.zeros((0, places), np.int64), 1.0
        if self.method == "thompson":
            if clicks is None or rng is None:
                raise ConfigError("Expected clicks and rng for the method thompson of exploration.")
            clicks = np.asarray(clicks, dtype=np.float64)
            if clicks.shape != (n,) or not ((clicks >= 0) & (clicks <= exposures)).all():
                raise DataError("Expected a number of clicks for each item, from 0 to its exposures; found others.")
            orders, floor = _thompson_orders(scores[tail], exposures[tail], clicks[tail], places, rng), FLOOR
            counted = np.stack([np.bincount(column, minlength=len(tail)) for column in orders.T])
            share = (1 - FLOOR) * counted / DRAWS + FLOOR * share
        cost = float((scores[k - places : k] - share @ scores[tail]).sum())
        epsilon = self.epsilon if self.epsilon * cost <= self.max_loss else self.max_loss / cost
        return Plan(ids[:k], ids[tail], orders, floor, epsilon, epsilon * share, epsilon * cost)


def _thompson_orders(
    scores: np.ndarray, exposures: np.ndarray, clicks: np.ndarray, places: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns the first items of :data:`DRAWS` orders of the tail, int64 ``[M, places]``."""
    if not ((scores > 0) & (scores < 1)).all():
        raise DataError(
            f"Expected click rates above 0 and below 1 as scores for thompson, found {scores.min():.4g} to "
            f"{scores.max():.4g}. Give the click rates of the ranking model, or use the method uniform."
        )
    a = PRIOR_EXPOSURES * scores + clicks
    b = PRIOR_EXPOSURES * (1 - scores) + exposures - clicks
    return np.argsort(-rng.beta(a, b, (DRAWS, len(scores))), axis=1, kind="stable")[:, :places]

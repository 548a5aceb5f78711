"""Checks whether the order of each user's events can be the order in which they happened.

Leave-last-out tests on each user's last event. The result means nothing if the file was sorted by item id, or if ties
in time decide which event is the last. Each check returns a :class:`Finding` with the action ``doubted``, or None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM, ITEM_INDEX, RATING, TIMESTAMP, USER_INDEX
from tfllmrec.data.findings import Finding

MIN_USERS = 20
"""Minimum number of users (or items) for a check."""
ALMOST_ALL = 0.9
"""Events count as sorted if at least this share of pairs ascends (or descends); a random order has 0.5."""
MIN_COMPARED = 1 / 3
"""Share of adjacent events that must differ in a column before it can explain their order."""
MIN_TIED = 0.01
"""Ties are reported if at least this share of users has a tied last or second last event."""
MIN_EXCESS, MIN_Z = 0.03, 5.0
"""Ties count as broken by id if adjacent events ascend more often than events two apart by at least this share, with
at least this z value."""
MANY_EVENTS, MAX_COLD, MIN_COLD_RATIO = 5, 0.03, 5.0
"""Events from which an item has many; the share of test targets that may be cold items with many events; and the
ratio of their number to the expected number that is still usual."""
MAX_SAME_ITEM = 0.5
"""Share of users that may have the same last item."""
MAX_BACK = 0.1
"""Share of adjacent events that may go back in time if an order column orders them."""
MIN_ROWS = 100
"""Minimum number of rows to tell row numbers from times."""
MAX_COMPARED = 1_000_000
"""Number of events, those of the first users, that are checked for being sorted; more would only take longer."""

_REMEDY = (
    "Find out how the file was sorted, name the column with the real time or order under data.columns, or set "
    "split.kind to leave_random_out"
)


def by_id(ids: pd.Series) -> np.ndarray:
    """Returns int64 ``[N]``: the rows in natural order of id, shorter ids first, then by character: 9 before 10."""
    lengths = ids.str.len().to_numpy(dtype=np.int64)
    return np.lexsort((pd.factorize(ids, sort=True)[0], lengths))


def numbers_the_rows(key: np.ndarray, rows: np.ndarray) -> bool:
    """Returns whether an order or time column changes by the same step from row to row, as a row number does.

    Args:
      key: Float64 ``[R]``, the values of the rows that are used.
      rows: Int64 ``[R]``, the positions of these rows in the file, ascending.
    """
    if len(key) < MIN_ROWS:
        return False
    steps = np.diff(key) / np.diff(rows)
    return steps[0] != 0 and bool(np.ptp(steps) <= 1e-6 * abs(steps[0]))


def order_doubts(
    events: pd.DataFrame, tied: np.ndarray, items: pd.DataFrame, item_orders: Mapping[str, np.ndarray]
) -> list[Finding]:
    """Finds reasons to doubt that ordered events are in the order in which they happened.

    Args:
      events: As in :attr:`Dataset.events`, sorted by user and order.
      tied: Bool ``[E]``, whether only the rating or the hash of ids separates an event from the user's previous event.
      items: As in :attr:`Dataset.items`.
      item_orders: Further orders of the items that the events may have been sorted by, such as the rows of the
        catalogue: name -> int ``[N]`` ranks.

    Returns:
      Findings with the action ``doubted``, each with figures, why they matter and what to do. A check needs at least 20
      users, or 20 items if it compares items.
    """
    users = events[USER_INDEX].to_numpy()
    event_items = events[ITEM_INDEX].to_numpy()
    orders = {**_id_orders(items[ITEM]), **item_orders}
    some_users, some_items, some_ratings = (
        values[:MAX_COMPARED] for values in (users, event_items, events[RATING].to_numpy())
    )
    found = [
        _order_against_time(users, events[TIMESTAMP].to_numpy()),
        _one_time_a_user(users, tied) or _tied_targets(users, tied),
        _one_time_an_item(event_items, events[TIMESTAMP].to_numpy()),
        _sorted_by_item(some_users, some_items, items, orders) or _ties_by_id(some_users, some_items, orders),
        _sorted_by_rating(some_users, some_ratings),
        _cold_targets(users, event_items),
        _same_last_item(users, event_items, items[ITEM]),
    ]
    return [finding for finding in found if finding]


def _doubt(what: str, count: int) -> Finding:
    return Finding("events", what, int(count), "doubted")


def _from_end(users: np.ndarray) -> np.ndarray:
    """Returns int64 ``[E]``: 0 for the last event of a user, 1 for the one before, and so on."""
    return np.cumsum(np.bincount(users))[users] - 1 - np.arange(len(users))


def _one_time_a_user(users: np.ndarray, tied: np.ndarray) -> Finding | None:
    counts = np.bincount(users)
    several = counts > 1
    same = several & (np.bincount(users, weights=tied) == counts - 1)
    if several.sum() < MIN_USERS or same.sum() < ALMOST_ALL * several.sum():
        return None
    return _doubt(
        f"{same.sum():,} of {several.sum():,} users with several events have one time for all of them: no event is "
        f"known to be the last, and holding out a last event measures nothing. {_REMEDY}",
        same.sum(),
    )


def _order_against_time(users: np.ndarray, seconds: np.ndarray) -> Finding | None:
    later = np.diff(seconds)
    compared = (np.diff(users) == 0) & np.isfinite(later) & (later != 0)
    back = compared & (later < 0)
    if len(np.unique(users[1:][compared])) < MIN_USERS or back.sum() <= MAX_BACK * compared.sum():
        return None
    return _doubt(
        f"the order column contradicts the times: in {back.sum() / compared.sum():.1%} of adjacent events with "
        "different times the earlier one comes later in order, so the newest event of a user is not the last. If the "
        "column counts from the newest event, or is the place in a list or basket, remove it, or map another one to "
        "order under data.columns",
        back.sum(),
    )


def _tied_targets(users: np.ndarray, tied: np.ndarray) -> Finding | None:
    from_end = _from_end(users)
    held_out = np.bincount(users)[users] >= 3  # users with fewer events are for training only
    n_users = int((held_out & (from_end == 0)).sum())
    last, second = (int((held_out & tied & (from_end == place)).sum()) for place in (0, 1))
    either = len(np.unique(users[held_out & tied & (from_end <= 1)]))
    if n_users < MIN_USERS or either < MIN_TIED * n_users:
        return None
    return _doubt(
        f"ties decide the held-out items of {either:,} of {n_users:,} users ({either / n_users:.1%}): the last event "
        f"of {last:,} users ({last / n_users:.1%}) has the same time as the event before it, and so has the second "
        f"last of {second:,} ({second / n_users:.1%}). A hash of user and item id breaks these ties, so other programs "
        "hold out other items and their figures differ. Give finer times or an order column (data.columns), or hold "
        "out whole periods with split.kind global_time",
        either,
    )


def _one_time_an_item(items: np.ndarray, seconds: np.ndarray) -> Finding | None:
    spans = pd.Series(seconds).groupby(items).agg(["count", "min", "max"])
    spans = spans[spans["count"] >= MANY_EVENTS]
    same = int((spans["min"] == spans["max"]).sum())
    if len(spans) < MIN_USERS or same < ALMOST_ALL * len(spans):
        return None
    return _doubt(
        f"{same:,} of {len(spans):,} items with at least {MANY_EVENTS} events have one time for all of them: the time "
        f"seems to belong to the item, like a release date, and does not say when a user met it. {_REMEDY}",
        same,
    )


def _id_orders(ids: pd.Series) -> dict[str, np.ndarray]:
    natural = np.empty(len(ids), dtype=np.int64)
    natural[by_id(ids)] = np.arange(len(ids))
    return {"item id": natural, "item id as text": pd.factorize(ids, sort=True)[0]}


def _column_orders(items: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Yields for each column of the catalogue its name and the ranks of the items by it; -1 for an empty cell."""
    for column in items.columns.drop(ITEM):
        values = items[column].where(items[column] != "")
        parsed = pd.to_numeric(values, errors="coerce")
        if parsed.notna().equals(values.notna()):
            yield column, pd.factorize(parsed, sort=True)[0]
        else:
            yield column, pd.factorize(values, sort=True)[0]
            yield f"{column}, regardless of case", pd.factorize(values.str.casefold(), sort=True)[0]


def _ascents(users: np.ndarray, rank: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts each user's pairs of events ``lag`` apart that differ in rank, and those that ascend: float64 ``[U]``."""
    before, after = rank[:-lag], rank[lag:]
    compared = (users[lag:] == users[:-lag]) & (before != after) & (before >= 0) & (after >= 0)
    size = users[-1] + 1
    return (
        np.bincount(users[lag:][compared], minlength=size).astype(float),
        np.bincount(users[lag:][compared & (after > before)], minlength=size).astype(float),
    )


def _sortedness(users: np.ndarray, rank: np.ndarray) -> tuple[float, int, int]:
    """Measures how far the events ascend by ``rank``, over pairs of adjacent events that differ in it.

    Returns:
      The share of ascending pairs, averaged over users; the number of users whose pairs all go in the more common
      direction; and the number of users with such pairs. With too few pairs or users to judge: 0.5, 0 and 0.
    """
    pairs, ascending = _ascents(users, rank, 1)
    judged = pairs > 0
    adjacent = np.count_nonzero(users[1:] == users[:-1])
    if judged.sum() < MIN_USERS or pairs.sum() < MIN_COMPARED * adjacent:
        return 0.5, 0, 0
    shares = ascending[judged] / pairs[judged]
    share = float(shares.mean())
    return share, int((shares == (share > 0.5)).sum()), int(judged.sum())


def _sorted(users: np.ndarray, rank: np.ndarray, name: str, consequence: str) -> tuple[float, Finding]:
    """Returns the share of pairs in the more common direction, and the finding to report if it is too large."""
    share, whole, judged = _sortedness(users, rank)
    direction = "ascend" if share > 0.5 else "descend"
    often = max(share, 1 - share)
    what = (
        f"the events of almost every user {direction} by {name}: {whole:,} of {judged:,} users compared are sorted "
        f"throughout, and adjacent events {direction} in {often:.1%} of the cases, while 50% is usual. {consequence}. "
        f"{_REMEDY}"
    )
    return often, _doubt(what, whole)


def _sorted_by_item(
    users: np.ndarray, event_items: np.ndarray, items: pd.DataFrame, orders: Mapping[str, np.ndarray]
) -> Finding | None:
    consequence = (
        "Unless users really use items in that order, as with episodes, the order does not show which event was the "
        "last, and figures of leave_last_out are invalid"
    )
    popularity = np.bincount(event_items, minlength=len(items))
    every = [*orders.items(), *_column_orders(items), ("the number of events of the item", popularity)]
    tests = [_sorted(users, rank[event_items], name, consequence) for name, rank in every]
    often, finding = max(tests, key=lambda test: test[0])  # the first of several that explain the order equally well
    return finding if often >= ALMOST_ALL else None


def _sorted_by_rating(users: np.ndarray, ratings: np.ndarray) -> Finding | None:
    rank = pd.factorize(ratings, sort=True)[0]
    consequence = "The last event is then an extreme of the user's ratings, and not the newest event"
    often, finding = _sorted(users, rank, "rating", consequence)
    return finding if often >= ALMOST_ALL else None


def _ties_by_id(users: np.ndarray, event_items: np.ndarray, orders: Mapping[str, np.ndarray]) -> Finding | None:
    """Checks whether events of the same time, such as of one day, are ordered by id.

    Adjacent events then ascend more often than events two apart. Without such ties they do not: they ascend equally
    often in a random order, and less often if ids grow with time. The standard error takes users as independent units.
    """
    doubts = []
    grows = False
    for name, rank in orders.items():
        (pairs_1, up_1), (pairs_2, up_2) = (_ascents(users, rank[event_items], lag) for lag in (1, 2))
        if (pairs_2 > 0).sum() < MIN_USERS:
            continue
        near, far = up_1.sum() / pairs_1.sum(), up_2.sum() / pairs_2.sum()
        residual = (up_1 - near * pairs_1) / pairs_1.sum() - (up_2 - far * pairs_2) / pairs_2.sum()
        error = float(np.sqrt((residual**2).sum()))
        direction = "ascend" if near > 0.5 else "descend"
        if near <= 0.5:
            near, far = 1 - near, 1 - far
        excess = near - far
        if name == "item id":
            grows = far > near > 0.5
        if name == "item id as text" and grows:
            continue  # ids that grow with time jump back as text, such as from 999 to 1000
        if excess >= MIN_EXCESS and excess >= MIN_Z * error:
            what = (
                f"adjacent events {direction} by {name} in {near:.1%} of the cases, events two apart in {far:.1%} (z = "
                f"{excess / error if error else np.inf:.0f}; without ties the two are alike): unless items follow each "
                "other like episodes, events of the same time, often of the same day, seem to be ordered by "
                f"{name}, which then decides the last event of many users. Published results on such files, among them "
                "the Amazon 2014 reviews, share this, so compare with those only. If the file has times, map them to "
                "timestamp_s under data.columns and leave out the order column: ties are then broken by a hash; else "
                "set split.kind to leave_random_out"
            )
            doubts.append((excess, _doubt(what, (pairs_1 > 0).sum())))
    return max(doubts, key=lambda doubt: doubt[0])[1] if doubts else None


def _cold_targets(users: np.ndarray, items: np.ndarray) -> Finding | None:
    """Counts test targets of leave-last-out on items that have many events, but none left for training.

    An item is cold if all its events are held out. If the two held-out events were drawn at random from each user's
    n events, an event would be the target with probability 1 / n and held out with probability 2 / n. The expected
    number of cold targets is therefore the sum over items of (events / 2) * product of 2 / n over the item's events.
    """
    per_user = np.bincount(users)[users]
    from_end = _from_end(users)
    held_out = (per_user >= 3) & (from_end <= 1)
    per_item = np.bincount(items)
    left = np.bincount(items[~held_out], minlength=len(per_item))
    targets = items[held_out & (from_end == 0)]
    many = per_item >= MANY_EVENTS
    cold = int((many & (left == 0))[targets].sum())
    with np.errstate(divide="ignore"):
        chance = np.log(np.where(per_user >= 3, 2 / per_user, 0))
    expected = float((per_item / 2 * np.exp(np.bincount(items, weights=chance)))[many].sum())
    if cold < MIN_USERS or cold <= MAX_COLD * len(targets) or cold <= MIN_COLD_RATIO * expected:
        return None
    return _doubt(
        f"{cold:,} of {len(targets):,} last events ({cold / len(targets):.1%}) are on items with at least "
        f"{MANY_EVENTS} events that have none left for training, where {expected:,.0f} are expected of "
        "held-out events drawn at random: either these items are new, or the order puts certain items last "
        "and is not the order in time. "
        f"{_REMEDY}",
        cold,
    )


def _same_last_item(users: np.ndarray, items: np.ndarray, ids: pd.Series) -> Finding | None:
    counts = np.bincount(items[(_from_end(users) == 0) & (np.bincount(users)[users] > 1)])
    total = int(counts.sum())
    if total < MIN_USERS or counts.max() <= MAX_SAME_ITEM * total:
        return None
    return _doubt(
        f"{counts.max():,} of {total:,} users have the same last item, {ids.iloc[int(counts.argmax())]!r}: any "
        "recommender that always names it looks good, and the figures say little. Leave the item out of the events if "
        f"it is a marker, such as a sign-out. {_REMEDY}",
        counts.max(),
    )

"""Checks by the item ids whether a catalogue belongs to the events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from tfllmrec.data.cleaning.ids import usual_form

#: A match is doubted if a smaller share of the items with events is in the catalogue, or if a smaller share of the
#: catalogue has events.
FEW_LISTED, FEW_WITH_EVENTS = 0.5, 0.05
#: How many integers on either side of an id are looked up in the catalogue to estimate matches by chance.
WINDOW = 50
#: A catalogue with at least this share of the integers near the ids of the events would match any small integers.
DENSE = 0.9
_MOST_ARE_NUMBERS = 0.95


def doubts_of_match(met: pd.Index, listed: pd.Index) -> list[str]:
    """Returns reasons to doubt that a catalogue belongs to the events; an empty list if there is none.

    The reasons are: few of the items with events are in the catalogue; few items of the catalogue have events; the ids
    are integers that match no more often than by chance; or they are integers with hardly a gap, which always match.
    Chance is the catalogue's share of the integers near each id; ids of the same items match far more often. Integers
    with hardly a gap are trusted only if all ids match and both sides end at about the same number.

    Args:
      met: The distinct item ids of the events.
      listed: The ids of the catalogue, at least one of which is in ``met``.
    """
    shared = int(met.isin(listed).sum())
    reasons = []
    if shared < FEW_LISTED * len(met):
        reasons.append(
            f"the catalogue has only {shared:,} of the {len(met):,} items with events ({shared / len(met):.1%})"
        )
    if shared < FEW_WITH_EVENTS * len(listed):
        reasons.append(
            f"only {shared:,} of the {len(listed):,} items of the catalogue have events ({shared / len(listed):.1%})"
        )
    numbers_met, numbers_listed = _numbers(met), _numbers(listed)
    if numbers_met is None or numbers_listed is None:
        return reasons
    matches = np.isin(numbers_met, numbers_listed).mean()
    chance = _matches_by_chance(numbers_met, numbers_listed)
    largest_met, largest_listed = numbers_met[-1], numbers_listed[-1]
    if chance >= DENSE:
        if matches < 1 or abs(largest_met - largest_listed) > max(1, 0.01 * largest_listed):
            reasons.append(
                "the ids of both are integers with hardly a gap, so those of any two sources match, and this match "
                f"cannot be verified; they go from {numbers_met[0]:,} to {largest_met:,} in the events and from "
                f"{numbers_listed[0]:,} to {largest_listed:,} in the catalogue"
            )
    elif matches <= chance + 3 * np.sqrt(chance * (1 - chance) / len(numbers_met)):
        reasons.append(
            f"the ids match no more often than by chance: the catalogue has {matches:.1%} of those of the events, and "
            f"it has {chance:.1%} of all integers near them"
        )
    return reasons


def other_spelling(unlisted: pd.Index, listed: pd.Index, of: str = "the catalogue") -> str:
    """Describes how ids of events differ from similar ids ``of`` another table, with an example; ``""`` if none do."""
    if not len(unlisted):
        return ""
    spellings: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("leading zeros", lambda text: text.lstrip("0")),
        ("upper and lower case", str.lower),
        ("their Unicode form or invisible characters", usual_form),
    )
    for what, plain in spellings:
        theirs = {plain(text): text for text in listed}
        alike = [text for text in unlisted if theirs.get(plain(text), text) != text]
        if alike:
            return (
                f"{len(alike):,} of them differ from ids of {of} in {what} only, such as {alike[0]!r} and "
                f"{theirs[plain(alike[0])]!r}: spell the ids of both files in the same way"
            )
    return ""


def _numbers(ids: pd.Index) -> np.ndarray | None:
    """Returns the distinct integers among ``ids``, ascending; ``None`` if more than 5 % of ``ids`` are no integers."""
    texts = pd.Series(ids, dtype="str")
    texts = texts[texts.str.fullmatch("[0-9]{1,15}")]
    return np.unique(texts.astype(np.int64)) if len(texts) >= max(1, _MOST_ARE_NUMBERS * len(ids)) else None


def _matches_by_chance(met: np.ndarray, listed: np.ndarray) -> float:
    """Returns the share of the integers near each of ``met``, without itself, that ``listed`` has, averaged.

    Both are ascending.
    """
    start = np.maximum(met - WINDOW, min(met[0], listed[0]))
    stop = np.minimum(met + WINDOW, max(met[-1], listed[-1]))
    near = np.searchsorted(listed, stop, side="right") - np.searchsorted(listed, start)
    near = near - np.isin(met, listed)
    return float(np.mean(near / np.maximum(stop - start, 1)))

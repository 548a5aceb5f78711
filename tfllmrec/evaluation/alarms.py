"""Warnings about a recommender that does not work, or is no better than a simpler one."""

from __future__ import annotations

import numpy as np

ALIKE_SHARE = 0.1
CONCENTRATION = 0.9
MIN_QUERIES = 50
"""With fewer queries, the same few items may well be right for every user."""


def scores_alike(scores: np.ndarray) -> np.ndarray:
    """Returns bool ``[B]``: whether all items of a query have equal ``scores`` ``[B, N]``, up to float32 rounding.

    A single item tells nothing: False.
    """
    if scores.shape[1] < 2:
        return np.zeros(len(scores), bool)
    high, low = scores.max(axis=1), scores.min(axis=1)
    return high - low <= 1e-6 * np.maximum(np.abs(high), np.abs(low))


def collapse(alike: np.ndarray, exposure: np.ndarray, k: int) -> list[str]:
    """Returns warnings about collapse: all items score alike, or every user gets the same list.

    Args:
      alike: Bool ``[B]`` from :func:`scores_alike`.
      exposure: Int64 ``[C]``, how often each item that may be recommended was in a top-k list. If every user gets the
        same list, the k most shown items take nearly all places. This is checked only for at least ``10 k`` such items
        and at least :data:`MIN_QUERIES` queries.
      k: Length of the lists.
    """
    messages = []
    share = float(alike.mean()) if len(alike) else 0.0
    if share >= ALIKE_SHARE:
        messages.append(
            f"all items score alike for {share:.0%} of the queries: the model has collapsed, or these queries hold no "
            "input that it can use. Lower training.learning_rate, raise model.temperature, and check that the text "
            "vectors differ between items and that histories are not empty."
        )
    total = exposure.sum()
    if len(alike) >= MIN_QUERIES and len(exposure) >= 10 * k and total:
        share_of_top = float(np.partition(exposure, -k)[-k:].sum() / total)
        if share_of_top >= CONCENTRATION:
            messages.append(
                f"nearly every user gets the same list: {k} of {len(exposure)} items take {share_of_top:.0%} of all "
                f"places in the top {k}. The model does not use the history: train longer, or check that histories "
                "reach it."
            )
    return messages


def behind(label: str, value: float, other: str, other_value: float, low: float, high: float) -> str | None:
    """Returns a warning if ``other`` is ahead beyond chance: its lead's interval, ``low`` to ``high``, is above 0."""
    if low <= 0:
        return None
    return (
        f"{other} is ahead of it: {label} {other_value:.4f} against {value:.4f} (difference between {low:+.4f} and "
        f"{high:+.4f} with 95 % confidence). Bring more events, look for settings (tfllmrec tune), or serve the "
        "simpler model."
    )


def not_better(label: str, value: float, reference: str, reference_value: float, low: float, high: float) -> str | None:
    """Returns a warning if the lead over ``reference`` may be chance: its interval, ``low`` to ``high``, reaches 0."""
    if low > 0:
        return None
    return (
        f"is not shown to beat {reference}: {label} {value:.4f} against {reference_value:.4f} (difference between "
        f"{low:+.4f} and {high:+.4f} with 95 % confidence). Train longer, check that item texts and histories are "
        "read (data describe), or serve the simpler model."
    )

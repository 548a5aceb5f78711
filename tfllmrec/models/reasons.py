"""The reason of a recommendation, in words."""

from __future__ import annotations

from collections.abc import Mapping

#: The wording of each term of the score; ``because`` is the title of the history item behind the recommendation.
TERMS = {
    "meaning": "reads like what you had, such as {because}",
    "feedback": "fits your ratings, such as {because}",
    "behaviour": "people who had {because} went on to it",
}


def reason(terms: Mapping[str, float], because: str) -> str:
    """The term that adds the most, and the history item behind it.

    Args:
      terms: what each of :data:`TERMS` adds to the score.
      because: the title of the item; ``""`` if no item is behind the recommendation.

    Returns:
      ``""`` if no item is behind the recommendation.
    """
    if not because:
        return ""
    # ``Hybrid.explain_items`` chooses the item the same way: behaviour against both dense terms together.
    dense = max(("meaning", "feedback"), key=lambda name: terms[name])
    leading = "behaviour" if terms["behaviour"] >= terms["meaning"] + terms["feedback"] else dense
    return TERMS[leading].format(because=because)

"""The kinds of events in logs, such as views and purchases, and how strongly each kind shows what a user wants."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

import numpy as np
import pandas as pd

from tfllmrec.columns import EVENT_KIND, setting_names
from tfllmrec.config import FieldConfig
from tfllmrec.data.cleaning.kind_words import GROUPS, NEGATIONS, OPINIONS
from tfllmrec.data.cleaning.values import MISSING, strings

#: The weight of an event whose kind is not known.
UNKNOWN_WEIGHT = 0.25
#: Words that say nothing about the kind.
NOISE = ("product", "products", "item", "items", "event", "user", "to", "from", "the")
#: The largest number of consecutive words of a name that are looked up together.
MOST_WORDS = 3
#: Symbols that count as words.
SYMBOLS = "👍👎❤♥"
#: Characters that are left out of names, as a regular expression for Python and TensorFlow: apostrophes and marks.
LEFT_OUT = "['’‘ʼ`´\u0300-\u036f\ufe0f]"
_REFUSED = -0.5  # an event of at most this weight refuses the item, whatever the user did with it before
_MOST_KINDS = 50  # a column with more distinct values holds something else, such as ids
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN_WORDS = re.compile(rf"(?:[^\w{SYMBOLS}]|_)+")


def _words(kind: str) -> list[str]:
    """Returns the words by which spellings are compared: ``"Product Added To Cart"`` -> ``["added", "cart"]``."""
    words = _BETWEEN_WORDS.split(re.sub(LEFT_OUT, "", _CAMEL_CASE.sub(" ", kind)).lower())
    return [word for word in words if word and word not in NOISE]


def plain_kind(kind: str) -> str:
    """Returns a kind as spellings are compared: ``"Add-to-Cart"`` and ``"addToCart"`` -> ``"addcart"``.

    Numbers are compared as they are, because -1 is not 1.
    """
    plain = "".join(_words(kind))
    return kind if plain.isdecimal() else plain


def _plain(names: str, endings: tuple[str, ...] = ("", "s")) -> list[str]:
    """Returns the plain forms of names: with accents and without, and each with the endings."""
    spellings = [spelling for name in names.split() for spelling in (name, unicodedata.normalize("NFKD", name))]
    return [plain_kind(spelling) + ending for spelling in spellings for ending in endings]


def _groups_of_names() -> tuple[dict[str, int], dict[str, int]]:
    """Returns the place in :data:`GROUPS` of each plain name, and of each one that may be a part of longer names."""
    whole: dict[str, int] = {}
    part: dict[str, int] = {}
    derived: dict[str, int] = {}
    not_done = next(place for place, group in enumerate(GROUPS) if group.as_a_part)
    refused = next(place for place, group in enumerate(GROUPS) if group.weight < 0)
    undone = {group.strength: place for place, group in enumerate(GROUPS) if group.undoes}
    for place, group in enumerate(GROUPS):
        names, alone = _plain(f"{group.names} {group.in_other_languages}"), _plain(group.as_a_whole)
        whole |= dict.fromkeys([*names, *alone], place)
        part |= dict.fromkeys([*names, *_plain(group.as_a_part, ("",))], place)
        if group.weight and group.strength > 1:
            un_names = [f"un{name}" for name in (*_plain(group.names), *alone)]
            derived |= dict.fromkeys(un_names, undone.get(group.strength, not_done))
    for no in _plain(NEGATIONS, ("",)):
        for opinion in _plain(OPINIONS, ("",)):
            derived |= dict.fromkeys([no + opinion, opinion + no], refused)
    return derived | whole, derived | part


#: The place in :data:`GROUPS` of each plain name, and of each plain name that may be a part of a longer name.
GROUP_OF_NAME, GROUP_OF_PART = _groups_of_names()


def _groups_within(kind: str) -> list[int]:
    """Returns the places of the groups of a name's words, and of up to :data:`MOST_WORDS` words together."""
    words = _words(kind)
    parts = ["".join(words[i : i + n]) for n in range(1, MOST_WORDS + 1) for i in range(len(words) - n + 1)]
    return [GROUP_OF_PART[part] for part in parts if part in GROUP_OF_PART]


def group_of_kind(kind: str) -> int | None:
    """Returns the place of a kind in :data:`GROUPS`, ``None`` if it is unknown.

    It is the place of the whole name, or else the first one of its words.
    """
    return GROUP_OF_NAME.get(plain_kind(kind), min(_groups_within(kind), default=None))


def kind_strength(kind: str) -> int:
    """Returns the strength of a kind of event: 1 to 4, or 0 for an unknown or an empty kind.

    Case, punctuation, a plural "s" and words such as "product" do not matter. An unknown kind is as strong as its
    strongest known word, unless another word decides on its weight, see :func:`kind_weight`. What undoes an event is as
    strong as that event.

    >>> kind_strength("AddToCart") == kind_strength("carts") > kind_strength("Product Viewed") > 0
    True
    >>> kind_strength("cancel_like") == kind_strength("like") < kind_strength("cancel_order")
    True
    """
    place = group_of_kind(kind)
    if place is None:
        return 0
    if GROUPS[place].undoes and not is_known_kind(kind):
        undone = [GROUPS[part].strength for part in _groups_within(kind) if GROUPS[part].weight]
        return max([each for each in undone if each > 2], default=GROUPS[place].strength)
    return GROUPS[place].strength


def kind_weight(kind: str) -> float:
    """Returns the weight of an event of this kind as evidence that the user wants the item.

    The weight is 1 for a purchase, 0.75 for a cart or a like, 0.5 for a view, and 0.25 for an unknown kind. It is 0 for
    an impression, and for an event that undoes or cancels another one. It is below 0 for a rejection, such as a dislike
    or a skip. If a name has several words, one that stands for a rejection decides, and before it one that undoes it.

    >>> [kind_weight(kind) for kind in ("purchase", "like", "view", "impression", "skip", "dislike")]
    [1.0, 0.75, 0.5, 0.0, -0.25, -0.75]
    >>> [kind_weight(kind) for kind in ("video_disliked", "don't like", "undo dislike")]
    [-0.75, -0.75, 0.0]
    """
    place = group_of_kind(kind)
    return UNKNOWN_WEIGHT if place is None else GROUPS[place].weight


def is_known_kind(kind: str) -> bool:
    """Returns whether ``kind`` is known as a whole, and not only one of its words."""
    return plain_kind(kind) in GROUP_OF_NAME


class AskedWeights:
    """The weights of kinds in ``data.fields``; another spelling of a kind has the weight of that kind.

    Args:
      weights: The weights by kind, on the scale of :func:`kind_weight`.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = {plain_kind(kind): weight for kind, weight in weights.items()} | dict(weights)

    def of(self, kind: str) -> float | None:
        """Returns the weight that is asked for, ``None`` if there is none."""
        return self._weights.get(kind, self._weights.get(plain_kind(kind)))

    def weight(self, kind: str) -> float:
        """Returns the weight that is asked for, or else :func:`kind_weight`."""
        asked = self.of(kind)
        return kind_weight(kind) if asked is None else asked


def event_kinds(
    values: pd.Series, weights: Mapping[str, float] | None = None
) -> tuple[pd.Series, np.ndarray, np.ndarray]:
    """Returns the kinds in a column, and their strengths and weights: str ``[R]`` and twice float64 ``[R]``.

    A missing kind is ``""``. The strength of an unknown kind is 0.

    Args:
      values: The column.
      weights: ``data.fields.kind.weights``, on the scale of :func:`kind_weight`. They take precedence over the names:
        the larger the absolute weight of a kind, the stronger the kind.
    """
    kinds = strings(values)
    kinds = kinds.mask(kinds.isin(MISSING), "")
    codes, distinct = pd.factorize(kinds)
    asked = AskedWeights(weights or {})

    def strength_of(kind: str) -> float:
        if (weight := asked.of(kind)) is not None:
            return 1 + 4 * abs(weight)
        by_name = kind_strength(kind)
        return 1 + by_name if by_name else 0

    strengths = np.array([strength_of(kind) for kind in distinct], dtype=np.float64)
    return kinds, strengths[codes], np.array([asked.weight(kind) for kind in distinct], dtype=np.float64)[codes]


def before_a_refusal(pair: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns bool ``[E]``: the events after which the same user refused the item, such as a purchase before a dislike.

    Args:
      pair: A number for each user and item, ``[E]``, in the order of the events.
      weight: The weights of the events, float64 ``[E]``.
    """
    refused = weight <= _REFUSED
    if not refused.any():
        return refused
    place = np.arange(len(pair))
    last = pd.Series(np.where(refused, place, -1)).groupby(pair).transform("max")
    return place < last.to_numpy()


def weights_of_kinds(fields: Mapping[str, FieldConfig]) -> Mapping[str, float]:
    """Returns ``data.fields.kind.weights``; empty if they are not set."""
    return next((fields[name].weights for name in setting_names("event", EVENT_KIND) if name in fields), None) or {}


def has_few_kinds(values: pd.Series) -> bool:
    """Returns whether a column has more than one, but few enough distinct values to be kinds of events."""
    return 1 < strings(values).nunique() <= _MOST_KINDS


def are_event_kinds(values: pd.Series) -> bool:
    """Returns whether a column has few distinct values, and at least half of its filled cells are known kinds."""
    kinds = event_kinds(values)[0]
    counts = kinds[kinds != ""].value_counts()
    known = sum(int(count) for kind, count in counts.items() if is_known_kind(str(kind)))
    return kinds.nunique() <= _MOST_KINDS and 0 < counts.sum() <= 2 * known


def count_kinds(kinds: pd.Series, most: int = 10) -> str:
    """Returns the kinds with their numbers of events, most frequent first, such as ``"'view': 12, 'cart': 3"``."""
    counts = kinds.value_counts()
    more = ", ..." if len(counts) > most else ""
    return ", ".join(f"{kind!r}: {count:,}" for kind, count in counts.head(most).items()) + more

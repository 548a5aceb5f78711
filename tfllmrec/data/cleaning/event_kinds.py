"""The kinds of events in logs, such as views and purchases, and how strongly each kind shows what a user wants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd

from tfllmrec.columns import EVENT_KIND
from tfllmrec.config import FieldConfig
from tfllmrec.data.cleaning.values import MISSING, strings

# Kinds of events by strength, weakest first; the kinds in one string are equally strong. Like and dislike are equally
# strong, and so are adding to the cart and removing from it: the later event is the user's newer opinion.
_BY_STRENGTH = (
    # The system showed the item, or the user skipped it.
    "impression impressed imp exposure exposed shown displayed served delivered view_list view_search_results skip "
    "skipped ignore ignored no_click non_click",
    # The user looked at the item.
    "view viewed viewing pv page_view pageview visit visited browse browsed click clicked click_out clickout "
    "click_through clickthrough tap tapped detail details detail_view detail_page see seen open opened read reading "
    "watch watched play played playing stream streamed listen listened hover hovered select selected preview "
    "previewed prod_view",
    # The user saved the item for later, expressed an opinion on it, or began to check out.
    "cart carted in_cart add added add_cart added_cart add_to_cart addtocart addcart atc sc_add basket add_to_basket "
    "addtobasket add_to_bag addtobag bag remove removed remove_from_cart removefromcart removed_from_cart "
    "remove_cart removed_cart remove_basket remove_bag "
    "fav favor favorite favorited favourite favourited add_to_favorites add_to_favourites collect collected wish "
    "wishlist wish_list wishlisted add_to_wishlist addtowishlist added_wishlist save saved bookmark bookmarked like "
    "liked thumbs_up thumb_up upvote upvoted heart love loved dislike disliked unlike unliked thumbs_down thumb_down "
    "downvote downvoted hide hidden not_interested share shared repost reposted retweet retweeted forward forwarded "
    "follow followed unfollow comment commented comment_created reply replied rate rated rating review reviewed "
    "checkout begin_checkout start_checkout initiate_checkout checkout_started add_payment_info add_shipping_info",
    # The user bought or otherwise obtained the item.
    "purchase purchased buy bought buying transaction transact order ordered order_completed order_placed place_order "
    "purchase_completed checkout_completed complete_checkout payment pay paid sale sold conversion convert converted "
    "subscribe subscribed subscription booking booked reserve reserved reservation rent rented rental borrow borrowed "
    "install installed download downloaded apply applied",
)
# Weight -> kinds of events in which the user rejected or skipped the item.
_REJECTIONS = {
    -0.75: "dislike disliked thumbs_down thumb_down downvote downvoted hide hidden not_interested block blocked reject "
    "rejected mute muted",
    -0.25: "skip skipped ignore ignored dismiss dismissed",
}
# The system acted, or the user undid an earlier action: such an event counts neither for nor against the item.
_NEITHER = (
    "impression impressed imp exposure exposed shown displayed served delivered view_list view_search_results no_click "
    "non_click remove removed remove_from_cart removefromcart removed_from_cart remove_cart removed_cart remove_basket "
    "remove_bag delete deleted unlike unliked unfollow unfollowed unsubscribe unsubscribed uninstall uninstalled"
)
_NOISE = {"product", "products", "item", "items", "event", "user", "to", "from", "the"}
_MOST_KINDS = 50  # a column with more distinct values holds something else, such as ids
_TAKEN_BACK = {
    *("cancel", "cancelled", "canceled", "cancellation", "refund", "refunded", "return", "returned"),
    *("not", "never", "fail", "failed", "failure", "declined", "abandon", "abandoned", "error", "intent"),
}
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN_WORDS = re.compile(r"[\W_]+")


def _words(kind: str) -> list[str]:
    """Returns the words by which spellings are compared: ``"Product Added To Cart"`` -> ``["added", "cart"]``."""
    words = _BETWEEN_WORDS.split(_CAMEL_CASE.sub(" ", kind).lower())
    return [word for word in words if word and word not in _NOISE]


_STRENGTHS = {
    "".join(_words(kind)): level for level, kinds in enumerate(_BY_STRENGTH, start=1) for kind in kinds.split()
}
_AGAINST = {
    "".join(_words(kind)): weight for weight, kinds in {**_REJECTIONS, 0.0: _NEITHER}.items() for kind in kinds.split()
}


def kind_strength(kind: str) -> int:
    """Returns the strength of a kind of event: 1 to 4, or 0 for an unknown or an empty kind.

    Case, punctuation, a plural "s" and words such as "product" do not matter. An unknown kind is as strong as its
    strongest known word; with a word such as "cancelled", it has strength 0.

    >>> kind_strength("AddToCart") == kind_strength("carts") > kind_strength("Product Viewed") > 0
    True
    """
    words = _words(kind)
    if is_known_kind(kind) or _TAKEN_BACK.intersection(words):
        return _strength("".join(words))
    return max(map(_strength, words), default=0)


def kind_weight(kind: str) -> float:
    """Returns the weight of an event of this kind as evidence that the user wants the item.

    The weight is 1 for a purchase, 0.75 for a cart or a like, 0.5 for a view, and 0.25 for an unknown kind. It is 0 for
    an impression, and for an event that undoes or cancels another one. It is below 0 for a rejection, such as a dislike
    or a skip. If a name has several words, one that stands for a rejection decides.

    >>> [kind_weight(kind) for kind in ("purchase", "like", "view", "impression", "skip", "dislike")]
    [1.0, 0.75, 0.5, 0.0, -0.25, -0.75]
    >>> kind_weight("video_disliked")
    -0.75
    """
    words = _words(kind)
    spellings = {*words, *(first + second for first, second in pairwise(words)), "".join(words)}
    against = [_AGAINST[one] for word in spellings for one in {word, word.removesuffix("s")} if one in _AGAINST]
    if against or _TAKEN_BACK.intersection(words):
        return min(against, default=0.0)
    return max(kind_strength(kind), 1) / 4


def is_known_kind(kind: str) -> bool:
    """Returns whether ``kind`` is known as a whole, and not only one of its words."""
    return _strength("".join(_words(kind))) > 0


def _strength(plain: str) -> int:
    return _STRENGTHS.get(plain) or _STRENGTHS.get(plain.removesuffix("s"), 0)


def event_kinds(values: pd.Series, weights: Mapping[str, float] | None = None) -> tuple[pd.Series, np.ndarray]:
    """Returns the kinds in a column as str ``[R]`` (``""``: missing), and their strengths as float64 ``[R]``.

    The strength of an unknown kind is 0.

    Args:
      values: The column.
      weights: ``data.fields.kind.weights``, on the scale of :func:`kind_weight`. They take precedence over the names:
        the larger the absolute weight of a kind, the stronger the kind.
    """
    kinds = strings(values)
    kinds = kinds.mask(kinds.isin(MISSING), "")
    codes, distinct = pd.factorize(kinds)
    given = weights or {}

    def strength_of(kind: str) -> float:
        if kind in given:
            return 1 + 4 * abs(given[kind])
        by_name = kind_strength(kind)
        return 1 + by_name if by_name else 0

    return kinds, np.array([strength_of(kind) for kind in distinct], dtype=np.float64)[codes]


def weights_of_kinds(fields: Mapping[str, FieldConfig]) -> Mapping[str, float]:
    """Returns ``data.fields.kind.weights``; empty if they are not set."""
    return (EVENT_KIND in fields and fields[EVENT_KIND].weights) or {}


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

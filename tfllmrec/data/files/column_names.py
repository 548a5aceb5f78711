"""The usual names of columns, as files spell them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from tfllmrec.columns import (
    CATEGORIES,
    DESCRIPTION,
    EVENT_KIND,
    ITEM,
    ORDER,
    RATING,
    TAG,
    TIMESTAMP,
    TITLE,
    USER,
)

# Usual names, compared without case and punctuation; if a file has several, the earliest one wins. Names that are
# certainly ids come before bare words, which may be names. "id" alone is the id of the items or users that a table
# lists.
ALIASES: dict[str, list[str]] = {
    column: names.split()
    for column, names in {
        USER: "user_id uid reviewer_id customer_id visitor_id member_id account_id person_id id "
        "user customer visitor user_name reviewer session_id session",
        ITEM: "item_id iid movie_id product_id parent_asin asin book_id isbn article_id news_id track_id song_id "
        "game_id app_id anime_id recipe_id business_id video_id course_id job_id sku id "
        "item product movie book article",
        RATING: "rating ratings overall stars score user_rating item_rating movie_rating book_rating product_rating "
        "review_rating review_score rate preference",
        TIMESTAMP: "timestamp_s timestamp unix_review_time unix_time time ts event_time datetime date created_at "
        "review_time review_date rated_at date_added",
        ORDER: "order order_in_user sequence seq",
        EVENT_KIND: "kind event_kind event_type event_name interaction_type interaction action_type behavior_type "
        "behaviour_type feedback_type reaction_type signal_type activity_type action_name activity_name user_action "
        "user_event event_action event_category product_action event evt action behavior behaviour activity verb "
        "signal feedback type",
        TITLE: "title item_title movie_title product_title book_title name item_name product_name headline "
        "item product movie book article",
        DESCRIPTION: "description item_description product_description plot overview synopsis summary abstract body "
        "content text",
        CATEGORIES: "categories category genres genre class item_category topics tags",
        TAG: "tag",
    }.items()
}


def is_known_name(name: str, mapping: Mapping[str, str]) -> bool:
    """Returns whether a column has a usual name, or one that ``mapping`` maps."""
    return name in mapping.values() or plain_name(name) in _PLAIN_ALIASES


def plain_name(name: str) -> str:
    """Returns a name reduced to letters and digits, in lower case and without accents, for comparisons.

    Letters of every script stay: otherwise the Chinese names of a category's id and of an item's id would both be "id".
    """
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKD", name).lower())


def words_of_name(name: str) -> list[str]:
    """Returns the words of a column's name, in lower case: ``"isWeekend_day"`` -> ``["is", "weekend", "day"]``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


_PLAIN_ALIASES = {plain_name(alias) for names in ALIASES.values() for alias in names}

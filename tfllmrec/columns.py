"""The one spelling of every table column.

Identifiers that end in ``_id`` are the outside world's strings; those that end in ``_index`` are dense integers that
start at 0 and follow the row order of the items or users table.
"""

USER = "user_id"
ITEM = "item_id"
USER_INDEX = "user_index"
ITEM_INDEX = "item_index"
RATING = "rating"
TIMESTAMP = "timestamp_s"
ORDER = "order"
EVENT_KIND = "kind"

TITLE = "title"
DESCRIPTION = "description"
CATEGORIES = "categories"
TAG = "tag"
TAGS = "tags"
#: Columns of items that hold names: categories, and what catalogues file items under besides.
NAME_COLUMNS = (CATEGORIES, TAGS, "authors", "author", "artist", "brand")

QUERY = "query"
RANK = "rank"
SCORE = "score"
REASON = "reason"

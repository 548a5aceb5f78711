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
#: bool: whether the event is one of those that ``split.test_events`` names. The column exists only if
#: ``split.test_events`` names events.
TEST_EVENT = "test_event"
#: The domain of an event and of an item, in data joined from several domains.
DOMAIN = "domain"

#: The columns of events that are always there, in order, and their types; any other but ``test_event`` is text.
EVENT_TYPES = {
    USER: "str",
    ITEM: "str",
    USER_INDEX: "int64",
    ITEM_INDEX: "int64",
    RATING: "float32",
    TIMESTAMP: "float64",
    ORDER: "int64",
    EVENT_KIND: "str",
}

TITLE = "title"
DESCRIPTION = "description"
CATEGORIES = "categories"
TAG = "tag"
TAGS = "tags"
#: Of events: the tags that the user wrote after it, see :func:`tfllmrec.data.dataset.Dataset.with_tags_written`.
TAGS_WRITTEN = "tags_written"
#: Columns of items that hold names: categories, and what catalogues file items under besides.
NAME_COLUMNS = (CATEGORIES, TAGS, "authors", "author", "artist", "brand")
#: Name columns that hold people. Only the first name of a cell is used; illustrators and translators often follow.
PEOPLE_COLUMNS = ("authors", "author")

QUERY = "query"
RANK = "rank"
SCORE = "score"
REASON = "reason"

#: Of the exposure log, which has a row for each item shown: the request that the list answered, the time, the model and
#: its version, the policy that chose the item, the position (0 is first), and the probability, above 0 and at most 1,
#: with which the policy shows this item at this position.
REQUEST_ID = "request_id"
TIME_S = "time_s"
MODEL = "model"
VERSION = "version"
POLICY = "policy"
POSITION = "position"
PROPENSITY = "propensity"
#: Of the log's requests, which have a row for each list: how many items it has, how many ids its history has, how many
#: of these the model does not know, the highest and the mean score, the letters and the script of the free text, and
#: the fields of the request.
LISTED = "listed"
HISTORY_IDS = "history_ids"
UNKNOWN_IDS = "unknown_ids"
BEST_SCORE = "best_score"
MEAN_SCORE = "mean_score"
LETTERS = "letters"
SCRIPT = "script"
CONTEXT = "context"
#: Of the items of an exported model: the number of training events, and head, tail or cold.
TRAIN_EVENTS = "train_events"
STRATUM = "stratum"
#: Of the exposure log, where they apply: the experiment and the user's arm in it, and what the exposure brought, such
#: as 1 for a click.
EXPERIMENT = "experiment"
ARM = "arm"
REWARD = "reward"
#: Of an event in a log: the key that its sender gives it, and when the log received it.
EVENT_ID = "event_id"
RECEIVED = "received_s"

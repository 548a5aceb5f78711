"""The names of all table columns.

Columns that end in ``_id`` contain external identifiers as strings; those that end in ``_index`` contain dense integers
that start at 0 and follow the row order of the items or users table.
"""

USER = "user_id"
ITEM = "item_id"
USER_INDEX = "user_index"
ITEM_INDEX = "item_index"
RATING = "rating"
TIMESTAMP = "timestamp_s"
ORDER = "order"
EVENT_KIND = "kind"
#: bool: whether ``split.test_events`` selects the event. The column exists only if
#: ``split.test_events`` selects events.
TEST_EVENT = "test_event"
#: The domain of an event or item, in data joined from several domains.
DOMAIN = "domain"

#: The columns that events always have, in order, and their types; all others except ``test_event`` are text.
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
#: In events: the tags that the user wrote after it, see :func:`tfllmrec.data.dataset.Dataset.with_tags_written`.
TAGS_WRITTEN = "tags_written"
#: Columns of items that contain names: categories, and other headings of catalogues.
NAME_COLUMNS = (CATEGORIES, TAGS, "authors", "author", "artist", "brand")
#: Name columns that contain people. Only the first name of a cell is used; illustrators and translators often follow.
PEOPLE_COLUMNS = ("authors", "author")

QUERY = "query"
RANK = "rank"
SCORE = "score"
REASON = "reason"

#: In the exposure log, which has a row for each item shown: the request that the list answered, the time, the model and
#: its version, the policy that chose the item, the position (0 is first), and the probability, above 0 and at most 1,
#: with which the policy shows this item at this position.
REQUEST_ID = "request_id"
TIME_S = "time_s"
MODEL = "model"
VERSION = "version"
POLICY = "policy"
POSITION = "position"
PROPENSITY = "propensity"
#: In the log of requests, which has a row for each list: the number of items in it, the number of ids in the history,
#: the number of these that the model does not know, the highest and the mean score, the length and the script of the
#: free text, and the fields of the request.
LISTED = "listed"
HISTORY_IDS = "history_ids"
UNKNOWN_IDS = "unknown_ids"
BEST_SCORE = "best_score"
MEAN_SCORE = "mean_score"
LETTERS = "letters"
SCRIPT = "script"
CONTEXT = "context"
#: In the items of an exported model: the number of training events, and the stratum (head, tail or cold).
TRAIN_EVENTS = "train_events"
STRATUM = "stratum"
#: In the exposure log, if they apply: the experiment, the user's arm in it, and the reward of the exposure, such as 1
#: for a click.
EXPERIMENT = "experiment"
ARM = "arm"
REWARD = "reward"
#: In an event of a log: the key that its sender gives it, and the time when the log received it.
EVENT_ID = "event_id"
RECEIVED = "received_s"


def setting_names(owner: str, column: str) -> list[str]:
    """Returns the names that a column may have in ``data.fields``; if several are set, the first of them holds.

    Args:
      owner: ``event``, ``request``, ``user`` or ``item``. A column of the events may have either of the first two.
      column: Its name in the table.
    """
    owners = ("request", "event") if owner in ("request", "event") else (owner,)
    return [*(f"{each}.{column}" for each in owners), column]

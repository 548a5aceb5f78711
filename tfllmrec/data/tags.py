"""Tags that users gave to items: which of them a split may read, and their text."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM, TAG, TAGS, TIMESTAMP, USER
from tfllmrec.data.cleaning.names import SEPARATOR, join_names

TAGS_PER_ITEM = 20
#: The finding on tags that cannot be compared with the split, because they or the events have no times.
MAY_LEAK = "the tags are used, and some may have been written after the events that the model is tested on"
TAG_TYPES = {USER: "str", ITEM: "str", TAG: "str", TIMESTAMP: "float64"}


def no_tags() -> pd.DataFrame:
    """A table of tags without rows."""
    return pd.DataFrame({column: pd.Series([], dtype=kind) for column, kind in TAG_TYPES.items()})


def with_tags(items: pd.DataFrame, tags: pd.DataFrame) -> pd.DataFrame:
    """``items`` with a text column ``tags``: the tags of each item, most frequent first, at most 20.

    Tags that differ only in case are one tag, in its most frequent spelling. Ties are broken alphabetically. A column
    ``tags`` that the items have keeps its text, and the tags follow it.
    """
    spellings = tags.assign(key=tags[TAG].str.lower()).groupby([ITEM, "key", TAG], as_index=False).size()
    spellings = spellings.sort_values(["size", TAG], ascending=[False, True])
    counted = spellings.groupby([ITEM, "key"]).agg(first=(TAG, "first"), size=("size", "sum")).reset_index()
    counted = counted.sort_values(["size", "key"], ascending=[False, True])
    best = counted.groupby(ITEM, sort=False).head(TAGS_PER_ITEM).groupby(ITEM, sort=False)["first"].agg(join_names)
    text = items[ITEM].map(best).fillna("").astype("str")
    if TAGS in items:
        separator = np.where((items[TAGS] != "") & (text != ""), SEPARATOR, "")
        text = items[TAGS] + pd.Series(separator, index=items.index, dtype="str") + text
    return items.assign(**{TAGS: text})

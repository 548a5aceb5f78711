"""Cleans the tags that users gave to items, and adds them to the items as text."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from tfllmrec.columns import (
    ITEM,
    TAG,
    TAGS,
    TIMESTAMP,
    USER,
)
from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.item_text import strip_html
from tfllmrec.data.cleaning.names import SEPARATOR, join_names, names_in
from tfllmrec.data.cleaning.rows import Rows
from tfllmrec.data.cleaning.times import times
from tfllmrec.data.cleaning.values import MISSING, strings
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.findings import CleaningReport

TAGS_PER_ITEM = 20
#: The finding on tags that cannot be compared with the split, because they or the events have no times.
MAY_LEAK = "the tags are used, and some may have been written after the events that the model is tested on"
TAG_TYPES = {USER: "str", ITEM: "str", TAG: "str", TIMESTAMP: "float64"}


def no_tags() -> pd.DataFrame:
    """Returns an empty table of tags."""
    return pd.DataFrame({column: pd.Series([], dtype=kind) for column, kind in TAG_TYPES.items()})


def with_tags(items: pd.DataFrame, tags: pd.DataFrame) -> pd.DataFrame:
    """Adds a text column ``tags`` to ``items``: at most 20 tags of each item, most frequent first.

    Tags that differ only in case are one tag, in its most frequent spelling. Ties are broken alphabetically. If the
    items already have a column ``tags``, the tags are appended to its text.
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


def clean_tags(raw: RawTable, items: pd.DataFrame, config: DataConfig, report: CleaningReport) -> pd.DataFrame:
    """Returns the usable tags: user_id (``""``: unknown), item_id, tag (str), timestamp_s (float64, NaN: unknown).

    A cell may hold several tags in any shape that :func:`tfllmrec.data.cleaning.names.names_in` reads; commas belong to
    the tag. HTML is stripped and counted. Tags of items that are not in the catalogue are dropped. The rows are sorted,
    so that their order in the file does not matter.

    Raises:
      DataError: More than ``config.max_bad_rows`` of the rows have no item or cannot be read.
    """
    rows = Rows(raw, config, report)
    nothing = pd.Series("", index=raw.frame.index, dtype="str")
    user = rows.ids(USER) if USER in raw.frame else nothing
    item = rows.ids(ITEM)
    names = pd.Series([names_in(value, commas=False) for value in raw.frame[TAG].astype(object)], dtype=object)
    rows.drop_unreadable(item.isin(MISSING).to_numpy(), f"no {ITEM}", ITEM)
    rows.drop(~names.astype(bool).to_numpy(), "no tag", TAG)
    at = raw.frame.get(TIMESTAMP, nothing)
    seconds, bad = times(at, config.time_format, partial(rows.note, column=TIMESTAMP))
    rows.check_unreadable(config.max_bad_rows)
    rows.drop(~item.isin(items[ITEM]).to_numpy(), "the tagged item is not in the catalogue", ITEM)
    text = strings(raw.frame[TAG])
    rows.note((text.map(strip_html) != text).to_numpy(), f"HTML in {TAG}", "repaired", TAG)
    rows.note(bad, "the time is neither a number nor a date: taken as unknown", "repaired", TIMESTAMP)
    if not np.isfinite(seconds[rows.keep]).any():
        rows.note(rows.keep, f"no tag has a time: {MAY_LEAK}", "kept")
    rows.finish()
    tags = pd.DataFrame({USER: user.mask(user.isin(MISSING), ""), ITEM: item, TAG: names, TIMESTAMP: seconds})
    tags = tags[rows.keep].explode(TAG).astype(TAG_TYPES)
    return tags.sort_values([ITEM, USER, TAG, TIMESTAMP]).reset_index(drop=True)

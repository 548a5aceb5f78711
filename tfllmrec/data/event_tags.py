"""The tags that users wrote, as texts of their events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from tfllmrec.columns import TAG, TAGS_WRITTEN, TIMESTAMP, USER, USER_INDEX
from tfllmrec.data.dataset import Dataset


def tags_with_events(dataset: Dataset) -> Dataset:
    """The data set with a text of events, ``tags_written``: the tags that the user wrote from then on.

    An event has the tags from its own time until just before the next event of its user, each once, in their order,
    separated by commas. So the history before a target has nothing that was written at the time of the target or later.
    Of events at the same time the last one has the tags. Tags before the user's first event belong to no event.

    The data set stays as it is without tags of its users, where tags or events have no times, where the times
    contradict the order of the events, or if the events have a column of that name.
    """
    events, tags = dataset.events, dataset.tags
    user = pd.Index(dataset.users[USER]).get_indexer(tags[USER])
    known = (user >= 0) & tags[TIMESTAMP].notna().to_numpy()
    own, times = events[USER_INDEX].to_numpy(), events[TIMESTAMP].to_numpy()
    in_order = bool((np.diff(times)[own[1:] == own[:-1]] >= 0).all())  # False where one is unknown
    if not known.any() or not in_order or not dataset.ordered or TAGS_WRITTEN in events:
        return dataset
    user, said = user[known], tags[known]
    written = said[TIMESTAMP].to_numpy()
    users, seconds = np.concatenate([own, user]), np.concatenate([times, written])
    is_tag = np.arange(len(users)) >= len(events)
    by_time = np.lexsort((is_tag, seconds, users))  # stable: events at the same time keep their order
    last = np.maximum.accumulate(np.where(is_tag[by_time], -1, by_time))
    event = np.empty(len(users), np.int64)
    event[by_time] = last
    event = event[len(events) :]
    found = pd.DataFrame({"event": event, "tag": said[TAG].to_numpy(), "time": written})
    found = found[(event >= 0) & (own[np.maximum(event, 0)] == user)]
    found = found.sort_values(["event", "time", "tag"]).drop_duplicates(["event", "tag"])
    texts = found.groupby("event")["tag"].agg(", ".join).reindex(np.arange(len(events)), fill_value="")
    if not len(found):
        return dataset
    return replace(dataset, events=events.assign(**{TAGS_WRITTEN: texts.to_numpy(object)}))

"""The tags that users wrote, as texts of their events."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tfllmrec.columns import TAG, TIMESTAMP, USER, USER_INDEX


def tags_of_events(events: pd.DataFrame, users: pd.DataFrame, tags: pd.DataFrame) -> np.ndarray | None:
    """A text for each event, object ``[E]``: the tags that its user wrote from then on.

    An event has the tags from its own time until just before the next event of its user, each once, in their order,
    separated by commas. So the history before a target has nothing that was written at the time of the target or later.
    Of events at the same time the last one has the tags. Tags before the user's first event belong to no event.

    Args:
      events, users, tags: as in :class:`~tfllmrec.data.dataset.Dataset`.

    Returns:
      ``None`` without tags of these users, where tags or events have no times, or where the times contradict the order
      of the events.
    """
    user = pd.Index(users[USER]).get_indexer(tags[USER])
    known = (user >= 0) & tags[TIMESTAMP].notna().to_numpy()
    own, times = events[USER_INDEX].to_numpy(), events[TIMESTAMP].to_numpy()
    in_order = bool((np.diff(times)[own[1:] == own[:-1]] >= 0).all())  # False where one is unknown
    if not known.any() or not in_order:
        return None
    user, said = user[known], tags[known]
    written = said[TIMESTAMP].to_numpy()
    owners, seconds = np.concatenate([own, user]), np.concatenate([times, written])
    is_tag = np.arange(len(owners)) >= len(events)
    by_time = np.lexsort((is_tag, seconds, owners))  # stable: events at the same time keep their order
    last = np.maximum.accumulate(np.where(is_tag[by_time], -1, by_time))
    event = np.empty(len(owners), np.int64)
    event[by_time] = last
    event = event[len(events) :]
    found = pd.DataFrame({"event": event, "tag": said[TAG].to_numpy(), "time": written})
    found = found[(event >= 0) & (own[np.maximum(event, 0)] == user)]
    if not len(found):
        return None
    found = found.sort_values(["event", "time", "tag"]).drop_duplicates(["event", "tag"])
    texts = found.groupby("event")["tag"].agg(", ".join).reindex(np.arange(len(events)), fill_value="")
    return texts.to_numpy(object)

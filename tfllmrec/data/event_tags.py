"""Adds the tags that users wrote to their events, as texts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tfllmrec.columns import TAG, TIMESTAMP, USER, USER_INDEX


def tags_of_events(events: pd.DataFrame, users: pd.DataFrame, tags: pd.DataFrame) -> np.ndarray | None:
    """Returns a text for each event, object ``[E]``: the tags that its user wrote from this event until the next one.

    These are the tags from the time of the event until just before the user's next event, each once, in order,
    separated by commas. The history before a target therefore contains no tag that was written at the time of the
    target or later. If several events have the same time, the last one gets the tags. Tags before the user's first
    event belong to no event.

    Args:
      events: As in :class:`~tfllmrec.data.dataset.Dataset`.
      users: As in :class:`~tfllmrec.data.dataset.Dataset`.
      tags: As in :class:`~tfllmrec.data.dataset.Dataset`.

    Returns:
      The texts, or ``None`` if there are no tags of these users, if the tags or events have no times, or if the times
      contradict the order of the events.
    """
    user = pd.Index(users[USER]).get_indexer(tags[USER])
    known = (user >= 0) & tags[TIMESTAMP].notna().to_numpy()
    own, times = events[USER_INDEX].to_numpy(), events[TIMESTAMP].to_numpy()
    in_order = bool((np.diff(times)[own[1:] == own[:-1]] >= 0).all())  # False if a time is unknown
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

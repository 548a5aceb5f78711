"""Writes the recommendations for a few users in words after each epoch, to show what the model learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.board.words import escaped
from tfllmrec.client.answers import to_frame
from tfllmrec.columns import ITEM, QUERY, REASON, TITLE
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.splits import Split
from tfllmrec.models.answers import recommended

#: The number of users whose recommendations are shown.
USERS = 5
#: The number of newest titles of a history, and of recommendations, that are shown.
SHOWN_HISTORY, SHOWN = 5, 5


class RecommendationsInWords(tf.keras.callbacks.Callback):
    """Writes the recommendations for a few users, with reasons, as a table into TensorBoard's Text.

    Args:
      recommend: A function of the model that returns a row for each recommendation, in the order of users, in the
        format of :func:`tfllmrec.client.answers.to_frame`: ``query``, ``title`` and ``reason``.
      histories: The titles of each user's history, the newest last.
      log_dir: A folder of TensorBoard logs for this callback alone.
    """

    def __init__(
        self,
        recommend: Callable[[tf.keras.Model], pd.DataFrame],
        histories: Sequence[Sequence[str]],
        log_dir: Path | str,
    ) -> None:
        super().__init__()
        self.recommend, self.histories = recommend, histories
        self.writer = tf.summary.create_file_writer(str(log_dir))

    @classmethod
    def of(cls, split: Split, log_dir: Path | str) -> Self:
        """Creates the callback for :data:`USERS` validation users, spread evenly over the lengths of histories."""
        queries = split.validation
        by_length = np.argsort(queries.history.lengths, kind="stable")
        asked = queries.take(by_length[evenly_spread(len(queries), USERS)])
        ids, titles = split.dataset.items[ITEM].to_numpy(), split.dataset.titles
        histories = [[titles[ids[item]] for item in history] for history in asked.history]
        return cls(lambda model: to_frame(recommended(model, asked, SHOWN, split.dataset)), histories, log_dir)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        found = self.recommend(self.model)
        with self.writer.as_default(step=epoch):
            for place, history in enumerate(self.histories):
                own = found[found[QUERY] == place].head(SHOWN)
                tf.summary.text(f"recommendations/user {place + 1}", _table(history, own))
        self.writer.flush()


def _table(history: Sequence[str], found: pd.DataFrame) -> str:
    before = "; ".join(map(escaped, history[-SHOWN_HISTORY:])) or "nothing yet"
    rows = [f"| {escaped(title)} | {escaped(why)} |" for title, why in zip(found[TITLE], found[REASON], strict=True)]
    return "\n".join([f"After: {before}", "", "| recommended | reason |", "|---|---|", *rows])

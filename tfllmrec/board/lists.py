"""What a model recommends to a few users, in words, after each epoch: one sees what it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import tensorflow as tf

from tfllmrec.board.scoreboard import writing_to
from tfllmrec.client.answers import QUERY, REASON
from tfllmrec.columns import TITLE
from tfllmrec.wording import visible

#: The newest titles of a history, and the recommendations, that are shown.
SHOWN_HISTORY, SHOWN = 5, 5


class RecommendationsInWords(tf.keras.callbacks.Callback):
    """Writes the recommendations for a few users, with reasons, as a table into TensorBoard's Text.

    Args:
      recommend: the model -> a row for each recommendation, in the order of users, as
        :func:`tfllmrec.client.answers.to_frame` makes them: ``query``, ``title`` and ``reason``.
      histories: the titles of each user's history, the newest last.
      log_dir: of TensorBoard.
    """

    def __init__(
        self,
        recommend: Callable[[tf.keras.Model], pd.DataFrame],
        histories: Sequence[Sequence[str]],
        log_dir: Path | str,
    ) -> None:
        super().__init__()
        self.recommend, self.histories, self.log_dir = recommend, histories, log_dir

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        found = self.recommend(self.model)
        with writing_to(self.log_dir, epoch):
            for place, history in enumerate(self.histories):
                own = found[found[QUERY] == place].head(SHOWN)
                tf.summary.text(f"recommendations/user {place + 1}", _table(history, own))


def _table(history: Sequence[str], found: pd.DataFrame) -> str:
    before = "; ".join(map(_cell, history[-SHOWN_HISTORY:])) or "nothing yet"
    rows = [f"| {_cell(title)} | {_cell(why)} |" for title, why in zip(found[TITLE], found[REASON], strict=True)]
    return "\n".join([f"After: {before}", "", "| recommended | reason |", "|---|---|", *rows])


def _cell(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|" else c for c in visible(text))

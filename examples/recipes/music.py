"""Music: plays, skips and likes; the same track is played many times.

Each listener of the planted service has eight tracks of one genre, plays them in random order, two of them most often,
and skips tracks of another genre. The next play is a known track: with ``data.repeats=last``, no model could recommend
it. The last line has the figures of lists of each user's own most played tracks; a model must beat them to be worth
serving.

    python examples/recipes/music.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from _recipe import START_S, Tables, fitted

import tfllmrec
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.runs.run import Run

GENRES, TRACKS = ["jazz", "metal", "waltz"], 30
LOVE = [0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]


class MostPlayed:
    """A baseline that ranks each user's own tracks by how often they were played or liked."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def score(self, queries: Queries) -> np.ndarray:
        scores = np.zeros((len(queries), self.n_items), np.float32)
        np.add.at(scores, (queries.choices.row_of_value, queries.choices.values), 1)
        return scores


def plant(rng: np.random.Generator) -> Tables:
    tracks = [(genre, number) for genre in GENRES for number in range(TRACKS)]
    items = pd.DataFrame(
        {
            "item": [f"{genre}-{number}" for genre, number in tracks],
            "title": [f"{genre} song {chr(97 + number % 26)}{number // 26}" for genre, number in tracks],
            "artist": [f"{genre} band {number % 5}" for genre, number in tracks],
            "genre": [genre for genre, _ in tracks],
        }
    )
    events = []
    for user in range(90):
        genre = user % len(GENRES)
        playlist = rng.choice(TRACKS, 8, replace=False)
        for step in range(24):
            time = START_S + 300 * step + user
            track = rng.choice(playlist, p=LOVE)
            events.append((f"u{user}", f"{GENRES[genre]}-{track}", time, "play"))
            if rng.random() < 0.3:
                other = GENRES[(genre + 1) % len(GENRES)]
                events.append((f"u{user}", f"{other}-{rng.integers(TRACKS)}", time + 100, "skip"))
    return {"events": pd.DataFrame(events, columns=["user", "item", "timestamp", "kind"]), "items": items}


def main(argv: Sequence[str] | None = None) -> Run:
    run = fitted("music", __doc__, plant, argv)
    print(most_played(run.split))
    return run


def most_played(split: Split) -> str:
    """Returns the figures of :class:`MostPlayed` on the test queries, as a line."""
    own = MostPlayed(split.dataset.n_items)
    found = tfllmrec.evaluate(own, split.test, train_counts=split.train_counts, strata={}, bootstrap=0).metrics
    return f"\nOwn most played: ndcg@10 {found['ndcg@10']:.4f}, recall@10 {found['recall@10']:.4f}"


if __name__ == "__main__":
    main()

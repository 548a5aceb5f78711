"""Music: plays, skips and likes; the same track is played many times.

Each listener of the planted service has eight tracks of one genre, plays them in any order, two of them most, and skips
tracks of another genre. The next play is a known track: with ``data.repeats=last`` no model could recommend it. Where a
table has counts instead of plays, ``plays_of`` makes a row of each play.

    python examples/recipes/music.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from _recipe import START_S, Tables, fitted

from tfllmrec.runs.run import Run

GENRES, TRACKS = ["jazz", "metal", "waltz"], 30
LOVE = [0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]


def plays_of(counts: pd.DataFrame) -> pd.DataFrame:
    """From a row for each user and track, with a column ``plays``, to a row for each play."""
    return counts.loc[counts.index.repeat(counts["plays"])].drop(columns="plays")


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
    return fitted("music", __doc__, plant, argv)


if __name__ == "__main__":
    main()

"""Video: ratings and watch time; the device and the place in the app (scene) come with each request.

In the planted service, everybody watches clips on the phone and films on the television. So the device is more
informative than the history, and clients must send it.

    python examples/recipes/video.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from _recipe import START_S, Tables, fitted

from tfllmrec.runs.run import Run

FORMATS, GENRES, NUMBERS = {"phone": "clip", "television": "film"}, ["comedy", "crime"], 20


def plant(rng: np.random.Generator) -> Tables:
    videos = [(form, genre, n) for form in FORMATS.values() for genre in GENRES for n in range(NUMBERS)]
    items = pd.DataFrame(
        {
            "item": [f"{form}-{genre}-{n}" for form, genre, n in videos],
            "title": [f"{genre} {form} {chr(97 + n)}" for form, genre, n in videos],
            "genre": [genre for _, genre, _ in videos],
            "minutes": [3 if form == "clip" else 100 for form, _, _ in videos],
        }
    )
    events, users = [], []
    for user in range(120):
        genre = GENRES[user % 2]
        users.append((f"u{user}", 20 + user % 40))
        seen = {form: rng.permutation(NUMBERS) for form in FORMATS.values()}
        for step in range(12):
            device = rng.choice(list(FORMATS))
            item = f"{FORMATS[device]}-{genre}-{seen[FORMATS[device]][step]}"
            scene = "home" if rng.random() < 0.5 else "after the end"
            time = START_S + 7200 * step + user
            events.append((f"u{user}", item, time, rng.integers(3, 6), round(rng.random(), 2), device, scene))
    columns = ["user", "item", "timestamp", "rating", "watched", "device", "scene"]
    tables = {"events": pd.DataFrame(events, columns=columns), "items": items}
    return tables | {"users": pd.DataFrame(users, columns=["user", "age"])}


def main(argv: Sequence[str] | None = None) -> Run:
    run = fitted("video", __doc__, plant, argv)
    model = run.load_model()
    for device in ("phone", "television"):
        found = model.recommend(
            histories=[["clip-crime-1", "film-crime-2"]], k=3, dataset=run.dataset, context=[{"device": device}]
        )
        print(f"\nFor a request with device={device}: {', '.join(found['title'])}")
    return run


if __name__ == "__main__":
    main()

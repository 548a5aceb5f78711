"""News: every day has new articles, readers have no ratings, and each reader follows one subject.

On the planted site, 6 articles on each of 5 subjects appear each day and are read on that day only. The test articles
have no training events, so a model knows only their texts.

    python examples/recipes/news.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from _recipe import DAY_S, START_S, Tables, fitted

from tfllmrec.runs.run import Run

SUBJECTS = {
    "football": "football club wins the cup",
    "election": "parliament votes on the election law",
    "opera": "soprano sings at the opera house",
    "shares": "bank shares fall at the exchange",
    "storm": "storm brings rain and snow",
}
DAYS, A_DAY = 12, 6


def plant(rng: np.random.Generator) -> Tables:
    articles = [(subject, day, number) for day in range(DAYS) for subject in SUBJECTS for number in range(A_DAY)]
    items = pd.DataFrame(
        {
            "item": [f"{subject}-{day}-{number}" for subject, day, number in articles],
            "title": [f"{SUBJECTS[subject]}, report {chr(97 + number)}" for subject, _, number in articles],
            "section": [subject for subject, _, _ in articles],
            "published": [START_S + day * DAY_S for _, day, _ in articles],
        }
    )
    events = []
    for user in range(150):
        subject = list(SUBJECTS)[user % len(SUBJECTS)]
        for day in range(DAYS):
            for number in rng.choice(A_DAY, 2, replace=False):
                time = START_S + day * DAY_S + int(rng.integers(DAY_S))
                events.append((f"u{user}", f"{subject}-{day}-{number}", time))
    return {"events": pd.DataFrame(events, columns=["user", "item", "timestamp"]), "items": items}


def main(argv: Sequence[str] | None = None) -> Run:
    return fitted("news", __doc__, plant, argv)


if __name__ == "__main__":
    main()

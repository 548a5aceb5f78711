"""A social feed: users follow, like and hide accounts; accounts and users have a language.

Each user of the planted network follows and likes accounts in the user's language on one subject, and hides accounts on
the other subject. Hides are never targets that the model learns to predict: they count against similar accounts.

    python examples/recipes/feed.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from _recipe import START_S, Tables, fitted

from tfllmrec.runs.run import Run

SUBJECTS = {
    "en": ["cooking and bread", "mountains and skiing"],
    "de": ["Kochen und Brot", "Berge und Skifahren"],
    "es": ["cocina y pan", "montañas y esquí"],
}
ACCOUNTS = 16


def plant(rng: np.random.Generator) -> Tables:
    accounts = [(language, subject, n) for language in SUBJECTS for subject in range(2) for n in range(ACCOUNTS)]
    items = pd.DataFrame(
        {
            "item": [f"{language}-{subject}-{n}" for language, subject, n in accounts],
            "title": [f"{language} account {chr(97 + n)}" for language, _, n in accounts],
            "description": [SUBJECTS[language][subject] for language, subject, _ in accounts],
            "language": [language for language, _, _ in accounts],
        }
    )
    events, users = [], []
    for user in range(120):
        language, subject = list(SUBJECTS)[user % 3], user // 3 % 2
        users.append((f"u{user}", language))
        liked, other = rng.permutation(ACCOUNTS), rng.permutation(ACCOUNTS)
        for step in range(9):
            time = START_S + 3600 * step + user
            kind = "follow" if rng.random() < 0.5 else "like"
            events.append((f"u{user}", f"{language}-{subject}-{liked[step]}", time, kind))
            if step % 3 == 0:
                events.append((f"u{user}", f"{language}-{1 - subject}-{other[step]}", time + 60, "hide"))
    tables = {"events": pd.DataFrame(events, columns=["user", "item", "timestamp", "kind"]), "items": items}
    return tables | {"users": pd.DataFrame(users, columns=["user", "language"])}


def main(argv: Sequence[str] | None = None) -> Run:
    run = fitted("feed", __doc__, plant, argv)
    model = run.load_model()
    for kind in ("like", "hide"):
        found = model.recommend(
            histories=[["de-0-1", "de-1-2"]],
            event_fields=[[{"kind": "like"}, {"kind": kind}]],
            context=[{"language": "de"}],
            k=5,
            dataset=run.dataset,
        )
        print(f"\nAfter a like of de-0-1 and a {kind} of de-1-2: {', '.join(found['item_id'])}")
    return run


if __name__ == "__main__":
    main()

"""A shop: views, carts and purchases; articles have a category, a brand and a price.

In the planted shop, a user buys one article after the other along a shelf, and views articles of any shelf between the
purchases. So past purchases predict the next purchase, and views do not.

    python examples/recipes/shop.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from _recipe import DAY_S, START_S, Tables, fitted

from tfllmrec.runs.run import Run

SHELVES, PLACES = ["tent", "lamp", "boot", "cup"], 20


def plant(rng: np.random.Generator) -> Tables:
    articles = [(shelf, place) for shelf in SHELVES for place in range(PLACES)]
    items = pd.DataFrame(
        {
            "item": [f"{shelf}-{place}" for shelf, place in articles],
            "title": [f"{shelf} model {chr(97 + place)}" for shelf, place in articles],
            "category": [shelf for shelf, _ in articles],
            "brand": [f"brand {place % 4}" for _, place in articles],
            "price": [10 + 5 * place for _, place in articles],
        }
    )
    events = []
    for user in range(120):
        shelf, place = rng.integers(len(SHELVES)), rng.integers(PLACES)
        for day in range(8):
            time = START_S + day * DAY_S + user
            events.append((f"u{user}", rng.choice(items["item"]), time, "view"))
            events.append((f"u{user}", f"{SHELVES[shelf]}-{(place + day) % PLACES}", time + 600, "purchase"))
    return {"events": pd.DataFrame(events, columns=["user", "item", "timestamp", "kind"]), "items": items}


def main(argv: Sequence[str] | None = None) -> Run:
    run = fitted("shop", __doc__, plant, argv)
    print("\nAfter a purchase of tent-3 and tent-4:")
    print(run.load_model().recommend(histories=[["tent-3", "tent-4"]], k=5, dataset=run.dataset)[["item_id", "title"]])
    return run


if __name__ == "__main__":
    main()

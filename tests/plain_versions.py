"""Makes a catalogue, and folders of versions with it as an export writes them, but without a model."""

import json

import numpy as np
import pandas as pd

from tfllmrec.serving.rules.compiled import NO_RULES
from tfllmrec.serving.rules.compiler import RuledCatalogue

#: The kinds of the fields.
KINDS = {"price": "number", "released": "time", "brand": "category", "tags": "category"}
#: 2026-01-01, in seconds.
NOW = 1_767_225_600.0
DAY = 86_400.0


def made_catalogue(n_items=30, seed=0):
    """Returns items ``i0``, ``i1``, ...; every seventh has no price, every fifth no date, every sixth no brand."""
    rng = np.random.default_rng(seed)
    number = np.arange(n_items)
    items = pd.DataFrame(
        {
            "item_id": [f"i{i}" for i in number],
            "title": [f"Item {i}" for i in number],
            "categories": [["wine", "toys", "news"][: 1 + i % 3] if i % 4 else [] for i in number],
        }
    )
    fields = pd.DataFrame(
        {
            "price": np.where(number % 7 == 6, np.nan, rng.integers(1, 50, n_items) / 2),
            "released": np.where(number % 5 == 4, np.nan, NOW + DAY * rng.integers(-60, 20, n_items)),
            "brand": np.where(number % 6 == 5, "", np.array(["Acme", "Best", "Core"])[rng.integers(0, 3, n_items)]),
            "tags": [["red", "big"][: i % 3] for i in number],
        }
    )
    return RuledCatalogue(items, fields, KINDS)


def write_version(folder, number, catalogue, obeys=True):
    """Writes the version ``folder/NUMBER`` without a model and returns its folder."""
    version = folder / str(number)
    (version / "assets.extra").mkdir(parents=True)
    (version / "assets").mkdir()
    (version / "saved_model.pb").write_bytes(b"no model")
    schema = [{"name": name, "owner": "item", "kind": kind} for name, kind in KINDS.items()]
    (version / "assets.extra" / "tfllmrec.json").write_text(json.dumps({"items": len(catalogue), "schema": schema}))
    catalogue.items.to_parquet(version / "assets.extra" / "items.parquet", index=False)
    if obeys:
        (version / "assets" / "rules.bin").write_bytes(NO_RULES)
        catalogue.fields.to_parquet(version / "assets.extra" / "item_fields.parquet", index=False)
    return version

"""Finds items of two catalogues that are the same."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from tfllmrec.columns import ITEM, TITLE
from tfllmrec.errors import ConfigError

By = Literal["id", "title", "none"]

#: Columns with the release year of an item, in order of preference.
YEARS = ("release_year", "year")
_YEAR = r"\s*\((\d{4})\)\s*$"
_ARTICLE = r"^(.*), (the|an|a|les|le|la|il|el|das|der|die|l')$"


def same_items(items: pd.DataFrame, known: pd.DataFrame, by: By = "id") -> np.ndarray:
    """Returns for each of N ``items`` its row among the ``known`` items, int64 ``[N]``; -1 if it has none.

    Titles are compared without case, punctuation and a trailing article ("Game, The"), together with the year, which is
    at the end of the title, "Toy Story (1995)", or in a column ``release_year`` or ``year``. A title and year that
    several items of one catalogue share are not matched.

    Args:
      items: An items table, as :attr:`tfllmrec.data.dataset.Dataset.items`.
      known: An items table, as :attr:`tfllmrec.data.dataset.Dataset.items`.
      by: What is compared: ``id``, ``title``, or ``none``: all items differ.

    Raises:
      ConfigError: A catalogue has no titles to compare.
    """
    if by == "none":
        return np.full(len(items), -1)
    if by == "id":
        return pd.Index(known[ITEM]).get_indexer(items[ITEM]).astype(np.int64)
    ours, theirs = (pd.Index(_titles_and_years(each)) for each in (items, known))
    unclear = ours.duplicated(keep=False) | (ours == "")
    clear = ~theirs.duplicated(keep=False)
    found = theirs[clear].get_indexer(ours)
    rows = np.append(np.flatnonzero(clear), -1)[found]
    return np.where(unclear, -1, rows).astype(np.int64)


def titles_differ(items: pd.DataFrame, known: pd.DataFrame, rows: np.ndarray) -> bool | None:
    """Returns whether most items that are matched by ``rows`` (from :func:`same_items`) have different titles.

    In that case their ids may be equal by chance. ``None`` if fewer than ten matched items have titles.
    """
    if TITLE not in items or TITLE not in known:
        return None
    ours, theirs = (
        _titles_and_years(each).str.partition("|")[0].to_numpy()
        for each in (items[rows >= 0], known.iloc[rows[rows >= 0]])
    )
    titled = (ours != "") & (theirs != "")
    return bool((ours != theirs)[titled].mean() > 0.5) if titled.sum() >= 10 else None


def _titles_and_years(items: pd.DataFrame) -> pd.Series:
    """Returns a text for each item that is equal for equal titles and years; empty if there is no title."""
    if TITLE not in items:
        raise ConfigError(
            f"transfer.same_items=title: expected a column '{TITLE}' in both catalogues, found "
            f"{', '.join(map(str, items))}. Map the column with data.columns.title, or compare ids."
        )
    titles = items[TITLE].astype("str").str.casefold()
    years = titles.str.extract(_YEAR, expand=False).fillna("")
    for column in YEARS:
        if column in items:
            years = years.where(years != "", items[column].fillna("").astype("str").str[:4])
    titles = titles.str.replace(_YEAR, "", regex=True).str.replace(_ARTICLE, r"\2 \1", regex=True)
    titles = titles.str.replace(r"[\W_]+", " ", regex=True).str.strip()
    return (titles + "|" + years).where(titles != "", "")

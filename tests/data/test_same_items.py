"""Items of two catalogues that are the same one."""

import pandas as pd
import pytest

from tfllmrec.data.same_items import same_items, titles_differ
from tfllmrec.errors import ConfigError

KNOWN = pd.DataFrame(
    {"item_id": ["1", "2", "3", "4", "5"],
     "title": ["Toy Story (1995)", "Game, The (1997)", "Heat (1995)", "Heat (1995)", "Hamlet (1990)"]}
)  # fmt: skip


def test_ids_are_compared_as_they_are():
    items = pd.DataFrame({"item_id": ["3", "01", "1"]})
    assert same_items(items, KNOWN).tolist() == [2, -1, 0]
    assert same_items(items, KNOWN, "none").tolist() == [-1, -1, -1]


def test_titles_are_compared_with_the_year_and_without_case_article_and_punctuation():
    items = pd.DataFrame(
        {"item_id": ["a", "b", "c", "d", "e", "f"],
         "title": ["TOY STORY!", "The Game", "Heat", "Hamlet", "", "Hamlet"],
         "release_year": ["1995", "1997", "1995", "1996", "1990", "1990"]}
    )  # fmt: skip
    # Heat is there twice, so it is not known which one is meant; the other Hamlet is another film.
    assert same_items(items, KNOWN, "title").tolist() == [0, 1, -1, -1, -1, 4]
    twice = items.assign(title="Toy Story", release_year="1995")
    assert (same_items(twice, KNOWN, "title") == -1).all()


def test_a_missing_year_is_no_year_whatever_the_type_of_the_column():
    items = pd.DataFrame(
        {"item_id": ["a", "b", "c"], "title": ["Heat", "Alien", "Brazil"], "year": [1995.0, None, None]}
    )
    known = pd.DataFrame({"item_id": ["1", "2"], "title": ["Heat (1995)", "Alien"]})
    assert same_items(items, known, "title").tolist() == [0, 1, -1]


def test_equal_ids_are_checked_by_ten_titles_or_not_at_all():
    items = pd.DataFrame({"item_id": [str(i) for i in range(12)], "title": [f"film {i}" for i in range(12)]})
    rows = same_items(items, items)
    assert titles_differ(items, items, rows) is False
    assert titles_differ(items, items.assign(title=[*items.title[:5], *"abcdefg"]), rows) is True
    assert titles_differ(items, items.assign(title=[*items.title[:9], "", "", ""]), rows) is None
    assert titles_differ(items, items[["item_id"]], rows) is None


def test_without_titles_there_is_nothing_to_compare():
    with pytest.raises(ConfigError, match="title"):
        same_items(KNOWN[["item_id"]], KNOWN, "title")

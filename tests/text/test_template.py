import time

import numpy as np
import pandas as pd
import pytest

from tfllmrec.errors import ConfigError
from tfllmrec.text.template import ItemTemplate


def texts(template, max_characters=2000, **columns):
    items = pd.DataFrame(
        {"item_id": ["1"], **{name: pd.Series([value], dtype=object) for name, value in columns.items()}}
    )
    return ItemTemplate.from_items(items, template, max_characters).texts(items)[0]


def test_auto_takes_the_columns_that_are_there():
    items = pd.DataFrame({"item_id": ["1"], "description": ["d"], "categories": ["c"], "title": ["t"], "price": ["9"]})
    assert ItemTemplate.from_items(items).template == "{title} ({categories}) {description}"
    assert ItemTemplate.from_items(items[["item_id", "title"]]).template == "{title}"
    everything = items.assign(tags="x", authors="a", brand="b")
    made = ItemTemplate.from_items(everything)
    assert made.template == "{title} by {authors} ({categories}) [{tags}] {description}"
    assert made.columns == ["title", "authors", "categories", "tags", "description"]
    assert made.texts(everything) == ["t by a (c) [x] d"]


def test_both_forms_of_movielens_give_one_text():
    grouplens = pd.DataFrame({"title": ["Matrix, The (1999)"], "categories": ["Action, Sci-Fi"]})
    recbole = pd.DataFrame({"title": ["Matrix, The"], "categories": ["Action, Sci-Fi"], "release_year": ["1999"]})
    for items in (grouplens, recbole):
        assert ItemTemplate.from_items(items).texts(items) == ["The Matrix (1999) (Action, Sci-Fi)"]


def test_auto_leaves_out_a_column_without_any_value():
    items = pd.DataFrame({"title": ["a", "b"], "categories": ["", None], "description": ["", "d"]})
    assert ItemTemplate.from_items(items).template == "{title} {description}"


def test_auto_without_text_says_what_it_looked_for():
    with pytest.raises(ConfigError, match=r"'title'.*got item_id, price"):
        ItemTemplate.from_items(pd.DataFrame({"item_id": ["1"], "price": ["2"]}))


def test_without_a_catalogue_it_is_asked_for():
    with pytest.raises(ConfigError, match="there is no catalogue: name it with --items FILE"):
        ItemTemplate.from_items(pd.DataFrame({"item_id": ["1"]}))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{title} ({categories}) {description}", "T D"),
        ("{title} by {categories} - {description}", "T - D"),
        ("{title} ({categories}, {description})", "T (D)"),
        ("{title} ({description}, {categories})", "T (D)"),
        ("Book: {title}. {categories}", "Book: T"),
        ("{categories}: {title}", "T"),
        ("[{categories}] {title}!", "T!"),
        ("{categories} ({categories})", ""),
        ("{title} ({description} (first {categories}))", "T (D)"),
    ],
)
def test_a_missing_value_leaves_nothing_behind(template, expected):
    for nothing in ("", None, np.nan, "  ", []):
        assert texts(template, title="T", description="D", categories=nothing) == expected


def test_values_of_any_kind():
    assert texts("{title} ({categories})", title="T", categories=["Beauty", "Make-up"]) == "T (Beauty, Make-up)"
    names = {"categories": "Arts, Music & Photography|Books", "authors": "Ann Lee|Bo Roe", "tags": "slow|old"}
    assert (
        texts("{title} by {authors} ({categories}) [{tags}]", title="A | B", **names)
        == "A | B by Ann Lee, Bo Roe (Arts, Music & Photography, Books) [slow, old]"
    )
    assert texts("{title} {year}", title="T", year=1999.0) == "T 1999"
    assert texts("{title}", title="a literal (bracket) and {brace}") == "a literal (bracket) and {brace}"


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Beautiful Mind, A", "A Beautiful Mind"),
        ("Misérables, Les (1995)", "Les Misérables (1995)"),
        ("Avventura, L' (1960)", "L'Avventura (1960)"),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (Cité des enfants perdus, La) (1995)",
        ),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly (1966)"),
        ("Sense, Sensibility and Theory", "Sense, Sensibility and Theory"),
        ("Shampoo, A Kind of (large)", "Shampoo, A Kind of (large)"),
    ],
)
def test_the_article_comes_to_the_front_of_a_title(title, expected):
    assert texts("{title}", title=title) == expected
    assert texts("{description}", description=title) == title  # only a title is written that way


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Soap &amp; <b>Water</b>", "Soap & Water"),
        ("Soap &amp;amp; Water&nbsp;2", "Soap & Water 2"),
        ('<span class="a-size-medium"', ""),
        ("  two\n\t spaces  ", "two spaces"),
        ("5 < 6 & 7 > 2", "5 < 6 & 7 > 2"),
        ("<script>var a = '<b>';</script>Soap<style>p{}</style>", "Soap"),
        ("nu\0l, \x01be\x07ll\x7f \x1a", "nul, bell"),
        ("Ange\xadbot \ufeffzero\u200bwidth \u200eltr\u202c", "Angebot zero width ltr"),
        ("caf\ufffd \ud83d x\udc00", "caf ? x?"),
        ("a\x0bb\x1cc\u2028d\u3000e\xa0f", "a b c d e f"),
        ("Great👍🏽! 🎧Wireless👩‍🚀", "Great 👍🏽 ! 🎧 Wireless 👩‍🚀"),
        ("I ❤️you™", "I ❤️ you™"),
        ("口红 持久，不掉色", "口红 持久，不掉色"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_html_and_white_space_go(raw, expected):
    assert texts("{title} {description}", title=raw, description="") == expected


def test_long_text_is_cut_at_a_space():
    assert texts("{title}", max_characters=11, title="four score and seven") == "four score"
    assert texts("{title}", max_characters=10, title="four score and seven") == "four score"
    assert texts("{title}", max_characters=9, title="four score and seven") == "four"
    assert texts("{title}", max_characters=3, title="four") == "fou"


def test_a_long_text_without_spaces_near_the_cut_is_cut_there():
    assert texts("{title}", max_characters=1000, title="口红 " + "持久" * 5000) == "口红 " + "持久" * 498 + "持"
    assert texts("{title}", max_characters=1000, title="a " * 60_000) == ("a " * 500).strip()
    assert len(texts("{title}", title="x" * 100_000)) == 2000


@pytest.mark.parametrize(
    "unit", ["x, The (", ", A", "👍", "👍\u200d", "\u200b", "\0", "\xad ", "口", "{title}", "<script>"]
)
def test_a_hundred_kilobytes_take_linear_time(unit):
    def seconds(size):
        start = time.process_time()
        texts("{title}", title=unit * (size // len(unit)))
        return time.process_time() - start

    # Ten times as long takes ten times as long; quadratic would be a hundred.
    assert seconds(100_000) < 30 * max(seconds(10_000), 0.01)


def test_an_unknown_column_names_the_nearest():
    items = pd.DataFrame({"item_id": ["1"], "title": ["t"], "description": ["d"]})
    with pytest.raises(ConfigError, match=r"'descripton'.*nearest is 'description'"):
        ItemTemplate.from_items(items, "{title} {descripton}")
    made = ItemTemplate.from_items(items, "{title} {description}")
    with pytest.raises(ConfigError, match="'description'"):
        made.texts(items.drop(columns="description"))


@pytest.mark.parametrize("template", ["{title", "title}", "no field", "", "{{title}}"])
def test_a_broken_template_is_refused(template):
    with pytest.raises(ConfigError, match=r"text\.template"):
        ItemTemplate.from_items(pd.DataFrame({"title": ["t"]}), template)


def test_every_row_has_its_text_in_order():
    items = pd.DataFrame({"title": ["a", "", "c"], "categories": ["x", "y", ""]}, index=[7, 3, 5])
    assert ItemTemplate.from_items(items).texts(items) == ["a (x)", "(y)", "c"]


def variants(template):
    return [variant.template for variant in ItemTemplate(template).variants()]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{title}", []),
        ("{title} ({categories})", ["{title}", "({categories}) {title}"]),
        (
            "{title} by {brand} ({categories})",
            ["{title} ({categories})", "{title} by {brand}", "{title}", "by {brand} ({categories}) {title}"],
        ),
        ("Book: {title}. {categories}!", ["Book: {title}!", "{categories} Book: {title}!"]),
        ("{title} - {brand}, {description}", [
            "{title}, {description}", "{title} - {brand}", "{title}", "{brand}, {description} {title}",
        ]),
        ("{title} ({brand}, {categories})", ["{title}", "({brand}, {categories}) {title}"]),
        # What would leave a bracket alone is left out.
        ("{title} ({description} (first {categories}))", [
            "{title} ({description})", "({description} (first {categories}) {title})",
        ]),
    ],
)  # fmt: skip
def test_variants_are_of_the_same_parts(template, expected):
    assert variants(template) == expected


def test_wordings_start_with_the_text_and_name_each_once():
    items = pd.DataFrame({"title": ["a <b>b</b>", "", "", "c"], "categories": ["x", "y", None, ""]})
    template = ItemTemplate("{title} ({categories})", max_characters=5)
    wordings = template.wordings(items)
    assert wordings == [["a b", "(x) a"], ["(y)"], [""], ["c"]]  # "a b (x)" is cut to "a b"
    assert [row[0] for row in wordings] == template.texts(items)
    with pytest.raises(ConfigError, match="'categories'"):
        template.wordings(items[["title"]])

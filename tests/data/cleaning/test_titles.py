from pathlib import Path

import pandas as pd
import pytest

from tfllmrec.config import DataConfig
from tfllmrec.data.cleaning.titles import LONGEST, display_titles, usable_titles
from tfllmrec.data.readers import read_items

MAGAZINES = (
    Path(__file__).parents[4] / "shared" / "data" / "amazon-2018-magazine" / "meta_Magazine_Subscriptions.json.gz"
)


def usable(title):
    return bool(usable_titles(pd.DataFrame({"item_id": ["id"], "title": [title]}))[0])


@pytest.mark.parametrize(
    "title",
    [
        "",
        "id",
        'span class="a-size-medium a-color-secondary"',
        '<x-title data-id="3">',
        'Magazines" />',
        "Lamp --> <!-- end",
        "var aPageStart = (new Date()).getTime();",
        "(function(w, d) { w.x = d; })(window)",
        "document.write('x')",
        ".price { color: red; }",
        '{"name": "Lamp", "id": 3}',
        '{"name": "Lamp", "desc',
        '["Lamp", "Desk"]',
        "{'name': 'Lamp'}",
        "https://example.org/item/3?x=1",
        "www.example.org",
        "//cdn.example.org/a",
        "/images/lamp",
        "lamp_front.JPG",
        "data:image/png;base64,iVBOR",
        "$12.99",
        "US$12.99",
        "12,99 €",
        "EUR 5",
        "$3.00 - $5.00",
        "from $9",
        "{{ product.title }}",
        "${title}",
        "[object Object]",
    ],
)
def test_fragments_are_no_titles(title):
    assert not usable(title)


@pytest.mark.parametrize(
    "title",
    ["1984", "300", "3.14", "None", "null", "(500) Days of Summer", "[REC]", "<Untitled>", "5 < 6", "Variable = Life",
     "Function (2010)", "Jim Jefferies: Fully Functional (EPIX)", "Return of the King", "Let It Be", "What's Up, Doc?",
     "Face/Off", "AC/DC: Live", "Se7en", "$ (Dollars)", "M*A*S*H", "Class of 1984", "The Document", "{Proof}", "口红",
     "'Til There Was You", '"Great Performances" Cats', "Window to Paris", "e-mail@home", "50% Off", "T.com"],
)  # fmt: skip
def test_odd_titles_are_titles(title):
    assert usable(title)


def test_one_title_of_many_items_is_none():
    items = pd.DataFrame({"item_id": list("abcdefghij"), "title": ["Robot check"] * 3 + ["Hits"] * 2 + list("vwxyz")})
    assert usable_titles(items).tolist() == [False] * 3 + [True] * 7


def test_what_is_shown_in_place_of_a_title():
    columns = ["item_id", "title", "description", "brand", "categories"]
    items = pd.DataFrame(
        [
            ("a", "Lamp", "A lamp.", "Acme", "Home|Lamps"),
            ("b", "$9", "A bright  lamp for desks. It bends.", "Acme", "Home|Lamps"),
            ("c", "", "A lamp " + "that bends " * 20, "Acme", ""),
            ("d", "", "var x = 1;", "Acme|Bolt", "Home|Lamps, Lights"),
            ("e", "", "", "Acme", ""),
            ("f", "", "", "unknown", "Home|Lamps"),
            ("g", "", "", "", ""),
        ],
        columns=columns,
        index=[5, 3, 4, 9, 8, 7, 6],
    )
    shown = display_titles(items)
    assert shown.index.equals(items.index)
    assert shown.tolist() == [
        "Lamp",
        "A bright lamp for desks.",
        "A lamp that bends that bends that bends that bends that bends that bends that…",
        "Acme, Bolt (Lamps, Lights)",
        "Acme",
        "Lamps",
        "g",
    ]
    assert shown.str.len().max() <= LONGEST
    assert display_titles(items[["item_id", "brand"]]).tolist()[:3] == ["Acme"] * 3
    assert display_titles(items[["item_id"]]).tolist() == list("abcdefg")


@pytest.mark.shared
@pytest.mark.skipif(not MAGAZINES.exists(), reason=f"no shared data set at {MAGAZINES}")
def test_magazines_have_texts_to_show():
    items, _ = read_items(MAGAZINES, DataConfig(max_bad_rows=0.5))
    assert (items.title == "").mean() > 0.9
    shown = display_titles(items)
    assert (shown == items.item_id).mean() < 0.01 and not shown.str.contains("[<>]").any()

import time

import numpy as np
import pytest

from tfllmrec.data.item_text import category_names, category_text, strip_html


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([["Beauty", "Makeup"]], "Beauty, Makeup"),
        ([["Beauty", "Makeup"], ["Beauty", "Face"]], "Beauty, Makeup, Face"),
        (np.array(["Action", "War"], dtype=object), "Action, War"),
        ({"fantasy": 12, "young adult": 3}, "fantasy, young adult"),
        ("Action|Sci-Fi", "Action, Sci-Fi"),
        ("Action;Drama", "Action, Drama"),
        ("Toys > Puzzles > Wood", "Toys, Puzzles, Wood"),
        ("contemporary,ya-lit, contemporary", "contemporary, ya-lit"),
        ('[["Beauty", "Hair Care"]]', "Beauty, Hair Care"),
        ("['Beauty', \"Women's\"]", "Beauty, Women's"),
        ("[not a list", "[not a list"),
        ("Science Fiction", "Science Fiction"),
        (["Arts, Crafts & Sewing", "Kits"], "Arts, Crafts & Sewing, Kits"),
        ("Music &amp; Film|Books", "Music & Film, Books"),
        ("Film &amp; TV, Film & TV", "Film & TV"),
        (["A", "", None, "</span>"], "A"),
        ("(no genres listed)", ""),
        ("nan", ""),
        (None, ""),
        (float("nan"), ""),
        ([], ""),
        (7, "7"),
    ],
)
def test_category_text(value, text):
    assert category_text(value) == text


@pytest.mark.parametrize(
    ("text", "names"),
    [("Action, Sci-Fi", ["Action", "Sci-Fi"]), ("", []), (" A,B ,, A", ["A", "B"]),
     (category_text([["Toys, Games"], ["Games"]]), ["Toys", "Games"])],
)  # fmt: skip
def test_category_names(text, names):
    assert category_names(text) == names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Plain text", "Plain text"),
        ("<b>Bold</b> &amp; <br/>new", "Bold & new"),
        ('<span class="a-size-medium a-color-secondary"', ""),  # cut in two by a scraper
        (' Magazines" />', ""),
        ("<script>var a = 1 < 2;</script>Title", "Title"),
        ("Cr&eacute;a &#8230; &#x41; &amp;quot;x&amp;quot;", 'Créa … A "x"'),
        ("5 < 6 & 7 > 3", "5 < 6 & 7 > 3"),
        ("I <3 you", "I <3 you"),
        ("<Untitled>", "<Untitled>"),
        ("AT&T; rock&roll", "AT&T; rock&roll"),
        ("<a href='x'>link</a>", "link"),
        ("A<style type='text/css'>p { color: red }</style >B<SCRIPT>x</SCRIPT><script\n>y</script>C", "A B C"),
        ("How to use <script> in a page", "How to use in a page"),
        ("<script>a</script>b</script>c<script>", "b c"),
        ("<section>A</section><figure><figcaption>B</figcaption></figure><wbr>C", "A B C"),
        ("&#128077;&#x1F44D;&#8364;&#xD800;|&#0;", "👍👍€\ufffd|\ufffd"),
        (f"&#{'9' * 5000};", f"&#{'9' * 5000};"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp;lt;i&amp;gt;", "bold"),
    ],
)
def test_strip_html(value, text):
    assert strip_html(value) == text


@pytest.mark.parametrize(
    "unit",
    [
        "<script>",
        "<style ",
        "</script",
        "<!--",
        "<",
        "&",
        "&a",
        "&#9",
        "<a ",
        '" ',
        '"/>',
        "<b>x</b>",
        "口红",
        "👍 ",
        "[",
        "x, The (",
    ],
)
def test_a_hundred_kilobytes_of_anything_take_linear_time(unit):
    def seconds(size):
        text = unit * (size // len(unit))
        start = time.process_time()
        strip_html(text), category_text(text)
        return time.process_time() - start

    # Ten times as long takes ten times as long; quadratic would be a hundred.
    assert seconds(100_000) < 30 * max(seconds(10_000), 0.01)

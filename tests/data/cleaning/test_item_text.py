import time

import pandas as pd
import pytest

from tfllmrec.data.cleaning.item_text import strip_html, words_for_nothing
from tfllmrec.data.cleaning.names import names_in
from tfllmrec.data.cleaning.titles import display_titles


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
        strip_html(text), names_in(text), names_in(f"[{text}]"), names_in(f"{{{text}}}")
        display_titles(pd.DataFrame({"item_id": ["a"], "title": [text]}))
        return time.process_time() - start

    # Ten times as long takes ten times as long; quadratic would be a hundred.
    assert seconds(100_000) < 30 * max(seconds(10_000), 0.01)


WORDS = ["None", "null", "NaN", "nan", "N/A", "NA", "Untitled", "unknown", "-", "undefined"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("items", "so_often", "is_nothing"), [
    (5, 1, False), (5, 3, True), (400, 3, False), (400, 4, True), (20_000, 99, False), (20_000, 100, True),
])  # fmt: skip
def test_a_word_for_nothing_is_a_title_until_it_recurs(word, items, so_often, is_nothing):
    texts = pd.Series([word] * so_often + [f"Title {i}" for i in range(items - so_often)], dtype="str")
    assert words_for_nothing(texts).tolist() == [is_nothing] * so_often + [False] * (items - so_often)


def test_titles_that_recur_are_no_words_for_nothing():
    assert not words_for_nothing(pd.Series(["Greatest Hits"] * 50 + WORDS, dtype="str")).any()

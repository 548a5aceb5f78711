import difflib
import re
from pathlib import Path

import pytest

from tfllmrec import wording
from tfllmrec.errors import ConfigError
from tfllmrec.wording import clipped, nearest, nearest_hint, shown, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mred", r"a\x1b[31mred"),
        ("one\rtwo\nthree\tfour\x00\x7f\x9b", r"one\rtwo\nthree\tfour\x00\x7f\x9b"),
        ("exe.\u202etxt", r"exe.\u202etxt"),
        ("\u2066a\u2069\u200f\u061c", r"\u2066a\u2069\u200f\u061c"),
        ("pay\u200bpal \u2060\ufeff\xad", r"pay\u200bpal \u2060\ufeff\xad"),
        ("a\u200db \u200c", r"a\u200db \u200c"),
        ("\u0645\u200d\u200d\u0645", "\u0645" + r"\u200d\u200d" + "\u0645"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("\udcff\u3164\U000e0041", r"\udcff\u3164\U000e0041"),
    ],
)
def test_what_hides_or_moves_text_is_made_visible(text, expected):
    assert visible(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Amélie (2001): ★★★, ½ £",
        "שלום עולם",
        "مرحبا ٣ \u0600٣",
        "می\u200cخواهم",  # a non-joiner, which is part of Persian spelling
        "क्\u200dष",
        "e\u0301",
        "👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 👍🏽",
        "東京物語 서울 ไทย",
        "no\xa0break",
    ],
)
def test_letters_of_every_script_stay(text):
    assert visible(text) == text


def test_an_error_is_as_many_lines_as_it_was_made_of():
    error = ConfigError("item 'a\nerror: forged' is unknown", "  near: b\x1b[2J")
    assert str(error).split("\n") == [r"item 'a\nerror: forged' is unknown", r"  near: b\x1b[2J"]


def test_a_value_is_shown_in_80_characters_and_without_walking_through_all_of_it():
    assert [shown(value) for value in (None, True, [5], "x")] == ["null", "True", "[5]", "'x'"]
    bomb = ["x"]
    for _ in range(100):
        bomb = [bomb] * 9  # 9**100 values
    endless: list = []
    endless.append(endless)
    for value in (bomb, endless, "x" * 10_000, dict.fromkeys(range(1000), bomb)):
        assert len(shown(value)) <= 80
    assert (shown(1 << 80_000), shown([-1 << 80_000])) == ("<int>", "<list>")  # more digits than Python prints


def test_a_hint_shows_the_nearest_name_and_nothing_where_none_is_near():
    assert nearest_hint("epoch", ["batch", "epochs"]) == " (nearest: 'epochs')"
    assert nearest_hint("epoch", {"epochs": "training.epochs", "batch": "b"}) == " (nearest: 'training.epochs')"
    assert nearest_hint("zzz", ["batch"]) == nearest_hint("zzz", {}) == ""


def test_the_nearest_names_best_first():
    assert nearest("epoch", ["batch", "epochs", "epoch_s"], n=2) == ["epochs", "epoch_s"]
    assert nearest("zzz", ["batch", "epochs"]) == [] == nearest("x", [])


def test_very_many_or_long_names_are_not_all_compared(monkeypatch):
    compared = []

    def matches(word, names, n, cutoff):
        compared.append(len(names))
        return real(word, names, n, cutoff)

    real = difflib.get_close_matches
    monkeypatch.setattr(wording.difflib, "get_close_matches", matches)
    users = [f"user{number}" for number in range(20_000)]
    assert nearest("user12345x", users) == ["user12345"]
    assert nearest("xuser1", users) == ["user1"]  # no name begins like it, so some of all names are compared
    assert max(compared) <= wording.MOST_NAMES
    assert nearest("u" * 1000, ["u" * 1000]) == nearest("u", ["u" * 1000]) == []


def test_no_other_module_compares_names():
    package = Path(wording.__file__).parent
    found = [path.name for path in package.rglob("*.py") if re.search(r"\bdifflib\b", path.read_text(encoding="utf-8"))]
    assert found == ["wording.py"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("exactly 10", "exactly 10"),
        ("more than 10", "more than…"),
        ("\x00bc", "\\x00bc"),
        ("a\uffff\ufffe", "a\\uffff\\u…"),
        ("x" * 10**6, "x" * 9 + "…"),
        ("", ""),
    ],
)
def test_clipped(text, expected):
    assert clipped(text, 10) == expected

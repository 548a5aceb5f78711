import unicodedata

import pytest

from tfllmrec.text.words import WORD


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Eau-de-Parfum, 1.7 Oz: don’t!", ["Eau-de-Parfum", "1", "7", "Oz", "don’t"]),
        ("जापान की हरी चाय", ["जापान", "की", "हरी", "चाय"]),
        ("ชาเขียวจากญี่ปุ่น 2", ["ชาเขียวจากญี่ปุ่น", "2"]),
        ("شايٌ أخضر", ["شايٌ", "أخضر"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("红口红 2色 カメラ", ["红", "口", "红", "2", "色", "カメラ"]),
        (unicodedata.normalize("NFD", "Grüner Tee"), [unicodedata.normalize("NFD", "Grüner"), "Tee"]),
        ("❤\ufe0f gift 👍🏽", ["gift"]),
    ],
)
def test_words_keep_their_marks_and_ideographs_stand_alone(text, words):
    assert WORD.findall(text) == words

import math
from unicodedata import normalize

import numpy as np
import pytest

from tfllmrec.data.cleaning.scripts import UNKNOWN
from tfllmrec.text import reading
from tfllmrec.text.reading import AUTO, Reading, advice, choose_encoder, reading_of


class Spelling:
    """The tokenizer of a vocabulary of lower-case Latin words; any other character is a piece, or unknown (0)."""

    def __init__(self, known=""):
        self.known = known

    def __call__(self, texts):
        return [np.array([7 if word.isascii() else 8 * (c in self.known) for word in text.split()
                          for c in (word[:1] if word.isascii() else word)], np.int32) for text in texts]  # fmt: skip


def test_the_figures():
    found = reading_of(Spelling("éß"), ["red cars", "éßé a", "", "--", "茶"])
    # 2, 4 and 1 pieces, one of them unknown; 7, 4 and 1 letters
    assert found.unknown == pytest.approx(1 / 7) and found.pieces_per_letter == pytest.approx(7 / 12)
    assert found.scripts == {"LATIN": pytest.approx(11 / 12), "CJK": pytest.approx(1 / 12)}
    statistics = "14% of the pieces stand for unknown characters, 0.58 pieces per letter"
    assert str(found) == f"scripts LATIN 92%, CJK 8%; {statistics}"
    found = reading_of(Spelling("éß"), ["red cars", "éßé a", "", "--", "茶"], "minilm")
    assert str(found) == f"scripts LATIN 92%, CJK 8%, not read: CJK; {statistics}"


@pytest.mark.parametrize("texts", [[], ["", "--"]])
def test_nothing_to_read_is_no_fault(texts):
    assert reading_of(Spelling(), texts).works


@pytest.mark.parametrize(
    "text",
    [
        "чай", "мышь", "τσάι", "شاي", "녹차", normalize("NFD", "녹차"), "カメラ", "ｶﾒﾗ", "日本", "様々", "ชา",
        "ቡና", "चाय", "Samsung 케이스", "Nike кроссовки", "Logitech MX Anywhere 3S мышь", "green tea чай",
    ],
)  # fmt: skip
def test_an_encoder_of_english_reads_no_other_script(text):
    known = Spelling(set(text))
    assert not reading_of(known, [text], "minilm").works
    assert reading_of(known, [text], "e5").works


@pytest.mark.parametrize(
    "text", ["Crème brûlée", "cafe\u0301", "5 μm", "β-carotene", "kidʼs toy", "ℓ", "1984", "red" * 9 + " ч"]
)
def test_symbols_accents_and_single_letters_are_no_other_script(text):
    assert reading_of(Spelling(set(text)), [text], "minilm").works


def test_half_a_catalogue_in_another_script_is_not_read():
    titles = ["green tea", "warm jacket", "зелёный чай", "тёплая куртка"]
    found = reading_of(Spelling(set("".join(titles))), titles, "minilm")
    assert found.unread == ("CYRILLIC",) and not found.works
    assert reading_of(Spelling(set("".join(titles))), titles, "use").works
    assert reading_of(Spelling("τσάι"), ["τσάι"], "use").unread == ("GREEK",)


class Pieces:
    """A tokenizer that cuts each word in pieces of ``size`` letters."""

    def __init__(self, size):
        self.size = size

    def __call__(self, texts):
        counts = [sum(math.ceil(len(word) / self.size) for word in text.split()) for text in texts]
        return [np.full(count, text != UNKNOWN) for count, text in zip(counts, texts, strict=True)]


@pytest.mark.parametrize(
    ("text", "size", "works"),
    [
        ("wireless", 1, True),  # codes such as A-113 are spelled
        ("палатка", 3, True),
        ("палатка", 1, False),
        ("wireless mouse with silent buttons палатка", 1, False),  # a minority
        ("палат", 1, True),  # too short to tell
        ("palatka " * 20 + "палатка", 1, True),  # at most 5 % of the letters
        ("帐篷帐篷帐篷", 1, True),
        ("녹차녹차녹차", 1, True),  # syllables
        ("녹차녹차녹차", 0.5, False),  # parts of syllables
        ("ቡናቡናቡና", 1, True),
    ],
)
def test_an_unknown_encoder_cannot_read_a_script_that_it_spells(text, size, works):
    assert reading_of(Pieces(size), [text]).works is works


class Apart(Spelling):
    """Like Spelling, but separates unknown characters from the words beside them."""

    def __call__(self, texts):
        return super().__call__(["".join(c if c.isascii() else f" {c} " for c in text) for text in texts])


@pytest.mark.parametrize("tokenize", [Spelling(), Apart()])
@pytest.mark.parametrize(
    "text", ["🎄 gifts", "⛺ tent", "❤️ gift ✨", "🎸", "★★★ “tea” — 5 €", "Wi‑Fi", "\U0001faea tea"]
)
def test_symbols_need_not_be_known(tokenize, text):
    assert reading_of(tokenize, [text], "minilm").works


def test_a_symbol_that_makes_its_word_unknown_is_a_fault():
    assert not reading_of(Spelling(), ["🎄gifts"]).works
    assert reading_of(Apart(), ["🎄gifts", "gift\u200cs"]).works


def test_many_unknown_pieces_cannot_be_read():
    assert Reading({"LATIN": 1.0}, (), 0.05, 0.3).works and not Reading({"LATIN": 1.0}, (), 0.06, 0.3).works


class Vocabulary:
    """A tokenizer that knows some words as a whole, and cuts other ones in two."""

    def __init__(self, words):
        self.words = words.split()

    def __call__(self, texts):
        return [
            np.array([UNKNOWN not in w for w in t.split() for _ in range(1 + (w not in self.words))]) for t in texts
        ]


@pytest.mark.parametrize(
    ("titles", "share"),
    [
        (["green jacket", "Kabellose Maus grün"], 2 / 5),
        (["green jacket", "jacket green blau"], 4 / 5),
        (["red tea jacket"], 1),  # short words are not counted
        (["KABELLOSE jacket", "GTIN XKLMPQ B07XJABCD"], 1),  # nor possible codes
        (["gru\u0308ngru\u0308n"], 0),  # one word
    ],
)
def test_the_share_of_words_that_an_english_vocabulary_has(titles, share):
    knows = Vocabulary("green jacket")
    found = reading_of(knows, titles * 50, "minilm")
    assert found.whole_words == pytest.approx(share) and found.may_not_be_english == (share < 0.55)
    assert found.works and str(found).endswith(f", {share:.0%} of the Latin words in the vocabulary")
    assert reading_of(knows, titles * 50, "e5").whole_words is None is reading_of(knows, titles * 50).whole_words


def test_few_words_do_not_tell_the_language():
    assert not reading_of(Vocabulary(""), ["warme Jacke"], "minilm").may_not_be_english
    assert not reading_of(Vocabulary(""), ["warm " * 49 + "тёплая"], "minilm").may_not_be_english
    assert reading_of(Vocabulary(""), ["warm " * 50], "minilm").may_not_be_english
    assert not reading_of(Vocabulary(""), ["A-113 XZ9", "B07XJ8C8F5", "KX-TG7875S"] * 100, "minilm").may_not_be_english


def test_the_advice_is_another_encoder():
    assert "text.encoder=e5" in advice("minilm") and "text.encoder=e5" in advice(None)
    assert "text.encoder=e5" not in advice("e5") and "TF Hub" in advice("e5")


@pytest.mark.parametrize(
    ("texts", "name", "reason"),
    [
        (["green jacket"] * 50, "minilm", "scripts LATIN 100%; 0% of the pieces"),
        (["茶 帐篷"], "e5", "minilm cannot read these texts (scripts CJK 100%, not read: CJK; 0% of the pieces"),
        (["Kabellose Maus"] * 50, "e5", "these texts may not be English, which minilm reads (scripts LATIN 100%; 0%"),
    ],
)
def test_auto_takes_the_first_encoder_if_it_can_read_the_texts(monkeypatch, texts, name, reason):
    monkeypatch.setattr(reading, "_tokenizer", {AUTO[0]: Vocabulary("green jacket")}.__getitem__)
    chosen, said = choose_encoder(texts)
    assert chosen == name and said.startswith(f"text.encoder {name}: {reason}")

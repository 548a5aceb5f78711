import numpy as np
import pytest

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
    assert found.letters == 7 + 4 + 1
    assert found.scripts == {"LATIN": pytest.approx(11 / 12), "CJK": pytest.approx(1 / 12)}
    assert (
        str(found)
        == "scripts LATIN 92%, CJK 8%; 14% of the pieces stand for unknown characters, 0.58 pieces per letter"
    )


@pytest.mark.parametrize("texts", [[], ["", "--"]])
def test_nothing_to_read_is_no_fault(texts):
    assert reading_of(Spelling(), texts).works


def test_the_limit_is_that_of_the_most_frequent_script():
    assert not Reading({"CYRILLIC": 0.99, "HANGUL": 0.01}, 0.0, 0.94, 100).works
    assert Reading({"HANGUL": 0.6, "CYRILLIC": 0.4}, 0.0, 0.94, 100).works
    assert Reading({"LATIN": 0.6, "CYRILLIC": 0.4}, 0.0, 0.94, 100).works


def test_a_short_text_is_judged_by_its_unknown_pieces_alone():
    assert Reading({"CYRILLIC": 1.0}, 0.0, 1.0, 5).works
    assert not Reading({"CYRILLIC": 1.0}, 0.0, 1.0, 6).works
    assert not Reading({"CJK": 1.0}, 0.5, 1.0, 1).works


@pytest.mark.parametrize(
    ("script", "unknown", "pieces", "works"),
    [
        ("LATIN", 0.0, 0.3, True),
        ("LATIN", 0.06, 0.3, False),
        ("LATIN", 0.0, 0.9, True),  # codes such as A-113
        ("CYRILLIC", 0.0, 0.42, True),
        ("CYRILLIC", 0.0, 0.94, False),  # as minilm spells it
        ("CJK", 0.0, 1.5, True),
        ("CJK", 0.75, 1.33, False),
        ("HANGUL", 0.0, 1.0, True),
        ("HANGUL", 0.03, 2.06, False),  # in parts of syllables
    ],
)
def test_when_an_encoder_can_read(script, unknown, pieces, works):
    assert Reading({script: 1.0}, unknown, pieces, 100).works is works


def test_the_advice_is_another_encoder():
    assert "text.encoder=e5" in advice("minilm") and "text.encoder=e5" in advice(None)
    assert "text.encoder=e5" not in advice("e5") and "TF Hub" in advice("e5")


def test_the_first_encoder_that_can_read_is_taken(monkeypatch):
    monkeypatch.setattr(reading, "_tokenizer", lambda name: Spelling("" if name == AUTO[0] else "茶"))
    assert choose_encoder(["red cars"])[0] == AUTO[0]
    name, said = choose_encoder(["茶 茶", "茶"])
    assert name == AUTO[1] and said.startswith(f"text.encoder {AUTO[1]}: scripts CJK 100%; 0% of the pieces")
    assert choose_encoder(["帐"])[0] == AUTO[-1]  # none can

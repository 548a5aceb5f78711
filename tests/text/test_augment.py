import re

import numpy as np
import pandas as pd
import pytest

from tfllmrec.errors import ConfigError, DataError
from tfllmrec.text.augment import Augmenter, read_synonyms
from tfllmrec.text.template import ItemTemplate


def rng(seed=0):
    return np.random.default_rng(seed)


def always(**synonyms):
    """Replaces every word that has a synonym, and does nothing else."""
    return Augmenter(word_dropout=0, synonyms=synonyms, synonym_share=1)


def replaced(text, augmenter):
    return augmenter.views([text], rng())[0]


def test_words_go_at_their_share_and_keep_their_order():
    text = " ".join(f"w{i}" for i in range(1000))
    (view,) = Augmenter(word_dropout=0.2).views([text], rng())
    kept = [int(word[1:]) for word in view.split(" ")]
    assert kept == sorted(set(kept))
    assert abs(len(kept) - 800) < 4 * np.sqrt(1000 * 0.2 * 0.8)
    assert Augmenter(word_dropout=0).views([text], rng()) == [text]


def test_dropout_leaves_a_word_whatever_happens():
    texts = ["red", "", "red toy", "口", "口红", "  ", "Seife 香 皂"] * 200
    views = Augmenter(word_dropout=0.999).views(texts, rng())
    assert set(views[0::7]) == {"red"} and set(views[1::7]) == {""} and set(views[5::7]) == {"  "}
    assert set(views[2::7]) == {"red", "toy"}  # any one of them
    assert set(views[3::7]) == {"口"} and set(views[4::7]) == {"口", "红"}  # an ideograph is a word
    assert set(views[6::7]) == {"Seife", "香", "皂"}


def test_the_same_state_gives_the_same_views():
    texts = [f"a red toy car number {i} ({i % 3})" for i in range(30)]
    wordings = [[text, text.upper()] for text in texts]
    augmenter = Augmenter(0.3, {"red": ["crimson", "scarlet"]}, 0.5, {text: f"{text}!" for text in texts})
    first = augmenter.views(wordings, rng(1))
    assert first == augmenter.views(wordings, rng(1)) != augmenter.views(wordings, rng(2))
    state = rng(1)
    assert augmenter.views(wordings, state) != augmenter.views(wordings, state)  # two views of one item


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red sofa", "red couch"),
        ("RED SOFA, Sofa (sofa)", "RED COUCH, Couch (couch)"),
        ("sofas sofabed sofa-bed it's", "sofas sofabed sofa-bed it's"),
        ("A T-shirt", "A Tee"),
        ("Eau de  Parfum, eau de toilette", "EDP, water de toilette"),
        ("eau, de parfum", "water, de scent"),
        ("红口红唇", "红唇膏唇"),
        ("हरी चाय", "लाल चाय"),
        ("I", "Me"),
        ("", ""),
    ],
)
def test_synonyms_replace_whole_words_in_their_case(text, expected):
    synonyms = {
        "Sofa": ["couch"],
        "t-shirt": ["tee"],
        "eau de parfum": ["EDP"],
        "eau": ["water"],
        "parfum": ["scent"],
        "口红": ["唇膏"],
        "हरी": ["लाल"],
        "ह": ["wrong"],
        "i": ["me"],
        "s": ["wrong"],
    }
    assert replaced(text, always(**synonyms)) == expected


def test_synonyms_come_at_their_share_each_as_often():
    augmenter = Augmenter(0, {"red": ["crimson", "scarlet"]}, 0.3)
    words = augmenter.views(["red"] * 3000, rng())
    for word, share in (("red", 0.7), ("crimson", 0.15), ("scarlet", 0.15)):
        assert words.count(word) / 3000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 3000))
    assert Augmenter(0, {"red": ["crimson"]}, 0).views(["red"], rng()) == ["red"]


def test_one_wording_of_each_item_is_drawn():
    items = pd.DataFrame({"title": ["T", "", ""], "categories": ["C", "C", ""]})
    wordings = ItemTemplate("{title} ({categories})").wordings(items)
    assert wordings == [["T (C)", "T", "(C) T"], ["(C)"], [""]]
    views = Augmenter(0).views(wordings * 100, rng())
    assert set(views[0::3]) == set(wordings[0]) and set(views[1::3]) == {"(C)"} and set(views[2::3]) == {""}


def test_a_paraphrase_takes_the_place_of_a_wording_at_its_share():
    paraphrases = {"a": "so to say a", "T (C)": "so to say T, a C"}
    augmenter = Augmenter(0, paraphrases=paraphrases, paraphrase_share=0.3)
    views = augmenter.views(["a", ["T (C)", "(C) T"], "", "T"] * 1000, rng())
    for text, share in (("so to say a", 0.3), ("a", 0.7)):
        assert views[0::4].count(text) / 1000 == pytest.approx(share, abs=4 * np.sqrt(0.3 * 0.7 / 1000))
    # Found by the whole text, whichever wording is drawn.
    assert views[1::4].count("so to say T, a C") / 1000 == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 1000))
    assert set(views[1::4]) == {"T (C)", "(C) T", "so to say T, a C"}
    assert set(views[2::4]) == {""} and set(views[3::4]) == {"T"}
    assert "so to say a" not in Augmenter(0, paraphrases=paraphrases, paraphrase_share=0).views(["a"] * 100, rng())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"word_dropout": 1.5}, "word_dropout: expected a share between 0 and 1, got 1.5"),
        ({"word_dropout": 1}, "word_dropout: expected less than 1"),
        ({"synonym_share": -0.1}, "synonym_share"),
        ({"paraphrase_share": float("nan")}, "paraphrase_share"),
        ({"synonyms": {"sofa": "couch"}}, "synonyms of 'sofa': expected a list of words, got 'couch'"),
        ({"synonyms": {"sofa": []}}, "'sofa'"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        Augmenter(**settings)


def test_synonyms_from_lines_and_from_json(tmp_path):
    expected = {"sofa": ["couch", "settee", "divan"], "eau de parfum": ["EDP"], "口红": ["唇膏"]}
    lines = "\ufeff# mine\n\nsofa\tcouch\tsettee\r\neau de parfum\t EDP \t\nsofa\tdivan\n口红\t唇膏"
    (tmp_path / "mine.tsv").write_text(lines, encoding="utf-8", newline="")
    json = '{"sofa": ["couch", " settee", "divan"], "eau de parfum": "EDP", "口红": ["唇膏"]}'
    (tmp_path / "mine.json").write_text(json, encoding="utf-8")
    for name in ("mine.tsv", "mine.json"):
        assert read_synonyms(tmp_path / name) == expected
        assert replaced("Sofa", Augmenter(0, read_synonyms(tmp_path / name), 1)) in {"Couch", "Settee", "Divan"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tsv", b"sofa\tcouch\nbed, cot\n", "a.tsv:2: expected a word, a tab, .* got 'bed, cot'"),
        ("a.tsv", b"sofa\tcouch\n\n\tcot\n", "a.tsv:3: "),
        ("a.tsv", b"sofa\tcouch\ncaf\xe9\tbar\n", "a.tsv:2: expected UTF-8, got the byte 0xe9"),
        ("a.json", b'{"sofa": ["couch"],\n "bed" ["cot"]}', "a.json:2: expected an object .* no JSON"),
        ("a.json", b'{"sofa": ["couch"],\n "bed": 3}', "a.json:2: .* got 'bed': 3"),
        ("a.json", b'{"sofa": ["couch"],\n\n "bed": ["cot", ""]}', "a.json:3: "),
        ("a.json", b'{"sofa": ' + b"1" * 5000 + b"}", "a.json: expected an object .* got a number that is too long"),
        ("a.json", b'["sofa"]', "a.json: expected an object .* got a list"),
    ],
)
def test_a_broken_file_of_synonyms_is_named_with_its_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_synonyms(tmp_path / name)


def test_a_missing_file_of_synonyms_says_what_is_there(tmp_path):
    (tmp_path / "synonyms.tsv").write_text("")
    with pytest.raises(DataError, match=r"synonym\.tsv does not exist.*holds: synonyms\.tsv"):
        read_synonyms(tmp_path / "synonym.tsv")

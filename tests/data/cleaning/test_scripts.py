import pandas as pd
import pytest

from tfllmrec.data import dataset_from_frames
from tfllmrec.data.cleaning import scripts
from tfllmrec.data.cleaning.scripts import in_words, sample_of, script_doubts, scripts_of


def test_scripts_by_share():
    found = scripts_of(["绿茶 3 (a)", "Tee, ТЕА", ""])
    assert found == {"LATIN": pytest.approx(4 / 9), "CYRILLIC": pytest.approx(3 / 9), "CJK": pytest.approx(2 / 9)}
    assert in_words(found) == "LATIN 44%, CYRILLIC 33%, CJK 22%"
    assert scripts_of(["12", ""]) == {} and in_words({}) == "none"
    assert scripts_of(["様々なカメラ", "ｶﾞ", "か\u3099"]) == {"CJK": 2 / 8, "KATAKANA": 4 / 8, "HIRAGANA": 2 / 8}
    assert scripts_of(["5 μm β-carotene kidʼs 1ª"]) == {"LATIN": 1.0} and scripts_of(["τσάι α"]) == {"GREEK": 1.0}


def test_a_sample_is_spread_evenly(monkeypatch):
    monkeypatch.setattr(scripts, "SAMPLE", 3)
    assert sample_of(list("abcdefg")) == ["a", "d", "g"] and sample_of(["a"]) == ["a"] and sample_of([]) == []


@pytest.mark.parametrize(
    "titles", [["Crème brûlée", "Straße", "Łódź", "bạn", "Ｗｉｄｅ 𝐛𝐨𝐥𝐝"], ["x" * 96 + "茶" * 4, "x"], ["1", ""]]
)
def test_latin_is_not_doubted(titles):
    assert script_doubts(scripts_of(titles)) == []


def test_other_scripts_than_latin_are_doubted():
    (doubt,) = script_doubts(scripts_of(["绿茶", "帐篷 tent", "tea"]))
    assert "36% of the letters in the texts of items are not Latin (LATIN 64%, CJK 36%)" in doubt
    assert "text.encoder=e5 reads" in doubt


def test_the_description_of_a_data_set_says_so():
    events = pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": [1, 2]})
    items = pd.DataFrame({"item": ["a", "b"], "title": ["SKU 1", "SKU 2"], "description": ["绿茶", ""], "brand": "茶"})
    data = dataset_from_frames(events, items)
    assert data.describe()["scripts"] == {"LATIN": 6 / 10, "CJK": 4 / 10}
    (doubt,) = data.describe()["doubts"]
    assert "40% of the letters in the texts of items are not Latin" in doubt
    assert data.report.doubts() == []  # a run may have another encoder than the default
    assert dataset_from_frames(events).describe()["scripts"] == {}

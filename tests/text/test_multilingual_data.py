"""The films and the needs in `multilingual/` keep the rules that its README states."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "multilingual"
LANGUAGES = ("en", "zh", "de")
HAN = re.compile("[\u4e00-\u9fff]")
#: Films whose Chinese title has Latin letters in it.
LATIN_IN_CHINESE = {"E.T. 外星人", "M就是凶手"}
#: Words of four letters and more that say nothing about a film.
FUNCTION_WORDS = {"en": {"with"}, "de": {"eine", "einen"}}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


FILMS = rows("films.jsonl")
QUERIES = rows("queries.jsonl")
TITLES = {language: {film["item_id"]: film[f"title_{language}"] for film in FILMS} for language in LANGUAGES}


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def pairs(text: str) -> set[str]:
    """Each two Chinese characters that stand side by side; the title itself if it is a single one."""
    if len(text) == 1:
        return {text}
    return {a + b for a, b in pairwise(text) if HAN.match(a) and HAN.match(b)}


def given_away(title: str, query: str, language: str) -> set[str]:
    """The parts of the title that occur in the query, words also as parts of longer words."""
    if language == "zh":
        return {part for part in pairs(title) if part in query}
    telling = {word for word in words(title) if len(word) >= 4} - FUNCTION_WORDS[language]
    return {word for word in telling if any(word in other for other in words(query))}


def test_there_are_300_films_and_100_needs():
    assert len(FILMS) == 300 and len(QUERIES) == 100
    assert [film["item_id"] for film in FILMS] == [f"f{number:03d}" for number in range(1, 301)]
    fields = ["item_id", *(f"{field}_{language}" for language in LANGUAGES for field in ("title", "categories"))]
    assert all(list(film) == fields for film in FILMS)
    assert all(list(query) == [*(f"query_{language}" for language in LANGUAGES), "relevant"] for query in QUERIES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_title_and_no_query_occurs_twice(language):
    texts = [*TITLES[language].values(), *(query[f"query_{language}"] for query in QUERIES)]
    assert [text for text, count in Counter(map(str.casefold, texts)).items() if count > 1] == []


def test_each_need_has_one_to_six_films_of_the_300():
    for query in QUERIES:
        relevant = query["relevant"]
        assert 1 <= len(relevant) <= 6 and len(set(relevant)) == len(relevant), query
        assert set(relevant) <= set(TITLES["en"]), query


@pytest.mark.parametrize("language", ["zh", "de"])
def test_a_category_is_translated_the_same_everywhere(language):
    translations = set()
    for film in FILMS:
        english, other = film["categories_en"], film[f"categories_{language}"]
        assert 2 <= len(set(english)) == len(english) == len(other) <= 6, film
        translations |= set(zip(english, other, strict=True))
    for side in zip(*translations, strict=True):
        assert [word for word, count in Counter(side).items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_text_is_in_its_script(language):
    texts = [text for film in FILMS for text in (film[f"title_{language}"], *film[f"categories_{language}"])]
    texts += [query[f"query_{language}"] for query in QUERIES]
    for text in texts:
        assert text == text.strip() != ""
        if language == "zh":
            assert HAN.search(text), text
            "".join(HAN.findall(text)).encode("gb2312")  # which has simplified characters alone
            assert not re.search("[A-Za-z]", text) or text in LATIN_IN_CHINESE | {"FBI"}, text
        else:
            assert re.search("[A-Za-z]", text) and not HAN.search(text), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_query_gives_a_title_away(language):
    for query in QUERIES:
        text = query[f"query_{language}"]
        for item in query["relevant"]:
            title = TITLES[language][item]
            assert not given_away(title, text, language), (text, title)


def test_what_gives_a_title_away():
    assert given_away("Die roten Schuhe", "neue Tanzschuhe", "de") == {"schuhe"}
    assert given_away("Ich, Daniel Blake", "ich bin es", "de") == set()
    assert given_away("Heat", "the HEAT of the night", "en") == {"heat"}
    assert given_away("七武士", "日本武士", "zh") == {"武士"}
    assert given_away("爱", "爱", "zh") == {"爱"}

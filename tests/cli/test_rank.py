import json

import pytest


def test_somebody_never_seen(program, libraries, saved_model):
    answer = program("rank", saved_model, "--history", "e, zz", "--items", "c,yy,b", "--json")
    assert libraries.models[0].calls == [("rank", ["e", "zz"], ["c", "yy", "b"], None)]
    document = json.loads(answer.out)
    assert (document["user"], document["history"], document["unknown"]) == (None, ["e", "zz"], ["zz", "yy"])
    assert document["items"] == [
        {"item_id": "b", "title": "Title b", "click_probability": 0.5, "rating": 4.25},
        {"item_id": "c", "title": "Title c", "click_probability": 0.5, "rating": 4.25},
        {"item_id": "yy", "title": "yy", "click_probability": 0.0, "rating": None},
    ]
    assert "zz, yy" in answer.err


def test_a_known_user(program, libraries, saved_model):
    program("rank", saved_model, "--user", "u1", "--items", "c")
    assert libraries.models[0].calls == [("rank", ["a", "b"], ["c"], [5.0, 1.0])]
    assert libraries.models[0].fields == {"context": {"age": "30"}, "event_fields": [{"kind": "view"}] * 2}
    assert program("rank", saved_model, "--user", "u9", "--items", "c").code == 3


def test_table(program, libraries, saved_model):
    out = program("rank", saved_model, "--history", "", "--items", "c,d").out
    assert "Title c" in out and "0.5000" in out and "4.25" in out


def test_no_column_of_ratings_without_any(program, libraries, saved_model, monkeypatch):
    rated = program("rank", saved_model, "--history", "a", "--items", "c").out
    monkeypatch.setattr(type(libraries.models[0]), "rating", None)
    unrated = program("rank", saved_model, "--history", "a", "--items", "c").out
    assert "rating" in rated and "rating" not in unrated


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--items", "c"], "expected one of --user ID and --history"),
        (["--items", "c", "--user", "u1", "--history", "a"], "expected one of --user ID and --history"),
        (["--items", " , ", "--user", "u1"], "expected at least one item id"),
        (["--user", "u1"], "Missing option '--items'"),
    ],
)
def test_what_cannot_be_asked(program, libraries, saved_model, given, told):
    answer = program("rank", saved_model, *given)
    assert answer.code == 2 and told in answer.err and not libraries.models

import json


def test_passes_what_was_asked(program, libraries, saved_model):
    answer = program("search", saved_model, "space film", "--history", "a", "--exclude", "b", "--k", "2", "--json")
    assert libraries.models[0].calls == [("search", ["space film"], 2, [["a"]], ["b"])]
    document = json.loads(answer.out)
    assert (document["text"], document["history"], document["unknown"]) == ("space film", ["a"], [])
    assert [(i["rank"], i["item_id"]) for i in document["items"]] == [(1, "c"), (2, "d")]


def test_a_blank_text_is_refused_before_anything_is_loaded(program, libraries, saved_model):
    for blank in ("", " \t"):
        answer = program("search", saved_model, blank)
        assert answer.code == 3 and "No words to search for" in answer.err and libraries.models == []


def test_table(program, libraries, saved_model):
    answer = program("search", saved_model, "space film")
    assert "Title a" in answer.out


def test_unknown_ids_are_named(program, libraries, saved_model):
    answer = program("search", saved_model, "film", "--history", "a,zz", "--exclude", "yy", "--json")
    assert json.loads(answer.out)["unknown"] == ["zz", "yy"]
    assert "zz, yy" in answer.err


def test_filters(program, libraries, saved_model):
    given = ["--allow", "b, zz", "--category", "Drama", "--category", "comedy"]
    answer = program("search", saved_model, "film", *given)
    assert answer.code == 0
    assert "zz" in answer.err and "no item has the category 'comedy'; near: Comedy" in answer.err
    program("search", saved_model, "film", "--allow", "")
    program("search", saved_model, "film")
    assert [model.filters for model in libraries.models] == [
        [(["b", "zz"], ["Drama", "comedy"])], [([], [])], [(None, [])],
    ]  # fmt: skip


def test_a_query_that_the_encoder_cannot_read_is_told(program, libraries, saved_model):
    answer = program("search", saved_model, "帐篷", "--json")
    assert "warning: the text encoder of the model cannot read the query" in answer.err
    assert "100% of the pieces stand for unknown characters" in answer.err and "text.encoder=e5" in answer.err
    figures = {"scripts": {"LATIN": 1.0}, "unread": [], "pieces_per_letter": 0.25, "whole_words": None}
    assert json.loads(answer.out)["reading"] == {"works": False, "unknown": 1.0, **figures}
    answer = program("search", saved_model, "tent", "--json")
    assert answer.err == "" and json.loads(answer.out)["reading"] == {"works": True, "unknown": 0.0, **figures}
    assert json.loads(program("search", saved_model, "hashed", "--json").out)["reading"] is None


def test_the_warning_names_the_encoder_and_another_one(program, libraries, saved_model):
    for encoder, other in (("minilm", "Set text.encoder=e5"), ("e5", "on TF Hub")):
        libraries.manifest = {"config": {"text": {"encoder": encoder}}}
        said = program("search", saved_model, "帐篷").err
        assert f"the text encoder {encoder} cannot read the query" in said and other in said

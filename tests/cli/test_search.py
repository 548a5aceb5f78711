import json


def test_passes_what_was_asked(program, libraries, saved_model):
    answer = program("search", saved_model, "space film", "--history", "a", "--exclude", "b", "--k", "2", "--json")
    assert libraries.models[0].calls == [("search", ["space film"], 2, [["a"]], ["b"])]
    document = json.loads(answer.out)
    assert (document["text"], document["history"], document["unknown"]) == ("space film", ["a"], [])
    assert [(i["rank"], i["item_id"]) for i in document["items"]] == [(1, "c"), (2, "d")]


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
    assert "zz" in answer.err and "no item is of category 'comedy'; near: Comedy" in answer.err
    program("search", saved_model, "film", "--allow", "")
    program("search", saved_model, "film")
    assert [model.filters for model in libraries.models] == [
        [(["b", "zz"], ["Drama", "comedy"])], [([], [])], [(None, [])],
    ]  # fmt: skip

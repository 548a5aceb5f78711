import json


def test_passes_what_was_asked(program, libraries, saved_model):
    answer = program("similar", saved_model / "2", "c", "--k", "2", "--json")
    assert libraries.models[0].folder == saved_model / "2"
    assert libraries.models[0].calls == [("similar", ["c"], 2)]
    document = json.loads(answer.out)
    assert document["item"] == "c"
    assert [i["item_id"] for i in document["items"]] == ["a", "b"]


def test_table(program, libraries, saved_model):
    assert "Title a" in program("similar", saved_model, "c").out


def test_filters(program, libraries, saved_model):
    given = ["--allow", "b, zz", "--category", "Drama", "--category", "comedy"]
    answer = program("similar", saved_model, "c", *given)
    assert answer.code == 0
    assert "zz" in answer.err and "no item has the category 'comedy'; near: Comedy" in answer.err
    program("similar", saved_model, "c", "--allow", "")
    program("similar", saved_model, "c")
    assert [model.filters for model in libraries.models] == [
        [(["b", "zz"], ["Drama", "comedy"])], [([], [])], [(None, [])],
    ]  # fmt: skip

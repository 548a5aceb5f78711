import json


def test_passes_what_was_asked(program, libraries, saved_model):
    answer = program("related", saved_model / "2", "c", "--k", "2", "--json")
    assert libraries.models[0].calls == [("related", ["c"], 2)]
    assert [(i["item_id"], i["reason"]) for i in json.loads(answer.out)["items"]] == [
        ("a", "because"),
        ("b", "because"),
    ]


def test_table_with_what_joins_them(program, libraries, saved_model):
    assert "because" in program("related", saved_model, "c").out


def test_an_item_without_neighbours(program, libraries, saved_model):
    answer = program("related", saved_model, "e")
    assert (answer.code, answer.out) == (0, "") and "no neighbours in the graph" in answer.err

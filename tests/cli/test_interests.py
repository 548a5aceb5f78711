import json


def test_of_a_known_user_with_ratings(program, saved_model, libraries):
    answer = program("interests", saved_model, "--user", "u1", "-k", "2", "--json")
    assert json.loads(answer.out) == {
        "user": "u1",
        "history": ["a", "b"],
        "unknown": [],
        "interests": [
            {"label": "about a", "weight": 0.5, "because": "a", "level": "broad", "trend": "rising"},
            {"label": "about b", "weight": 0.5, "because": "b", "level": "broad", "trend": "rising"},
        ],
    }
    assert libraries.models[0].calls == [("interests", ["a", "b"], [5.0, 1.0], 2)]
    assert libraries.models[0].fields == {"event_fields": [{"kind": "view"}] * 2}  # rejections are left out by these


def test_of_a_history_as_a_table(program, saved_model, libraries):
    answer = program("interests", saved_model, "--history", "c,nope")
    assert answer.code == 0
    assert "about c" in answer.out and "1.000" in answer.out and "Title c" in answer.out
    assert "broad" in answer.out and "rising" in answer.out
    assert "counted as absent: nope" in answer.err
    assert libraries.models[0].calls == [("interests", ["c", "nope"], None, 10)]


def test_nothing_to_say(program, saved_model, libraries):
    answer = program("interests", saved_model, "--history", "nope")
    assert (answer.code, answer.out) == (0, "") and "no interests found for this history" in answer.err


def test_either_a_user_or_a_history(program, saved_model, libraries):
    for given in ([], ["--user", "u1", "--history", "a"]):
        answer = program("interests", saved_model, *given)
        assert answer.code == 2 and "expected one of --user ID and --history" in answer.err
    assert program("interests", saved_model, "--user", "u9").code == 3

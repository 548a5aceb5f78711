import json

import pytest

from tfllmrec.explain.explanation import EventPart, ItemExplained, WordPart

TERMS = ("meaning", "feedback", "behaviour")
ITEM = ItemExplained(
    "b", "Title b", 1.5, "because",
    dict.fromkeys(TERMS, 0.5),
    [EventPart(f"e{n}", f"Event {n}", 4.0 if n else None, dict.fromkeys(TERMS, 0.25)) for n in range(6)],
    0.0,
    dict.fromkeys(TERMS, -1.0),
    0.0,
    "warm wool",
    [WordPart("warm", 0, 4, 0.5, None), WordPart("wool", 5, 9, -0.75, 0.125)],
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch, libraries):
    """What the library was asked; it explains one item, whatever is asked."""
    calls = []

    def explain(run, items, **given):
        print("chatter of a library")
        calls.append((run, items, given))
        return [ITEM]

    def write_explanation(found, whom, out):
        calls.append((found, whom))
        return out

    monkeypatch.setattr("tfllmrec.explain.explanation.explain", explain)
    monkeypatch.setattr("tfllmrec.explain.explanation.write_explanation", write_explanation)
    return calls


def test_a_known_user_as_json(program, saved_model, asked, libraries):
    answer = program("explain", saved_model, "--user", "u1", "--item", "c,c,d", "--json")
    document = json.loads(answer.out)
    assert document["user"] == "u1" and document["history"] == ["a", "b"] and document["unknown"] == []
    (item,) = document["items"]
    assert item["terms"] == dict.fromkeys(TERMS, 0.5) and item["words"][1]["gradients"] == 0.125
    assert item["events"][0] == {
        "item_id": "e0", "title": "Event 0", "rating": None, "added": dict.fromkeys(TERMS, 0.25)
    }  # fmt: skip
    run, items, given = asked[0]
    assert run == "the run" and items == ["c", "d"]
    assert given == {"user": "u1", "context": {"age": "30"}, "reasons": {"c": "because", "d": "because"}}


def test_no_item_is_refused_before_anything_is_loaded(program, saved_model, libraries):
    libraries.models = None  # opening would fail
    answer = program("explain", saved_model, "--user", "u1", "--item", " , ")
    assert answer.code == 2 and "expected at least one item id" in answer.err


def test_items_of_the_history_are_never_recommended_and_that_is_said(program, saved_model, asked):
    said = "in the history, so recommend lists it only with --skip exclusion"
    answer = program("explain", saved_model, "--user", "u1", "--item", "c,b,a")
    assert [line for line in answer.err.splitlines() if "history" in line] == [f"b: {said}", f"a: {said}"]
    assert "in the history" not in program("explain", saved_model, "--user", "u1", "--item", "c").err


def test_a_history_as_a_table_and_a_page(program, saved_model, asked, tmp_path):
    answer = program("explain", saved_model, "--history", "a,nope", "--item", "c", "--html", tmp_path / "why.html")
    assert answer.code == 0 and "counted as absent: nope" in answer.err and f"page: {tmp_path}/why.html" in answer.err
    assert "Title b (b): score 1.5000, because" in answer.out
    rows = [" ".join(line.replace("│", " ").split()) for line in answer.out.splitlines()]
    assert "Event 1 (4) +0.2500 +0.2500 +0.2500 +0.7500" in rows
    assert "1 other events +0.2500 +0.2500 +0.2500 +0.7500" in rows
    assert "the same for anyone -1.0000 -1.0000 -1.0000 -3.0000" in rows
    assert "words: wool -0.7500, warm +0.5000" in rows and not any("fields" in row for row in rows)
    assert asked[0][2]["history"] == ["a", "nope"] and asked[1] == ([ITEM], "history Title a, Title nope")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--item", "c"], "expected one of --user ID and --history"),
        (["--item", "c", "--user", "u1", "--history", "a"], "expected one of --user ID and --history"),
        (["--item", "c", "--user", "u1", "--html", "why.pdf"], "expected FILE.html, found why.pdf"),
        (["--user", "u1"], "--item"),
    ],
)
def test_usage(program, saved_model, libraries, given, said):
    answer = program("explain", saved_model, *given)
    assert answer.code == 2 and said in answer.err

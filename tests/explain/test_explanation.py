"""Explanations of the planted ring's model: their parts add up, and a page shows them without breaking."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from html_pages import check, told

from tfllmrec.errors import DataError
from tfllmrec.explain.explanation import EventPart, ItemExplained, WordPart, explain, write_explanation


@pytest.mark.slow
@pytest.mark.tf
def test_a_users_score_is_the_sum_of_its_parts(chain_run):
    run = chain_run[0]
    found = explain(run, ["i5", "i20"], user="u1")
    model, dataset = run.load_model(refit=True), run.dataset
    listed = model.recommend(["u1"], 40, dataset=dataset).set_index("item_id")["score"]
    user = dataset.events[dataset.events["user_id"] == "u1"]
    for each in found:
        assert sum(each.terms.values()) + each.popularity == pytest.approx(each.score, abs=1e-4)
        for number, term in enumerate(each.terms):
            parts = sum(event.added[term] for event in each.events) + each.anyone[term]
            assert parts + (each.fields if number == 0 else 0) == pytest.approx(each.terms[term], abs=1e-4)
        assert sorted(event.item_id for event in each.events) == sorted(user["item_id"])
        assert {event.item_id: event.rating for event in each.events} == dict(
            zip(user["item_id"], user["rating"], strict=True)
        )
        if each.item_id in listed.index:
            assert each.score == pytest.approx(listed[each.item_id], abs=1e-3)
        assert [word.word for word in each.words] == each.text.split() and each.reason
        assert all(word.gradients is not None and np.isfinite(word.left_out) for word in each.words)


@pytest.mark.tf
def test_what_cannot_be_explained_is_named(chain_run):
    with pytest.raises(DataError, match="No item 'i99'"):
        explain(chain_run[0], ["i99"], history=["i1"])
    with pytest.raises(DataError, match="Expected 1 to 20 items to explain, found 21"):
        explain(chain_run[0], ["i1"] * 21, history=["i1"])
    with pytest.raises(DataError, match="either users or histories"):
        explain(chain_run[0], ["i1"])


@pytest.mark.tf
def test_the_fields_of_the_request_are_read(monkeypatch):
    asked = []

    def queries_of(*given):
        asked.extend(given)
        raise StopIteration

    monkeypatch.setattr("tfllmrec.models.answers.queries_of", queries_of)
    run = SimpleNamespace(load_model=lambda refit: SimpleNamespace(item_ids=["a"]), dataset=None)
    with pytest.raises(StopIteration):
        explain(run, ["a"], history=["a"], context={"device": "tv"})
    assert [{"device": "tv"}] in asked


@pytest.mark.slow
@pytest.mark.tf
def test_a_history_of_unknown_ids_is_explained_by_popularity(chain_run):
    (each,) = explain(chain_run[0], ["i5"], history=["nope"])
    assert not each.events and each.popularity > 0
    assert each.score == pytest.approx(each.popularity + sum(each.terms.values()), abs=1e-5)


TERMS = ("meaning", "feedback", "behaviour")
ITEM = ItemExplained(
    "b", "Title b", 1.5, "often chosen after a",
    dict.fromkeys(TERMS, 0.5),
    [EventPart(f"e{n}", f"Event {n}", 4.0 if n else None, dict.fromkeys(TERMS, 0.125)) for n in range(12)],
    0.25,
    dict(zip(TERMS, (0.0, -1.0, -1.0), strict=True)),
    0.0,
    "a warm wool scarf",
    [WordPart("warm", 2, 6, 0.5, None), WordPart("wool", 7, 11, -0.25, 0.1)],
)  # fmt: skip


def test_the_page_highlights_words_by_what_they_add(tmp_path):
    text = check(write_explanation([ITEM], "user 7", tmp_path / "page.html"))
    assert '<span class="up" style="background: rgba(0, 114, 178, 0.40)">warm</span>' in text
    assert '<span class="down" style="background: rgba(213, 94, 0, 0.20)">wool</span>' in text
    words = told(text)
    assert "Why these items: user 7" in words and "b, score 1.5000: often chosen after a" in words
    assert "Event 1 (4) +0.1250 +0.1250 +0.1250 +0.3750" in words
    assert "2 other events +0.2500 +0.2500 +0.2500 +0.7500" in words
    assert "fields of the request and its user +0.2500 +0.2500" in words
    assert "the same for anyone +0.0000 -1.0000 -1.0000 -2.0000" in words


def test_nothing_in_the_data_breaks_the_page(tmp_path, hostile):
    evil = [
        replace(ITEM, title=each, item_id=each, reason=each, text=each, words=[WordPart(each, 0, len(each), 1.0, None)],
                events=[replace(ITEM.events[0], title=each)])
        for each in hostile
    ]  # fmt: skip
    check(write_explanation(evil, "<b>who</b>", tmp_path / "page.html"))

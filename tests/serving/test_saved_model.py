import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfllmrec.config import DistillationConfig, dump_config
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import Field, Schema
from tfllmrec.errors import DataError, ModelError
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.ranking import Reranked
from tfllmrec.runs.run import Run
from tfllmrec.serving import loading
from tfllmrec.serving.promotion import set_canary
from tfllmrec.serving.saved_model import SCORE_BATCH, SavedModel
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.text.student import Student

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def saved(chain_version):
    return SavedModel.open(chain_version.parent)


def test_opens_a_model_or_one_of_its_versions(saved, chain_version):
    assert saved.folder == chain_version
    with pytest.raises(ModelError, match=r"contains no SavedModel: expected a version folder such as .*/1"):
        SavedModel.open(chain_version.parent / "7")
    with pytest.raises(ModelError, match="contains no SavedModel"):
        SavedModel.open(chain_version.parent.parent)


def test_opens_the_stable_version_instead_of_the_newest(chain_version, tmp_path):
    for number in ("1", "2"):
        (tmp_path / number).symlink_to(chain_version)
        set_canary(tmp_path, int(number))
    assert SavedModel.open(tmp_path).folder == tmp_path / "1"


def test_a_damaged_or_foreign_model_is_named(chain_version, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not exported by tfllmrec, or is damaged"):
        SavedModel.open(tmp_path)
    (tmp_path / "1" / "assets.extra").symlink_to(chain_version / "assets.extra")
    with pytest.raises(ModelError, match="cannot be loaded"):
        SavedModel.open(tmp_path)


def test_what_it_holds_goes_with_it(chain_version):
    opened = SavedModel.open(chain_version)
    table = opened._loaded.index_of.resource_handle
    assert tf.raw_ops.LookupTableSizeV2(table_handle=table).numpy() == 40
    del opened
    with pytest.raises(tf.errors.NotFoundError):
        tf.raw_ops.LookupTableSizeV2(table_handle=table)


def test_a_diverse_list_and_an_export_from_before_there_were_any(saved, monkeypatch):
    asked = {"histories": [["i3", "i4"]], "k": 5}
    plain, diverse = saved.recommend(**asked), saved.recommend(**asked, diversity=0.8)
    assert diverse.item_id[0] == plain.item_id[0] and diverse.item_id.tolist() != plain.item_id.tolist()
    assert len(diverse) == 5 and diverse.reason.str.len().min() > 0
    allowed = saved.recommend(**asked, diversity=0.8, allow=["i5", "i6", "i9"])
    assert sorted(allowed.item_id) == ["i5", "i6", "i9"]
    with pytest.raises(DataError, match="Expected diversity as a number from 0 to 1, got 2"):
        saved.recommend(**asked, diversity=2)
    signature = type(saved)._inputs(saved, "recommend_full")
    earlier = {name: spec for name, spec in signature.items() if name not in ("pinned", "diversity")}
    monkeypatch.setattr(type(saved), "_inputs", lambda self, signature: earlier)
    with pytest.raises(ModelError, match="exported by an earlier version, without diversity, pinned: export it again"):
        saved.recommend(**asked, diversity=0.8, pinned=["i3"])


def test_stages_and_rules_of_a_list(saved, chain_run):
    asked = {"histories": [["i3", "i4"], []], "ratings": [[5, 1], []], "k": 20}
    ranked, plain = saved.recommend(**asked), saved.recommend(**asked, skip=["ranking"])
    assert ranked.score.tolist() == pytest.approx(plain.score.tolist(), abs=1e-5)  # those of the places
    before, after = plain.item_id[:20].tolist(), ranked.item_id[:20].tolist()
    assert sorted(before) == sorted(after)
    other = {"histories": [["i7", "i3", "i30"]], "k": 20}
    assert saved.recommend(**other).item_id.tolist() != saved.recommend(**other, skip=["ranking"]).item_id.tolist()
    probability = {line.item_id: line.click_probability for line in saved.rank(["i3", "i4"], before, [5, 1])}
    assert (np.diff([probability[item] for item in after]) < 1e-6).all()
    told = saved.explain(["i3", "i4"], before, [5, 1])
    assert [sum(one.terms.values()) for one in told] == pytest.approx(plain.score[:20].tolist(), abs=1e-4)
    found = saved.recommend(**asked, pinned=["i30", "i4", "nope", "i12"])
    assert [found.item_id[found["query"] == query][:3].tolist() for query in (0, 1)] == [
        ["i30", "i12", ranked.item_id[0]], ["i30", "i4", "i12"],
    ]  # fmt: skip
    tail = chain_run[0].split.strata()["tail"]
    shares = [np.mean([tail[int(item[1:])] for item in some]) for some in (
        saved.recommend(**asked, tail_share=1).item_id, ranked.item_id,
    )]  # fmt: skip
    assert shares[0] == 1 > shares[1]
    assert saved.recommend(**asked, category_cap=1).equals(ranked)  # the ring has no categories
    for wrong in ({"skip": ["retrieval"]}, {"category_cap": -1}, {"tail_share": 2}, {"pinned": "i3"}):
        with pytest.raises(DataError, match=f"Expected {next(iter(wrong))}"):
            saved.recommend(**asked, **wrong)


@pytest.mark.parametrize("more", [{}, {"allow": ["a"]}, {"context": [{"hour": 3}]}])
def test_a_signature_that_a_model_lacks_is_named_with_and_without_filters(more):
    model = SavedModel(Path(), SimpleNamespace(signatures={}), {}, pd.DataFrame({"item_id": ["a"]}))
    with pytest.raises(ModelError, match=r"no signature 'search(_full)?', only .*has no text"):
        model.search(["red"], **more)


def test_rejections_and_impressions_are_no_interests(monkeypatch):
    weights = {"view": 0.5, "shown": 0.0, "dislike": -0.75}
    kind = Field("kind", "event", "category", tuple(weights), weights=weights)
    catalogue = pd.DataFrame({"item_id": ["a", "b", "c", "d"]})
    model = SavedModel(Path(), SimpleNamespace(signatures={}), {"schema": Schema((kind,)).as_dict()}, catalogue)
    asked = []

    def answer(signature, history, ratings, k):
        asked.append((history[0].tolist(), ratings[0].tolist()))
        return {"labels": np.array([[]]), "because": np.array([[]]), "weights": np.array([[]])}

    monkeypatch.setattr(model, "_call", answer)
    kinds = [{"kind": "dislike"}, None, {"event.kind": "shown"}, {"kind": "view"}]
    model.interests(["a", "b", "c", "d"], [1, 2, 3, 4], event_fields=kinds)
    model.interests(["a", "b"], event_fields=kinds[:2])
    model.interests(["a", "b"], [1, 2])
    model.interests(["a", "b"], event_fields=[{"kind": pd.NA}, {"kind": float("nan")}])
    assert asked == [(["b", "d"], [2, 4]), (["b"], []), (["a", "b"], [1, 2]), (["a", "b"], [])]
    for wrong in ({"event_fields": kinds}, {"ratings": [1]}, {"k": 2**31}):
        with pytest.raises(DataError):
            model.interests(["a", "b"], **wrong)


def test_searchers_of_scann_are_made_before_any_call_and_given_up_at_the_end(chain_version, tmp_path, monkeypatch):
    done = []

    class Loaded(tf.Module):
        signatures = {}  # noqa: RUF012
        prepare = release = None

    loaded = Loaded()
    loaded.prepare, loaded.release = (lambda: done.append("prepared")), (lambda: done.append("released"))
    version = tmp_path / "1"
    shutil.copytree(chain_version / "assets.extra", version / "assets.extra")
    (version / "saved_model.pb").touch()
    manifest = version / "assets.extra" / "tfllmrec.json"
    for form, wanted in (("exact", []), ("scann", ["prepared", "released"])):
        manifest.write_text(json.dumps({"indexes": {"recommend": {"form": form}}}))
        with monkeypatch.context() as patched:
            patched.setattr(loading, "scann_operations", lambda: None)
            patched.setattr(loading.tf.saved_model, "load", lambda folder, tags: loaded)
            opened = SavedModel.open(version)
        assert done == wanted[:1]
        del opened
        assert done == wanted


def test_ratings_belong_to_the_items_of_their_history_or_are_refused(saved):
    """As over the wire: nobody guesses which items a shorter row of ratings is about."""
    history = ["i3", "i4", "i5"]

    def rated(marks):
        return saved.recommend(histories=[history], ratings=[marks])

    assert rated([None, 5.0, 1.0]).equals(rated([float("nan"), 5.0, 1.0]))
    assert not rated([None, 5.0, 1.0]).equals(rated([5.0, 1.0, None]))

    def recommend(history, ratings):
        return saved.recommend(histories=[history], ratings=[ratings])

    for ask in (recommend, saved.interests, lambda history, ratings: saved.rank(history, ["i5"], ratings)):
        for ratings in ([5.0], [5.0, 4.0, 3.0]):
            with pytest.raises(DataError, match=rf"rating for each item .* got \[{len(ratings)}\] ratings for \[2\]"):
                ask(["i3", "i4"], ratings)
        with pytest.raises(DataError, match="Expected ratings as numbers"):
            ask(["i3"], ["good"])
    two = [["i3"], ["i4"]] * SCORE_BATCH
    for ratings in ([[5.0]], [[5.0]] * (len(two) + 1)):
        with pytest.raises(DataError, match="Expected a rating for each item of the history"):
            saved.recommend(histories=two, ratings=ratings)


def test_wrong_calls_are_refused_before_anything_is_computed(saved, monkeypatch):
    monkeypatch.setattr(saved, "_call", lambda *_, **__: pytest.fail("a batch was computed"))
    for given in ({}, {"users": ["u1"], "histories": [["i3"]]}):
        with pytest.raises(DataError, match="Expected either users or histories"):
            saved.recommend(**given)
    with pytest.raises(DataError, match="ratings only with histories"):
        saved.recommend(["u1"], ratings=[[5.0]])
    with pytest.raises(DataError, match=r"2 of 3 users are not in the data of .*: u333, 7\. Leave them out"):
        saved.recommend(["u333", "u1", "7"])
    with pytest.raises(DataError, match=r"21 of 21 users .* and 1 more"):
        saved.recommend([f"x{n}" for n in range(21)])
    one = {
        "users": lambda: saved.recommend("u1"),
        "histories": lambda: saved.recommend(histories="i3"),
        "a history": lambda: saved.recommend(histories=["i3"]),
        "exclude": lambda: saved.recommend(histories=[["i3"]], exclude="i4"),
        "allow": lambda: saved.recommend(histories=[["i3"]], allow="i4"),
        "categories": lambda: saved.recommend(histories=[["i3"]], categories="Drama"),
        "texts": lambda: saved.search("red toy"),
        "items": lambda: saved.similar("i3"),
    }
    for name, ask in one.items():
        with pytest.raises(DataError, match=rf"Expected {name} as a list, got the string '.*': write \['"):
            ask()
    with pytest.raises(DataError, match="No words to search for"):
        saved.search(["red toy", ""])
    tokens = {"input_mask": np.ones((2, 3), np.int32)}
    for ask in (
        lambda: saved.search(["red", "toy"], histories=[[]]),
        lambda: saved.search_tokens(tokens, histories=[]),
    ):
        with pytest.raises(DataError, match="Expected one history for each of 2 texts, got"):
            ask()


def test_is_a_recommender_and_scores_as_the_run_does(saved, chain_run, monkeypatch):
    run, _ = chain_run
    assert isinstance(saved, Recommender)
    queries = run.split.test
    scores = run.load_model(refit=True).score(queries)
    assert saved.score(queries).dtype == np.float32
    np.testing.assert_allclose(saved.score(queries), scores, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("tfllmrec.serving.saved_model.SCORE_BATCH", 7)
    np.testing.assert_allclose(saved.score(queries), scores, atol=1e-5, rtol=1e-5)
    some = Queries.from_histories([[], [39]])
    np.testing.assert_allclose(saved.score(some), run.load_model(refit=True).score(some), atol=1e-5)


def test_recommend_explains_itself(saved, chain_run):
    history = ["i3", "i4"]
    found = saved.recommend(histories=[history], ratings=[[2, 5]], exclude=["i6"], k=6, skip=["ranking"])
    titles = dict(zip(chain_run[0].dataset.items.item_id, chain_run[0].dataset.items.title, strict=True))
    assert list(found) == ["query", "rank", "item_id", "title", "score", "reason"]
    assert found["query"].tolist() == [0] * 6 and found["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert not {"i3", "i4", "i6"} & set(found.item_id)
    assert found.score.tolist() == sorted(found.score, reverse=True)
    told = saved.explain(history, found.item_id.tolist(), [2, 5])
    for item, explanation in zip(found.itertuples(), told, strict=True):
        assert item.title == titles[item.item_id]
        terms = explanation.terms
        assert sum(terms.values()) == pytest.approx(item.score, abs=1e-4)
        assert any(titles[event] in item.reason for event in history)
        if terms["behaviour"] > 0 > max(terms["meaning"], terms["feedback"]):
            assert item.reason == f"often chosen after {titles[explanation.because]}"


def test_users_of_the_run_are_recommended_from_their_events(saved):
    users = ["u33", "u0", "u33"]
    found = saved.recommend(users, k=3)
    assert found.columns[0] == "user_id" and found.user_id.tolist() == [user for user in users for _ in range(3)]
    past = [saved.history_of(user) for user in users]
    fields = [saved.fields_of(user) for user in users]
    own = {name: [each[name] for each in fields] for name in ("context", "event_fields")}
    same = saved.recommend(histories=[items for items, _ in past], ratings=[marks for _, marks in past], k=3, **own)
    assert found.drop(columns="user_id").equals(same.drop(columns="query"))
    assert not set(past[1][0]) & set(found.item_id[3:6])
    assert saved.recommend([]).empty
    assert saved.known_users(["u33", "u333"]) == [True, False]


def test_nothing_known_and_nothing_left(saved):
    popular = saved.recommend(histories=[[]], k=3)
    assert len(popular) == 3 and (popular.reason == "popular with all users").all()
    assert saved.recommend(histories=[["i0"]], exclude=list(saved.item_ids)).empty
    assert saved.known(["i0", "nope"]) == [True, False]
    assert saved.title("nope") == "nope"


def test_many_at_once_are_each_alone(saved, monkeypatch):
    monkeypatch.setattr("tfllmrec.serving.saved_model.SCORE_BATCH", 2)
    histories, ratings = [["i3", "i4"], [], ["i9"], ["nope", "i1"], ["i2"]], [[5, 1], [], [3], [1, 2], [4]]
    together = saved.recommend(histories=histories, k=4, exclude=["i5"], ratings=ratings)
    assert together["query"].tolist() == [query for query in range(5) for _ in range(4)]
    for query, (history, marks) in enumerate(zip(histories, ratings, strict=True)):
        found = together[together["query"] == query]
        alone = saved.recommend(histories=[history], ratings=[marks], exclude=["i5"], k=4)
        assert found.item_id.tolist() == alone.item_id.tolist() and found.reason.tolist() == alone.reason.tolist()
        assert found.score.tolist() == pytest.approx(alone.score.tolist(), abs=1e-4)
    assert saved.recommend(histories=[]).empty
    texts = ["red toy", "blue car", "cafe"]
    found = saved.search(texts, 2, histories=[["i3"], [], []], exclude=["i5"])
    assert found["query"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found.item_id[:2].tolist() == saved.search(texts[:1], 2, histories=[["i3"]], exclude=["i5"]).item_id.tolist()
    assert found.item_id[4:].tolist() == saved.search(texts[2:], 2, exclude=["i5"]).item_id.tolist()
    assert saved.similar(["i7", "i8", "i9"], 1)["query"].tolist() == [0, 1, 2]


def test_the_encoder_inside_says_how_it_reads_a_query(saved):
    assert saved.reading("red toy").works and saved.reading("").works
    found = saved.reading("red 帐篷 toy")
    assert found.unknown == 2 / 4  # the pieces are red, [UNK], [UNK], toy
    assert found.pieces_per_letter == 4 / 8 and not found.works


def test_a_query_of_known_pieces_in_a_script_of_other_languages_is_not_read(saved, monkeypatch):
    assert saved.reading("red café").works and saved.reading("red ре").unread == ()
    monkeypatch.setitem(saved.manifest, "config", {"text": {"encoder": "minilm"}})
    assert saved.reading("red café").works
    assert saved.reading("red ре").unread == ("CYRILLIC",) and not saved.reading("red ре").works


def test_search_and_similar(saved):
    assert saved.search([saved.title("i7")], k=2).item_id[0] == "i7"
    assert "i7" not in saved.search([saved.title("i7")], exclude=["i7"]).item_id.tolist()
    similar = saved.similar(["i7"], k=4)
    assert len(similar) == 4 and similar.title.tolist() == [saved.title(item) for item in similar.item_id]
    with pytest.raises(DataError, match=r"No item 'i77' in this model's catalogue. Near: .*i7"):
        saved.similar(["i77"])


def test_rank(saved, chain_run):
    items = ["i5", "nope", "i9", "i39"]
    found = saved.rank(["i3", "i4"], items, ratings=[5, 1])
    assert {line.item_id for line in found} == set(items) and found[-1].item_id == "nope"
    assert (found[-1].click_probability, found[-1].rating, found[-1].title) == (0, None, "nope")
    chances = [line.click_probability for line in found]
    assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1)
    hybrid = chain_run[0].load_model(refit=True)
    order = Reranked(hybrid, chain_run[0].load_ranking(hybrid), 5)
    probability, rating = order.rank(Queries.from_histories([[3, 4]], [[5, 1]]), np.array([[5, 9, 39]]))
    for line in found[:-1]:
        place = ["i5", "i9", "i39"].index(line.item_id)
        assert line.click_probability == pytest.approx(probability[0, place], abs=1e-5)
        assert line.rating == pytest.approx(rating[0, place], abs=1e-4)
        assert line.title == saved.title(line.item_id) != line.item_id
    record = json.loads((chain_run[0].folder / "ranking" / "record.json").read_text())
    assert saved.manifest["ranking"] == record | {"left_out": None}
    without = SavedModel(saved.folder, saved._loaded, saved.manifest, saved._items)
    without._signatures = {name: f for name, f in saved._signatures.items() if name != "rank"}
    with pytest.raises(
        ModelError, match=r"no signature 'rank'.*without a ranking model. Fit with ranking\.epochs above 0"
    ):
        without.rank(["i3"], ["i5"])


def test_filters(saved):
    few = ["i9", "i20", "i3", "nope"]
    assert set(saved.recommend(histories=[["i3"]], allow=few).item_id) == {"i9", "i20"}
    assert set(saved.search(["red toy"], exclude=["i9"], allow=few).item_id) == {"i20", "i3"}
    assert set(saved.similar(["i9"], allow=few).item_id) == {"i20", "i3"}
    assert saved.recommend(histories=[["i3"]], allow=[]).empty and saved.similar(["i9"], allow=[]).empty
    for_two = saved.recommend(histories=[["i3"], ["i9"]], k=2, allow=few)
    assert [set(items) for _, items in for_two.groupby("query").item_id] == [{"i9", "i20"}, {"i20", "i3"}]
    assert saved.recommend(histories=[["i3"]], categories=["Comedy"]).empty  # the ring has no categories
    assert saved.categories == frozenset()
    items = pd.DataFrame({"item_id": ["a", "b"], "categories": [["Arts, Music & Photography", "Sci-Fi"], []]})
    assert SavedModel(saved.folder, saved._loaded, {}, items).categories == {"Arts, Music & Photography", "Sci-Fi"}
    of_version_0_1 = pd.DataFrame({"item_id": ["a", "b", "c"], "categories": ["Comedy, Sci-Fi", "", "Comedy"]})
    assert SavedModel(saved.folder, saved._loaded, {}, of_version_0_1).categories == {"Comedy", "Sci-Fi"}


def test_history_of(saved, chain_run):
    events = chain_run[0].dataset.events
    for user in ("u0", "u33", "u59"):
        own = events[events.user_id == user]
        items, ratings = saved.history_of(user)
        assert items == own.item_id.tolist() and ratings == own.rating.tolist()
    with pytest.raises(DataError, match=r"No user 'u333' .* Near: .*u33.*--history id1,id2"):
        saved.history_of("u333")


def test_histories_of_many_users(saved, monkeypatch):
    # Comparing an unknown id with all known ones is for the message of history_of alone.
    monkeypatch.setattr("difflib.get_close_matches", None)
    asked = ["u33", "u333", "u0", *(f"x{n}" for n in range(1000))]
    histories = saved.histories_of(asked)
    assert histories == {user: saved.history_of(user) for user in ("u33", "u0")}
    assert saved.histories_of(["u333"]) == {} == saved.histories_of([])


def moved(saved, **manifest):
    items = pd.DataFrame({"item_id": saved.item_ids})
    return SavedModel(saved.folder, saved._loaded, saved.manifest | manifest, items)


def test_without_its_run_it_still_recommends_and_says_what_it_cannot(saved):
    alone = moved(saved, run="/nowhere/at/all")
    assert alone.recommend(histories=[["i3"]], k=2).title.str.startswith("i").tolist() == [True, True]
    for ask in (lambda: alone.history_of("u1"), lambda: alone.recommend(["u1"]), lambda: alone.run):
        with pytest.raises(DataError, match=r"/nowhere/at/all .* no longer exists.*--history id1,id2"):
            ask()


@pytest.fixture(scope="module")
def bare_saved(bare_run, tmp_path_factory):
    from tfllmrec.serving.export import export

    return SavedModel.open(export(bare_run[0].folder, tmp_path_factory.mktemp("saved_models") / "bare"))


@pytest.mark.slow
@pytest.mark.long
def test_without_text_there_is_no_search(bare_run, bare_saved):
    saved = bare_saved
    np.testing.assert_allclose(
        saved.score(bare_run[0].split.test), bare_run[0].load_model(refit=True).score(bare_run[0].split.test), atol=1e-5
    )
    assert saved.recommend(histories=[["i3"]], k=2).title.str.startswith("i").all()
    items, ratings = saved.history_of("u1")
    assert items and ratings is None
    assert len(saved.recommend(["u1"], k=3)) == 3
    assert [line.rating for line in saved.rank(["i3"], ["i5", "i9"])] == [None, None]  # nor any ratings
    nothing = dict.fromkeys(INPUTS, np.zeros((1, 3), np.int32))
    asked = {"search": ["red"], "encode": ["red"], "search_tokens": nothing}
    for signature, question in asked.items():
        with pytest.raises(ModelError, match=rf"no signature '{signature}'.*has no text"):
            getattr(saved, signature)(question)


def test_tokens_and_vectors(saved, chain_run):
    run, _ = chain_run
    texts = [saved.title("i7"), "red toy"]
    np.testing.assert_allclose(saved.encode(texts)[0], run.text[7], atol=1e-5)
    tokens = run.text_encoder().text_to_vector.tokens(np.asarray(texts, object))
    by_tokens = saved.search_tokens(tokens, 4, histories=[[], ["i3"]], exclude=["i8"])
    by_text = saved.search(texts, 4, histories=[[], ["i3"]], exclude=["i8"])
    assert by_tokens.drop(columns="score").equals(by_text.drop(columns="score"))
    assert by_tokens.score.tolist() == pytest.approx(by_text.score.tolist(), abs=1e-6)
    assert saved.search_tokens(tokens, k=1).item_id.tolist() == saved.search(texts, k=1).item_id.tolist()


@pytest.fixture(scope="module")
def small_tower(chain_run, cache, tmp_path_factory):
    """(run, its model): the ring again, its queries read by hashed n-grams that are made when it is exported."""
    from tfllmrec.serving.export import export

    folder = tmp_path_factory.mktemp("small")
    run = Run(Path(shutil.copytree(chain_run[0].folder, folder / "run")))
    config = run.config
    config.text.query_encoder = "hashed_ngrams"
    config.distillation = DistillationConfig(epochs=30, batch_size=8, buckets=512, width=16, hidden=16)
    (run.folder / "config.yaml").write_text(dump_config(config))
    return run, SavedModel.open(export(run.folder, folder / "served"))


@pytest.mark.slow
@pytest.mark.long
def test_a_small_tower_reads_the_queries_and_the_items_keep_their_vectors(small_tower, chain_run, saved):
    run, small = small_tower
    record = json.loads((run.folder / "query_encoder" / "hashed_ngrams" / "record.json").read_text())
    assert small.manifest["query_encoder"] == record and record["name"] == "hashed_ngrams"
    assert saved.manifest["query_encoder"] == {"name": "same"}
    tower = Student.load(run.folder / "query_encoder" / "hashed_ngrams")
    texts = chain_run[0].dataset.items.title.tolist()
    np.testing.assert_allclose(small.encode(texts), tower.encode(texts), atol=1e-6)
    found = small.search(["red toy"], k=40)
    scores = dict(zip(small.item_ids, chain_run[0].text @ tower.encode(["red toy"])[0], strict=True))
    assert found.score.tolist() == pytest.approx([scores[item] for item in found.item_id], abs=1e-5)
    alike = np.einsum("nd,nd->n", small.encode(texts), np.asarray(chain_run[0].text))
    assert alike.mean() > 0.6
    assert small.similar(["i7"], 5).item_id.tolist() == saved.similar(["i7"], 5).item_id.tolist()
    inside = [
        [
            name
            for name, _ in tf.train.list_variables(str(model.folder / "variables" / "variables"))
            if "encoder/" in name
        ]
        for model in (saved, small)
    ]
    assert [name for name in inside[0] if name.startswith("text_to_vector/encoder/")]
    assert not [name for name in inside[1] if name.startswith("text_to_vector/encoder/")]  # nothing of the BERT
    assert small.reading("red 帐篷 toy") is None
    with pytest.raises(ModelError, match=r"no signature 'search_tokens'.*knows words and no tokens"):
        small.search_tokens(dict.fromkeys(INPUTS, np.zeros((1, 3), np.int32)))


@pytest.mark.long
@pytest.mark.slow
def test_a_small_tower_of_another_encoder_is_not_exported(small_tower, tmp_path):
    from tfllmrec.serving.export import export

    run = Path(shutil.copytree(small_tower[0].folder, tmp_path / "run"))
    about = run / "query_encoder" / "hashed_ngrams" / "student.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"teacher": "somebody else"}))
    with pytest.raises(ModelError, match=r"query_encoder/hashed_ngrams was distilled from .*somebody els"):
        export(run, tmp_path / "served")
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "[" * 100_000, '{"indexes": []}', '{"indexes": {"recommend": {}}}', '{"run": 3}', '{"config": {}}'],
)
def test_a_damaged_manifest_is_named(chain_version, tmp_path, manifest):
    version = tmp_path / "1"
    shutil.copytree(chain_version / "assets.extra", version / "assets.extra")
    (version / "saved_model.pb").touch()
    (version / "assets.extra" / "tfllmrec.json").write_text(manifest)
    with pytest.raises(ModelError, match=r"tfllmrec\.json is damaged .*: export the run again"):
        SavedModel.open(version)


@pytest.mark.parametrize("damage", ["empty", "cut short", "no ids", "numbers"])
def test_a_damaged_table_of_items_is_named(chain_version, tmp_path, damage):
    version = tmp_path / "1"
    shutil.copytree(chain_version / "assets.extra", version / "assets.extra")
    (version / "saved_model.pb").touch()
    path = version / "assets.extra" / "items.parquet"
    content = path.read_bytes()
    if damage == "no ids":
        pd.DataFrame({"title": ["a"]}).to_parquet(path)
    elif damage == "numbers":
        pd.DataFrame({"item_id": [1]}).to_parquet(path)
    else:
        path.write_bytes(b"" if damage == "empty" else content[:-9])
    with pytest.raises(ModelError, match=r"items\.parquet (cannot be read|is damaged) .*: export the run again"):
        SavedModel.open(version)


def test_a_manifest_that_names_no_run_is_told_where_the_run_is_needed(saved):
    with pytest.raises(ModelError, match=r"tfllmrec\.json is damaged \(it lacks config\): export the run again"):
        moved(saved, config=None).histories_of(["u1"])


def test_reasons_come_with_the_list(saved, chain_run):
    """For as many of the first places as were asked for, and the same as in the list that a frame shows."""
    inputs = {name: np.full((1, 0), "", object) for name in saved._inputs("recommend_full") if name != "reasons"}
    inputs |= {name: np.zeros(1, np.float32) for name in ("diversity", "tail_share")}
    inputs |= {"history": np.array([["i3", "i4"]], object), "ratings": np.zeros((1, 0), np.float32)}
    inputs |= {"k": np.array([5], np.int32), "category_cap": np.zeros(1, np.int32)}
    out = saved._call("recommend_full", **inputs, reasons=np.array([2], np.int32))
    first, second, *others = [text.decode() for text in out["reasons"][0]]
    assert first and second and others == ["", "", ""]
    told = saved.recommend(histories=[["i3", "i4"]], k=5).reason.tolist()
    assert told[:2] == [first, second] and all(told)
    run = chain_run[0]
    assert any(run.dataset.items.title[3] in reason or run.dataset.items.title[4] in reason for reason in told)

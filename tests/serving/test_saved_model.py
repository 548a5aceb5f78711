import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfllmrec.client.ratings import rating_rows
from tfllmrec.config import DistillationConfig, dump_config
from tfllmrec.data.queries import Queries
from tfllmrec.errors import DataError, ModelError
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.ranking import Reranked
from tfllmrec.runs.run import Run
from tfllmrec.serving import loading
from tfllmrec.serving.saved_model import SCORE_BATCH, SavedModel
from tfllmrec.text.bundled import INPUTS
from tfllmrec.text.student import Student

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def saved(chain_version):
    return SavedModel.open(chain_version.parent)


def test_opens_a_model_or_one_of_its_versions(saved, chain_version):
    assert saved.folder == chain_version
    with pytest.raises(ModelError, match=r"holds no SavedModel: expected a version folder such as .*/1"):
        SavedModel.open(chain_version.parent / "7")
    with pytest.raises(ModelError, match="holds no SavedModel"):
        SavedModel.open(chain_version.parent.parent)


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
    rated = saved.recommend(history, [None, 5.0, 1.0])
    assert rated == saved.recommend(history, [float("nan"), 5.0, 1.0]) != saved.recommend(history, [5.0, 1.0, None])
    for ask in (saved.recommend, saved.interests, lambda history, ratings: saved.rank(history, ["i5"], ratings)):
        for ratings in ([5.0], [5.0, 4.0, 3.0]):
            with pytest.raises(DataError, match=rf"rating for each item .* got \[{len(ratings)}\] ratings for \[2\]"):
                ask(["i3", "i4"], ratings)
        with pytest.raises(DataError, match="Expected ratings as numbers"):
            ask(["i3"], ["good"])
    two = [["i3"], ["i4"]] * SCORE_BATCH
    for ratings in ([[5.0]], [[5.0]] * (len(two) + 1)):
        with pytest.raises(DataError, match="Expected a rating for each item of the history"):
            saved.recommend_many(two, ratings=ratings)


def test_every_list_has_a_row_for_each_person(saved, monkeypatch):
    """Also where the batches are long enough, or every batch but the last one is."""
    monkeypatch.setattr(saved, "_call", lambda *_, **__: pytest.fail("a batch was computed"))
    people = [["i3"]] * (SCORE_BATCH + 6)
    for rows in (SCORE_BATCH, len(people) + 1):
        with pytest.raises(
            DataError, match=f"Expected one list to exclude for each of {len(people)} people, got {rows}"
        ):
            saved.recommend_many(people, exclude=[[]] * rows)
        for name in ("allow", "categories"):
            with pytest.raises(DataError, match=f"one list of {name} for each of {len(people)} people, got {rows}"):
                saved.recommend_many(people, **{name: [["x"]] * rows})
    tokens = {"input_mask": np.ones((2, 3), np.int32)}
    for name in ("histories", "exclude"):
        with pytest.raises(DataError, match=f"{name}: expected one list for each of 2 texts, got 3"):
            saved.search_tokens(tokens, **{name: [["i3"]] * 3})


def test_ratings_of_many_are_checked_once(saved, monkeypatch):
    checked = []
    monkeypatch.setattr(
        "tfllmrec.serving.saved_model.rating_rows", lambda *rows: checked.append(rows) or rating_rows(*rows)
    )
    people = [["i3"]] * (SCORE_BATCH + 6)
    saved.recommend_many(people, ratings=[[5.0]] * len(people))
    assert len(checked) == 1


def test_is_a_recommender_and_scores_as_the_run_does(saved, chain_run, monkeypatch):
    run, _ = chain_run
    assert isinstance(saved, Recommender)
    queries = run.split.test
    scores = run.load_model().score(queries)
    assert saved.score(queries).dtype == np.float32
    np.testing.assert_allclose(saved.score(queries), scores, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("tfllmrec.serving.saved_model.SCORE_BATCH", 7)
    np.testing.assert_allclose(saved.score(queries), scores, atol=1e-5, rtol=1e-5)
    some = Queries.from_histories([[], [39]])
    np.testing.assert_allclose(saved.score(some), run.load_model().score(some), atol=1e-5)


def test_recommend_explains_itself(saved, chain_run):
    history = ["i3", "i4"]
    found = saved.recommend(history, ratings=[2, 5], exclude=["i6"], k=6)
    titles = dict(zip(chain_run[0].dataset.items.item_id, chain_run[0].dataset.items.title, strict=True))
    assert len(found) == 6 and not {"i3", "i4", "i6"} & {item.item_id for item in found}
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    for item in found:
        assert item.title == titles[item.item_id]
        assert sum(item.terms.values()) == pytest.approx(item.score, abs=1e-4)
        assert any(titles[i] in item.reason for i in history)
        if item.terms["behaviour"] > item.terms["meaning"] + item.terms["feedback"]:
            assert item.reason.startswith("people who had")
        else:
            assert item.reason.startswith(("reads like", "fits your ratings"))


def test_the_reason_is_that_of_the_event_that_was_found(saved):
    """Meaning and feedback are weighed against behaviour together, as the model does when it looks for the event."""
    said = saved._reason({"meaning": 3.0, "feedback": 2.0, "behaviour": 4.0}, "i3")
    assert said.startswith("reads like") and saved.title("i3") in said
    assert saved._reason({"meaning": 1.0, "feedback": 2.0, "behaviour": 0.0}, "i3").startswith("fits your ratings")
    assert saved._reason({"meaning": 1.0, "feedback": 2.0, "behaviour": 3.0}, "i3").startswith("people who had")
    assert saved._reason({"meaning": 1.0, "feedback": 2.0, "behaviour": 3.0}, "") == ""


def test_nothing_known_and_nothing_left(saved):
    popular = saved.recommend([], k=3)
    assert len(popular) == 3 and all(item.reason == "" for item in popular)
    assert saved.recommend(["i0"], exclude=list(saved.item_ids)) == []
    assert saved.known(["i0", "nope"]) == [True, False]
    assert saved.title("nope") == "nope"


def test_many_at_once_are_each_alone(saved, monkeypatch):
    monkeypatch.setattr("tfllmrec.serving.saved_model.SCORE_BATCH", 2)
    histories, ratings = [["i3", "i4"], [], ["i9"], ["nope", "i1"], ["i2"]], [[5, 1], [], [3], [1, 2], [4]]
    together = saved.recommend_many(histories, k=4, exclude=[["i5"]] * 5, ratings=ratings)
    assert len(together) == 5
    for found, history, marks in zip(together, histories, ratings, strict=True):
        alone = saved.recommend(history, marks, ["i5"], 4)
        assert [item.item_id for item in found] == [item.item_id for item in alone]
        assert [item.score for item in found] == pytest.approx([item.score for item in alone], abs=1e-4)
    assert saved.recommend_many([]) == []


def test_search_and_similar(saved):
    assert saved.search(saved.title("i7"), k=2)[0].item_id == "i7"
    assert "i7" not in [item.item_id for item in saved.search(saved.title("i7"), exclude=["i7"])]
    assert len(saved.similar("i7", k=4)) == 4
    with pytest.raises(DataError, match=r"No item 'i77' in this model's catalogue. Near: .*i7"):
        saved.similar("i77")


def test_rank(saved, chain_run):
    items = ["i5", "nope", "i9", "i39"]
    found = saved.rank(["i3", "i4"], items, ratings=[5, 1])
    assert {line.item_id for line in found} == set(items) and found[-1].item_id == "nope"
    assert (found[-1].click_probability, found[-1].rating, found[-1].title) == (0, None, "nope")
    chances = [line.click_probability for line in found]
    assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1)
    hybrid = chain_run[0].load_model()
    order = Reranked(hybrid, chain_run[0].load_ranking(hybrid), 5)
    probability, rating = order.rank(Queries.from_histories([[3, 4]], [[5, 1]]), np.array([[5, 9, 39]]))
    for line in found[:-1]:
        place = ["i5", "i9", "i39"].index(line.item_id)
        assert line.click_probability == pytest.approx(probability[0, place], abs=1e-5)
        assert line.rating == pytest.approx(rating[0, place], abs=1e-4)
        assert line.title == saved.title(line.item_id) != line.item_id
    record = json.loads((chain_run[0].folder / "ranking" / "record.json").read_text())
    assert saved.manifest["ranking"] == record
    without = SavedModel(saved.folder, saved._loaded, saved.manifest, saved._items)
    without._signatures = {name: f for name, f in saved._signatures.items() if name != "rank"}
    with pytest.raises(
        ModelError, match=r"no signature 'rank'.*without a ranking model. Fit with ranking\.epochs above 0"
    ):
        without.rank(["i3"], ["i5"])


def test_filters(saved):
    few = ["i9", "i20", "i3", "nope"]
    assert {item.item_id for item in saved.recommend(["i3"], allow=few)} == {"i9", "i20"}
    assert {item.item_id for item in saved.search("red toy", exclude=["i9"], allow=few)} == {"i20", "i3"}
    assert {item.item_id for item in saved.similar("i9", allow=few)} == {"i20", "i3"}
    assert saved.recommend(["i3"], allow=[]) == saved.similar("i9", allow=[]) == []
    lists = saved.recommend_many([["i3"], ["i4"]], 2, allow=[few, None], categories=[[], ["Comedy"]])
    assert [len(found) for found in lists] == [2, 0]  # the ring has no categories
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
    assert alone.recommend(["i3"], k=2) and alone.recommend(["i3"], k=1)[0].title.startswith("i")
    for ask in (lambda: alone.history_of("u1"), lambda: alone.run):
        with pytest.raises(DataError, match=r"/nowhere/at/all .* is not there any more.*--history id1,id2"):
            ask()


@pytest.mark.slow
def test_without_text_there_is_no_search(bare_run, tmp_path):
    from tfllmrec.serving.export import export

    saved = SavedModel.open(export(bare_run[0].folder, tmp_path / "bare"))
    np.testing.assert_allclose(
        saved.score(bare_run[0].split.test), bare_run[0].load_model().score(bare_run[0].split.test), atol=1e-5
    )
    assert saved.recommend(["i3"], k=2)[0].title.startswith("i")
    items, ratings = saved.history_of("u1")
    assert items and ratings is None
    assert [line.rating for line in saved.rank(["i3"], ["i5", "i9"])] == [None, None]  # nor any ratings
    nothing = dict.fromkeys(INPUTS, np.zeros((1, 3), np.int32))
    asked = {"search": "red", "encode": ["red"], "search_tokens": nothing}
    for signature, question in asked.items():
        with pytest.raises(ModelError, match=rf"no signature '{signature}'.*has no text"):
            getattr(saved, signature)(question)


def test_tokens_and_vectors(saved, chain_run):
    run, _ = chain_run
    texts = [saved.title("i7"), "red toy"]
    np.testing.assert_allclose(saved.encode(texts)[0], run.text[7], atol=1e-5)
    tokens = run.text_encoder().text_to_vector.tokens(np.asarray(texts, object))
    found = saved.search_tokens(tokens, [[], ["i3"]], [["i8"], []], k=4)
    by_text = saved.search(texts[0], exclude=["i8"], k=4), saved.search(texts[1], ["i3"], k=4)
    for by_tokens, expected in zip(found, by_text, strict=True):
        assert [item.item_id for item in by_tokens] == [item.item_id for item in expected]
        assert [item.score for item in by_tokens] == pytest.approx([item.score for item in expected], abs=1e-6)
    assert [[item.item_id for item in row] for row in saved.search_tokens(tokens, k=1)] == [
        [saved.search(text, k=1)[0].item_id] for text in texts
    ]


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


def test_a_small_tower_reads_the_queries_and_the_items_keep_their_vectors(small_tower, chain_run, saved):
    run, small = small_tower
    record = json.loads((run.folder / "query_encoder" / "hashed_ngrams" / "record.json").read_text())
    assert small.manifest["query_encoder"] == record and record["name"] == "hashed_ngrams"
    assert saved.manifest["query_encoder"] == {"name": "same"}
    tower = Student.load(run.folder / "query_encoder" / "hashed_ngrams")
    texts = chain_run[0].dataset.items.title.tolist()
    np.testing.assert_allclose(small.encode(texts), tower.encode(texts), atol=1e-6)
    found = small.search("red toy", k=40)
    scores = dict(zip(small.item_ids, chain_run[0].text @ tower.encode(["red toy"])[0], strict=True))
    assert [item.score for item in found] == pytest.approx([scores[item.item_id] for item in found], abs=1e-5)
    alike = np.einsum("nd,nd->n", small.encode(texts), np.asarray(chain_run[0].text))
    assert alike.mean() > 0.6
    assert [item.item_id for item in small.similar("i7", 5)] == [item.item_id for item in saved.similar("i7", 5)]
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
    with pytest.raises(ModelError, match=r"no signature 'search_tokens'.*knows words and no tokens"):
        small.search_tokens(dict.fromkeys(INPUTS, np.zeros((1, 3), np.int32)))


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

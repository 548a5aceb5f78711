"""An export of a hybrid that reads fields, without a run: what is served is what the Keras model says."""

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, ItemWeightSettings, ModelConfig, SplitConfig
from tfllmrec.data import dataset_from_frames
from tfllmrec.data.splits import make_split

pytestmark = [pytest.mark.tf, pytest.mark.slow]
N = 8


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    rows = [
        (
            f"u{user}",
            f"i{item}",
            1_600_000_000 + 90_000 * step,
            rng.choice(["phone", "tv"]),
            rng.choice(["view", "buy"]),
        )
        for user in range(12)
        for step, item in enumerate(rng.permutation(N)[:5])
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "device", "kind"])
    items = pd.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(N)],
            "title": [f"film {item}" for item in range(N)],
            "maker": ["ab"[item % 2] for item in range(N - 1)] + [""],
            "look": [rng.normal(size=3) for _ in range(N - 2)] + [None] * 2,
        }
    )
    users = pd.DataFrame(
        {"user_id": [f"u{user}" for user in range(12)], "age": [20 + 3.5 * user for user in range(12)]}
    )
    config = DataConfig(fields={"age": {"default": "99"}})
    dataset = dataset_from_frames(events, items, users, config=config)
    return make_split(dataset, SplitConfig(kind="leave_last_out"), 42)


@pytest.fixture(scope="module")
def model(split):
    """Untrained, but with weights that let every field speak."""
    from tfllmrec.models.hybrid import Catalogue, Hybrid

    rng = np.random.default_rng(1)
    text = rng.normal(size=(N, 6)).astype(np.float32)
    config = ModelConfig(embedding_dim=8, blocks=1, heads=2, history_length=4, item_fields="all")
    catalogue = Catalogue.of(split.dataset.items, text, split.schema)
    made = Hybrid(catalogue, split.train_counts, config, schema=split.schema)
    for layer in (made.event_fusion, made.query_fusion, made.items):
        for variable in layer.trainable_variables:
            variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    made.query_fusion.alone.assign(2.0)
    return made


@pytest.fixture(scope="module")
def served(model, split, tmp_path_factory):
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    return SavedModel.open(export(model, split, tmp_path_factory.mktemp("fields") / "shop"))


@pytest.mark.parametrize("read", [True, False])
def test_the_served_model_excludes_what_the_evaluation_masks(read):
    """Also if the model itself does not read the kinds of events."""
    import tensorflow as tf

    from tfllmrec.models.hybrid import Catalogue, Hybrid
    from tfllmrec.serving.signatures import ServingModel

    rows = [
        (f"u{user}", f"i{(user + step) % N}", 60 * step, kind)
        for user in range(6)
        for step, kind in enumerate(["view", "impression", "dislike", "view", "view"])
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "kind"])
    split = make_split(dataset_from_frames(events), SplitConfig(kind="leave_last_out"), 42)
    items, queries = split.dataset.items, split.test
    text = np.zeros((N, 2), np.float32)
    config = ModelConfig(embedding_dim=8, blocks=1, heads=2, history_length=4, fields=read)
    settings = ItemWeightSettings(kinds=read)
    hybrid = Hybrid(Catalogue.of(items, text, split.schema), split.train_counts, config, settings, schema=split.schema)
    assert ("event.kind" in hybrid.reads) == read
    ids = items["item_id"].to_numpy()
    served = ServingModel(hybrid, ids, text, None, queries, schema=split.schema)
    histories = [ids[row].tolist() for row in queries.history]
    kinds = ["view", "impression", "dislike", "view"]
    answer = served.recommend_full(
        history=tf.constant(histories), event_fields=tf.constant([[f"kind={kind}" for kind in kinds]] * len(histories)),
        k=tf.constant([N] * len(histories)),
    )  # fmt: skip
    wanted = [{*ids} - {*ids[row]} for row in queries.exclude]
    assert [{item.decode() for item in row} - {""} for row in answer["item_ids"].numpy()] == wanted
    assert all(history[1] in row for history, row in zip(histories, wanted, strict=True))
    if read:
        found = hybrid.recommend(k=N, histories=histories, event_fields=[[{"kind": kind} for kind in kinds]] * 6)
        assert [{*rows["item_id"]} for _, rows in found.groupby("query")] == wanted


def test_the_served_model_weighs_kinds_and_dwell_times_as_the_evaluation_does():
    import tensorflow as tf

    from tfllmrec.config import FieldConfig
    from tfllmrec.data.batches import Sequences
    from tfllmrec.models.hybrid import Catalogue, Hybrid
    from tfllmrec.serving.signatures import ServingModel
    from tfllmrec.training.fit import set_item_weights

    rng = np.random.default_rng(4)
    rows = [
        (f"u{user}", f"i{item}", step, rng.choice(["view", "play"]), rng.choice(["", "2", "30", "90"]))
        for user in range(20)
        for step, item in enumerate(rng.permutation(N)[:5])
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "order", "kind", "watch_time"])
    fields = {"watch_time": FieldConfig(weighs=True), "kind": FieldConfig(weights={"view": 0.5, "play": 1.0})}
    split = make_split(dataset_from_frames(events, config=DataConfig(fields=fields)), SplitConfig(), 42)
    queries, text = split.test, np.zeros((N, 2), np.float32)
    config = ModelConfig(terms=["behaviour"], history_length=4)
    settings = ItemWeightSettings(l2=1.0, text=0.0, kinds={"view": 0.3})
    catalogue = Catalogue.of(split.dataset.items, text, split.schema)
    hybrid = Hybrid(catalogue, split.train_counts, config, settings, schema=split.schema)
    set_item_weights(hybrid, Sequences.from_split(split, 0.1, seed=1))
    ids = split.dataset.items["item_id"].to_numpy()
    served = ServingModel(hybrid, ids, text, None, queries, schema=split.schema)
    asked = {"history": tf.constant([ids[row].tolist() for row in queries.history]), "k": tf.constant([N])}
    texts = {name: split.schema[f"event.{name}"].words(queries.fields[f"event.{name}"].values) for name in fields}
    lines = [f"watch_time={time}\nkind={kind}" for time, kind in zip(texts["watch_time"], texts["kind"], strict=True)]
    with_times = served.recommend_full(**asked, event_fields=tf.constant(np.reshape(lines, (len(queries), -1))))
    assert not np.any(with_times["unread"])
    expected = hybrid.score(queries)
    for row, (found, scores) in enumerate(
        zip(with_times["item_ids"].numpy(), with_times["scores"].numpy(), strict=True)
    ):
        for item, score in zip(found, scores, strict=True):
            if item:
                assert score == pytest.approx(expected[row, ids.tolist().index(item.decode())], abs=1e-4)
    without = served.recommend_full(**asked)
    assert np.abs(without["scores"] - with_times["scores"]).max() > 1e-3


def test_every_kind_of_field_is_read(model):
    assert set(model.reads) == {
        "event.rating", "event.timestamp_s", "event.device", "event.kind",
        "request.timestamp_s", "request.device", "user.age",
    }  # fmt: skip


def test_the_manifest_names_the_fields_that_have_an_effect(model, split, served, tmp_path):
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    assert set(served.manifest["reads"]) == set(model.reads)
    model.query_fusion.reads.assign(0.0)
    without = SavedModel.open(export(model, split, tmp_path / "shop"))
    scores = model.score(split.test)
    model.query_fusion.reads.assign(1.0)
    assert {key.partition(".")[0] for key in without.manifest["reads"]} == {"event"}
    np.testing.assert_allclose(without.score(split.test), scores, rtol=1e-4, atol=1e-4)


def test_the_fields_of_items_are_read(model):
    assert {field.key: field.kind for field in model.schema.of("item")} == {
        "item.look": "vector", "item.maker": "category",
    }  # fmt: skip
    vectors = model.item_vectors().numpy()
    model.items.reads.assign(0.0)
    moved = np.abs(model.item_vectors() - vectors).max(axis=1)
    model.items.reads.assign(1.0)
    assert (moved > 1e-3).tolist() == [True] * (N - 1) + [False]  # the last one has none


def test_similar_items_are_those_of_the_model(model, served):
    asked = ["i1", "i5", f"i{N - 1}"]
    one, own = served.similar(asked, k=N - 1), model.similar(asked, k=N - 1)
    assert one["item_id"].tolist() == own["item_id"].tolist()
    np.testing.assert_allclose(2 * one["score"], own["score"], atol=1e-5)  # there are no texts to compare


def test_scores_are_those_of_the_model(model, served, split):
    scores = model.score(split.test)
    np.testing.assert_allclose(served.score(split.test), scores, rtol=1e-4, atol=1e-4)
    # Each part of the fields moves them.
    for prefix in ("event.", "request.", "user."):
        some = {k: v for k, v in split.test.fields.items() if not k.startswith(prefix) or k == "event.rating"}
        without = type(split.test)(
            split.test.user_ids, split.test.history, split.test.exclude, split.test.targets, some
        )
        moved = model.score(without)
        assert np.abs(moved - scores).max() > 1e-3
        np.testing.assert_allclose(served.score(without), moved, rtol=1e-4, atol=1e-4)


def test_a_user_without_a_history_is_answered_by_fields(model, served, split):
    nobody = split.test.without_histories()
    scores = model.score(nobody)
    assert np.abs(scores - np.log1p(split.train_counts)).max() > 1e-3
    np.testing.assert_allclose(served.score(nobody), scores, rtol=1e-4, atol=1e-4)
    one = served.recommend(histories=[[]], context=[{"age": 27, "device": "tv"}], k=N)
    own = model.recommend(histories=[[]], context=[{"age": 27, "device": "tv"}], k=N)
    assert one["item_id"].tolist() == own["item_id"].tolist()
    np.testing.assert_allclose(one["score"], own["score"], rtol=1e-4, atol=1e-4)


def test_lists_and_reasons_read_the_fields(model, served, split):
    asked = {
        "histories": [["i1", "i2"], ["i3"]],
        "context": [{"age": 30, "device": "phone", "timestamp_s": 1_700_000_000}, {"user.age": 50}],
        "event_fields": [[{"kind": "view"}, {"kind": "buy", "device": "tv"}], None],
    }
    one, own = served.recommend(**asked, k=N), model.recommend(**asked, k=N, dataset=split.dataset)
    assert one["item_id"].tolist() == own["item_id"].tolist()
    np.testing.assert_allclose(one["score"], own["score"], rtol=1e-4, atol=1e-4)
    assert one["reason"].tolist() == own["reason"].tolist()
    explained = served.explain(["i1", "i2"], ["i5"], context=asked["context"][0], event_fields=asked["event_fields"][0])
    plain = served.explain(["i1", "i2"], ["i5"])
    assert abs(sum(explained[0].terms.values()) - sum(plain[0].terms.values())) > 1e-4


def test_what_the_data_says_of_a_user_stays_unless_the_context_names_it(model, split):
    events = split.dataset.events[split.dataset.events["user_id"] == "u3"]
    past = {
        "histories": [events["item_id"].tolist()],
        "event_fields": [events[["kind", "device", "timestamp_s"]].to_dict("records")],
    }
    told = model.recommend(["u3"], k=N, dataset=split.dataset, context=[{"device": "tv"}])
    same = model.recommend(**past, k=N, dataset=split.dataset, context=[{"device": "tv", "age": 20 + 3.5 * 3}])
    np.testing.assert_allclose(told["score"], same["score"], rtol=1e-5)
    named = model.recommend(["u3"], k=N, dataset=split.dataset, context=[{"device": "tv", "age": 80}])
    assert np.abs(named["score"] - told["score"]).max() > 1e-4
    # Where neither says anything, the default of the field stands.
    left_out, default = (
        model.recommend(**past, k=N, dataset=split.dataset, context=[context])
        for context in ({"device": "tv"}, {"device": "tv", "age": 99})
    )
    np.testing.assert_allclose(left_out["score"], default["score"], rtol=1e-5)


def test_a_ranking_model_keeps_what_fields_say_of_a_user_without_a_history(model, split):
    import tensorflow as tf

    from tfllmrec.config import RankingConfig
    from tfllmrec.models.ranking import RankingModel

    ranking = RankingModel(model, RankingConfig(keys=4, hidden=4), None)
    nobody = split.test.without_histories().slice(0, 3)
    query = {key: tf.constant(values) for key, values in model.query_inputs(nobody).items()}
    items = tf.tile(tf.range(N)[tf.newaxis], (3, 1))
    given = ranking.given(ranking.item_vectors, query, items)
    np.testing.assert_allclose(given["scores"], model.score(nobody), rtol=1e-4, atol=1e-5)
    terms = model.explain_items(ranking.item_vectors, query, items)
    total = sum(terms[name] for name in model.term_names)
    popularity = np.log1p(split.train_counts)
    np.testing.assert_allclose(total + popularity, model.score(nobody), rtol=1e-4, atol=1e-5)
    assert (terms["because"].numpy() == -1).all()

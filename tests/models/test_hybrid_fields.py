"""Planted data in which the next item depends on the device of a request, and the first item on the user's country."""

import numpy as np
import pytest
import tensorflow as tf
from stand_ins import two_domains

from tfllmrec.config import ExperimentConfig, ItemWeightSettings, ModelConfig
from tfllmrec.data.batches import Sequences, hold_out, training_batches
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.models.answers import queries_of
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.training.fit import build_hybrid

pytestmark = pytest.mark.tf
N = 12
SCHEMA = Schema(
    (
        Field("device", "request", "category", vocabulary=("phone", "tv")),
        Field("timestamp", "request", "time"),
        Field("country", "user", "category", vocabulary=("de", "fr")),
        Field("nickname", "user", "id"),
        Field("price", "item", "number"),
    )
)
PHONE, TV = 2, 3  # codes
STEP = {PHONE: 1, TV: 4}
DE, FR = 2, 3
START = {DE: 0, FR: 6}
CONFIG = ModelConfig(embedding_dim=16, blocks=1, heads=2, dropout=0.1, history_length=6, terms=["meaning", "feedback"])


def walks(n_users=300, seed=0):
    """On a phone everybody goes on by one item, on a tv by four; users start where their country does."""
    rng = np.random.default_rng(seed)
    countries = rng.integers(2, 4, n_users)
    items, devices = [], []
    for country in countries:
        codes = rng.integers(2, 4, rng.integers(3, 7))
        steps = [STEP[code] for code in codes[1:]]
        items.append((START[country] + np.cumsum([0, *steps])) % N)
        devices.append(codes)
    return Ragged.from_rows(items, np.int64), Ragged.from_rows(devices, np.int32), countries.astype(np.int32)


def by_country():
    """The walks of users from Germany, and of those from France."""
    items, _, countries = walks()
    return ([row for row, own in zip(items, countries, strict=True) if own == country] for country in (DE, FR))


def sequences():
    items, devices, countries = walks()
    marks = Ragged(np.full(len(items.values), np.nan, np.float32), items.offsets)
    times = Ragged(np.arange(len(items.values)) * 3600.0, items.offsets)
    fields = {RATING_KEY: marks, "event.device": devices, "event.timestamp": times, "user.country": countries}
    return Sequences(items, hold_out(items, 0.2, 0), N, fields, ["device", "timestamp"])


def fitted(config=CONFIG, repeats=False):
    text = np.random.default_rng(1).normal(size=(N, 12)).astype(np.float32)
    known = sequences()
    counts = np.bincount(known.items.values, minlength=N)
    weights = ItemWeightSettings(neighbours=4)
    ids = np.arange(N).astype(str).astype(object)
    model = Hybrid(Catalogue(ids, text), counts, config, weights, seed=3, schema=SCHEMA, repeats=repeats)
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
    batches = training_batches(known, 16, 6, seed=1, epochs=16, keys=model.reads)
    model.fit(batches, epochs=16, steps_per_epoch=len(batches) // 16, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained():
    return fitted()


#: For each item a history that ends with it, as users have them.
PATHS = [
    [0],
    [0, 1],
    [0, 1, 2],
    [6, 10, 2, 3],
    [0, 4],
    [0, 1, 5],
    [6],
    [6, 7],
    [6, 7, 8],
    [6, 7, 8, 9],
    [6, 10],
    [6, 7, 11],
]


def requests(histories, device=None, country=None):
    """Histories on a device and from a country; ``None``: left out."""
    known = {}
    if device is not None:
        known["request.device"] = np.full(len(histories), device, np.int32)
    if country is not None:
        known["user.country"] = np.full(len(histories), country, np.int32)
    return Queries.from_histories(histories, fields=known)


def test_fields_with_an_encoder_are_read_and_others_not(trained):
    assert list(trained.reads) == [
        RATING_KEY, "event.device", "event.timestamp", "request.device", "request.timestamp", "user.country",
    ]  # fmt: skip
    assert trained.query_spec["request.timestamp"] == tf.TensorSpec([None], tf.float64)
    assert trained.query_spec["event.device"] == tf.TensorSpec([None, None], tf.int32)


@pytest.mark.parametrize("device", [PHONE, TV])
def test_the_next_item_follows_the_device_of_the_request(trained, device):
    best = trained.score(requests(PATHS, device)).argmax(1)
    assert (best == (np.arange(N) + STEP[device]) % N).sum() >= N - 1


def test_without_the_device_both_next_items_are_ahead(trained):
    best = np.argsort(-trained.score(requests(PATHS)), axis=1)[:, :2]
    for item in range(N):
        assert set(best[item]) == {(item + 1) % N, (item + 4) % N}


@pytest.mark.slow
def test_a_model_that_reads_no_fields_answers_every_device_alike():
    model = fitted(CONFIG.model_copy(update={"fields": False}))
    assert list(model.reads) == [RATING_KEY]
    np.testing.assert_array_equal(model.score(requests([[0, 3]], PHONE)), model.score(requests([[0, 3]], TV)))


def test_fields_that_are_switched_off_are_as_if_left_out(trained):
    left_out = trained.score(requests([[3], [5]]))
    trained.query_fusion.reads.assign(0.0)
    np.testing.assert_allclose(trained.score(requests([[3], [5]], TV, FR)), left_out, rtol=1e-5)
    ignored = set(trained.ignored)
    trained.item_weights.context = {"device": 1.0}  # then the item-item weights read it
    still = set(trained.ignored)
    trained.item_weights.context = {}
    trained.query_fusion.reads.assign(1.0)
    assert ignored == {key for key in trained.reads if key.startswith(("request.", "user."))}
    assert ignored - still == {"request.device"} and trained.ignored == []


def test_a_user_without_a_history_is_answered_by_popularity_unless_fields_have_a_strength(trained):
    popularity = np.log1p(trained.train_counts.numpy())
    np.testing.assert_allclose(trained.score(requests([[]], country=FR))[0], popularity, rtol=1e-6)
    trained.query_fusion.alone.assign(4.0)
    try:
        told = [trained.score(requests([[]], country=country))[0] for country in (DE, FR)]
        counts = [np.bincount(np.concatenate([row[1:] for row in rows]), minlength=N) for rows in by_country()]
        ratio = np.log((counts[0] + 1) / (counts[1] + 1))
        assert np.corrcoef(told[0] - told[1], ratio)[0, 1] > 0.6
        np.testing.assert_allclose(trained.score(requests([[]]))[0], popularity, rtol=1e-6)
    finally:
        trained.query_fusion.alone.assign(0.0)


def test_the_folded_score_is_the_score(trained):
    trained.query_fusion.alone.assign(2.0)
    trained.gates.discount.assign(0.1)
    try:
        folded, items = trained.fold(), trained.item_vectors()
        queries = requests([[], [3], []], TV, FR)
        query = {
            key: tf.constant(values)
            for key, values in queries.with_missing([*SCHEMA.of_history(), *SCHEMA.of_query()])
            .inputs(N, trained.reads)
            .items()
        }
        asked = folded.requests(items, query)
        scores = asked["query"].numpy() @ folded.vectors.T
        np.add.at(scores, (np.arange(3)[:, np.newaxis], asked["pairs"][0].numpy()), asked["pairs"][1].numpy())
        scores += asked["unknown"].numpy()[:, np.newaxis] * folded.prior
        np.testing.assert_allclose(scores, trained.score(queries), rtol=1e-4, atol=1e-4)
    finally:
        trained.query_fusion.alone.assign(0.0)
        trained.gates.discount.assign(0.0)


def test_padding_and_batch_neighbours_change_nothing(trained):
    few = Queries.from_histories([[1, 2], [5]], fields={"request.device": np.array([PHONE, TV], np.int32)})
    alone = np.vstack([trained.score(few.slice(row, row + 1)) for row in range(2)])
    np.testing.assert_allclose(trained.score(few), alone, rtol=1e-4, atol=1e-5)


def test_metrics_of_compile_read_the_request_of_the_last_target(trained):
    batch = next(iter(training_batches(sequences(), 8, 6, seed=1, epochs=1, keys=trained.reads)))
    targets, scores = trained.targets_and_predictions(batch)
    assert (scores.numpy().argmax(1) == targets.numpy()).mean() > 0.9


def test_a_saved_model_reads_the_same_fields(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    queries = requests([[3], []], TV, FR)
    np.testing.assert_allclose(loaded.score(queries), trained.score(queries), rtol=1e-5)
    assert [field.key for field in loaded.schema] == [field.key for field in trained.schema]


def test_the_gates_learn_from_known_items_only_where_users_come_back():
    known = sequences()
    batch = next(iter(training_batches(known, 64, 6, seed=1, epochs=1)))
    losses = []
    for repeats in (False, True):
        text = np.random.default_rng(1).normal(size=(N, 12)).astype(np.float32)
        ids = np.arange(N).astype(str).astype(object)
        counts = np.bincount(known.items.values, minlength=N)
        config = CONFIG.model_copy(update={"terms": ["meaning", "behaviour"]})
        model = Hybrid(Catalogue(ids, text), counts, config, seed=3, schema=SCHEMA, repeats=repeats)
        model.compute_loss(batch)
        losses.append(float(model.gate_loss.result()))
    assert losses[1] > losses[0]  # over more items


def test_context_in_words_is_what_the_queries_say(trained):
    asked = trained.recommend(histories=[[str(i) for i in path] for path in PATHS], context=[{"device": "tv"}] * N, k=1)
    scores = trained.score(requests(PATHS, TV))
    for row, path in enumerate(PATHS):
        scores[row, path] = -np.inf
    assert asked["item_id"].tolist() == scores.argmax(1).astype(str).tolist()
    as_key = trained.recommend(histories=[["0"]], context=[{"request.device": "tv"}], k=1)
    assert as_key["item_id"].tolist() == asked["item_id"].tolist()[:1]


def test_items_of_the_history_come_back_where_users_do(trained):
    trained.repeats = True
    try:
        told = trained.recommend(histories=[["0", "1"]], k=N)
        assert {"0", "1"} <= set(told["item_id"]) and len(told) == N
    finally:
        trained.repeats = False
    assert not {"0", "1"} & set(trained.recommend(histories=[["0", "1"]], k=N)["item_id"])


@pytest.mark.slow
def test_scenes_have_gates_of_their_own_unless_there_is_no_such_column():
    config = CONFIG.model_copy(update={"scene": "device"})
    model = fitted(config)
    best = [model.score(requests(PATHS, device)).argmax(1) for device in (PHONE, TV)]
    for device, found in zip((PHONE, TV), best, strict=True):
        assert (found == (np.arange(N) + STEP[device]) % N).sum() >= N - 1
    assert model.scene.key == "request.device"
    assert np.abs(model.scene_experts.narrow.numpy()).max() > 1e-3  # they were trained
    again = Hybrid.from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_allclose(again.score(requests(PATHS, TV)), model.score(requests(PATHS, TV)), atol=1e-5)
    off = Hybrid.from_config({**model.get_config(), "config": {**config.model_dump(), "scene": None}})
    assert off.scene is None and off.scene_experts is None
    model.query_fusion.reads.assign(0.0)
    np.testing.assert_array_equal(model.score(requests(PATHS, TV)), model.score(requests(PATHS, PHONE)))


def test_on_joined_data_an_event_is_in_the_domain_of_its_item():
    data = two_domains()
    model = build_hybrid(data, ExperimentConfig(model=ModelConfig(embedding_dim=8, blocks=0, history_length=8)))
    of_domain = model.schema["event.domain"].encode(["books", "films"]).tolist()
    past = [next(i for i in model.item_ids if i.startswith(name)) for name in ("books", "films")]
    queries, _ = queries_of(model, None, [past], None, [], None, None, None)
    assert queries.fields["event.domain"].values.tolist() == of_domain
    given = [[{"domain": "films"}, {}]]
    queries, _ = queries_of(model, None, [past], None, [], None, None, given)
    assert queries.fields["event.domain"].values.tolist() == [of_domain[1]] * 2

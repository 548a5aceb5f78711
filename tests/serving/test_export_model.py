"""A user's own model is exported with the same contract as a run."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.data import Queries, dataset_from_frames
from tfllmrec.errors import DataError, ModelError
from tfllmrec.serving.export import export
from tfllmrec.serving.layout import read_catalogue, read_manifest
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]
N, D = 20, 8
PHONE, TV = "i18", "i19"


class QueryModel(tf.keras.Model):
    """The mean of the item embeddings of the history, and an embedding of the device."""

    def __init__(self, items, devices):
        super().__init__()
        self.items, self.devices = items, tf.keras.layers.Embedding(devices, D)

    def call(self, inputs):
        there = tf.cast(inputs["history"] < N, tf.float32)[..., tf.newaxis]
        vectors = self.items(tf.minimum(inputs["history"], N - 1)) * there
        mean = tf.math.divide_no_nan(tf.reduce_sum(vectors, 1), tf.reduce_sum(there, 1))
        return mean + self.devices(inputs["request.device"])


class Model(tfrs.Model):
    def __init__(self, devices):
        super().__init__()
        self.items = tf.keras.layers.Embedding(N, D)
        self.query_model = QueryModel(self.items, devices)
        self.task = tfrs.tasks.Retrieval(remove_accidental_hits=True)

    def compute_loss(self, inputs, training=False):
        found = self.items(inputs["target"])
        return self.task(self.query_model(inputs), found, candidate_ids=inputs["target"], compute_metrics=False)


def planted():
    """On a phone everybody goes on to one item, on a tv to another, whatever came before."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(80):
        device = ("phone", "tv")[user % 2]
        for step, item in enumerate([*rng.choice(18, 3, replace=False), 18 + user % 2]):
            rows.append((f"u{user}", f"i{item}", step, device))
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "device"])
    items = pd.DataFrame(
        {"item_id": [f"i{i}" for i in range(N)], "title": [f"Item {i}" for i in range(N)],
         "categories": [("odd" if i % 2 else "even") for i in range(N)]}
    )  # fmt: skip
    return dataset_from_frames(events, items)


@pytest.fixture(scope="module")
def dataset():
    return planted()


@pytest.fixture(scope="module")
def model(dataset):
    tf.keras.utils.set_random_seed(1)
    device = dataset.schema["request.device"]
    events = dataset.events.sort_values(["user_index", "order"])
    items = events["item_index"].to_numpy().reshape(80, 4)
    batch = {
        "history": items[:, :3].astype(np.int32),
        "target": items[:, 3].astype(np.int32),
        "request.device": device.encode(events["device"].iloc[3::4]),
    }
    # Items that nobody goes on to are targets too, or nothing would tell them from the two.
    others = {key: values.copy() for key, values in batch.items()} | {"request.device": np.zeros(80, np.int32)}
    others["target"] = items[:, 0].astype(np.int32)
    both = {key: np.concatenate([batch[key], others[key]]) for key in batch}
    made = Model(device.size)
    made.compile(optimizer=tf.keras.optimizers.Adam(0.05))
    made.fit(tf.data.Dataset.from_tensor_slices(both).shuffle(160, seed=1).batch(160), epochs=60, verbose=0)
    return made


@pytest.fixture(scope="module")
def version(model, dataset, tmp_path_factory):
    return export(
        model, dataset, tmp_path_factory.mktemp("saved") / "towers", candidate_model=model.items,
        candidate_takes="item_index", tell=lambda line: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(version):
    return SavedModel.open(version)


def first(saved, device, history=("i3", "i5"), **given):
    context = None if device is None else [{"device": device}]
    return saved.recommend(histories=[list(history)], k=5, context=context, **given).item_id.tolist()


def test_the_device_decides(exported):
    assert first(exported, "phone")[0] == PHONE and first(exported, "tv")[0] == TV
    assert first(exported, "phone", history=[])[0] == PHONE  # a user of whom the device alone is known
    # Without it the score is that of the history, and neither is sure of its place.
    assert first(exported, "phone") != first(exported, None) != first(exported, "tv")


def test_scores_are_the_models_own(exported, model, dataset):
    index = {item: i for i, item in enumerate(dataset.items["item_id"])}
    query = {"history": tf.constant([[index["i3"], index["i5"]]]), "request.device": tf.constant([2])}
    device = dataset.schema["request.device"].vocabulary[0]
    own = (model.query_model(query) @ tf.transpose(model.items(tf.range(N)))).numpy()[0]
    found = exported.recommend(histories=[["i3", "i5"]], k=N, context=[{"device": device}])
    assert len(found) == N - 2 and set(found.reason) == {""}
    np.testing.assert_allclose(found.score, [own[index[item]] for item in found.item_id], rtol=1e-4)


def test_exclusions_filters_and_unknown_ids(exported):
    assert first(exported, "phone", exclude=[PHONE])[0] != PHONE
    assert first(exported, "phone", history=[PHONE])[0] != PHONE
    assert set(first(exported, "phone", allow=["i1", "i2", "nope"])) == {"i1", "i2"}
    assert all(int(item[1:]) % 2 for item in first(exported, "phone", categories=["odd"]))
    assert first(exported, "phone", history=["nope", "i3", "i5"]) == first(exported, "phone")
    assert len(exported.recommend(histories=[[]], k=3)) == 3


def test_other_signatures(exported, model, dataset):
    vectors = tf.math.l2_normalize(model.items(tf.range(N)), axis=1).numpy()
    index = {item: i for i, item in enumerate(dataset.items["item_id"])}
    cosines = vectors @ vectors[index["i4"]]
    cosines[index["i4"]] = -2
    best = dataset.items["item_id"].iloc[int(cosines.argmax())]
    assert exported.similar(["i4"], k=1).item_id.tolist() == [best]
    assert "search" not in exported._signatures and "search_full" not in exported._signatures
    explained = exported._call(
        "explain", history=np.array([["i3"]], object), ratings=np.zeros((1, 0), np.float32),
        items=np.array([["i4", "nope"]], object),
    )  # fmt: skip
    assert set(explained) == {"score", "because", "unknown"} and explained["because"].tolist() == [[b"", b""]]


def test_explanations_have_the_score_alone_and_no_reason(exported):
    [explained] = exported.explain(["i3"], ["i4"])
    assert set(explained.terms) == {"score"} and explained.because == ""


def test_entries_that_no_field_takes_and_unknown_ids_are_told(exported):
    found = exported.recommend(histories=[["i3", "nope"], []], k=2, context=[{"devise": "phone"}, {"device": "tv"}])
    assert found.attrs == {"unknown": [1, 0], "unread": [1, 0]}


def test_served_scores_of_a_query_with_fields_are_the_models_own(exported, model):
    queries = Queries.from_histories(
        [[1, 2], [], [3]], fields={"request.device": np.array([2, 3, 0], np.int32)}, user_ids=["u1", "u2", "u3"]
    )
    query = {
        "history": tf.constant(queries.inputs(N, ())["history"]),
        "request.device": tf.constant(queries.fields["request.device"]),
    }
    own = model.query_model(query) @ tf.transpose(model.items(tf.range(N)))
    np.testing.assert_allclose(exported.score(queries), own, rtol=1e-4, atol=1e-5)


def test_an_export_whose_signature_takes_no_fields_is_not_measured_without_them(exported, monkeypatch):
    known = exported._inputs
    monkeypatch.setattr(exported, "_inputs", lambda name: {k: v for k, v in known(name).items() if k != "context"})
    with pytest.raises(ModelError, match=r"the signature 'score' does not take context, .*earlier version"):
        exported.score(Queries.from_histories([[1, 2]], fields={"request.device": np.array([2], np.int32)}))


def test_the_manifest_has_the_schema_and_no_run(exported, version, dataset):
    manifest = read_manifest(version)
    assert manifest["schema"] == json.loads(json.dumps(dataset.schema.as_dict()))
    assert manifest["items"] == N and manifest["data_sha256"] == dataset.fingerprint and "run" not in manifest
    assert read_catalogue(version)["title"].tolist() == dataset.items["title"].tolist()
    with pytest.raises(ModelError, match=r"names no run: the version was exported from a model"):
        _ = exported.run


def test_what_does_not_fit_is_refused(model, dataset, tmp_path):
    with pytest.raises(ModelError, match=r"a Model has no query_model and candidate_model. Give both"):
        export(model, dataset, tmp_path / "made")
    with pytest.raises(ModelError, match=r"The candidate model takes item.colour: expected item_id, item_index, item."):
        export(model, dataset, tmp_path / "made", candidate_model=model.items, candidate_takes="item.colour")
    with pytest.raises(ModelError, match=r"query_model: expected a Keras model or layer, .*; found a function"):
        export(model, dataset, tmp_path / "made", query_model=lambda query: 0, candidate_model=np.zeros((N, D)))
    with pytest.raises(ModelError, match=r"expected finite numbers \[20, D\]"):
        export(model, dataset, tmp_path / "made", candidate_model=np.zeros((3, D)))
    assert not (tmp_path / "made").exists()


def test_fields_that_cannot_be_sent(exported):
    with pytest.raises(DataError, match="Expected fields of events and requests as names of one line without '='"):
        exported.recommend(histories=[["i3"]], context=[{"a=b": 1}])
    with pytest.raises(
        DataError, match=r"Expected fields for each event of the history, .* got \[2\] for \[1\] events"
    ):
        exported.recommend(histories=[["i3"]], event_fields=[[{}, {"device": "x"}]])


FRESH = """
import json, sys
import tensorflow as tf

signatures = tf.saved_model.load(sys.argv[1]).signatures
none = tf.fill((2, 0), "")
out = signatures["recommend_full"](
    history=tf.constant([["i3", "i5"]] * 2), ratings=tf.zeros((2, 0)), event_fields=none,
    context=tf.constant([["device=phone", ""], ["device=tv", "shape=round"]]),
    exclude=none, allow=none, categories=none, k=tf.constant([3, 3]), diversity=tf.zeros(2), pinned=none, skip=none,
    category_cap=tf.constant([0, 0]), tail_share=tf.zeros(2), label_weights=none,
    reasons=tf.constant([0, 0]),
)
assert not {name.split(".")[0] for name in sys.modules} & {"tfllmrec", "tensorflow_recommenders"}
print(json.dumps([out["item_ids"].numpy()[:, 0].astype(str).tolist(), out["titles"].numpy()[:, 0].astype(str).tolist(),
                  out["unread"].numpy().tolist()]))
"""


def test_a_fresh_process_without_tfllmrec_answers_the_same(version):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")}
    ran = subprocess.run(
        [sys.executable, "-c", FRESH, str(version)], env=environment, capture_output=True, text=True, cwd="/"
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == [[PHONE, TV], ["Item 18", "Item 19"], [0, 1]]


def test_the_embedded_server_answers_over_grpc_and_rest(version, serving):
    pytest.importorskip("grpc")
    from tfllmrec.client.client import Client
    from tfllmrec.client.messages import MESSAGES, tensor_proto

    with serving(version.parent) as server:
        for address in (f"grpc://127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}"):
            with Client(address, "towers", deadline_s=60) as client:
                history = ["i3", "i5"]
                for device, item in (("phone", PHONE), ("tv", TV)):
                    assert client.recommend(history, k=3, context={"device": device})[0].item_id == item
                    found = client.recommend(history, exclude=[item], k=3, context={"device": device})
                    assert item not in [line.item_id for line in found] and len(found) == 3
                some = client.recommend(history, allow=["i1", "i2", "nope"], context={"device": "tv"})
                assert {line.item_id for line in some} == {"i1", "i2"}
                odd = client.recommend(history, categories=["odd"], context={"device": "tv"})
                assert odd[0].item_id == TV and all(int(line.item_id[1:]) % 2 for line in odd)
                many = client.recommend_many(
                    [history, ["nope"], []], k=1, context=[{"device": "tv"}, {"device": "phone"}, None]
                )
                assert [answer[0].item_id for answer in many[:2]] == [TV, PHONE]
                assert [answer.unknown for answer in many] == [0, 1, 0]
                assert len(client.similar("i4", k=4, categories=["odd"])) == 4
        # Over gRPC inputs may be left out, whatever the number of rows.
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            request = MESSAGES["PredictRequest"]()
            request.model_spec.name, request.model_spec.signature_name = "towers", "recommend_full"
            request.inputs["context"].CopyFrom(
                tensor_proto("context", [["device=phone"], ["device=tv"], ["device=tv"]])
            )
            call = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict", lambda message: message.SerializeToString(),
                MESSAGES["PredictResponse"].FromString,
            )  # fmt: skip
            ids = call(request, timeout=60).outputs["item_ids"]
            assert [dim.size for dim in ids.tensor_shape.dim] == [3, 10]
            assert [value.decode() for value in ids.string_val[::10]] == [PHONE, TV, TV]

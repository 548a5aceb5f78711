"""What TF Serving replays before it serves a version."""

from collections import Counter

import numpy as np
import pytest

from tfllmrec.serving.layout import EXTRA, WARM_UP

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def logs(chain_version):
    """The requests of an export, read by the real message class."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(chain_version / EXTRA / WARM_UP)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def test_every_signature_is_asked_for_one_and_for_several(logs, chain_version):
    import tensorflow as tf

    asked = Counter()
    for log in logs:
        assert log.WhichOneof("log_type") == "predict_log" and not log.predict_log.HasField("response")
        spec, inputs = log.predict_log.request.model_spec, log.predict_log.request.inputs
        assert spec.name == "chain"
        arrays = {name: tf.make_ndarray(tensor) for name, tensor in inputs.items()}
        (batch,) = {len(array) for array in arrays.values()}
        asked[spec.signature_name, batch] += 1
        if "history" in arrays:
            assert arrays["history"].shape == (batch, 10) and arrays["history"][0, 0] == b"i0"
        if "k" in arrays:
            assert arrays["k"].tolist() == [10] * batch and arrays["k"].dtype == np.int32
    signatures = tf.saved_model.load(str(chain_version)).signatures
    assert asked == Counter({(name, batch): 1 for name in signatures for batch in (1, 8)})


@pytest.mark.long
@pytest.mark.slow
def test_the_embedded_server_replays_them_and_is_answered(logs, chain_version, monkeypatch):
    from tfllmrec.server.servable import Servable

    answers = []
    call = Servable.call

    def called(servable, signature, inputs):
        out = call(servable, signature, inputs)
        answers.append((signature, out))
        return out

    monkeypatch.setattr(Servable, "call", called)
    Servable(chain_version)
    assert [name for name, _ in answers] == [log.predict_log.request.model_spec.signature_name for log in logs]
    for name, out in answers:
        if "item_ids" in out:  # they are real questions: ids that the catalogue has, texts that say something
            assert out["item_ids"].shape[1] == 10 and all(out["item_ids"].ravel()), name
            assert out["unknown"].tolist() == [0] * len(out["unknown"])
            assert not out.get("unread", np.zeros(1)).any()


def test_an_input_that_is_not_known_is_left_empty(tmp_path):
    import tensorflow as tf

    from tfllmrec.client.messages import MESSAGES, values_of
    from tfllmrec.data.schema import Field, Schema
    from tfllmrec.serving.warm_up import write_warm_up

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.string, "item_id"),
            tf.TensorSpec((None, None), tf.string, "allow"),
            tf.TensorSpec((None,), tf.float32, "weight"),
            tf.TensorSpec((), tf.string, "mode"),
            tf.TensorSpec((None, None), tf.int32, "input_mask"),
            tf.TensorSpec((None, None), tf.int32, "input_type_ids"),
            tf.TensorSpec((None, None), tf.string, "context"),
            tf.TensorSpec((None, None), tf.string, "event_fields"),
        ]
    )
    def signature(item_id, allow, weight, mode, input_mask, input_type_ids, context, event_fields):
        return {"y": item_id}

    device, age = Field("device", "request", "category", ("tv", "phone")), Field("age", "user", "number", median=30.0)
    schema = Schema((device, age, Field("look", "event", "vector", width=2)))
    write_warm_up(tmp_path / "requests", "shop", {"one": signature}, ["a", "b"], ["text"], schema)
    records = list(tf.data.TFRecordDataset(str(tmp_path / "requests")).as_numpy_iterator())
    request = MESSAGES["PredictionLog"].FromString(records[1]).predict_log.request
    inputs = request.inputs
    assert values_of("item_id", inputs["item_id"]) == list("abababab")
    assert [dim.size for dim in inputs["allow"].tensor_shape.dim] == [8, 0] and inputs["allow"].dtype == 7
    assert values_of("weight", inputs["weight"]) == [0.0] * 8
    assert values_of("mode", inputs["mode"]) == ""
    assert values_of("input_mask", inputs["input_mask"]) == [[1] * 16] * 8
    assert values_of("input_type_ids", inputs["input_type_ids"]) == [[0] * 16] * 8
    assert values_of("context", inputs["context"]) == [["device=tv", "age=30"]] * 8
    assert values_of("event_fields", inputs["event_fields"]) == [["device=tv\nlook=1 1 "] * 10] * 8

import numpy as np
import pytest

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.protos import to_proto

pytestmark = pytest.mark.tf


def test_a_string_without_dimensions_is_an_array_too(tmp_path):
    import tensorflow as tf

    from tfllmrec.server.servable import Servable

    class Name(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.string, "x")])
        def __call__(self, x):
            return {"y": x}

    model = Name()
    tf.saved_model.save(model, str(tmp_path), signatures=model.__call__.get_concrete_function())
    answer = Servable(tmp_path).call("serving_default", {"x": np.array(b"me", object)})["y"]
    assert (answer.dtype, answer.shape, answer.item()) == (np.dtype(object), (), b"me")
    assert to_proto(answer).string_val == [b"me"]


def test_what_is_no_savedmodel_is_refused(tmp_path):
    from tfllmrec.server.servable import Servable

    with pytest.raises(RequestError, match=r"saved_model.pb is no SavedModel, or a part of one"):
        Servable(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(RequestError, match=r"saved_model.pb is no SavedModel, or a part of one"):
        Servable(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(RequestError, match="no graph with the tag 'serve'"):
        Servable(tmp_path)


def test_warm_up_requests_are_replayed_and_must_be_answered(tmp_path):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    from tfllmrec.server.servable import Servable

    class Twice(tf.Module):
        def __init__(self):
            super().__init__()
            self.calls = tf.Variable(0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def __call__(self, x):
            self.calls.assign_add(1)
            return {"y": 2 * x, "calls": self.calls.read_value()}

    model = Twice()
    tf.saved_model.save(model, str(tmp_path), signatures=model.__call__.get_concrete_function())
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()

    def warm_up(value):
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(value))
        with tf.io.TFRecordWriter(str(path)) as out:
            out.write(prediction_log_pb2.PredictionLog().SerializeToString())  # of another kind: passed over
            out.write(log.SerializeToString())

    warm_up([1.0])
    servable = Servable(tmp_path)
    answer = servable.call("serving_default", {"x": np.array([3], np.float32)})
    assert (answer["y"].tolist(), int(answer["calls"])) == ([6], 2)
    assert list(servable.signatures) == ["serving_default"]
    assert servable.metadata["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    warm_up(["a"])
    with pytest.raises(RequestError, match=r"warm-up request 1 of .* fails: Expects input x to be float32") as refused:
        Servable(tmp_path)
    assert refused.value.code is Code.INVALID_ARGUMENT

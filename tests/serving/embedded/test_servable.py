import gc
import threading

import ml_dtypes
import numpy as np
import pytest

from tfllmrec.serving.embedded.status import Code, RequestError

pytestmark = pytest.mark.tf

ARRAYS = {
    "string": np.array([[b"a", b""], [b"\xff", "ä".encode()]], object),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((2, 0), np.float32),
    "bool": np.array([True, False]),
    "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "complex64": np.array([1 + 2j], np.complex64),
}
ARRAYS |= {
    name: np.array([0, 1, 100], name)
    for name in (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    )
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_tensors_on_the_wire_are_what_they_were_and_what_tensorflow_reads(kind):
    import tensorflow as tf

    from tfllmrec.serving.embedded.servable import from_proto, to_proto

    array = ARRAYS[kind]
    for read in (
        from_proto("x", to_proto(array)),
        tf.make_ndarray(to_proto(array)),
        from_proto("x", tf.make_tensor_proto(array)),
    ):
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tolist() == array.tolist()


def test_a_few_bytes_that_declare_much_are_refused():
    import tensorflow as tf

    from tfllmrec.serving.embedded.servable import declared, from_proto

    proto = tf.make_tensor_proto(7, tf.int64, shape=[1000, 1000])  # one value on the wire
    assert proto.ByteSize() < 40
    asked = declared("x", proto, 8_000_000)
    assert (asked.dtype, asked.shape, asked.strides) == (np.int64, (1000, 1000), (0, 0))
    assert from_proto("x", proto, 8_000_000).sum() == 7_000_000
    said = r"Input x declares 1000000 elements of int64 \(a dimension of 0 counts as 1\): expected 7.63 MB at most"
    with pytest.raises(RequestError, match=said):
        from_proto("x", proto, 7_999_999)
    proto.tensor_shape.dim.add(size=0)  # no elements, and a million rows of a thousand
    with pytest.raises(RequestError, match=said):
        declared("x", proto, 7_999_999)
    del proto.tensor_shape.dim[-1]
    for _ in range(70):
        proto.tensor_shape.dim.add(size=1)
    with pytest.raises(RequestError, match="Input x: ") as refused:
        declared("x", proto)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_a_string_without_dimensions_is_an_array_too(tmp_path):
    import tensorflow as tf

    from tfllmrec.serving.embedded.servable import Servable, to_proto

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
    from tfllmrec.serving.embedded.servable import Servable

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

    from tfllmrec.serving.embedded.servable import Servable

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


@pytest.mark.parametrize("building", ["a function", "a graph"])
def test_tables_go_with_the_model(tmp_path, building):
    import tensorflow as tf

    from tfllmrec.serving.embedded.servable import Servable

    class Model(tf.Module):
        def __init__(self):
            initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2], tf.string, tf.int32)
            self.part = tf.Module()
            self.part.table = tf.lookup.StaticHashTable(initializer, 0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def index(self, x):
            return {"index": self.part.table.lookup(x)}

    model = Model()
    tf.saved_model.save(model, str(tmp_path), {"index": model.index})
    servable = Servable(tmp_path)
    inputs = {"x": np.array([b"b", b"c"], object)}
    assert servable.call("index", inputs)["index"].tolist() == [2, 0]
    table = servable._loaded.part.table.resource_handle
    assert tf.raw_ops.LookupTableSizeV2(table_handle=table).numpy() == 2
    del servable
    # As it may be when another model is loaded or saved.
    graph = tf.__internal__.FuncGraph("being built") if building == "a function" else tf.Graph()
    with graph.as_default():
        gc.collect()
    for thread in threading.enumerate():
        if thread.name == "give up":
            thread.join(10)
    with pytest.raises(tf.errors.NotFoundError):
        tf.raw_ops.LookupTableSizeV2(table_handle=table)

"""Tensors on the wire; TensorFlow is the oracle."""

import ml_dtypes
import numpy as np
import pytest

from tfllmrec.client.messages import MESSAGES
from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.protos import TYPES, declared, from_proto, to_proto

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
    from tensorflow.core.framework import tensor_pb2

    array = ARRAYS[kind]
    sent, theirs = to_proto(array).SerializeToString(), tf.make_tensor_proto(array)
    for read in (
        from_proto("x", MESSAGES["TensorProto"].FromString(sent)),
        tf.make_ndarray(tensor_pb2.TensorProto.FromString(sent)),
        from_proto("x", theirs),
        from_proto("x", MESSAGES["TensorProto"].FromString(theirs.SerializeToString())),
    ):
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tolist() == array.tolist()


def test_a_few_bytes_that_declare_much_are_refused():
    import tensorflow as tf

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


@pytest.mark.parametrize("sent", [0, 1, 2, 4])
@pytest.mark.parametrize("number", TYPES)
def test_the_last_value_stands_for_the_rest(number, sent):
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    dtype, field = TYPES[number]
    values = [b"a", b"b", b"c", b"d"] if field == "string_val" else [1, 0, 1, 0] * (2 if dtype.kind == "c" else 1)
    proto = tensor_pb2.TensorProto(dtype=number)
    getattr(proto, field).extend(values[: sent * len(values) // 4])
    for size in (2, 2):
        proto.tensor_shape.dim.add(size=size)
    expected = tf.make_ndarray(proto).tolist() if sent or field != "string_val" else [[b"", b""]] * 2
    read = from_proto("x", MESSAGES["TensorProto"].FromString(proto.SerializeToString()))
    assert read.dtype == dtype and read.shape == (2, 2)
    assert read.tolist() == expected


def test_types_are_those_of_tensorflow():
    import tensorflow as tf

    for number, (dtype, _) in TYPES.items():
        assert tf.as_dtype(number).as_numpy_dtype == dtype


def test_outputs_of_other_types_are_refused():
    with pytest.raises(RequestError, match="type float8_e5m2 cannot be sent") as refused:
        to_proto(np.zeros(1, ml_dtypes.float8_e5m2))
    assert refused.value.code is Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": 1, "float_val": [1, 2, 3]}, "3 values for 2 elements"),
        ({"dtype": 1, "tensor_content": b"12345"}, "do not go together"),
        ({"dtype": 6, "int_val": [1, 300]}, "do not go together"),
        ({"dtype": 7, "tensor_content": b"ab"}, "strings are expected in string_val"),
        ({"dtype": 20}, "20 is not a type of tensor"),
        ({"dtype": 0}, "0 is not a type of tensor"),
    ],
)
def test_content_that_does_not_fit_is_refused(fields, message):
    proto = MESSAGES["TensorProto"](**fields)
    proto.tensor_shape.dim.add(size=2)
    with pytest.raises(RequestError, match=message) as refused:
        from_proto("x", proto)
    assert refused.value.code is Code.INVALID_ARGUMENT

"""The messages that are built here, beside those of tensorflow-serving-api and TensorFlow's own tensors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfllmrec.client.messages import FIELDS, MESSAGES, STATES, dtype_name, tensor_proto, values_of
from tfllmrec.errors import DataError, ModelError

# The real ones --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """Message classes of TF Serving by name."""
    from google.protobuf import any_pb2, wrappers_pb2
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_management_pb2,
        model_pb2,
        predict_pb2,
        prediction_log_pb2,
        status_pb2,
    )

    homes = [
        any_pb2, wrappers_pb2, tensor_pb2, tensor_shape_pb2, tensor_shape_pb2.TensorShapeProto, meta_graph_pb2,
        get_model_metadata_pb2, get_model_status_pb2, model_management_pb2, model_pb2, predict_pb2, prediction_log_pb2,
        status_pb2,
    ]  # fmt: skip
    return {name: next(getattr(home, name) for home in homes if hasattr(home, name)) for name in FIELDS}


@pytest.mark.tf
def test_every_field_is_that_of_tf_serving(real):
    for name in FIELDS:
        ours = MESSAGES[name]
        theirs = {field.name: field for field in real[name].DESCRIPTOR.fields}
        for field in ours.DESCRIPTOR.fields:
            twin = theirs[field.name]
            assert (field.number, field.is_repeated, field.is_packed) == (twin.number, twin.is_repeated, twin.is_packed)
            # An enum's values travel as int32 do, and a message as its bytes.
            if name == "ReloadConfigRequest":
                assert (field.type, twin.type) == (field.TYPE_BYTES, twin.TYPE_MESSAGE)
                continue
            assert field.type == (field.TYPE_INT32 if twin.type == twin.TYPE_ENUM else twin.type), (name, field.name)
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                assert field.message_type.name == twin.message_type.name


@pytest.mark.tf
def test_the_states_are_those_of_tf_serving(real):
    assert {number: name for name, number in real["ModelVersionStatus"].State.items()} == STATES


def kinds_of_values():
    """One strategy for each type that a tensor may be made of."""
    numbers = [st.integers(-(2**31), 2**31 - 1), st.floats(width=32), st.booleans()]
    return [st.text(st.characters(exclude_categories=["Cs"]), max_size=5), *numbers]


@st.composite
def nested(draw):
    shape = draw(st.lists(st.integers(1, 3), max_size=3))
    values = draw(st.sampled_from(kinds_of_values()))

    def build(sizes):
        return [build(sizes[1:]) for _ in range(sizes[0])] if sizes else draw(values)

    return build(shape)


def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@given(nested())
def test_what_goes_in_comes_out(values):
    assert same(
        values_of("x", MESSAGES["TensorProto"].FromString(tensor_proto("x", values).SerializeToString())), values
    )


@pytest.mark.tf
@given(nested())
def test_tensorflow_reads_our_tensors_and_we_read_tensorflows(values):
    import tensorflow as tf

    real = type(tf.make_tensor_proto(0))
    read = tf.make_ndarray(real.FromString(tensor_proto("x", values).SerializeToString()))
    expected = np.array(values)
    if expected.dtype.kind == "U":
        expected = np.vectorize(str.encode, otypes=[object])(values)
    assert read.shape == np.shape(values)
    np.testing.assert_array_equal(read, expected.astype(read.dtype))
    dtype = {"f": tf.float32, "i": tf.int32, "b": tf.bool}.get(expected.dtype.kind, tf.string)
    # TensorFlow packs what is more than one number into tensor_content.
    written = tf.make_tensor_proto(values, dtype).SerializeToString()
    assert same(values_of("x", MESSAGES["TensorProto"].FromString(written)), values)


@pytest.mark.tf
def test_requests_and_answers_are_the_same_bytes(real):
    from tensorflow import make_tensor_proto

    def request(classes, tensor):
        spec = classes["ModelSpec"](name="made", signature_name="recommend", version_label="canary")
        asked = classes["PredictRequest"](model_spec=spec)
        asked.inputs["history"].CopyFrom(tensor([["", "50", "é"]]))
        return asked

    ours = request(MESSAGES, lambda values: tensor_proto("history", values))
    theirs = request(real, make_tensor_proto)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)

    asked = real["GetModelStatusRequest"].FromString(
        MESSAGES["GetModelStatusRequest"](
            model_spec=MESSAGES["ModelSpec"](name="made", version=MESSAGES["Int64Value"](value=0))
        ).SerializeToString()
    )
    # Version 0 was chosen, which is not the same as none.
    assert asked.model_spec.WhichOneof("version_choice") == "version" and asked.model_spec.version.value == 0

    status = real["GetModelStatusResponse"]()
    one = status.model_version_status.add(version=2**40, state="UNLOADING")
    one.status.error_code, one.status.error_message = "RESOURCE_EXHAUSTED", "too big"
    read = MESSAGES["GetModelStatusResponse"].FromString(status.SerializeToString()).model_version_status[0]
    assert (read.version, STATES[read.state], read.status.error_code) == (2**40, "UNLOADING", 8)
    assert read.status.error_message == "too big"

    metadata = real["GetModelMetadataResponse"]()
    found = real["SignatureDefMap"]()
    found.signature_def["similar"].inputs["item_id"].dtype = 7
    found.signature_def["similar"].inputs["item_id"].tensor_shape.dim.add(size=-1)
    metadata.metadata["signature_def"].Pack(found)
    any_value = MESSAGES["GetModelMetadataResponse"].FromString(metadata.SerializeToString()).metadata["signature_def"]
    read = MESSAGES["SignatureDefMap"].FromString(any_value.value).signature_def["similar"].inputs["item_id"]
    assert (dtype_name(read.dtype), [dim.size for dim in read.tensor_shape.dim]) == ("DT_STRING", [-1])


# By hand --------------------------------------------------------------------------------------------------------------


def tensor(dtype, shape, **values):
    made = MESSAGES["TensorProto"](dtype=dtype, **values)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (tensor(1, [2, 2], tensor_content=np.array([1, 2, 3, 4], "<f4").tobytes()), [[1.0, 2.0], [3.0, 4.0]]),
        (tensor(9, [2], tensor_content=np.array([-1, 2**40], "<i8").tobytes()), [-1, 2**40]),
        (tensor(2, [2], double_val=[0.1, 0.2]), [0.1, 0.2]),
        # A run of equal values at the end may be written once.
        (tensor(3, [2, 2], int_val=[1, 7]), [[1, 7], [7, 7]]),
        (tensor(7, [3], string_val=[b"\xe9"]), ["\ufffd"] * 3),
        (tensor(7, [2, 0]), [[], []]),
        (tensor(1, [0, 3]), []),
        (tensor(7, [2, 0, 3]), [[], []]),
        (tensor(3, [], int_val=[5]), 5),
    ],
)
def test_tensors_as_servers_write_them(given, values):
    assert same(values_of("x", given), values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tensor(14, [1]), "Output 'x' is of DT_14, which this client does not read"),
        (tensor(1, [2]), r"has 0 values, which do not fill its shape \[2\]"),
        (tensor(1, [1], float_val=[1, 2]), r"has 2 values, which do not fill its shape \[1\]"),
        (tensor(1, [2], tensor_content=b"12345678901"), r"has 11 bytes, which do not fill its shape \[2\]"),
    ],
)
def test_tensors_that_are_damaged(given, message):
    with pytest.raises(ModelError, match=message):
        values_of("x", given)


def test_a_text_that_is_none():
    with pytest.raises(DataError, match=r"Input 'text': .*is not valid Unicode text: surrogates not allowed"):
        tensor_proto("text", ["half a pair: \ud83d"])

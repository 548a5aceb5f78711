"""Any SavedModel, loaded to be asked by name of signature, as TF Serving does it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfllmrec.serving.embedded.batching import Joining
from tfllmrec.serving.embedded.status import Code, RequestError, invalid
from tfllmrec.serving.embedded.tensors import STRING, Signature, Tensors, TensorSpec, signature_of
from tfllmrec.serving.layout import EXTRA, MANIFEST, WARM_UP, has_scann, read_manifest
from tfllmrec.serving.loading import let_go_with, load

#: A few bytes may declare a tensor of any size (a single value stands for all): where expanding stops.
MAX_TENSOR_BYTES = 256 << 20
#: A tensor whose every value was sent takes at most so many times the bytes of the message: a small int64 is one byte.
EXPANSION = 8

# Where a TensorProto keeps values that are not raw bytes. TF Serving answers in these fields; C++ clients read them.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int8": "int_val",
    "int16": "int_val",
    "int32": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
}


class Servable:
    """One version of a model.

    Attributes:
      signatures: by name.
      metadata: the SignatureDefs as TF Serving prints them: plain JSON types.

    Args:
      folder: with ``saved_model.pb``.

    Raises:
      RequestError: it cannot be loaded, or one of its warm-up requests fails.
    """

    def __init__(self, folder: Path) -> None:
        self.definitions = _signature_definitions(folder / "saved_model.pb")
        ours = (folder / EXTRA / MANIFEST).is_file()
        try:
            manifest = read_manifest(folder) if ours else {}
            scann = has_scann(manifest)
            self._loaded = load(folder, scann)
        except Exception as error:  # TensorFlow raises nearly anything on a damaged SavedModel
            raise RequestError(Code.FAILED_PRECONDITION, f"{folder} cannot be loaded: {error}") from error
        let_go_with(self, self._loaded, scann)
        self._functions = dict(self._loaded.signatures)
        self.signatures = {name: _signature(self.definitions[name]) for name in self._functions}
        self.joining = {
            name: Joining(signature, ours, manifest.get("items", 0)) for name, signature in self.signatures.items()
        }
        self.calls = {name: partial(self.call, name) for name in self._functions}
        self._warm_up(folder / EXTRA / WARM_UP)

    def call(self, signature: str, inputs: Tensors) -> Tensors:
        """Runs a signature on checked inputs; blocks.

        Raises:
          RequestError: with TensorFlow's own code and text.
        """
        function, specs = self._functions[signature], self.signatures[signature].inputs
        try:
            fed = {
                name: tf.constant(tensor, tf.string if specs[name].dtype == STRING else None)
                for name, tensor in inputs.items()
            }
            return {name: _array(tensor.numpy()) for name, tensor in function(**fed).items()}
        except tf.errors.OpError as error:
            raise RequestError(Code(error.error_code), error.message) from error
        except Exception as error:
            raise RequestError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            name: json_format.MessageToDict(
                definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for name, definition in self.definitions.items()
        }

    def _warm_up(self, path: Path) -> None:
        """Replays what ``assets.extra`` has, so that no user's request waits while TensorFlow tunes the graph."""
        if not path.is_file():
            return
        for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
            log = prediction_log_pb2.PredictionLog.FromString(record)
            if not log.HasField("predict_log"):
                continue
            request: predict_pb2.PredictRequest = log.predict_log.request
            try:
                name, signature = signature_of(self.signatures, request.model_spec.signature_name, Code.NOT_FOUND)
                inputs = {key: from_proto(key, proto) for key, proto in request.inputs.items()}
                self.call(name, signature.checked(inputs))
            except RequestError as error:
                raise RequestError(error.code, f"warm-up request {number} of {path} fails: {error.message}") from error


def declared(name: str, proto: tensor_pb2.TensorProto, max_bytes: int = MAX_TENSOR_BYTES) -> np.ndarray:
    """An array of zeros with the type and shape of a tensor off the wire, to be checked before that is expanded.

    It takes no memory: one zero stands for all.

    Raises:
      RequestError: INVALID_ARGUMENT where type or shape are none, or the tensor would have more than ``max_bytes``.
    """
    if proto.tensor_shape.unknown_rank or any(dim.size < 0 for dim in proto.tensor_shape.dim):
        raise invalid(f"Input {name}: a tensor needs a known shape, got {_one_line(proto.tensor_shape)}")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    try:
        dtype = tf.as_dtype(proto.dtype)
        item_bytes = 16 if dtype == tf.string else dtype.size
        item = np.zeros((), dtype.as_numpy_dtype)
    except (TypeError, KeyError):
        raise invalid(f"Input {name}: {proto.dtype} is no type of tensor") from None
    # A dimension of 0 leaves no elements, and the others may still be of any size.
    elements = math.prod(max(size, 1) for size in shape)
    if elements * item_bytes > max_bytes:
        raise invalid(
            f"Input {name} declares {elements} elements of {dtype.name} (a dimension of 0 counts as 1): expected "
            f"{max_bytes / 2**20:.3g} MB at most"
        )
    try:
        return np.broadcast_to(item, shape)
    except ValueError as error:
        raise invalid(f"Input {name}: {error}") from None


def from_proto(name: str, proto: tensor_pb2.TensorProto, max_bytes: int = MAX_TENSOR_BYTES) -> np.ndarray:
    """A tensor off the wire; strings as ``bytes`` in an object array.

    Raises:
      RequestError: as :func:`declared`; INVALID_ARGUMENT where type, shape and content do not go together.
    """
    shape = declared(name, proto, max_bytes).shape
    try:
        array = tf.make_ndarray(proto)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise invalid(f"Input {name}: type, shape and content do not go together: {error}") from None
    return array.reshape(shape)


def to_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """A tensor for the wire."""
    if array.dtype == STRING:
        proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=array.ravel().tolist())
    elif array.dtype.name in _FIELDS:
        proto = tensor_pb2.TensorProto(dtype=tf.as_dtype(array.dtype).as_datatype_enum)
        getattr(proto, _FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    else:
        return tf.make_tensor_proto(array)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def _signature_definitions(path: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """The signatures of the graph that is for serving, the ones that TensorFlow uses itself included."""
    try:
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except Exception as error:
        raise RequestError(Code.FAILED_PRECONDITION, f"{path} is no SavedModel, or a part of one: {error}") from error
    for graph in saved.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            definitions = {}
            for name, definition in graph.signature_def.items():
                definitions[name] = meta_graph_pb2.SignatureDef()
                definitions[name].CopyFrom(definition)
            return definitions
    raise RequestError(Code.NOT_FOUND, f"{path} has no graph with the tag 'serve'")


def _signature(definition: meta_graph_pb2.SignatureDef) -> Signature:
    return Signature(
        {name: _spec(info) for name, info in definition.inputs.items()},
        {name: _spec(info) for name, info in definition.outputs.items()},
        {name: from_proto(name, proto) for name, proto in definition.defaults.items()},
    )


def _spec(info: meta_graph_pb2.TensorInfo) -> TensorSpec:
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype), shape)


def _array(value: Any) -> np.ndarray:
    # TensorFlow gives a string without dimensions as it is, in no array.
    return np.asarray(value, object if isinstance(value, bytes) else None)


def _one_line(message: Any) -> str:
    return " ".join(str(message).split())

"""The messages of TF Serving's gRPC services that the client needs, built at import without TensorFlow.

``tensorflow-serving-api`` has them too, but importing it imports TensorFlow, which a web server that only requests
recommendations does not need. On the wire a message consists of field numbers and values: message names do not occur,
an enum is an integer, and unknown fields are skipped. Therefore the fields listed here, with the numbers of
TF Serving's ``.proto`` files, read and write the same bytes. The descriptor pool is private, so that both packages can
be used in one process.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ..errors import DataError, ModelError
from .ratings import LARGEST_FLOAT32

# message -> field -> (number, type); "repeated T" and "map T" (from string to T) as in a .proto file.
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Dim": {"size": (1, "int64"), "name": (2, "string")},
    "TensorShapeProto": {"dim": (2, "repeated Dim"), "unknown_rank": (3, "bool")},
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShapeProto"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "repeated float"),
        "double_val": (6, "repeated double"),
        "int_val": (7, "repeated int32"),
        "string_val": (8, "repeated bytes"),
        "scomplex_val": (9, "repeated float"),
        "int64_val": (10, "repeated int64"),
        "bool_val": (11, "repeated bool"),
        "dcomplex_val": (12, "repeated double"),
        "half_val": (13, "repeated int32"),
        "uint32_val": (16, "repeated uint32"),
        "uint64_val": (17, "repeated uint64"),
    },
    "Int64Value": {"value": (1, "int64")},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, "Int64Value"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "PredictRequest": {
        "model_spec": (1, "ModelSpec"),
        "inputs": (2, "map TensorProto"),
        "output_filter": (3, "repeated string"),
    },
    "PredictResponse": {"outputs": (1, "map TensorProto"), "model_spec": (2, "ModelSpec")},
    "PredictLog": {"request": (1, "PredictRequest"), "response": (2, "PredictResponse")},
    "PredictionLog": {"predict_log": (6, "PredictLog")},
    "TensorInfo": {"name": (1, "string"), "dtype": (2, "int32"), "tensor_shape": (3, "TensorShapeProto")},
    "SignatureDef": {"inputs": (1, "map TensorInfo"), "outputs": (2, "map TensorInfo"), "method_name": (3, "string")},
    "SignatureDefMap": {"signature_def": (1, "map SignatureDef")},
    "GetModelMetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "repeated string")},
    "GetModelMetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, "map Any")},
    "GetModelStatusRequest": {"model_spec": (1, "ModelSpec")},
    "StatusProto": {"error_code": (1, "int32"), "error_message": (2, "string")},
    "ModelVersionStatus": {"version": (1, "int64"), "state": (2, "int32"), "status": (3, "StatusProto")},
    "GetModelStatusResponse": {"model_version_status": (1, "repeated ModelVersionStatus")},
    # The config is a ModelServerConfig, serialized.
    "ReloadConfigRequest": {"config": (1, "bytes")},
    "ReloadConfigResponse": {"status": (1, "StatusProto")},
}
#: Our own service, ``tfllmrec.EventService`` with the method ``SendEvents``; an event is one JSON object, as in REST.
EVENT_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "SendEventsRequest": {"events": (1, "repeated bytes")},
    "RefusedEvent": {"event": (1, "int64"), "reason": (2, "string")},
    "SendEventsResponse": {
        "accepted": (1, "int64"),
        "duplicates": (2, "int64"),
        "refused": (3, "repeated RefusedEvent"),
        "late": (4, "int64"),
        "skewed": (5, "int64"),
    },
}
#: ``ModelVersionStatus.State``.
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}

# DataType -> (name, the field that holds its values, the code for the struct module to unpack tensor_content).
_DTYPES = {
    1: ("DT_FLOAT", "float_val", "f"),
    2: ("DT_DOUBLE", "double_val", "d"),
    3: ("DT_INT32", "int_val", "i"),
    7: ("DT_STRING", "string_val", "s"),
    9: ("DT_INT64", "int64_val", "q"),
    10: ("DT_BOOL", "bool_val", "?"),
}
_DTYPE_OF = {str: 7, float: 1, int: 3, bool: 10}


def message_classes(declared_fields: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, Any]:
    """Returns message classes by name, built from a table such as :data:`FIELDS` in a descriptor pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="tfllmrec.proto", package="tfllmrec", syntax="proto3")
    for name, fields in declared_fields.items():
        message = file.message_type.add(name=name)
        for field, (number, declared) in fields.items():
            label, _, kind = declared.rpartition(" ")
            if label == "map":
                # protoc compiles map<string, T> to repeated entries of a nested message.
                entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                _add_field(entry, "key", 1, "string")
                _add_field(entry, "value", 2, kind)
                kind = f"{name}.{entry.name}"
            _add_field(message, field, number, kind, repeated=bool(label))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"tfllmrec.{name}") for name in declared_fields}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def _add_field(message: Any, name: str, number: int, kind: str, repeated: bool = False) -> None:
    field = message.field.add(name=name, number=number)
    field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
    if kind[0].isupper():
        field.type, field.type_name = field.TYPE_MESSAGE, f".tfllmrec.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")


#: Message classes by name, such as ``MESSAGES["PredictRequest"]``.
MESSAGES = message_classes(FIELDS | EVENT_FIELDS)


def dtype_name(dtype: int) -> str:
    """Returns the name of a type, such as ``DT_STRING``; ``DT_`` and the number for types that no signature uses."""
    return _DTYPES[dtype][0] if dtype in _DTYPES else f"DT_{dtype}"


def tensor_proto(name: str, values: Any) -> Any:
    """Returns a ``TensorProto`` of nested lists of ``str``, ``float``, ``int`` (int32) or ``bool``.

    Args:
      name: The name of the input, for error messages.
      values: The nested lists.

    Raises:
      DataError: Rows of one level differ in length, the values differ in type, there are no values (and so no type), a
        text is not valid Unicode, or a number does not fit float32 or int32.
    """
    flat = list(_leaves(values))
    kinds = {type(value) for value in flat}
    if len(kinds) != 1 or not kinds <= set(_DTYPE_OF):
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no value"
        raise DataError(f"Input {name!r}: expected values of one type, str, float, int or bool; got {found}.")
    shape = _shape(values)
    if not _fits(values, shape):
        raise DataError(f"Input {name!r}: expected rows of one length, as in {shape}; pad the shorter ones.")
    dtype = _DTYPE_OF[kinds.pop()]
    if dtype == 1 and (large := [value for value in flat if LARGEST_FLOAT32 < abs(value) < math.inf]):
        raise DataError(f"Input {name!r}: expected values of at most {LARGEST_FLOAT32:.4g} (float32), got {large[0]}.")
    tensor = MESSAGES["TensorProto"](dtype=dtype)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    try:
        getattr(tensor, _DTYPES[dtype][1]).extend([v.encode() for v in flat] if dtype == 7 else flat)
    except UnicodeEncodeError as error:
        raise DataError(f"Input {name!r}: {error.object!r} is not valid Unicode text: {error.reason}.") from error
    except ValueError as error:  # an integer beyond int32
        raise DataError(f"Input {name!r}: {error}.") from error
    return tensor


def value_count(tensors: Iterable[Any]) -> int:
    """Counts the values that the shapes of ``TensorProto`` messages declare, sent or not; a size of 0 counts as 1."""
    return sum(math.prod(max(dim.size, 1) for dim in tensor.tensor_shape.dim) for tensor in tensors)


def values_of(name: str, tensor: Any) -> Any:
    """Returns the values of a ``TensorProto`` as nested lists; strings are decoded, with U+FFFD for invalid UTF-8.

    Servers may pack numbers into ``tensor_content``, and may send a run of equal values at the end only once.

    Raises:
      ModelError: The type is not supported, or the values do not fill the shape.
    """
    if tensor.dtype not in _DTYPES:
        raise ModelError(f"Output {name!r} is of {dtype_name(tensor.dtype)}, which this client does not read.")
    _, field, code = _DTYPES[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    size = math.prod(shape)
    if code == "s":
        flat = [value.decode(errors="replace") for value in tensor.string_val]
    elif tensor.tensor_content:
        count, rest = divmod(len(tensor.tensor_content), struct.calcsize(code))
        if rest:
            raise ModelError(
                f"Output {name!r} has {len(tensor.tensor_content)} bytes, which do not fill its shape {shape}."
            )
        flat = list(struct.unpack(f"<{count}{code}", tensor.tensor_content))
    else:
        flat = list(getattr(tensor, field))
    if flat:
        flat += flat[-1:] * (size - len(flat))
    if len(flat) != size:
        raise ModelError(f"Output {name!r} has {len(flat)} values, which do not fill its shape {shape}.")
    return _nested(iter(flat), shape)


def _nested(flat: Iterator[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return next(flat)
    if len(shape) == 1:
        return list(islice(flat, shape[0]))
    return [_nested(flat, shape[1:]) for _ in range(shape[0])]


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, list | tuple):
        for value in values:
            yield from _leaves(value)
    else:
        yield values


def _shape(values: Any) -> list[int]:
    shape = []
    while isinstance(values, list | tuple):
        shape.append(len(values))
        values = values[0] if values else None
    return shape


def _fits(values: Any, shape: Sequence[int]) -> bool:
    if not shape or not isinstance(values, list | tuple):
        return not shape and not isinstance(values, list | tuple)
    return len(values) == shape[0] and all(_fits(value, shape[1:]) for value in values)

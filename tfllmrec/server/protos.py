"""Converts the tensors of TF Serving's gRPC messages to numpy arrays and back, without TensorFlow.

The functions accept ``TensorProto`` messages of :mod:`tfllmrec.client.messages` and of TensorFlow.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from tfllmrec.client.messages import MESSAGES
from tfllmrec.client.status import Code, RequestError, invalid
from tfllmrec.server.tensors import STRING

#: Largest size of an expanded tensor. A few bytes may declare a tensor of any size, because a single value can
#: represent all values.
MAX_TENSOR_BYTES = 256 << 20
#: A tensor whose values were all sent takes at most this many times the bytes of the message, because a small int64 is
#: sent as a single byte.
EXPANSION = 8

#: For each ``DataType`` (tensorflow/core/framework/types.proto): the numpy type, and the field that contains the values
#: unless they are sent as raw bytes. TF Serving answers with these fields, and C++ clients read them.
TYPES: dict[int, tuple[np.dtype, str]] = {
    1: (np.dtype(np.float32), "float_val"),
    2: (np.dtype(np.float64), "double_val"),
    3: (np.dtype(np.int32), "int_val"),
    4: (np.dtype(np.uint8), "int_val"),
    5: (np.dtype(np.int16), "int_val"),
    6: (np.dtype(np.int8), "int_val"),
    7: (STRING, "string_val"),
    8: (np.dtype(np.complex64), "scomplex_val"),
    9: (np.dtype(np.int64), "int64_val"),
    10: (np.dtype(np.bool_), "bool_val"),
    14: (np.dtype(ml_dtypes.bfloat16), "half_val"),
    17: (np.dtype(np.uint16), "int_val"),
    18: (np.dtype(np.complex128), "dcomplex_val"),
    19: (np.dtype(np.float16), "half_val"),
    22: (np.dtype(np.uint32), "uint32_val"),
    23: (np.dtype(np.uint64), "uint64_val"),
}
_NUMBERS = {dtype: number for number, (dtype, _) in TYPES.items()}


def declared(name: str, proto: Any, max_bytes: int = MAX_TENSOR_BYTES) -> np.ndarray:
    """Returns an array of zeros with the type and shape of a received tensor, to check these before expanding it.

    The array takes no memory, because a single zero represents all elements.

    Args:
      name: The name of the input, for messages.
      proto: The tensor.
      max_bytes: The largest size of the expanded tensor.

    Raises:
      RequestError: INVALID_ARGUMENT if the type or the shape is invalid, or the tensor would be too large.
    """
    if proto.tensor_shape.unknown_rank or any(dim.size < 0 for dim in proto.tensor_shape.dim):
        raise invalid(f"Input {name}: a tensor needs a known shape, got {_one_line(proto.tensor_shape)}")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype not in TYPES:
        raise invalid(f"Input {name}: {proto.dtype} is not a type of tensor")
    dtype, _ = TYPES[proto.dtype]
    item_bytes = 16 if dtype == STRING else dtype.itemsize
    # With a dimension of 0, there are no elements, but the other dimensions may still be of any size.
    elements = math.prod(max(size, 1) for size in shape)
    if elements * item_bytes > max_bytes:
        raise invalid(
            f"Input {name} declares {elements} elements of {'string' if dtype == STRING else dtype.name} (a dimension "
            f"of 0 counts as 1): expected {max_bytes / 2**20:.3g} MB at most"
        )
    try:
        return np.broadcast_to(np.zeros((), dtype), shape)
    except ValueError as error:
        raise invalid(f"Input {name}: {error}") from None


def from_proto(name: str, proto: Any, max_bytes: int = MAX_TENSOR_BYTES) -> np.ndarray:
    """Converts a received tensor to an array; strings become ``bytes`` in an object array.

    If fewer values were sent than the shape has, the last one is repeated, as in TensorFlow.

    Args:
      name, proto, max_bytes: See :func:`declared`.

    Raises:
      RequestError: See :func:`declared`; INVALID_ARGUMENT if the type, the shape and the content do not fit together.
    """
    shape = declared(name, proto, max_bytes).shape
    dtype, field = TYPES[proto.dtype]
    size = math.prod(shape)
    try:
        if proto.tensor_content:
            if dtype == STRING:
                raise ValueError("strings are expected in string_val, found tensor_content")
            return np.frombuffer(proto.tensor_content, dtype).reshape(shape).copy()
        sent = getattr(proto, field)
        if dtype == STRING:
            values = np.empty(len(sent), object)
            values[:] = list(sent)
        elif field == "half_val":
            values = np.fromiter(sent, np.uint16, len(sent)).view(dtype)
        elif dtype.kind == "c":
            values = np.fromiter(sent, dtype.type(0).real.dtype, len(sent)).view(dtype)
        else:
            values = np.fromiter(sent, dtype, len(sent))
        if len(values) > size:
            raise ValueError(f"{len(values)} values for {size} elements")
        if len(values) < size:
            last = values[-1] if len(values) else b"" if dtype == STRING else dtype.type(0)
            values = np.concatenate([values, np.full(size - len(values), last, dtype)])
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(f"Input {name}: type, shape and content do not go together: {error}") from None
    return values.reshape(shape)


def to_proto(array: np.ndarray) -> Any:
    """Converts an array to a ``TensorProto`` of :mod:`tfllmrec.client.messages`.

    Raises:
      RequestError: UNIMPLEMENTED if :data:`TYPES` does not have the type of the array.
    """
    if array.dtype not in _NUMBERS:
        raise RequestError(Code.UNIMPLEMENTED, f"outputs of the type {array.dtype} cannot be sent over gRPC here")
    number = _NUMBERS[array.dtype]
    proto = MESSAGES["TensorProto"](dtype=number)
    field = TYPES[number][1]
    flat = array.ravel()
    if field == "half_val":
        flat = flat.view(np.uint16)
    elif array.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    getattr(proto, field).extend(flat.tolist())
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def _one_line(message: Any) -> str:
    return " ".join(str(message).split())

"""Converts TF Serving's JSON: the body of a ``:predict`` request to tensors, and the tensors of an answer to JSON.

The rules are those of TF Serving's REST API (and of its ``json_tensor.cc``): ``instances`` is a list with an object for
each row, ``inputs`` has a tensor for each name. For a model with a single input, the name may be omitted. Lists must be
rectangular. Binary strings are ``{"b64": "..."}``. Numbers are not converted if this would lose information: ``1.5`` is
not accepted for an int32, nor ``true`` for a float. ``NaN`` and ``Infinity`` are written without quotes, as in
JavaScript.
"""

from __future__ import annotations

import base64
import binascii
import gc
import json
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from tfllmrec.client.ratings import LARGEST_FLOAT32
from tfllmrec.client.status import Code, RequestError, invalid
from tfllmrec.server.tensors import STRING, Tensors, TensorSpec, name_of

JSON_TYPES = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number", type(None): "Null"}
# The number of bits of the mantissa (for integers) and the largest value; larger numbers could not be stored exactly.
FLOATS = {
    "float16": (11, 65504.0),
    "bfloat16": (8, 3.3895314e38),
    "float32": (24, LARGEST_FLOAT32),
    "float64": (53, 1.7976931348623157e308),
}
SHOWN_CHARACTERS = 80
MAX_RANK = 64  # numpy's
#: Number of values that are written in one step, which takes a few milliseconds, during which no other thread runs.
VALUES_AT_ONCE = 1 << 14


def parse(body: bytes) -> dict[str, Any]:
    """Parses the body of a request to an object.

    Raises:
      RequestError: INVALID_ARGUMENT if the body is not UTF-8, not JSON, or not an object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    # A document has no reference cycles. Searching for them while millions of lists are created takes several times as
    # long as creating the lists, and no other thread runs in the meantime.
    collects = gc.isenabled()
    gc.disable()
    try:
        document = json.loads(body.decode(), parse_float=_float)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: too deeply nested") from None
    except ValueError as error:  # not UTF-8, or an integer with thousands of digits
        raise invalid(f"JSON Parse error: {error}") from None
    finally:
        if collects:
            gc.enable()
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_shown(document)} Is not object")
    return document


def _float(text: str) -> float:
    """Parses a number with a point or an exponent; not called for ``Infinity``.

    Raises:
      RequestError: INVALID_ARGUMENT if the number is too large for a float64.
    """
    number = float(text)
    if math.isinf(number):
        shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
        raise invalid(f"JSON Parse error: Number too big to be stored in double: {shown}")
    return number


def signature_name(document: Mapping[str, Any]) -> str:
    """Returns the ``signature_name`` of a document, or ``""`` if there is none.

    Raises:
      RequestError: INVALID_ARGUMENT if it is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def decode(document: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> tuple[Tensors, bool]:
    """Returns the tensors of a request, and whether they are given by rows (``instances``).

    Args:
      document: The result of :func:`parse`.
      specs: The inputs of the signature.

    Raises:
      RequestError: INVALID_ARGUMENT if the document is invalid (the message names the value, the row and the input);
        UNIMPLEMENTED for a type that JSON cannot represent.
    """
    if "instances" in document and "inputs" in document:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        return _rows(document["instances"], specs), True
    if "inputs" in document:
        return _columns(document["inputs"], specs), False
    raise invalid("Missing 'inputs' or 'instances' key")


def encode(outputs: Tensors, rows: bool) -> bytes:
    """Encodes an answer: ``{"predictions": [...]}`` by rows, ``{"outputs": ...}`` by columns.

    Strings are written as text, but as ``{"b64": ...}`` if the name of the output ends in ``_bytes``. A string that is
    not UTF-8, with which TF Serving's answer would be unreadable, is written as ``{"b64": ...}``, too. A float32 is
    written with the fewest digits that distinguish it from its neighbours.

    Args:
      outputs: The outputs by name.
      rows: Whether to encode by rows.

    Raises:
      RequestError: INVALID_ARGUMENT if ``rows`` is set and the outputs do not have the same number of rows, or if an
        output has a type that JSON cannot represent.
    """
    if not rows:
        texts = {name: _text_of(name, tensor) for name, tensor in outputs.items()}
        outer = _object(texts) if len(texts) > 1 else next(iter(texts.values()))
        return _object({"outputs": outer}).encode()
    sizes = {}
    for name, tensor in outputs.items():
        if not tensor.ndim:
            raise invalid(f"Tensor name: {name} has no shape information; ask in the 'inputs' format")
        sizes[name] = len(tensor)
        expected = next(iter(sizes.values()))
        if len(tensor) != expected:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(tensor)} expecting: {expected}")
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        predictions = _text_of(name, tensor)
    else:
        predictions = f"[{','.join(_text_of_rows(outputs))}]"
    return _object({"predictions": predictions}).encode()


def _text_of(name: str, tensor: np.ndarray) -> str:
    """Writes a tensor as JSON, in steps of :data:`VALUES_AT_ONCE` values, between which other threads may run."""
    if tensor.size <= VALUES_AT_ONCE:
        return _dump(_plain(name, tensor))
    each = tensor.size // len(tensor)
    if each > VALUES_AT_ONCE:
        return f"[{','.join(_text_of(name, row) for row in tensor)}]"
    count = VALUES_AT_ONCE // each
    steps = (tensor[start : start + count] for start in range(0, len(tensor), count))
    return f"[{','.join(_dump(_plain(name, step))[1:-1] for step in steps)}]"


def _text_of_rows(outputs: Tensors) -> Iterator[str]:
    """Yields texts of JSON objects separated by commas, one object for each row of the outputs."""
    rows = len(next(iter(outputs.values())))
    each = sum(tensor.size for tensor in outputs.values()) // max(rows, 1)
    if each > VALUES_AT_ONCE:
        for row in range(rows):
            yield _object(
                {name: _text_of(name, np.asarray(tensor[row], tensor.dtype)) for name, tensor in outputs.items()}
            )
        return
    count = VALUES_AT_ONCE // max(each, 1)
    for start in range(0, rows, count):
        columns = [_plain(name, tensor[start : start + count]) for name, tensor in outputs.items()]
        yield _dump([dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)])[1:-1]


def _object(texts: Mapping[str, str]) -> str:
    """Writes a JSON object whose values are already encoded."""
    return f"{{{','.join(f'{_dump(name)}:{text}' for name, text in texts.items())}}}"


def _rows(instances: Any, specs: Mapping[str, TensorSpec]) -> Tensors:
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {_shown(instances)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid("JSON Value: [] No values in 'instances' array")
    if not _is_object(instances[0]):
        if len(specs) != 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                f"tensorinfo_map ({', '.join(sorted(specs))})"
            )
        for row, instance in enumerate(instances):
            if _is_object(instance):
                raise invalid(f"Expecting value/list but got object at item {row} of input list")
        (name,) = specs
        return {name: _stacked(instances, name, specs[name], "")}
    for row, instance in enumerate(instances):
        if not _is_object(instance):
            raise invalid(f"Expecting object but got list at item {row} of input list")
        if instance.keys() != specs.keys():
            raise invalid(
                f"Failed to process element: {row} of 'instances' list. JSON object: {_shown(instance)} keys must be "
                f"equal to: {','.join(sorted(specs))}"
            )
    return {
        name: _stacked([instance[name] for instance in instances], name, spec, f" key: {name}")
        for name, spec in specs.items()
    }


def _stacked(values: list[Any], name: str, spec: TensorSpec, key: str) -> np.ndarray:
    """Stacks the values of an input, one for each row; the rows are checked one by one only to find the faulty one."""
    try:
        return _tensor(values, name, spec)
    except RequestError as whole:
        first: tuple[int, ...] | None = None
        for row, value in enumerate(values):
            where = f"Failed to process element: {row}{key} of 'instances' list. Error: "
            try:
                shape = _tensor(value, name, spec).shape
            except RequestError as error:
                raise RequestError(error.code, where + error.message) from None
            if first is None:
                first = shape
            if shape != first:
                raise invalid(f"{where}Expecting shape {list(first)} but got: {list(shape)}") from None
        raise whole


def _columns(inputs: Any, specs: Mapping[str, TensorSpec]) -> Tensors:
    if not _is_object(inputs):
        if len(specs) != 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                f"tensorinfo_map ({', '.join(sorted(specs))})"
            )
        (name,) = specs
        return {name: _tensor(inputs, name, specs[name])}
    for name in specs:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(inputs[name], name, spec) for name, spec in specs.items()}


def _tensor(value: Any, name: str, spec: TensorSpec) -> np.ndarray:
    """Converts nested lists to an array.

    The first list of each level determines the length of all lists of the level.
    """
    shape: list[int] = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        if not level:
            break
        level = level[0]
    if len(shape) > MAX_RANK:
        raise invalid(f"Input {name}: lists are nested {len(shape)} deep; expected {MAX_RANK} at most")
    leaves = [value]
    for depth, size in enumerate(shape):
        for item in leaves:
            if type(item) is not list:
                raise invalid(
                    f"Input {name}: JSON Value: {_shown(item)} found at incorrect level: {depth + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            if len(item) != size:
                raise invalid(
                    f"Input {name}: Encountered list at unexpected size: {len(item)} at level: {depth} expected size: "
                    f"{size}"
                )
        leaves = list(chain.from_iterable(leaves))
    if list in set(map(type, leaves)):
        raise invalid(f"Input {name}: Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return _array(leaves, name, spec.dtype).reshape(shape)


def _array(leaves: list[Any], name: str, dtype: np.dtype) -> np.ndarray:
    if dtype == STRING:
        _only(leaves, {str, dict}, name, dtype)
        array = np.empty(len(leaves), STRING)
        array[:] = [_bytes(leaf, name) for leaf in leaves]
        return array
    if dtype.kind == "b":
        _only(leaves, {bool}, name, dtype)
    elif dtype.kind in "iu":
        _only(leaves, {int}, name, dtype)
        limits = np.iinfo(dtype)
        for leaf in (min(leaves), max(leaves)) if leaves else ():
            if not limits.min <= leaf <= limits.max:
                raise _type_error(leaf, name, dtype)
    elif dtype.name in FLOATS:
        _only(leaves, {int, float}, name, dtype)
        bits, largest = FLOATS[dtype.name]
        for leaf in leaves:
            lossy = abs(leaf) >= 1 << bits if type(leaf) is int else largest < abs(leaf) < np.inf
            if lossy:
                what = f"Cannot convert JSON value: {_shown(leaf)} to {dtype.name} without loss of precision."
                raise invalid(f"Input {name}: {what}")
    else:
        raise RequestError(
            Code.UNIMPLEMENTED, f"Input {name}: Conversion of JSON Value to type: {dtype.name}; use gRPC for it"
        )
    return np.array(leaves, dtype)


def _only(leaves: list[Any], types: set[type], name: str, dtype: np.dtype) -> None:
    if not set(map(type, leaves)) <= types:
        raise _type_error(next(leaf for leaf in leaves if type(leaf) not in types), name, dtype)


def _type_error(leaf: Any, name: str, dtype: np.dtype) -> RequestError:
    kind = str(leaf) if isinstance(leaf, bool) else JSON_TYPES[type(leaf)]
    return invalid(f"Input {name}: JSON Value: {_shown(leaf)} Type: {kind} is not of expected type: {name_of(dtype)}")


def _bytes(leaf: str | dict[str, Any], name: str) -> bytes:
    try:
        if isinstance(leaf, str):
            return leaf.encode()
        if _is_object(leaf):
            raise invalid(f"Input {name}: JSON Value: {_shown(leaf)} not formatted correctly for base64 data")
        # The URL-safe alphabet and missing padding are accepted, too.
        text = leaf["b64"].replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        what = "Unable to base64 decode" if isinstance(leaf, dict) else f"JSON Parse error: {error}"
        raise invalid(f"Input {name}: {what}: {_shown(leaf)}") from None


def _is_object(value: Any) -> bool:
    """Returns whether a value is an object with names, and not one that represents bytes (``{"b64": ...}``)."""
    return isinstance(value, dict) and not (len(value) == 1 and isinstance(value.get("b64"), str))


def _plain(name: str, tensor: np.ndarray) -> Any:
    """Converts a tensor to nested lists of JSON values."""
    if tensor.dtype == STRING:
        as_bytes = name.endswith("_bytes")
        plain = np.empty(tensor.size, STRING)
        plain[:] = [_text(value, as_bytes) for value in tensor.ravel()]
        return plain.reshape(tensor.shape).tolist()
    if tensor.dtype.name in FLOATS:
        if tensor.dtype.name == "bfloat16":
            tensor = tensor.astype(np.float32)
        # Converted by way of the shortest decimal text, because a direct conversion to float64 would turn 0.1 into
        # 0.10000000149011612.
        return (tensor if tensor.dtype == np.float64 else tensor.astype("U").astype(np.float64)).tolist()
    if tensor.dtype.kind not in "iub":
        raise invalid(f"Failed to write JSON value for tensor type: {tensor.dtype.name} of output {name}; use gRPC")
    return tensor.tolist()


def _text(value: bytes, as_bytes: bool) -> Any:
    if not as_bytes:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(value).decode()}


def _dump(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _shown(value: Any) -> str:
    """Returns the first :data:`SHOWN_CHARACTERS` characters of a value as JSON, without encoding the rest."""
    if isinstance(value, int) and abs(value) > 1 << 64:
        return f"a whole number of {value.bit_length()} bits"
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part
        if len(text) > SHOWN_CHARACTERS:
            return f"{text[: SHOWN_CHARACTERS - 3]}..."
    return text

import base64
import gc
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server import json_tensors
from tfllmrec.server.tensors import STRING, TensorSpec

FLOAT = TensorSpec(np.dtype(np.float32), None)
TEXT = TensorSpec(STRING, None)
INT = TensorSpec(np.dtype(np.int32), None)
BOOL = TensorSpec(np.dtype(bool), None)


def decode(body, **specs):
    """Tensors as nested lists, and whether by rows."""
    document = json_tensors.parse(body.encode() if isinstance(body, str) else body)
    tensors, rows = json_tensors.decode(document, specs)
    assert all(tensors[name].dtype == spec.dtype for name, spec in specs.items())
    return {name: tensor.tolist() for name, tensor in tensors.items()}, rows


def refusal(body, **specs):
    with pytest.raises(RequestError) as refused:
        decode(body, **specs)
    assert refused.value.code is Code.INVALID_ARGUMENT
    return refused.value.message


def test_columns_have_one_tensor_a_name():
    body = '{"inputs": {"a": [["x", ""], ["ä", {"b64": "/wA="}]], "b": [[], []], "c": [7, -1], "d": 2}}'
    tensors, rows = decode(body, a=TEXT, b=FLOAT, c=INT, d=FLOAT)
    assert not rows
    assert tensors == {"a": [[b"x", b""], ["ä".encode(), b"\xff\x00"]], "b": [[], []], "c": [7, -1], "d": 2.0}


def test_rows_have_one_object_each():
    tensors, rows = decode('{"instances": [{"a": ["x"], "k": 1}, {"k": 2, "a": ["y"]}]}', a=TEXT, k=INT)
    assert rows
    assert tensors == {"a": [[b"x"], [b"y"]], "k": [1, 2]}


def test_a_single_input_may_do_without_its_name():
    assert decode('{"instances": [[1, 2], [3, 4]]}', x=FLOAT) == ({"x": [[1, 2], [3, 4]]}, True)
    assert decode('{"inputs": [[1, 2]]}', x=FLOAT) == ({"x": [[1, 2]]}, False)
    assert decode('{"instances": [{"b64": "AA=="}, "a"]}', x=TEXT) == ({"x": [b"\0", b"a"]}, True)
    assert decode('{"inputs": {"b64": "AA=="}}', x=TEXT) == ({"x": b"\0"}, False)
    assert "multiple input tensors required" in refusal('{"instances": [1]}', x=FLOAT, y=FLOAT)
    assert "multiple input tensors required" in refusal('{"inputs": [1]}', x=FLOAT, y=FLOAT)


def test_numbers_that_are_none_elsewhere():
    (x,) = decode('{"inputs": [NaN, Infinity, -Infinity, 1e30]}', x=FLOAT)[0].values()
    assert math.isnan(x[0]) and x[1:3] == [math.inf, -math.inf]
    assert x[3] == np.float32(1e30)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400 + ".5"])
@pytest.mark.parametrize("body", ['{"inputs": [1, %s]}', '{"instances": [{"x": %s}]}', '{"signature_name": %s}'])
def test_a_number_that_no_float_holds_is_refused_wherever_it_stands(body, number):
    for spec in (FLOAT, INT, TEXT, BOOL):
        assert refusal(body % number, x=spec).startswith(
            f"JSON Parse error: Number too big to be stored in double: {number[:70]}"
        )


def test_nothing_is_collected_while_a_document_is_parsed(monkeypatch):
    seen = []
    monkeypatch.setattr(json_tensors, "_float", lambda text: seen.append(gc.isenabled()) or float(text))
    assert gc.isenabled()
    json_tensors.parse(b'{"inputs": [1.5]}')
    assert (seen, gc.isenabled()) == ([False], True)
    with pytest.raises(RequestError):
        json_tensors.parse(b'{"inputs": [1.5')
    assert gc.isenabled()
    gc.disable()
    try:
        json_tensors.parse(b"{}")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_inputs_that_the_signature_lacks_are_ignored_in_columns_as_by_tf_serving():
    assert decode('{"inputs": {"x": [1], "more": "y"}}', x=FLOAT)[0] == {"x": [1.0]}


@pytest.mark.parametrize(
    ("value", "spec", "what"),
    [
        ('[["a"], ["b", "c"]]', TEXT, "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        ('[["a"], "b"]', TEXT, 'JSON Value: "b" found at incorrect level: 2 in the JSON DOM. Expected at level: 2'),
        ('["a", ["b"]]', TEXT, "Encountered list at unexpected level: 1 expected < 1"),
        ("[1]", TEXT, "JSON Value: 1 Type: Number is not of expected type: string"),
        ("[null]", TEXT, "JSON Value: null Type: Null is not of expected type: string"),
        ('["1"]', FLOAT, 'JSON Value: "1" Type: String is not of expected type: float32'),
        ("[true]", FLOAT, "JSON Value: true Type: True is not of expected type: float32"),
        ('[{"b64": "AA=="}]', FLOAT, "Type: Object is not of expected type: float32"),
        ("[1.0]", INT, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("[2147483648]", INT, "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        ("[-1]", TensorSpec(np.dtype(np.uint8), None), "JSON Value: -1 Type: Number is not of expected type: uint8"),
        ("[0]", BOOL, "JSON Value: 0 Type: Number is not of expected type: bool"),
        ("[16777217]", FLOAT, "Cannot convert JSON value: 16777217 to float32 without loss of precision."),
        ("[1e39]", FLOAT, "Cannot convert JSON value: 1e+39 to float32 without loss of precision."),
        ("[" + "9" * 400 + "]", FLOAT, "a whole number of 1329 bits to float32 without loss"),
        ('[{"b64": "A"}]', TEXT, "Unable to base64 decode"),
        ('[{"b64": "ä"}]', TEXT, "Unable to base64 decode"),
        ('[{"b64": 1}]', TEXT, "not formatted correctly for base64 data"),
        ('[{"b64": "AA==", "x": 1}]', TEXT, "not formatted correctly for base64 data"),
        (r'["\ud800"]', TEXT, "surrogates not allowed"),
        ("[" * 70 + "]" * 70, TEXT, "lists are nested 70 deep"),
    ],
)
def test_what_is_wrong_with_a_value_is_said(value, spec, what):
    said = refusal(f'{{"inputs": {{"x": {value}}}}}', x=spec)
    assert said.startswith("Input x: ") and what in said


def test_the_largest_number_that_fits_does():
    assert decode('{"inputs": [16777215, -16777215, 3.4028234e38]}', x=FLOAT)[0]["x"][:2] == [16777215, -16777215]
    assert decode('{"inputs": [2147483647, -2147483648]}', x=INT)[0] == {"x": [2**31 - 1, -(2**31)]}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", "The document is empty"),
        (b"\xff\xfe", "JSON Parse error: 'utf-8' codec can't decode"),
        ("{", "JSON Parse error: Expecting property name enclosed in double quotes at offset: 1"),
        ("[1]", "JSON Value: [1] Is not object"),
        ("[" * 100_000, "too deeply nested"),
        ('{"inputs": [' + "9" * 5000 + "]}", "JSON Parse error: Exceeds the limit"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"inputs": [1], "instances": [1]}', "expecting only one of 'inputs' or 'instances'"),
        ('{"instances": {}}', "Excepting 'instances' to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"inputs": {"y": [1]}}', "Missing named input: x in 'inputs' object."),
        ('{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1 of input list"),
        ('{"instances": [1, {"x": 1}]}', "Expecting value/list but got object at item 1 of input list"),
        ('{"instances": [{"x": 1}, {"y": 1}]}', "element: 1 of 'instances' list. JSON object: {\"y\": 1} keys must be"),
        ('{"instances": [{"x": 1}, {"x": "a"}]}', "Failed to process element: 1 key: x of 'instances' list. Error: "),
        (
            '{"instances": [[1], [2, 3]]}',
            "Failed to process element: 1 of 'instances' list. Error: Expecting shape [1]",
        ),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body, what):
    assert what in refusal(body, x=FLOAT)


def test_the_signature_name():
    assert json_tensors.signature_name({}) == ""
    assert json_tensors.signature_name({"signature_name": "search"}) == "search"
    with pytest.raises(RequestError, match="'signature_name' key must be a string value"):
        json_tensors.signature_name({"signature_name": 100})


def test_a_long_value_is_shown_by_its_beginning():
    said = refusal(json.dumps({"inputs": ["x" * 10_000_000]}), x=FLOAT)
    assert len(said) < 200 and "xxx..." in said


def test_a_type_that_json_does_not_carry():
    with pytest.raises(RequestError, match="complex64; use gRPC") as refused:
        decode('{"inputs": [1]}', x=TensorSpec(np.dtype(np.complex64), None))
    assert refused.value.code is Code.UNIMPLEMENTED


def strings(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_answers_by_columns_and_by_rows():
    outputs = {"ids": strings(b"a", "ß".encode()), "scores": np.array([[0.1, 2], [3, 4]], np.float32)}
    assert json_tensors.encode(outputs, rows=False) == (
        '{"outputs":{"ids":["a","ß"],"scores":[[0.1,2.0],[3.0,4.0]]}}'.encode()
    )
    assert json_tensors.encode(outputs, rows=True) == (
        '{"predictions":[{"ids":"a","scores":[0.1,2.0]},{"ids":"ß","scores":[3.0,4.0]}]}'.encode()
    )
    assert json_tensors.encode({"x": np.array([1, 2])}, rows=True) == b'{"predictions":[1,2]}'
    assert json_tensors.encode({"x": np.array(True)}, rows=False) == b'{"outputs":true}'


def test_numbers_and_bytes_in_answers():
    floats = np.array([np.nan, np.inf, -np.inf, 1e-7], np.float32)
    assert json_tensors.encode({"x": floats}, rows=False) == b'{"outputs":[NaN,Infinity,-Infinity,1e-07]}'
    coded = base64.b64encode(b"\xff").decode()
    assert json.loads(json_tensors.encode({"x_bytes": strings(b"\xff")}, False)) == {"outputs": [{"b64": coded}]}
    assert json.loads(json_tensors.encode({"x_bytes": strings(b"a")}, False)) == {"outputs": [{"b64": "YQ=="}]}
    assert json.loads(json_tensors.encode({"x": strings(b"\xff", b"a")}, False)) == {"outputs": [{"b64": coded}, "a"]}
    with pytest.raises(RequestError, match="tensor type: complex64 of output x"):
        json_tensors.encode({"x": np.zeros(1, np.complex64)}, rows=False)


@pytest.mark.parametrize("at_once", [1, 4, 5, 100])
@pytest.mark.parametrize("shapes", [[(7,)], [(5, 3)], [(1, 9)], [(3, 2, 2), (3,)], [(1, 50), (1, 2)], [(0, 3), (0,)]])
def test_a_large_answer_is_written_in_steps(monkeypatch, at_once, shapes):
    """Between which other threads have their turn; the text is the same."""
    outputs = {f"y{n}": np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for n, shape in enumerate(shapes)}
    outputs["ids"] = np.full(shapes[0], b"a", STRING)
    whole = [json_tensors.encode(outputs, rows) for rows in (False, True)]
    one = json_tensors.encode({"y": outputs["y0"]}, True)
    dumped, dump = [], json_tensors._dump
    monkeypatch.setattr(json_tensors, "VALUES_AT_ONCE", at_once)
    monkeypatch.setattr(json_tensors, "_dump", lambda document: dumped.append(str(document)) or dump(document))
    assert [json_tensors.encode(outputs, rows) for rows in (False, True)] == whole
    assert json_tensors.encode({"y": outputs["y0"]}, True) == one
    if at_once == 4:
        assert max(text.count(".0") for text in dumped) <= 4


def test_rows_need_one_size_of_batch():
    with pytest.raises(RequestError, match="y has inconsistent batch size: 3 expecting: 2"):
        json_tensors.encode({"x": np.zeros(2), "y": np.zeros(3)}, rows=True)
    with pytest.raises(RequestError, match="y has no shape information"):
        json_tensors.encode({"x": np.zeros(2), "y": np.zeros(())}, rows=True)


# --- Whatever comes -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just({"b64": "AA=="}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "b64"]), inner, max_size=3),
    max_leaves=12,
)
SPECS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from([FLOAT, TEXT, INT, BOOL]), min_size=1, max_size=2)


def decoded_or_refused(body, specs):
    try:
        tensors, _ = json_tensors.decode(json_tensors.parse(body), specs)
    except RequestError as error:
        assert error.code is Code.INVALID_ARGUMENT and error.message
        return None
    assert tensors.keys() == specs.keys()
    assert all(tensors[name].dtype == spec.dtype for name, spec in specs.items())
    return tensors


@given(st.sampled_from(["inputs", "instances"]), JSON, SPECS)
def test_any_json_is_decoded_or_refused(key, value, specs):
    decoded_or_refused(json.dumps({key: value}).encode(), specs)


@given(st.binary() | st.text(alphabet='{}[]":,.0123456789eEbnulltrueNaInfity-\\xinputs ').map(str.encode), SPECS)
def test_any_bytes_are_decoded_or_refused(body, specs):
    decoded_or_refused(body, specs)


@given(st.lists(st.tuples(st.text(), st.floats(width=32), st.integers(-(2**31), 2**31 - 1)), min_size=1), st.booleans())
def test_what_is_written_reads_back_as_it_was(records, by_rows):
    columns = {"x": [r[0] for r in records], "y": [r[1] for r in records], "z": [r[2] for r in records]}
    rows = [dict(zip(columns, record, strict=True)) for record in records]
    document = {"instances": rows} if by_rows else {"inputs": columns}
    tensors = decoded_or_refused(json.dumps(document).encode(), {"x": TEXT, "y": FLOAT, "z": INT})
    if tensors is None:  # text that is no UTF-8
        assert any(0xD800 <= ord(letter) < 0xE000 for text in columns["x"] for letter in text)
        return
    answer = json.loads(json_tensors.encode(tensors, by_rows))
    back = answer["predictions"] if by_rows else answer["outputs"]
    got = [[row[name] for row in back] for name in columns] if by_rows else [back[name] for name in columns]
    assert got[0] == columns["x"] and got[2] == columns["z"]
    # The very float32, whatever its decimals.
    assert [struct.pack("f", v) for v in got[1] if v == v] == [struct.pack("f", v) for v in columns["y"] if v == v]

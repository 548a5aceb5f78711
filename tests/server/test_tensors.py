import numpy as np
import pytest

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.tensors import STRING, Signature, TensorSpec, shown, signature_of

SIGNATURE = Signature(
    {"history": TensorSpec(STRING, (None, None)), "k": TensorSpec(np.dtype(np.int32), (None,))},
    {"ids": TensorSpec(STRING, (None, None)), "scores": TensorSpec(np.dtype(np.float32), (None, None))},
    defaults={"k": np.array([10], np.int32)},
)
HISTORY = np.array([[b"a"]], object)


def refusal(**inputs):
    with pytest.raises(RequestError) as refused:
        SIGNATURE.checked(inputs)
    assert refused.value.code is Code.INVALID_ARGUMENT
    return refused.value.message


def test_defaults_are_filled_in_and_may_be_overridden():
    assert SIGNATURE.checked({"history": HISTORY})["k"].tolist() == [10]
    assert SIGNATURE.checked({"history": HISTORY, "k": np.array([3], np.int32)})["k"].tolist() == [3]


def test_names_types_and_shapes_are_checked():
    said = refusal(histroy=HISTORY)
    assert "2!=2 len({histroy,k}) != len({history,k})" in said
    assert said.endswith("Sent extra: {histroy}. Missing but required: {history}.")
    assert refusal(history=np.zeros((1, 1))) == "Expects input history to be string but float64 is provided"
    assert refusal(history=HISTORY[0]) == "Input history has shape [1], but the signature expects [?,?]"
    assert "k to be int32 but int64" in refusal(history=HISTORY, k=np.array([3]))


def test_shapes():
    assert TensorSpec(STRING, None).takes((1, 2, 3)) and TensorSpec(STRING, (None, 3)).takes((0, 3))
    assert not TensorSpec(STRING, (None, 3)).takes((1, 2)) and not TensorSpec(STRING, ()).takes((1,))
    assert (shown(None), shown(()), shown((None, 3))) == ("<unknown>", "[]", "[?,3]")


def test_output_filter():
    outputs = {"ids": HISTORY, "scores": HISTORY}
    assert SIGNATURE.filtered(outputs, []) == outputs
    assert SIGNATURE.filtered(outputs, ["scores"]) == {"scores": HISTORY}
    SIGNATURE.check_filter(["ids", "scores"])
    with pytest.raises(RequestError, match=r"alias not found in signature: x .* in the set \{ids,scores\}"):
        SIGNATURE.check_filter(["x"])
    with pytest.raises(RequestError, match="duplicate output tensor alias: ids"):
        SIGNATURE.check_filter(["ids", "ids"])


def test_signatures_by_name():
    signatures = {"serving_default": SIGNATURE, "search": SIGNATURE}
    assert signature_of(signatures, "", Code.INVALID_ARGUMENT) == ("serving_default", SIGNATURE)
    assert signature_of(signatures, "search", Code.INVALID_ARGUMENT) == ("search", SIGNATURE)
    with pytest.raises(RequestError, match=r'"x" not found in signature def \(there are: search, serving_default') as e:
        signature_of(signatures, "x", Code.INVALID_ARGUMENT)
    assert e.value.http_status == 400
    with pytest.raises(RequestError, match='Serving signature key "x" not found') as e:
        signature_of(signatures, "x", Code.FAILED_PRECONDITION)
    assert e.value.code is Code.FAILED_PRECONDITION

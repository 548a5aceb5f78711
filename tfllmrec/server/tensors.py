"""Signatures: their inputs and outputs, and the check that a request fits them. Needs only numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tfllmrec.client.status import Code, RequestError, invalid

#: The numpy type of strings: object arrays of ``bytes``.
STRING = np.dtype(object)
DEFAULT_SIGNATURE = "serving_default"

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class TensorSpec:
    """The type and shape of one input or output.

    Attributes:
      dtype: The numpy type; ``STRING`` (object, containing ``bytes``) for strings.
      shape: The sizes of the dimensions, ``None`` for any size; ``None`` instead of a tuple for any rank.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...] | None

    @property
    def dtype_name(self) -> str:
        return name_of(self.dtype)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Returns whether a tensor of this shape fits."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(want is None or want == size for want, size in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a function of a SavedModel.

    Attributes:
      inputs: The inputs by name.
      outputs: The outputs by name.
      defaults: The values of inputs that may be omitted, by name.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Tensors = field(default_factory=dict)

    def checked(self, inputs: Tensors) -> Tensors:
        """Checks the inputs, and returns them with the defaults of omitted inputs.

        Raises:
          RequestError: INVALID_ARGUMENT with the expected names, types or shapes and those of the request.
        """
        inputs = {**self.defaults, **inputs}
        missing, extra = sorted(self.inputs.keys() - inputs.keys()), sorted(inputs.keys() - self.inputs.keys())
        if missing or extra:
            raise invalid(
                f"input size does not match signature: {len(inputs)}!={len(self.inputs)} "
                f"len({{{','.join(sorted(inputs))}}}) != len({{{','.join(sorted(self.inputs))}}}). "
                f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
            )
        for name, spec in self.inputs.items():
            tensor = inputs[name]
            if tensor.dtype != spec.dtype:
                raise invalid(f"Expects input {name} to be {spec.dtype_name} but {name_of(tensor.dtype)} is provided")
            if not spec.takes(tensor.shape):
                raise invalid(
                    f"Input {name} has shape {shown(tensor.shape)}, but the signature expects {shown(spec.shape)}"
                )
        return inputs

    def fits(self, inputs: Tensors, outputs: Sequence[str]) -> bool:
        """Returns whether the signature takes these inputs and has these outputs."""
        try:
            self.checked(inputs)
            self.check_filter(outputs)
        except RequestError:
            return False
        return True

    def filtered(self, outputs: Tensors, names: list[str]) -> Tensors:
        """Returns the outputs with these names; all if ``names`` is empty."""
        return {name: outputs[name] for name in names} if names else outputs

    def check_filter(self, names: Sequence[str]) -> None:
        """Checks the names of requested outputs, before the model is called.

        Raises:
          RequestError: INVALID_ARGUMENT if a name is not that of an output, or occurs twice.
        """
        for position, name in enumerate(names):
            if name not in self.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                    f"{{{','.join(sorted(self.outputs))}}}."
                )
            if name in names[:position]:
                raise invalid(f"duplicate output tensor alias: {name}")


def signature_of(signatures: Mapping[str, Signature], name: str, code: Code) -> tuple[str, Signature]:
    """Returns the name and the signature for a requested name; ``""`` requests the default signature.

    Args:
      signatures: The signatures of a version.
      name: The requested name.
      code: The code of the error: TF Serving uses INVALID_ARGUMENT for REST, and FAILED_PRECONDITION for gRPC.

    Raises:
      RequestError: ``code`` with TF Serving's message, if there is no such signature.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in signatures:
        what = f'Serving signature key "{name}" not found.'
        if code is Code.INVALID_ARGUMENT:
            what = f'Serving signature name: "{name}" not found in signature def'
        raise RequestError(code, f"{what} (there are: {', '.join(sorted(signatures))})")
    return name, signatures[name]


def name_of(dtype: np.dtype) -> str:
    """Returns TensorFlow's name of a numpy type."""
    return "string" if dtype == STRING else dtype.name


def shown(shape: tuple[int | None, ...] | None) -> str:
    """Returns a shape as text, such as ``[?,3]``; ``<unknown>`` for an unknown rank, because ``[?]`` is a vector."""
    if shape is None:
        return "<unknown>"
    return f"[{','.join('?' if size is None else str(size) for size in shape)}]"

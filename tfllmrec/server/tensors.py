"""What a signature takes and gives, and whether a request fits it; numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tfllmrec.client.status import Code, RequestError, invalid

#: The one numpy type of strings here: ``bytes`` in an object array.
STRING = np.dtype(object)
DEFAULT_SIGNATURE = "serving_default"

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
      dtype: ``STRING`` (object, holding ``bytes``) for strings.
      shape: ``None`` for a dimension of any size, and for a shape of any rank.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...] | None

    @property
    def dtype_name(self) -> str:
        return name_of(self.dtype)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that shape may be fed."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(want is None or want == size for want, size in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True)
class Signature:
    """A function of a SavedModel by its tensors' names; ``defaults`` are inputs that may be left out."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Tensors = field(default_factory=dict)

    def checked(self, inputs: Tensors) -> Tensors:
        """The inputs, defaults filled in.

        Raises:
          RequestError: INVALID_ARGUMENT with names, types or shapes that were expected and that came.
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

    def filtered(self, outputs: Tensors, names: list[str]) -> Tensors:
        """Those outputs alone; all where none is named."""
        return {name: outputs[name] for name in names} if names else outputs

    def check_filter(self, names: list[str]) -> None:
        """Refuses names that are no outputs, or named twice, before anything runs."""
        for position, name in enumerate(names):
            if name not in self.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                    f"{{{','.join(sorted(self.outputs))}}}."
                )
            if name in names[:position]:
                raise invalid(f"duplicate output tensor alias: {name}")


def signature_of(signatures: Mapping[str, Signature], name: str, code: Code) -> tuple[str, Signature]:
    """The signature of that name (``""``: the default one), and its full name.

    Raises:
      RequestError: ``code``, with TF Serving's words: it has INVALID_ARGUMENT for REST, FAILED_PRECONDITION for gRPC.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in signatures:
        what = f'Serving signature key "{name}" not found.'
        if code is Code.INVALID_ARGUMENT:
            what = f'Serving signature name: "{name}" not found in signature def'
        raise RequestError(code, f"{what} (there are: {', '.join(sorted(signatures))})")
    return name, signatures[name]


def name_of(dtype: np.dtype) -> str:
    """TensorFlow's name of a numpy type."""
    return "string" if dtype == STRING else dtype.name


def shown(shape: tuple[int | None, ...] | None) -> str:
    """``[?,3]``; ``[?]`` alone could be a vector, so an unknown rank is ``<unknown>``."""
    if shape is None:
        return "<unknown>"
    return f"[{','.join('?' if size is None else str(size) for size in shape)}]"

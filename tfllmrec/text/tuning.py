"""What of a TF Hub BERT is trained, how its gradient comes about, and how it is shipped and put back."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import BaseModel, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tfllmrec.durable import replacing
from tfllmrec.errors import ModelError
from tfllmrec.text.bert import mean_pool
from tfllmrec.text.preprocessor import INPUTS

MODES = ("lora", "adapter", "top_layers", "full")

#: All kernels inside numbered layers.
TARGETS = ("attention", "feed_forward")

# A numbered layer in a variable's name, as the makers of BERTs write it: layer_0, transformer_layer_0, layer_._0.
_LAYER = re.compile(r"(?<![^/])(?:\w*_)?(?:layer|block)s?[._]*(\d+)(?=/)", re.IGNORECASE)
# What the header of a shipped file is found by.
_HEADER = "tfllmrec.tuning"


def text_vectors(
    encoder: Any,
    inputs: Mapping[str, tf.Tensor],
    adapter: Callable[[tf.Tensor], tf.Tensor] | None = None,
    pooling: str = "mean",
) -> tf.Tensor:
    """The vectors of tokenised texts, by an encoder as ``hub.load`` returns it; its dropout is off.

    In training as well: in a module that was loaded, dropout follows no seed.

    Args:
      encoder: gives ``sequence_output``, or else ``default``, which is the vector then, whatever ``pooling``.
      inputs: ``input_word_ids``, ``input_mask``, ``input_type_ids``, each int32 ``[B, T]``.
      adapter: changes the encoder's token states (or its ``default``, or ``pooled_output``) before they are pooled.
      pooling: ``mean`` over the tokens, the state of the first token (``cls``), or ``pooled_output`` (``pooled``).

    Returns:
      float32 ``[B, D]`` of length 1; zero for a text without a token between ``[CLS]`` and ``[SEP]``.
    """
    out = encoder(inputs)
    adapt = adapter or tf.identity
    if pooling != "pooled" and isinstance(out, Mapping) and "sequence_output" in out:
        states = adapt(tf.cast(out["sequence_output"], tf.float32))
        if pooling == "mean":
            pooled = mean_pool(states, inputs["input_mask"])
        else:
            pooled = tf.math.l2_normalize(states[:, 0], -1)
    else:
        whole = out["pooled_output" if pooling == "pooled" else "default"] if isinstance(out, Mapping) else out
        pooled = tf.math.l2_normalize(adapt(tf.cast(whole, tf.float32)), -1)
    has_tokens = tf.reduce_sum(inputs["input_mask"], axis=1, keepdims=True) > 2
    return tf.where(has_tokens, pooled, 0.0)


class Adapter(tf.Module):
    """A bottleneck above a frozen encoder: ``x + gelu(x W + b) V + c`` (Houlsby et al. 2019, arXiv:1902.00751).

    V and c are 0 at first, so that it starts as the identity. No gradient goes below it.

    Args:
      dim: D, of the encoder.
      width: of the bottleneck.
      seed: of W.
    """

    def __init__(self, dim: int, width: int, seed: int):
        super().__init__(name="adapter")
        kernel = np.random.default_rng(seed).normal(0.0, dim**-0.5, (dim, width)).astype(np.float32)
        with self.name_scope:
            self.down_kernel = tf.Variable(kernel, name="down/kernel")
            self.down_bias = tf.Variable(tf.zeros([width]), name="down/bias")
            self.up_kernel = tf.Variable(tf.zeros([width, dim]), name="up/kernel")
            self.up_bias = tf.Variable(tf.zeros([dim]), name="up/bias")

    def __call__(self, states: tf.Tensor) -> tf.Tensor:
        """float32 ``[..., D]`` -> float32 ``[..., D]``."""
        states = tf.stop_gradient(states)
        inner = tf.nn.gelu(tf.tensordot(states, self.down_kernel, 1) + self.down_bias)
        return states + tf.tensordot(inner, self.up_kernel, 1) + self.up_bias


class Tuning:
    """Some of an encoder's variables, or some beside them, that are trained in its place; made by :func:`tuning_of`.

    A step of training, all of which may be in a ``tf.function``::

        with tf.GradientTape() as tape:
            loss = loss_of(tuning.vectors(inputs))
        gradients = tuning.gradients(tape.gradient(loss, tuning.watched))
        optimizer.apply_gradients(zip(gradients, tuning.variables))
        tuning.write()

    Where the step is not yours to write, such as inside a Keras layer, :meth:`differentiable` takes the place of
    ``vectors``, ``gradients`` and ``write``: any tape differentiates it by ``variables``.

    It is no ``tf.Module``: a Keras model that holds one tracks nothing of it. Give it ``variables`` to checkpoint, and
    call :meth:`write` after they were put back.

    Attributes:
      mode: one of ``MODES``.
      settings: the arguments of :func:`tuning_of` that decide on what ``variables`` mean.
      encoder: as ``hub.load`` returned it. Its own variables change while it is trained, but for ``adapter``.
      variables: what is trained, checkpointed and shipped.
      watched: what the loss is differentiated by; the same but for ``lora``.
      start: of ``lora``, the watched kernels as they came; not trainable. Empty in the other modes.
      adapter: what has to be between the encoder's token states and their mean, where there is such a thing.
      pooling: as in :func:`text_vectors`.
    """

    def __init__(
        self,
        encoder: Any,
        mode: str,
        settings: Mapping[str, Any],
        variables: Sequence[tf.Variable],
        watched: Sequence[tf.Variable] | None = None,
        adapter: Adapter | None = None,
        pooling: str = "mean",
    ):
        self.encoder, self.mode, self.settings, self.adapter = encoder, mode, dict(settings), adapter
        self.pooling = pooling
        self.variables = list(variables)
        self.watched = self.variables if watched is None else list(watched)
        self.start: list[tf.Variable] = []

    @property
    def undecayed(self) -> list[tf.Variable]:
        """Those of ``variables`` that weight decay would harm: biases and the scales and shifts of layer norms."""
        return [v for v in self.variables if not _is_kernel(v)]

    def vectors(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The encoder's inputs, int32 ``[B, T]`` -> float32 ``[B, D]``, as :func:`text_vectors`."""
        return text_vectors(self.encoder, inputs, self.adapter, self.pooling)

    def differentiable(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The :meth:`vectors` of ``variables`` as they are now, with a gradient to ``variables`` on any tape."""
        return self.vectors(inputs)

    def gradients(self, watched: Sequence[tf.Tensor | tf.IndexedSlices]) -> list[tf.Tensor | tf.IndexedSlices]:
        """The gradients of ``variables`` from those of ``watched``."""
        return list(watched)

    def write(self) -> None:
        """Makes the encoder follow ``variables``: to be called whenever these have changed."""
        return  # AutoGraph cannot convert a function that is nothing but its docstring

    def digest(self) -> str:
        """sha256 (hex) of all that decides on what the encoder has become, by the values of this moment."""
        digest = hashlib.sha256(json.dumps([self.mode, self.settings]).encode())
        for key, variable in _keyed(self.variables).items():
            digest.update(key.encode())
            digest.update(variable.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path, base: str) -> None:
        """Writes ``variables`` into a safetensors file: a kill leaves the old file or the new one.

        Args:
          path: the file; its folder is made where it is missing.
          base: of the encoder before it was trained, see :attr:`tfllmrec.text.encoder.TextEncoder.base_fingerprint`.
        """
        header = {"mode": self.mode, "settings": self.settings, "base": base}
        arrays = {key: variable.numpy() for key, variable in _keyed(self.variables).items()}
        with replacing(path) as fresh:
            save_file(arrays, fresh, {_HEADER: json.dumps(header)})


class _Lora(Tuning):
    """``W = W0 + alpha / rank (B A)^T`` for kernels W ``[in, out]`` (Hu et al. 2021, arXiv:2106.09685).

    A ``[rank, in]`` and B ``[out, rank]`` are as in the paper, which multiplies from the left: hence the transpose.

    The encoder's graph is fixed, so W itself is written. By the chain rule, with G the gradient of W,
    ``dB = alpha / rank G^T A^T`` and ``dA = alpha / rank B^T G^T``.
    """

    def __init__(self, encoder: Any, rank: int, alpha: float, targets: Sequence[str], seed: int, pooling: str):
        watched = _targets(_trainable(encoder), targets)
        rng = np.random.default_rng(seed)
        self._scale = alpha / rank
        start = [tf.Variable(w, trainable=False, name=f"{_name(w)}/start") for w in watched]
        self._pairs = []
        for w in watched:
            name, (width_in, width_out) = _name(w), _matrix(w.shape)
            a = rng.normal(0.0, width_in**-0.5, (rank, width_in))
            self._pairs.append(
                (
                    tf.Variable(a, dtype=w.dtype, name=f"{name}/lora_a"),
                    tf.Variable(tf.zeros([width_out, rank], w.dtype), name=f"{name}/lora_b"),
                )
            )
        settings = {"rank": rank, "alpha": alpha, "targets": list(targets)}
        variables = [v for pair in self._pairs for v in pair]
        super().__init__(encoder, "lora", settings, variables, watched, pooling=pooling)
        self.start = start

    def differentiable(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        @tf.custom_gradient
        def written_vectors(*_: tf.Tensor):
            self.write()
            with tf.GradientTape(persistent=True) as tape:  # the outer tape may be persistent
                tape.watch(self.watched)
                vectors = self.vectors(inputs)

            def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable]):
                watched = tape.gradient(
                    vectors, self.watched, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
                )
                return self.gradients(watched), [None] * len(variables)

            return vectors, gradient

        return written_vectors(*self.variables)

    def gradients(self, watched: Sequence[tf.Tensor | tf.IndexedSlices]) -> list[tf.Tensor | tf.IndexedSlices]:
        out = []
        for (a, b), gradient in zip(self._pairs, watched, strict=True):
            matrix = self._scale * tf.reshape(gradient, [a.shape[1], b.shape[0]])
            out.append(tf.matmul(b, matrix, transpose_a=True, transpose_b=True))
            out.append(tf.matmul(matrix, a, transpose_a=True, transpose_b=True))
        return out

    def write(self) -> None:
        for w, start, (a, b) in zip(self.watched, self.start, self._pairs, strict=True):
            change = tf.matmul(a, b, transpose_a=True, transpose_b=True)
            w.assign(start + self._scale * tf.reshape(change, w.shape))


def tuning_of(
    encoder: Any,
    mode: str,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = TARGETS,
    layers: int = 2,
    width: int = 64,
    seed: int = 0,
    pooling: str = "mean",
) -> Tuning:
    """Chooses what of an encoder is trained; at first it gives the same vectors as before.

    ===========  ===================================================================================================
    lora         low-rank changes of its kernels: exact fine-tuning where the rank allows it, small to ship. Any
                 encoder will do, though its graph is fixed; a copy of these kernels is kept in memory
    adapter      a bottleneck on its token states; the encoder only runs forward, so it is the fastest
    top_layers   the last numbered layers
    full         all that it says is trainable
    ===========  ===================================================================================================

    What it does not offer for training stays as it is.

    Args:
      encoder: as ``hub.load`` returns it, not tuned yet; one for each tuning.
      mode: one of ``MODES``.
      rank: of the changes in ``lora``.
      alpha: they are multiplied by ``alpha / rank``.
      targets: which kernels ``lora`` changes, by parts of their names. ``"feed_forward"`` also stands for all in
        numbered layers that are not of an attention, whatever their name. A kernel with more than two axes counts as
        the matrix that it stands for.
      layers: how many ``top_layers`` trains.
      width: of the bottleneck in ``adapter``.
      seed: of what starts at random.
      pooling: as in :func:`text_vectors`.

    Raises:
      ModelError: another mode; the encoder does not show its variables; a target matches none of them; there are not
        that many layers.
    """
    match mode:
        case "lora":
            return _Lora(encoder, rank, alpha, targets, seed, pooling)
        case "adapter":
            probe = text_vectors(encoder, dict.fromkeys(INPUTS, tf.ones([1, 3], tf.int32)), pooling=pooling)
            adapter = Adapter(probe.shape[-1], width, seed)
            parts = [adapter.down_kernel, adapter.down_bias, adapter.up_kernel, adapter.up_bias]
            return Tuning(encoder, mode, {"width": width}, parts, adapter=adapter, pooling=pooling)
        case "top_layers":
            return Tuning(encoder, mode, {"layers": layers}, _top_layers(_trainable(encoder), layers), pooling=pooling)
        case "full":
            return Tuning(encoder, mode, {}, _trainable(encoder), pooling=pooling)
    raise ModelError(f"expected text.mode to be one of {', '.join(MODES)} to train an encoder, got {mode!r}")


def load_tuning(path: Path, encoder: Any, base: str, pooling: str = "mean") -> Tuning:
    """Puts what :meth:`Tuning.save` wrote on an encoder that is as it was before.

    Args:
      path: the file.
      encoder: as ``hub.load`` returns it, not tuned yet.
      base: its fingerprint, as it was given to :meth:`Tuning.save`.
      pooling: as in :func:`text_vectors`.

    Raises:
      ModelError: the file cannot be read, is of another encoder, or does not fit this one.
    """
    header, arrays = _read(path)
    if header.base != base:
        raise ModelError(
            f"{path} was trained on another encoder or preprocessor: expected the fingerprint {header.base}, got "
            f"{base}. Set text.encoder and text.preprocessor to those of its training, or train anew."
        )
    tuning = tuning_of(encoder, header.mode, **header.settings.model_dump(exclude_unset=True), pooling=pooling)
    keyed = _keyed(tuning.variables)
    expected = {key: tuple(variable.shape) for key, variable in keyed.items()}
    came = {key: array.shape for key, array in arrays.items()}
    if expected != came:
        key = min(key for key in expected | came if expected.get(key) != came.get(key))
        raise ModelError(
            f"{path} does not fit the encoder: {key!r} is of shape {expected.get(key, 'unknown')} there and of shape "
            f"{came.get(key, 'unknown')} in the file. Train anew."
        )
    for key, variable in keyed.items():
        variable.assign(arrays[key])
    tuning.write()
    return tuning


class _Header(BaseModel):
    """The header of a shipped file."""

    class Settings(BaseModel, extra="forbid"):
        """The arguments of :func:`tuning_of` that the mode has."""

        rank: PositiveInt = 1
        alpha: int | float = 1  # as it was written: digests tell 16 from 16.0
        targets: list[str] = []
        layers: PositiveInt = 1
        width: PositiveInt = 1

    mode: str
    settings: Settings
    base: str


def _read(path: Path) -> tuple[_Header, dict[str, np.ndarray]]:
    try:
        with safe_open(path, "np") as file:
            header = _Header.model_validate_json((file.metadata() or {})[_HEADER], strict=True)
            return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:  # ValidationError is a ValueError
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise ModelError(
            f"expected in {path} the variables of an encoder that text.mode {', '.join(MODES)} trained; it cannot be "
            f"read: {reason}. Copy it again from its run, or train the encoder again."
        ) from error


def _trainable(encoder: Any) -> list[tf.Variable]:
    """The float variables that an encoder offers for training."""
    offered = getattr(encoder, "trainable_variables", getattr(encoder, "variables", None))
    variables = [v for v in offered or () if v.trainable and v.dtype.is_floating]
    if not variables:
        raise ModelError(
            "the encoder cannot be trained: expected a TF2 SavedModel with 'trainable_variables', got none of them. "
            "Use text.mode 'frozen' or 'adapter', or another text.encoder."
        )
    return variables


def _targets(variables: Sequence[tf.Variable], targets: Sequence[str]) -> list[tf.Variable]:
    kernels = [v for v in variables if _is_kernel(v)]

    def matches(name: str, target: str) -> bool:
        inside = _LAYER.search(name) is not None
        return target in name or (target == "feed_forward" and inside and "attention" not in name)

    for target in targets:
        if not any(matches(_name(v), target) for v in kernels):
            raise ModelError(
                f"the LoRA target {target!r} matches no kernel of the encoder; expected a part of one of these names: "
                f"{_listed(kernels)}"
            )
    return [v for v in kernels if any(matches(_name(v), target) for target in targets)]


def _top_layers(variables: Sequence[tf.Variable], layers: int) -> list[tf.Variable]:
    numbers = {v.ref(): int(found[1]) for v in variables if (found := _LAYER.search(_name(v)))}
    there = sorted(set(numbers.values()))
    if not 1 <= layers <= len(there):
        raise ModelError(
            f"expected 1 to {len(there)} as the number of top layers, got {layers}: the encoder has {len(there)} that "
            f"are numbered in the names of its variables, which are: {_listed(variables)}"
        )
    return [v for v in variables if numbers.get(v.ref(), -1) >= there[-layers]]


def _is_kernel(variable: tf.Variable) -> bool:
    """Whether it is a matrix or a table; the biases of Keras' attention heads have two axes as well."""
    return len(variable.shape) > 1 and not _name(variable).endswith("bias")


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """(in, out) of a kernel: where to divide the axes of heads is where the result is nearest to a square.

    Of Keras' ``[D, heads, D / heads]`` and ``[heads, D / heads, D]`` both give ``(D, D)``.
    """
    return max(((math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))), key=min)


def _name(variable: tf.Variable) -> str:
    return variable.name.partition(":")[0]


def _keyed(variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Variables by keys that stay the same for the same SavedModel; their names alone may stand there twice."""
    return {f"{i}:{_name(variable)}": variable for i, variable in enumerate(variables)}


def _listed(variables: Sequence[tf.Variable]) -> str:
    """Their names for a message; those that differ in the layer's number alone once."""

    def starred(match: re.Match) -> str:
        return match[0][: match.start(1) - match.start()] + "*"

    return ", ".join(dict.fromkeys(_LAYER.sub(starred, _name(v)) for v in variables))

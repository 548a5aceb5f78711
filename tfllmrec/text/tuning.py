"""Selects the trainable weights of a TF Hub BERT, computes their gradients, and saves and loads them."""

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
from tfllmrec.text.bert import BertEncoder, mean_pool
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.text.rank_allocation import RankAllocation, initial_rank
from tfllmrec.text.read_back import read_back

MODES = ("lora", "adalora", "prefix", "adapter", "top_layers", "full")

#: All kernels inside numbered layers.
TARGETS = ("attention", "feed_forward")

# A numbered layer in a variable's name, in the notations of several BERTs: layer_0, transformer_layer_0, layer_._0.
_LAYER = re.compile(r"(?<![^/])(?:\w*_)?(?:layer|block)s?[._]*(\d+)(?=/)", re.IGNORECASE)
# gamma, the weight of AdaLoRA's regulariser.
_ORTHOGONAL = 0.1
# The key of the header in the metadata of a saved file.
_HEADER = "tfllmrec.tuning"


def text_vectors(
    encoder: Any,
    inputs: Mapping[str, tf.Tensor],
    adapter: Callable[[tf.Tensor], tf.Tensor] | None = None,
    pooling: str = "mean",
) -> tf.Tensor:
    """Returns the vectors of tokenised texts, from an encoder as ``hub.load`` returns it, without dropout.

    Dropout is off in training, too, because a loaded module has no seed for it.

    Args:
      encoder: An encoder with ``sequence_output``, or else ``default``, which is then the vector, whatever ``pooling``.
      inputs: ``input_word_ids``, ``input_mask``, ``input_type_ids``, each int32 ``[B, T]``.
      adapter: Changes the encoder's token states (or its ``default``, or ``pooled_output``) before they are pooled.
      pooling: ``mean`` over the tokens, the state of the first token (``cls``), or ``pooled_output`` (``pooled``).

    Returns:
      Float32 ``[B, D]`` of length 1; zero for a text without a token between ``[CLS]`` and ``[SEP]``.
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
    """A bottleneck on top of a frozen encoder: ``x + gelu(x W + b) V + c`` (Houlsby et al. 2019, arXiv:1902.00751).

    V and c are initially 0, so that it starts as the identity. Gradients stop at its input.

    Args:
      dim: D, the width of the encoder.
      width: The width of the bottleneck.
      seed: The seed of W.
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
        """Maps float32 ``[..., D]`` to float32 ``[..., D]``."""
        states = tf.stop_gradient(states)
        inner = tf.nn.gelu(tf.tensordot(states, self.down_kernel, 1) + self.down_bias)
        return states + tf.tensordot(inner, self.up_kernel, 1) + self.up_bias


class Prefix(tf.Module):
    """Trained keys and values before those of a text, in one layer (Li and Liang 2021, arXiv:2101.00190).

    In each head, the query q of a token, scaled, adds ``g softmax(q K^T) V`` to the token's context. In the paper, the
    prefix and the text share a softmax, so that an untrained prefix already changes the output. Here, the prefix has
    its own softmax and each head has a gate g, which is initially 0 (LLaMA-Adapter, Zhang et al. 2023,
    arXiv:2303.16199, section 3.2), so that training starts from the encoder's output. K and V are initialized to those
    of real tokens, as the paper advises for few data. They are trained directly, not through the paper's perceptron:
    whether that helps depends on the data (Liu et al. 2022, arXiv:2110.07602, section 3.3), and the gate keeps the
    first steps small.

    Args:
      keys: Float32 ``[P, D]``, the initial K.
      values: Float32 ``[P, D]``, the initial V.
      heads: The number of heads of the layer; a divisor of D.
    """

    def __init__(self, keys: tf.Tensor, values: tf.Tensor, heads: int):
        super().__init__(name="prefix")
        with self.name_scope:
            self.keys_values = tf.Variable(tf.stack([keys, values]), name="keys_values")
            self.gate = tf.Variable(tf.zeros([heads]), name="gate")

    def __call__(self, query: tf.Tensor) -> tf.Tensor:
        """Maps scaled queries, ``[B, heads, T, D / heads]``, to an addition to their context, of the same shape."""
        _, length, width = self.keys_values.shape
        heads = self.gate.shape[0]
        split = tf.reshape(tf.cast(self.keys_values, query.dtype), [2, length, heads, width // heads])
        keys, values = tf.unstack(tf.transpose(split, [0, 2, 1, 3]))
        found = tf.matmul(tf.nn.softmax(tf.matmul(query, keys, transpose_b=True)), values)
        return tf.cast(self.gate, query.dtype)[:, tf.newaxis, tf.newaxis] * found


def _put_prefixes(bert: BertEncoder, length: int, seed: int) -> list[Prefix]:
    """Adds a :class:`Prefix` to each layer, initialized to the layer's keys and values of ``length`` random tokens."""
    ids = tf.constant(np.random.default_rng(seed).integers(0, bert.config.vocab_size, [length, 1]), tf.int32)
    # Each token is a text of its own, so that a prefix may be longer than the encoder's maximum.
    x = bert.embedded({name: ids if name == "input_word_ids" else tf.zeros_like(ids) for name in INPUTS})
    prefixes = []
    for layer in bert.layers:
        attention = layer.attention
        keys, values = (tf.cast(part(x), tf.float32) for part in (attention.key, attention.value))
        x = layer(x, tf.zeros([length, 1, 1, 1], x.dtype), training=False)
        attention.prefix = Prefix(keys, values, bert.config.num_attention_heads)
        prefixes.append(attention.prefix)
    return prefixes


class Tuning:
    """A selection of an encoder's variables, or variables added to it, for training; made by :func:`tuning_of`.

    A training step, all of which may be in a ``tf.function``::

        with tf.GradientTape() as tape:
            loss = loss_of(tuning.vectors(inputs))
        gradients = tuning.gradients(tape.gradient(loss, tuning.watched))
        tuning.update(gradients, lambda: optimizer.apply_gradients(zip(gradients, tuning.variables)))

    If gradients are accumulated, call the last line once for each update, with the accumulated gradients.

    If you do not write the step yourself, for example inside a Keras layer, use :meth:`differentiable` instead of the
    methods above: any tape can differentiate it with respect to ``variables``.

    A tuning is not a ``tf.Module``: a Keras model with one as an attribute does not track its variables. Checkpoint
    ``variables`` and ``state`` explicitly, and call :meth:`write` after restoring them.

    Attributes:
      mode: One of ``MODES``.
      settings: The arguments of :func:`tuning_of` that determine the shapes and meaning of ``variables``.
      encoder: The encoder as ``hub.load`` returned it; for ``prefix``, a copy with the prefixes. Training changes its
        own variables, except for ``adapter`` and ``prefix``.
      variables: The variables that are trained, checkpointed and saved.
      watched: The variables the loss is differentiated with respect to. Equal to ``variables``, except for ``lora`` and
        ``adalora``.
      start: For ``lora`` and ``adalora``, the watched kernels before tuning; not trainable. Empty in the other modes.
      state: For ``adalora``, the state of its rank allocation, which is checkpointed but not saved. Empty in the other
        modes.
      adapter: For ``adapter``, the module that changes the encoder's token states before pooling; ``None`` in the other
        modes.
      pooling: As in :func:`text_vectors`.
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
        self.state: list[tf.Variable] = []

    @property
    def undecayed(self) -> list[tf.Variable]:
        """The variables without weight decay: biases, and the scales and shifts of layer norms."""
        return [v for v in self.variables if not _is_kernel(v)]

    def vectors(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Maps the encoder's inputs, int32 ``[B, T]``, to float32 ``[B, D]``, like :func:`text_vectors`."""
        return text_vectors(self.encoder, inputs, self.adapter, self.pooling)

    def differentiable(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns :meth:`vectors` for the current ``variables``, with a gradient to ``variables`` on any tape."""
        return self.vectors(inputs)

    def gradients(self, watched: Sequence[tf.Tensor | tf.IndexedSlices]) -> list[tf.Tensor | tf.IndexedSlices]:
        """Converts gradients of ``watched`` to gradients of ``variables``."""
        return list(watched)

    def update(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices], apply: Callable[[], object]) -> None:
        """Updates ``variables``, and with them the encoder.

        Args:
          gradients: The gradients of ``variables``.
          apply: Applies these gradients to ``variables``.
        """
        self._observe(gradients)
        apply()
        self._prune()
        self.write()

    def write(self) -> None:
        """Writes ``variables`` into the encoder. Call it after changing them in any way other than :meth:`update`."""
        return  # AutoGraph cannot convert a function that consists of a docstring

    def _observe(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> None:
        """Records the gradients of an update before it is applied."""
        return  # as above

    def _prune(self) -> None:
        """Sets dropped values to 0 after an update."""
        return  # as above

    def digest(self) -> str:
        """Returns the sha256 (hex) of everything that determines the tuned encoder, at its current values."""
        digest = hashlib.sha256(json.dumps([self.mode, self.settings]).encode())
        for key, array in self._shipped().items():
            digest.update(key.encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, path: Path, base: str) -> None:
        """Writes ``variables`` into a safetensors file; a killed process leaves either the old file or the new one.

        Args:
          path: The file; its folder is created if missing.
          base: The fingerprint of the untuned encoder, see
            :attr:`tfllmrec.text.encoder.TextEncoder.base_fingerprint`.
        """
        header = {"mode": self.mode, "settings": self.settings, "base": base}
        with replacing(path) as fresh:
            save_file(self._shipped(), fresh, {_HEADER: json.dumps(header)})

    def _shipped(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a file contains, by their keys."""
        return {key: variable.numpy() for key, variable in _keyed(self.variables).items()}

    def _unpacked(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Converts the arrays of a file, as :meth:`_shipped` returned them, to the values of ``variables``."""
        return arrays


class _BA:
    """``C = B A`` with A ``[rank, in]`` and B ``[out, rank]`` (Hu et al. 2021, arXiv:2106.09685); B is initially 0.

    By the chain rule, with G the gradient of C^T, ``dB = G^T A^T`` and ``dA = B^T G^T``.
    """

    def __init__(self, kernel: tf.Variable, rank: int, rng: np.random.Generator) -> None:
        name, (width_in, width_out) = _name(kernel), _matrix(kernel.shape)
        a = rng.normal(0.0, width_in**-0.5, (rank, width_in))
        self.a = tf.Variable(a, dtype=kernel.dtype, name=f"{name}/lora_a")
        self.b = tf.Variable(tf.zeros([width_out, rank], kernel.dtype), name=f"{name}/lora_b")
        self.variables = [self.a, self.b]

    def product(self) -> tf.Tensor:
        """Returns C^T, ``[in, out]``."""
        return tf.matmul(self.a, self.b, transpose_a=True, transpose_b=True)

    def gradients(self, gradient: tf.Tensor) -> list[tf.Tensor]:
        """Returns the gradients of ``variables``, given that of C^T, ``[in, out]``."""
        return [
            tf.matmul(self.b, gradient, transpose_a=True, transpose_b=True),
            tf.matmul(gradient, self.a, transpose_a=True, transpose_b=True),
        ]


class _Triplets:
    """``C = P diag(lambda) Q`` with P ``[out, r]`` and Q ``[r, in]`` (Zhang et al. 2023, arXiv:2303.10512).

    lambda is initially 0, as in the paper; P and Q are orthonormal, while the paper's are Gaussian and become so.
    """

    def __init__(self, kernel: tf.Variable, rank: int, rng: np.random.Generator) -> None:
        name, widths = _name(kernel), _matrix(kernel.shape)
        first = initial_rank(rank, *widths)
        q, p = (np.linalg.qr(rng.normal(size=(width, first)))[0] for width in widths)
        self.p = tf.Variable(p, dtype=kernel.dtype, name=f"{name}/adalora_p")
        self.values = tf.Variable(tf.zeros([first], kernel.dtype), name=f"{name}/adalora_lambda")
        self.q = tf.Variable(q.T, dtype=kernel.dtype, name=f"{name}/adalora_q")
        self.variables = [self.p, self.values, self.q]

    def product(self) -> tf.Tensor:
        """Returns C^T, ``[in, out]``."""
        return tf.matmul(self.q * self.values[:, tf.newaxis], self.p, transpose_a=True, transpose_b=True)

    def gradients(self, gradient: tf.Tensor) -> list[tf.Tensor]:
        """Returns the gradients of ``variables``, given that of C^T, ``[in, out]``, including the regulariser's.

        Equation 4 of the paper adds ``gamma (|P^T P - I|^2 + |Q Q^T - I|^2)`` to the loss, to keep P and Q close to
        singular vectors.
        """
        p, values, q = self.variables
        of_p = tf.matmul(gradient, q, transpose_a=True, transpose_b=True)
        of_q = tf.matmul(p, gradient, transpose_a=True, transpose_b=True)
        identity = tf.eye(values.shape[0], dtype=values.dtype)
        skew_p = tf.matmul(p, tf.matmul(p, p, transpose_a=True) - identity)
        skew_q = tf.matmul(tf.matmul(q, q, transpose_b=True) - identity, q)
        return [
            of_p * values + 4.0 * _ORTHOGONAL * skew_p,
            tf.reduce_sum(p * of_p, axis=0),
            of_q * values[:, tf.newaxis] + 4.0 * _ORTHOGONAL * skew_q,
        ]


class _LowRank(Tuning):
    """``W = W0 + alpha / rank C^T`` for kernels W ``[in, out]``, with C ``[out, in]`` a product of thin matrices.

    C is defined as in the papers, which multiply from the left: hence the transpose. The encoder's graph is fixed, so
    the values of W itself are overwritten.
    """

    def __init__(
        self,
        encoder: Any,
        mode: str,
        settings: Mapping[str, Any],
        change: type[_BA] | type[_Triplets],
        seed: int,
        pooling: str,
    ) -> None:
        watched, rng = _targets(_trainable(encoder), settings["targets"]), np.random.default_rng(seed)
        self._scale = settings["alpha"] / settings["rank"]
        self._changes = [change(w, settings["rank"], rng) for w in watched]
        variables = [v for change in self._changes for v in change.variables]
        super().__init__(encoder, mode, settings, variables, watched, pooling=pooling)
        self.start = [tf.Variable(w, trainable=False, name=f"{_name(w)}/start") for w in watched]

    def differentiable(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        @tf.custom_gradient
        def written_vectors(*_: tf.Tensor):
            self._prune()
            self.write()
            with tf.GradientTape(persistent=True) as tape:  # the outer tape may be persistent
                tape.watch(self.watched)
                vectors = self.vectors(inputs)

            def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable]):
                watched = tape.gradient(
                    vectors, self.watched, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
                )
                gradients = self.gradients(watched)
                self._observe(gradients)
                return gradients, [None] * len(variables)

            return vectors, gradient

        return written_vectors(*self.variables)

    def gradients(self, watched: Sequence[tf.Tensor | tf.IndexedSlices]) -> list[tf.Tensor | tf.IndexedSlices]:
        return [
            of_variable
            for w, change, gradient in zip(self.watched, self._changes, watched, strict=True)
            for of_variable in change.gradients(self._scale * tf.reshape(gradient, _matrix(w.shape)))
        ]

    def write(self) -> None:
        for w, start, change in zip(self.watched, self.start, self._changes, strict=True):
            w.assign(start + self._scale * tf.reshape(change.product(), w.shape))


class _AdaLora(_LowRank):
    """Low-rank tuning in which ranks are allocated during training: each update is a step of the schedule.

    After an update, the triplets that :class:`tfllmrec.text.rank_allocation.RankAllocation` drops are set to 0.
    """

    def __init__(self, encoder: Any, settings: Mapping[str, Any], seed: int, pooling: str) -> None:
        super().__init__(encoder, "adalora", settings, _Triplets, seed, pooling)
        self._ranks = RankAllocation(self.variables, settings["rank"], settings["steps"])
        self.state = self._ranks.state

    @property
    def undecayed(self) -> list[tf.Variable]:
        """P and Q, because the regulariser determines the lengths of their vectors."""
        return [v for change in self._changes for v in (change.variables[0], change.variables[2])]

    def _observe(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> None:
        self._ranks.observe(gradients)

    def _prune(self) -> None:
        for values, kept in zip(self.variables[1::3], self._ranks.kept(), strict=True):
            values.assign(tf.where(kept, values, 0.0))

    def _shipped(self) -> dict[str, np.ndarray]:
        """Returns only the triplets with a singular value other than 0."""
        arrays, shipped = list(super()._shipped().items()), dict[str, np.ndarray]()
        for (of_p, p), (of_values, values), (of_q, q) in zip(arrays[::3], arrays[1::3], arrays[2::3], strict=True):
            left = values != 0
            # Contiguous, as safetensors expects.
            shipped |= {of_p: np.ascontiguousarray(p[:, left]), of_values: values[left], of_q: q[left]}
        return shipped

    def _unpacked(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Adds triplets of 0 for those that are not in the file."""
        unpacked = dict(arrays)
        for i, (key, variable) in enumerate(_keyed(self.variables).items()):
            array, axis = arrays.get(key), (1, 0, 0)[i % 3]
            if array is not None and array.ndim == len(variable.shape):
                missing = max(0, variable.shape[axis] - array.shape[axis])
                unpacked[key] = np.pad(array, [(0, missing * (axis == each)) for each in range(array.ndim)])
        return unpacked


def tuning_of(
    encoder: Any,
    mode: str,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = TARGETS,
    layers: int = 2,
    width: int = 64,
    length: int = 16,
    steps: int | None = None,
    seed: int = 0,
    pooling: str = "mean",
) -> Tuning:
    """Selects the variables of an encoder that are trained; initially, the encoder's vectors do not change.

    ===========  ===================================================================================================
    lora         low-rank changes of kernels: exact fine-tuning if the rank is large enough, with small files. Works
                 with any BERT, though its graph is fixed; keeps a copy of these kernels in memory
    adalora      as ``lora``, but important kernels get a higher rank
    prefix       keys and values before those of each layer, of a BERT in our own format; by default less than a
                 quarter of ``lora``'s weights
    adapter      a bottleneck on the token states; the fastest mode, because the encoder only runs forward
    top_layers   the last numbered layers
    full         all trainable variables of the encoder
    ===========  ===================================================================================================

    Variables that the encoder does not list as trainable do not change.

    Args:
      encoder: An untuned encoder as ``hub.load`` returns it; each tuning needs its own.
      mode: One of ``MODES``.
      rank: The rank of the changes for ``lora``; for ``adalora``, the average rank of a kernel in the second half of
        training.
      alpha: The changes of ``lora`` and ``adalora`` are multiplied by ``alpha / rank``.
      targets: The kernels that ``lora`` and ``adalora`` change, as parts of their names. ``"feed_forward"`` also
        matches all kernels in numbered layers that are not of an attention, whatever their name. A kernel with more
        than two axes is treated as a matrix.
      layers: The number of layers that ``top_layers`` trains.
      width: The width of the bottleneck for ``adapter``.
      length: The length of the ``prefix``, in tokens.
      steps: The number of training steps over which ``adalora`` allocates its ranks: the number of calls of
        :meth:`Tuning.update`, or of backward passes through :meth:`Tuning.differentiable`.
      seed: The seed of random initial values.
      pooling: As in :func:`text_vectors`.

    Raises:
      ModelError: The mode is unknown; the encoder does not list its variables; a target matches none of them; there are
        fewer layers; the encoder of a ``prefix`` is not in our own format; or ``adalora`` has no ``steps``.
    """
    match mode:
        case "lora":
            settings = {"rank": rank, "alpha": alpha, "targets": list(targets)}
            return _LowRank(encoder, mode, settings, _BA, seed, pooling)
        case "adalora":
            if steps is None:
                raise ModelError("text.mode adalora needs the number of training steps: expected steps=…, got none")
            settings = {"rank": rank, "alpha": alpha, "targets": list(targets), "steps": steps}
            return _AdaLora(encoder, settings, seed, pooling)
        case "prefix":
            bert = read_back(encoder, "use text.mode lora or adapter, which take any BERT")
            variables = [v for prefix in _put_prefixes(bert, length, seed) for v in (prefix.keys_values, prefix.gate)]
            return Tuning(bert, mode, {"length": length}, variables, pooling=pooling)
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
    """Loads a tuning that :meth:`Tuning.save` wrote, and applies it to the untuned encoder.

    Args:
      path: The file.
      encoder: The untuned encoder as ``hub.load`` returns it.
      base: Its fingerprint, as given to :meth:`Tuning.save`.
      pooling: As in :func:`text_vectors`.

    Raises:
      ModelError: The file cannot be read, is of another encoder, or does not fit this one.
    """
    header, arrays = _read(path)
    if header.base != base:
        raise ModelError(
            f"{path} was trained on another encoder or preprocessor: expected the fingerprint {header.base}, got "
            f"{base}. Set text.encoder and text.preprocessor to those of its training, or train anew."
        )
    tuning = tuning_of(encoder, header.mode, **header.settings.model_dump(exclude_unset=True), pooling=pooling)
    arrays, keyed = tuning._unpacked(arrays), _keyed(tuning.variables)
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
    """The header of a saved file."""

    class Settings(BaseModel, extra="forbid"):
        """The arguments of :func:`tuning_of` that the mode uses."""

        rank: PositiveInt = 1
        alpha: int | float = 1  # as it was written, because 16 and 16.0 have different digests
        targets: list[str] = []
        layers: PositiveInt = 1
        width: PositiveInt = 1
        length: PositiveInt = 1
        steps: PositiveInt = 1

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
    """Returns the float variables that an encoder lists as trainable."""
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
                f"tuning.targets: {target!r} matches no kernel of the encoder; expected a part of one of these names: "
                f"{_listed(kernels)}"
            )
    return [v for v in kernels if any(matches(_name(v), target) for target in targets)]


def _top_layers(variables: Sequence[tf.Variable], layers: int) -> list[tf.Variable]:
    numbers = {v.ref(): int(found[1]) for v in variables if (found := _LAYER.search(_name(v)))}
    there = sorted(set(numbers.values()))
    if not 1 <= layers <= len(there):
        raise ModelError(
            f"tuning.layers: expected at least 1 and at most {len(there)}, because so many layers are numbered in the "
            f"names of the encoder's variables, got {layers}. The names are: {_listed(variables)}. Set fewer "
            "layers, or another mode."
        )
    return [v for v in variables if numbers.get(v.ref(), -1) >= there[-layers]]


def _is_kernel(variable: tf.Variable) -> bool:
    """Returns whether it is a matrix or a table; the biases of Keras' attention heads also have two axes."""
    return len(variable.shape) > 1 and not _name(variable).endswith("bias")


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Returns (in, out) of a kernel with any number of axes, split where the matrix is closest to a square.

    Keras' ``[D, heads, D / heads]`` and ``[heads, D / heads, D]`` both become ``(D, D)``.
    """
    return max(((math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))), key=min)


def _name(variable: tf.Variable) -> str:
    return variable.name.partition(":")[0]


def _keyed(variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Returns variables by keys that are stable for the same SavedModel and unique, unlike the names alone."""
    return {f"{i}:{_name(variable)}": variable for i, variable in enumerate(variables)}


def _listed(variables: Sequence[tf.Variable]) -> str:
    """Lists the names of variables for a message; names that differ only in the layer's number appear once."""

    def starred(match: re.Match) -> str:
        return match[0][: match.start(1) - match.start()] + "*"

    return ", ".join(dict.fromkeys(_LAYER.sub(starred, _name(v)) for v in variables))

"""A BERT encoder in core TensorFlow operations, built from Hugging Face weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.errors import ModelError


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT, named as in Hugging Face's ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """Reads a parsed ``config.json``; keys that are not sizes are ignored.

        Raises:
          ModelError: The config describes another architecture, or a size is missing.
        """
        for key, expected in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if config.get(key, expected) != expected:
                raise ModelError(f"expected {key} = {expected!r} in the BERT config, got {config[key]!r}")
        try:
            return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})
        except TypeError as error:
            raise ModelError(f"the BERT config is incomplete: {error}") from error

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )


class _Dense(tf.Module):
    """``x W + b`` on rows; ``W`` is ``[in, out]``, the transpose of the kernel in the weights file."""

    def __init__(self, weights: _Weights, source: str, width_in: int, width_out: int, name: str):
        super().__init__(name=name)
        with self.name_scope:
            self.kernel = weights.variable(f"{source}.weight", "kernel", (width_out, width_in), transpose=True)
            self.bias = weights.variable(f"{source}.bias", "bias", (width_out,))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(tf.matmul(x, tf.cast(self.kernel, x.dtype)), tf.cast(self.bias, x.dtype))


class _LayerNorm(tf.Module):
    """Layer normalisation over the last axis, computed in float32 whatever the input's type."""

    def __init__(self, weights: _Weights, source: str, config: BertConfig, name: str):
        super().__init__(name=name)
        self._epsilon = config.layer_norm_eps
        with self.name_scope:
            self.gamma = weights.variable(f"{source}.weight", "gamma", (config.hidden_size,))
            self.beta = weights.variable(f"{source}.bias", "beta", (config.hidden_size,))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, axes=-1, keepdims=True)
        return tf.cast(tf.nn.batch_normalization(wide, mean, variance, self.beta, self.gamma, self._epsilon), x.dtype)


class _Attention(tf.Module):
    """Multi-head self-attention on rows ``[B*T, D]``, with residual and normalisation.

    Attributes:
      prefix: A function from scaled queries ``[B, heads, T, D / heads]`` to an addition to their context, of the same
        shape.
    """

    def __init__(self, weights: _Weights, source: str, config: BertConfig):
        super().__init__(name="attention")
        self._heads = config.num_attention_heads
        self._width = config.hidden_size // config.num_attention_heads
        self._dropout = config.hidden_dropout_prob
        self._attention_dropout = config.attention_probs_dropout_prob
        self.prefix: Callable[[tf.Tensor], tf.Tensor] | None = None
        width = config.hidden_size
        with self.name_scope:
            self.query = _Dense(weights, f"{source}.self.query", width, width, "query")
            self.key = _Dense(weights, f"{source}.self.key", width, width, "key")
            self.value = _Dense(weights, f"{source}.self.value", width, width, "value")
            self.output = _Dense(weights, f"{source}.output.dense", width, width, "output")
            self.norm = _LayerNorm(weights, f"{source}.output.LayerNorm", config, "norm")

    def __call__(self, x: tf.Tensor, mask: tf.Tensor, training: bool) -> tf.Tensor:
        batch, tokens = tf.shape(mask)[0], tf.shape(mask)[-1]
        # One wide product instead of three narrow ones; the variables stay separate, so that LoRA can adapt each.
        parts = (self.query, self.key, self.value)
        kernel = tf.cast(tf.concat([part.kernel for part in parts], axis=1), x.dtype)
        bias = tf.cast(tf.concat([part.bias for part in parts], axis=0), x.dtype)
        mixed = tf.nn.bias_add(tf.matmul(x, kernel), bias)
        query, key, value = tf.unstack(
            tf.transpose(tf.reshape(mixed, [batch, tokens, 3, self._heads, self._width]), [2, 0, 3, 1, 4]), num=3
        )
        query *= self._width**-0.5
        scores = tf.matmul(query, key, transpose_b=True) + mask
        weights = tf.nn.softmax(scores)
        if training:
            weights = tf.nn.dropout(weights, self._attention_dropout)
        context = tf.matmul(weights, value)
        if self.prefix is not None:
            context += self.prefix(query)
        context = tf.transpose(context, [0, 2, 1, 3])
        out = self.output(tf.reshape(context, [batch * tokens, self._heads * self._width]))
        return self.norm(x + (tf.nn.dropout(out, self._dropout) if training else out))


class _FeedForward(tf.Module):
    """The position-wise network on rows ``[B*T, D]``, with residual and normalisation."""

    def __init__(self, weights: _Weights, source: str, config: BertConfig):
        super().__init__(name="feed_forward")
        self._dropout = config.hidden_dropout_prob
        width, inner = config.hidden_size, config.intermediate_size
        with self.name_scope:
            self.inner = _Dense(weights, f"{source}.intermediate.dense", width, inner, "inner")
            self.output = _Dense(weights, f"{source}.output.dense", inner, width, "output")
            self.norm = _LayerNorm(weights, f"{source}.output.LayerNorm", config, "norm")

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        # bias_add directly below the exact gelu is the pattern that TensorFlow fuses with the product.
        out = self.output(tf.nn.gelu(self.inner(x), approximate=False))
        return self.norm(x + (tf.nn.dropout(out, self._dropout) if training else out))


class _Layer(tf.Module):
    def __init__(self, weights: _Weights, source: str, config: BertConfig, name: str):
        super().__init__(name=name)
        with self.name_scope:
            self.attention = _Attention(weights, f"{source}.attention", config)
            self.feed_forward = _FeedForward(weights, source, config)

    def __call__(self, x: tf.Tensor, mask: tf.Tensor, training: bool) -> tf.Tensor:
        return self.feed_forward(self.attention(x, mask, training), training)


class _Weights:
    """A state dict that raises errors naming missing entries and entries of the wrong shape."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        # Some exports prefix each key with the name of the wrapped model.
        self._state = {key.removeprefix("bert."): value for key, value in state.items()}

    def variable(self, source: str, name: str, shape: tuple[int, ...], transpose: bool = False) -> tf.Variable:
        if source not in self._state:
            raise ModelError(f"expected a BERT weight named {source!r}, got {len(self._state)} others without it")
        value = np.asarray(self._state[source], np.float32)
        if value.shape != shape:
            raise ModelError(f"expected the BERT weight {source!r} of shape {list(shape)}, got {list(value.shape)}")
        return tf.Variable(value.T if transpose else value, name=name)


class BertEncoder(tf.Module):
    """BERT (Devlin et al. 2019, arXiv:1810.04805) of any size, as an encoder of token ids.

    Everything except the attention itself is computed on rows ``[B*T, D]``. The variables are float32 and trainable;
    their names follow the architecture (``bert/layer_0/attention/query/kernel``), so that adapters can find them.

    Args:
      config: The sizes.
      state: Hugging Face names -> arrays, as read from ``model.safetensors``. A pooler is ignored.
      words: A word embedding that replaces the one in ``state``. It is called with int32 token ids and is not trained.
      precision: The type of the products, ``"float32"`` or ``"bfloat16"``. Normalisation is computed in float32, and
        the outputs are float32.

    Raises:
      ModelError: A weight is missing, or its shape differs from the one in the config.
    """

    def __init__(
        self,
        config: BertConfig,
        state: Mapping[str, np.ndarray],
        precision: str = "float32",
        words: tf.Module | None = None,
    ):
        super().__init__(name="bert")
        self.config = config
        self._type = tf.as_dtype(precision)
        weights, width = _Weights(state), config.hidden_size
        with self.name_scope:
            self.word_embedding = words or weights.variable(
                "embeddings.word_embeddings.weight", "word_embedding", (config.vocab_size, width)
            )
            self.position_embedding = weights.variable(
                "embeddings.position_embeddings.weight", "position_embedding", (config.max_position_embeddings, width)
            )
            self.type_embedding = weights.variable(
                "embeddings.token_type_embeddings.weight", "type_embedding", (config.type_vocab_size, width)
            )
            self.embedding_norm = _LayerNorm(weights, "embeddings.LayerNorm", config, "embedding_norm")
            self.layers = [
                _Layer(weights, f"encoder.layer.{i}", config, f"layer_{i}") for i in range(config.num_hidden_layers)
            ]

    def __call__(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Encodes token ids.

        Args:
          inputs: ``input_word_ids``, ``input_mask`` (1 for a token, 0 for padding) and ``input_type_ids``, each int32
            ``[B, T]`` with T at most ``max_position_embeddings``.
          training: Whether dropout is on.

        Returns:
          ``sequence_output``, float32 ``[B, T, D]``; ``pooled_output``, float32 ``[B, D]``, the mean of the sequence
          over the mask, scaled to length 1 (sentence-transformers weights are trained for it, unlike for BERT's own
          next-sentence pooler), or zero if the mask is all 0; and ``default``, the same as ``pooled_output``.
        """
        x = self.embedded(inputs)
        if training:
            x = tf.nn.dropout(x, self.config.hidden_dropout_prob)
        mask = tf.cast(inputs["input_mask"], tf.float32)
        batch, tokens = tf.shape(mask)[0], tf.shape(mask)[1]
        # Large enough to vanish in the softmax, and representable in bfloat16.
        additive = tf.cast((mask[:, tf.newaxis, tf.newaxis, :] - 1.0) * 1e9, x.dtype)
        for layer in self.layers:
            x = layer(x, additive, training)
        sequence = tf.reshape(tf.cast(x, tf.float32), [batch, tokens, self.config.hidden_size])
        pooled = mean_pool(sequence, mask)
        return {"sequence_output": sequence, "pooled_output": pooled, "default": pooled}

    def embedded(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Maps the encoder's inputs, int32 ``[B, T]``, to the input of the first layer, rows ``[B*T, D]``."""
        ids, words = inputs["input_word_ids"], self.word_embedding
        batch, tokens = tf.shape(ids)[0], tf.shape(ids)[1]
        embedded = (
            (words(ids) if isinstance(words, tf.Module) else tf.gather(words, ids))
            + self.position_embedding[:tokens]
            + tf.gather(self.type_embedding, inputs["input_type_ids"])
        )
        rows = self.embedding_norm(tf.reshape(embedded, [batch * tokens, self.config.hidden_size]))
        return tf.cast(rows, self._type)


def mean_pool(sequence: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns the mean of ``sequence`` (float32 ``[B, T, D]``) over ``mask`` (``[B, T]``), scaled to length 1.

    Returns:
      Float32 ``[B, D]``; zero if the mask is all 0.
    """
    # The sum has the same direction as the mean, and only the direction is kept.
    total = tf.squeeze(tf.matmul(tf.cast(mask, sequence.dtype)[:, tf.newaxis, :], sequence), axis=1)
    return tf.math.l2_normalize(total, axis=-1)

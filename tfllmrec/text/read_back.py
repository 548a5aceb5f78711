"""Rebuilds a :class:`BertEncoder` from its SavedModel, for changes that a fixed graph does not allow."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.text.bert import BertConfig, BertEncoder
from tfllmrec.text.e5 import quantized_rows
from tfllmrec.text.preprocessor import INPUTS

# Regular expressions, applied in this order, from the variable names to the names in the state dict of a BertEncoder.
_PUBLISHED = (
    (r"^bert/", ""),
    (r":0$", ""),
    (r"^(word|position)_embedding$", r"embeddings.\1_embeddings.weight"),
    (r"^type_embedding$", "embeddings.token_type_embeddings.weight"),
    (r"^embedding_norm/", "embeddings.LayerNorm/"),
    (r"^layer_(\d+)/", r"encoder.layer.\1/"),
    (r"/attention/(query|key|value)/", r"/attention.self.\1/"),
    (r"/attention/output/", "/attention.output.dense/"),
    (r"/attention/norm/", "/attention.output.LayerNorm/"),
    (r"/feed_forward/inner/", "/intermediate.dense/"),
    (r"/feed_forward/output/", "/output.dense/"),
    (r"/feed_forward/norm/", "/output.LayerNorm/"),
    (r"/(kernel|gamma)$", ".weight"),
    (r"/(bias|beta)$", ".bias"),
    (r"/", "."),
)
# Relative differences of outputs: below _SIMILAR, two encoders may be the same (bfloat16 differs by less); below _SAME,
# no other number of heads can be the right one (float32 differs by far less).
_SIMILAR, _SAME = 0.05, 1e-3


def read_back(encoder: Any, remedy: str, precision: str | None = None) -> BertEncoder:
    """Returns a :class:`BertEncoder` equivalent to a loaded encoder in our own format; the variables are copies.

    The variables do not contain the number of heads: it is that of the copy whose output is closest to the encoder's.
    Dropout and the epsilon of the layer norms are those of :class:`BertConfig`.

    Args:
      encoder: An encoder as ``hub.load`` returned it: a bundled BERT, or one that ``save_encoder`` wrote, trained or
        not.
      remedy: What the error message advises for an encoder in another format.
      precision: The precision of the copy's products; ``None`` for the encoder's own.

    Raises:
      ModelError: The encoder is not in our own format.
    """
    state = {}
    for variable in getattr(encoder, "variables", ()):
        name = variable.name
        for pattern, published in _PUBLISHED:
            name = re.sub(pattern, published, name)
        state[name] = variable.numpy().T if "/kernel" in variable.name else variable.numpy()
    words = quantized_rows(encoder)
    try:
        positions, width = state["embeddings.position_embeddings.weight"].shape
        sizes = {
            "vocab_size": len(state["embeddings.word_embeddings.weight"]) if words is None else words.numbers.shape[0],
            "hidden_size": width,
            "num_hidden_layers": sum(name.endswith(".self.query.weight") for name in state),
            "intermediate_size": len(state["encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": positions,
            "type_vocab_size": len(state["embeddings.token_type_embeddings.weight"]),
        }
    except KeyError as error:
        raise ModelError(
            "expected a BERT in tfllmrec's own format ('minilm', 'e5', or an encoder that save_encoder wrote), got one "
            f"without {error} among its variables: {remedy}."
        ) from error
    ids = tf.reshape(tf.range(12), [2, 6]) % sizes["vocab_size"]
    mask = tf.sequence_mask([6, 4], dtype=tf.int32)
    probe = dict(zip(INPUTS, (ids, mask, tf.zeros_like(ids)), strict=True))
    expected = encoder(probe)["sequence_output"]
    best, difference, precision = None, np.inf, precision or _precision(encoder)
    for heads in sorted((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(width / h - 48)):
        copy = BertEncoder(BertConfig(num_attention_heads=heads, **sizes), state, precision, words)
        apart = float(tf.norm(copy(probe)["sequence_output"] - expected) / tf.norm(expected))
        if apart < difference:
            best, difference = copy, apart
        if difference < _SAME:
            break
    if best is not None and difference < _SIMILAR:
        return best
    raise ModelError(
        f"the encoder's weights do not answer as the encoder does (relative difference {difference:.3f}), so its graph "
        f"is not that of a BERT in tfllmrec's own format: {remedy}."
    )


def _precision(encoder: Any) -> str:
    """Returns whether the encoder's graph computes in bfloat16 or float32.

    Comparing outputs is not enough: some processors round bfloat16 products less.
    """
    functions = getattr(encoder.__call__, "concrete_functions", ())  # an encoder that was not loaded has none
    operations = (operation for function in functions for operation in function.graph.get_operations())
    types = {output.dtype for operation in operations for output in operation.outputs}
    return "bfloat16" if tf.bfloat16 in types else "float32"

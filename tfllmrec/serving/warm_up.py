"""Writes warm-up requests, which a server sends to a version before it serves it.

The first call of a signature prepares its graph and fills caches, which takes many times as long as a later call. TF
Serving and the embedded server send each ``PredictionLog`` of ``assets.extra/tf_serving_warmup_requests`` to the
version before any user's request reaches it, so that no user waits for these preparations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.client.messages import MESSAGES
from tfllmrec.data.schema import Field, Schema
from tfllmrec.text.preprocessor import INPUTS

#: Numbers of queries in a request: a single user, and a batch in which a server combines several requests.
BATCHES = (1, 8)
HISTORY, FEW, TOKENS = 10, 5, 16
#: Values of the inputs that have one number for each query.
NUMBERS = {"k": 10, "diversity": 0.5, "category_cap": 5, "tail_share": 0.3, "reasons": 5}


def write_warm_up(
    path: Path,
    model_name: str,
    signatures: Mapping[str, tf.types.experimental.PolymorphicFunction],
    item_ids: Sequence[str],
    texts: Sequence[str],
    schema: Schema,
    labels: Sequence[str] = (),
) -> None:
    """Writes a TFRecord file of requests of typical sizes, one for each signature and each of :data:`BATCHES`.

    Inputs without example values are empty: their rows have no entries.

    Args:
      path: The file to write.
      model_name: The name of the model that clients use.
      signatures: The signatures by name, with named inputs.
      item_ids: Some ids of the catalogue, for histories and other lists of items.
      texts: Some texts to search for.
      schema: The fields that requests may name.
      labels: Some labels that requests may weigh.

    Raises:
      tf.errors.OpError: The file cannot be written.
    """
    said = {
        "context": [_entry(field) for field in schema.of_query()],
        "event_fields": ["\n".join(map(_entry, schema.of_history()))],
        "history": item_ids,
        "exclude": item_ids,
        "items": item_ids,
        "pinned": item_ids[::-1],
        "item_id": item_ids,
        "text": texts,
        "label_weights": [f"{label}=0.5" for label in labels],
    }
    with tf.io.TFRecordWriter(str(path)) as out:
        for name, function in signatures.items():
            for batch in BATCHES:
                log = MESSAGES["PredictionLog"]()
                request = log.predict_log.request
                request.model_spec.name, request.model_spec.signature_name = model_name, name
                for spec in function.input_signature:  # as declared; a concrete function would need another tracing
                    value = tf.make_tensor_proto(_values(spec, batch, said), spec.dtype)
                    request.inputs[spec.name].ParseFromString(value.SerializeToString())
                out.write(log.SerializeToString())


def _values(spec: tf.TensorSpec, batch: int, said: Mapping[str, Sequence[str]]) -> np.ndarray:
    if (strings := said.get(spec.name)) is not None:
        widths = {"history": HISTORY, "event_fields": HISTORY} | dict.fromkeys(
            ("context", "label_weights"), len(strings)
        )
        width = widths.get(spec.name, FEW)
        shape = (batch, width)[: spec.shape.rank]
        return np.resize(np.asarray(strings, object), shape) if len(strings) else np.empty(shape, object)
    if spec.name == "ratings":
        return np.ones((batch, HISTORY))
    if (number := NUMBERS.get(spec.name)) is not None:
        return np.full(batch, number)
    if spec.name in INPUTS:
        # Every vocabulary has a word with the id 1; the types of a single text are all 0.
        return np.full((batch, TOKENS), int(spec.name != INPUTS[-1]))
    sizes = [batch, *[0] * (spec.shape.rank - 1)][: spec.shape.rank]
    return np.full(sizes, "" if spec.dtype == tf.string else 0, object if spec.dtype == tf.string else None)


def _entry(field: Field) -> str:
    """Returns an entry of a request for a field, with a readable value."""
    category = field.vocabulary[0] if field.vocabulary else ""
    value = {"category": category, "number": f"{field.median:g}", "time": "0", "text": "some words"}
    return f"{field.name}={value.get(field.kind, '1 ' * field.width)}"

"""Loads any SavedModel with TensorFlow, and calls its signatures by name, as TF Serving does.

The server does this in a separate process: :mod:`tfllmrec.server.model_process`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.batching import Joining
from tfllmrec.server.lists import Items
from tfllmrec.server.protos import from_proto
from tfllmrec.server.tensors import STRING, Signature, Tensors, TensorSpec, signature_of
from tfllmrec.server.work import TextFields
from tfllmrec.serving.layout import EXTRA, MANIFEST, WARM_UP, has_scann, read_manifest
from tfllmrec.serving.loading import load

#: Signatures of models exported by tfllmrec that order their best items by the ranking model.
RANKED = ("serving_default", "recommend", "recommend_full")


class Servable:
    """One version of a model.

    Attributes:
      definitions: The SignatureDefs by name.
      signatures: The signatures by name.
      joining: For each signature, the object that joins its requests.
      metadata: The SignatureDefs as plain JSON types, in the form that TF Serving returns.
      items: The strata of the items.

    Args:
      folder: The folder of the version, with ``saved_model.pb``.

    Raises:
      RequestError: The folder cannot be loaded, or one of its warm-up requests fails.
    """

    def __init__(self, folder: Path) -> None:
        self.definitions = _signature_definitions(folder / "saved_model.pb")
        ours = (folder / EXTRA / MANIFEST).is_file()
        try:
            manifest = read_manifest(folder) if ours else {}
            scann = has_scann(manifest)
            self._loaded = load(folder, scann)
            self.items = Items.of(folder, manifest) if ours else Items()
        except Exception as error:  # TensorFlow raises nearly anything on a damaged SavedModel
            raise RequestError(Code.FAILED_PRECONDITION, f"{folder} cannot be loaded: {error}") from error
        self._functions = dict(self._loaded.signatures)
        self.signatures = {name: _signature(self.definitions[name]) for name in self._functions}
        self.joining = {
            name: Joining(
                signature,
                ours,
                manifest.get("items", 0),
                manifest.get("ranked", 0) if name in RANKED else 0,
                TextFields(**manifest.get("texts", {})),
            )
            for name, signature in self.signatures.items()
        }
        self._warm_up(folder / EXTRA / WARM_UP)

    def call(self, signature: str, inputs: Tensors) -> Tensors:
        """Runs a signature on checked inputs; blocks.

        Raises:
          RequestError: With the code and the text of TensorFlow's error; INTERNAL for any other error.
        """
        function, specs = self._functions[signature], self.signatures[signature].inputs
        try:
            fed = {
                name: tf.constant(tensor, tf.string if specs[name].dtype == STRING else None)
                for name, tensor in inputs.items()
            }
            return {name: _array(tensor.numpy()) for name, tensor in function(**fed).items()}
        except tf.errors.OpError as error:
            raise RequestError(Code(error.error_code), error.message) from error
        except Exception as error:
            raise RequestError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            name: json_format.MessageToDict(
                definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for name, definition in self.definitions.items()
        }

    def _warm_up(self, path: Path) -> None:
        """Replays the warm-up requests, so that no user's request waits while TensorFlow optimises the graph."""
        if not path.is_file():
            return
        for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
            log = prediction_log_pb2.PredictionLog.FromString(record)
            if not log.HasField("predict_log"):
                continue
            request: predict_pb2.PredictRequest = log.predict_log.request
            try:
                name, signature = signature_of(self.signatures, request.model_spec.signature_name, Code.NOT_FOUND)
                inputs = {key: from_proto(key, proto) for key, proto in request.inputs.items()}
                self.call(name, signature.checked(inputs))
            except RequestError as error:
                raise RequestError(error.code, f"warm-up request {number} of {path} fails: {error.message}") from error


def _signature_definitions(path: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Returns the signatures of the graph for serving, including those for TensorFlow's own use."""
    try:
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except Exception as error:
        raise RequestError(Code.FAILED_PRECONDITION, f"{path} is no SavedModel, or a part of one: {error}") from error
    for graph in saved.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            definitions = {}
            for name, definition in graph.signature_def.items():
                definitions[name] = meta_graph_pb2.SignatureDef()
                definitions[name].CopyFrom(definition)
            return definitions
    raise RequestError(Code.NOT_FOUND, f"{path} has no graph with the tag 'serve'")


def _signature(definition: meta_graph_pb2.SignatureDef) -> Signature:
    return Signature(
        {name: _spec(info) for name, info in definition.inputs.items()},
        {name: _spec(info) for name, info in definition.outputs.items()},
        {name: from_proto(name, proto) for name, proto in definition.defaults.items()},
    )


def _spec(info: meta_graph_pb2.TensorInfo) -> TensorSpec:
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype), shape)


def _array(value: Any) -> np.ndarray:
    # TensorFlow returns a scalar string as bytes, not as an array.
    return np.asarray(value, object if isinstance(value, bytes) else None)

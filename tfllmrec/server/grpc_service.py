"""TF Serving's gRPC services PredictionService and ModelService, and the EventService of tfllmrec.

The initial metadata of each answer contain the id of the request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tfllmrec.client.messages import MESSAGES
from tfllmrec.client.status import Code, RequestError, invalid
from tfllmrec.client.transports import REQUEST_ID
from tfllmrec.errors import ConfigError
from tfllmrec.server import request_ids
from tfllmrec.server.engine import Engine
from tfllmrec.server.protos import EXPANSION, declared, from_proto, to_proto
from tfllmrec.server.tensors import Tensors, signature_of

logger = logging.getLogger(__name__)

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

#: Serves the models of a ``ModelServerConfig``; returns a message for each label that could not be moved.
Reload = Callable[[Any], Awaitable[list[str]]]


def add_services(server: grpc.aio.Server, engine: Engine, reload: Reload | None) -> None:
    """Adds the services to a server.

    Args:
      server: The server.
      engine: The engine that answers.
      reload: Changes the served models; ``None`` if clients may not choose them.
    """
    prediction, model = _Prediction(engine), _Model(engine, reload)
    services = {
        "tensorflow.serving.PredictionService": {
            "Predict": _handler(prediction.predict, "PredictRequest"),
            "GetModelMetadata": _handler(prediction.metadata, "GetModelMetadataRequest"),
            **{api: _unimplemented(api) for api in ("Classify", "Regress", "MultiInference")},
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": _handler(model.status, "GetModelStatusRequest"),
            "HandleReloadConfigRequest": _handler(model.reload, "ReloadConfigRequest"),
        },
        "tfllmrec.EventService": {"SendEvents": _handler(_Events(engine).send, "SendEventsRequest")},
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, methods) for service, methods in services.items())
    )


def _handler(answer: Callable[[Any, float | None], Awaitable[Any]], request: str) -> grpc.RpcMethodHandler:
    """Returns a handler for requests of one message type.

    Args:
      answer: Returns the response to a request; it is called with the request and with the number of seconds until the
        client's deadline (``None`` for no deadline).
      request: The name of the message type.
    """

    async def handle(message: Any, context: Any) -> Any:
        try:
            return await answer(message, context.time_remaining())
        except RequestError as error:
            code, text = GRPC_CODES[error.code.value], error.message
        except Exception as error:
            logger.exception("request %s ended in a bug of the server", request_ids.request_id.get())
            code, text = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        await context.abort(code, text)

    return grpc.unary_unary_rpc_method_handler(
        handle, MESSAGES[request].FromString, lambda response: response.SerializeToString()
    )


def _unimplemented(api: str) -> grpc.RpcMethodHandler:
    async def refuse(message: bytes, context: Any) -> None:
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, f"{api} is not answered here, only Predict: call the signature by its name"
        )

    return grpc.unary_unary_rpc_method_handler(refuse)


class _Prediction:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def predict(self, request: Any, timeout_s: float | None) -> Any:
        spec, models = request.model_spec, self._engine.models
        engine, limit = self._engine, EXPANSION * self._engine.limits.body_bytes
        with (
            engine.counted(spec.name, "Predict", "GRPC"),
            engine.body() as body,
            models.hold(*_asked(request)) as version,
        ):
            body.add(request.ByteSize())
            assert version.servable is not None
            name, signature = signature_of(version.servable.signatures, spec.signature_name, Code.FAILED_PRECONDITION)
            names = list(request.output_filter)
            signature.check_filter(names)
            # Checked before any tensor is expanded, because a few bytes may declare a tensor of any size.
            shapes = {key: declared(key, proto, limit) for key, proto in request.inputs.items()}
            engine.check(version, name, shapes)
            size = max(body.bytes, sum(shape.nbytes for shape in shapes.values()))
            async with engine.within(version, timeout_s):
                inputs = await engine.aside(size, _tensors, request, limit)
                _, number, label = _asked(request)
                with engine.divided(version, number, label, name, inputs, names) as (answering, arm):
                    outputs = signature.filtered(await engine.predict(answering, name, inputs, arm), names)
                model_spec = _spec(spec.name, answering.number, name)
                size = sum(output.nbytes for output in outputs.values())
                return await engine.aside(size, _response, outputs, model_spec)

    async def metadata(self, request: Any, timeout_s: float | None) -> Any:
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported; expected signature_def")
        with self._engine.models.hold(*_asked(request)) as version:
            assert version.servable is not None
            signatures = MESSAGES["SignatureDefMap"]()
            for name, definition in version.servable.definitions.items():
                signatures.signature_def[name].ParseFromString(definition)
            response = MESSAGES["GetModelMetadataResponse"](model_spec=_spec(request.model_spec.name, version.number))
            response.metadata["signature_def"].type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
            response.metadata["signature_def"].value = signatures.SerializeToString()
            return response


class _Model:
    def __init__(self, engine: Engine, reload: Reload | None) -> None:
        self._engine, self._reload = engine, reload

    async def status(self, request: Any, timeout_s: float | None) -> Any:
        name, number, label = _asked(request)
        models = self._engine.models
        response = MESSAGES["GetModelStatusResponse"]()
        for version in models.status(name, models.labelled(name, label) if label else number):
            status = response.model_version_status.add(version=version.number, state=version.state.value)
            status.status.error_code = version.code.value
            status.status.error_message = version.error
        return response

    async def reload(self, request: Any, timeout_s: float | None) -> Any:
        from tensorflow_serving.config import model_server_config_pb2

        if self._reload is None:
            raise RequestError(
                Code.PERMISSION_DENIED,
                "clients may not choose the models of this server: start it with a token or with --allow-reload, or "
                "change its models.config or folder",
            )
        try:
            # Shielded, so that a reload is completed even if the client does not wait for it.
            config = model_server_config_pb2.ModelServerConfig.FromString(request.config)
            unmoved = await asyncio.shield(asyncio.ensure_future(self._reload(config)))
        except (ConfigError, DecodeError) as error:
            raise invalid(f"ReloadConfigRequest: {error}") from None
        if unmoved:
            raise RequestError(Code.FAILED_PRECONDITION, "; ".join(unmoved))
        return MESSAGES["ReloadConfigResponse"]()


class _Events:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def send(self, request: Any, timeout_s: float | None) -> Any:
        intake = self._engine.require_intake()
        with self._engine.body() as body:
            body.add(request.ByteSize())
            receipt = await intake.take(body.bytes, lambda: intake.of_lines(request.events), timeout_s)
        response = MESSAGES["SendEventsResponse"](
            accepted=receipt.accepted, duplicates=receipt.duplicates, late=receipt.late, skewed=receipt.skewed
        )
        for refused in receipt.refused:
            response.refused.add(event=refused.event, reason=refused.reason)
        return response


class WithRequestId(grpc.aio.ServerInterceptor):
    """Sends the id of the call before its answer or error, even if the method does not exist.

    Calls that gRPC itself refuses, such as those with a too large message, get no id.
    """

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        given = next((v for name, v in handler_call_details.invocation_metadata or () if name == REQUEST_ID), None)
        handler = await continuation(handler_call_details) or _unimplemented(handler_call_details.method)

        async def answer(request: Any, context: Any) -> Any:
            await context.send_initial_metadata(((REQUEST_ID, request_ids.take(given)),))
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


class Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without the metadata ``authorization: Bearer TOKEN``."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        for name, value in handler_call_details.invocation_metadata or ():
            if name == "authorization" and hmac.compare_digest(str(value).encode(), self._expected):
                return await continuation(handler_call_details)

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "expected metadata 'authorization: Bearer TOKEN' with this server's token",
            )

        return grpc.unary_unary_rpc_method_handler(refuse)


def _tensors(request: Any, limit: int) -> Tensors:
    return {key: from_proto(key, proto, limit) for key, proto in request.inputs.items()}


def _response(outputs: Tensors, model_spec: Any) -> Any:
    response = MESSAGES["PredictResponse"](model_spec=model_spec)
    for key, array in outputs.items():
        response.outputs[key].CopyFrom(to_proto(array))
    return response


def _asked(request: Any) -> tuple[str, int | None, str | None]:
    """Returns the name, the version and the label of the model that a request names.

    Raises:
      RequestError: INVALID_ARGUMENT if the request names no model.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    return spec.name, spec.version.value if spec.HasField("version") else None, spec.version_label or None


def _spec(name: str, version: int, signature: str = "") -> Any:
    spec = MESSAGES["ModelSpec"](name=name, signature_name=signature)
    spec.version.value = version
    return spec

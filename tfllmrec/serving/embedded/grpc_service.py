"""TF Serving's gRPC services: PredictionService and ModelService."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfllmrec.errors import ConfigError
from tfllmrec.serving.embedded.engine import Engine
from tfllmrec.serving.embedded.servable import EXPANSION, declared, from_proto, to_proto
from tfllmrec.serving.embedded.status import Code, RequestError, invalid
from tfllmrec.serving.embedded.tensors import Tensors, signature_of

logger = logging.getLogger(__name__)

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

#: Serves the models of a ``ModelServerConfig``; returns a message for each label that could not be moved.
Reload = Callable[[Any], Awaitable[list[str]]]


def add_services(server: grpc.aio.Server, engine: Engine, reload: Reload | None) -> None:
    """Adds both services; ``reload`` is ``None`` if clients may not choose the models."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(engine), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(engine, reload), server)


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Predict(self, request: predict_pb2.PredictRequest, context: Any) -> predict_pb2.PredictResponse:
        return await _answered(context, self._predict(request, context.time_remaining()))

    async def _predict(
        self, request: predict_pb2.PredictRequest, timeout_s: float | None
    ) -> predict_pb2.PredictResponse:
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
            # Before anything is expanded: a few bytes may declare a tensor of any size.
            shapes = {key: declared(key, proto, limit) for key, proto in request.inputs.items()}
            engine.check(version, name, shapes)
            size = max(body.bytes, sum(shape.nbytes for shape in shapes.values()))
            async with engine.within(version, timeout_s):
                inputs = await engine.aside(size, _tensors, request, limit)
                outputs = signature.filtered(await engine.predict(version, name, inputs), names)
                model_spec = _spec(spec.name, version.number, name)
                size = sum(output.nbytes for output in outputs.values())
                return await engine.aside(size, _response, outputs, model_spec)

    async def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: Any
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return await _answered(context, self._metadata(request))

    async def _metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported; expected signature_def")
        with self._engine.models.hold(*_asked(request)) as version:
            assert version.servable is not None
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, definition in version.servable.definitions.items():
                signatures.signature_def[name].ParseFromString(definition)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.CopyFrom(_spec(request.model_spec.name, version.number))
            response.metadata["signature_def"].Pack(signatures)
            return response

    async def Classify(self, request: Any, context: Any) -> None:
        await _unimplemented(context, "Classify")

    async def Regress(self, request: Any, context: Any) -> None:
        await _unimplemented(context, "Regress")

    async def MultiInference(self, request: Any, context: Any) -> None:
        await _unimplemented(context, "MultiInference")


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, engine: Engine, reload: Reload | None) -> None:
        self._engine, self._reload = engine, reload

    async def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: Any
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return await _answered(context, self._status(request))

    async def _status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        name, number, label = _asked(request)
        models = self._engine.models
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in models.status(name, models.labelled(name, label) if label else number):
            status = response.model_version_status.add(version=version.number, state=version.state.value)
            status.status.error_code = version.code.value
            status.status.error_message = version.error
        return response

    async def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: Any
    ) -> model_management_pb2.ReloadConfigResponse:
        return await _answered(context, self._handle_reload(request))

    async def _handle_reload(
        self, request: model_management_pb2.ReloadConfigRequest
    ) -> model_management_pb2.ReloadConfigResponse:
        if self._reload is None:
            raise RequestError(
                Code.PERMISSION_DENIED,
                "clients may not choose the models of this server: start it with a token or with --allow-reload, or "
                "change its models.config or folder",
            )
        try:
            # Shielded: a reload is done as a whole, even if the client does not wait for its end.
            unmoved = await asyncio.shield(asyncio.ensure_future(self._reload(request.config)))
        except ConfigError as error:
            raise invalid(f"ReloadConfigRequest: {error}") from None
        if unmoved:
            raise RequestError(Code.FAILED_PRECONDITION, "; ".join(unmoved))
        return model_management_pb2.ReloadConfigResponse()


class Guard(grpc.aio.ServerInterceptor):
    """Lets only those in that send ``authorization: Bearer TOKEN`` with the call."""

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


def _tensors(request: predict_pb2.PredictRequest, limit: int) -> Tensors:
    return {key: from_proto(key, proto, limit) for key, proto in request.inputs.items()}


def _response(outputs: Tensors, model_spec: model_pb2.ModelSpec) -> predict_pb2.PredictResponse:
    response = predict_pb2.PredictResponse(model_spec=model_spec)
    for key, array in outputs.items():
        response.outputs[key].CopyFrom(to_proto(array))
    return response


async def _answered(context: Any, answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except RequestError as error:
        code, message = GRPC_CODES[error.code.value], error.message
    except Exception as error:
        logger.exception("a request ended in a bug of the server")
        code, message = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    # Not where the error is at hand: gRPC keeps the last call that was aborted, and with it the error's frames, which
    # hold a version that may be unloaded next.
    await context.abort(code, message)


async def _unimplemented(context: Any, api: str) -> None:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED, f"{api} is not answered here, only Predict: call the signature by its name"
    )


def _asked(request: Any) -> tuple[str, int | None, str | None]:
    """Name, version and label of the model that a request means."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    number = spec.version.value if choice == "version" else None
    return spec.name, number, spec.version_label if choice == "version_label" else None


def _spec(name: str, version: int, signature: str = "") -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    return spec

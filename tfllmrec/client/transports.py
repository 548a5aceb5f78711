"""The transports of a client's calls: TF Serving's REST API and its gRPC services."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from ..errors import ConfigError, DataError, ModelError
from .answers import Answer, Metadata, ModelVersion, Outputs, Receipt, Refused, Signature, TensorSpec
from .status import HTTP_STATUS

# The code of each HTTP status. TF Serving maps several codes to one status; the most likely code is chosen here. The
# embedded server and proxies add 408 and 413.
CODES = {status: code.name for code, status in HTTP_STATUS.items()} | {
    400: "INVALID_ARGUMENT",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    500: "INTERNAL",
}


#: The HTTP header and gRPC metadata key that holds the id of a request.
REQUEST_ID = "x-request-id"
#: Assumed size of a value in a tensor. Over gRPC, one value that is sent may stand for any number of values.
VALUE_BYTES = 4


class ServingError(ModelError):
    """The server answered with an error, or not at all.

    Attributes:
      code: The gRPC name of the error, also over REST: ``NOT_FOUND`` (no such model, version or label),
        ``INVALID_ARGUMENT``, ``UNAVAILABLE``, ``DEADLINE_EXCEEDED``, ``UNAUTHENTICATED`` and so on.
      retry_after_s: The pause before the next attempt that the server asked for.
      request_id: The id of the request in the server's log.
    """

    def __init__(self, message: str, code: str, retry_after_s: float = 0.0, request_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class Target(NamedTuple):
    """The model to ask: the version that the server chooses, a given version, or the version with a given label."""

    model: str
    version: int | None
    label: str | None


class Security(NamedTuple):
    """TLS, bearer token and certificates by which client and server authenticate each other.

    Attributes:
      tls: Whether the connection is encrypted.
      token: The bearer token; ``None`` for none.
      ca_file: PEM certificates to trust.
      cert_file: The client's own PEM certificate.
      key_file: The private key of ``cert_file``.
    """

    tls: bool
    token: str | None
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None


class Transport(Protocol):
    """REST or gRPC. Every call has ``timeout`` seconds, sends its ``request_id`` and raises :class:`ServingError`."""

    def predict(self, signature: str, inputs: dict[str, Any], timeout: float, request_id: str) -> Outputs: ...

    def status(self, timeout: float, request_id: str) -> Answer[ModelVersion]: ...

    def metadata(self, timeout: float, request_id: str) -> Metadata: ...

    def send_events(self, events: Sequence[bytes], timeout: float, request_id: str) -> Receipt: ...

    def close(self) -> None: ...


class Rest:
    """TF Serving's REST API, in its column format."""

    def __init__(
        self,
        host: str,
        port: int,
        prefix: str,
        target: Target,
        security: Security,
        connections: int,
        max_answer_bytes: int,
    ) -> None:
        import urllib3

        self._errors = urllib3.exceptions
        self._timeout = urllib3.Timeout
        self._slots = threading.BoundedSemaphore(connections)
        self._max_answer_bytes = max_answer_bytes
        headers = {"Authorization": f"Bearer {security.token}"} if security.token else {}
        options: dict[str, Any] = {"port": port, "maxsize": connections, "headers": headers}
        self._pool: urllib3.HTTPConnectionPool
        if security.tls:
            context = _ssl_context(security)
            self._pool = urllib3.HTTPSConnectionPool(host, ssl_context=context, **options)
        else:
            self._pool = urllib3.HTTPConnectionPool(host, **options)
        self._events_path = f"{prefix}/v1/events"
        self._path = f"{prefix}/v1/models/{quote(target.model, safe='')}"
        if target.version is not None:
            self._path += f"/versions/{target.version}"
        if target.label is not None:
            self._path += f"/labels/{quote(target.label, safe='')}"

    def predict(self, signature: str, inputs: dict[str, Any], timeout: float, request_id: str) -> Outputs:
        try:
            body = json.dumps({"signature_name": signature, "inputs": inputs}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{error.object[max(error.start - 20, 0) : error.end]!r} is not valid Unicode text."
            ) from error
        told, request_id = self._call("POST", self._path + ":predict", timeout, request_id, body)
        with reading():
            outputs = told["outputs"]
            return Outputs(outputs if isinstance(outputs, dict) else {"outputs": outputs}, request_id)

    def status(self, timeout: float, request_id: str) -> Answer[ModelVersion]:
        told, request_id = self._call("GET", self._path, timeout, request_id)
        with reading():
            versions = (
                ModelVersion(int(found["version"]), found["state"], found["status"].get("error_message", ""))
                for found in told["model_version_status"]
            )
            return Answer(versions, request_id=request_id)

    def metadata(self, timeout: float, request_id: str) -> Metadata:
        told, request_id = self._call("GET", self._path + "/metadata", timeout, request_id)
        with reading():
            signatures = {
                name: Signature(_specs(given["inputs"]), _specs(given["outputs"]))
                for name, given in told["metadata"]["signature_def"]["signature_def"].items()
            }
            spec = told["model_spec"]
            return Metadata(spec["name"], int(spec["version"]), _offered(signatures), request_id)

    def send_events(self, events: Sequence[bytes], timeout: float, request_id: str) -> Receipt:
        body = b'{"events": [' + b",".join(events) + b"]}"
        told, request_id = self._call("POST", self._events_path, timeout, request_id, body)
        with reading():
            refused = tuple(Refused(each["event"], each["reason"]) for each in told["refused"])
            return Receipt(told["accepted"], told["duplicates"], refused, told["late"], told["skewed"], request_id)

    def close(self) -> None:
        self._pool.close()

    def _call(
        self, method: str, path: str, timeout: float, request_id: str, body: bytes | None = None
    ) -> tuple[Any, str]:
        """Returns the decoded JSON of an answer, and the request id that came with it."""
        ends = time.monotonic() + timeout
        # A burst of calls waits here, instead of opening a connection for each call and closing it afterwards.
        if not self._slots.acquire(timeout=timeout):
            raise ServingError("all connections were busy until the deadline", "DEADLINE_EXCEEDED")
        try:
            response, content = self._exchange(method, path, ends, request_id, body)
        except (self._errors.HTTPError, OSError) as error:
            # urllib3 counts a refused connection among the timeouts.
            refused = isinstance(error, self._errors.NewConnectionError)
            if isinstance(error, self._errors.TimeoutError) and not refused:
                raise ServingError("no answer within the deadline", "DEADLINE_EXCEEDED") from error
            # Another attempt would meet the same certificate; any other failure may be temporary.
            untrusted = isinstance(error.args and error.args[0], ssl.SSLCertVerificationError)
            code = "UNAUTHENTICATED" if untrusted else "UNAVAILABLE"
            raise ServingError(f"the connection failed: {error}", code) from error
        finally:
            self._slots.release()
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            told = content[:80].decode(errors="replace")
        request_id = response.headers.get(REQUEST_ID) or request_id
        if response.status != 200:
            message = told.get("error") if isinstance(told, dict) else None
            after = response.headers.get("Retry-After", "")
            raise ServingError(
                message or f"HTTP status {response.status} {response.reason}",
                CODES.get(response.status, "UNKNOWN"),
                float(after) if after.isdecimal() else 0.0,
                request_id,
            )
        return told, request_id

    def _exchange(self, method: str, path: str, ends: float, request_id: str, body: bytes | None) -> tuple[Any, bytes]:
        response = self._pool.urlopen(
            method,
            path,
            body,
            {**self._pool.headers, REQUEST_ID: request_id},
            retries=False,
            redirect=False,
            timeout=self._timeout(total=max(ends - time.monotonic(), 0.001)),
            preload_content=False,
        )
        content = bytearray()
        # urllib3's timeout limits the time without data; a server that sends slowly is held to the deadline here.
        while chunk := response.read1(1 << 16):
            content += chunk  # decompressed, if a server compresses without being asked
            if len(content) > self._max_answer_bytes:
                response.close()
                raise _too_large(f"the answer has more than {self._max_answer_bytes} bytes")
            if time.monotonic() > ends:
                response.close()
                raise ServingError("the answer had begun but not ended", "DEADLINE_EXCEEDED")
        return response, bytes(content)


class Grpc:
    """TF Serving's ``PredictionService`` and ``ModelService``, and the embedded server's ``EventService``."""

    def __init__(self, host: str, port: int, target: Target, security: Security, max_answer_bytes: int) -> None:
        import grpc

        from . import messages

        self._rpc_error = grpc.RpcError
        self._messages = messages
        options = [
            ("grpc.max_receive_message_length", max_answer_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.lb_policy_name", "round_robin"),
            # After a lost connection gRPC refuses calls for a second by default, longer than most deadlines.
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # The client retries, in the same way for both transports.
            ("grpc.enable_retries", 0),
        ]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if security.tls:
            ca, key, certificate = map(_content, (security.ca_file, security.key_file, security.cert_file))
            credentials = grpc.ssl_channel_credentials(ca, key, certificate)
            self._channel = grpc.secure_channel(where, credentials, options)
        else:
            self._channel = grpc.insecure_channel(where, options)
        self._call_metadata = (("authorization", f"Bearer {security.token}"),) if security.token else ()
        self._target = target
        self._max_answer_bytes = max_answer_bytes
        self._predict = self._method(
            "tensorflow.serving.PredictionService/Predict", "PredictRequest", "PredictResponse"
        )
        self._metadata = self._method(
            "tensorflow.serving.PredictionService/GetModelMetadata",
            "GetModelMetadataRequest",
            "GetModelMetadataResponse",
        )
        self._status = self._method(
            "tensorflow.serving.ModelService/GetModelStatus", "GetModelStatusRequest", "GetModelStatusResponse"
        )
        self._send_events = self._method("tfllmrec.EventService/SendEvents", "SendEventsRequest", "SendEventsResponse")

    def predict(self, signature: str, inputs: dict[str, Any], timeout: float, request_id: str) -> Outputs:
        request = self._messages.MESSAGES["PredictRequest"](model_spec=self._spec(signature))
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(self._messages.tensor_proto(name, values))
        response, request_id = self._call(self._predict, request, timeout, request_id)
        values = self._messages.value_count(response.outputs.values())
        if values * VALUE_BYTES > self._max_answer_bytes:
            most = self._max_answer_bytes // VALUE_BYTES
            raise _too_large(f"the answer declares {values} values; expected {most} at most")
        outputs = {name: self._messages.values_of(name, tensor) for name, tensor in response.outputs.items()}
        return Outputs(outputs, request_id)

    def status(self, timeout: float, request_id: str) -> Answer[ModelVersion]:
        request = self._messages.MESSAGES["GetModelStatusRequest"](model_spec=self._spec())
        told, request_id = self._call(self._status, request, timeout, request_id)
        states = self._messages.STATES
        versions = (
            ModelVersion(found.version, states.get(found.state, "UNKNOWN"), found.status.error_message)
            for found in told.model_version_status
        )
        return Answer(versions, request_id=request_id)

    def metadata(self, timeout: float, request_id: str) -> Metadata:
        request = self._messages.MESSAGES["GetModelMetadataRequest"](
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        told, request_id = self._call(self._metadata, request, timeout, request_id)
        found = self._messages.MESSAGES["SignatureDefMap"].FromString(told.metadata["signature_def"].value)
        signatures = {
            name: Signature(self._specs(given.inputs), self._specs(given.outputs))
            for name, given in found.signature_def.items()
        }
        return Metadata(told.model_spec.name, told.model_spec.version.value, _offered(signatures), request_id)

    def send_events(self, events: Sequence[bytes], timeout: float, request_id: str) -> Receipt:
        request = self._messages.MESSAGES["SendEventsRequest"](events=events)
        told, request_id = self._call(self._send_events, request, timeout, request_id)
        refused = tuple(Refused(each.event, each.reason) for each in told.refused)
        return Receipt(told.accepted, told.duplicates, refused, told.late, told.skewed, request_id)

    def close(self) -> None:
        self._channel.close()

    def _specs(self, tensors: Any) -> dict[str, TensorSpec]:
        name_of = self._messages.dtype_name
        return {
            name: TensorSpec(
                name_of(info.dtype),
                _shape(info.tensor_shape.unknown_rank, [dim.size for dim in info.tensor_shape.dim]),
            )
            for name, info in tensors.items()
        }

    def _spec(self, signature: str = "") -> Any:
        model, version, label = self._target
        spec = self._messages.MESSAGES["ModelSpec"](name=model, signature_name=signature, version_label=label or "")
        if version is not None:
            spec.version.value = version
        return spec

    def _method(self, path: str, request: str, response: str) -> Any:
        classes = self._messages.MESSAGES
        return self._channel.unary_unary(f"/{path}", classes[request].SerializeToString, classes[response].FromString)

    def _call(self, method: Any, request: Any, timeout: float, request_id: str) -> tuple[Any, str]:
        """Returns the response, and the request id that came with it."""
        metadata = (*self._call_metadata, (REQUEST_ID, request_id))
        try:
            response, call = method.with_call(request, timeout=timeout, metadata=metadata)
            return response, dict(call.initial_metadata()).get(REQUEST_ID, request_id)
        except self._rpc_error as error:
            details, code = error.details() or "no details", error.code().name
            request_id = dict(error.initial_metadata() or ()).get(REQUEST_ID, request_id)
            # gRPC has the same code for a busy server, where another attempt may succeed.
            if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
                # Requests are not compressed here, so the decompressed message was the answer.
                if f"vs. {self._max_answer_bytes})" in details or "Decompressed" in details:
                    raise _too_large(f"the answer has more than {self._max_answer_bytes} bytes ({details})") from error
                raise ServingError(details, CODES[413], request_id=request_id) from error
            raise ServingError(details, code, request_id=request_id) from error
        except ValueError as error:  # the channel was closed by another thread
            raise ServingError(str(error), "CANCELLED") from error


def _too_large(found: str) -> ServingError:
    """Returns the error for a too large answer; it is not retried, because the answer would be the same."""
    return ServingError(f"{found}: ask for less, or raise max_answer_mb", "INVALID_ARGUMENT")


def _ssl_context(security: Security) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
        if security.cert_file:
            context.load_cert_chain(security.cert_file, security.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(file) for file in security[2:] if file)
        raise ConfigError(f"The certificates cannot be read ({files}): {error}.") from error
    return context


def _content(file: Path | None) -> bytes | None:
    try:
        return file.read_bytes() if file else None
    except OSError as error:
        raise ConfigError(f"The certificate {file} cannot be read: {error}.") from error


def _offered(signatures: dict[str, Signature]) -> dict[str, Signature]:
    # TensorFlow's own signatures, such as __saved_model_init_op, are left out.
    return {name: signatures[name] for name in sorted(signatures) if not name.startswith("__")}


def _specs(tensors: dict[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(
            info["dtype"],
            _shape(
                info["tensor_shape"].get("unknown_rank", False),
                [int(dim["size"]) for dim in info["tensor_shape"].get("dim", [])],
            ),
        )
        for name, info in tensors.items()
    }


def _shape(unknown_rank: bool, sizes: list[int]) -> tuple[int | None, ...] | None:
    return None if unknown_rank else tuple(None if size < 0 else size for size in sizes)


@contextmanager
def reading(request_id: str = "") -> Iterator[None]:
    """Wraps the reading of an answer: an answer in an unexpected format raises :class:`ServingError`.

    Args:
      request_id: Named in the error; ``""`` inside a call, where the client adds it.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ServingError(
            f"The answer has another form than expected ({type(error).__name__}: {error}): is this TF Serving, and the "
            "model one of tfllmrec's?" + (f" (request {request_id})" if request_id else ""),
            "UNKNOWN",
            request_id=request_id,
        ) from error

"""The gRPC calls: the same service, queue and counters as HTTP, in the same event loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from ctrkit_serving.scorer import Float32Array
from ctrkit_serving.server.grpc_messages import MESSAGES, SERVICE
from ctrkit_serving.server.model import no_such_output, rows_of
from ctrkit_serving.server.protocol import (
    DTYPES,
    RequestError,
    Tensor,
    bad,
    check_shape,
    from_bytes,
    short,
    text_of,
    timeout_s,
)
from ctrkit_serving.server.rest import SERVER
from ctrkit_serving.server.service import Job, Loaded, Manage, Service
from ctrkit_serving.server.settings import MODEL_NAME, Settings

Handler = Callable[[Any, Any], Awaitable[Any]]
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND, 500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


async def start(service: Service, manage: Manage, settings: Settings, port: int) -> grpc.aio.Server:
    """Listen; other workers listen on the same port."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.max_concurrent_streams", settings.queue),
        ]
    )
    calls = _Calls(service, manage)
    handlers = {name: _handler(service, name, call) for name, call in calls.by_name().items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    return server


def _handler(service: Service, name: str, call: Handler) -> Any:
    async def handle(message: bytes, context: Any) -> Any:
        try:
            return await call(_read(f"{name}Request", message), context)
        except RequestError as error:
            service.count(error.reason)
            await _abort(context, error)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
    )


def _read(kind: str, message: bytes) -> Any:
    """Here, not as gRPC's deserializer, whose failures are the server's: UNKNOWN, with the name of a Python class."""
    try:
        return MESSAGES[kind].FromString(message)
    except DecodeError as error:
        raise bad(f"not a {kind}: {short(error)}") from error


async def _abort(context: Any, error: RequestError) -> None:
    if error.retry_after is not None:
        context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
    await context.abort(_CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error))


class _InferJob(Job):
    def __init__(self, request: Any, loaded: Loaded, outcome: asyncio.Future[Float32Array]) -> None:
        super().__init__(time.monotonic(), loaded)
        self._request, self._outcome = request, outcome

    def score(self) -> tuple[float, Float32Array]:
        """Read and score."""
        request, model = self._request, self.loaded.model
        no_such_output(model, {output.name: True for output in request.outputs})
        inputs = _inputs(request)
        decoded = time.monotonic()
        parameters = _parameters(request.parameters)
        self.width = model.width(parameters, rows_of(inputs), decoded - self.arrived)
        return decoded, model.score(inputs, parameters, self.width)

    def answer(self, scores_N: Float32Array) -> None:
        """Hand the scores to the call that waits for them."""
        if not self._outcome.done():
            self._outcome.set_result(scores_N)

    def refuse(self, error: RequestError) -> None:
        """Hand it an error."""
        if not self._outcome.done():
            self._outcome.set_exception(error)

    @property
    def gone(self) -> bool:
        """Whether the client has left, or its deadline has passed."""
        return self._outcome.cancelled()


class _Calls:
    def __init__(self, service: Service, manage: Manage) -> None:
        self._service, self._manage = service, manage

    def by_name(self) -> dict[str, Handler]:
        """Handlers by the protocol's names."""
        return {
            "ServerLive": self._live, "ServerReady": self._ready, "ModelReady": self._model_ready,
            "ServerMetadata": self._server, "ModelMetadata": self._model, "ModelInfer": self._infer,
            "RepositoryIndex": self._index, "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }  # fmt: skip

    async def _live(self, request: Any, context: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, request: Any, context: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._service.board.not_ready() is None)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        try:
            self._service.find(request.name, request.version or None)
        except RequestError:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=not self._service.draining)

    async def _server(self, request: Any, context: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**SERVER)

    async def _model(self, request: Any, context: Any) -> Any:
        model = self._service.find(request.name, request.version or None).model
        told = model.metadata(self._service.versions(model.name))
        return MESSAGES["ModelMetadataResponse"](
            name=told["name"], versions=told["versions"], platform=told["platform"], inputs=told["inputs"],
            outputs=told["outputs"],
        )  # fmt: skip

    async def _infer(self, request: Any, context: Any) -> Any:
        loaded = self._service.find(request.model_name, request.model_version or None)
        outcome: asyncio.Future[Float32Array] = asyncio.get_running_loop().create_future()
        given = context.time_remaining(), timeout_s(_parameters(request.parameters))
        limits = [limit for limit in given if limit is not None]
        job = _InferJob(request, loaded, outcome)
        self._service.submit(job, min(limits, default=None))
        try:
            scores_N = await outcome
        except RequestError as error:  # counted where it was raised
            await _abort(context, error)
        model = loaded.model
        output = {"name": model.output, "datatype": "FP32", "shape": [len(scores_N)]}
        width = {} if job.width is None else {"width": {"string_param": job.width}}
        return MESSAGES["ModelInferResponse"](
            model_name=model.name, model_version=str(model.version), id=request.id, outputs=[output],
            parameters=width, raw_output_contents=[scores_N.astype("<f4", copy=False).tobytes()],
        )  # fmt: skip

    async def _index(self, request: Any, context: Any) -> Any:
        models = await self._ask(context, {"ask": "index", "ready": request.ready})
        return MESSAGES["RepositoryIndexResponse"](models=models)

    async def _load(self, request: Any, context: Any) -> Any:
        await self._change(request, context, "load")
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any, context: Any) -> Any:
        await self._change(request, context, "unload")
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def _change(self, request: Any, context: Any, what: str) -> None:
        parameters = _parameters(request.parameters)
        if what == "unload":
            parameters.pop("unload_dependents", None)  # tritonclient always sends it; there are none
        call = {"ask": what, "name": request.model_name, "parameters": parameters}
        await self._ask(context, call)

    async def _ask(self, context: Any, call: dict[str, Any]) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        self._service.check_token(str(metadata.get("authorization", "")).encode())
        if not MODEL_NAME.fullmatch(call.get("name", "x")):
            raise RequestError(404, "not_found", "no such model")
        outcome: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
        self._manage(call, lambda status, answer: None if outcome.done() else outcome.set_result((status, answer)))
        status, answer = await outcome
        if status != 200:
            raise RequestError(status, "bad_request", answer["error"])
        return answer


def _parameters(parameters: Any) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found


def _inputs(request: Any) -> dict[str, Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
    inputs: dict[str, Tensor] = {}
    for i, spec in enumerate(request.inputs):
        if spec.name in inputs:
            raise bad(f"input '{short(spec.name)}' is there twice")
        shape = list(spec.shape)
        size = check_shape(spec.name, spec.datatype, shape)
        if raw:
            if spec.HasField("contents"):
                raise bad(f"input '{short(spec.name)}' has contents beside raw_input_contents")
            values = from_bytes(spec.name, spec.datatype, shape, size, raw[i])
        else:
            values = _contents(spec, shape, size)
        inputs[spec.name] = Tensor(spec.datatype, values)
    if not inputs:
        raise bad("the request has no input")
    return inputs


def _contents(spec: Any, shape: list[int], size: int) -> npt.NDArray[Any]:
    name, datatype = short(spec.name), spec.datatype
    field = _CONTENTS.get(datatype)
    if field is None:
        raise bad(f"input '{name}': {datatype} is given as raw_input_contents only")
    flat = getattr(spec.contents, field)
    if len(flat) != size:
        raise bad(f"input '{name}': {len(flat)} {field}, shape {shape} has {size}")
    if datatype == "BYTES":
        values = np.empty(size, object)
        values[:] = [text_of(name, item) for item in flat]
        return values.reshape(shape)
    try:
        array = np.array(flat, DTYPES[datatype]).reshape(shape)
    except (OverflowError, ValueError) as error:
        raise bad(f"input '{name}': {short(error)}") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise bad(f"input '{name}': NaN or infinity; every number must be finite")
    return array

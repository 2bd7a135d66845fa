"""The HTTP calls: Open Inference Protocol v2, its repository extension, JSON for people, metrics."""

import time
from collections.abc import Callable
from typing import Any

import ctrkit
from ctrkit.request import Request
from ctrkit_serving.scorer import Float32Array
from ctrkit_serving.server.exchange import Exchange
from ctrkit_serving.server.metrics import CONTENT_TYPE, render
from ctrkit_serving.server.model import no_such_output, rows_of
from ctrkit_serving.server.protocol import (
    InferRequest,
    RequestError,
    bad,
    decode_infer,
    encode_infer,
    load_json,
    timeout_s,
)
from ctrkit_serving.server.service import Job, Loaded, Manage, Service
from ctrkit_serving.server.settings import MODEL_NAME

EXTENSIONS = ["binary_tensor_data", "model_repository"]
SERVER = {"name": "ctrkit", "version": ctrkit.__version__, "extensions": EXTENSIONS}


class InferJob(Job):
    """`POST v2/models/NAME/infer`."""

    def __init__(self, exchange: Exchange, loaded: Loaded) -> None:
        super().__init__(exchange.arrived, loaded)
        self._exchange = exchange
        self._request: InferRequest | None = None
        self._parameters: dict[str, Any] = {}

    def score(self) -> tuple[float, Float32Array]:
        """Read and score."""
        exchange, model = self._exchange, self.loaded.model
        self._request = request = decode_infer(exchange.body, exchange.headers.get(b"inference-header-content-length"))
        self._parameters = request.parameters
        no_such_output(model, request.outputs)
        decoded = time.monotonic()
        self.width = model.width(request.parameters, rows_of(request.inputs), decoded - self.arrived)
        return decoded, model.score(request.inputs, request.parameters, self.width)

    def answer(self, scores_N: Float32Array) -> None:
        """Send the scores, binary or JSON as asked."""
        model, request = self.loaded.model, self._request
        assert request is not None
        body, head = encode_infer(self._named(), request, model.output, scores_N)
        if head is None:
            self._exchange.respond(200, body)
        else:
            extra = {"Inference-Header-Content-Length": head}
            self._exchange.respond(200, body, b"application/octet-stream", extra)

    def _named(self) -> dict[str, Any]:
        """Who scored: the model, its version, and the width if it has several."""
        model = self.loaded.model
        named: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
        return named if self.width is None else {**named, "parameters": {"width": self.width}}

    def refuse(self, error: RequestError) -> None:
        """Send an error."""
        self._exchange.respond_error(error)

    def timeout_s(self) -> float | None:
        """The parameter `timeout`."""
        return timeout_s(self._parameters)

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._exchange.gone


class ScoreJob(InferJob):
    """`POST v2/models/NAME/score`: a request as `ctrkit score` reads it, in JSON, and `parameters` beside it."""

    def score(self) -> tuple[float, Float32Array]:
        """Read and score."""
        content, model = load_json(self._exchange.body), self.loaded.model
        parameters = content.pop("parameters", {}) if isinstance(content, dict) else {}
        if not isinstance(parameters, dict):
            raise bad("'parameters' is an object")
        self._parameters = parameters
        request = Request.from_json(content)
        decoded = time.monotonic()
        self.width = model.width(parameters, request.num_ads, decoded - self.arrived)
        return decoded, model.score_request(request, self.width)

    def answer(self, scores_N: Float32Array) -> None:
        """Send the scores."""
        self._exchange.respond_json(200, {**self._named(), "scores": scores_N.tolist()})


class Rest:
    """Routes requests of HTTP."""

    def __init__(self, service: Service, manage: Manage) -> None:
        self._service, self._manage = service, manage
        self._fixed: dict[bytes, tuple[bytes, Callable[[Exchange], None]]] = {
            b"/v2": (b"GET", lambda exchange: exchange.respond_json(200, SERVER)),
            b"/v2/health/live": (b"GET", lambda exchange: exchange.respond_json(200, {"live": True})),
            b"/v2/health/ready": (b"GET", self._ready),
            b"/v2/repository/index": (b"POST", self._index),
            b"/metrics": (b"GET", self._metrics),
        }

    def early(self, exchange: Exchange) -> None:
        """Refuse what cannot be served before its body is read: overload, a management call without the token."""
        if exchange.path.startswith(b"/v2/repository/"):
            self._service.check_token(exchange.headers.get(b"authorization"))
        elif exchange.method == b"POST":
            self._service.admit(exchange.arrived, _timeout_header(exchange))

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, or queue it."""
        try:
            self._route(exchange)
        except RequestError as error:
            self._service.count(error.reason)
            exchange.respond_error(error)

    def _route(self, exchange: Exchange) -> None:
        path = exchange.path.rstrip(b"/") if len(exchange.path) > 1 else exchange.path
        fixed = self._fixed.get(path)
        if fixed is not None:
            _allow(exchange, fixed[0])
            fixed[1](exchange)
            return
        parts = path.decode("ascii", "replace").split("/")
        if len(parts) >= 4 and parts[:3] == ["", "v2", "models"]:
            self._of_model(exchange, parts[3], parts[4:])
        elif len(parts) == 6 and parts[:4] == ["", "v2", "repository", "models"] and parts[5] in ("load", "unload"):
            _allow(exchange, b"POST")
            self._change(exchange, parts[5], parts[4])
        else:
            raise RequestError(404, "not_found", "no such path; see the Open Inference Protocol v2, or GET /v2")

    def _of_model(self, exchange: Exchange, name: str, rest: list[str]) -> None:
        version = None
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        call = "/".join(rest)
        if call not in ("", "ready", "infer", "score"):
            raise RequestError(404, "not_found", "no such call of a model; there are infer, score, ready")
        _allow(exchange, b"POST" if call in ("infer", "score") else b"GET")
        if call == "ready":
            self._model_ready(exchange, name, version)
            return
        loaded = self._service.find(name, version)
        if call == "":
            exchange.respond_json(200, loaded.model.metadata(self._service.versions(name)))
            return
        job = (InferJob if call == "infer" else ScoreJob)(exchange, loaded)
        self._service.submit(job, _timeout_header(exchange))

    def _ready(self, exchange: Exchange) -> None:
        reason = self._service.board.not_ready()
        if reason is None:
            exchange.respond_json(200, {"ready": True})
        else:
            exchange.respond_json(503, {"ready": False, "error": f"not ready: {reason}"})

    def _model_ready(self, exchange: Exchange, name: str, version: str | None) -> None:
        try:
            self._service.find(name, version)
            reason = self._service.board.not_ready() if self._service.draining else None
        except RequestError as error:
            exchange.respond_json(error.status, {"name": name, "ready": False, "error": str(error)})
            return
        exchange.respond_json(503 if reason else 200, {"name": name, "ready": reason is None})

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, render(self._service), CONTENT_TYPE)

    def _index(self, exchange: Exchange) -> None:
        self._ask(exchange, {"ask": "index", "ready": _body(exchange).get("ready") is True})

    def _change(self, exchange: Exchange, what: str, name: str) -> None:
        if not MODEL_NAME.fullmatch(name):
            raise RequestError(404, "not_found", "no such model")
        parameters = _body(exchange).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise bad("'parameters' is an object")
        self._ask(exchange, {"ask": what, "name": name, "parameters": parameters})

    def _ask(self, exchange: Exchange, call: dict[str, Any]) -> None:
        self._manage(call, exchange.respond_json)


def _body(exchange: Exchange) -> dict[str, Any]:
    content = load_json(exchange.body) if exchange.body.strip() else {}
    if not isinstance(content, dict):
        raise bad("the body is an object")
    return content


def _allow(exchange: Exchange, method: bytes) -> None:
    if exchange.method not in ((b"GET", b"HEAD") if method == b"GET" else (method,)):
        raise RequestError(405, "method", f"this path takes {method.decode()}")


def _timeout_header(exchange: Exchange) -> float | None:
    """Seconds of the header `Timeout-Ms`."""
    given = exchange.headers.get(b"timeout-ms")
    if given is None:
        return None
    if not given.isdigit() or len(given) > 9 or int(given) == 0:
        raise bad("header Timeout-Ms is a whole number of milliseconds above zero")
    return int(given) / 1e3

"""Wrong requests: fuzzed heads and bodies, lengths that lie, impossible shapes, wrong types, NaN, huge JSON."""

import json
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1.5, 1e308, -0.0, "", "x", "\ud800", "\x00", "日本",
    "1", "INT65", "a" * 5000, [], [[]], [None], [[1], 2], {}, {"a": 1}, [1e999], [-1], [2**70], [True], ["x"],
)  # fmt: skip
"""Values that stand where others belong. 1e999 is infinity, which `json.dumps` writes as no JSON."""


@dataclass(frozen=True)
class Valid:
    """Requests that are right, of one model."""

    model: str
    inputs: Mapping[str, npt.NDArray[Any]]
    """Encoded inputs."""
    request: Mapping[str, Any]
    """Of the score call."""


def malformed(rng: np.random.Generator, valid: Valid) -> tuple[str, bytes]:
    """A kind of malformed request, and all of its bytes."""
    kinds = list(_KINDS)
    kind = kinds[rng.integers(len(kinds))]
    return kind, _KINDS[kind](rng, valid)


def send(address: tuple[str, int], raw: bytes, timeout_s: float = 20.0) -> int | None:
    """Status of the answer; None if the server closed the connection without one.

    Raises:
        TimeoutError: the server neither answered nor closed.
    """
    with socket.create_connection(address, timeout_s) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered already, and closed
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass
    lines = [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ") and b" 100 " not in line]
    return int(lines[0].split()[1]) if lines else None


def http(method: str, path: str, body: bytes, headers: Mapping[str, str] | None = None, length: object = None) -> bytes:
    """A request's bytes; `length` lies about the body's."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _parts(valid: Valid) -> tuple[dict[str, Any], bytes]:
    types = {"int64": "INT64", "float32": "FP32"}
    specs = [
        {
            "name": name, "datatype": types[a.dtype.name], "shape": list(a.shape),
            "parameters": {"binary_data_size": a.nbytes},
        }
        for name, a in valid.inputs.items()
    ]  # fmt: skip
    return {"inputs": specs}, b"".join(a.tobytes() for a in valid.inputs.values())


def _infer(valid: Valid, head: bytes, binary: bytes, length: object = None) -> bytes:
    headers = {"Inference-Header-Content-Length": str(len(head) if length is None else length)}
    return http("POST", f"/v2/models/{valid.model}/infer", head + binary, headers)


def _flip(rng: np.random.Generator, content: bytes) -> bytes:
    spoilt = bytearray(content)
    for _ in range(int(rng.integers(1, 8))):
        spoilt[rng.integers(len(spoilt))] = int(rng.integers(256))
    return bytes(spoilt)


def _flipped_head(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    return _infer(valid, _flip(rng, json.dumps(head).encode()), binary)


def _flipped_tensors(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    return _infer(valid, json.dumps(head).encode(), _flip(rng, binary))


def _spec_replaced(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    spec = head["inputs"][rng.integers(len(head["inputs"]))]
    key = ("name", "datatype", "shape", "parameters", "data")[rng.integers(5)]
    spec[key] = JUNK[rng.integers(len(JUNK))]
    return _infer(valid, json.dumps(head).encode(), binary)


def _shape_replaced(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    spec = head["inputs"][rng.integers(len(head["inputs"]))]
    shapes: list[Any] = [
        [-1, *spec["shape"][1:]], [2**32, 2**32], [2**62, 4], [0, 0], [], [1] * 100, spec["shape"][::-1], [10**30],
        [spec["shape"][0] + 1, *spec["shape"][1:]], [1.0], ["1"], [[1]], [True], [-(2**63)], [2**31 - 1, 2**31 - 1],
    ]  # fmt: skip
    spec["shape"] = shapes[rng.integers(len(shapes))]
    return _infer(valid, json.dumps(head).encode(), binary)


def _size_lies(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    spec = head["inputs"][rng.integers(len(head["inputs"]))]
    sizes: list[Any] = [0, -1, 1, 2**40, len(binary), spec["parameters"]["binary_data_size"] + 8, 2**70, "8", None, 1.0]
    spec["parameters"]["binary_data_size"] = sizes[rng.integers(len(sizes))]
    return _infer(valid, json.dumps(head).encode(), binary)


def _head_length_lies(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    text = json.dumps(head).encode()
    lengths: list[Any] = [0, -1, 1, len(text) - 1, len(text) + 1, len(text) + len(binary) + 1, 10**30, "x", "1_0", "٣"]
    return _infer(valid, text, binary, lengths[rng.integers(len(lengths))])


def _tensor_missing(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    specs = head["inputs"]
    which = int(rng.integers(len(specs)))
    head["inputs"] = [specs[:which] + specs[which + 1 :], [*specs, specs[which]], [], None, specs[which]][
        rng.integers(5)
    ]
    return _infer(valid, json.dumps(head).encode(), binary)


def _not_finite(rng: np.random.Generator, valid: Valid) -> bytes:
    head, _ = _parts(valid)
    arrays = {name: a.copy() for name, a in valid.inputs.items()}
    for array in arrays.values():
        if array.dtype.kind == "f":
            array.flat[rng.integers(array.size)] = (np.nan, np.inf, -np.inf)[rng.integers(3)]
        else:
            array.flat[rng.integers(array.size)] = (-1, 2**40, -(2**63), 2**63 - 1)[rng.integers(4)]
    return _infer(valid, json.dumps(head).encode(), b"".join(a.tobytes() for a in arrays.values()))


def _json_values(rng: np.random.Generator, valid: Valid) -> bytes:
    head, _ = _parts(valid)
    for spec, array in zip(head["inputs"], valid.inputs.values(), strict=True):
        del spec["parameters"]
        spec["data"] = array.ravel().tolist()
    data = head["inputs"][rng.integers(len(head["inputs"]))]["data"]
    data[rng.integers(len(data))] = JUNK[rng.integers(len(JUNK))]
    return http("POST", f"/v2/models/{valid.model}/infer", json.dumps(head).encode())


def _request_replaced(rng: np.random.Generator, valid: Valid) -> bytes:
    """A value somewhere in the score call's request."""
    content = json.loads(json.dumps(valid.request))
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    collect(content)
    node, key = places[rng.integers(len(places))]
    node[key] = JUNK[rng.integers(len(JUNK))]
    return http("POST", f"/v2/models/{valid.model}/score", json.dumps(content).encode())


def _bad_json(rng: np.random.Generator, valid: Valid) -> bytes:
    bodies = [
        b"", b"null", b"[]", b"{", b"{}", b'{"inputs":}', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"NaN", b"[" * 100_000,
        b'{"a":' * 5_000, b"9" * 10_000, b'{"inputs":[' + b"{}," * 20_000 + b"{}]}", b'"' + b"a" * 300_000 + b'"',
        b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[' + b"1," * 100_000 + b"1]}]}",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * 500 + b"1" + b"]" * 500 + b"}]}",
        b'{"user":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b',"items":[]}', b"\x00" * 1000,
    ]  # fmt: skip
    call = ("infer", "score")[rng.integers(2)]
    return http("POST", f"/v2/models/{valid.model}/{call}", bodies[rng.integers(len(bodies))])


def _too_large(rng: np.random.Generator, valid: Valid) -> bytes:
    length = (2**31, 2**62, 10**15)[rng.integers(3)]
    return http("POST", f"/v2/models/{valid.model}/infer", b"x" * 1000, length=length)


def _length_lies(rng: np.random.Generator, valid: Valid) -> bytes:
    body = json.dumps(valid.request).encode()
    lengths: list[Any] = [len(body) + 10, -1, "x", "1, 2", "0x10", 10**40, "+5", "", len(body) - 3, "1 1"]
    return http("POST", f"/v2/models/{valid.model}/score", body, length=lengths[rng.integers(len(lengths))])


def _bad_http(rng: np.random.Generator, valid: Valid) -> bytes:
    chunked = b"POST /v2/models/x/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    raws = [
        rng.bytes(300), b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G\x00T / HTTP/1.1\r\n\r\n", b"\r\n" * 1000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 200_000 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nA b\r\n\r\n",
        chunked + b"zz\r\nabc\r\n", chunked + b"ffffffffffffffffff\r\n", chunked + b"5\r\nab\r\n0\r\n\r\n",
        chunked + b"-1\r\n\r\n", chunked.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01",
        struct.pack(">I", 2**31) * 20, b"GET /v2 HTTP/1.1\r\nHost: x\r\n",
        b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ]  # fmt: skip
    return raws[rng.integers(len(raws))]


def _bad_path(rng: np.random.Generator, valid: Valid) -> bytes:
    paths = [
        "/", "/v3", "/v2/models", "/v2/models//infer", "/v2/models/../../etc/passwd", "/v2/models/%2e%2e%2f/infer",
        f"/v2/models/{valid.model}/versions/../infer", f"/v2/models/{valid.model}/versions/-1/infer",
        f"/v2/models/{valid.model}/versions/{'9' * 500}/infer", f"/v2/models/{valid.model}/versions/٣/infer".encode()
        .decode("latin-1"), "/v2/repository/models/x/load", "/v2/repository/index", "/v2/models/" + "a" * 7000,
        f"/v2/models/{valid.model}/explain", "//v2", "/v2/health/ready/x",
    ]  # fmt: skip
    method = ("POST", "GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE")[rng.integers(8)]
    return http(method, paths[rng.integers(len(paths))], b"{}")


def _bad_parameters(rng: np.random.Generator, valid: Valid) -> bytes:
    head, binary = _parts(valid)
    key = ("id", "parameters", "outputs")[rng.integers(3)]
    junk = JUNK[rng.integers(len(JUNK))]
    wrapped: list[Any] = [
        junk,
        {"timeout": junk},
        {"binary_data_output": junk},
        [{"name": junk}],
        [{"parameters": junk}],
    ]
    head[key] = wrapped[rng.integers(len(wrapped))]
    return _infer(valid, json.dumps(head).encode(), binary)


_KINDS: dict[str, Callable[[np.random.Generator, Valid], bytes]] = {
    "head with other bytes": _flipped_head, "tensors with other bytes": _flipped_tensors,
    "junk in an input": _spec_replaced, "impossible shape": _shape_replaced, "size that lies": _size_lies,
    "head length that lies": _head_length_lies, "input missing or twice": _tensor_missing,
    "not finite, out of range": _not_finite, "junk in JSON data": _json_values, "junk in a request": _request_replaced,
    "bad JSON": _bad_json, "too large": _too_large, "content length that lies": _length_lies, "no HTTP": _bad_http,
    "bad path or method": _bad_path, "junk in parameters": _bad_parameters,
}  # fmt: skip

"""Whatever a client sends, the server answers 4xx with the reason, or serves it; it neither fails nor grows."""

import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.server_bundles import publish
from benchmarks.server_fuzz import Valid, http, malformed, send
from ctrkit_serving.scorer import Scorer
from tests.serving.server.harness import Server, binary_body
from tests.serving.tiny import CONTEXT, ITEMS, REQUEST, USER, make_bundle

INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    publish(models, "tiny", 1, make_bundle)
    return models


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with Server(models, "--workers", "1", "--max-ads", "50", "--max-body", "1000000") as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def feeds(models: Path) -> dict[str, Any]:
    return dict(Scorer.load(models / "tiny" / "1").encode(USER, ITEMS, CONTEXT))


def test_fuzzed_requests_give_no_5xx_and_kill_nobody(server: Server, feeds: dict[str, Any]) -> None:
    rng = np.random.default_rng(11)
    valid = Valid("tiny", feeds, REQUEST.to_json())
    host, port = server.address.split(":")
    statuses: Counter[int | None] = Counter()
    for _ in range(600):
        kind, raw = malformed(rng, valid)
        status = send((host, int(port)), raw)
        statuses[status] += 1
        assert status is None or status < 500, (kind, status, raw[:2000], server.lines[-20:])
    assert statuses[400] > 300
    assert statuses[None] < 60  # nothing that could be answered: an empty request
    assert not server.find("worker died")
    assert server.call("POST", "/v2/models/tiny/score", REQUEST.to_json())[0] == 200


def _spec(name: str, datatype: str, shape: list[Any], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def as_json(feeds: dict[str, Any]) -> list[dict[str, Any]]:
    types = {"int64": "INT64", "float32": "FP32"}
    return [_spec(n, types[a.dtype.name], list(a.shape), a.tolist()) for n, a in feeds.items()]


def _ids(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    return next(i for i in inputs if i["name"] == "ids_item")


IDS = {
    "wrong name": (lambda i: i[0].update(name="idz"), "no input 'idz'"),
    "absent": (lambda i: i.pop(0), "an input 'ids_user', which is not given"),
    "wrong type": (lambda i: _ids(i).update(datatype="FP32"), "'ids_item' is int64, got float32"),
    "wrong shape": (lambda i: _ids(i).update(shape=[4, 2, 1]), r"'ids_item' has shape"),
    "fewer ads": (lambda i: i[-1].update(shape=[2, 2], data=i[-1]["data"][:2]), "'dense_item' has 2 rows"),
    "row beyond the table": (lambda i: _ids(i)["data"][0].__setitem__(0, 10**6), "beyond its table"),
    "negative row": (lambda i: _ids(i)["data"][0].__setitem__(0, -1), "negative or beyond its table"),
    "null": (lambda i: _ids(i)["data"][0].__setitem__(0, None), "'ids_item' is int64, got object"),
    "text": (lambda i: _ids(i)["data"][0].__setitem__(0, "7"), "INT64 holds no str"),
    "truth": (lambda i: _ids(i)["data"][0].__setitem__(0, True), "INT64 holds no bool"),
    "fraction": (lambda i: _ids(i)["data"][0].__setitem__(0, 1.5), "INT64 holds no float"),
    "too many values": (lambda i: _ids(i).update(data=[[1] * 5] * 4), "20 values, shape .* has 8"),
    "too few values": (lambda i: _ids(i).update(data=[1]), "1 values, shape .* has 8"),
    "negative size": (lambda i: _ids(i).update(shape=[-4, 4]), "size -4 in its shape"),
    "overflowing shape": (lambda i: _ids(i).update(shape=[2**30, 2**30]), "its shape has"),
    "unknown type": (lambda i: _ids(i).update(datatype="BF16"), "datatype BF16; known are"),
    "no data": (lambda i: _ids(i).pop("data"), "neither 'data' nor"),
}


@pytest.mark.parametrize("case", IDS)
def test_says_what_is_wrong_with_an_input(server: Server, feeds: dict[str, Any], case: str) -> None:
    spoil, message = IDS[case]
    inputs = as_json(feeds)
    spoil(inputs)  # type: ignore[no-untyped-call]
    status, answer = server.call("POST", INFER, {"inputs": inputs})
    assert status == 400
    assert re.search(message, answer["error"]), answer


def test_nan_is_refused_by_name(server: Server, feeds: dict[str, Any]) -> None:
    body, headers = binary_body({**feeds, "dense_item": np.full_like(feeds["dense_item"], np.nan)})
    status, answer = server.call("POST", INFER, body, **headers)
    assert (status, answer["error"]) == (400, "input 'dense_item': NaN or infinity; every number must be finite")
    status, answer = server.call("POST", "/v2/models/tiny/score", b'{"user": {}, "items": [{"ctr": NaN}]}')
    assert (status, answer["error"]) == (400, "NaN is not JSON; null stands for a missing value")


def test_raw_features_that_do_not_fit(server: Server) -> None:
    bad_user = {**REQUEST.to_json(), "user": {"age": 3, "recent_items": []}}
    status, answer = server.call("POST", "/v2/models/tiny/score", bad_user)
    assert status == 400
    assert "feature 'age' has string values in training, got 3" in answer["error"]
    inputs = [_spec("age", "BYTES", [2], ["18-24", "35+"])]
    status, answer = server.call("POST", INFER, {"inputs": inputs})
    assert (status, answer["error"]) == (400, "input 'age' is the user's: shape [1], got 2 values")
    status, answer = server.call("POST", INFER, {"inputs": [_spec("colour", "BYTES", [1], ["red"])]})
    assert status == 400
    assert "no input 'colour'; it takes age, recent_items" in answer["error"]


def test_limits(server: Server, feeds: dict[str, Any]) -> None:
    many = {name: np.repeat(array, 20, axis=0) for name, array in feeds.items()}
    body, headers = binary_body(many)
    status, answer = server.call("POST", INFER, body, **headers)
    assert (status, answer["error"]) == (400, "80 ads; this server takes 50 a request")
    raw = {**REQUEST.to_json(), "items": REQUEST.to_json()["items"] * 20}
    assert server.call("POST", "/v2/models/tiny/score", raw)[0] == 400
    status, answer = server.call("POST", INFER, b" " * 1_000_001)
    assert (status, answer["error"]) == (413, "a body of 1000001 bytes; this server takes 1000000")


def test_other_versions_models_paths_methods(server: Server) -> None:
    request = REQUEST.to_json()
    for method, path, status in (
        ("POST", "/v2/models/none/score", 404), ("POST", "/v2/models/tiny/versions/2/score", 404),
        ("GET", "/v2/models/tiny/versions/01/ready", 200), ("GET", INFER, 405), ("POST", "/v2/health/ready", 405),
        ("DELETE", "/v2/models/tiny", 405), ("GET", "/v2/models/../tiny", 404), ("GET", "/", 404),
    ):  # fmt: skip
        assert server.call(method, path, request)[0] == status, path


def test_an_encoding_of_another_version_is_refused(server: Server, feeds: dict[str, Any]) -> None:
    fingerprint = server.call("GET", "/v2/models/tiny")[1]["parameters"]["encoding_fingerprint"]
    for given, expected in ((fingerprint, 200), ("0" * 64, 400)):
        parameters = {"encoding_fingerprint": given}
        assert server.call("POST", INFER, {"inputs": as_json(feeds), "parameters": parameters})[0] == expected


def test_chunked_and_expect_are_served(server: Server) -> None:
    host, port = server.address.split(":")
    body = json.dumps(REQUEST.to_json()).encode()
    head = b"POST /v2/models/tiny/score HTTP/1.1\r\nHost: x\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 99]), body[i : i + 99]) for i in range(0, len(body), 99))
    assert send((host, int(port)), head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n") == 200
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert send((host, int(port)), http("POST", INFER, b"x", {"Content-Encoding": "gzip"})) == 415
    assert send((host, int(port)), http("POST", INFER, b"x" * 10, length=100)) == 400

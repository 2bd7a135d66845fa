"""The same scores by every way in: in process, HTTP in binary and JSON, gRPC raw and typed, ids and raw values."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.server_bundles import publish
from ctrkit.errors import UserError
from ctrkit_serving.scorer import Scorer
from ctrkit_serving.server.settings import Settings
from ctrkit_serving.server.supervisor import Supervisor
from tests.serving.server.harness import TOKEN, Server, binary_body, binary_scores
from tests.serving.tiny import CONTEXT, ITEMS, REQUEST, USER, make_bundle

INFER = "/v2/models/tiny/infer"
WHOLE_ITEMS = [{**ITEMS[0], "tags": ["red", "new"], "ctr": 0.5}, {**ITEMS[2], "tags": ["a", ""], "ctr": 0.5}]
"""Nothing missing, nothing ragged: what binary tensors can hold."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    publish(models, "tiny", 3, make_bundle)
    return models


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with Server(models, "--workers", "1", grpc=True) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def scorer(models: Path) -> Scorer:
    return Scorer.load(models / "tiny" / "3")


def raw_inputs() -> list[dict[str, Any]]:
    """REQUEST as a tensor a feature: null where a value is missing, lengths beside what is ragged."""

    def column(name: str) -> list[Any]:
        return [item[name] for item in ITEMS]

    tags = [item["tags"] or [] for item in ITEMS]
    width = max(map(len, tags))
    return [
        {"name": "age", "datatype": "BYTES", "shape": [1], "data": [USER["age"]]},
        {"name": "recent_items", "datatype": "INT64", "shape": [1, 4], "data": USER["recent_items"]},
        {"name": "item_id", "datatype": "INT64", "shape": [4], "data": column("item_id")},
        {"name": "tags", "datatype": "BYTES", "shape": [4, width], "data": [t + [""] * (width - len(t)) for t in tags]},
        {"name": "tags.length", "datatype": "INT32", "shape": [4], "data": [len(t) for t in tags]},
        {"name": "price", "datatype": "FP64", "shape": [4], "data": column("price")},
        {"name": "ctr", "datatype": "FP32", "shape": [4, 1], "data": [[v] for v in column("ctr")]},
        {"name": "bid", "datatype": "FP64", "shape": [4], "data": column("bid")},
        {"name": "hour", "datatype": "INT8", "shape": [1], "data": [CONTEXT["hour"]]},
    ]  # fmt: skip


def test_json_of_people(server: Server, scorer: Scorer) -> None:
    status, answer = server.call("POST", "/v2/models/tiny/score", REQUEST.to_json())
    assert (status, answer["model_name"], answer["model_version"]) == (200, "tiny", "3")
    np.testing.assert_array_equal(np.array(answer["scores"], np.float32), scorer.score_request(REQUEST))


def test_raw_features_as_tensors(server: Server, scorer: Scorer) -> None:
    status, answer = server.call("POST", INFER, {"id": "r1", "inputs": raw_inputs()})
    assert status == 200, answer
    assert (answer["id"], answer["model_version"]) == ("r1", "3")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probability", "FP32", [4])
    expected = scorer.score(USER, [{**item, "ctr": None if item["ctr"] is None else np.float32(item["ctr"]).item()}
                                   for item in ITEMS], CONTEXT)  # fmt: skip
    np.testing.assert_array_equal(np.array(output["data"], np.float32), expected)


def test_context_an_ad(server: Server, scorer: Scorer) -> None:
    inputs = raw_inputs()
    inputs[-1] = {"name": "hour", "datatype": "INT64", "shape": [4], "data": [1, 2, None, 23]}
    status, answer = server.call("POST", INFER, {"inputs": inputs})
    assert status == 200, answer
    found = np.array(answer["outputs"][0]["data"], np.float32)
    expected = [scorer.score(USER, [item], {"hour": h})[0] for item, h in zip(ITEMS, [1, 2, None, 23], strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # a ctr in FP32


@pytest.mark.parametrize("path", [INFER, "/v2/models/tiny/versions/3/infer"])
def test_ids_in_binary_and_json(server: Server, scorer: Scorer, path: str) -> None:
    feeds = scorer.encode(USER, ITEMS, CONTEXT)
    expected = scorer.score_request(REQUEST)
    narrow = {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in feeds.items()}
    for arrays in (feeds, narrow):
        body, headers = binary_body(arrays)
        client = server.client()
        client.request("POST", path, body, headers)
        answer = client.getresponse()
        assert answer.headers.get_content_type() == "application/octet-stream"
        version, scores = binary_scores(answer)
        client.close()
        assert version == "3"
        np.testing.assert_array_equal(scores, expected)
    inputs = [
        {"name": n, "datatype": "INT64" if a.dtype == np.int64 else "FP32", "shape": list(a.shape), "data": a.tolist()}
        for n, a in feeds.items()
    ]
    status, answer = server.call("POST", path, {"inputs": inputs, "outputs": [{"name": "probability"}]})
    assert status == 200
    np.testing.assert_array_equal(np.array(answer["outputs"][0]["data"], np.float32), expected)


def test_many_requests_score_alike_everywhere(server: Server, scorer: Scorer) -> None:
    """In process, HTTP and gRPC, to the last bit, on requests of many sizes."""
    grpc_client = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
    rng = np.random.default_rng(5)
    typed = grpc_client.InferenceServerClient(server.grpc_address)
    client = server.client()
    for _ in range(60):
        items = [ITEMS[i] for i in rng.integers(len(ITEMS), size=rng.integers(1, 40))]
        feeds = scorer.encode(USER, items, CONTEXT)
        expected = scorer.score(USER, items, CONTEXT)
        body, headers = binary_body(feeds)
        client.request("POST", INFER, body, headers)
        np.testing.assert_array_equal(binary_scores(client.getresponse())[1], expected)
        answer = typed.infer("tiny", _triton_inputs(grpc_client, feeds))
        np.testing.assert_array_equal(answer.as_numpy("probability"), expected)
    typed.close()
    client.close()


def _triton_inputs(module: Any, arrays: dict[str, npt.NDArray[Any]], **options: Any) -> list[Any]:
    types = {"int64": "INT64", "float32": "FP32", "float64": "FP64", "object": "BYTES"}
    inputs = []
    for name, array in arrays.items():
        entry = module.InferInput(name, list(array.shape), types[array.dtype.name])
        entry.set_data_from_numpy(array, **options)
        inputs.append(entry)
    return inputs


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_finds_a_conformant_server(server: Server, scorer: Scorer, protocol: str) -> None:
    pytest.importorskip("tritonclient", reason="needs tritonclient (requirements/tritonclient.txt)")
    module = pytest.importorskip(f"tritonclient.{protocol}")
    errors = pytest.importorskip("tritonclient.utils").InferenceServerException
    client = module.InferenceServerClient(server.address if protocol == "http" else server.grpc_address)
    as_dict = {"as_json": True} if protocol == "grpc" else {}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert [client.is_model_ready(*m) for m in (("tiny",), ("tiny", "3"), ("tiny", "4"), ("none",))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert client.get_server_metadata(**as_dict)["extensions"] == ["binary_tensor_data", "model_repository"]
    metadata = client.get_model_metadata("tiny", **as_dict)
    assert (metadata["name"], metadata["versions"]) == ("tiny", ["3"])
    assert [i["name"] for i in metadata["inputs"]] == [
        "age", "recent_items", "item_id", "tags", "price", "ctr", "bid", "hour",
    ]  # fmt: skip
    expected = scorer.score_request(REQUEST)
    inputs = _triton_inputs(module, scorer.encode(USER, ITEMS, CONTEXT))
    wanted = [module.InferRequestedOutput("probability")]
    answer = client.infer("tiny", inputs, outputs=wanted, request_id="x7", model_version="3", timeout=1_000_000)
    np.testing.assert_array_equal(answer.as_numpy("probability"), expected)
    response = answer.get_response()
    assert (response["id"], response["model_version"]) == ("x7", "3") if protocol == "http" else response.id == "x7"
    raw = _raw_arrays()
    expected = scorer.score(USER, WHOLE_ITEMS, CONTEXT)
    np.testing.assert_array_equal(client.infer("tiny", _triton_inputs(module, raw)).as_numpy("probability"), expected)
    with pytest.raises(errors, match="no output 'nothing'"):
        client.infer("tiny", inputs, outputs=[module.InferRequestedOutput("nothing")])
    with pytest.raises(errors, match="model 'none'"):
        client.infer("none", inputs)
    authorization = {"authorization": f"Bearer {TOKEN}"}
    index = client.get_model_repository_index(headers=authorization, **as_dict)
    index = index["models"] if protocol == "grpc" else index
    assert index == [{"name": "tiny", "version": "3", "state": "READY", "reason": "serves"}]
    client.load_model("tiny", headers=authorization)
    for headers in (None, {"authorization": "x"}):
        with pytest.raises(errors, match="need the token"):
            client.load_model("tiny", headers=headers)
    with pytest.raises(errors, match="the last model"):
        client.unload_model("tiny", headers=authorization)
    client.close()


def _raw_arrays() -> dict[str, npt.NDArray[Any]]:
    items = WHOLE_ITEMS
    return {
        "age": np.array([USER["age"]], object),
        "recent_items": np.array([USER["recent_items"]], np.int64),
        "item_id": np.array([i["item_id"] for i in items], np.int64),
        "tags": np.array([i["tags"] for i in items], object),
        "price": np.array([i["price"] for i in items], np.float64),
        "ctr": np.array([0.5, 0.5], np.float32),
        "bid": np.array([i["bid"] for i in items], np.float64),
        "hour": np.array([CONTEXT["hour"]], np.int64),
    }


def test_typed_contents_over_grpc(server: Server, scorer: Scorer) -> None:
    """The other way of the protocol: values in typed fields instead of bytes."""
    grpc = pytest.importorskip("grpc")
    from ctrkit_serving.server.grpc_messages import MESSAGES

    request = MESSAGES["ModelInferRequest"](model_name="tiny")
    for name, array in scorer.encode(USER, ITEMS, CONTEXT).items():
        integer = array.dtype == np.int64
        tensor = request.inputs.add(name=name, datatype="INT64" if integer else "FP32", shape=array.shape)
        getattr(tensor.contents, "int64_contents" if integer else "fp32_contents").extend(array.ravel().tolist())
    with grpc.insecure_channel(server.grpc_address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelInferResponse"].FromString,
        )
        answer = infer(request)
        np.testing.assert_array_equal(
            np.frombuffer(answer.raw_output_contents[0], "<f4"), scorer.score_request(REQUEST)
        )
        request.raw_input_contents.append(b"12345678")
        with pytest.raises(grpc.RpcError) as caught:
            infer(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_unseen_ids_are_scored_and_counted(server: Server) -> None:
    before = server.metric('ctrkit_unseen_values_total{model="tiny",version="3"}')
    request = {"user": {**USER, "recent_items": []}, "items": [{**ITEMS[0], "item_id": 31337}], "context": CONTEXT}
    assert server.call("POST", "/v2/models/tiny/score", request)[0] == 200
    assert server.metric('ctrkit_unseen_values_total{model="tiny",version="3"}') == before + 1


def test_management_needs_the_token(server: Server, models: Path) -> None:
    for path in ("index", "models/tiny/load", "models/tiny/unload"):
        status, answer, headers = server.exchange("POST", f"/v2/repository/{path}")
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "token" in answer["error"]
    assert server.manage("models/tiny/load", {"version": 4})[0] == 404
    assert server.manage("models/..%2f..%2fetc/load")[0] == 404
    assert server.manage("models/tiny/load", {"path": "/etc"})[0] == 400
    with Server(models, "--workers", "1", token=None) as closed:
        closed.wait("worker ready")
        assert closed.call("POST", "/v2/repository/index", Authorization="Bearer ")[0] == 403


def test_answers_in_order_on_one_connection(server: Server) -> None:
    """Requests sent without waiting for answers."""
    import socket

    host, port = server.address.split(":")
    body = json.dumps(REQUEST.to_json()).encode()
    post = b"POST /v2/models/tiny/score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall((post + get) * 12 + last)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [b"scores" in b for b in bodies] == [True, False] * 12 + [False]
    assert bodies[-1] == b'{"live": true}'


def test_ads_by_the_key_of_the_item_table(tmp_path: Path) -> None:
    """A tensor of keys stands for the ads' features; rows of the table do for callers that encode."""
    from benchmarks.latency_tower import KEY, USER, request_of, write_tower

    publish(tmp_path, "tower", 1, lambda place: write_tower(place, widths=(8,), table=30))
    scorer = Scorer.load(tmp_path / "tower" / "1")
    user = dict(request_of(np.random.default_rng(0), 1).user)
    expected = scorer.score(user, {KEY: [3, 29, 0]})
    raw = [{"name": name, "datatype": "INT64", "shape": [1], "data": [user[name]]} for name in USER]
    raw.append({"name": KEY, "datatype": "INT64", "shape": [3], "data": [3, 29, 0]})
    with Server(tmp_path, "--workers", "1") as server:
        server.wait_ready()
        status, answer = server.call("POST", "/v2/models/tower/infer", {"inputs": raw})
        assert status == 200, answer
        np.testing.assert_array_equal(np.array(answer["outputs"][0]["data"], np.float32), expected)
        body, headers = binary_body(dict(scorer.encode(user, {KEY: [3, 29, 0]})))
        client = server.client()
        client.request("POST", "/v2/models/tower/infer", body, headers)
        np.testing.assert_array_equal(binary_scores(client.getresponse())[1], expected)
        client.close()
        assert server.call("GET", "/v2/models/tower")[1]["parameters"]["item_table"] == KEY
        assert server.metric('ctrkit_item_table_lookups_total{model="tower",version="1"}') == 6
        raw[-1]["data"] = [3, 99, 0]
        status, answer = server.call("POST", "/v2/models/tower/infer", {"inputs": raw})
        assert status == 400  # an ad that the table has not, without its features


def test_a_broken_grpc_message_is_its_senders_fault(server: Server) -> None:
    grpc = pytest.importorskip("grpc", reason="needs grpcio")
    before = server.metric('ctrkit_requests_total{reason="bad_request"}')
    with grpc.insecure_channel(server.grpc_address) as channel:
        for call in ("ModelInfer", "ServerLive"):
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(f"/inference.GRPCInferenceService/{call}")(b"\xff\xff\xff\xff", timeout=10)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert f"not a {call}Request" in raised.value.details()
    assert server.metric('ctrkit_requests_total{reason="bad_request"}') == before + 2


def test_timeout_among_the_parameters_of_score(server: Server) -> None:
    def score(timeout: Any) -> tuple[int, Any]:
        body = {**REQUEST.to_json(), "parameters": {"timeout": timeout}}
        return server.call("POST", "/v2/models/tiny/score", body)

    assert score(5_000_000)[0] == 200
    assert score(1) == (503, {"error": "overloaded: its timeout passed"})
    assert score("soon") == (400, {"error": "parameter 'timeout' is a whole number of microseconds above zero"})


def test_a_grpc_port_of_another_server_is_refused(server: Server, tmp_path: Path) -> None:
    """Two servers could listen on it, as two workers do, and each would get half of the other's calls."""
    port = server.grpc_address.rpartition(":")[2]
    with pytest.raises(UserError, match=f":{port}: Address already in use; give another --grpc-port or --host"):
        Supervisor(Settings(tmp_path, port=0, grpc_port=int(port))).run()
    port = server.address.rpartition(":")[2]
    with pytest.raises(UserError, match=f":{port}: Address already in use; give another --port or --host"):
        Supervisor(Settings(tmp_path, port=int(port))).run()

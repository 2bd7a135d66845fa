"""A bundle of several widths behind the server: a request is scored at the one it asks for or has the time for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.server_bundles import publish
from ctrkit.errors import UserError
from ctrkit.export.export import Rewrites
from ctrkit_serving.scorer import Scorer
from ctrkit_serving.server.model import WARM_ADS, Model
from ctrkit_serving.server.protocol import RequestError
from tests.export import test_widths
from tests.export.test_export import REQUESTS
from tests.export.test_rewrites import exported
from tests.export.test_widths import several
from tests.serving.server.harness import Server

towers = test_widths.towers
REQUEST = REQUESTS[0].to_json()


@pytest.fixture(scope="module")
def models(towers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    publish(models, "slim", 1, lambda place: several(towers, place))
    return models


@pytest.fixture(scope="module")
def scorer(models: Path) -> Scorer:
    return Scorer.load(models / "slim" / "1")


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with Server(models, "--workers", "1", grpc=True) as server:
        server.wait_ready()
        yield server


def counted(server: Server) -> dict[str, float]:
    label = 'model="slim",version="1",width='
    return {w: server.metric(f'ctrkit_width_requests_total{{{label}"{w}"}}') for w in ("1", "0.5", "0.25")}


def test_a_request_names_its_width(server: Server, scorer: Scorer) -> None:
    before = counted(server)
    for parameters, width in (({}, "1"), ({"width": "0.5"}, "0.5"), ({"width": 0.25}, "0.25"), ({"width": 1}, "1")):
        expected = scorer.score_request(REQUESTS[0], width=width)
        status, answer = server.call("POST", "/v2/models/slim/score", {**REQUEST, "parameters": parameters})
        assert status == 200, answer
        np.testing.assert_array_equal(np.array(answer["scores"], np.float32), expected)
        assert answer["parameters"] == {"width": width}
        feeds = scorer.encode(REQUESTS[0].user, REQUESTS[0].items)
        types = {"int64": "INT64", "float32": "FP32"}
        inputs = [
            {"name": n, "datatype": types[a.dtype.name], "shape": list(a.shape), "data": a.ravel().tolist()}
            for n, a in feeds.items()
        ]
        body = {"inputs": inputs, "parameters": parameters}
        status, answer = server.call("POST", "/v2/models/slim/infer", body)
        assert status == 200, answer
        np.testing.assert_array_equal(np.array(answer["outputs"][0]["data"], np.float32), expected)
        assert answer["parameters"] == {"width": width}
    after = counted(server)
    assert {width: after[width] - before[width] for width in after} == {"1": 4.0, "0.5": 2.0, "0.25": 2.0}
    assert server.call("GET", "/v2/models/slim")[1]["parameters"]["widths"] == ["1", "0.5", "0.25"]


def test_grpc_names_it_too(server: Server, scorer: Scorer) -> None:
    grpc = pytest.importorskip("grpc")
    from ctrkit_serving.server.grpc_messages import MESSAGES, SERVICE

    feeds = scorer.encode(REQUESTS[0].user, REQUESTS[0].items)
    types = {"int64": "INT64", "float32": "FP32"}
    request = MESSAGES["ModelInferRequest"](
        model_name="slim",
        inputs=[{"name": n, "datatype": types[a.dtype.name], "shape": a.shape} for n, a in feeds.items()],
        raw_input_contents=[a.tobytes() for a in feeds.values()],
        parameters={"width": {"string_param": "0.5"}},
    )
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelInferResponse"].FromString,
        )
        answer = call(request)
        assert answer.parameters["width"].string_param == "0.5"
        scores = np.frombuffer(answer.raw_output_contents[0], np.float32)
        np.testing.assert_array_equal(scores, scorer.score_request(REQUESTS[0], width="0.5"))
        request.parameters["width"].string_param = "0.3"
        with pytest.raises(grpc.RpcError, match=r"no width '0\.3'; the bundle has 1, 0\.5, 0\.25"):
            call(request)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": "0.3"}, "no width '0.3'; the bundle has 1, 0.5, 0.25"),
        ({"width": True}, "parameter 'width' is a name or a number"),
        ({"width": [1]}, "parameter 'width' is a name or a number"),
        ({"deadline_us": 0}, "parameter 'deadline_us' is a whole number of microseconds above zero"),
        ({"width": 1, "deadline_us": 5}, "give one of them"),
        ([], "'parameters' is an object"),
    ],
)
def test_what_is_refused(server: Server, parameters: Any, message: str) -> None:
    status, answer = server.call("POST", "/v2/models/slim/score", {**REQUEST, "parameters": parameters})
    assert status == 400
    assert message in answer["error"]


def test_a_deadline_that_none_or_all_meet(server: Server) -> None:
    for deadline_us, width in ((1, "0.25"), (60_000_000, "1")):
        before = counted(server)
        status, _ = server.call(
            "POST", "/v2/models/slim/score", {**REQUEST, "parameters": {"deadline_us": deadline_us}}
        )
        assert status == 200
        assert counted(server) == {**before, width: before[width] + 1}


# --- the choice itself


@pytest.fixture
def model(scorer: Scorer) -> Model:
    """As if a width took so many microseconds: at 1, 10, 100 and 400 ads."""
    made = Model("slim", 1, scorer, 10_000)
    micros = {"1": (40, 50, 140, 440), "0.5": (30, 35, 80, 230), "0.25": (25, 27, 45, 105)}
    made._seconds = {width: [1e-6 * each for each in took] for width, took in micros.items()}
    return made


@pytest.mark.parametrize(
    ("ads", "deadline_us", "waited_us", "width"),
    [
        (100, 141, 0, "1"),
        (100, 139, 0, "0.5"),
        (100, 79, 0, "0.25"),
        (100, 5, 0, "0.25"),  # none: the narrowest
        (100, 200, 61, "0.5"),  # what it has waited is gone
        (250, 291, 0, "1"),  # between two sizes
        (250, 289, 0, "0.5"),
        (700, 741, 0, "1"),  # beyond the last, on the same line
        (700, 739, 0, "0.5"),
        (1, 39, 0, "0.5"),
    ],
)
def test_the_widest_that_is_done_in_time(model: Model, ads: int, deadline_us: int, waited_us: int, width: str) -> None:
    assert model.width({"deadline_us": deadline_us}, ads, waited_us * 1e-6) == width


def test_warm_up_times_every_width(scorer: Scorer) -> None:
    made = Model("slim", 1, scorer, 10_000)
    made.warm(2)
    assert made._seconds.keys() == {"1", "0.5", "0.25"}
    assert all(len(took) == len(WARM_ADS) and min(took) > 0 for took in made._seconds.values())
    assert not made.counts().any()  # nobody's traffic


def test_a_model_of_one_width(towers: Any, tmp_path: Path, model: Model) -> None:
    several({"1": towers["1"]}, tmp_path / "one")
    with pytest.raises(UserError, match=r"no width '0\.5'; the bundle has 1"):
        Model("slim", 2, Scorer.load(tmp_path / "one"), 10).width({"width": 0.5}, 1, 0.0)
    exported(towers["1"].network, tmp_path / "plain", Rewrites())
    plain = Model("slim", 3, Scorer.load(tmp_path / "plain"), 10)
    assert plain.width({}, 1, 0.0) is None
    assert plain.width({"deadline_us": 1}, 1, 0.0) is None
    with pytest.raises(RequestError, match="above zero"):
        plain.width({"deadline_us": -1}, 1, 0.0)
    assert plain.lacks_what_callers_name(model)  # a new version without widths would refuse who names one
    assert not model.lacks_what_callers_name(plain)

"""From a network to a bundle: its golden scores are torch's, and what differs is not written."""

import errno
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrkit.bundle import MODEL, WEIGHTS, Bundle
from ctrkit.data.batch import Batch
from ctrkit.encoding import Encoding, Scaling, Vocabulary
from ctrkit.errors import UserError
from ctrkit.export import export
from ctrkit.export.arrays import NetworkArrays
from ctrkit.export.export import NUM_GOLDEN, export_bundle
from ctrkit.export.from_torch import network_arrays
from ctrkit.export.parity import MAX_DIFFERENCE
from ctrkit.nn.network import Network
from ctrkit.request import Request
from ctrkit_serving.scorer import Scorer
from tests import networks


def encoding() -> Encoding:
    """Id k has row k + 2; dense values are (x - 1) / 2."""

    def vocabulary(table: str) -> Vocabulary:
        keys = np.arange(networks.NUM_ROWS[table] - 2, dtype=np.int64)
        return Vocabulary(keys, np.ones(len(keys), np.int64))

    scaling = Scaling(log=False, mean=1.0, std=2.0, low=-100.0, high=100.0)
    return Encoding(
        schema=networks.schema(),
        raw_types={"user": "int", "recent": "int", "item": "int", "tags": "int", "price": "float", "bid": "float"},
        tables={table: vocabulary(table) for table in networks.NUM_ROWS},
        scalings={"price": scaling, "bid": scaling},
    )


REQUESTS = [
    Request(
        {"user": 3, "recent": [1, 2, 999]},
        [{"item": 4, "tags": [0, 1], "price": 2.0, "bid": 0.5}, {"item": 999, "tags": [], "price": -3.0, "bid": 7.0}],
    ),
    Request({"user": None, "recent": []}, [{"item": 0, "tags": [4], "price": 1.0, "bid": 1.0}]),
]


def scores_by_hand(network: Network, request: Request) -> list[float]:
    """Each ad of a request as an impression of the network in torch."""

    def row(table: str, key: int | None) -> int:
        return 0 if key is None else key + 2 if key < networks.NUM_ROWS[table] - 2 else 1

    scores = []
    for item in request.items:
        raw: dict[str, Any] = {**request.user, **item}  # type: ignore[dict-item]
        lists = [
            [row("user", raw["user"])],
            [row("item", key) for key in raw["recent"]],
            [row("item", raw["item"])],
            [row("tags", key) for key in raw["tags"]],
        ]
        batch = Batch(
            sparse=KeyedJaggedTensor.from_lengths_sync(
                keys=["user", "recent", "item", "tags"],
                values=torch.tensor([row for ids in lists for row in ids]),
                lengths=torch.tensor([len(ids) for ids in lists]),
            ),
            dense_BD=torch.tensor([[(raw["price"] - 1.0) / 2.0, (raw["bid"] - 1.0) / 2.0]]),
            label_B=torch.zeros(1),
            weight_B=torch.ones(1),
            origin_B=torch.zeros(1, dtype=torch.int64),
        )
        with torch.no_grad():
            scores.append(torch.sigmoid(network.eval()(batch)).item())
    return scores


@pytest.fixture(scope="module")
def network() -> Network:
    found = networks.network(hidden=(8, 4), batch_norm=True)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_()
    found.train()(networks.batch(50))
    return found


def exported(network: Network, place: Path, **settings: Any) -> Bundle:
    defaults: dict[str, Any] = {
        "name": "rocket_light",
        "held_out": [networks.batch(20, seed=seed) for seed in range(2)],
        "requests": REQUESTS * 10,
        "metrics": {"gauc": 0.7},
        "recipe": {"name": "small"},
    }
    return export_bundle(network, encoding(), place, **{**defaults, **settings})


@pytest.fixture(scope="module")
def bundle(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(network, tmp_path_factory.mktemp("run") / "bundle")


def test_golden_scores_are_those_of_torch(bundle: Bundle, network: Network) -> None:
    golden = bundle.golden
    assert len(golden.requests) == len(golden.scores) == NUM_GOLDEN
    for request, scores in zip(golden.requests, golden.scores, strict=True):
        assert scores == pytest.approx(scores_by_hand(network, request), abs=1e-6)
    assert len({score for scores in golden.scores for score in scores}) == 3


def test_the_scorer_gives_what_torch_gives(bundle: Bundle, network: Network) -> None:
    scorer = Scorer.load(bundle.directory)
    for request in REQUESTS:
        assert scorer.score_request(request).tolist() == pytest.approx(scores_by_hand(network, request), abs=1e-6)


def test_the_manifest_says_what_it_is(bundle: Bundle, network: Network) -> None:
    manifest = bundle.manifest
    assert manifest.name == "rocket_light"
    assert manifest.multiplications == network.tower.multiplications == 18 * 8 + 8 * 4 + 4
    assert 0.0 <= manifest.parity_max_abs_diff <= MAX_DIFFERENCE
    assert manifest.metrics == {"gauc": 0.7}
    assert manifest.recipe == {"name": "small"}
    assert manifest.versions.keys() == {"ctrkit", "torch", "torchrec", "onnx", "onnxruntime"}
    assert {MODEL, WEIGHTS} <= manifest.files.keys()


def test_a_graph_that_differs_from_torch_leaves_what_was_there(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bundle"
    exported(network, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    monkeypatch.setattr(export, "network_arrays", lambda *given: tampered(network_arrays(*given)))
    with pytest.raises(UserError, match=r"differ by .*nothing was exported"):
        exported(network, place)
    with pytest.raises(UserError, match=r"differ by .*nothing was exported"):
        exported(network, tmp_path / "fresh", held_out=[])  # the golden requests alone would tell
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["bundle"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from ctrkit.export import export
from tests import networks
from tests.export.test_export import exported

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

export.write_bundle = die
exported(networks.network(), Path(sys.argv[1]))
"""


def test_what_a_killed_export_left_goes_with_the_next(network: Network, tmp_path: Path) -> None:
    """Its graphs and weights are as large as the tables: a run killed now and then would fill the disk."""
    place = tmp_path / "bundle"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not place.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()]
    exported(network, place)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["bundle"]


def test_a_full_disk_is_said_with_the_place_and_leaves_what_was_there(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bundle"
    exported(network, place)

    def write_model(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as the closing of a file says it: without its name

    monkeypatch.setattr(export, "write_model", write_model)
    with pytest.raises(UserError, match=r"bundle: the disk is full; free some space"):
        exported(network, place)
    assert Bundle.load(place).manifest.name == "rocket_light"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["bundle"]


def tampered(arrays: NetworkArrays) -> NetworkArrays:
    last = arrays.layers[-1]
    return replace(arrays, layers=(*arrays.layers[:-1], replace(last, bias_O=last.bias_O + np.float32(0.01))))

"""The curl lines of docs/serving.md, run against a bundle of the demo's features."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.server_bundles import publish
from ctrkit.bundle import MODEL, WEIGHTS, Golden, write_bundle
from ctrkit.config.recipe import load_recipe
from ctrkit.encoding import Buckets, Encoding, HashBuckets
from ctrkit.export.arrays import Layer, NetworkArrays, Reader
from ctrkit.export.serving_graphs import write_model
from ctrkit.export.weight_file import WeightFile
from ctrkit.request import Request
from ctrkit.schema import SequenceFeature, table_of
from ctrkit_serving.scorer import Scorer
from tests.serving.server.harness import TOKEN, Server

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "docs" / "serving.md"]
LINES = [line for page in PAGES for line in re.findall(r"^curl .*$", page.read_text(encoding="utf-8"), re.MULTILINE)]
STRINGS = {"user_id", "age_band", "gender", "city", "device"}
DIM, ROWS = 2, 12


def write_demo(place: Path) -> None:
    """Any weights: what counts is that the features are the demo's."""
    schema = load_recipe(ROOT / "pipelines" / "demo.toml").schema_()
    tables = {table_of(f): HashBuckets(ROWS - 2) for f in schema.sparse_features}
    encoding = Encoding(
        schema,
        {f.name: "string" if f.name in STRINGS else "float" if f.name == "price" else "int" for f in schema.features},
        {**tables, "price": Buckets((1.0, 10.0), low=0.0, high=500.0)},
        {},
    )
    rng = np.random.default_rng(0)
    readers, rows, first = {}, {}, 0
    for i, feature in enumerate(schema.sparse_features):
        readers[feature.name] = Reader(DIM, first, feature.pooling if isinstance(feature, SequenceFeature) else None)
        rows[feature.name] = slice(i * DIM, (i + 1) * DIM)
        first += ROWS
    stack = rng.normal(size=(first, DIM)).astype(np.float32)
    layer = Layer(rng.normal(size=(len(readers) * DIM, 1)).astype(np.float32), np.zeros(1, np.float32))
    graph = place.with_name(f"{place.name}_graph")
    graph.mkdir()
    with WeightFile(graph / WEIGHTS, inline=64) as file:
        write_model(NetworkArrays(schema, {DIM: stack}, readers, (layer,), rows), file, graph / MODEL)
    content = next(line for line in LINES if "/score" in line).split("-d '")[1].rstrip("'")
    request = Request.from_json(json.loads(content))
    facts = {"name": "demo", "versions": {"onnx": "1"}, "multiplications": 1, "parity_max_abs_diff": 0.0}
    golden = Golden((request,), ((0.5, 0.5),))
    write_bundle(place, model=graph, encoding=encoding, golden=golden, **facts)  # type: ignore[arg-type]
    golden = Golden((request,), (tuple(Scorer.load(place, verify_golden=False).score_request(request).tolist()),))
    write_bundle(place, model=graph, encoding=encoding, golden=golden, **facts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    publish(models, "demo", 1, write_demo)
    with Server(models, "--workers", "1") as server:
        server.wait_ready()
        yield server


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("line", LINES, ids=lambda line: re.findall(r"localhost:8000(\S+)", line)[0])
def test_curl_line(server: Server, line: str) -> None:
    command = line.replace("localhost:8000", server.address).replace("curl -s", "curl -s --fail-with-body")
    environment = {**os.environ, "CTRKIT_TOKEN": TOKEN}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    if "/score" in line:
        assert len(json.loads(done.stdout)["scores"]) == 2
    elif "/infer" in line:
        answer = json.loads(done.stdout)
        assert (answer["id"], answer["model_version"], answer["outputs"][0]["shape"]) == ("r1", "1", [2])
    elif "/metrics" in line:
        assert 'ctrkit_version_serving{model="demo",version="1"} 1.0' in done.stdout
    else:
        json.loads(done.stdout)

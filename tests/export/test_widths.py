"""One bundle of several widths: each scores as in a bundle of its own, over tables that are there once."""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from ctrkit.builders.networks import build_embedding
from ctrkit.bundle import MANIFEST, Bundle
from ctrkit.config.recipe import EmbeddingConfig
from ctrkit.errors import UserError
from ctrkit.export import from_torch
from ctrkit.export import widths as widths_module
from ctrkit.export.export import Rewrites
from ctrkit.export.widths import Width
from ctrkit.nn.network import Network
from ctrkit.nn.slimmable import SlimmableMLP
from ctrkit_serving.bench.command import add_options, bench_command
from ctrkit_serving.score_file import score_file
from ctrkit_serving.scorer import Scorer
from tests import networks
from tests.export import test_rewrites
from tests.export.test_export import REQUESTS
from tests.export.test_rewrites import KEYS, LOOSE, USER, exported

ads = test_rewrites.ads
FRACTIONS = {"1": 1.0, "0.5": 0.5, "0.25": 0.25}


@pytest.fixture(scope="module")
def towers() -> dict[str, Width]:
    """Slices of one net over tables that are larger than it, the widest first."""
    torch.manual_seed(0)
    schema = networks.schema()
    tables = build_embedding(schema, EmbeddingConfig(dim=64, init_std=0.5), networks.NUM_ROWS)
    tower = SlimmableMLP(tables.out_features, (64, 32), norm="layer_norm")
    return {
        name: Width(Network(tables, tower.slice(fraction)).eval(), {"gauc": fraction})
        for name, fraction in FRACTIONS.items()
    }


def several(towers: Mapping[str, Width], place: Path, **rewrites: Any) -> Bundle:
    return exported(towers["1"].network, place, Rewrites(**rewrites), widths=towers)


@pytest.fixture(scope="module")
def bundle(towers: dict[str, Width], ads: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With an item table."""
    return several(towers, tmp_path_factory.mktemp("several") / "bundle", items=ads, item_key="ad")


@pytest.fixture(scope="module")
def alone(towers: dict[str, Width], ads: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Each width by itself."""
    folder, rewrites = tmp_path_factory.mktemp("alone"), Rewrites(items=ads, item_key="ad")
    return {name: exported(width.network, folder / name, rewrites) for name, width in towers.items()}


def test_every_width_scores_as_alone_bit_for_bit(bundle: Bundle, alone: dict[str, Bundle]) -> None:
    scorer, seen = Scorer.load(bundle.directory), set()
    assert scorer.widths == ("1", "0.5", "0.25")
    for name, of_width in alone.items():
        expected = Scorer.load(of_width.directory)
        for request in REQUESTS:  # from features
            scores = scorer.score_request(request, width=name)
            np.testing.assert_array_equal(scores, expected.score_request(request))
            seen.add(scores[0].item())
        by_key = scorer.score(USER, {"ad": KEYS}, width=name)  # from the item table
        np.testing.assert_array_equal(by_key, expected.score(USER, {"ad": KEYS}))
        feeds = scorer.encode(USER, {"ad": KEYS})
        np.testing.assert_array_equal(scorer.score_ids(feeds, width=name), by_key)
        mixed = [{"ad": KEYS[3]}, {"ad": 1, "item": 4, "tags": [0], "price": 2.0, "bid": 0.5}]
        np.testing.assert_array_equal(scorer.score(USER, mixed, width=name), expected.score(USER, mixed))
    assert len(seen) == 3 * len(REQUESTS)


def test_the_widest_answers_who_names_none(bundle: Bundle) -> None:
    scorer = Scorer.load(bundle.directory)
    expected = scorer.score_request(REQUESTS[0], width="1")
    np.testing.assert_array_equal(scorer.score_request(REQUESTS[0]), expected)
    for same in ("0.5", 0.5, "0.50"):
        np.testing.assert_array_equal(
            scorer.score_request(REQUESTS[0], width=same), scorer.score_request(REQUESTS[0], width="0.5")
        )


@pytest.mark.parametrize("width", ["0.3", 2, "wide", "nan", ""])
def test_a_width_that_is_not_there(bundle: Bundle, alone: dict[str, Bundle], width: Any) -> None:
    with pytest.raises(UserError, match=rf"no width '{width}'; the bundle has 1, 0.5, 0.25"):
        Scorer.load(bundle.directory).score_request(REQUESTS[0], width=width)
    with pytest.raises(UserError, match="the bundle has one, so a request names none"):
        Scorer.load(alone["1"].directory).score_request(REQUESTS[0], width=width)


def test_a_scorer_at_a_width(bundle: Bundle) -> None:
    scorer = Scorer.load(bundle.directory)
    narrow = scorer.at("0.25")
    for width, asked in ((None, "0.25"), ("0.5", "0.5"), (1, "1")):
        np.testing.assert_array_equal(
            narrow.score_request(REQUESTS[0], width=width), scorer.score_request(REQUESTS[0], width=asked)
        )
    assert narrow.counts == scorer.counts  # of both
    with pytest.raises(UserError, match="width"):
        scorer.at("0.3")


def test_bench_measures_every_width(bundle: Bundle, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    found = bench_command(parser.parse_args([str(bundle.directory), "--repeats", "30", "--seconds", "0", "--ads", "5"]))
    name = str(bundle.directory)
    assert list(found["latency_ms"]) == [name, f"{name} width 0.5", f"{name} width 0.25"]


def test_a_file_of_requests_at_a_width(bundle: Bundle, tmp_path: Path) -> None:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "scores.jsonl"
    requests.write_text(json.dumps({"user": REQUESTS[0].user, "items": REQUESTS[0].items}) + "\n")
    score_file(bundle.directory, requests, out, width="0.5")
    scores = np.array(json.loads(out.read_text())["scores"], np.float32)
    np.testing.assert_array_equal(scores, Scorer.load(bundle.directory).score_request(REQUESTS[0], width="0.5"))
    with pytest.raises(UserError, match=r"^no width '0\.3'; the bundle has 1, 0\.5, 0\.25"):
        score_file(bundle.directory, requests, out, width="0.3")


def test_tables_are_there_once(bundle: Bundle, alone: dict[str, Bundle]) -> None:
    places = set()
    for graph in bundle.directory.glob("model*.onnx"):
        initializers = onnx.load(graph, load_external_data=False).graph.initializer
        (table,) = (t for t in initializers if t.name == "/table_64")
        places.add(tuple((entry.key, entry.value) for entry in table.external_data))
    assert len(places) == 1
    size = {name: of.manifest.files["model.onnx.data"].bytes for name, of in {**alone, "all": bundle}.items()}
    tables = 4 * 64 * sum(networks.NUM_ROWS.values())
    assert size["all"] > size["1"]  # the narrow towers' own layers
    assert size["all"] - size["1"] < size["0.5"] + size["0.25"] - 2 * tables + 2 * 4096
    keys = [path for path in bundle.manifest.files if path.startswith("items/keys")]
    assert keys == ["items/keys.npy"]


def test_the_manifest_tells_of_each_width(bundle: Bundle, alone: dict[str, Bundle]) -> None:
    manifest = bundle.manifest
    assert manifest.format == 3
    assert [(name, entry.hidden) for name, entry in manifest.widths.items()] == [
        ("1", (64, 32)), ("0.5", (32, 16)), ("0.25", (16, 8)),
    ]  # fmt: skip
    for name, entry in manifest.widths.items():
        assert entry.multiplications == alone[name].manifest.multiplications
        assert entry.parity_max_abs_diff == alone[name].manifest.parity_max_abs_diff <= 1e-6
        assert entry.metrics == {"gauc": FRACTIONS[name]}
        assert {entry.model, entry.table} <= manifest.files.keys()
    assert manifest.multiplications == manifest.widths["1"].multiplications
    assert not [path for path in manifest.files if path.startswith(("item.", "head."))]


def test_a_bundle_of_one_width_is_as_it_was(alone: dict[str, Bundle]) -> None:
    content = json.loads((alone["1"].directory / MANIFEST).read_text())
    assert content["format"] == 2
    assert "widths" not in content
    assert "widths" not in json.loads((alone["1"].directory / "golden.json").read_text())


def damaged(bundle: Bundle, place: Path) -> Path:
    return shutil.copytree(bundle.directory, place)


def rehash(place: Path, change: Any) -> None:
    """The golden requests changed, and the manifest's hash with them."""
    from ctrkit.bundle import _entry

    golden = json.loads((place / "golden.json").read_text())
    change(golden["widths"])
    (place / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["files"]["golden.json"] = _entry(place / "golden.json").model_dump()
    (place / MANIFEST).write_text(json.dumps(manifest))


def test_every_width_is_verified(bundle: Bundle, tmp_path: Path) -> None:
    (damaged(bundle, tmp_path / "gone") / "model.w0.5.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.w0\.5\.onnx: missing"):
        Bundle.load(tmp_path / "gone")
    changed = damaged(bundle, tmp_path / "changed") / "items" / "part.w0.25.npy"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"part\.w0\.25\.npy: changed"):
        Bundle.load(tmp_path / "changed")

    def other(scores: dict[str, Any]) -> None:
        scores["0.25"][0][0] += 0.01

    rehash(damaged(bundle, tmp_path / "other"), other)
    with pytest.raises(UserError, match=r"golden request 0 scores 0\.01 .*width 0\.25"):
        Scorer.load(tmp_path / "other")
    rehash(damaged(bundle, tmp_path / "fewer"), lambda scores: scores.pop("0.5"))
    with pytest.raises(UserError, match="not the widths of the manifest"):
        Bundle.load(tmp_path / "fewer")


def test_a_narrow_graph_that_differs_from_torch_is_not_written(
    towers: dict[str, Width], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = from_torch.network_arrays

    def off(network: Network, schema: Any) -> Any:
        arrays = exact(network, schema)
        last = arrays.layers[-1]
        return replace(arrays, layers=(*arrays.layers[:-1], replace(last, bias_O=last.bias_O + 1e-3)))

    monkeypatch.setattr(widths_module, "network_arrays", off)
    with pytest.raises(UserError, match=r"model\.w0\.5\.onnx: ONNX Runtime and torch differ"):
        several(towers, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_several_widths_are_exact(towers: dict[str, Width], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is exact: no gate has seen int8 of each; set export\.int8 = false"):
        several(towers, tmp_path / "bundle", int8=True, limits=LOOSE)

"""Item tables, int8, tables in fewer bits: what they change is nothing, or is measured and little."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper

from ctrkit.bundle import Bundle
from ctrkit.data.batch import Batch
from ctrkit.encoding import Counts
from ctrkit.errors import UserError
from ctrkit.export.export import Rewrites, export_bundle
from ctrkit.export.gate import HeldOutRows, Limits
from ctrkit.export.network_graph import Rounding
from ctrkit.manifest import MODEL_INT8, TABLE, TABLE_INT8
from ctrkit.metrics.report import evaluate_scores
from ctrkit.nn.network import Network
from ctrkit.request import Request
from ctrkit_serving.scorer import Scorer
from tests import networks
from tests.export.test_export import REQUESTS, encoding, scores_by_hand

ADS: list[dict[str, Any]] = [
    {"ad": 100 + 7 * i, "item": i % 23, "tags": [i % 5][: i % 3], "price": i % 4 - 0.1 * i / 4, "bid": 0.1 * i}
    for i in range(40)
]
KEYS = [ad["ad"] for ad in ADS]
USER: dict[str, Any] = {"user": 3, "recent": [1, 2]}
LOOSE = Limits(gauc_change=1.0, pcoc_change=1.0, difference=0.5)


def features(ads: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in ad.items() if name != "ad"} for ad in ads]


def by_hand(network: Network, ads: Sequence[dict[str, Any]]) -> list[float]:
    return scores_by_hand(network, Request(USER, features(ads)))


@pytest.fixture(scope="module")
def network() -> Network:
    return networks.network(hidden=(16, 8)).eval()


@pytest.fixture(scope="module")
def ads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ads") / "ads.parquet"
    order = np.random.default_rng(0).permutation(len(ADS))
    pq.write_table(pa.Table.from_pylist([ADS[i] for i in order]), path)
    return path


def judged(seeds: range = range(100, 104)) -> HeldOutRows:
    batches = [networks.batch(200, seed=seed) for seed in seeds]
    labels = np.concatenate([batch.label_B.numpy() for batch in batches])
    groups = np.arange(len(labels)) % 50
    return HeldOutRows(lambda: batches, lambda probability: evaluate_scores(labels, probability, groups))


def exported(network: Network, place: Path, rewrites: Rewrites, **settings: Any) -> Bundle:
    held_out: list[Batch] = [networks.batch(50, seed=seed) for seed in range(4)]
    defaults: dict[str, Any] = {"name": "light", "held_out": held_out, "requests": REQUESTS, "judged": judged()}
    return export_bundle(network, encoding(), place, rewrites=rewrites, **{**defaults, **settings})


@pytest.fixture(scope="module")
def bundle(network: Network, ads: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of everything: an item table and int8 that passed."""
    rewrites = Rewrites(items=ads, item_key="ad", int8=True, limits=LOOSE)
    return exported(network, tmp_path_factory.mktemp("all") / "bundle", rewrites)


@pytest.fixture
def scorer(bundle: Bundle) -> Scorer:
    return Scorer.load(bundle.directory)


def test_ads_of_the_table_score_as_from_their_features(scorer: Scorer, network: Network) -> None:
    expected = by_hand(network, ADS)
    assert len(set(expected)) > 30
    for items in ([{"ad": key} for key in KEYS], {"ad": KEYS}, {"ad": np.array(KEYS)}, ADS, features(ADS)):
        assert scorer.score(USER, items).tolist() == pytest.approx(expected, abs=1e-6)
    assert scorer.item_table_counts == Counts(values=4 * 40)
    assert scorer.counts["price"].values == 40
    assert scorer.counts["user"].values == 5


def test_ads_that_the_table_has_not_are_scored_from_their_features(scorer: Scorer, network: Network) -> None:
    new = [{**ad, "ad": key, "price": 9.0} for ad, key in zip(ADS[:4], (99, 107.0, None, -(2**63)), strict=True)]
    new[1]["ad"] = 108
    mixed: list[dict[str, Any]] = [ADS[3], new[0], {"ad": KEYS[7]}, *new[1:], ADS[2]]
    expected = by_hand(network, [ADS[3], new[0], ADS[7], *new[1:], ADS[2]])
    assert scorer.score(USER, mixed).tolist() == pytest.approx(expected, abs=1e-6)
    assert scorer.item_table_counts == Counts(values=7, unseen=4)
    whole = [ADS[3], *new]
    columns = {name: [ad[name] for ad in whole] for name in ADS[0]}
    assert scorer.score(USER, columns).tolist() == pytest.approx(by_hand(network, whole), abs=1e-6)
    assert scorer.counts["price"].values == 8
    assert scorer.score(USER, {"ad": []}).tolist() == scorer.score(USER, []).tolist() == []


REFUSED: dict[str, tuple[Any, str]] = {
    "new without features": ([{"ad": KEYS[0]}, {"ad": 99}], "item 1: ad 99 is not in the item table, and 'bid' is not"),
    "new without a feature": ([{**ADS[0], "ad": None}, {**ADS[1], "ad": 1}, {"ad": 99}], "item 2: ad 99 is not in"),
    "new in columns": ({"ad": [KEYS[0], 99]}, "items: ad 99 is not in the item table, and 'bid' is not given"),
    "misspelt": ([{"ad": KEYS[0], "prices": 3}], "item 0: the model knows no 'prices', nearest is 'price'"),
    "misspelt column": ({"ad": KEYS[:1], "prices": [3]}, "items: the model knows no 'prices'"),
    "key of another type": ({"ad": ["100"]}, "feature 'ad' has int values in training, got '100'"),
    "short column": ({"ad": KEYS[:2], "price": [1.0]}, "column 'price' has 1 values for 2 ads"),
    "no mapping": ([{"ad": KEYS[0]}, 3], "item 1: takes values by name, got int"),
    "no key in a row, nor features": ([{"ad": KEYS[0]}, {}], "item 1: ad None is not in the item table"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(scorer: Scorer, case: str) -> None:
    items, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        scorer.score(USER, items)


def test_ids_of_the_table(scorer: Scorer, network: Network) -> None:
    assert scorer.item_table is not None
    rows = scorer.item_table.rows([*KEYS[:5], 99, None])
    assert (rows[:5] >= 0).all()
    assert rows[5:].tolist() == [-1, -1]
    from_user = {
        name: x for name, x in scorer.encode(USER, features(ADS)).items() if scorer.inputs[name].side == "user"
    }
    expected = by_hand(network, ADS[:5])
    assert scorer.score_ids({**from_user, "ads": rows[:5]}).tolist() == pytest.approx(expected, abs=1e-6)
    of_items = {name: x for name, x in scorer.encode(USER, features(ADS[5:7])).items() if name not in from_user}
    mixed = scorer.score_ids({**from_user, **of_items, "ads": rows}).tolist()
    assert mixed == pytest.approx(by_hand(network, ADS[:7]), abs=1e-6)
    for ads, message in (
        (np.array([len(ADS)]), "a row beyond the item table of 40 ads"),
        (np.array([-2]), "a row beyond the item table"),
        (np.array([0.0]), r"'ads' is int64 \[N\], got float64"),
        (np.array([[0]]), r"'ads' is int64 \[N\], got int64 \[1, 1\]"),
        (np.array([0, -1]), "an input 'dense_item', which is not given"),
    ):
        with pytest.raises(UserError, match=message):
            scorer.score_ids({**from_user, "ads": ads})
    with pytest.raises(UserError, match="has 2 rows, there are 1 ads that are not in the item table"):
        scorer.score_ids({**from_user, **of_items, "ads": np.array([0, -1])})


def test_int8_passed_its_gate_and_is_asked_for(bundle: Bundle, network: Network) -> None:
    found = bundle.manifest.approximations["int8"]
    assert found.accepted
    assert found.rows == 800
    assert 0 < found.max_difference < 0.02
    assert found.gauc_change is not None
    exact, approximate = Scorer.load(bundle.directory), Scorer.load(bundle.directory, precision="int8")
    for items in (features(ADS), {"ad": KEYS}):
        difference = np.abs(approximate.score(USER, items) - exact.score(USER, items)).max()
        assert 0 < difference < 0.02
    assert approximate.score(USER, features(ADS)).tolist() == pytest.approx(by_hand(network, ADS), abs=0.02)


def initializer_types(bundle: Bundle, name: str) -> dict[str, Any]:
    graph = onnx.load(bundle.directory / name, load_external_data=False).graph
    return {tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type) for tensor in graph.initializer}


def test_the_graph_in_int8_reads_parts_in_int8(bundle: Bundle, network: Network, ads: Path, tmp_path: Path) -> None:
    parts = "/items/part.int8.npy"
    assert initializer_types(bundle, TABLE_INT8)[parts] == np.uint8
    assert "/items/part.npy" not in initializer_types(bundle, TABLE_INT8)
    assert "/items/part.npy" in initializer_types(bundle, TABLE)
    kept, exact = (np.load(bundle.directory / "items" / name) for name in ("part.int8.npy", "part.npy"))
    assert kept.dtype == np.uint8
    assert len(np.unique(kept)) > 50
    slope, intercept = np.polyfit(kept.ravel().astype(float), exact.ravel(), 1)
    assert np.abs(slope * kept + intercept - exact).max() < 0.51 * slope  # each is the nearest of 256
    # a tower whose first activation is no ReLU has no sum in int8: its table keeps floats
    gelu = networks.network(hidden=(16, 8), activation="gelu").eval()
    other = exported(gelu, tmp_path / "gelu", Rewrites(items=ads, item_key="ad", int8=True, limits=LOOSE))
    assert parts not in initializer_types(other, TABLE_INT8)
    assert not (other.directory / "items" / "part.int8.npy").exists()


def test_int8_keeps_the_mean_probability(bundle: Bundle) -> None:
    found = bundle.manifest.approximations["int8"]
    assert found.pcoc_change is not None
    assert abs(found.pcoc_change) < 1e-3


def test_numbers_are_rounded_as_the_graph_rounds_them(tmp_path: Path) -> None:
    rounding = Rounding.between(-1.3, 2.1)
    x = np.random.default_rng(0).uniform(-1.5, 2.4, (50, 7)).astype(np.float32)
    x[0, :3] = 0.0, rounding.scale / 2, -rounding.scale / 2
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, x.shape)],
        [numpy_helper.from_array(np.array(rounding.scale, np.float32), "scale"),
         numpy_helper.from_array(np.array(rounding.zero_point, np.uint8), "zero")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(rounding(x), session.run(None, {"x": x})[0])
    assert rounding(np.zeros(1, np.float32))[0] == rounding.zero_point
    assert Rounding.between(0.0, 0.0)(np.zeros(2, np.float32)).tolist() == [0, 0]


@pytest.mark.parametrize("limits", [Limits(difference=1e-9), Limits(pcoc_change=0.0), Limits(gauc_change=0.0)])
def test_int8_that_does_not_pass_is_not_written(network: Network, tmp_path: Path, limits: Limits) -> None:
    said: list[str] = []
    bundle = exported(network, tmp_path / "bundle", Rewrites(int8=True, limits=limits), say=said.append)
    assert not {MODEL_INT8, TABLE_INT8} & bundle.manifest.files.keys()
    assert not bundle.manifest.approximations["int8"].accepted
    assert "left out" in said[0]
    plain = exported(network, tmp_path / "plain", Rewrites())
    assert bundle.manifest.files["model.onnx.data"] == plain.manifest.files["model.onnx.data"]
    Scorer.load(bundle.directory)
    with pytest.raises(UserError, match=r"holds no int8 .it did not pass its gate: .* more than"):
        Scorer.load(bundle.directory, precision="int8")
    with pytest.raises(UserError, match=r"holds no int8 .set export\.int8 = true"):
        Scorer.load(plain.directory, precision="int8")


@pytest.mark.parametrize(("precision", "bits"), [("float16", 16), ("int8", 8)])
def test_tables_in_fewer_bits(network: Network, ads: Path, tmp_path: Path, precision: Any, bits: int) -> None:
    rewrites = Rewrites(items=ads, item_key="ad", tables=precision, int8=True, limits=LOOSE)
    bundle = exported(network, tmp_path / "bundle", rewrites)
    assert bundle.manifest.tables == precision
    assert bundle.manifest.approximations["tables"].accepted
    assert bundle.manifest.files["items/part.npy"].bytes == 128 + 40 * 16 * bits // 8
    exact = by_hand(network, ADS)
    for asked in ("exact", "int8"):
        scorer = Scorer.load(bundle.directory, precision=asked)
        for items in (features(ADS), {"ad": KEYS}):
            difference = np.abs(scorer.score(USER, items) - exact).max()
            assert 0 < difference < 0.02
    strict = Rewrites(items=ads, item_key="ad", tables=precision, limits=Limits(difference=1e-9))
    refused = exported(network, tmp_path / "strict", strict)
    assert refused.manifest.tables == "float32"
    assert not refused.manifest.approximations["tables"].accepted
    assert Scorer.load(refused.directory).score(USER, {"ad": KEYS}).tolist() == pytest.approx(exact, abs=1e-6)


def test_strings_name_ads_too(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "ads.parquet"
    pq.write_table(pa.Table.from_pylist([{**ad, "ad": f"ad {ad['ad']}"} for ad in ADS]), path)
    scorer = Scorer.load(exported(network, tmp_path / "b", Rewrites(items=path, item_key="ad")).directory)
    items = {"ad": [f"ad {key}" for key in KEYS]}
    assert scorer.score(USER, items).tolist() == pytest.approx(by_hand(network, ADS), abs=1e-6)


BAD_ADS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no key column": (features(ADS), "ads.parquet: has no column 'ad'"),
    "no feature": ([{"ad": 1, "item": 2}], "has no column 'tags'"),
    "key missing": ([ADS[0], {**ADS[1], "ad": None}], "row 1 has no 'ad'"),
    "key twice": ([ADS[0], {**ADS[1], "ad": 100}], "ad 100 is there twice"),
    "key a float": ([{**ADS[0], "ad": 1.5}], "column 'ad' is double; an ad is named by an integer or a string"),
    "feature of another type": ([{**ADS[0], "item": "red"}], r"ads\.parquet: .*item"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ADS)
def test_a_file_of_ads_that_is_not_fit(network: Network, tmp_path: Path, case: str) -> None:
    rows, message = BAD_ADS[case]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ads.parquet")
    with pytest.raises(UserError, match=message):
        exported(network, tmp_path / "bundle", Rewrites(items=tmp_path / "ads.parquet", item_key="ad"))
    assert not (tmp_path / "bundle").exists()


def test_no_file_no_ads_no_key(network: Network, ads: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.parquet: no readable Parquet file of ads"):
        exported(network, tmp_path / "b", Rewrites(items=tmp_path / "nothing.parquet", item_key="ad"))
    pq.write_table(pa.Table.from_pylist(ADS).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="holds no ad"):
        exported(network, tmp_path / "b", Rewrites(items=tmp_path / "empty.parquet", item_key="ad"))
    with pytest.raises(UserError, match=r"needs export\.item_key"):
        exported(network, tmp_path / "b", Rewrites(items=ads))
    with pytest.raises(UserError, match="needs held-out rows"):
        exported(network, tmp_path / "b", Rewrites(int8=True), judged=None)

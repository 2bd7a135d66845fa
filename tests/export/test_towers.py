"""Towers that are more than an MLP, from torch to a scorer: features, item table, int8, tables in fewer bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrkit.builders.networks import attended_lists, build_tower
from ctrkit.bundle import Bundle
from ctrkit.config.recipe import TowerConfig
from ctrkit.encoding import Counts
from ctrkit.errors import UserError
from ctrkit.export.export import Rewrites
from ctrkit.export.from_torch import network_arrays
from ctrkit.export.gate import Limits
from ctrkit.nn.network import Network
from ctrkit.nn.tower import Tower, Trace
from ctrkit.request import Request
from ctrkit_serving.scorer import Scorer
from tests import networks
from tests.export.test_export import scores_by_hand
from tests.export.test_rewrites import ADS, KEYS, LOOSE, ads, exported, features  # noqa: F401  ads is a fixture

CROSSES = {"kind": "dcn_v2", "hidden": [8, 4], "cross_layers": 3, "batch_norm": True}
ATTENTION = {"kind": "target_attention", "hidden": [8, 4], "attention_hidden": [5], "activation": "prelu"}
USERS: dict[str, dict[str, Any]] = {
    "known": {"user": 3, "recent": [1, 2]},
    "no list": {"user": 3, "recent": []},
    "unseen": {"user": 999, "recent": [999, 5, 998]},
    "missing": {"user": None, "recent": [7]},
    "too long a list": {"user": 1, "recent": [4, 4, 9, 2, 3]},
}


def made(tower: dict[str, Any]) -> Network:
    """Every weight and statistic is other than at the start, the rows of missing and unseen ids too."""
    tables = networks.embedding()
    attended = attended_lists(networks.schema(), tables) if tower["kind"] == "target_attention" else []
    network = Network(tables, build_tower(TowerConfig(**tower), tables.out_features, attended))
    with torch.no_grad():
        for stack in tables.stacks.values():
            stack.normal_(0.0, 0.5)
        for parameter in network.tower.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.3, 0.3)
    network.train()(networks.batch(50))
    return network.eval()


@pytest.fixture(scope="module", params=[CROSSES, ATTENTION], ids=["crosses", "attention"])
def network(request: pytest.FixtureRequest) -> Network:
    return made(request.param)


@pytest.fixture(scope="module")
def bundle(network: Network, ads: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:  # noqa: F811
    rewrites = Rewrites(items=ads, item_key="ad", int8=True, limits=LOOSE)
    return exported(network, tmp_path_factory.mktemp("tower") / "bundle", rewrites)


def by_hand(network: Network, user: dict[str, Any], items: list[dict[str, Any]]) -> list[float]:
    return scores_by_hand(network, Request({**user, "recent": user["recent"][:3]}, features(items)))


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_a_scorer_gives_what_torch_gives(bundle: Bundle, network: Network, user: dict[str, Any]) -> None:
    scorer = Scorer.load(bundle.directory)
    expected = by_hand(network, user, ADS)
    assert len(set(expected)) > 30
    for items in (features(ADS), {"ad": KEYS}):
        assert scorer.score(user, items).tolist() == pytest.approx(expected, abs=1e-6)
    assert scorer.score(user, ADS[:1]).tolist() == pytest.approx(expected[:1], abs=1e-6)
    new = [{**ADS[1], "ad": 99}, {**ADS[2], "ad": None, "item": 888, "tags": []}]
    mixed = [ADS[3], *new, {"ad": KEYS[7]}]
    assert scorer.score(user, mixed).tolist() == pytest.approx(by_hand(network, user, [ADS[3], *new, ADS[7]]), abs=1e-6)
    assert scorer.item_table_counts == Counts(values=45, unseen=2)


def test_the_list_counts(network: Network) -> None:
    known, none = (by_hand(network, USERS[name], ADS) for name in ("known", "no list"))
    assert np.abs(np.subtract(known, none)).min() > 1e-5


def test_what_lies_beyond_the_length_of_a_list_does_not_matter(bundle: Bundle) -> None:
    scorer = Scorer.load(bundle.directory)
    inputs = scorer.encode(USERS["known"], features(ADS))
    before = scorer.score_ids(inputs)
    beyond = inputs["recent_ids"].copy()
    beyond[:, 2] = 5
    assert not np.array_equal(beyond, inputs["recent_ids"])
    assert np.array_equal(scorer.score_ids({**inputs, "recent_ids": beyond}), before)


def test_int8_changes_little(bundle: Bundle, network: Network) -> None:
    assert bundle.manifest.approximations["int8"].accepted
    scorer = Scorer.load(bundle.directory, precision="int8")
    expected = by_hand(network, USERS["known"], ADS)
    for items in (features(ADS), {"ad": KEYS}):
        difference = np.abs(scorer.score(USERS["known"], items) - expected).max()
        assert 1e-6 < difference < 0.03


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_tables_in_fewer_bits(network: Network, ads: Path, tmp_path: Path, precision: Any) -> None:  # noqa: F811
    rewrites = Rewrites(items=ads, item_key="ad", tables=precision, limits=LOOSE)
    found = exported(network, tmp_path / "bundle", rewrites)
    assert found.manifest.tables == precision
    scorer = Scorer.load(found.directory)
    expected = by_hand(network, USERS["known"], ADS)
    for items in (features(ADS), {"ad": KEYS}):
        difference = np.abs(scorer.score(USERS["known"], items) - expected).max()
        assert 1e-7 < difference < 0.02


def test_an_item_table_keeps_what_later_layers_read(bundle: Bundle, network: Network) -> None:
    arrays = network_arrays(network, networks.schema())
    # crosses: an ad's two embeddings and two numbers, crosses of all 18, 8 units; attention: its target, 8 units
    assert arrays.part_width in {2 * 4 + 2 + 18 + 8, 4 + 8}
    assert bundle.manifest.item_table is not None
    assert bundle.manifest.item_table.width == arrays.part_width
    assert np.load(bundle.directory / "items" / "part.npy").shape == (40, arrays.part_width)


def test_int8_that_does_not_pass_is_not_written(network: Network, tmp_path: Path) -> None:
    said: list[str] = []
    strict = Rewrites(int8=True, limits=Limits(difference=1e-9))
    found = exported(network, tmp_path / "bundle", strict, say=said.append)
    assert not found.has_int8
    assert "left out" in said[0]
    assert Scorer.load(found.directory).score(USERS["known"], features(ADS)).tolist() == pytest.approx(
        by_hand(network, USERS["known"], ADS), abs=1e-6
    )


class Unknown(Tower):
    """Of somebody else."""

    multiplications = 1
    hidden_widths = ()

    def trace(self, x_BX: torch.Tensor, lists: Any = None) -> Trace:
        return [], x_BX.sum(1)


def test_a_tower_that_no_graph_knows_is_named() -> None:
    with pytest.raises(UserError, match="the tower is a Unknown, which no serving graph knows; export another model"):
        network_arrays(Network(networks.embedding(), Unknown()), networks.schema())

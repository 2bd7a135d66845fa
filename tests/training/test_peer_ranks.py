"""Peers in processes of their own learn what peers in one process learn."""

import json
from pathlib import Path

import pytest

from tests import small_recipe
from tests.training.test_ranks import run_model

PEERS = (
    "data.synthetic.rows=6000",
    "towers.light.dropout=0.0",
    "models.peers.objective=mutual_learning",
    'models.peers.peers=["light", "light"]',
    "models.peers.unexposed=0.5",
    "models.peers.across_processes=true",
    "train.batch_size=60",
    "train.epochs=2",
    "train.table_l2=0.01",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.write(tmp_path_factory.mktemp("recipe"))


def test_two_processes_train_a_peer_each_as_one_process_trains_both(recipe: Path, tmp_path: Path) -> None:
    steps, alone = run_model(recipe, tmp_path / "one", 1, "peers", *PEERS)
    found, apart = run_model(recipe, tmp_path / "two", 2, "peers", *PEERS)
    assert len(found) == len(steps) == 100
    for mine, theirs in zip(found, steps, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert (apart["ships"], apart["best_step"]) == (alone["ships"], alone["best_step"])
    assert apart["best"] == pytest.approx(alone["best"], abs=2e-3)
    valid = [
        json.loads((tmp_path / run / "models/peers/metrics.jsonl").read_text().splitlines()[-1])
        for run in ("one", "two")
    ]
    for role in ("peer0", "peer1"):  # both are judged, whoever trained them
        assert valid[1]["valid"][role]["log_loss"] == pytest.approx(valid[0]["valid"][role]["log_loss"], abs=1e-4)
    assert valid[0]["valid"]["peer0"] != valid[0]["valid"]["peer1"]

"""Peers in processes of their own learn what peers in one process learn."""

import json
import subprocess
from pathlib import Path

import pytest

from tests import small_recipe
from tests.training.test_ranks import command, quiet, run_model

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


def test_three_processes_for_two_peers_are_refused_in_one_line_before_anything_is_made(
    recipe: Path, tmp_path: Path
) -> None:
    line = command(recipe, tmp_path / "run", tmp_path / "losses.json", 3, *PEERS, model="peers", base=())
    done = subprocess.run(line, capture_output=True, text=True, env=quiet(), check=False)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("ctrkit: ")]
    assert said == [
        "ctrkit: model 'peers': 2 peers over 3 processes: each process trains one, so start as many as peers"
    ]
    assert not (tmp_path / "run").exists()

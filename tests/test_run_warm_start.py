"""A run that starts from another one's weights: on other ids, told, and part of what its results depend on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrkit.config.recipe import load_recipe
from ctrkit.data.prepared import PreparedLog
from ctrkit.encoding import FIRST_ROW, Vocabulary
from ctrkit.errors import UserError
from ctrkit.objectives.objective import Objective
from ctrkit.run import Run
from ctrkit.train_model import trained
from tests import small_recipe

STILL = ("train.lr=1e-30", "train.table_lr=1e-30", "train.table_l2=0", "train.epochs=1")
"""Weights stay what they start from (but for statistics of batches, of which there are none here)."""


@pytest.fixture
def source(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to start from."""
    shutil.copytree(finished_run, tmp_path / "yesterday")
    return tmp_path / "yesterday"


def opened(directory: Path, *overrides: str) -> tuple[Run, list[str]]:
    """The small recipe on another day's log, and what it says."""
    said: list[str] = []
    other_log = ("data.synthetic.seed=2", "data.synthetic.rows=2000")
    recipe = load_recipe(small_recipe.write(directory.parent), (*other_log, *overrides))
    return Run(recipe, directory, quiet=True, say=said.append), said


def weights(run: Path, model: str, *overrides: str) -> Objective:
    """A trained model."""
    recipe = load_recipe(small_recipe.write(run.parent), overrides)
    return trained(recipe, model, PreparedLog.open(run / "data"), run / "models" / model)


def start(directory: Path, model: str) -> Any:
    return json.loads((directory / "models" / model / "warm_start.json").read_text())


def test_what_the_other_run_knew_is_where_training_begins(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "today"
    run, said = opened(directory, f"train.warm_start={source}", *STILL)
    run.train("rocket")
    old, new = weights(source, "rocket"), weights(directory, "rocket", *STILL)
    old_log, new_log = PreparedLog.open(source / "data"), PreparedLog.open(directory / "data")
    drawn = run_cold(tmp_path / "cold")
    was, now, cold = (each.tables()[0].table_weights() for each in (old, new, drawn))
    told = {table["table"]: table for table in start(directory, "rocket")["tables"]}
    fresh = 0
    for name, table in new_log.encoding.tables.items():
        before = old_log.encoding.tables[name]
        assert isinstance(table, Vocabulary)
        assert isinstance(before, Vocabulary)
        common, new_at, old_at = np.intersect1d(table.keys_V, before.keys_V, return_indices=True)
        torch.testing.assert_close(now[name][new_at + FIRST_ROW], was[name][old_at + FIRST_ROW], rtol=1e-6, atol=1e-20)
        others = np.setdiff1d(np.arange(len(table.keys_V)), new_at) + FIRST_ROW
        torch.testing.assert_close(now[name][others], cold[name][others], rtol=1e-6, atol=1e-20)
        assert (told[name]["known"], told[name]["fresh"]) == (len(common), len(others))
        assert told[name]["dropped"] == len(before.keys_V) - len(common)
        assert len(common) > 0
        fresh += len(others)
    assert fresh > 0
    price = _inputs(source, "light")["price"][0]
    same = [i for i in range(old.tables()[0].out_features) if i != price]
    for role in ("light", "booster"):
        layers = [each.towers[role].state_dict()["layers.0.weight"] for each in (old, new, drawn)]
        assert _inputs(directory, role) == _inputs(source, role)
        torch.testing.assert_close(layers[1][:, same], layers[0][:, same])
        assert (layers[1] - layers[2]).abs().mean() > 1e-3
    text = "\n".join(said)
    assert f"starts warm from {source}/models/rocket" in text
    assert f"table ad_id: {told['ad_id']['known']:,} rows known, {told['ad_id']['fresh']:,} fresh" in text
    assert "dense features on another scale, their columns follow: price" in text


def run_cold(directory: Path) -> Objective:
    """The same run without a source."""
    run, said = opened(directory, *STILL)
    run.train("rocket")
    assert "warm" not in "\n".join(said)
    return weights(directory, "rocket", *STILL)


def _inputs(run: Path, role: str) -> Any:
    return json.loads((run / "models" / "rocket" / "result.json").read_text())["inputs"][role]


def test_a_source_that_is_not_there_stops_before_the_log_is_prepared(source: Path, tmp_path: Path) -> None:
    run, _ = opened(tmp_path / "today", f"train.warm_start={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"train\.warm_start: no finished training lies in .*nowhere"):
        run.train("light")
    run, _ = opened(tmp_path / "today", f"models.rocket.train.warm_start={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"train\.warm_start: no finished training lies in .*nowhere/models/rocket"):
        run.train_all()
    assert not (tmp_path / "today").exists()
    (source / "models" / "light" / "result.json").unlink()  # its training is under way
    run, _ = opened(tmp_path / "today", f"train.warm_start={source}")
    with pytest.raises(UserError, match=r"no finished training lies in .*yesterday/models/light"):
        run.train("light")


def test_a_run_does_not_start_from_itself(source: Path) -> None:
    run, _ = opened(source, f"train.warm_start={source}")
    with pytest.raises(UserError, match="is this run itself"):
        run.train("light")


def test_a_damaged_source_is_refused(source: Path, tmp_path: Path) -> None:
    for file in (source / "models" / "light" / "checkpoints").glob("*/*.distcp"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    run, _ = opened(tmp_path / "today", f"train.warm_start={source}", *STILL)
    with pytest.raises(UserError, match=r"\.distcp: damaged or missing"):
        run.train("light")


def test_it_is_trained_again_only_if_the_source_has_other_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, warm = tmp_path / "today", f"models.light.train.warm_start={source}"
    first = opened(directory, warm, *STILL)[0].train("light")
    assert opened(directory, warm, *STILL)[0].train("light") == first
    # by another way to the same place
    monkeypatch.chdir(tmp_path)
    assert opened(directory, "models.light.train.warm_start=yesterday", *STILL)[0].train("light") == first
    # without the source, as long as it is the same
    source.rename(tmp_path / "gone")
    run, said = opened(directory, warm, *STILL)
    assert run.train("light") == first
    assert not any("starts warm" in line for line in said)
    # killed before its result was written, it goes on without the source
    result = directory / "models" / "light" / "result.json"
    result.unlink()
    run, said = opened(directory, warm, *STILL)
    assert run.train("light")["weights"] == first["weights"]
    assert not any("starts warm" in line for line in said)
    with pytest.raises(UserError, match="no finished training"):
        opened(directory, f"models.light.train.warm_start={tmp_path / 'other'}", *STILL)[0].train("light")
    # with other weights
    (tmp_path / "gone").rename(source)
    path = source / "models" / "light" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": "other"}))
    run, said = opened(directory, warm, *STILL)
    assert run.train("light")["fingerprint"] != first["fingerprint"]
    assert any("starts warm" in line for line in said)
    # and without one
    run, said = opened(directory, *STILL)
    assert run.train("light")["fingerprint"] != first["fingerprint"]
    assert not (directory / "models" / "light" / "warm_start.json").exists()


SLICED = """
[models.slim]
objective = "slimmable"
tower = "booster"
multiple = 2

[models.cut]
objective = "pointwise"
tower = "light_booster"
slice_of = "slim"

[towers.light_booster]
hidden = [8, 4]
"""


def test_a_slice_starts_from_its_slimmable_model_alone(tmp_path: Path) -> None:
    """Which may start warm itself, and learns on: what the other run's slice had would undo that."""
    path = small_recipe.write(tmp_path)
    path.write_text(path.read_text() + SLICED)
    settings = ("data.synthetic.rows=2000", *STILL, "export.model=cut")
    Run(load_recipe(path, settings), tmp_path / "first", quiet=True).train("cut")
    learns = ("models.slim.train={lr=0.01,table_lr=0.01}", f"train.warm_start={tmp_path / 'first'}")
    run = Run(load_recipe(path, (*settings, *learns)), tmp_path / "second", quiet=True)
    cut, slim = run.trained("cut"), run.trained("slim")
    before = weights_of(Run(load_recipe(path, settings), tmp_path / "first", quiet=True).trained("slim"))
    after = weights_of(slim)
    for name, weight in weights_of(cut).items():
        torch.testing.assert_close(weight, after[name], rtol=1e-6, atol=1e-20)
        assert not torch.allclose(after[name], before[name], atol=1e-3)
    narrow, wide = cut.towers["tower"].state_dict(), slim.towers["slimmable"].state_dict()
    torch.testing.assert_close(narrow["layers.0.weight"], wide["layers.0.weight"][:8])
    assert (tmp_path / "second" / "models" / "slim" / "warm_start.json").exists()
    assert not (tmp_path / "second" / "models" / "cut" / "warm_start.json").exists()


def weights_of(objective: Objective) -> dict[str, torch.Tensor]:
    return objective.tables()[0].table_weights()

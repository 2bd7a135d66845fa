"""Several processes train what one would: the same losses step by step, and a run may change their number."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ctrkit.config.recipe import load_recipe
from ctrkit.run import Run
from tests import small_recipe

SETTINGS = (
    "data.synthetic.rows=13000",
    "towers.booster.dropout=0.0",
    "train.batch_size=60",
    "train.patience=1000",
    "train.table_l2=0.01",
    "train.shuffle_rows=2000",
)


def command(
    recipe: Path,
    out: Path,
    losses: Path,
    ranks: int,
    *settings: str,
    model: str = "rocket",
    base: tuple[str, ...] = SETTINGS,
) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    chosen = [part for setting in (*base, *settings) for part in ("--set", setting)]
    own = ["-m", "tests.training.ranks_run", str(losses), str(recipe), "--model", model, "--out", str(out)]
    return [sys.executable, *launcher, *own, "--quiet", *chosen]


def train(recipe: Path, out: Path, ranks: int, *settings: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The loss terms of every step and the result."""
    losses = out.with_suffix(f".{ranks}.json")
    done = subprocess.run(command(recipe, out, losses, ranks, *settings), capture_output=True, text=True, env=quiet())
    assert done.returncode == 0, done.stderr
    return json.loads(losses.read_text()), json.loads((out / "models" / "rocket" / "result.json").read_text())


def run_model(
    recipe: Path, out: Path, ranks: int, model: str, *settings: str
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """`train` of any model, with these settings alone."""
    losses = out.with_suffix(".json")
    line = command(recipe, out, losses, ranks, *settings, model=model, base=())
    done = subprocess.run(line, capture_output=True, text=True, env=quiet())
    assert done.returncode == 0, done.stderr
    return json.loads(losses.read_text()), json.loads((out / "models" / model / "result.json").read_text())


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.write(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def alone(
    recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, float]], dict[str, Any]]:
    """One process: its run, the losses of its steps and its result."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    return out, *train(recipe, out, 1)


def assert_alike(steps: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(steps) == len(expected)
    for step, (found, wanted) in enumerate(zip(steps, expected, strict=True)):
        assert found == pytest.approx(wanted, abs=1e-4), step


def test_two_processes_have_the_losses_of_one(
    recipe: Path, alone: tuple[Path, list[dict[str, float]], dict[str, Any]], tmp_path: Path
) -> None:
    """More than 200 steps; lists, dense features, both poolings; the last batch of an epoch cannot be halved."""
    _, expected, result = alone
    assert len(expected) >= 200
    assert expected[-1]["booster"] < 0.8 * expected[0]["booster"]  # it learns
    steps, together = train(recipe, tmp_path / "two", 2)
    assert_alike(steps, expected)
    assert together["processes"] == 2
    assert together["best"] == pytest.approx(result["best"], abs=2e-3)
    assert together["best_step"] == result["best_step"]


def test_two_processes_weigh_few_labels_as_one_does(recipe: Path, tmp_path: Path) -> None:
    """At 2 % many a half of a batch has no label, and the halves never have equally many."""
    settings = ("train.label_rate=0.02", "train.epochs=1", "models.rocket.hint={loss='kl',gradient_share=0.5}")
    expected, _ = train(recipe, tmp_path / "one", 1, *settings)
    assert expected[0]["light"] > 0.5
    assert expected[-1]["hint"] > 0
    assert_alike(train(recipe, tmp_path / "two", 2, *settings)[0], expected)


SLIMMABLE = """
[towers.wide]
hidden = [32, 16]
layer_norm = true

[models.slim]
objective = "slimmable"
tower = "wide"
booster = "light"
non_uniform = true
gradient_to_tables = 1.0
"""


def test_a_slimmable_model_draws_the_same_widths_on_two_processes(tmp_path: Path) -> None:
    """Each rank has a generator of its own, for dropout; the widths of a step are one step's."""
    path = tmp_path / "small.toml"
    path.write_text(small_recipe.RECIPE + SLIMMABLE)
    settings = (*SETTINGS, "data.synthetic.rows=5000", "train.epochs=2")
    expected, alone = run_model(path, tmp_path / "one", 1, "slim", *settings)
    steps, together = run_model(path, tmp_path / "two", 2, "slim", *settings)
    assert len(expected) >= 80
    assert expected[0].keys() == {"widest", "narrower", "booster", "hint"}
    assert len({round(step["narrower"] / step["widest"], 6) for step in expected}) > 75
    assert_alike(steps, expected)
    assert together["processes"] == 2
    assert together["best"] == pytest.approx(alone["best"], abs=2e-3)


DISTILLED = """
[models.distilled]
objective = "distillation"
student = "light"
teachers = ["booster"]
"""


def test_a_rank_without_rows_takes_part_with_none(tmp_path: Path) -> None:
    """The last batch of an epoch has one row; a frozen teacher looks up each process's own rows."""
    path = tmp_path / "small.toml"
    path.write_text(small_recipe.RECIPE + DISTILLED)
    run = Run(load_recipe(path), tmp_path / "prepared", quiet=True)
    settings = (
        f"train.batch_size={run.log.rows('train') - 1}",
        "train.epochs=3",
        "train.patience=9",
        "towers.booster.dropout=0",
    )
    expected, _ = run_model(path, tmp_path / "one", 1, "distilled", *settings)
    steps, _ = run_model(path, tmp_path / "two", 2, "distilled", *settings)
    assert len(expected) == 2 * 2 * 3  # the teacher's, then the student's
    assert expected[-1].keys() == {"label", "hint"}
    assert_alike(steps, expected)


def test_boosters_may_see_dense_features_alone(tmp_path: Path) -> None:
    """Their embedding has no table to share out."""
    path = small_recipe.write(tmp_path)
    path.write_text(path.read_text().replace('transform = "log" }', 'transform = "log", privileged = true }'))
    settings = ("towers.booster={hidden=[8],privileged=true}", "train.epochs=1")
    expected, _ = run_model(path, tmp_path / "one", 1, "rocket", *settings)
    steps, _ = run_model(path, tmp_path / "two", 2, "rocket", *settings)
    assert expected[0].keys() == {"light", "booster", "hint"}
    assert_alike(steps, expected)


def test_a_killed_run_goes_on_with_another_number_of_processes(
    recipe: Path, alone: tuple[Path, list[dict[str, float]], dict[str, Any]], tmp_path: Path
) -> None:
    _, expected, _ = alone
    out = tmp_path / "run"
    place = out / "models" / "rocket"
    with subprocess.Popen(
        command(recipe, out, tmp_path / "killed.json", 2), stderr=subprocess.PIPE, env=quiet()
    ) as process:
        while process.poll() is None and not (place / "metrics.jsonl").exists():
            time.sleep(0.01)
        process.kill()
        for rank in range(2):
            os.kill(int((tmp_path / f"killed.json.{rank}.pid").read_text()), signal.SIGKILL)
    saved = [json.loads(path.read_text())["progress"]["step"] for path in place.glob("checkpoints/step-*/values.json")]
    done = max(saved)
    assert 0 < done < len(expected)
    for ranks in (1, 4):
        copy = tmp_path / f"on-{ranks}"
        shutil.copytree(out, copy)
        steps, result = train(recipe, copy, ranks)
        assert_alike(steps, expected[done:])
        assert result["processes"] == ranks


def test_ranks_that_hold_no_table_go_on_too(tmp_path: Path) -> None:
    """One table of two rows, planned to lie whole on one of four ranks."""
    few = small_recipe.write(tmp_path)
    text = few.read_text()
    start, stop = text.index("[features]"), text.index("[embedding]")
    few.write_text(f'{text[:start]}[features]\ndevice = {{ side = "context" }}\n\n{text[stop:]}')
    out = tmp_path / "run"
    first, _ = train(few, out, 4, "train.epochs=2")
    (out / "models" / "rocket" / "result.json").unlink()
    again, result = train(few, out, 4, "train.epochs=2")  # from its last checkpoint, with nothing left to do
    assert again == []
    assert len(first) == result["steps"]


def test_a_number_that_does_not_divide_the_shards_is_refused_by_all(recipe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(recipe, tmp_path / "run", tmp_path / "losses.json", 3), capture_output=True, text=True, env=quiet()
    )
    assert done.returncode != 0
    assert done.stderr.count("ctrkit: 3 processes cannot share 8 shards evenly") == 1

"""The loop: the best checkpoint is the best, a killed run goes on, and what is wrong is said."""

import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrkit.data.ahead import read_ahead
from ctrkit.errors import UserError
from ctrkit.training import trainer as trainer_module
from ctrkit.training.saved_training import CHECKPOINTS
from tests import networks
from tests.test_atomic import files_no_larger_than
from tests.training import small_run
from tests.training.small_run import Scripted, equal


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return small_run.write_log(tmp_path / "log.parquet")


def fit(
    log: Path, directory: Path, values: Sequence[float | None], *, monitor: str = "gauc", **settings: Any
) -> tuple[Any, Scripted]:
    """Train by a scripted metric; the trainer and the evaluation."""
    train, evaluate = small_run.loader(log), Scripted(values, monitor)
    run = small_run.trainer(small_run.rocket(), directory, train, monitor=monitor, **settings)
    run.fit(train, evaluate)
    return run, evaluate


def history(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("gauc", [0.5, 0.7, 0.6], 1),
        ("gauc", [0.5, 0.6, 0.7], 2),
        ("gauc", [0.7, 0.7, 0.7], 0),  # the first of equals: later is no better
        ("log_loss", [0.5, 0.3, 0.4], 1),
        ("log_loss", [0.3, 0.5, 0.4], 0),
        ("normalized_entropy", [0.9, 1.1, 0.8], 2),
    ],
)
def test_the_best_weights_are_those_of_the_best_evaluation(
    log: Path, tmp_path: Path, monitor: str, values: list[float], best: int
) -> None:
    run, evaluation = fit(log, tmp_path / "run", values, monitor=monitor)
    assert len(evaluation.seen) == 3
    assert equal(run.objective.state_dict(), evaluation.seen[best])
    assert not any(equal(evaluation.seen[best], other) for i, other in enumerate(evaluation.seen) if i != best)
    assert equal(small_run.best_weights(tmp_path / "run", small_run.rocket(seed=1)), evaluation.seen[best])
    assert run.progress.best == values[best]
    assert run.progress.best_step == 6 * (best + 1)


@pytest.mark.parametrize(
    ("monitor", "values", "patience", "evaluations"),
    [
        ("gauc", [0.5, 0.7, 0.6, 0.65, 0.9], 2, 4),  # two without improvement
        ("gauc", [0.5, 0.7, 0.6, 0.71, 0.6, 0.6, 0.9], 2, 6),  # an improvement starts the count again
        ("gauc", [0.5, 0.5], 1, 2),  # no improvement is none
        ("log_loss", [0.5, 0.4, 0.45, 0.3], 1, 3),
        ("log_loss", [0.5, 0.4, 0.3, 0.2], 1, 4),  # falling is improving
    ],
)
def test_early_stopping(
    log: Path, tmp_path: Path, monitor: str, values: list[float], patience: int, evaluations: int
) -> None:
    run, evaluation = fit(log, tmp_path / "run", values, monitor=monitor, patience=patience, epochs=len(values))
    assert len(evaluation.seen) == evaluations
    assert run.progress.step == 6 * evaluations


def test_a_metric_that_is_not_defined_is_said(log: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.monitor 'gauc' is not defined on the validation part"):
        fit(log, tmp_path / "run", [None])


@pytest.mark.parametrize("evaluations", [1, 2, 4, 5, 6, 7])
def test_evaluations_of_an_epoch_are_as_many_as_asked_and_evenly_spaced(
    log: Path, tmp_path: Path, evaluations: int
) -> None:
    # six batches an epoch: 4 and 5 do not divide it, 7 are more than there are
    run, _ = fit(log, tmp_path / "run", [0.5] * 14, epochs=2, evaluations_per_epoch=evaluations)
    steps = [line["step"] for line in history(tmp_path / "run")]
    expected = sorted({math.ceil(6 * i / evaluations) for i in range(1, evaluations + 1)})
    assert steps == [*expected, *(6 + step for step in expected)]
    assert run.progress.step == 12
    assert run.progress.rows == 2 * small_run.ROWS


def test_metrics_have_a_line_an_evaluation(log: Path, tmp_path: Path) -> None:
    fit(log, tmp_path / "run", [0.5, 0.6, 0.4], epochs=3)
    lines = history(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["rows"] for line in lines] == [96, 192, 288]
    assert [line["valid"]["light"]["gauc"] for line in lines] == [0.5, 0.6, 0.4]
    assert all(line["losses"].keys() == {"light", "booster", "hint"} for line in lines)
    losses = [line["losses"]["booster"] for line in lines]
    assert losses[2] < losses[0]


def test_losses_are_means_since_the_last_evaluation(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(small_run.pointwise(), tmp_path / "run", train, epochs=1, evaluations_per_epoch=2)
    seen: list[float] = []
    losses = run.objective.losses

    def watched(batch: Any, step: int = 0, turn: int = 0) -> dict[str, torch.Tensor]:
        found = losses(batch)
        seen.append(found["label"].mean().item())
        return found

    run.objective.losses = watched  # type: ignore[method-assign]
    run.fit(train, Scripted([0.5, 0.6]))
    expected = [sum(seen[:3]) / 3, sum(seen[3:]) / 3]
    assert [line["losses"]["label"] for line in history(tmp_path / "run")] == pytest.approx(expected, abs=1e-6)


def test_scalars_are_logged_with_their_step(log: Path, tmp_path: Path) -> None:
    train, scalars = small_run.loader(log), list[tuple[str, float, int]]()
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, epochs=2)
    run.log_scalars = lambda tag, value, step: scalars.append((tag, value, step))
    run.fit(train, Scripted([0.5, 0.6]))
    assert ("valid/light/gauc", 0.5, 6) in scalars
    assert ("valid/booster/gauc", 0.6, 12) in scalars
    assert {tag for tag, _, _ in scalars} == {
        *(f"{what}/{name}" for what in ("loss", "table_gradient_norm") for name in ("light", "booster", "hint")),
        *(f"valid/{role}/gauc" for role in ("light", "booster")),
    }


class Terminal(io.StringIO):
    """A terminal that keeps what it was shown."""

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_only(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(name: str, stream: io.StringIO, *, quiet: bool) -> str:
        train = small_run.loader(log)
        run = small_run.trainer(small_run.rocket(), tmp_path / name, train, epochs=4, evaluations_per_epoch=5)
        run.quiet = quiet
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            run.fit(train, Scripted([0.5] * 20))
        return stream.getvalue()

    terminal = shown("a_run", Terminal(), quiet=False)
    assert "a_run: 100%" in terminal
    assert "384/384" in terminal  # rows of all epochs
    assert "row/s" in terminal
    assert "booster=" in terminal  # the running loss, at step 20
    assert shown("b", io.StringIO(), quiet=False) == ""
    assert shown("c", Terminal(), quiet=True) == ""


# --- reproducible


def trained(log: Path, directory: Path, seed: int, *, loader_seed: int | None = None) -> dict[str, torch.Tensor]:
    train = small_run.loader(log, seed=seed if loader_seed is None else loader_seed)
    run = small_run.trainer(small_run.rocket(seed), directory, train, seed=seed, epochs=2)
    run.fit(train, Scripted([0.5, 0.6]))
    return dict(run.objective.state_dict())


def test_the_same_seed_gives_the_same_numbers(log: Path, tmp_path: Path) -> None:
    first, second = (trained(log, tmp_path / name, 3) for name in ("first", "second"))
    assert equal(first, second)
    other = trained(log, tmp_path / "other", 4)
    assert all(not torch.equal(first[name], other[name]) for name in first if first[name].is_floating_point())
    shuffled = trained(log, tmp_path / "shuffled", 3, loader_seed=4)
    assert not equal(first, shuffled)


def test_a_run_killed_anywhere_goes_on_to_the_same_weights(log: Path, tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_run", str(log), str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert program.returncode == 0, program.stderr
    places = [json.loads(line) for line in program.stdout.splitlines()]
    assert len(places) == 12
    for place in places:
        assert place["fate"] == -9, place
        assert place["equal"], place
        assert place["after"], place  # no more and no less than an undisturbed run leaves
    left = {place["place"]: place["left"] for place in places}
    assert left["evaluation 1"] == []
    first, new = left["tensors 1"]  # half of it lies there under another name
    assert first == CHECKPOINTS
    assert new.startswith(f"{CHECKPOINTS}/.step-00000003.new-")
    assert left["removal 3"] == [
        CHECKPOINTS, *(f"{CHECKPOINTS}/step-{step:08d}" for step in (3, 6, 9)), "metrics.jsonl"
    ]  # fmt: skip
    assert "metrics.jsonl" not in left["metrics 1"]


def test_a_finished_run_is_not_trained_again(log: Path, tmp_path: Path) -> None:
    first, _ = fit(log, tmp_path / "run", [0.5, 0.7, 0.6])
    again, evaluation = fit(log, tmp_path / "run", [])
    assert evaluation.seen == []
    assert equal(first.objective.state_dict(), again.objective.state_dict())
    assert again.progress == first.progress


def test_a_run_of_another_fingerprint_starts_anew(log: Path, tmp_path: Path) -> None:
    fit(log, tmp_path / "run", [0.9, 0.8, 0.7], fingerprint="old")
    _, evaluation = fit(log, tmp_path / "run", [0.1, 0.2, 0.3], fingerprint="new")
    undisturbed, _ = fit(log, tmp_path / "other", [0.1, 0.2, 0.3], fingerprint="new")
    assert equal(evaluation.seen[2], undisturbed.objective.state_dict())
    assert [line["valid"]["light"]["gauc"] for line in history(tmp_path / "run")] == [0.1, 0.2, 0.3]


def test_the_weights_of_another_fingerprint_are_gone_before_new_ones_come(log: Path, tmp_path: Path) -> None:
    # killed before its first checkpoint, then called with the old recipe again: that must not find anything
    fit(log, tmp_path / "run", [0.9, 0.8, 0.7], fingerprint="old")
    train = small_run.loader(log)
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, fingerprint="new")

    def killed(_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.fit(train, killed)
    assert list((tmp_path / "run").rglob("*")) == [tmp_path / "run" / CHECKPOINTS]


def checkpoint(directory: Path, step: int) -> Path:
    return directory / CHECKPOINTS / f"step-{step:08d}"


def remove(path: Path) -> None:
    shutil.rmtree(path)


def spoil_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def forge_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "best": not manifest["best"]}))


def cut(path: Path) -> None:
    tensors = path / "__0_0.distcp"
    tensors.write_bytes(tensors.read_bytes()[: tensors.stat().st_size // 2])


def drop_the_tensors(path: Path) -> None:
    (path / "__0_0.distcp").unlink()


def drop_the_history(path: Path) -> None:
    values = json.loads((path / "values.json").read_text())
    del values["history"]
    (path / "values.json").write_text(json.dumps(values))


def flip_a_bit(name: str, place: float = 0.5) -> Callable[[Path], None]:
    """Damage that the size of no file tells."""

    def flip(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[int(len(content) * place)] ^= 1
        (path / name).write_bytes(content)

    return flip


DAMAGES: list[Callable[[Path], None]] = [
    spoil_manifest,
    forge_manifest,
    cut,
    drop_the_tensors,
    drop_the_history,
    flip_a_bit("values.json"),
    flip_a_bit(".metadata"),
    flip_a_bit("__0_0.distcp"),
]
DAMAGED = "damaged or missing, so the checkpoint cannot be used; without {} the model is trained anew"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_an_older_one_and_says_so(
    log: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    undisturbed, _ = fit(log, tmp_path / "run", [0.5, 0.7, 0.6])
    assert small_run.steps(tmp_path / "run") == ["step-00000012", "step-00000018"]
    damage(checkpoint(tmp_path / "run", 18))
    train, evaluation, said = small_run.loader(log), Scripted([0.9]), list[str]()
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, say=said.append)
    run.fit(train, evaluation)
    expected, _ = fit(log, tmp_path / "other", [0.5, 0.7, 0.9])
    assert equal(evaluation.seen[0], expected.objective.state_dict())
    assert not equal(evaluation.seen[0], undisturbed.objective.state_dict())  # those of step 12
    assert [line["valid"]["light"]["gauc"] for line in history(tmp_path / "run")] == [0.5, 0.7, 0.9]
    warning, start = dict.fromkeys(said)  # it is said again as it is removed
    assert warning.startswith(f"  warning: {checkpoint(tmp_path / 'run', 18)}/")
    assert warning.endswith(DAMAGED.format(checkpoint(tmp_path / "run", 18).parent))
    assert start == "  goes on from step 12 (epoch 3)"
    [left] = small_run.steps(tmp_path / "run")
    assert left.startswith("step-00000018")
    assert equal(small_run.best_weights(tmp_path / "run", small_run.rocket(seed=1)), evaluation.seen[0])


def test_a_damaged_checkpoint_does_not_outlive_younger_ones_of_fewer_steps(log: Path, tmp_path: Path) -> None:
    fit(log, tmp_path / "run", [0.5, 0.7, 0.6])
    flip_a_bit("__0_0.distcp")(checkpoint(tmp_path / "run", 18))
    train = small_run.loader(log)
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, evaluations_per_epoch=2)
    with pytest.raises(StopIteration):
        run.fit(train, Scripted([0.6]))  # as if it were killed after step 15
    said: list[str] = []
    train = small_run.loader(log)
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, evaluations_per_epoch=2, say=said.append)
    run.fit(train, Scripted([0.6]))
    assert said == ["  goes on from step 15 (epoch 3)"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_without_a_whole_checkpoint_starts_anew_and_says_so(
    log: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    fit(log, tmp_path / "run", [0.5, 0.7, 0.6])
    for step in (12, 18):
        damage(checkpoint(tmp_path / "run", step))
    train, evaluation, said = small_run.loader(log), Scripted([0.1, 0.2, 0.3]), list[str]()
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, say=said.append)
    run.fit(train, evaluation)
    undisturbed, _ = fit(log, tmp_path / "other", [0.1, 0.2, 0.3])
    assert equal(evaluation.seen[2], undisturbed.objective.state_dict())
    assert [line["valid"]["light"]["gauc"] for line in history(tmp_path / "run")] == [0.1, 0.2, 0.3]
    assert len(said) == 2
    for step, line in zip((18, 12), said, strict=True):
        assert line.startswith("  warning: ")
        assert line.endswith(DAMAGED.format(checkpoint(tmp_path / "run", step).parent))


def test_damage_of_another_fingerprint_is_not_looked_for(log: Path, tmp_path: Path) -> None:
    fit(log, tmp_path / "run", [0.5, 0.7, 0.6])
    for step in (12, 18):
        flip_a_bit("__0_0.distcp")(checkpoint(tmp_path / "run", step))
    train, evaluation, said = small_run.loader(log), Scripted([0.1, 0.2, 0.3]), list[str]()
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, fingerprint="new", say=said.append)
    run.fit(train, evaluation)
    assert len(evaluation.seen) == 3
    assert said == ["  checkpoints of other settings or another log lie there: they are removed"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damage, r"/checkpoints: the best weights, of step 12, are missing or damaged") for damage in (remove, cut)]
    + [(flip_a_bit("__0_0.distcp"), r"/checkpoints/step-00000012/__0_0\.distcp: damaged or missing")],
)
def test_damaged_best_weights_are_named_before_the_first_step(
    log: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    fit(log, tmp_path / "run", [0.5, 0.7, 0.6])
    damage(checkpoint(tmp_path / "run", 12))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "run")) + message):
        # the script ends: its own error would come after the first epoch
        fit(log, tmp_path / "run", [], epochs=4)
    assert checkpoint(tmp_path / "run", 18).exists()
    fit(log, tmp_path / "run", [0.5, 0.7, 0.6], fingerprint="new")  # those of another recipe are nobody's matter


@pytest.mark.parametrize(("keep", "left"), [(1, [6, 30]), (3, [6, 18, 24, 30]), (5, [6, 12, 18, 24, 30])])
def test_the_last_checkpoints_are_kept_beside_the_best(log: Path, tmp_path: Path, keep: int, left: list[int]) -> None:
    values = [0.9, 0.5, 0.5, 0.5, 0.5]
    run, evaluation = fit(log, tmp_path / "run", values, epochs=5, keep_checkpoints=keep)
    assert small_run.steps(tmp_path / "run") == [f"step-{step:08d}" for step in left]
    assert equal(run.objective.state_dict(), evaluation.seen[0])


# --- two threads


def test_results_do_not_depend_on_how_far_ahead_batches_are_read(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(name: str, ahead: Callable[[Iterator[Any]], Iterator[Any]]) -> dict[str, torch.Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, "read_ahead", ahead)
            run, _ = fit(log, tmp_path / name, [0.5, 0.6, 0.4, 0.7], epochs=2, evaluations_per_epoch=2, table_l2=1e-3)
        return dict(run.objective.state_dict())

    def step_first(batches: Iterator[Any]) -> Iterator[Any]:
        return batches  # each is made after the step before has been done

    def all_first(batches: Iterator[Any]) -> Iterator[Any]:
        return iter(list(batches))

    def as_threads_happen_to_run(batches: Iterator[Any]) -> Iterator[Any]:
        return read_ahead(batches, depth=3)

    ends = [end(each.__name__, each) for each in (step_first, all_first, as_threads_happen_to_run)]
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])
    assert history_without_time(tmp_path / "step_first") == history_without_time(tmp_path / "all_first")


def history_without_time(directory: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": None} for line in history(directory)]


# --- row groups that cannot be read


def test_a_batch_none_of_whose_rows_can_be_read_teaches_nothing(tmp_path: Path) -> None:
    log = small_run.write_log(tmp_path / "log.parquet", group_rows=48)
    said: list[str] = []
    with_rows, evaluation = small_run.loader(log, shuffle_rows=1), Scripted([0.5])
    steps_of_half = [len(batch) for batch in with_rows.epoch()]
    assert steps_of_half == [16] * 6
    small_run.damage_row_group(log, 1, "price")
    train = small_run.loader(log, shuffle_rows=1, on_unreadable=said.append)
    empty = [len(batch) == 0 for batch in train.epoch()]
    assert sum(empty) == 3
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, epochs=1)
    updates: list[int] = []
    run.optimizers[0].register_step_post_hook(lambda *_: updates.append(run.progress.step))
    run.fit(train, evaluation)
    assert updates == [step for step, nothing in enumerate(empty) if not nothing]
    assert (run.progress.step, run.progress.rows) == (6, 48)
    assert all(weight.isfinite().all() for weight in run.objective.state_dict().values())
    assert len(said) == 1


# --- what goes wrong


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    log = small_run.write_log(tmp_path / "log.parquet")
    train, evaluate = small_run.loader(log), Scripted([0.6, 0.5])  # the best is not the last
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, epochs=4)
    with pytest.raises(StopIteration):
        run.fit(train, evaluate)  # two evaluations, then the script ends: as if it were killed
    last = contents(checkpoint(tmp_path / "run", 12))
    poisoned = small_run.write_log(tmp_path / "poisoned.parquet", poison=56)
    train = small_run.loader(poisoned)
    step, batch = next((i + 1, b) for i, b in enumerate(train.epoch(2)) if b.dense_BD.isnan().any())
    assert batch.origin_B[0] != 2  # 56 // 24: the batch starts with an impression of another row group
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, epochs=4)
    with pytest.raises(UserError) as caught:
        run.fit(train, Scripted([0.7]))
    message = str(caught.value)
    assert f"the loss is not finite at step {12 + step} (epoch 3)." in message
    assert f"{poisoned}, row group 2, holds a value that is not finite" in message
    assert f"The last good checkpoint is kept: {checkpoint(tmp_path / 'run', 12)}." in message
    assert contents(checkpoint(tmp_path / "run", 12)) == last
    assert len(last) >= 3
    assert all(p.isfinite().all() for p in run.objective.parameters())  # the poison moved nothing


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("value", ["label", "weight"])
def test_the_row_group_of_a_label_or_weight_that_is_not_finite_is_named(
    log: Path, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(small_run.pointwise(), tmp_path / "run", train)
    batch = next(train.epoch())
    assert batch.origin_B[14] != batch.origin_B[0]
    broken = getattr(batch, f"{value}_B").index_fill(0, torch.tensor([14]), math.inf)
    monkeypatch.setattr(train, "epoch", lambda *_, **__: iter([dataclasses.replace(batch, **{f"{value}_B": broken})]))
    with pytest.raises(UserError) as caught:
        run.fit(train, Scripted([0.5]))
    assert f"{log}, row group {batch.origin_B[14]}, holds a value that is not finite" in str(caught.value)
    assert "diverged" not in str(caught.value)


def test_weights_that_diverge_are_no_fault_of_the_log(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    settings: dict[str, Any] = {"lr": 1e30, "table_lr": 0.25, "evaluations_per_epoch": 6}
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, **settings)
    with pytest.raises(UserError) as caught:
        run.fit(train, Scripted([0.5] * 18))
    said = str(caught.value)
    stopped = re.search(r"is not finite at step ([2-9]) \(epoch 1\)\. ", said)
    assert stopped is not None
    assert "the weights have diverged: lower train.lr or train.table_lr" in said
    assert "the learning rates of this step were 1e+30, 0.25" in said
    assert "row group" not in said
    assert str(log) not in said
    assert f"The last good checkpoint is kept: {checkpoint(tmp_path / 'run', int(stopped[1]) - 1)}." in said


def test_a_first_step_that_is_not_finite_says_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    train = small_run.loader(small_run.write_log(tmp_path / "log.parquet", poison=0))
    run = small_run.trainer(small_run.pointwise(), tmp_path / "run", train, fingerprint="new")
    with pytest.raises(UserError, match="There is no checkpoint yet"):
        run.fit(train, Scripted([0.5]))


def test_a_gradient_that_is_not_finite_stops_the_run(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(small_run.pointwise(), tmp_path / "run", train)
    losses = run.objective.losses
    before = {name: tensor.clone() for name, tensor in run.objective.state_dict().items()}

    def cusp(batch: Any, step: int = 0, turn: int = 0) -> dict[str, torch.Tensor]:
        # finite, but its slope is not: the root of zero
        return {name: (loss_B - loss_B.detach()).abs().sqrt() for name, loss_B in losses(batch).items()}

    run.objective.losses = cusp  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"the gradient is not finite at step 1 .*the weights have diverged"):
        run.fit(train, Scripted([0.5]))
    assert equal(dict(run.objective.state_dict()), before)


def test_a_checkpoint_that_the_disk_has_no_room_for_leaves_the_last_one(log: Path, tmp_path: Path) -> None:
    fit(log, tmp_path / "run", [0.5], epochs=1)
    before = contents(checkpoint(tmp_path / "run", 6))
    place = re.escape(str(tmp_path / "run" / CHECKPOINTS))
    said = rf"{place}: the checkpoint of step 12 cannot be written \(File too large\); what was there before is kept"
    with pytest.raises(UserError, match=said), files_no_larger_than(3000):
        fit(log, tmp_path / "run", [0.6], epochs=2)
    assert small_run.steps(tmp_path / "run") == ["step-00000006"]
    assert contents(checkpoint(tmp_path / "run", 6)) == before


# --- the arithmetic of a step


def test_the_weight_of_an_impression_is_its_share_of_the_mean_loss(tmp_path: Path) -> None:
    weight = [2.0 if row % 3 == 0 else 0.0 for row in range(small_run.ROWS)]
    log = small_run.write_log(tmp_path / "log.parquet", weight=weight)
    schema = networks.schema()
    train = small_run.loader(log, batch_size=small_run.ROWS, schema=schema)
    objective = small_run.pointwise()
    batch = next(train.epoch())
    loss_B = objective.losses(batch)["label"]
    expected = (loss_B * batch.weight_B).sum().item() / batch.weight_B.sum().item()
    assert batch.weight_B.sum() == 2.0 * small_run.ROWS / 3
    run = small_run.trainer(objective, tmp_path / "run", train, epochs=1)
    run.fit(train, Scripted([0.5]))
    assert history(tmp_path / "run")[0]["losses"]["label"] == pytest.approx(expected, abs=1e-6)


def test_impressions_of_weight_zero_teach_nothing(tmp_path: Path) -> None:
    log = small_run.write_log(tmp_path / "log.parquet", weight=[0.0] * small_run.ROWS)
    train, objective = small_run.loader(log), small_run.pointwise()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    run = small_run.trainer(objective, tmp_path / "run", train, epochs=1, table_l2=0.0)
    run.fit(train, Scripted([0.5]))
    assert equal(dict(run.objective.state_dict()), before)


def test_the_gradient_of_the_towers_is_clipped(log: Path, tmp_path: Path) -> None:
    train = small_run.loader(log)
    run = small_run.trainer(small_run.rocket(), tmp_path / "run", train, epochs=1, clip_norm=1e-3)
    norms: list[float] = []

    def watched(*_: Any) -> None:
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in run.clipped if p.grad is not None)))

    run.optimizers[0].register_step_pre_hook(watched)
    run.fit(train, Scripted([0.5]))
    assert norms == pytest.approx([1e-3] * 6, rel=1e-3)


def test_schedules_advance_once_a_batch(log: Path, tmp_path: Path) -> None:
    run, _ = fit(log, tmp_path / "run", [0.5, 0.6], epochs=2, schedule="linear", warmup_steps=4)
    assert [group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups] == [0.0, 0.0]
    assert [scheduler.last_epoch for scheduler in run.saved.schedulers] == [12, 12]


def test_the_objective_trains_in_training_mode_after_an_evaluation(log: Path, tmp_path: Path) -> None:
    train, modes = small_run.loader(log), list[bool]()
    run = small_run.trainer(small_run.pointwise(), tmp_path / "run", train, epochs=2)
    losses = run.objective.losses
    run.objective.losses = lambda batch, *_: modes.append(run.objective.training) or losses(batch)  # type: ignore
    run.fit(train, small_run.mean_logit(log))
    assert modes == [True] * 12


def test_a_clip_norm_of_zero_leaves_the_gradient_as_it_is(tmp_path: Path) -> None:
    train = small_run.loader(small_run.write_log(tmp_path / "log.parquet"))
    ends = []
    for clip_norm in (0.0, 1e9, 1e-3):
        run = small_run.trainer(
            small_run.pointwise(), tmp_path / f"run{clip_norm}", train, epochs=1, clip_norm=clip_norm
        )
        run.fit(train, Scripted([0.5]))
        ends.append(dict(run.objective.state_dict()))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_bf16_trains_to_nearly_the_same_weights(log: Path, tmp_path: Path) -> None:
    runs = {}
    for precision in ("fp32", "bf16"):
        train = small_run.loader(log)
        run = small_run.trainer(small_run.pointwise(), tmp_path / precision, train, epochs=1, precision=precision)
        run.fit(train, Scripted([0.5], "gauc"))
        runs[precision] = run.objective.state_dict()
    for name, weight in runs["fp32"].items():
        other = runs["bf16"][name]
        assert other.dtype == torch.float32
        # six steps of Adam at 0.01, whose first ones are of that size whatever the gradient's
        assert (other - weight).abs().max() < 0.03
    assert not equal(runs["fp32"], runs["bf16"])

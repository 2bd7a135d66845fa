"""A checkpoint is there whole or not at all, holds every bit, and any number of ranks reads what any other wrote."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctrkit.errors import UserError
from ctrkit.training import stored_tensors
from ctrkit.training.checkpoints import Checkpoints
from ctrkit.training.stored_tensors import StoredTensors, TensorSpec, weights_digest
from tests.training import checkpoint_ranks


def tensors() -> dict[str, Tensor]:
    """Of every kind."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (5, 3), generator=generator, dtype=torch.int32)
    return {
        "weight": torch.randn(7, 4, generator=generator),
        "bits": bits.view(torch.float32),  # among them NaNs that carry something
        "special": torch.tensor([-0.0, 0.0, float("nan"), float("inf"), -float("inf"), 1e-45]),
        "half": torch.randn(6, 2, generator=generator).half(),
        "bf16": torch.randn(9, generator=generator).bfloat16(),
        "last": torch.tensor([2**24 + 1, 0, -1], dtype=torch.int32),
        "rng": torch.get_rng_state(),
        "flags": torch.tensor([True, False]),
        "step": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "three": torch.randn(3, 2, 5, generator=generator),
        "transposed": torch.randn(4, 6, generator=generator).T,
    }


def same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and raw(first) == raw(second)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def filled(like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(tensor) for name, tensor in like.items()}


def steps(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("chunk", [24, 64 << 20])
def test_every_bit_and_value_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(stored_tensors, "CHUNK_BYTES", chunk)
    values = {"seconds": 0.1 + 0.2, "history": [{"gauc": None, "step": 1}], "best": float("inf"), "ключ": "é"}
    store, saved = Checkpoints(tmp_path / "run"), tensors()
    store.save(123, saved, values, best=False)
    found = store.latest()
    assert found is not None
    assert (found.step, found.values, found.is_best) == (123, values, False)
    assert found.path == tmp_path / "run" / "step-00000123"
    into = filled(saved)
    store.load(found, into)
    assert all(same(into[name], saved[name]) for name in saved)
    assert store.open(found).specs == {
        name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in saved.items()
    }


def test_what_is_loaded_is_filled_in_place_and_nothing_beside_it(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    saved = {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(6.0).view(2, 3) + 100}
    stack = torch.cat(list(saved.values()))
    store.save(1, {"a": stack.narrow(0, 0, 4), "b": stack.narrow(0, 4, 2), "c": torch.ones(2)}, {}, best=True)
    found = store.best()
    assert found is not None
    module = nn.Linear(3, 4)
    wide, high = torch.full((6, 5), -1.0), torch.full((4, 3), -1.0)
    store.load(found, {"a": module.weight, "b": high.narrow(0, 1, 2)}, partial=True)
    store.load(found, {"a": wide[1:5, 1:4]}, partial=True)
    assert torch.equal(module.weight, saved["a"])
    assert module.weight.requires_grad
    assert torch.equal(high[1:3], saved["b"])
    assert torch.equal(wide[1:5, 1:4], saved["a"])
    assert (high[[0, 3]] == -1).all()
    assert (wide[[0, 5]] == -1).all()
    assert (wide[:, [0, 4]] == -1).all()
    # a view takes no more room than itself
    assert sum(file.stat().st_size for file in found.path.iterdir()) < 8000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_a_gpu_are_those_on_a_cpu(tmp_path: Path) -> None:
    store, saved = Checkpoints(tmp_path), tensors()
    on_gpu = {name: tensor.cuda() for name, tensor in saved.items()}
    found = store.save(1, {**on_gpu, "part": on_gpu["weight"][2:5]}, {}, best=True)
    into = filled(saved)
    store.load(found, into, partial=True)
    assert all(same(into[name], saved[name]) for name in saved)
    back = {name: tensor.cuda() for name, tensor in filled(saved).items()}
    store.load(found, back, partial=True)
    assert all(same(back[name].cpu(), saved[name]) for name in saved)
    assert store.open(found).digest(saved) == weights_digest(on_gpu) == weights_digest(saved)


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (0, 1), (7, 23), (49, 50), (5, 5)])
def test_rows_are_read_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stop: int) -> None:
    monkeypatch.setattr(stored_tensors, "CHUNK_BYTES", 7 * 12)
    store, weight = Checkpoints(tmp_path), torch.randn(50, 3)
    stored = store.open(store.save(1, {"w": weight}, {}, best=True))
    assert torch.equal(stored.rows("w", start, stop), weight[start:stop])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(7, 5)}, r"tensor 'weight' is float32 \[7, 4\] in the checkpoint and float32 \[7, 5\]"),
        ({"weight": torch.zeros(8, 4)}, r"tensor 'weight' is float32 \[7, 4\] in the checkpoint and float32 \[8, 4\]"),
        ({"weight": torch.zeros(7, 4).half()}, r"tensor 'weight' is float32 \[7, 4\] .* and float16 \[7, 4\]"),
        ({"weight": torch.zeros(28)}, r"tensor 'weight' is float32 \[7, 4\] .* and float32 \[28\]"),
        ({"new": torch.zeros(1)}, r"the checkpoint has no tensor 'new'"),
        ({"weight": None, "half": None}, r"this run has no tensor 'half' \(nor 1 others\), the checkpoint has"),
    ],
)
def test_other_names_shapes_and_types_are_refused(
    tmp_path: Path, changed: dict[str, Tensor | None], message: str
) -> None:
    store = Checkpoints(tmp_path)
    found = store.save(1, tensors(), {}, best=True)
    asked: dict[str, Any] = {**filled(tensors()), **changed}
    asked = {name: tensor for name, tensor in asked.items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        store.load(found, asked)
    assert all((tensor.double() == 1).all() for name, tensor in asked.items() if name not in changed)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    assert store.latest() is None
    assert store.best() is None
    seen = []
    for step, best in [(10, True), (20, False), (30, False), (40, True), (50, False), (60, False), (70, False)]:
        store.save(step, {"w": torch.full((2,), float(step))}, {"step": step}, best=best)
        assert [found.values["step"] for found in store.all()] == sorted((f.step for f in store.all()), reverse=True)
        seen.append([int(name[5:]) for name in steps(tmp_path)])
    assert seen == [[10], [10, 20], [10, 20, 30], [30, 40], [40, 50], [40, 50, 60], [40, 60, 70]]
    latest, best_one = store.latest(), store.best()
    assert latest is not None
    assert best_one is not None
    assert (latest.step, best_one.step) == (70, 40)
    store.remove(latest)
    assert [found.step for found in store.all()] == [60, 40]
    store.clear()
    assert steps(tmp_path) == []


def test_a_step_that_is_saved_again_takes_the_place_of_the_first_when_it_is_whole(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    for number in range(12):
        store.save(5, {"w": torch.tensor([float(number)])}, {"number": number}, best=True)
        assert [found.values["number"] for found in store.all()] == [number]
    into = {"w": torch.zeros(1)}
    found = store.latest()
    assert found is not None
    store.load(found, into)
    assert into["w"].item() == 11


def damages(path: Path) -> Iterator[tuple[str, Path]]:
    """One damage after another, each mended before the next."""
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        places = {0, 1, len(content) // 3, len(content) // 2, len(content) - 1}
        for place in sorted(places):
            changed = bytearray(content)
            changed[place] ^= 1
            file.write_bytes(changed)
            yield f"byte {place}", file
        file.write_bytes(content[:-1])
        yield "short", file
        file.write_bytes(content + b"\0")
        yield "long", file
        file.unlink()
        yield "gone", file
        file.write_bytes(content)


def test_damage_in_any_file_is_found_and_named(tmp_path: Path) -> None:
    said: list[str] = []
    store = Checkpoints(tmp_path, keep=2, say=said.append)
    store.save(1, tensors(), {}, best=True)
    last = store.save(2, tensors(), {"a": 1}, best=True)
    count = 0
    for what, file in damages(last.path):
        said.clear()
        names = f"{file}: damaged or missing"
        found = store.latest()
        assert found is not None, what
        if found.step == 1:  # that it is not whole is seen at once
            assert any(names in line for line in said), (what, file)
        with pytest.raises(UserError, match="damaged or missing") as error:
            store.load(last, filled(tensors()))
        assert str(error.value).startswith(names), (what, file)
        count += 1
    assert count == 4 * 8
    assert store.latest() == last
    store.load(last, filled(tensors()))


def test_a_damaged_checkpoint_is_not_counted_among_the_last(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        damaged = store.save(step, {"w": torch.zeros(1)}, {}, best=step == 1)
    (damaged.path / "manifest.json").unlink()
    store.save(4, {"w": torch.ones(1)}, {}, best=False)
    assert steps(tmp_path) == ["step-00000001", "step-00000002", "step-00000004"]


@pytest.mark.parametrize("limit", [0, 100, 3000])
def test_a_full_disk_is_said_and_keeps_what_was_there(tmp_path: Path, limit: int) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, tensors(), {"a": 1}, best=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # stands for the end of the disk
    try:
        with pytest.raises(OSError, match="File too large"):
            store.save(2, tensors(), {"a": 2}, best=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == ["step-00000001"]
    found = store.best()
    assert found is not None
    into = filled(tensors())
    store.load(found, into)
    assert all(same(into[name], tensor) for name, tensor in tensors().items())


def test_a_directory_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Checkpoints(tmp_path / "file" / "run").save(1, tensors(), {}, best=True)


def test_leftovers_of_the_killed_are_removed(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, {"w": torch.zeros(1)}, {}, best=True)
    for name in (".step-00000002.new-1", ".step-00000001.old-77"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / "metrics.jsonl").touch()
    found = store.latest()
    assert found is not None
    assert found.step == 1
    store.remove_leftovers()
    assert steps(tmp_path) == ["metrics.jsonl", "step-00000001"]


def test_the_digest_is_of_names_types_shapes_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"b": torch.arange(6.0).view(3, 2), "a": torch.tensor(2, dtype=torch.int32)}
    expected = "c80bb00e442114cf0bcc4bf0a103ec817f3ea1194a80a25867c142b6d1bae4ca"
    assert weights_digest(weights) == expected
    assert weights_digest(dict(reversed(weights.items()))) == expected
    assert weights_digest({**weights, "b": weights["b"].T.contiguous().T}) == expected
    others: list[dict[str, Tensor]] = [
        {"a": weights["a"]},
        {**weights, "c": torch.empty(0)},
        {"b": weights["b"], "c": weights["a"]},
        {**weights, "b": weights["b"].view(2, 3)},
        {**weights, "b": weights["b"].view(torch.int32)},
        {**weights, "b": weights["b"] + torch.tensor([[0, 0], [0, 0], [0, 1e-6]])},
    ]
    assert len({weights_digest(other) for other in others} | {expected}) == len(others) + 1
    monkeypatch.setattr(stored_tensors, "CHUNK_BYTES", 9)
    assert weights_digest(weights) == expected
    store = Checkpoints(tmp_path)
    found = store.save(1, {**weights, "moments": torch.ones(3, 4)}, {"seconds": 1.0}, best=True)
    assert store.open(found).digest(["a", "b"]) == expected


def run(module: str, *arguments: Path) -> list[Any]:
    """The JSON lines that a program of the tests prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"tests.training.{module}", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_whoever_is_killed_as_it_saves_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    lines = run("killed_checkpoint", tmp_path)
    at_operation, at_random = lines[:-20], lines[-20:]
    *killed, survivor = at_operation
    assert len(killed) > 20
    assert all(line["fate"] == -9 for line in killed)
    assert survivor == {"fate": 0, "found": [3, 3], "after": ["step-00000003", "step-00000004"]}
    outcomes = [line["found"] for line in killed]
    new = outcomes.index([3, 3])
    assert new > 5
    assert outcomes == [[2, 1]] * new + [[3, 3]] * (len(outcomes) - new)
    expected = {(2, 1): ["step-00000001", "step-00000004"], (3, 3): ["step-00000003", "step-00000004"]}
    assert all(line["after"] == expected[tuple(line["found"])] for line in killed)
    latest = [line["found"][0] for line in at_random]
    assert all(line["fate"] == -9 for line in at_random)
    assert latest == sorted(latest)
    assert latest[-1] > 1
    assert all(line["found"][1] == (step - 1) // 3 * 3 + 1 for step, line in zip(latest, at_random, strict=True))


def test_any_number_of_ranks_loads_what_any_other_saved(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "one").save(1, checkpoint_ranks.everything(), {"of": 1}, best=True)
    (found,) = run("checkpoint_ranks", tmp_path)
    assert found["saved"] == [["step-00000002", 2]] * 2
    assert found["four"] == [[{"of": 2, "by": 0}, True]] * 4
    assert found["two"] == [[{"of": 4, "by": 0}, True]] * 2
    assert found["by one"] == [[{"of": 1}, True]] * 2
    for place, size in (("two", 2), ("four", 4)):
        store, expected = Checkpoints(tmp_path / place), checkpoint_ranks.everything()
        latest = store.latest()
        assert latest is not None
        expected |= {f"rng.{rank}": torch.tensor([rank]) for rank in range(size)}
        into = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
        store.load(latest, into)
        assert all(torch.equal(into[name], expected[name]) for name in expected)
        assert StoredTensors(latest.path).digest(expected) == weights_digest(expected)


def test_what_goes_wrong_on_one_rank_goes_wrong_on_all(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "one").save(1, checkpoint_ranks.everything(), {"of": 1}, best=True)
    (found,) = run("checkpoint_ranks", tmp_path)
    file = tmp_path / "failed" / "step-00000001" / "__1_0.distcp"
    for said, names in found["failed"]:
        assert said[0] == "[Errno 28] No space left on device"
        assert said[1].startswith(f"{file}: damaged or missing")
        assert names == ["step-00000001"]

"""What a model needs is what it then holds, and too much of it is refused before it is allocated."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ctrkit import memory
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers
from ctrkit.errors import UserError
from ctrkit.training.ranks import Ranks
from tests import networks
from tests.test_build import recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize("model", ["light", "rocket"])
@pytest.mark.parametrize(
    "train",
    [{}, {"table_optimizer": "adagrad"}, {"table_optimizer": "rowwise_adagrad", "table_l2": 0.0}],
    ids=["adam", "adagrad", "rowwise_adagrad"],
)
def test_what_is_needed_is_what_a_step_holds(model: str, train: dict[str, Any]) -> None:
    small = recipe(train=train)
    objective = build_objective(small, model, networks.NUM_ROWS)
    optimizers, _, towers = build_optimizers(objective, small.train_config(model), 1)
    torch.stack([loss_B.mean() for loss_B in objective.losses(networks.batch(5)).values()]).sum().backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
    held = [*objective.parameters(), *(weight.grad for weight in towers if weight.grad is not None)]
    for optimizer in optimizers:
        for state in optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, torch.Tensor) and value.ndim]
    parts = memory.weight_bytes(small, model, networks.NUM_ROWS)
    assert sum(parts.values()) == sum(tensor.nbytes for tensor in held)
    assert list(parts)[1:] == [
        "table 'user' (12 rows of width 4)", "table 'item' (20 rows of width 6)", "table 'tags' (7 rows of width 4)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("train", "row_group_rows", "buffered"),
    [
        ({"shuffle_rows": 100, "batch_size": 10}, 50, 100),
        ({"shuffle_rows": 100, "batch_size": 200}, 50, 200),
        ({"shuffle_rows": 100, "batch_size": 10}, 300, 300),
        ({"shuffle_rows": 10**9}, 50, 1000),
    ],
)
def test_three_shuffle_buffers_are_no_longer_than_the_log(
    train: dict[str, Any], row_group_rows: int, buffered: int
) -> None:
    small = recipe(train=train, data={"path": "log", "row_group_rows": row_group_rows})
    # user, item, price, bid; recent 3 + its length, tags 2 + its length; label, weight, origin
    assert memory.buffer_bytes(small, "light", 1000) == 3 * 4 * buffered * (4 + 4 + 3 + 3)


def free(monkeypatch: pytest.MonkeyPatch, cpu: int | None, gpu: int | None = None) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: cpu if device.type == "cpu" else gpu)


def needed(rows: int) -> tuple[int, int]:
    weights = sum(memory.weight_bytes(recipe(), "light", networks.NUM_ROWS).values())
    return weights, memory.buffer_bytes(recipe(), "light", rows)


def test_what_just_fits_is_trained_and_a_byte_more_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = sum(needed(100))
    for cpu in (enough, None):
        free(monkeypatch, cpu)
        memory.check_memory(recipe(), "light", networks.NUM_ROWS, 100, CPU)
    free(monkeypatch, enough - 1)
    with pytest.raises(UserError, match=r"model 'light' needs .* on cpu to train"):
        memory.check_memory(recipe(), "light", networks.NUM_ROWS, 100, CPU)


def test_weights_lie_on_the_device_and_buffers_in_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, buffers = needed(100)
    gpu = torch.device("cuda")
    free(monkeypatch, buffers, weights)
    memory.check_memory(recipe(), "light", networks.NUM_ROWS, 100, gpu)
    free(monkeypatch, buffers, weights - 1)
    with pytest.raises(UserError, match="on cuda to train"):
        memory.check_memory(recipe(), "light", networks.NUM_ROWS, 100, gpu)
    free(monkeypatch, buffers - 1, weights)
    with pytest.raises(UserError, match=r"on cpu to train, .* for the shuffle buffers"):
        memory.check_memory(recipe(), "light", networks.NUM_ROWS, 100, gpu)


def test_ranks_of_a_machine_share_what_is_dealt_and_hold_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    small = recipe()
    parts = memory.weight_bytes(small, "taught", networks.NUM_ROWS)
    buffers = memory.buffer_bytes(small, "taught", 100)
    whole = parts["the towers"] + parts["the frozen teachers"]
    tables = sum(parts.values()) - whole
    ranks = Ranks(0, 4, 0, 2)  # on two machines
    for dealt, expected in ((True, 2 * whole + tables // 2 + buffers // 2), (False, 2 * (whole + tables + buffers))):
        free(monkeypatch, expected + 8)  # each part is rounded by itself
        memory.check_memory(small, "taught", networks.NUM_ROWS, 100, CPU, ranks, dealt=dealt)
        free(monkeypatch, expected - 8)
        with pytest.raises(UserError, match="on cpu to train"):
            memory.check_memory(small, "taught", networks.NUM_ROWS, 100, CPU, ranks, dealt=dealt)


def test_the_message_names_the_largest_table(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2**34)
    with pytest.raises(UserError) as caught:
        memory.check_memory(recipe(), "rocket", {**networks.NUM_ROWS, "item": 2_000_000_002}, 100, CPU)
    # weight and two moments of width 6, the step of the last look-up: 76 bytes a row
    assert (
        "model 'rocket' needs 141.6 GiB of memory on cpu to train, 16.0 GiB are free; "
        "most of it is for table 'item' (2,000,000,002 rows of width 6): 141.6 GiB. Lower embedding.dim"
    ) in str(caught.value)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_free_memory_is_that_of_this_machine() -> None:
    found = memory.free_memory(CPU)
    assert found is not None
    assert 2**24 < found < 2**50
    assert memory.free_memory(torch.device("meta")) is None

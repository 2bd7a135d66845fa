"""Whether the training of a model fits into memory, told before anything is allocated."""

import gc
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ctrkit.builders.check import untrained_teachers
from ctrkit.builders.objective import build_objective
from ctrkit.builders.optimizers import build_optimizers
from ctrkit.config.recipe import Recipe
from ctrkit.errors import UserError
from ctrkit.schema import SequenceFeature
from ctrkit.training.ranks import Ranks

_GIB = 2**30
_TOWERS, _TEACHERS = "the towers", "the frozen teachers"
_WHOLE = (_TOWERS, _TEACHERS)  # every rank has all of them


def check_memory(
    recipe: Recipe,
    model: str,
    num_rows: Mapping[str, int],
    rows: int,
    device: torch.device,
    ranks: Ranks | None = None,
    *,
    dealt: bool = True,
) -> None:
    """Refuse a model whose training cannot fit into what is free now, swap included.

    Args:
        recipe: names towers, embedding and objective.
        model: key of [models].
        num_rows: rows of each embedding table.
        rows: of the training part.
        device: where the model trains; the shuffle buffers lie in main memory.
        ranks: that train together; those on a machine share its memory.
        dealt: whether they share tables and buffers; else each holds all of them.

    Raises:
        UserError: names the largest part and the keys that make it smaller.
    """
    weights, buffers = weight_bytes(recipe, model, num_rows), {"the shuffle buffers": buffer_bytes(recipe, model, rows)}
    if ranks is not None and ranks.size > 1:
        here = ranks.local_size if device.type == "cpu" else 1  # each GPU has memory of its own
        parts = ranks.size if dealt else 1  # tables as if they were dealt evenly
        weights = {name: size * here // (1 if name in _WHOLE else parts) for name, size in weights.items()}
        buffers = {name: size * ranks.local_size // parts for name, size in buffers.items()}
    if device.type == "cpu":
        _check(model, {**weights, **buffers}, device)
    else:
        _check(model, weights, device)
        _check(model, buffers, torch.device("cpu"))


def weight_bytes(recipe: Recipe, model: str, num_rows: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each table with the state of its optimizer, and of the towers with gradient and state."""
    with torch.device("meta"):  # shapes without memory
        frozen = untrained_teachers(recipe, model, num_rows)
        objective = build_objective(recipe, model, num_rows, frozen=frozen)
        optimizers, _, towers = build_optimizers(objective, recipe.train_config(model), total_steps=1)
    state = {id(weight): values for optimizer in optimizers for weight, values in optimizer.state.items()}
    found = {_TOWERS: 4 * sum(weight.nbytes for weight in towers)}  # the gradient and Adam's two moments
    if frozen:
        held = {id(tensor): tensor for network in frozen.values() for tensor in network.parameters()}
        found[_TEACHERS] = sum(tensor.nbytes for tensor in held.values())
    for embedding in objective.tables():
        for name, weight in embedding.table_weights().items():
            part = f"table '{name}' ({len(weight):,} rows of width {weight.shape[1]})"
            stack = embedding.stacks[str(weight.shape[1])]
            kept = sum(value.nbytes for value in state[id(stack)].values() if isinstance(value, torch.Tensor))
            found[part] = found.get(part, 0) + weight.nbytes + kept * len(weight) // len(stack)
    return found


def buffer_bytes(recipe: Recipe, model: str, rows: int) -> int:
    """Bytes of the loader's three shuffle buffers: four a value, sequences padded to `max_len`."""
    config = recipe.train_config(model)
    widths = [f.max_len + 1 if isinstance(f, SequenceFeature) else 1 for f in recipe.features.values()]
    special = 3 + len({*recipe.models[model].taught_by} & {*recipe.columns.teachers})  # label, weight, origin, scores
    buffered = max(config.shuffle_rows, config.batch_size, recipe.data.row_group_rows)
    return 3 * 4 * min(rows, buffered) * (sum(widths) + special)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated, swap included; None where that is not known."""
    gc.collect()  # what the model before has left
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    system, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if device.type != "cpu" or not system.exists():
        return None
    kib = dict(re.findall(r"(\w+): +(\d+) kB", system.read_text()))
    free = 1024 * (int(kib["MemAvailable"]) + int(kib["SwapFree"]))
    of_container = limit.read_text().strip() if limit.exists() else "max"
    used = limit.with_name("memory.current")
    if not of_container.isdigit():
        return free
    return min(free, int(of_container) - (int(used.read_text()) if used.exists() else 0))


def _check(model: str, parts: Mapping[str, int], device: torch.device) -> None:
    free, needed = free_memory(device), sum(parts.values())
    if free is None or needed <= free:
        return
    largest = max(parts, key=lambda part: parts[part])
    raise UserError(
        f"model '{model}' needs {needed / _GIB:,.1f} GiB of memory on {device} to train, {free / _GIB:,.1f} GiB are "
        f"free; most of it is for {largest}: {parts[largest] / _GIB:,.1f} GiB. Lower embedding.dim, a feature's "
        "buckets or max_len, the towers' hidden widths or train.shuffle_rows, raise a feature's min_count, or set "
        'train.table_optimizer = "rowwise_adagrad"'
    )

"""The floor under a training step: its matrix products at measured peak, and the bytes it must move.

A floor is no forecast: nothing computes at peak throughout, and a real step reads and writes more than once.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.training_steps import BATCH, BOOSTER, DIM, FIELDS, LIGHT, Impressions, Precision

_SHAPES = ((BATCH, FIELDS * DIM, BOOSTER[0]), (2048, 2048, 2048))
_LARGEST_COPY = 2**30
_DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Floor:
    """Seconds of a step that no implementation gets below."""

    products: float
    bytes: float

    @property
    def seconds(self) -> float:
        """One after the other."""
        return self.products + self.bytes


@dataclass(frozen=True)
class Machine:
    """What was measured in this run."""

    flops: Mapping[Precision, float]
    """Of a matrix product, a second."""
    bandwidth: Mapping[int, float]
    """By ids a field: bytes read and written a second by a copy as large as tables and state, up to 1 GiB."""

    def best(self, other: "Machine") -> "Machine":
        """Of two measurements, in case one of them was disturbed."""
        return Machine(
            {name: max(flops, other.flops[name]) for name, flops in self.flops.items()},
            {size: max(rate, other.bandwidth[size]) for size, rate in self.bandwidth.items()},
        )


def measure_machine(sizes: Iterable[int], repeats: int) -> Machine:
    """Peak of the products, and bandwidth for each number of ids a field."""
    flops: dict[Precision, float] = {
        name: max(_product_flops(shape, dtype, repeats) for shape in _SHAPES) for name, dtype in _DTYPES.items()
    }
    return Machine(flops, {size: _copy_bandwidth(table_bytes(size), repeats) for size in sizes})


def floor(net: str, precision: Precision, batch: Impressions, num_rows: int, machine: Machine) -> Floor:
    """Of one step of `light`, `booster` or `rocket` on one batch."""
    moved = row_bytes(batch) + activation_bytes(net, precision)
    return Floor(step_flops(net) / machine.flops[precision], moved / machine.bandwidth[num_rows])


def step_flops(net: str) -> int:
    """Two a multiplication: forwards, for the weights' gradient, for the inputs' gradient.

    In a rocket the light tower passes no gradient to the embeddings (route `shared`).
    """
    total = 0
    for hidden in _towers(net):
        widths = [FIELDS * DIM, *hidden, 1]
        products = [a * b for a, b in itertools.pairwise(widths)]
        total += 2 * BATCH * 3 * sum(products)
        if net == "rocket" and hidden is LIGHT:
            total -= 2 * BATCH * products[0]
    return total


def row_bytes(batch: Impressions) -> int:
    """Of the table rows: each distinct one read and written once, with Adam's two moments; the ids read."""
    distinct = sum(len(ids_B.unique()) for ids_B in batch.ids_FB)
    return distinct * DIM * 4 * 3 * 2 + batch.ids_FB.nbytes


def activation_bytes(net: str, precision: Precision) -> int:
    """Of the embeddings, in fp32, and of the hidden layers: written, read forwards and backwards; so their gradient."""
    size = {"fp32": 4, "bf16": 2}[precision]
    hidden = sum(width for tower in _towers(net) for width in tower)
    return BATCH * 6 * (4 * FIELDS * DIM + size * hidden)


def table_bytes(num_rows: int) -> int:
    """Of the tables with Adam's two moments."""
    return FIELDS * num_rows * DIM * 4 * 3


def _towers(net: str) -> list[list[int]]:
    return {"light": [LIGHT], "booster": [BOOSTER], "rocket": [LIGHT, BOOSTER]}[net]


def _product_flops(shape: tuple[int, int, int], dtype: torch.dtype, repeats: int) -> float:
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    return 2 * rows * inner * columns / _best(lambda: a @ b, repeats)


def _copy_bandwidth(size: int, repeats: int) -> float:
    source = torch.ones(min(size, _LARGEST_COPY) // 8)  # fp32; with its target it makes `size`
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), repeats)


def _best(function: Callable[[], object], repeats: int) -> float:
    seconds = float("inf")
    for _ in range(repeats + 1):  # the first is a warm-up, and never the best
        start = time.perf_counter()
        function()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds

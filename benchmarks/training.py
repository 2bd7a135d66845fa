"""Rows a second of a training step: ctrkit beside plain torch, TorchRec, FuxiCTR and DeepCTR-Torch, and the floor.

    python -m benchmarks.training [--quick] [--out FILE]

The same net for all (`benchmarks.training_steps`), batches of 4,096 in memory, 1,000 and 1,000,000 ids a field; the
larger tables hold 36 M rows and need 10 GiB with dense Adam. At 1,000 all stand ready and take turns, a block of steps
each; at 1,000,000 each is built, timed and freed in turn, round after round. A rate is the median over the blocks.
FuxiCTR and DeepCTR-Torch are timed where they are installed (`pip install fuxictr deepctr-torch requests`).

Not all is the same everywhere. Peers train in fp32; the rows that put torch and TorchRec under bf16 autocast are no
peer's own. TorchRec's fused kernels have no Adam on a CPU: it has Adagrad on the tables, and so has one row of ctrkit.
"From Parquet": the same step fed from a prepared log on disk, read, shuffled and assembled meanwhile.
Nobody has an L2 penalty on the tables, one row of ctrkit excepted, whose recipes have one by default.
"""

import gc
import itertools
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import training_steps as steps
from benchmarks.report import arguments, emit, table
from benchmarks.training_floor import Machine, floor, measure_machine
from benchmarks.training_parquet import from_parquet
from benchmarks.training_steps import BATCH, Build, Impressions, Precision, Train
from ctrkit.config.train import TrainConfig

SMALL, LARGE = 1_000, 1_000_000
"""Ids a field."""
FROM_PARQUET = "ctrkit, from Parquet"
FUXICTR, STAND_IN = "FuxiCTR", "torch, dense Adam"
_NOTHING: Mapping[Precision, Train] = {"fp32": lambda _: None}
_MILLISECONDS = ("products_ms", "bytes_ms", "floor_ms", "step_ms")


@dataclass(frozen=True)
class Contender:
    """One way to train one net."""

    name: str
    net: str
    tables: str
    """How its tables are updated."""
    build: Build
    peer: bool = True
    quick: bool = False
    """Whether a quick run times it with the large tables too."""
    large: tuple[Precision, ...] = ("fp32", "bf16")
    """In which precisions it is timed with the large tables."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name}, {self.net}, {self.tables} on the tables"


CONTENDERS = (
    Contender("ctrkit", "light", "Adam", steps.ctrkit("light"), peer=False, quick=True),
    Contender("ctrkit", "booster", "Adam", steps.ctrkit("booster"), peer=False, quick=True),
    Contender("ctrkit", "rocket", "Adam", steps.ctrkit("rocket"), peer=False, quick=True),
    Contender(FROM_PARQUET, "light", "Adam", from_parquet("light"), peer=False, quick=True),
    Contender("ctrkit", "light", "Adam, L2", steps.ctrkit("light", table_l2=TrainConfig().table_l2), peer=False),
    Contender("ctrkit", "light", "Adagrad", steps.ctrkit("light", table_optimizer="adagrad"), peer=False),
    Contender(STAND_IN, "light", "dense Adam", steps.dense_adam, large=("fp32",)),
    Contender("torch, SparseAdam", "light", "SparseAdam", steps.sparse_adam),
    Contender("TorchRec, fused", "light", "Adagrad", steps.torchrec, quick=True),
    Contender(FUXICTR, "light", "dense Adam", steps.fuxictr, quick=True),
    Contender("DeepCTR-Torch", "light", "dense Adam", steps.deepctr_torch),
)


@dataclass
class Measured:
    """Rows a second of each block, or why there is none."""

    contender: Contender
    precision: Precision
    num_rows: int
    blocks: list[float] = field(default_factory=list)
    missing: str | None = None

    @property
    def rate(self) -> float | None:
        """The median over the blocks."""
        return statistics.median(self.blocks) if self.blocks else None

    def cell(self) -> str:
        """For people."""
        return f"{self.rate:,.0f} ({max(self.blocks):,.0f})" if self.rate else self.missing or "-"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        way = {"way": self.contender.name, "net": self.contender.net, "tables": self.contender.tables}
        rates = {"rows_per_s": self.rate, "blocks": self.blocks, "missing": self.missing}
        return {**way, "precision": self.precision, "ids": self.num_rows, **rates}


def block(train: Train, batches: Sequence[Impressions], seconds: float) -> float:
    """Rows a second over at least `seconds`, and at least two steps."""
    taken = 0
    start = time.perf_counter()

    def feed() -> Iterator[Impressions]:
        nonlocal taken
        for batch in itertools.cycle(batches):
            if taken >= 2 and time.perf_counter() - start >= seconds:
                return
            taken += 1
            yield batch

    train(feed())
    return taken * len(batches[0].label_B) / (time.perf_counter() - start)


def measure(
    contenders: Sequence[Contender],
    num_rows: int,
    batches: Sequence[Impressions],
    *,
    rounds: int,
    seconds: float,
) -> list[Measured]:
    """Time every contender in turn, `rounds` times; small tables stay, large ones are built anew each time."""
    results: dict[tuple[str, str, str, Precision], Measured] = {}
    alive: dict[Contender, Mapping[Precision, Train]] = {}
    missing: set[Contender] = set()
    together = num_rows == SMALL
    for turn, contender in itertools.product(range(rounds), contenders):
        if contender in missing:
            continue
        print(f"{num_rows:,} ids a field, round {turn + 1}: {contender.label}", file=sys.stderr)
        reason = None
        if contender not in alive:
            alive[contender], reason = ready(contender, num_rows, batches)
        if reason:
            missing.add(contender)
        for precision, train in alive[contender].items():
            key = (contender.name, contender.net, contender.tables, precision)
            measured = results.setdefault(key, Measured(contender, precision, num_rows, missing=reason))
            if not reason:
                measured.blocks.append(block(train, batches, seconds))
        if not together:
            alive.clear()
            gc.collect()
    return list(results.values())


def ready(
    contender: Contender, num_rows: int, batches: Sequence[Impressions]
) -> tuple[Mapping[Precision, Train], str | None]:
    """A contender's steps, warmed up; or, of a peer, why it has none: that is told, and does not end the run."""
    try:
        built = contender.build(num_rows)
        train = {p: each for p, each in built.train.items() if num_rows == SMALL or p in contender.large}
        for each in train.values():
            block(each, batches, 0.0)
    except Exception as error:
        if not contender.peer:
            raise
        absent = isinstance(error, ImportError)
        return _NOTHING, f"not installed ({error})" if absent else f"does not run ({type(error).__name__}: {error})"
    with torch.no_grad():
        for value in built.state():
            value.mul_(1)  # a long run has touched every page of it, and so has this one now
    return train, None


def summary(results: Sequence[Measured]) -> dict[str, Any]:
    """The figures of the JSON line; None where one of the two was not timed."""

    def best(num_rows: int, net: str = "light", precision: Precision | None = None) -> float | None:
        return _fastest(m for m in _own(results, num_rows, net) if precision in (None, m.precision))

    def peer(num_rows: int, precision: Precision, name: str | None = None) -> float | None:
        found = [m for m in results if m.contender.peer and (m.num_rows, m.precision) == (num_rows, precision)]
        return _fastest(m for m in found if name in (None, m.contender.name))

    fuxictr = peer(LARGE, "fp32", FUXICTR)
    figures = {
        "light_vs_best_peer_1e3": _ratio(best(SMALL), peer(SMALL, "fp32")),
        "light_fp32_vs_best_peer_1e3": _ratio(best(SMALL, precision="fp32"), peer(SMALL, "fp32")),
        "light_bf16_vs_best_bf16_peer_1e3": _ratio(best(SMALL, precision="bf16"), peer(SMALL, "bf16")),
        "light_vs_fuxictr_1e6": _ratio(best(LARGE), fuxictr or peer(LARGE, "fp32", STAND_IN)),
        "light_vs_fuxictr_1e6_against": FUXICTR if fuxictr else f"{STAND_IN}, FuxiCTR's way: it was not timed",
        "light_vs_best_peer_1e6": _ratio(best(LARGE), peer(LARGE, "fp32")),
        "light_1e3_vs_1e6": _ratio(best(SMALL), best(LARGE)),
    }
    for size, name in ((SMALL, "1e3"), (LARGE, "1e6")):
        rocket, booster = best(size, "rocket"), best(size, "booster")
        ratio = _ratio(booster, rocket)
        figures |= {
            f"light_rows_per_s_{name}": best(size),
            f"rocket_rows_per_s_{name}": rocket,
            f"light_on_top_of_booster_{name}": ratio and ratio - 1,
            f"from_parquet_vs_memory_{name}": _ratio(
                _fastest(m for m in results if m.contender.name == FROM_PARQUET and m.num_rows == size), best(size)
            ),
        }
    return figures


def floors(results: Sequence[Measured], batches: Mapping[int, Impressions], machine: Machine) -> list[dict[str, Any]]:
    """The floor under each of ctrkit's steps, in milliseconds, and how many times as long the step takes."""
    rows = []
    for size, net in itertools.product(batches, ("light", "booster", "rocket")):
        for measured in _own(results, size, net):
            if measured.rate:
                under = floor(net, measured.precision, batches[size], size, machine)
                step = BATCH / measured.rate
                rows.append(
                    {
                        "net": net,
                        "precision": measured.precision,
                        "ids": size,
                        "products_ms": 1e3 * under.products,
                        "bytes_ms": 1e3 * under.bytes,
                        "floor_ms": 1e3 * under.seconds,
                        "step_ms": 1e3 * step,
                        "distance": step / under.seconds,
                    }
                )
    return rows


def _own(results: Sequence[Measured], num_rows: int, net: str) -> list[Measured]:
    """ctrkit's rows that the figures are about: Adam on the tables and no penalty, as the peers have it."""
    return [
        m
        for m in results
        if m.contender.name == "ctrkit"
        and m.contender.tables == "Adam"
        and (m.num_rows, m.contender.net) == (num_rows, net)
    ]


def _fastest(measured: Iterable[Measured]) -> float | None:
    return max((m.rate for m in measured if m.rate is not None), default=None)


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _print(results: Sequence[Measured]) -> None:
    by_way: dict[tuple[str, ...], dict[int, Measured]] = {}
    for m in results:
        way = (m.contender.name, m.contender.net, m.contender.tables, m.precision)
        by_way.setdefault(way, {})[m.num_rows] = m
    table(
        ("way", "net", "tables", "towers", *(f"rows/s, {n:,} ids: median (best)" for n in (SMALL, LARGE))),
        [(*way, *(sizes[n].cell() if n in sizes else "-" for n in (SMALL, LARGE))) for way, sizes in by_way.items()],
    )


def main() -> None:
    """Measure, print, emit."""
    options = arguments("Rows a second of a training step: ctrkit beside its peers, and the floor.").parse_args()
    quick: bool = options.quick
    batches = {size: steps.make_batches(size, 16) for size in (SMALL, LARGE)}
    machine = measure_machine(batches, repeats=5 if quick else 20)
    results = measure(CONTENDERS, SMALL, batches[SMALL], rounds=3 if quick else 15, seconds=0.25 if quick else 1.0)
    gc.collect()
    absent = {m.contender.name for m in results if m.missing}
    large = [c for c in CONTENDERS if not quick or c.quick or (c.name == STAND_IN and FUXICTR in absent)]
    results += measure(large, LARGE, batches[LARGE], rounds=1 if quick else 3, seconds=1.0 if quick else 3.0)
    machine = machine.best(measure_machine(batches, repeats=5 if quick else 20))
    _print(results)
    under = floors(results, {size: of_size[0] for size, of_size in batches.items()}, machine)
    table(
        ("net", "towers", "ids a field", "products ms", "bytes ms", "floor ms", "ctrkit's step ms", "times the floor"),
        [
            (r["net"], r["precision"], f"{r['ids']:,}", *(f"{r[k]:.1f}" for k in _MILLISECONDS), f"{r['distance']:.1f}")
            for r in under
        ],
    )
    figures = summary(results)
    for name, value in figures.items():
        print(f"{name}: {value:,.2f}" if isinstance(value, float) else f"{name}: {value}")
    emit(
        {
            "benchmark": "training",
            "quick": quick,
            **figures,
            "batch": BATCH,
            "threads": torch.get_num_threads(),
            "product_gflops": {name: flops / 1e9 for name, flops in machine.flops.items()},
            "copy_gb_per_s": {str(size): rate / 1e9 for size, rate in machine.bandwidth.items()},
            "floors": under,
            "rows": [m.as_dict() for m in results],
        },
        options.out,
    )


if __name__ == "__main__":
    main()

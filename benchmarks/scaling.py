"""Rows a second of several processes, measured on this machine, and a model of 8 to 512 on a network.

    python -m benchmarks.scaling [--quick] [--out FILE]

Measured: one process and two, one thread each, 36 fields of 16, bf16 towers, tables sharded by TorchRec's planner over
gloo; the batch of 4,096 divided over both (strong scaling), and 4,096 for each (weak scaling).

The model takes the times of one process from the measurement and assumes the rest, as it prints: what a rank sends and
receives over the network's bandwidth, and a latency for each message. Of a step of W ranks with b rows each, F fields
of width E, and P weights in the towers, a rank moves
    ids         8 b F                     to the ranks that hold the tables, in one exchange
    vectors     4 b F E                   back, and their gradients again, where tables lie whole on a rank
                4 b F E W                 where each table's rows are dealt to all ranks: sums of parts
    towers      8 P                       ring all-reduce
each times (W - 1) / W. Whole tables cannot use more ranks than there are tables: a rank that holds one of F looks up
W b rows for each. The planner's choice is taken to be the faster of both.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from benchmarks.report import arguments, emit, table
from benchmarks.training_steps import BATCH, BOOSTER, DIM, FIELDS, LIGHT

IDS = 100_000
RANKS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Network:
    """What the model assumes of the machines."""

    name: str
    bytes_per_s: float
    """Of each rank, each way."""
    latency_s: float
    """Of a message."""


NETWORKS = (
    Network("25 Gbit/s a rank, 20 us", 25e9 / 8, 20e-6),
    Network("100 Gbit/s a rank, 5 us", 100e9 / 8, 5e-6),
)


def weights(hidden: list[int]) -> int:
    """Of a tower."""
    widths = [FIELDS * DIM, *hidden, 1]
    return sum((a + 1) * b for a, b in pairwise(widths))


def step_seconds(ranks: int, towers_s: float, tables_s: float, num_weights: int, network: Network) -> dict[str, float]:
    """The model's step of `BATCH` rows a rank: seconds by part, and of all."""
    away = (ranks - 1) / ranks
    ids, vectors = 8 * BATCH * FIELDS, 4 * BATCH * FIELDS * DIM
    exchange = (ranks - 1) * network.latency_s
    small = 3 * 2 * math.ceil(math.log2(ranks)) * network.latency_s  # rows, losses, the largest batch: by a tree
    reduce = 2 * (ranks - 1) * network.latency_s + 8 * num_weights * away / network.bytes_per_s + small
    whole = tables_s * ranks * math.ceil(FIELDS / ranks) / FIELDS  # the rank with the most tables
    by_table = whole + (ids + 2 * vectors) * away / network.bytes_per_s + 3 * exchange
    by_rows = tables_s + (ids + 2 * vectors * ranks) * away / network.bytes_per_s + 3 * exchange
    tables = min(by_table, by_rows)
    return {"towers": towers_s, "tables": tables, "all-reduce": reduce, "step": towers_s + tables + reduce}


def modelled(measured: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows a second of the model, by net, network and number of ranks; `measured`: of one process, by net."""
    light, rocket = (BATCH / measured[net] for net in ("light", "rocket"))
    # towers cost in proportion to their multiplications, tables the same in both nets
    per_weight = (rocket - light) / weights(BOOSTER)
    sizes = {"light": weights(LIGHT), "rocket": weights(LIGHT) + weights(BOOSTER)}
    tables_s = max(0.0, light - per_weight * sizes["light"])
    rows = []
    for net, size in sizes.items():
        alone = BATCH / (per_weight * size + tables_s)
        for network in NETWORKS:
            for ranks in RANKS:
                parts = step_seconds(ranks, per_weight * size, tables_s, size, network)
                rate = ranks * BATCH / parts["step"]
                rows.append(
                    {
                        "net": net,
                        "network": network.name,
                        "ranks": ranks,
                        "rows_per_s": rate,
                        "efficiency": rate / (ranks * alone),
                        "milliseconds": {part: 1e3 * seconds for part, seconds in parts.items()},
                    }
                )
    return rows


def measure(net: str, ranks: int, batch: int, seconds: float) -> float:
    """Rows a second of all ranks together."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    worker = ["-m", "benchmarks.scaling_worker", net, str(IDS), str(batch), str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1"}
    done = subprocess.run([sys.executable, *launcher, *worker], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["rows_per_s"])


def main() -> None:
    """Measure, model, print, emit."""
    options = arguments("Rows a second of several processes, and a model of many.").parse_args()
    seconds = 0.2 if options.quick else 3.0
    rows: list[dict[str, Any]] = []
    one: dict[str, float] = {}
    for net in ("light", "rocket"):
        one[net] = measure(net, 1, BATCH, seconds)
        strong, weak = measure(net, 2, BATCH, seconds), measure(net, 2, 2 * BATCH, seconds)
        rows.append({"net": net, "one": one[net], "two_strong": strong, "two_weak": weak})
    table(
        ("net", "one process, rows/s", "two, 4,096 together", "two, 4,096 each"),
        [
            (
                r["net"],
                f"{r['one']:,.0f}",
                f"{r['two_strong']:,.0f} (x {r['two_strong'] / r['one']:.2f})",
                f"{r['two_weak']:,.0f} (x {r['two_weak'] / r['one']:.2f})",
            )
            for r in rows
        ],
    )
    model = modelled(one)
    print("\nThe model, 4,096 rows a rank:")
    table(
        ("net", "network", "ranks", "rows/s", "efficiency", "step ms", "towers", "tables", "all-reduce"),
        [
            (
                m["net"],
                m["network"],
                str(m["ranks"]),
                f"{m['rows_per_s']:,.0f}",
                f"{m['efficiency']:.2f}",
                *(f"{m['milliseconds'][part]:.1f}" for part in ("step", "towers", "tables", "all-reduce")),
            )
            for m in model
        ],
    )
    emit(
        {
            "benchmark": "scaling",
            "quick": options.quick,
            "ids": IDS,
            "measured": rows,
            "networks": [asdict(network) for network in NETWORKS],
            "model": model,
        },
        options.out,
    )


if __name__ == "__main__":
    main()

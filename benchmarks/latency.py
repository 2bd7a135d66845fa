"""From encoded ids to probabilities, every way side by side: 36 features of 16, 200-80, 400 ads, one thread.

The plain export is what torch.onnx makes of the network: one graph, the user's features repeated for every ad. Beside
each way stands the floor: the multiplications that it needs at the peak measured in the same run, or the bytes that it
must read, whichever takes longer. Then a light and a booster tower from raw values.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import report
from benchmarks.latency_floor import Machine, measure_machine
from benchmarks.latency_tower import (
    BOOSTER,
    DIM,
    ITEM_FEATURES,
    LIGHT,
    USER_FEATURES,
    item_columns,
    multiplications,
    request_of,
    write_tower,
)  # fmt: skip
from benchmarks.latency_ways import (
    Absent,
    Prepared,
    Way,
    ctrkit_ways,
    openvino_ways,
    plain_export,
    prepared,
    rechub_ways,
    torch_ways,
)  # fmt: skip
from ctrkit.request import Request
from ctrkit_serving.latency import PERCENTILES, Latency, Quantiles, measure, quantiles
from ctrkit_serving.scorer import Scorer

PLAIN, SPLIT, TABLE = "plain export, ONNX Runtime", "ctrkit, split", "ctrkit, item table"
INT8, SPLIT_INT8, HOT = "ctrkit, item table, int8", "ctrkit, split, int8", "ctrkit, item table, hot ads"
_BURST = 100
"""Calls of a way before the next: fewer, and what is timed is how its weights come back into the caches."""


def main() -> None:
    """Measure, print, write."""
    parser = report.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--ads", type=int, default=400, help="ads a request")
    parser.add_argument("--table", type=int, default=200_000, help="ads of the item table")
    options = parser.parse_args()
    repeats = 1_000 if options.quick else 10_000
    machine = measure_machine()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_tower(place / "light", table=options.table, int8=True)
        requests = _requests(place / "light", options.ads, options.table)
        ways = _ways(place / "light", requests[0])
        absent = [way for way in ways if isinstance(way, Absent)]
        taken = [way for way in ways if isinstance(way, Way)]
        differences = _differences(taken, requests)
        found = interleaved(taken, requests, repeats)
        write_tower(place / "booster", widths=BOOSTER)
        towers = {name: Scorer.load(place / name) for name in ("light", "booster")}
        rng = np.random.default_rng(0)
        raw = [request_of(rng, options.ads) for _ in range(50)]
        latency = measure(towers, raw, ads=options.ads, repeats=repeats // 2)
        by_key = measure({"light": towers["light"]}, _raw_by_key(rng, options), ads=options.ads, repeats=repeats // 2)
    machine = _best(machine, measure_machine())
    floor_us = {name: 1e6 * floor for name, floor in floors(machine, options.ads, options.table).items()}
    _print(found, floor_us, differences, absent)
    _print_towers({**latency, "light, by the item table": by_key["light"]})
    report.emit(_result(options, machine, found, floor_us, differences, absent, latency, by_key["light"]), options.out)


def _requests(place: Path, ads: int, table: int) -> list[Prepared]:
    """Requests whose ads are drawn from all of the item table: most of their rows are in no cache."""
    rng, scorer, columns = np.random.default_rng(0), Scorer.load(place), item_columns(table)
    found = []
    for _ in range(100):
        chosen = rng.integers(table, size=ads)
        request = Request(request_of(rng, 1).user, {name: column[chosen] for name, column in columns.items()})
        found.append(prepared(request, scorer))
    return found


def _raw_by_key(rng: np.random.Generator, options: Any) -> list[Request]:
    users = [request_of(rng, 1).user for _ in range(50)]
    return [Request(user, {"ad": rng.integers(options.table, size=options.ads)}) for user in users]


def _ways(place: Path, example: Prepared) -> list[Way | Absent]:
    return [
        plain_export(LIGHT, example),
        *ctrkit_ways(place),
        *torch_ways(LIGHT, example),
        *openvino_ways(LIGHT, example),
        *rechub_ways(LIGHT, example),
    ]


def _differences(ways: Sequence[Way], requests: Sequence[Prepared]) -> dict[str, float]:
    """Largest absolute difference of probability from the plain export's."""
    plain = next(way for way in ways if way.name == PLAIN)
    expected = [plain.call(request).copy() for request in requests]
    found = {}
    for way in (way for way in ways if way.same_ads):
        pairs = zip(requests, expected, strict=True)
        found[way.name] = max(float(np.abs(way.call(request) - scores).max()) for request, scores in pairs)
    return found


def interleaved(
    ways: Sequence[Way], requests: Sequence[Prepared], repeats: int, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, npt.NDArray[np.float64]]:
    """Microseconds of each call; bursts of the ways in random order on the same requests, so that noise is everyone's.

    A burst, since a server scores one request after the other with one model: its weights stay in the caches.
    """
    rng = np.random.default_rng(0)
    found = {way.name: np.empty(repeats) for way in ways}
    for first in range(-_BURST * 3, repeats, _BURST):
        for which in rng.permutation(len(ways)):
            way = ways[which]
            for step in range(first, min(first + _BURST, repeats)):
                request = requests[step % len(requests)]
                start = clock()
                way.call(request)
                found[way.name][max(step, 0)] = (clock() - start) / 1e3  # what warm-up writes, step 0 writes over
    return found


def floors(machine: Machine, ads: int, table: int) -> dict[str, float]:
    """Seconds of each way of ctrkit; what the plain export needs stands for all that repeat the user."""
    first, rest = LIGHT[0], LIGHT[0] * LIGHT[1] + LIGHT[1]
    hidden, last = 2 * ads * LIGHT[0] * LIGHT[1], 2 * ads * LIGHT[1]
    user, item = 2 * USER_FEATURES * DIM * first, 2 * ads * ITEM_FEATURES * DIM * first
    rows = 4 * ads * first if table * first * 4 > 1 << 25 else 0  # a table that caches hold is not read from far
    whole = 2 * ads * ((USER_FEATURES + ITEM_FEATURES) * DIM * first + rest)
    return {
        PLAIN: machine.floor(flops=whole),
        "ctrkit, user repeated": machine.floor(flops=whole),
        SPLIT: machine.floor(flops=user + item + hidden + last),
        TABLE: machine.floor(flops=user + hidden + last, bytes_read=rows),
        HOT: machine.floor(flops=user + hidden + last),
        SPLIT_INT8: machine.floor(flops=user + last, int8_ops=item + hidden),
        INT8: machine.floor(flops=user + last, int8_ops=hidden, bytes_read=rows // 4),
    }


def _best(one: Machine, other: Machine) -> Machine:
    """In case one of them was disturbed."""
    return Machine(max(one.flops, other.flops), max(one.int8_ops, other.int8_ops), max(one.bandwidth, other.bandwidth))


def _result(
    options: Any,
    machine: Machine,
    found: Mapping[str, npt.NDArray[np.float64]],
    floors: Mapping[str, float],
    differences: Mapping[str, float],
    absent: Sequence[Absent],
    latency: Mapping[str, Latency],
    by_key: Latency,
) -> dict[str, Any]:
    p50 = {name: float(np.median(us)) for name, us in found.items()}
    speedup = {name: p50[PLAIN] / us for name, us in p50.items()}
    ratio = {name: p50[name] / floor for name, floor in floors.items()}
    return {
        "benchmark": "latency",
        "quick": options.quick,
        "ads": options.ads,
        "item_table_ads": options.table,
        "threads": 1,
        "peak": {"gflops": machine.flops / 1e9, "int8_gops": machine.int8_ops / 1e9, "gbytes": machine.bandwidth / 1e9},
        "ids_to_scores_ms": {name: quantiles(us / 1e3).as_dict() for name, us in found.items()},
        "floor_us": dict(floors),
        "floor_ratios": ratio,
        "speedups": speedup,
        "max_difference": dict(differences),
        "absent": {way.name: way.reason for way in absent},
        "split_speedup": speedup[SPLIT],
        "item_table_speedup": speedup[TABLE],
        "item_table_hot_speedup": speedup[HOT],
        "int8_speedup": speedup[INT8],
        "split_int8_speedup": speedup[SPLIT_INT8],
        "floor_ratio": max(ratio[SPLIT], ratio[TABLE]),
        "latency_ms": {**{n: measured.as_dict() for n, measured in latency.items()}, "light_by_key": by_key.as_dict()},
        "multiplications": {"light": multiplications(LIGHT), "booster": multiplications(BOOSTER)},
        "booster_to_light": _p50(latency["booster"].total) / _p50(latency["light"].total),
        "booster_to_light_graph": _p50(latency["booster"].graph) / _p50(latency["light"].graph),
    }


def _print(
    found: Mapping[str, npt.NDArray[np.float64]],
    floors: Mapping[str, float],
    differences: Mapping[str, float],
    absent: Sequence[Absent],
) -> None:
    plain = float(np.median(found[PLAIN]))
    rows: list[list[object]] = []
    for name, us in found.items():
        p50, floor = float(np.median(us)), floors.get(name)
        of_floor = ["-", "-"] if floor is None else [f"{floor:.0f}", f"{p50 / floor:.2f}"]
        shown = [f"{p50:.0f}", f"{np.quantile(us, 0.95):.0f}", f"{np.quantile(us, 0.99):.0f}", f"{plain / p50:.2f}"]
        rows.append([name, *shown, *of_floor, f"{differences[name]:.1e}" if name in differences else "-"])
    rows += [[way.name, way.reason, *["-"] * 6] for way in absent]
    headers = ["ids to probabilities", "p50 us", "p95", "p99", "speed-up", "floor us", "to floor", "difference"]
    report.table(headers, rows)


def _print_towers(latency: Mapping[str, Latency]) -> None:
    rows = []
    for name, measured in latency.items():
        for part, q in (
            ("raw values to scores", measured.total),
            ("graph", measured.graph),
            ("control", measured.control),
        ):
            rows.append([name, part, *_cells(q)])
    report.table(["tower", "part", *(f"p{p} ms [95 % interval]" for p in PERCENTILES)], rows)


def _p50(found: Quantiles) -> float:
    assert found.p50 is not None
    return found.p50.value


def _cells(found: Quantiles) -> list[str]:
    percentiles = (found.p50, found.p95, found.p99)
    return [f"{q.value:.3f} [{q.low:.3f}, {q.high:.3f}]" if q else "insufficient" for q in percentiles]


if __name__ == "__main__":
    main()

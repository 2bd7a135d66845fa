from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.latency import floors, interleaved
from benchmarks.latency_floor import Machine
from benchmarks.latency_tower import BOOSTER, LIGHT, multiplications
from benchmarks.latency_ways import Way
from ctrkit.errors import UserError
from ctrkit.request import Request
from ctrkit_serving.latency import Latency, Percentile, measure, quantiles, resample, sized_requests
from ctrkit_serving.scorer import Scorer
from tests.serving.tiny import CONTEXT, ITEMS, REQUEST, USER, Weights, columns_of, make_bundle


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    directory = tmp_path_factory.mktemp("latency")
    return {name: Scorer.load(make_bundle(directory / name, Weights(i)).directory) for i, name in enumerate("ab")}


def test_percentiles_are_order_statistics() -> None:
    rng = np.random.default_rng(0)
    found = quantiles(rng.permutation(np.arange(1, 1001)).astype(np.float64))
    # ranks n p -+ 1.96 sqrt(n p (1 - p)): 500 -+ 31.0, 950 -+ 13.5, 990 -+ 6.2, outwards to whole ranks
    assert found.p50 == Percentile(500.0, 469.0, 531.0)
    assert found.p95 == Percentile(950.0, 936.0, 964.0)
    assert found.p99 == Percentile(990.0, 983.0, 997.0)


@pytest.mark.parametrize(("n", "known"), [(19, 0), (20, 1), (199, 1), (200, 2), (999, 2), (1000, 3)])
def test_too_few_samples_are_insufficient(n: int, known: int) -> None:
    found = quantiles(np.ones(n))
    assert [q is not None for q in (found.p50, found.p95, found.p99)] == [i < known for i in range(3)]
    assert found.as_dict()["p99"] == (1.0 if known == 3 else None)


def test_interval_covers_the_truth_in_95_of_100_runs() -> None:
    rng = np.random.default_rng(1)
    truth, hits = -np.log(0.05), 0
    for _ in range(400):
        p95 = quantiles(rng.exponential(size=1000)).p95
        assert p95 is not None
        hits += p95.low <= truth <= p95.high
    assert 0.92 <= hits / 400 <= 0.99


class Clock:
    """Moves only when a scorer works, so that every measured time is known."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Timed:
    """A scorer that takes the given time, in nanoseconds, in each part."""

    def __init__(self, clock: Clock, name: str, encode_ns: Iterator[int], graph_ns: int, calls: list[str]) -> None:
        self.clock, self.name, self.encode_ns, self.graph_ns, self.calls = clock, name, encode_ns, graph_ns, calls
        self.ads: list[int] = []

    def encode(self, user: Any, items: Any, context: Any) -> int:
        self.clock.now += next(self.encode_ns)
        self.calls.append(self.name)
        self.ads.append(len(items))
        return 0

    def run(self, feeds: int) -> None:
        self.clock.now += self.graph_ns


def test_measures_each_part_in_random_order_after_warm_up() -> None:
    clock, calls = Clock(), list[str]()
    warm_up = [10**9] * 7
    fast = Timed(clock, "fast", iter([*warm_up, *[1_000_000] * 40]), 2_000_000, calls)
    slow = Timed(clock, "slow", iter([*warm_up, *[3_000_000] * 40]), 5_000_000, calls)
    scorers: Any = {"fast": fast, "slow": slow}
    found = measure(scorers, [REQUEST], ads=9, repeats=40, warmup=7, clock=clock)
    assert found["fast"].total.p50 == Percentile(3.0, 3.0, 3.0)
    assert found["slow"].total.p50 == Percentile(8.0, 8.0, 8.0)
    assert found["fast"].graph.p50 == Percentile(2.0, 2.0, 2.0)
    assert found["slow"].graph.p50 == Percentile(5.0, 5.0, 5.0)
    assert found["fast"].control.p50 == Percentile(0.0, 0.0, 0.0)
    assert set(fast.ads) == set(slow.ads) == {9}
    rounds = {tuple(calls[i : i + 2]) for i in range(0, len(calls), 2)}
    assert rounds == {("fast", "slow"), ("slow", "fast")}
    assert (found["fast"].samples, found["fast"].ads) == (40, 9)


def test_a_stall_is_seen() -> None:
    clock = Clock()
    stalled: Any = {"s": Timed(clock, "s", iter([1_000_000] * 990 + [100_000_000] * 10), 0, [])}
    found = measure(stalled, [REQUEST], ads=1, repeats=1000, warmup=0, clock=clock)["s"].total
    assert found.p50 == Percentile(1.0, 1.0, 1.0)
    assert found.p99 is not None
    assert found.p99.high == 100.0


def test_measures_real_scorers(scorers: dict[str, Scorer]) -> None:
    by_column = Request(USER, columns_of(ITEMS), CONTEXT)
    found = measure(scorers, [REQUEST, by_column, Request(USER, [], CONTEXT)], ads=50, repeats=30, warmup=2)
    assert found.keys() == {"a", "b"}
    for latency in found.values():
        assert latency.total.p50 is not None
        assert latency.graph.p50 is not None
        assert latency.control.p50 is not None
        assert latency.control.p50.value > 0
        assert latency.total.p50.value > latency.graph.p50.value > 0
    assert scorers["a"].counts["item"].values == 32 * 50


def test_as_dict(scorers: dict[str, Scorer]) -> None:
    quantity = quantiles(np.full(200, 1.5))
    content = Latency(400, 200, quantity, quantity, quantity).as_dict()
    percentiles = {
        "p50": 1.5, "p95": 1.5, "p99": None, "interval": {"p50": [1.5, 1.5], "p95": [1.5, 1.5], "p99": None},
    }  # fmt: skip
    assert content == {"ads": 400, "samples": 200, **percentiles, "graph_ms": percentiles, "control_ms": percentiles}


@pytest.mark.parametrize("ads", [1, 2, 4, 11])
def test_resamples_rows_and_columns_alike(ads: int) -> None:
    contexts = [{"hour": hour} for hour in range(4)]
    rows = resample(Request(USER, ITEMS, contexts), ads, np.random.default_rng(5))
    columns = resample(Request(USER, columns_of(ITEMS), contexts), ads, np.random.default_rng(5))
    assert isinstance(rows.items, list)
    assert len(rows.items) == rows.num_ads == columns.num_ads == ads
    assert columns.items == columns_of(rows.items)
    assert isinstance(rows.context, list)
    assert [ITEMS.index(dict(item)) for item in rows.items] == [row["hour"] for row in rows.context]
    if ads <= 4:
        assert len({row["hour"] for row in rows.context}) == ads
    arrays = {name: np.array(column, object) for name, column in columns_of(ITEMS).items() if name != "tags"}
    drawn = resample(Request(USER, arrays, CONTEXT), ads, np.random.default_rng(5)).items
    assert isinstance(drawn, dict)
    assert drawn["bid"].tolist() == [item["bid"] for item in rows.items]


def test_refuses_nothing_to_measure(scorers: dict[str, Scorer]) -> None:
    for requests in ([], [Request(USER, [], CONTEXT)]):
        with pytest.raises(UserError, match="latency needs a request with an ad"):
            measure(scorers, requests)
    with pytest.raises(UserError, match="latency needs a scorer"):
        measure({}, [REQUEST])
    with pytest.raises(UserError, match="user: no value for feature 'age'"):
        measure(scorers, [Request({}, ITEMS, CONTEXT)], ads=1, repeats=1)


def test_sizes_of_a_range_and_of_the_log() -> None:
    rng = np.random.default_rng(0)
    two = Request(USER, ITEMS[:2], CONTEXT)
    sizes = [request.num_ads for request in sized_requests([REQUEST, two], (3, 9), rng)]
    assert len(sizes) == 100
    assert set(sizes) == set(range(3, 10))
    assert [request.num_ads for request in sized_requests([REQUEST, two], None, rng)] == [len(ITEMS), 2]
    with pytest.raises(UserError, match="at least one ad"):
        sized_requests([REQUEST], (5, 4), rng)


def test_benchmark_has_the_towers_of_the_paper() -> None:
    assert multiplications(LIGHT) == 576 * 200 + 200 * 80 + 80
    assert multiplications(BOOSTER) == 576 * 720 + 720 * 360 + 360 * 240 + 240 * 180 + 180 * 90 + 90


def test_floors_of_the_benchmark_by_hand() -> None:
    machine = Machine(flops=200e9, int8_ops=800e9, bandwidth=10e9)
    found = floors(machine, 400, 200_000)
    hidden, last, user = 2 * 400 * 200 * 80, 2 * 400 * 80, 2 * 416 * 200
    assert found["plain export, ONNX Runtime"] == pytest.approx(2 * 400 * multiplications(LIGHT) / 200e9)
    assert found["ctrkit, split"] == pytest.approx((user + 2 * 400 * 160 * 200 + hidden + last) / 200e9)
    assert found["ctrkit, item table"] == pytest.approx((user + hidden + last) / 200e9)
    int8 = (user + last) / 200e9 + hidden / 800e9
    assert found["ctrkit, item table, int8"] == pytest.approx(int8)
    slow = Machine(flops=200e9, int8_ops=800e9, bandwidth=1e9)
    assert floors(slow, 400, 200_000)["ctrkit, item table, int8"] == pytest.approx(400 * 200 / 1e9)  # to read
    assert floors(slow, 400, 100)["ctrkit, item table, int8"] == pytest.approx(int8)


def test_bursts_of_the_benchmark_time_every_way_on_every_request() -> None:
    clock, calls = Clock(), []

    def way(name: str, nanoseconds: int) -> Way:
        def call(request: Any) -> Any:
            calls.append((name, request))
            clock.now += nanoseconds

        return Way(name, call)

    requests: Any = list(range(7))
    found = interleaved([way("a", 1000), way("b", 5000)], requests, 50, clock)
    assert {name: set(us.tolist()) for name, us in found.items()} == {"a": {1.0}, "b": {5.0}}
    assert {name: len(us) for name, us in found.items()} == {"a": 50, "b": 50}
    timed = [request for name, request in calls if name == "a"][300:]
    assert timed == [step % 7 for step in range(50)] == [request for name, request in calls if name == "b"][300:]

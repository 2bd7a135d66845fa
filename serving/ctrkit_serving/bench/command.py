"""`ctrkit bench`: its options, and what it does."""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrkit.errors import UserError

if TYPE_CHECKING:
    from ctrkit.request import Request
    from ctrkit_serving.latency import Ads
    from ctrkit_serving.scorer import Scorer

SHARES = (0.2, 0.4, 0.6, 0.8, 0.9)
"""Loads of the curve, as shares of the capacity."""
LIMIT_MS = 5.0
_STEPS = 5
_CONNECTIONS = 32
_Result = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ctrkit bench`."""
    parser.add_argument(
        "bundle", type=Path, nargs="+", help="bundle directories; if one has several widths, each is measured"
    )
    parser.add_argument("--requests", type=Path, help="file of requests (default: the bundle's golden requests)")
    sizes = "ads a request: a number, a range (100-1000), or log for as many as the requests have (default: 400)"
    parser.add_argument("--ads", type=_ads, default="400", help=sizes)
    parser.add_argument(
        "--precision", choices=("exact", "int8"), default="exact", help="which graphs to measure (default: exact)"
    )
    parser.add_argument("--repeats", type=int, default=2000, help="timed requests a bundle (default: 2000)")
    seconds = "seconds at each load of the curve of latency over load; 0: no curve (default: 2)"
    parser.add_argument("--seconds", type=float, default=2.0, metavar="X", help=seconds)
    parser.add_argument("--server", metavar="URL", help="a running server's HTTP address: measure it too, with "
                        "requests of the first bundle, which it must serve")  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="the model's name on the server (default: the bundle's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, and its curve as FILE.svg")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="an earlier --out: fail if this result is slower")
    ratio = "how many times as slow is still allowed, by the machine's speed in each run (default: 1.2)"
    parser.add_argument("--max-ratio", type=float, default=1.2, metavar="X", help=ratio)


def bench_command(options: argparse.Namespace) -> _Result:
    """Measure, write, compare with the baseline.

    Raises:
        UserError: an option, bundle or request is not fit, or the result is slower than the baseline allows.
    """
    ads: Ads = options.ads
    low, high = ads if isinstance(ads, tuple) else (1 if ads is None else ads,) * 2
    if not 1 <= low <= high <= 10**6:
        raise UserError(f"--ads {f'{low}-{high}' if isinstance(ads, tuple) else low}: give 1 to 1,000,000")
    if not 1 <= options.repeats <= 10**7:
        raise UserError(f"--repeats {options.repeats}: give 1 to 10,000,000")
    if not 0 <= options.seconds <= 3600:
        raise UserError(f"--seconds {options.seconds:g}: give 0 to 3600")
    baseline = None if options.baseline is None else _read(options.baseline)
    from ctrkit.request import read_requests
    from ctrkit_serving.bench.in_process import see_a_stall
    from ctrkit_serving.bench.machine import control, serving_environment
    from ctrkit_serving.latency import measure, sized_requests
    from ctrkit_serving.scorer import Scorer

    machine = serving_environment()
    scorers = {}
    for path in options.bundle:
        scorers[str(path)] = scorer = Scorer.load(path, precision=options.precision)
        scorers |= {f"{path} width {width}": scorer.at(width) for width in scorer.widths[1:]}
    first = next(iter(scorers.values()))
    golden = list(first.bundle.golden.requests)
    requests = list(islice(read_requests(options.requests), 1000)) if options.requests else golden
    sized = sized_requests(requests, ads, np.random.default_rng(0))
    served = None if options.server is None else _served(options, first, sized)
    found: _Result = {"machine": machine, "self_test": see_a_stall(), "precision": options.precision}
    latency = measure(scorers, requests, ads=ads, repeats=options.repeats)
    found["latency_ms"] = {name: one.as_dict() for name, one in latency.items()}
    found["ads"] = _spread([request.num_ads for request in sized])
    curves: dict[str, _Result] = {}
    if options.seconds:
        curves = {name: _in_process(scorer, sized, options.seconds) for name, scorer in scorers.items()}
    if served is not None:
        curves[options.server] = _over_http(options, *served)
    found["curves"] = curves
    found["control_after_ms"] = control().as_dict()
    if options.out is not None:
        _write(options.out, found)
    if baseline is not None:
        found["baseline"] = compare(found, baseline, options.max_ratio)
    return {**found, "text": text(found)}


def _ads(given: str) -> "Ads":
    if given == "log":
        return None
    low, _, high = given.partition("-")
    try:
        return (int(low), int(high)) if high else int(low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given}: give a number, a range as 100-1000, or log") from None


def _spread(sizes: Sequence[int]) -> dict[str, float]:
    return {"min": min(sizes), "p50": float(np.median(sizes)), "max": max(sizes)}


def _in_process(scorer: "Scorer", requests: Sequence["Request"], seconds: float) -> _Result:
    """The curve of one scorer, from raw values to scores."""
    from ctrkit_serving.bench.in_process import closed_loop, open_loop

    def score(i: int) -> None:
        scorer.score_request(requests[i % len(requests)])

    back_to_back = closed_loop(score, seconds=min(seconds, 1.0))
    return _curve(partial(open_loop, score), len(back_to_back.status) / back_to_back.seconds, seconds)


def _served(
    options: argparse.Namespace, scorer: "Scorer", requests: Sequence["Request"]
) -> tuple[tuple[str, int], list[bytes], float]:
    """Place of a server that has the same bundle, requests with encoded features in binary tensors, and the largest
    difference of its scores from the bundle's: seen before anything is measured.
    """
    from ctrkit_serving.bench.over_http import Server

    server = Server.parse(options.server, options.model or scorer.bundle.manifest.name)
    inputs = [scorer.encode(request.user, request.items, request.context) for request in requests]
    raw = [server.request(x, fingerprint=scorer.bundle.manifest.encoding_fingerprint) for x in inputs]
    found = [scorer.run(x) for x in inputs[:20]]
    told = [server.scores(one, len(scores)) for one, scores in zip(raw, found, strict=False)]
    difference = float(np.abs(np.concatenate(told) - np.concatenate(found)).max(initial=0.0))  # NaN if one is
    if not difference <= 1e-6:
        raise UserError(f"--server {options.server}: its scores differ by {difference:.2g} from the bundle's; serve it")
    return server.place, raw, difference


def _over_http(options: argparse.Namespace, place: tuple[str, int], raw: list[bytes], difference: float) -> _Result:
    """The curve of such a server."""
    from ctrkit_serving.bench.http_load import closed_loop, open_loop

    seconds = options.seconds or 2.0
    closed_loop(place, raw, connections=8, seconds=min(1.0, seconds))  # warm
    closed = closed_loop(place, raw, connections=8, seconds=seconds)
    capacity = closed.status.count(200) / closed.seconds
    if not capacity:
        raise UserError(f"--server {options.server}: answers no request of a closed loop of 8 connections")
    load = partial(open_loop, place, raw, connections=_CONNECTIONS)
    return {"score_difference": difference, **_curve(load, capacity, seconds)}


def _curve(load: Any, capacity: float, seconds: float) -> _Result:
    """Points at shares of the capacity, and the most that p99 allows."""
    from ctrkit_serving.bench.answers import most_within

    points = [{"share": share, **load(rate=share * capacity, seconds=seconds).as_dict()} for share in SHARES]
    most = most_within(lambda rate, seed: load(rate=rate, seconds=seconds, seed=seed), capacity, LIMIT_MS, _STEPS)
    return {"capacity_rps": capacity, "rps_at_p99_5_ms": most, "points": points}


def compare(found: Mapping[str, Any], baseline: Mapping[str, Any], max_ratio: float) -> list[_Result]:
    """Percentiles of each bundle over those of the baseline's, bundle by bundle in their order.

    Both are divided by the control kernel's median of their run, so that a slower machine is no slower model. The low
    end of the interval now is held against the high end then: noise alone does not fail.

    Raises:
        UserError: one is slower by more than `max_ratio`, or the baseline has other bundles.
    """
    now, then = list(found["latency_ms"].items()), list(baseline["latency_ms"].values())
    if len(now) != len(then):
        raise UserError(f"--baseline has {len(then)} bundles, this run {len(now)}")
    ratios: list[_Result] = []
    for (name, one), other in zip(now, then, strict=True):
        machine = one["control_ms"]["p50"] / other["control_ms"]["p50"]
        for p in ("p50", "p95", "p99"):
            low, high = one["interval"][p], other["interval"][p]
            if low is not None and high is not None:
                ratios.append(
                    {"bundle": name, "percentile": p, "ratio": low[0] / high[1] / machine, "machine": machine}
                )
    slower = [r for r in ratios if r["ratio"] > max_ratio]
    if slower:
        worst = max(slower, key=lambda r: float(r["ratio"]))
        raise UserError(
            f"{worst['bundle']}: {worst['percentile']} is at least {worst['ratio']:.2f} times the baseline's, more "
            f"than --max-ratio {max_ratio:g}"
        )
    return ratios


def _read(path: Path) -> _Result:
    try:
        found: _Result = json.loads(path.read_bytes())
        for one in found["latency_ms"].values():
            one["interval"]["p50"], one["control_ms"]["p50"] / 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--baseline {path}: no result of ctrkit bench --out ({error})") from error
    return found


def _write(path: Path, found: _Result) -> None:
    from ctrkit_serving.bench.figure import curve_svg

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    curves = {Path(name).name if "//" not in name else name: c["points"] for name, c in found["curves"].items()}
    if curves:
        title = f"{found['ads']['p50']:g} ads a request, {found['machine']['cpu']}"
        Path(f"{path}.svg").write_text(curve_svg(title, curves), encoding="utf-8")


def text(found: Mapping[str, Any]) -> str:
    """The result for people."""
    lines = [f"{found['ads']['p50']:g} ads a request, one thread, milliseconds"]
    lines += [f"{name}: {_percentiles(one)}" for name, one in found["latency_ms"].items()]
    lines += [f"control kernel: {_percentiles(next(iter(found['latency_ms'].values()))['control_ms'])}"]
    for name, curve in found["curves"].items():
        lines.append(f"{name} under load: at most {curve['capacity_rps']:,.0f} requests a second; with a p99 of "
                     f"{LIMIT_MS:g} ms {curve['rps_at_p99_5_ms']:,.0f}")  # fmt: skip
        for point in curve["points"]:
            since = (
                f"{_percentiles(point['latency_ms'])}, of which scoring {_percentiles(point['service_ms'], ('p50',))}"
            )
            refused = (
                f"; shed {point['shed']:.1%}, failed {point['failed']}" if point["shed"] or point["failed"] else ""
            )
            lines.append(f"  {point['offered_rps']:,.0f} a second: {since}{refused}")
    return "\n".join(lines)


def _percentiles(one: Mapping[str, Any], which: Sequence[str] = ("p50", "p95", "p99")) -> str:
    return "  ".join(f"{p} {one[p]:.3f}" if one[p] else f"{p} insufficient" for p in which)

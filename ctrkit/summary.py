"""The figures of a run: what they cost to serve, the table for people, `summary.json` for machines."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrkit.atomic import write_json
from ctrkit.config.recipe import BEST, Recipe
from ctrkit.metrics import Coverage
from ctrkit.request import Request, read_requests
from ctrkit_serving.bench.machine import environment
from ctrkit_serving.latency import measure
from ctrkit_serving.scorer import Scorer

if TYPE_CHECKING:
    from ctrkit.run import Run


_FEW_USERS = 30
"""Users with both classes below which an interval over users, as every GAUC is shown with, tells little."""


def measure_bundles(
    bundles: Mapping[str, Path], requests: Sequence[Request] | None = None, *, ads: int = 400, repeats: int = 2000
) -> dict[str, dict[str, Any]]:
    """p50, p95 and p99 in milliseconds of bundles side by side in one run, one thread, requests of `ads` ads.

    Args:
        bundles: by name.
        requests: raw requests, resampled to `ads` ads; the golden requests of the first bundle if None.
        ads: ads a request.
        repeats: timed requests of each bundle.
    """
    scorers = {name: Scorer.load(path) for name, path in bundles.items()}
    if requests is None:
        requests = next(iter(scorers.values())).bundle.golden.requests
    measured = measure(scorers, requests, ads=ads, repeats=repeats)
    return {name: latency.as_dict() for name, latency in measured.items()}


def summarize(run: "Run") -> dict[str, Any]:
    """Everything that the run has to show, measured now where it is a latency; written to `summary.json`.

    `latency_ms.light` is of the bundle that goes online, whatever its model; `latency_ms.booster` of the costliest
    network, with the same item table, in float32, if one costs more. Both take the exact graphs; `networks` names those
    of the results that cost as much.
    """
    evaluation = run.evaluation
    bundle, booster = run.bundle, run.booster_bundle
    bundles = {"light": bundle.directory, **({"booster": booster.directory} if booster else {})}
    bench = run.recipe.bench
    run.say(f"bench: {', '.join(bundles)}, {bench.ads} ads a request, one thread")
    requests = list(islice(read_requests(run.log.requests), 200))
    latency = measure_bundles(bundles, requests, ads=bench.ads, repeats=bench.repeats)
    for timed, of in (("light", bundle), ("booster", booster)):
        if of:
            latency[timed]["multiplications"] = of.manifest.multiplications
            latency[timed]["networks"] = same_cost(run.recipe, evaluation["networks"], of.manifest.name)
    summary = {
        "name": run.recipe.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "rows": {part: run.log.rows(part) for part in ("train", "valid", "test")},
        "models": evaluation["networks"],
        "gap_closed": evaluation["gap_closed"],
        **cheaper_choice(run),
        "latency_ms": latency,
        "parity_max_abs_diff": bundle.manifest.parity_max_abs_diff,
        "bundle": str(bundle.directory),
    }
    write_json(run.directory / "summary.json", summary)
    return summary


def same_cost(recipe: Recipe, networks: Mapping[str, Mapping[str, Any]], timed: str) -> list[str]:
    """Names of the networks that cost what one of them does to serve: their towers have its kind and its layers."""
    towers = {  # without what only training knows
        name: recipe.towers[network.tower].model_dump(exclude={"dropout", "lr", "weight_decay"})
        for name, network in recipe.networks().items()
        if network.tower is not None
    }

    def cost(name: str) -> tuple[Any, int]:  # a slimmable tower has one configuration and many widths
        return towers.get(name, name), networks[name]["multiplications"]

    return [name for name in networks if cost(name) == cost(timed)]


def cheaper_choice(run: "Run") -> dict[str, Any]:
    """The model that costs no more than the exported one and is better on validation by the same metric, if any."""
    exported = run.export_model
    best, metric = run.best_on_validation(exported), run.train(exported)["monitor"]
    better = None if best == exported else best
    chosen = run.recipe.export_model == BEST
    return {"exported": exported, "monitor": metric, "better_on_validation": better, "chosen_by_validation": chosen}


def _machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found = environment()
    return {**{key: found[key] for key in ("cpu", "cores", "python")}, "system": found["platform"]}


def table(summary: Mapping[str, Any]) -> str:
    """The summary as a table for people.

    Latency stands beside every network with the layers of one that was measured: it does not depend on the weights.
    """
    by_network = {name: timed for timed in summary["latency_ms"].values() for name in timed["networks"]}
    header = ["network", "GAUC", "95 %", "AUC", "log loss", "NE", "PCOC", "mult.", "p50 ms", "p99 ms"]
    rows = [header]
    for name, metrics in summary["models"].items():
        timed = by_network.get(name, {})
        rows.append(
            [
                name,
                _number(metrics["gauc"], 4),
                _interval(metrics["gauc_interval"]),
                *(_number(metrics[key], 4) for key in ("auc", "log_loss", "normalized_entropy", "pcoc")),
                f"{metrics['multiplications']:,}" if metrics["multiplications"] is not None else "-",
                _number(timed.get("p50"), 2),
                _number(timed.get("p99"), 2),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += _few_text(summary["models"])
    if summary["gap_closed"]:
        lines.append(f"\n{_gap(summary['gap_closed'])}")
    if summary.get("chosen_by_validation"):
        lines.append(
            f"\n{summary['exported']} goes online: of what costs least to serve, it has the best "
            f"{summary['monitor']} on validation."
        )
    if summary.get("better_on_validation"):
        better, metric = summary["better_on_validation"], summary["monitor"]
        lines.append(
            f"{summary['exported']} goes online; {better} costs no more and has the better {metric} on validation: "
            f"--set export.model={better} ships it."
        )
    return "\n".join(lines)


def _few_text(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Says so if GAUC rests on too little to tell networks apart."""
    kept = next(iter(models.values())).get("coverage")
    found = Coverage() if kept is None else Coverage(**kept)
    if kept is not None and (found.groups_kept < _FEW_USERS or found.is_too_little):
        yield (
            f"\nGAUC rests on little: {found.groups_kept:,} of {found.groups_kept + found.groups_left_out:,} users "
            f"have clicks and others, in {found.impressions_kept:,} rows with {found.clicks_kept:,} clicks. A "
            "difference may be chance: see `ctrkit compare`."
        )


def _gap(closed: Mapping[str, Mapping[str, float | None] | None]) -> str:
    shares = [
        f"{name} {share['value']:.0%} [{_percent(share['low'])}, {_percent(share['high'])}]"
        for name, share in closed.items()
        if share is not None
    ]
    if not shares:
        return "No gap in GAUC to close: no booster is better than its light tower alone by its interval over users."
    return (
        f"Of the gap in GAUC between light and booster alone, these close: {', '.join(shares)}. Intervals are over "
        "users; this is one run, and what another seed would change is not in them."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

"""How long networks of a run take to serve: several side by side, or a bundle in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ctrkit.atomic import temporary_directory
from ctrkit.errors import UserError
from ctrkit.export.export import export_bundle
from ctrkit.nn.network import Network
from ctrkit.request import read_requests
from ctrkit.run import Run
from ctrkit.slimming.budget import Budget
from ctrkit_serving.latency import Latency, measure
from ctrkit_serving.scorer import Scorer

_BUSY = 1.3
"""Of the control kernel's p95 over its p50: 1.05 to 1.1 on a quiet machine."""


def side_by_side(run: Run, networks: Mapping[str, Network], ads: int, repeats: int) -> dict[str, Latency]:
    """What a request takes with each of some networks, exported with the item table of [export], in one run.

    A machine that was busy with something else is told.
    """
    requests = list(islice(read_requests(run.log.requests), 200))
    rows = list(islice(run.loader("valid", 1024).epoch(), 1))
    with temporary_directory(made(run.directory / "slim"), "measured") as temporary:
        scorers = {}
        for name, network in networks.items():
            place = temporary / name
            export_bundle(
                network,
                run.log.encoding.serving(),
                place,
                name=name,
                held_out=rows,
                requests=requests[:8],
                rewrites=run.item_table,
            )
            scorers[name] = Scorer.load(place)
        found = measure(scorers, requests, ads=ads, repeats=repeats)
    if any(busy(latency.control.as_dict()) for latency in found.values()):
        run.say(f"  warning: {BUSY}")
    return found


BUSY = (
    "the machine is busy: fixed work beside the towers took unsteady time, so these latencies are too high; measure "
    "again when nothing else runs"
)


def busy(control: Mapping[str, float | None]) -> bool:
    """Whether the control kernel's percentiles say that something else ran."""
    p50, p95 = control["p50"], control["p95"]
    return p50 is not None and p95 is not None and p95 > _BUSY * p50


def measured_again(bundle: Path, requests: Path, budget: Budget) -> dict[str, Any]:
    """The percentile of a budget, with its interval, in a new process that has only the bundle.

    `busy` says whether something else ran.
    """
    command = [
        sys.executable,
        "-m",
        "ctrkit.cli",
        "bench",
        str(bundle),
        "--requests",
        str(requests),
        "--json",
        "--seconds",
        "0",
    ]
    command += ["--ads", str(budget.ads), "--repeats", str(budget.repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{bundle}: cannot be measured: {done.stdout.strip() or done.stderr.strip()}")
    latency = json.loads(done.stdout.splitlines()[-1])["latency_ms"][str(bundle)]
    low, high = latency["interval"][budget.figure]
    return {"value": latency[budget.figure], "low": low, "high": high, "busy": busy(latency["control_ms"])}


def made(directory: Path) -> Path:
    """A directory, made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    return directory

"""kill -9 at random moments of a whole run, from preparing to export: what the same command makes of it afterwards.

    python -m benchmarks.kills [--kills 20] [--quick] [--out FILE]

`ctrkit run` on the demo's recipe, smaller, is left alone once; then it is started anew for each kill, killed after a
random share of the time that it took, and the same command finishes it. The weights of every model, the rows that were
trained on, the metrics and the bundle's files are to be those of the undisturbed run, bit for bit.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import arguments, emit, table

SETTINGS = (
    "data.synthetic.rows=40000",
    "data.row_group_rows=5000",
    "train.shuffle_rows=20000",
    "train.evaluations_per_epoch=4",
    "towers.booster.dropout=0.1",
    "bench.repeats=200",
)


def main() -> None:
    """Kill, finish, compare, report."""
    parser = arguments("kill -9 at random moments of a run.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recipe", type=Path, default=Path("pipelines/demo.toml"))
    options = parser.parse_args()
    kills = 3 if options.quick else options.kills
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        finish(options, Path(folder) / "undisturbed")
        seconds = time.perf_counter() - start
        expected = outcome(Path(folder) / "undisturbed")
        rows = []
        for number in range(kills):
            place = Path(folder) / f"killed-{number}"
            at = seconds * (number + chance.random()) / kills
            done = kill(options, place, at)
            finish(options, place)
            same = {name: value == expected[name] for name, value in outcome(place).items()}
            rows.append({"seconds": at, "done": done, **same})
            print(f"{number + 1} of {kills}: killed after {at:.1f} s, {done}: {same}", file=sys.stderr, flush=True)
    table(
        ("killed after s", "it had", *expected),
        [(f"{r['seconds']:.1f}", r["done"], *("same" if r[n] else "OTHER" for n in expected)) for r in rows],
    )
    alike = sum(all(r[name] for name in expected) for r in rows)
    print(f"{alike} of {kills} as if undisturbed")
    emit(
        {
            "benchmark": "kills",
            "quick": options.quick,
            "kills": kills,
            "as_undisturbed": alike,
            "undisturbed_s": seconds,
            "rows": rows,
        },
        options.out,
    )


def command(options: argparse.Namespace, place: Path) -> list[str]:
    """The run."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [sys.executable, "-m", "ctrkit.cli", "run", str(options.recipe), "--out", str(place), "--quiet", *settings]


def environment() -> dict[str, str]:
    """One thread: sums in another order would be other bits."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(options: argparse.Namespace, place: Path) -> None:
    """Run to the end."""
    done = subprocess.run(command(options, place), capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(done.stderr)


def kill(options: argparse.Namespace, place: Path, seconds: float) -> str:
    """Start, kill after some seconds; how far it had come."""
    with subprocess.Popen(
        command(options, place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    if not place.exists():
        return "nothing"
    stages = (
        ("summary.json", "all"),
        ("bundle/manifest.json", "bundle"),
        ("evaluation.json", "evaluation"),
        ("models/rocket/checkpoints", "rocket begun"),
        ("models/booster/checkpoints", "booster begun"),
        ("models/light/checkpoints", "light begun"),
        ("data/manifest.json", "prepared log"),
    )
    return next((name for path, name in stages if (place / path).exists()), "log begun")


def outcome(place: Path) -> dict[str, Any]:
    """What is compared, by name."""
    models = sorted(path.parent for path in (place / "models").glob("*/result.json"))
    results = [json.loads((model / "result.json").read_text()) for model in models]
    histories = [[json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()] for model in models]
    timed = {"seconds"}
    evaluation = json.loads((place / "evaluation.json").read_text())
    files = sorted(path for path in (place / "bundle").rglob("*") if path.is_file() and path.name != "manifest.json")
    return {
        "weights": [result["weights"] for result in results],
        "rows and losses": [[{k: v for k, v in line.items() if k not in timed} for line in h] for h in histories],
        "metrics": evaluation["networks"],
        "bundle": {str(f.relative_to(place)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
    }


if __name__ == "__main__":
    main()

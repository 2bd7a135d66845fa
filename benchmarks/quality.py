"""Quality of a recipe's models over seeds: GAUC, AUC and log loss on the test part, medians and ranges.

    python -m benchmarks.quality pipelines/movielens_1m.toml --set data.path=... --seeds 3 --out FILE

Each seed is a run of its own in RUNS/NAME-quality/seedK; the log is prepared once, and a killed benchmark goes on where
it stopped. --quick: two seeds of one epoch in RUNS/NAME-quick, of a small log where the recipe's is synthetic, as the
default recipe's is. --reference trains by plain means instead (`benchmarks.reference`), fp32 and slow.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.reference import reference
from benchmarks.report import arguments, emit, recipe_settings, table
from ctrkit.config.recipe import load_recipe
from ctrkit.errors import UserError
from ctrkit.run import Run

METRICS = ("gauc", "auc", "log_loss", "pcoc")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe for each seed and report."""
    parser = arguments("Quality of a recipe's models over seeds: GAUC, AUC and log loss on the test part.")
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("pipelines/demo.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these models of the recipe")
    parser.add_argument("--reference", action="store_true", help="train by torch's dense Adam in fp32")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs lie")
    options = parser.parse_args(argv)
    try:
        with reference() if options.reference else nullcontext():
            result = measure(options)
    except UserError as error:
        raise SystemExit(str(error)) from error
    which = {"benchmark": "quality", "quick": options.quick, "reference": options.reference}
    emit({**which, **result}, options.out)


def settings(options: argparse.Namespace) -> list[str]:
    """What is set in the recipe, by the caller, --reference and --quick."""
    chosen = [*options.set, *(["train.precision=fp32"] if options.reference else [])]
    return recipe_settings(options.recipe, chosen, quick=options.quick)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate every model for every seed; prints the table, returns what the JSON line holds."""
    overrides = settings(options)
    seeds = range(2 if options.quick else options.seeds)
    evaluations = []
    name = load_recipe(options.recipe, overrides).name
    place = (
        options.runs / f"{name}-{'quick' if options.quick else 'quality'}{'-reference' if options.reference else ''}"
    )
    for seed in seeds:
        recipe = load_recipe(options.recipe, [*overrides, f"train.seed={seed}"])
        models = {name: config for name, config in recipe.models.items() if name in (options.models or recipe.models)}
        if not models:
            raise SystemExit(f"--models {' '.join(options.models)}: the recipe has {', '.join(recipe.models)}")
        run = Run(
            recipe.model_copy(update={"models": models}),
            place / f"seed{seed}",
            data_directory=place / "data",
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        evaluations.append(run.evaluation)
    networks = {
        network: {metric: _spread([e["networks"][network][metric] for e in evaluations]) for metric in METRICS}
        for network in evaluations[0]["networks"]
    }
    table(
        ["network", "test GAUC median [min-max]", "AUC", "log loss", "PCOC", "multiplications"],
        [_row(n, m, evaluations[0]["networks"][n]["multiplications"]) for n, m in networks.items()],
    )
    rows = {part: run.log.rows(part) for part in ("train", "valid", "test")}
    gaps = [e["gap_closed"] for e in evaluations]
    return {
        "recipe": name,
        "set": [o for o in overrides if not o.startswith("data.path=")],
        "seeds": list(seeds),
        "rows": rows,
        "networks": networks,
        "gap_closed": gaps,
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    if not known:
        return {"median": None, "min": None, "max": None, "values": list(values)}
    return {"median": statistics.median(known), "min": min(known), "max": max(known), "values": list(values)}


def _row(name: str, metrics: Mapping[str, Mapping[str, Any]], multiplications: int | None) -> list[str]:
    def shown(metric: str) -> str:
        value = metrics[metric]["median"]
        return "-" if value is None else f"{value:.4f}"

    low, high = metrics["gauc"]["min"], metrics["gauc"]["max"]
    spread = "" if low is None else f" [{low:.4f}-{high:.4f}]"
    cost = "-" if multiplications is None else f"{multiplications:,}"
    return [name, shown("gauc") + spread, shown("auc"), shown("log_loss"), shown("pcoc"), cost]


if __name__ == "__main__":
    main()

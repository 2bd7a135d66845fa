"""What the learning methods give: methods x seeds on a log, each tuned alike on validation, then tested once.

    python -m benchmarks.effect pipelines/trivago.toml --set data.path=... --seeds 5 --out FILE

Methods and the settings that they choose from: benchmarks/effect/NAME.toml (`benchmarks.effect_methods`). Every method
has as many trials as the others; a trial is one setting trained with each of the first --tune-seeds seeds, and the best
mean on the validation part is taken. Then the chosen settings are trained with all seeds, and the test part is read
once. Gains are differences in GAUC of the networks that ship to the light tower alone, with intervals over users and
seeds (`ctrkit.metrics.bootstrap`). Each seed is a run of its own in RUNS/NAME-effect/seedK; what is done is not done
again. --workers trains several seeds at once. --quick: two seeds of one epoch of a small synthetic log.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.effect_methods import Experiment
from benchmarks.report import arguments, emit, table
from ctrkit.config import as_dict, load_recipe, network_name
from ctrkit.errors import UserError
from ctrkit.evaluation.runs import Columns, Impressions, ModelRuns
from ctrkit.metrics import METRICS, bootstrap_intervals, paired_bootstrap, share_of_gap
from ctrkit.metrics.bootstrap import Difference, Interval
from ctrkit.run import Run

HERE = Path(__file__).parent / "effect"
QUICK = ["train.epochs=1", "data.synthetic.rows=60000"]


def main(argv: Sequence[str] | None = None) -> None:
    """Tune, train, test and report."""
    parser = arguments("Learning methods on a log, tuned alike on validation: gains in GAUC with intervals.")
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("pipelines/demo.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--methods", type=Path, metavar="FILE", help="default: benchmarks/effect/NAME.toml")
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune-seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="seeds at once, a thread each")
    parser.add_argument("--tune-only", action="store_true", help="stop before the test part")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs lie")
    options = parser.parse_args(argv)
    try:
        name = load_recipe(options.recipe, options.set).name
        overrides = [*options.set, *(QUICK if options.quick else [])]
        methods = options.methods or HERE / f"{name}.toml"
        experiment = Experiment.load(options.recipe, methods, overrides, options.only)
        place = options.runs / f"{name}-{'effect-quick' if options.quick else 'effect'}"
        result = Bench(experiment, place, options).result()
    except UserError as error:
        raise SystemExit(str(error)) from error
    if result is not None:
        emit({"benchmark": "effect", "quick": options.quick, "recipe": name, **result}, options.out)


Task = tuple[list[tuple[str, int]], int]
"""Trials to train, and the seed."""


class Bench:
    """One experiment in a directory of its own."""

    def __init__(self, experiment: Experiment, place: Path, options: argparse.Namespace) -> None:
        self.experiment, self.place, self.workers = experiment, place, options.workers
        self.seeds = list(range(min(2, options.seeds) if options.quick else options.seeds))
        self.tune_seeds = self.seeds[: options.tune_seeds]
        self.tune_only: bool = options.tune_only
        self.tuning: dict[str, list[dict[str, Any]]] = {}

    def result(self) -> dict[str, Any] | None:
        """What the JSON line holds; None before the test part is read."""
        run = open_run(self.experiment, [(self.experiment.baseline, 0)], self.seeds[0], self.place)
        rows = {part: run.log.rows(part) for part in ("train", "valid", "test")}  # prepared before several would
        del run
        for method in self.experiment.methods:
            self._tune(method)
        print("validation, mean over the tuning seeds; the best setting of each method is taken")
        table(
            ["method", "settings", f"{len(self.tune_seeds)} seed(s)"],
            [[method, _shown(t["settings"]), f"{t['mean']:.5f}"] for method, of in self.tuning.items() for t in of],
        )
        if self.tune_only:
            return None
        chosen = list(self.experiment.chosen.items())
        trained = self._run([(chosen, seed) for seed in self.seeds], evaluate=True)
        return {"rows": rows, "seeds": self.seeds, **self._report(trained)}

    def _tune(self, method: str) -> None:
        """Train a method's trials and choose."""
        experiment, trials = self.experiment, self.experiment.trials(method)
        found: list[dict[str, Any]] = [{"settings": dict(settings), "values": []} for settings in trials]
        each = [(method, trial) for trial in range(len(trials))]
        metric = ""
        for results in self._run([(each, seed) for seed in self.tune_seeds], evaluate=False):
            for trial in range(len(trials)):
                result = results["results"][experiment.model(method, trial)]
                found[trial]["values"].append(result["best"])
                metric = result["monitor"]
        for trial_found in found:
            trial_found["mean"] = statistics.mean(trial_found["values"])
        sign = 1 if METRICS[metric] else -1
        experiment.chosen[method] = max(range(len(trials)), key=lambda trial: sign * found[trial]["mean"])
        self.tuning[method] = found

    def _run(self, tasks: Sequence[Task], *, evaluate: bool) -> list[dict[str, Any]]:
        """One after another, or some at once."""
        work = partial(run_task, self.experiment, self.place, evaluate)
        if self.workers == 1 or len(tasks) == 1:
            return [work(task) for task in tasks]
        with ProcessPoolExecutor(self.workers, get_context("spawn")) as pool:
            return list(pool.map(work, tasks))

    def _report(self, trained: Sequence[dict[str, Any]]) -> dict[str, Any]:
        experiment = self.experiment
        ships = {m: trained[0]["results"][experiment.model(m)]["ships"] for m in experiment.chosen}
        scores = Scores(self.place, self.seeds, network_name(experiment.model(experiment.baseline), ""))
        rows, methods = [], dict[str, Any]()
        for method in experiment.chosen:
            model = experiment.model(method)
            networks = {
                network.removeprefix(model).lstrip("_"): network
                for network in trained[0]["networks"]
                if network == model or network.startswith(f"{model}_")
            }
            for role, network in networks.items():
                own = scores.interval(network)
                against = None if method == experiment.baseline else scores.against_baseline(network)
                cost = trained[0]["networks"][network]["multiplications"]
                seconds = statistics.mean(each["results"][model]["seconds"] for each in trained)
                ship = role == ships[method]
                methods.setdefault(method, {"ships": role, "networks": {}})["networks"][role] = {
                    "gauc": _interval(own.value, own.low, own.high),
                    "gain": against and _interval(against.difference, against.low, against.high),
                    "p_value": against and against.p_value,
                    "multiplications": cost,
                    "training_seconds": round(seconds, 1),
                    "runs": [each["networks"][network] for each in trained],
                }
                name = method + (f", {role}" if role else "") + (" (ships)" if ship and role else "")
                rows.append([name, f"{cost:,}", _spread(own), _gain(against), f"{seconds:.0f}"])
        print("test part; intervals of 95 % over users and seeds")
        table(["network", "mult.", "GAUC", f"difference to {experiment.baseline}", "s to train"], rows)
        return {"methods": methods, **self._headline(methods, scores, ships), "tuning": self.tuning, **self._settings()}

    def _headline(self, methods: dict[str, Any], scores: "Scores", ships: dict[str, str]) -> dict[str, Any]:
        """Gains of the default and of the method of the light tower's cost that validation likes best."""
        experiment = self.experiment
        light = methods[experiment.baseline]["networks"][""]["multiplications"]
        mean = {m: max(t["mean"] for t in self.tuning[m]) for m in methods}
        rivals = [
            m
            for m in methods
            if m != experiment.baseline and methods[m]["networks"][ships[m]]["multiplications"] <= light
        ]
        best = max(rivals, key=lambda m: mean[m])
        found: dict[str, Any] = {"best": best, "gain": methods[best]["networks"][ships[best]]["gain"]}
        closed = None
        if experiment.default in methods:
            found |= {"default": experiment.default}
            found |= {"gain_default": methods[experiment.default]["networks"][ships[experiment.default]]["gain"]}
        if experiment.gap in methods and experiment.gap is not None:
            shipped = network_name(experiment.model(best), ships[best])
            closed = scores.share_of_gap(shipped, network_name(experiment.model(experiment.gap), ""))
        print(f"best on validation: {best}, gain {found['gain']}; share of the gap closed: {closed}")
        return {**found, "gap_closed": closed}

    def _settings(self) -> dict[str, Any]:
        """What every run was made with."""
        recipe = self.experiment.build(list(self.experiment.chosen.items()), 0)
        content = as_dict(recipe)
        content["data"].pop("path", None)
        return {"recipe_settings": content, "tune_seeds": self.tune_seeds}


class Scores:
    """The test part's scores of every network, by seed, and what they are worth."""

    def __init__(self, place: Path, seeds: Sequence[int], baseline: str) -> None:
        self.place, self.seeds = place, seeds
        self._log = Impressions.read(str(self._path(baseline, seeds[0])), Columns())
        self._baseline = self._of(baseline)

    def _path(self, network: str, seed: int) -> Path:
        return self.place / f"seed{seed}" / "predictions" / "test" / f"{network}.parquet"

    def _of(self, network: str) -> NDArray[np.float64]:
        paths = tuple(str(self._path(network, seed)) for seed in self.seeds)
        return self._log.scores(ModelRuns(network, paths))

    def interval(self, network: str) -> Interval:
        """GAUC of a network."""
        return bootstrap_intervals(self._log.label, self._of(network), self._log.user, metrics=["gauc"])["gauc"]

    def against_baseline(self, network: str) -> Difference:
        """Its GAUC less the baseline's."""
        log = self._log
        return paired_bootstrap(log.label, self._baseline, self._of(network), log.user, metrics=["gauc"])["gauc"]

    def share_of_gap(self, network: str, booster: str) -> dict[str, float | None] | None:
        """How much of the gap between baseline and booster a network closes; None where there is none."""
        log = self._log
        found = share_of_gap(log.label, self._baseline, self._of(network), self._of(booster), log.user)
        return None if found is None else _interval(found.value, found.low, found.high)


def open_run(experiment: Experiment, models: Sequence[tuple[str, int]], seed: int, place: Path) -> Run:
    """The run of some trials with one seed."""
    recipe = experiment.build(models, seed)
    return Run(recipe, place / f"seed{seed}", data_directory=place / "data", say=partial(_say, seed))


def run_task(experiment: Experiment, place: Path, evaluate: bool, task: Task) -> dict[str, Any]:
    """Train, and test if asked to: the figures of each model, and of each network on the test part."""
    torch.set_num_threads(1)
    models, seed = task
    run = open_run(experiment, models, seed, place)
    results = {experiment.model(*each): run.train(experiment.model(*each)) for each in models}
    return {"results": results, "networks": run.evaluation["networks"] if evaluate else {}}


def _say(seed: int, line: str) -> None:
    if "up to date" not in line:
        print(f"seed {seed}: {line}", file=sys.stderr, flush=True)


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "-"


def _interval(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def _spread(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _gain(found: Difference | None) -> str:
    return "-" if found is None else f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


if __name__ == "__main__":
    main()

"""What the learning methods give: methods x seeds on a log, each tuned alike on validation, then tested once.

    python -m benchmarks.effect pipelines/trivago.toml --set data.path=... --seeds 5 --out FILE

Methods and the settings that they choose from: benchmarks/effect/NAME.toml (`benchmarks.effect_methods`). Every method
has as many trials as the others; a trial is one setting trained with each of the first --tune-seeds seeds, and the best
mean on the validation part is taken. Then the chosen settings are trained with all seeds, and the test part is read
once. Gains are differences in GAUC of the networks that ship to the light tower alone, with intervals over users and
seeds (`ctrkit.metrics.bootstrap`). Each seed is a run of its own in RUNS/NAME-effect/seedK; what is done is not done
again, whatever has changed in the code since: `code` in the JSON has a digest of the source that trained the models,
several if it changed. Readings of the test part are counted in RUNS. --workers trains several seeds at once. --quick:
two seeds of one epoch, of a small log where the recipe's is synthetic.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.effect_methods import Experiment
from benchmarks.effect_scores import Row, Scores, picture
from benchmarks.report import arguments, emit, recipe_settings, table
from ctrkit.atomic import locked, read_json, write_json
from ctrkit.config.recipe import as_dict, load_recipe, network_name
from ctrkit.errors import UserError
from ctrkit.evaluation.plots import draw_differences, save
from ctrkit.metrics import METRICS
from ctrkit.names import MEAN
from ctrkit.request import read_requests
from ctrkit.run import Run, sha256
from ctrkit.summary import measure_bundles

HERE = Path(__file__).parent / "effect"


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
    parser.add_argument("--clock", action="store_true", help="measure 400 ads too; wants a quiet machine")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs lie")
    options = parser.parse_args(argv)
    try:
        name = load_recipe(options.recipe, options.set).name
        overrides = recipe_settings(options.recipe, options.set, quick=options.quick)
        methods = options.methods or HERE / f"{name}.toml"
        experiment = Experiment.load(options.recipe, methods, overrides, options.only)
        place = options.runs / f"{name}-{'effect-quick' if options.quick else 'effect'}"
        result = Bench(experiment, place, options).result()
    except UserError as error:
        raise SystemExit(str(error)) from error
    if result is None:
        return
    if options.out is not None:
        save(options.out.parent, f"{options.out.stem}_gains", draw_differences, picture(result))
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
        self.clock: bool = options.clock
        self.tuning: dict[str, list[dict[str, Any]]] = {}
        self._sign = 1  # of the monitored metric, -1 where less is better

    def result(self) -> dict[str, Any] | None:
        """What the JSON line holds; None before the test part is read."""
        with locked(self.place / "experiment", "give another --runs"):  # its seeds share one prepared log
            return self._result()

    def _result(self) -> dict[str, Any] | None:
        run = open_run(self.experiment, [(self.experiment.baseline, 0)], self.seeds[0], self.place)
        rows = {part: run.log.rows(part) for part in ("train", "valid", "test")}  # prepared before several would
        log = run.log.fingerprint
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
        readings = self._count_reading(log)
        trained = self._run([(chosen, seed) for seed in self.seeds], evaluate=True)
        found: dict[str, Any] = {"rows": rows, "seeds": self.seeds, "baseline": self.experiment.baseline}
        found |= {"readings_of_the_test_part": readings, **self._report(trained)}
        return {**found, "milliseconds": self._clock()} if self.clock else found

    def _count_reading(self, log: str) -> int:
        """How many different sets of models the test part was read for, this one included: it should be one.

        Sets differ by methods, seeds, and by whatever the chosen models depend on: a key of the recipe that was changed
        by hand between two readings has been tuned on the test part.

        Args:
            log: fingerprint of the prepared log.
        """
        path, recipe = self.place / "tested.json", self._settings()["recipe_settings"]
        of_models = sha256([log, *(recipe[key] for key in ("embedding", "towers", "models"))])
        methods = {m: self.experiment.settings(m, trial) for m, trial in self.experiment.chosen.items()}
        kept = [methods, self.seeds, of_models]
        readings: list[Any] = (read_json(path) or {"readings": []})["readings"]
        # older entries say methods and seeds alone
        readings = [kept if each == kept[:2] and kept not in readings else each for each in readings]
        if kept not in readings:
            readings.append(kept)
        write_json(path, {"readings": readings})
        return len(readings)

    def _clock(self) -> dict[str, dict[str, Any]]:
        """What 400 ads cost: light and booster in one run, one thread, from raw values to probabilities."""
        run = open_run(self.experiment, list(self.experiment.chosen.items()), self.seeds[0], self.place)
        bundles = {"light": run.bundle.directory}
        if run.booster_bundle is not None:
            bundles["booster"] = run.booster_bundle.directory
        found = measure_bundles(bundles, list(islice(read_requests(run.log.requests), 200)), ads=400)
        table(["network", "p50 ms", "p99 ms"], [[name, each["p50"], each["p99"]] for name, each in found.items()])
        return found

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
        self._sign = 1 if METRICS[metric] else -1
        best = max(range(len(trials)), key=lambda trial: self._sign * found[trial]["mean"])
        self.experiment = experiment.with_chosen({method: best})
        self.tuning[method] = found

    def _run(self, tasks: Sequence[Task], *, evaluate: bool) -> list[dict[str, Any]]:
        """One after another, or some at once."""
        work = partial(run_task, self.experiment, self.place, evaluate)
        if self.workers == 1 or len(tasks) == 1:
            return [work(task) for task in tasks]
        with ProcessPoolExecutor(self.workers, get_context("spawn")) as pool:
            return list(pool.map(work, tasks))

    def _report(self, trained: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tables and figures of the networks that ship, and of each role."""
        experiment = self.experiment
        scores = Scores(self.place, self.seeds, experiment.model(experiment.baseline))
        rows, methods = [], dict[str, Any]()
        networks = experiment.build(list(experiment.chosen.items()), 0).networks().values()
        for method in experiment.chosen:
            model = experiment.model(method)
            results = [each["results"][model] for each in trained]
            ships = [result["ships"] for result in results]
            roles = [network.role for network in networks if network.model == model]
            seconds = round(statistics.mean(result["seconds"] for result in results), 1)
            of_roles = {role: Row(scores, trained, model, [role] * len(ships)) for role in roles}
            shipped = of_roles[""] if roles == [""] else Row(scores, trained, model, ships)
            methods[method] = {
                "ships": ships,
                "shipped": shipped.as_dict(),
                "networks": {role: row.as_dict() for role, row in of_roles.items()},
                "training_seconds": seconds,
                "validation": statistics.mean(result["best"] for result in results),
            }
            rows.append([method, *shipped.cells(), f"{methods[method]['validation']:.4f}", seconds])
            rows += [[f"  {role}", *row.cells(), "", ""] for role, row in of_roles.items() if role]
            if len(roles) > 1 and experiment.methods[method]["objective"] in ("ensemble", "mutual_learning"):
                mean = Row(scores, trained, model, [[role for role in roles if role != MEAN]] * len(ships))
                methods[method]["mean_of_all"] = mean.as_dict()
                rows.append(["  mean of all", *mean.cells(), "", ""])
        print("test part; intervals of 95 % over users and seeds")
        table(["network", "mult.", "GAUC", f"difference to {experiment.baseline}", "validation", "s to train"], rows)
        codes = sorted({each["results"][experiment.model(m)].get("code") or "?" for each in trained for m in methods})
        if len(codes) > 1:
            print(f"the models were trained by different versions of the code: {', '.join(codes)}")
        users = scores.against_baseline([[experiment.model(experiment.baseline)]] * len(self.seeds)).users
        return {
            "users": users,
            "methods": methods,
            **self._headline(methods, scores),
            "chosen": dict(self.experiment.chosen),
            "tuning": self.tuning,
            "code": codes,
            **self._settings(),
        }

    def _headline(self, methods: dict[str, Any], scores: "Scores") -> dict[str, Any]:
        """Gains of the default and of the method of the light tower's cost that validation likes best."""
        experiment = self.experiment
        cost = methods[experiment.baseline]["shipped"]["multiplications"]
        rivals = [
            method
            for method, of in methods.items()
            if not (method == experiment.baseline or experiment.methods[method].get("ablation"))
            and of["shipped"]["multiplications"] <= cost
        ]
        if not rivals:
            return {"best": None, "gain": None, "gap_closed": None}
        best = max(rivals, key=lambda m: self._sign * methods[m]["validation"])
        found: dict[str, Any] = {"best": best, "gain": methods[best]["shipped"]["gain"], "gap_closed": None}
        if experiment.default in methods:
            found |= {"default": experiment.default, "gain_default": methods[experiment.default]["shipped"]["gain"]}
        if experiment.gap in methods and experiment.gap is not None:
            closed = {
                method: scores.share_of_gap(
                    [[network_name(experiment.model(method), role)] for role in of["ships"]],
                    [[experiment.model(experiment.gap)]] * len(self.seeds),
                )
                for method, of in methods.items()
                if method in rivals
            }
            found |= {"gap_closed": closed[best], "gap_closed_by_method": closed}
        print(f"best on validation: {best}, gain {found['gain']}; share of the gap closed: {found['gap_closed']}")
        return found

    def _settings(self) -> dict[str, Any]:
        """What every run was made with."""
        recipe = self.experiment.build(list(self.experiment.chosen.items()), 0)
        content = as_dict(recipe)
        content["data"].pop("path", None)
        return {"recipe_settings": content, "tune_seeds": self.tune_seeds}


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


if __name__ == "__main__":
    main()

"""One slimmable net against towers trained alone at its widths: GAUC with intervals, what training costs, the frontier.

    python -m benchmarks.slimmable pipelines/movielens_1m.toml --set data.path=... --seeds 5 --out FILE --figure FILE

Parts (--parts, default all):
    main        the slimmable net's widths against towers of the same layers alone; the ratio of training times
    ablations   one shared batch norm, calibrated, private; calibration without slimmable training; sandwich and random
                widths; with and without in-place distillation; widths that no list names
    autoslim    towers that AutoSlim finds at the measured latency of the uniform widths: the slice, tuned, from scratch
    frontier    GAUC against p50 and p99 of all of them, and of the recipe's booster and rocket
    budgets     ten budgets drawn at random: every bundle that `ctrkit slim` exports for one, measured once more

Each seed is a run of its own in RUNS/NAME-slimmable/seedK; the log is prepared once, and a killed benchmark goes on
where it stopped. Differences are paired by seed, their intervals resample users (`ctrkit.metrics.bootstrap`). The
slimmable model's settings are those of the recipe's own, then of --slim KEY=VALUE. --quick: two seeds of one epoch.
"""

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import arguments, emit, recipe_settings, table
from benchmarks.slimmable_costs import budgets, step_cost
from benchmarks.slimmable_models import BETWEEN, WIDTHS, Plan, networks
from ctrkit.atomic import atomic_file, read_json, write_json
from ctrkit.config.recipe import load_recipe
from ctrkit.data.columns import GROUP, LABEL
from ctrkit.errors import UserError
from ctrkit.evaluation.plots import draw_frontier, save
from ctrkit.metrics.bootstrap import bootstrap_intervals, paired_bootstrap
from ctrkit.nn.network import Network
from ctrkit.run import Run
from ctrkit.slimming.autoslim import within
from ctrkit.slimming.budget import ADS
from ctrkit.slimming.slim import Slim
from ctrkit.slimming.timing import side_by_side
from ctrkit.training.predict import predict_networks

PARTS = ("main", "ablations", "autoslim", "frontier", "budgets")
_BUDGETS = ("w0.25", "w0.5", "w0.75")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, compare and report."""
    parser = arguments("One slimmable net against towers trained alone at its widths.")
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("pipelines/demo.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--slim", action="append", default=[], metavar="KEY=VALUE", help="of the slimmable model")
    parser.add_argument("--tower", default="light", help="the recipe's tower that is slimmed (default: light)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default: 5)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--resamples", type=int, default=2000, help="of the users (default: 2000)")
    parser.add_argument("--ads", type=int, default=ADS, help="ads a request of the frontier (default: 400)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs lie")
    parser.add_argument("--figure", type=Path, help="write the frontier as SVG to this file")
    options = parser.parse_args(argv)
    try:
        result = Benchmark(options).measure()
    except UserError as error:
        raise SystemExit(str(error)) from error
    emit({"benchmark": "slimmable", "quick": options.quick, **result}, options.out)


def say(line: str) -> None:
    """To standard error: standard output has the tables."""
    print(line, file=sys.stderr, flush=True)


class Benchmark:
    """The runs of all seeds and what is read from them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.parts = options, options.parts
        self.settings = recipe_settings(options.recipe, options.set, quick=options.quick)
        recipe = load_recipe(options.recipe, self.settings)
        given = tomllib.loads("\n".join(options.slim))
        self.plan = Plan.of(recipe, options.tower, given)
        self.seeds = list(range(2 if options.quick else options.seeds))
        self.place = options.runs / f"{recipe.name}-slimmable{'-quick' if options.quick else ''}"
        self.found: dict[str, list[int]] = {}
        """AutoSlim's towers by name."""
        self._scores: dict[str, list[np.ndarray[Any, Any]]] = {}
        self._runs: dict[int, Run] = {}

    def run(self, seed: int) -> Run:
        """The run of a seed, with the models that are known so far."""
        recipe = self.plan.with_models(seed, self.parts, self.found)
        if seed in self._runs:
            self._runs[seed].recipe = recipe
        else:
            place = self.place / f"seed{seed}"
            self._runs[seed] = Run(recipe, place, data_directory=self.place / "data", say=say)
        return self._runs[seed]

    # --- scores

    def read_scores(self) -> None:
        """Train every model of every seed, and score the test part with all networks, once."""
        if "autoslim" in self.parts:
            self._search()
        for seed in self.seeds:
            run = self.run(seed)
            for model in run.recipe.models:
                for name, score in self._of_model(run, model):
                    self._scores.setdefault(name, []).append(score)

    def _of_model(self, run: Run, model: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        weights = run.train(model)["weights"]
        place = run.directory / "scores" / f"{model}.npz"
        key = f"{run.log.fingerprint} {weights} {sorted(self.found.items())}"
        if place.exists():
            with np.load(place) as kept:
                if str(kept["key"]) == key:
                    yield from ((name, kept[name]) for name in kept.files if name != "key")
                    return
        found = networks(run, model, self.found)
        say(f"score {model}: {', '.join(found)}")
        scores: dict[str, Any] = predict_networks(found, run.loader("test"))
        with atomic_file(place) as file:
            np.savez(file, key=np.array(key), **scores)
        yield from scores.items()

    def _search(self) -> None:
        """AutoSlim on the first seed: towers of the measured latency of the uniform widths."""
        place = self.place / "autoslim.json"
        run = self.run(self.seeds[0])
        key, ads = run.train("slim")["weights"], self.options.ads
        done = read_json(place)
        if done is None or (done["key"], done.get("ads", ADS)) != (key, ads):
            say("autoslim: measuring towers, then searching")
            slim = Slim(run, "slim")
            cost = slim.measured_cost(ads, 200 if self.options.quick else 1000)
            path = slim.path(cost)
            found = {}
            for role in _BUDGETS:
                step = within(path, cost(slim.tower.channels(WIDTHS[role])))
                if step is not None:
                    found[f"auto_{role}"] = list(step.widths)
            done = {"key": key, "ads": ads, "found": found, "fit_r2": cost.r2, "towers_measured": cost.count}
            write_json(place, done)
        self.found, self.fit = done["found"], done

    # --- figures

    def measure(self) -> dict[str, Any]:
        """Everything; prints the tables."""
        self.read_scores()
        columns = self.run(self.seeds[0]).log.read_columns("test", [LABEL, GROUP])
        self.label, self.group = columns[LABEL].to_numpy(), columns[GROUP]
        compared = self._compared()
        result: dict[str, Any] = {
            "recipe": self.plan.recipe.name,
            "set": [o for o in self.settings if not o.startswith("data.path=")],
            "slim": dict(self.plan.slim),
            "seeds": self.seeds,
            "channels": {role: self.plan.channels(width) for role, width in WIDTHS.items()},
            "networks": {name: self._interval(name) for name in self._scores},
            "differences": compared,
        }
        table(
            ["network", "test GAUC", "95 % interval", "log loss"], [_row(n, r) for n, r in result["networks"].items()]
        )
        table(["b - a", "GAUC", "95 % interval"], [_difference(d) for d in compared])
        deltas = [d for d in compared if d["a"].startswith("alone_") and d["b"] == f"slim {d['a'][6:]}"]
        worst = min(deltas, key=lambda d: float(d["difference"]))
        result |= {"worst_width_delta": worst["difference"], "worst_width": worst["b"][5:]}
        result |= {"worst_width_delta_interval": [worst["low"], worst["high"]], **self._cost()}
        if "autoslim" in self.parts:
            result["autoslim"] = self.fit
        if "budgets" in self.parts:
            slim = Slim(self.run(self.seeds[0]), "slim")
            result["budgets"] = budgets(slim, 3 if self.options.quick else 10, self.options.ads, self.place / "budgets")
        if "frontier" in self.parts:
            result["frontier"] = self._frontier(result["networks"])
        return result

    def _interval(self, name: str) -> dict[str, Any]:
        found = bootstrap_intervals(
            self.label, np.stack(self._scores[name]), self.group, metrics=["gauc", "log_loss"],
            resamples=self.options.resamples,
        )  # fmt: skip
        gauc = found["gauc"]
        return {"gauc": gauc.value, "low": gauc.low, "high": gauc.high, "log_loss": found["log_loss"].value}

    def _compared(self) -> list[dict[str, Any]]:
        found = []
        for a, b in _pairs(self._scores, self.found):
            difference = paired_bootstrap(
                self.label, np.stack(self._scores[a]), np.stack(self._scores[b]), self.group, metrics=["gauc"],
                resamples=self.options.resamples,
            )["gauc"]  # fmt: skip
            figures = {key: getattr(difference, key) for key in ("difference", "low", "high", "p_value")}
            found.append({"a": a, "b": b, **figures})
        return found

    def _cost(self) -> dict[str, Any]:
        """Training time of the slimmable net over that of the full tower alone.

        Time a step by turns, since machines are noisy; times the ratio of the steps that training took.
        """
        run = self.run(self.seeds[0])
        results = [[self.run(seed).train(model) for model in ("slim", "alone_w1.0")] for seed in self.seeds]
        steps = sum(a["steps"] for a, _ in results) / sum(b["steps"] for _, b in results)
        seconds = sum(a["seconds"] for a, _ in results) / max(sum(b["seconds"] for _, b in results), 1e-9)
        step = step_cost(run, "slim", "alone_w1.0")
        return {"train_cost_ratio": step * steps, "step_cost_ratio": step, "seconds_ratio": seconds}

    def _frontier(self, networks_: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        run = self.run(self.seeds[0])
        chosen: dict[str, Network] = {}
        for model in run.recipe.models:
            for name, network in networks(run, model, self.found).items():
                if not name.startswith(("bn_", "random", "listed", "no_", "alone sliced")) and name in networks_:
                    chosen[name] = network.plain()
        timed = side_by_side(run, chosen, self.options.ads, 300 if self.options.quick else 2000)
        rows = []
        for name, latency in timed.items():
            total = latency.as_dict()
            rows.append(
                {
                    "network": name,
                    **networks_[name],
                    "multiplications": chosen[name].multiplications,
                    **{key: total[key] for key in ("p50", "p99")},
                    "latency_interval": total["interval"],
                }
            )
        rows.sort(key=lambda row: float(row["p50"] or 0))
        shown = [[r["network"], f"{r['gauc']:.4f} [{r['low']:.4f}, {r['high']:.4f}]", f"{r['multiplications']:,}",
                  _ms(r["p50"]), _ms(r["p99"])] for r in rows]  # fmt: skip
        table(["network", "test GAUC", "multiplications", "p50 ms", "p99 ms"], shown)
        if self.options.figure is not None:
            data = {"ads": self.options.ads, "networks": [row for row in rows if row["p50"] is not None]}
            save(self.options.figure.parent, self.options.figure.stem, draw_frontier, data)
        return rows


def _pairs(scores: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is compared: the second minus the first."""
    wanted = [(f"alone_{role}", f"slim {role}") for role in WIDTHS]
    for name in ("random", "no_distillation", "listed", "bn_shared", "bn_shared calibrated", "bn_switchable",
                 "bn_universal", "bn_alone calibrated", "alone sliced"):  # fmt: skip
        wanted += [(f"slim {role}", f"{name} {role}") for role in WIDTHS]
    wanted += [("bn_shared w0.5", f"bn_shared calibrated {role}") for role in ("w0.5",)]
    for low, between in zip(WIDTHS, BETWEEN, strict=False):
        wanted += [(f"{model} {low}", f"{model} {between}") for model in ("slim", "listed", "bn_universal")]
    for name in found:
        uniform = name.removeprefix("auto_")
        wanted += [(f"slim {uniform}", f"slim {name} slice"), (f"alone_{uniform}", f"{name}_tuned")]
        wanted += [(f"alone_{uniform}", f"{name}_scratch"), (f"{name}_scratch", f"{name}_tuned")]
    wanted += [("slim w1.0", "rocket light"), ("slim w1.0", "booster")]
    yield from ((a, b) for a, b in wanted if a in scores and b in scores)


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    return [name, f"{found['gauc']:.4f}", f"[{found['low']:.4f}, {found['high']:.4f}]", f"{found['log_loss']:.4f}"]


def _difference(found: Mapping[str, Any]) -> list[str]:
    interval = f"[{found['low']:+.4f}, {found['high']:+.4f}]"
    return [f"{found['b']} - {found['a']}", f"{found['difference']:+.4f}", interval]


def _ms(value: float | None) -> str:
    return "insufficient" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()

"""Why a method works, looked at on the runs that `benchmarks.effect` has left.

    python -m benchmarks.why benchmarks/results/effect_globo.json pipelines/globo.toml --set data.path=... --runs RUNS

For each method's network that ships, mean over seeds:
  flatness      rise of the training part's log loss as the tower's weights get Gaussian noise of a share of their size
                (Zhang et al., CVPR 2018, section 3.8: mutual learning finds wider minima)
  churn         mean |p - p'| between seeds on the test part: what retraining alone changes
  PCOC          predicted over observed clicks on the test part
and for methods with several networks
  CKA           similarity of the shipped network's last hidden layer to each other's, on the validation part (linear
                CKA, Kornblith et al., ICML 2019, eq. 3); beside it that of the baseline to the booster alone
  path          GAUC on the validation part after each evaluation, by network
  norms         norm of each loss's gradient on the tables, first and last evaluation (`table_gradient_norms`)
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.effect import HERE, open_run
from benchmarks.effect_methods import Experiment
from benchmarks.report import arguments, emit, recipe_settings, table
from ctrkit.config.recipe import load_recipe, network_name
from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.evaluation.runs import Columns, Impressions, ModelRuns
from ctrkit.losses import label_loss
from ctrkit.metrics import churn
from ctrkit.nn.network import Network
from ctrkit.objectives.objective import Objective
from ctrkit.run import Run

SIGMAS = (0.05, 0.1, 0.2, 0.4)
DRAWS = 3
ROWS = 40_960


def main(argv: Sequence[str] | None = None) -> None:
    """Look and report."""
    parser = arguments("Flatness, churn, calibration, similarity and training path of the effect benchmark's models.")
    parser.add_argument("effect", type=Path, help="JSON of benchmarks.effect")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--methods", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args(argv)
    effect = json.loads(options.effect.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    result = look(options, effect)
    emit({"benchmark": "why", "quick": options.quick, "recipe": effect["recipe"], **result}, options.out)


def look(options: argparse.Namespace, effect: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON line holds."""
    name = load_recipe(options.recipe, options.set).name
    methods = options.methods or HERE / f"{name}.toml"
    overrides = recipe_settings(options.recipe, options.set, quick=effect["quick"])
    tuned = Experiment.load(options.recipe, methods, overrides, list(effect["tuning"]))
    experiment = tuned.with_chosen(effect["chosen"])
    place = options.runs / f"{name}-{'effect-quick' if effect['quick'] else 'effect'}"
    seeds = effect["seeds"][:2] if options.quick else effect["seeds"]
    found = {m: _Method(experiment, m, seeds, place, effect["methods"][m]) for m in options.only or effect["methods"]}
    measured = {m: method.measure() for m, method in found.items()}
    table(
        ["method", *(f"noise {sigma:g}" for sigma in SIGMAS), "churn", "PCOC", "CKA to the others"],
        [
            [
                method,
                *(f"{m['flatness'][str(sigma)]:+.4f}" for sigma in SIGMAS),
                "-" if m["churn"] is None else f"{m['churn']:.4f}",
                f"{m['pcoc']:.3f}",
                ", ".join(f"{role} {value:.2f}" for role, value in m["cka"].items()) or "-",
            ]
            for method, m in measured.items()
        ],
    )
    return {"seeds": seeds, "methods": measured, "cka_alone": _alone(experiment, seeds, place)}


class _Method:
    """The trained models of one method, by seed."""

    def __init__(
        self, experiment: Experiment, method: str, seeds: Sequence[int], place: Path, effect: Mapping[str, Any]
    ) -> None:
        self._experiment, self._model, self._seeds = experiment, experiment.model(method), seeds
        self._method, self._place, self._effect = method, place, effect

    def measure(self) -> dict[str, Any]:
        """All of it."""
        flatness: dict[str, list[float]] = {str(sigma): [] for sigma in SIGMAS}
        similar: dict[str, list[float]] = {}
        for seed in self._seeds:
            run = open_run(self._experiment, [(self._method, self._experiment.chosen[self._method])], seed, self._place)
            _require(run, self._model)
            objective = run.trained(self._model)
            train = Loader(run.log.schema, run.log.files("train"), batch_size=8192)
            for sigma, rise in noise_rise(objective.inference_model(), list(_first(train, ROWS))).items():
                flatness[str(sigma)].append(rise)
            valid = list(_first(Loader(run.log.schema, run.log.files("valid"), batch_size=8192), 8192))
            for role, value in similarity(objective, valid[0]).items():
                similar.setdefault(role, []).append(value)
            del run
        histories = [self._history(seed) for seed in self._seeds]
        ships = self._effect["ships"]
        return {
            "flatness": {sigma: statistics.mean(values) for sigma, values in flatness.items()},
            "churn": self._churn(ships),
            "pcoc": statistics.mean(run["pcoc"] for run in self._effect["shipped"]["runs"]),
            "cka": {role: statistics.mean(values) for role, values in similar.items()},
            "path": [[_path(line) for line in of] for of in histories],
            "norms": [[line.get("table_gradient_norms") for line in (of[0], of[-1])] for of in histories],
        }

    def _history(self, seed: int) -> list[dict[str, Any]]:
        path = self._place / f"seed{seed}" / "models" / self._model / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def _churn(self, ships: Sequence[str]) -> float | None:
        if len(self._seeds) < 2:
            return None
        paths = [
            self._place / f"seed{seed}" / "predictions" / "test" / f"{network_name(self._model, role)}.parquet"
            for seed, role in zip(self._seeds, ships, strict=False)
        ]
        log = Impressions.read(str(paths[0]), Columns())
        scores = log.scores(ModelRuns(self._model, tuple(map(str, paths))))
        return statistics.mean(churn(log.label, a, b, log.user).mean_change for a, b in combinations(scores, 2))


def _require(run: Run, model: str) -> None:
    """Refuse to train: what is looked at is what the effect benchmark has left."""
    if not run.is_trained(model):
        raise SystemExit(
            f"{run.directory}: '{model}' is not there as benchmarks.effect trained it; give the same recipe, --set, "
            "--methods and --runs"
        )


def _path(line: Mapping[str, Any]) -> dict[str, float | None]:
    """Step and validation GAUC of each network at one evaluation."""
    return {"step": line["step"], **{role: report["gauc"] for role, report in line["valid"].items()}}


def _alone(experiment: Experiment, seeds: Sequence[int], place: Path) -> float | None:
    """CKA of the baseline and the booster, each trained alone."""
    if experiment.gap not in experiment.chosen or experiment.gap is None:
        return None
    pair, found = (experiment.baseline, experiment.gap), []
    for seed in seeds:
        run = open_run(experiment, [(method, experiment.chosen[method]) for method in pair], seed, place)
        batch = next(iter(_first(Loader(run.log.schema, run.log.files("valid"), batch_size=8192), 8192)))
        for method in pair:
            _require(run, experiment.model(method))
        networks = [run.trained(experiment.model(method)).inference_model() for method in pair]
        found.append(linear_cka(*(_last_hidden(network, batch) for network in networks)))
        del run
    return statistics.mean(found)


def _first(loader: Loader, rows: int) -> Iterator[Batch]:
    """Batches of the first rows of a part."""
    seen = 0
    for batch in loader.epoch():
        if seen >= rows:
            return
        seen += len(batch)
        yield batch


@torch.no_grad()
def noise_rise(network: Network, batches: Sequence[Batch]) -> dict[float, float]:
    """Rise of the log loss by Gaussian noise on the tower's weights, its spread a share of each tensor's own size."""
    network.eval()
    parameters = list(network.tower.parameters())
    before = [parameter.clone() for parameter in parameters]

    weight_B = torch.cat([batch.weight_B for batch in batches])
    label_B = torch.cat([batch.label_B for batch in batches])

    def loss() -> float:
        logit_B = torch.cat([network(batch) for batch in batches])
        return float((weight_B * label_loss(logit_B, label_B, weight_B=weight_B)).sum() / weight_B.sum())

    start, generator, found = loss(), torch.Generator().manual_seed(0), {}
    for sigma in SIGMAS:
        rises = []
        for _ in range(DRAWS):
            for parameter, kept in zip(parameters, before, strict=True):
                noise = torch.randn(kept.shape, generator=generator)
                parameter.copy_(kept + sigma * kept.square().mean().sqrt() * noise)
            rises.append(loss() - start)
        found[sigma] = statistics.mean(rises)
    for parameter, kept in zip(parameters, before, strict=True):
        parameter.copy_(kept)
    return found


@torch.no_grad()
def similarity(objective: Objective, batch: Batch) -> dict[str, float]:
    """Linear CKA of the shipped network's last hidden layer to that of each other network."""
    ships = objective.inference_role()
    own = _last_hidden(objective.inference_model(), batch)
    return {
        role: linear_cka(own, _last_hidden(network, batch))
        for role, network in objective.networks().items()
        if role != ships
    }


@torch.no_grad()
def _last_hidden(network: Network, batch: Batch) -> Tensor:
    vectors = network.eval().vectors(lambda embedding: embedding.vectors(batch))
    return network.tower.trace(vectors.x_BX, vectors.lists)[0][-1]


def linear_cka(a_BH: Tensor, b_BK: Tensor) -> float:
    """||A' B||^2 / (||A' A|| ||B' B||) of centred columns: 1 for layers equal up to rotation and scale."""
    a, b = (x.double().numpy() - x.double().numpy().mean(0) for x in (a_BH, b_BK))
    cross, of_a, of_b = np.linalg.norm(a.T @ b) ** 2, np.linalg.norm(a.T @ a), np.linalg.norm(b.T @ b)
    return float(cross / (of_a * of_b)) if of_a * of_b > 0 else 0.0


if __name__ == "__main__":
    main()

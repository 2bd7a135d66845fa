"""The models of `benchmarks.slimmable`: towers alone, one slimmable net, and what it would be without its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ctrkit.config.models import CALIBRATION_ROWS, SlimmableConfig
from ctrkit.config.recipe import Recipe, as_dict
from ctrkit.errors import UserError
from ctrkit.nn.batch_norm_calibration import calibrated_slice
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.slimmable import SlimmableMLP, SlimmableNorm
from ctrkit.objectives.slimmable import Slimmable
from ctrkit.run import Run
from ctrkit.train_model import calibration_batches

WIDTHS = {"w0.25": 0.25, "w0.5": 0.5, "w0.75": 0.75, "w1.0": 1.0}
BETWEEN = {"w0.375": 0.375, "w0.625": 0.625, "w0.875": 0.875}
"""Widths that no list names."""
LABELS: Mapping[str, Any] = {"distillation": 0.0, "label_weight": 1.0}


@dataclass(frozen=True)
class Plan:
    """A recipe with the models of the benchmark.

    `light` is the tower that is slimmed, `alone` the model that has each width to itself, `slim` the slimmable model's
    settings.
    """

    recipe: Recipe
    light: str
    slim: Mapping[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, light: str, settings: Mapping[str, Any]) -> "Plan":
        """Of a recipe's tower; its first slimmable model's settings count, then those given."""
        if light not in recipe.towers or recipe.towers[light].kind != "mlp":
            raise UserError(f"--tower {light}: the recipe has no tower of kind mlp of that name")
        found = next((m for m in recipe.models.values() if isinstance(m, SlimmableConfig)), None)
        own = {} if found is None else found.model_dump(mode="json", exclude_unset=True)
        return cls(recipe, light, {**own, "objective": "slimmable", "tower": light, **settings})

    def channels(self, width: float) -> list[int]:
        """Of the hidden layers at a fraction."""
        multiple = int(self.slim.get("multiple", 8))
        return list(SlimmableMLP(1, self.recipe.towers[self.light].hidden, multiple=multiple).channels(width))

    def with_models(self, seed: int, parts: Sequence[str], found: Mapping[str, Sequence[int]]) -> Recipe:
        """The recipe of one seed.

        Args:
            seed: of all models.
            parts: of the benchmark.
            found: AutoSlim's towers by name, if it has found them.
        """
        content = as_dict(self.recipe)
        tower = content["towers"][self.light]
        towers = {f"alone_{role}": {**tower, "hidden": self.channels(w)} for role, w in WIDTHS.items()}
        models: dict[str, Any] = {name: {"objective": "pointwise", "tower": name} for name in towers}
        models["slim"] = dict(self.slim)
        if "ablations" in parts:
            towers["light_bn"] = {**tower, "batch_norm": True}
            models |= self._ablations()
        for name, hidden in found.items() if "autoslim" in parts else ():
            towers[name] = {**tower, "hidden": list(hidden)}
            models[f"{name}_scratch"] = {"objective": "pointwise", "tower": name}
            models[f"{name}_tuned"] = {"objective": "pointwise", "tower": name, "slice_of": "slim"}
        if "frontier" in parts:
            models |= {name: model for name, model in content["models"].items() if name in ("booster", "rocket")}
        for model in models.values():
            model.pop("train", None)
        content["towers"] |= towers
        content["models"] = models
        content["train"]["seed"] = seed
        content["export"] = {"model": "slim"}
        return Recipe.model_validate(content)

    def _ablations(self) -> dict[str, Any]:
        drawn = ("samples", "non_uniform", "calibration_rows")  # which listed widths have no use for
        listed = {key: value for key, value in self.slim.items() if key not in drawn}
        listed |= {**LABELS, "sampling": "list"}
        return {
            "random": {**self.slim, "sampling": "random"},
            "no_distillation": {**self.slim, **LABELS},
            "listed": listed,
            "bn_shared": {**listed, "tower": "light_bn", "norm": "shared_batch_norm"},
            "bn_switchable": {**listed, "tower": "light_bn", "norm": "switchable_batch_norm"},
            "bn_universal": {**self.slim, "tower": "light_bn", "norm": "universal_batch_norm"},
            "bn_alone": {"objective": "pointwise", "tower": "light_bn"},
        }


def networks(run: Run, model: str, found: Mapping[str, Sequence[int]]) -> dict[str, Network]:
    """The networks of a model that are evaluated, by name: `slim w0.5`; sliced and calibrated ones among them."""
    objective = run.trained(model)
    named = {f"{model} {role}".strip(): network for role, network in objective.networks().items()}
    if model == "alone_w1.0":
        named |= _slices(run, "alone sliced", _as_slimmable(objective.inference_model()), WIDTHS)
    if model == "bn_alone":
        tower = _as_slimmable(objective.inference_model())
        named |= _slices(run, "bn_alone calibrated", tower, WIDTHS, calibrated=True)
    if isinstance(objective, Slimmable):
        own = Network(objective.inference_model().embedding, objective.tower)
        if model == "bn_shared":
            named |= _slices(run, "bn_shared calibrated", own, WIDTHS, calibrated=True)
        if model in ("slim", "listed", "bn_universal"):
            named |= _slices(run, model, own, BETWEEN, calibrated=model == "bn_universal")
        if model == "slim":
            named |= _slices(run, "slim", own, {f"{name} slice": widths for name, widths in found.items()})
    return named


def _slices(
    run: Run, name: str, network: Network, widths: Mapping[str, Any], *, calibrated: bool = False
) -> dict[str, Network]:
    assert isinstance(network.tower, SlimmableMLP)
    rows = None
    if calibrated:
        with torch.no_grad():
            batches = calibration_batches(run.log, CALIBRATION_ROWS, run.recipe.train.seed)
            rows = [network.embedding.vectors(batch).x_BX for batch in batches]
    return {
        f"{name} {role}": Network(network.embedding, calibrated_slice(network.tower, each, rows))
        for role, each in widths.items()
    }


def _as_slimmable(network: Network) -> Network:
    """A tower that was trained alone as if it were slimmable."""
    tower = network.tower
    assert isinstance(tower, MLP)
    norms = [layer for layer in tower.layers if isinstance(layer, torch.nn.BatchNorm1d)]
    norm = "shared_batch_norm" if norms else "none"
    found = SlimmableMLP(tower.widths[0], tower.hidden_widths, norm=norm)  # type: ignore[arg-type]
    for mine, given in zip(found.layers, tower.linears, strict=True):
        mine.load_state_dict(given.state_dict())
    for own, theirs in zip(found.norms, norms, strict=True):
        assert isinstance(own, SlimmableNorm)
        own.load_state_dict(
            {
                "weight": theirs.weight,
                "bias": theirs.bias,
                "mean_all": theirs.running_mean,
                "variance_all": theirs.running_var,
            }
        )
    return Network(network.embedding, found.eval())

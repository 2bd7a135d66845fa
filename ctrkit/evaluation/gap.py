"""How much of the gap between a light tower alone and a booster alone the networks of a run close."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctrkit.config.models import DistillationConfig, PointwiseConfig, RocketLaunchingConfig
from ctrkit.config.recipe import Recipe, network_name


@dataclass(frozen=True)
class Gap:
    """Three networks of a run."""

    light: str
    """A tower trained alone."""
    taught: str
    """The same tower, taught: it can ship."""
    booster: str
    """What taught it, trained alone."""


def gaps(recipe: Recipe, networks: Mapping[str, Mapping[str, Any]]) -> list[Gap]:
    """The gap of every network of a rocket or of distillation that can ship.

    Those count whose tower is trained alone too, and one of whose boosters or teachers is: the best of these in GAUC,
    which is the widest gap. `networks` has the metrics of each, by name.
    """
    alone: dict[str, str] = {}
    for name, config in recipe.models.items():
        if isinstance(config, PointwiseConfig):
            alone.setdefault(config.tower, name)  # the first that trains a tower alone is its baseline
    found = []
    for name, config in recipe.models.items():
        if not isinstance(config, RocketLaunchingConfig | DistillationConfig) or config.towers[0] not in alone:
            continue
        light, taught = alone[config.towers[0]], network_name(name, config.roles[0])
        if isinstance(config, DistillationConfig):
            teachers = set(config.teachers)
        else:
            teachers = {alone[tower] for tower in config.boosters if tower in alone}
        gauc = {model: networks[model]["gauc"] for model in alone.values() if model != light and model in teachers}
        gauc = {model: value for model, value in gauc.items() if value is not None}
        if gauc:
            found.append(Gap(light, taught, max(gauc, key=lambda model: gauc[model])))
    return found

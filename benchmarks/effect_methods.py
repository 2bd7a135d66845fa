"""The methods of an experiment: a recipe's models, each with the settings that validation chooses from."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ctrkit.config.errors import explain
from ctrkit.config.recipe import Recipe, load_recipe
from ctrkit.errors import UserError


@dataclass(frozen=True)
class Experiment:
    """A recipe's log and features, with methods in the place of its models.

    A methods file has [towers.NAME] beside the recipe's, and [methods.NAME]: the keys of [models.NAME], and `trials`,
    a list of settings (keys of the model, dotted) of which the best on the validation part is taken; every method has
    as many. One with `ablation = true` has no trials and is in the table only: it cannot be the best. `teachers` name
    methods above, or networks of theirs (METHOD_ROLE). What is tuned in the recipe's [train] counts for all. `baseline`
    names the method that the others are measured against, `default` the one that a new recipe gets, `gap` the booster
    alone, which must not see privileged features: what could never serve leaves no gap to close.
    """

    recipe: Path
    overrides: Sequence[str]
    methods: Mapping[str, Mapping[str, Any]]
    towers: Mapping[str, Any]
    baseline: str
    default: str
    gap: str | None
    chosen: Mapping[str, int] = field(default_factory=dict)
    """Trial of each method that validation has chosen."""

    @classmethod
    def load(cls, recipe: Path, methods: Path, overrides: Sequence[str], only: Sequence[str] | None) -> "Experiment":
        """Read both files.

        Raises:
            UserError: a file cannot be read, or a method has another number of trials than the others.
        """
        try:
            content = tomllib.loads(methods.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{methods}: no such file; copy one of benchmarks/effect, change its methods, and name it by --methods"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{methods}: cannot be read: {error}") from error
        missing = [key for key in ("methods", "baseline", "default") if key not in content]
        if missing or content["baseline"] not in content["methods"]:
            raise UserError(f"{methods}: give {missing[0] if missing else 'a baseline that is one of [methods]'}")
        found = {
            name: spec
            for name, spec in content["methods"].items()
            if only is None or name in only or name == content["baseline"]
        }
        unknown = sorted(set(only or ()) - content["methods"].keys())
        if unknown:
            raise UserError(f"{methods} has no method '{unknown[0]}'; it has {', '.join(content['methods'])}")
        counts = {name: len(spec.get("trials", [{}])) for name, spec in found.items() if not spec.get("ablation")}
        if len(set(counts.values())) > 1:
            raise UserError(f"{methods}: every method gets as many trials as the others, but they have {counts}")
        own = content.get("towers", {})
        seers = {name for name, tower in load_recipe(recipe, overrides).towers.items() if tower.privileged} - own.keys()
        seers |= {name for name, tower in own.items() if tower.get("privileged")}
        if found.get(content.get("gap"), {}).get("tower") in seers:
            raise UserError(f"{methods}: gap names a booster that sees privileged features; name one that could serve")
        return cls(
            recipe,
            overrides,
            found,
            own,
            content["baseline"],
            content["default"],
            content.get("gap"),
        )

    def with_chosen(self, chosen: Mapping[str, int]) -> "Experiment":
        """The same, with these trials chosen too."""
        return replace(self, chosen={**self.chosen, **chosen})

    def trials(self, method: str) -> list[Mapping[str, Any]]:
        """The settings to choose from."""
        return list(self.methods[method].get("trials", [{}]))

    def model(self, method: str, trial: int | None = None) -> str:
        """What the model of a trial is called; of the chosen one if not given."""
        return f"{method}.{self.chosen[method] if trial is None else trial}"

    def settings(self, method: str, trial: int) -> dict[str, Any]:
        """The model's keys."""
        spec = deepcopy({k: v for k, v in self.methods[method].items() if k not in ("trials", "ablation")})
        for key, value in self.trials(method)[trial].items():
            place = spec
            *parents, last = key.split(".")
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        for place in (spec, *spec.get("lessons", ())):
            if "teachers" in place:
                own = spec.get("networks", ())
                place["teachers"] = [name if name in own else self._teacher(name) for name in place["teachers"]]
        for hint in spec.get("layer_hints", ()):
            # a rocket's own booster goes before a method of that name, as in a recipe
            own_booster = spec["objective"] == "rocket_launching" and re.fullmatch(
                r"booster\d*", hint.get("teacher", "")
            )
            if "teacher" in hint and not own_booster:
                hint["teacher"] = self._teacher(hint["teacher"])
        return spec

    def _teacher(self, name: str) -> str:
        for method in sorted(self.chosen, key=len, reverse=True):
            if name == method or name.startswith(f"{method}_"):
                return self.model(method) + name[len(method) :]
        return name  # a column of the log

    def build(self, models: Sequence[tuple[str, int]], seed: int) -> Recipe:
        """The recipe of some trials, with the methods above that teach them.

        Raises:
            UserError: a key does not fit.
        """
        base = load_recipe(self.recipe, [*self.overrides, f"train.seed={seed}"])
        content = base.model_dump(mode="json", exclude_unset=True)
        every = list(dict.fromkeys([*self.chosen.items(), *models]))
        order = list(self.methods)
        every.sort(key=lambda each: (order.index(each[0]), each[1]))
        content["towers"] = {**content["towers"], **self.towers}
        content["models"] = {self.model(*each): self.settings(*each) for each in every}
        wanted = [self.model(*each) for each in models]
        if self.baseline in self.chosen:
            wanted.append(self.model(self.baseline))
        content["models"] = _with_teachers(content["models"], wanted)
        content["export"] = {"model": wanted[-1]}  # the baseline: it ships, whatever else there is
        try:
            return Recipe.model_validate(content)
        except ValidationError as error:
            raise UserError(f"methods of {self.recipe}: " + "; ".join(explain(error, Recipe))) from error


def _with_teachers(models: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Those wanted and those that teach them."""
    kept = set(wanted)
    for name in reversed(list(models)):
        if name in kept:
            lessons = [teacher for lesson in models[name].get("lessons", ()) for teacher in lesson["teachers"]]
            for teacher in [*models[name].get("teachers", ()), *lessons]:
                kept |= {other for other in models if teacher == other or teacher.startswith(f"{other}_")}
    return {name: spec for name, spec in models.items() if name in kept}

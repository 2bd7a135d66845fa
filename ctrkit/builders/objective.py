"""The objective of a model, from a recipe's values."""

from collections.abc import Callable, Mapping, Sequence

import torch

from ctrkit.builders.networks import Networks
from ctrkit.config.hints import HintConfig, LayerHintConfig
from ctrkit.config.models import (
    CoTrainingConfig,
    DistillationConfig,
    EnsembleConfig,
    MutualLearningConfig,
    PointwiseConfig,
    RocketLaunchingConfig,
    SlimmableConfig,
)
from ctrkit.config.recipe import Recipe
from ctrkit.errors import UserError
from ctrkit.names import LIGHT, SINGLE
from ctrkit.nn.mlp import MLP
from ctrkit.nn.network import Network
from ctrkit.nn.tower import Tower
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.distillation import distillation
from ctrkit.objectives.hint import Hint, LayerHint, Lesson
from ctrkit.objectives.mutual_learning import mutual_learning
from ctrkit.objectives.objective import Objective
from ctrkit.objectives.pointwise import Pointwise
from ctrkit.objectives.rocket_launching import rocket_launching
from ctrkit.objectives.slimmable import Slimmable


def build_objective(
    recipe: Recipe,
    model: str,
    num_rows: Mapping[str, int],
    *,
    frozen: Mapping[str, Network] | None = None,
    sharded: bool = False,
) -> Objective:
    """The objective of one model, initialised from its seed.

    Args:
        recipe: names towers, embedding and objective.
        model: key of [models].
        num_rows: rows of each embedding table, as the encoding has them.
        frozen: trained networks that teach it, by the names of `Recipe.frozen_teachers`.
        sharded: the tables are to be held by several processes (`ctrkit.training.sharding`).

    Raises:
        UserError: layers that are to be shared, or hinted at, do not fit each other.
    """
    seed = recipe.train_config(model).seed
    torch.manual_seed(seed)
    networks = Networks(recipe, num_rows, sharded=sharded)
    config = recipe.models[model]
    try:
        match config:
            case PointwiseConfig():
                return Pointwise(networks.network(config.tower), label_smoothing=config.label_smoothing)
            case RocketLaunchingConfig():
                teachers = recipe.teachers(config.teachers)
                return _rocket(config, networks, frozen or {}, teachers)
            case DistillationConfig():
                return _distillation(config, networks, frozen or {}, recipe.teachers(config.teachers))
            case MutualLearningConfig():
                return _mutual(config, networks)
            case CoTrainingConfig():
                return _co_training(config, networks, frozen or {}, recipe.teachers)
            case EnsembleConfig():
                members = zip(config.roles, config.members, strict=True)
                return CoTraining({r: networks.network(t, own_tables=True) for r, t in members}, shipped=config.shipped)
            case SlimmableConfig():
                return _slimmable(config, networks, seed)
    except ValueError as error:
        raise UserError(f"model '{model}': {error}") from error


def _rocket(
    config: RocketLaunchingConfig, networks: Networks, frozen: Mapping[str, Network], teachers: Sequence[str]
) -> Objective:
    light = networks.network(config.light)
    boosters = {
        role: networks.network(tower, own_tables=config.share == "none")
        for role, tower in zip(config.roles[1:], config.boosters, strict=True)
    }
    first = config.roles[1]
    for light_layer, booster_layer in config.shared_layers:
        _share_layer(light.tower, light_layer, boosters[first].tower, booster_layer)
    named = {name: f"frozen {name}" for name in frozen}  # model 'booster' may teach beside this model's own booster
    heard = tuple(named.get(name, name) for name in teachers)
    lessons = [Lesson(LIGHT, heard, _hint(config.teacher_hint), "mean")] if heard else []
    return rocket_launching(
        light,
        boosters,
        hint=_hint(config.hint),
        route=config.route,
        layer_hints=[
            _layer_hint(LIGHT, hint, first, {**named, **{r: r for r in boosters}}) for hint in config.layer_hints
        ],
        frozen={named[name]: network for name, network in frozen.items()},
        lessons=lessons,
        auxiliary=config.auxiliary_head,
        label_smoothing=config.label_smoothing,
        crossing=networks.crossing,
        unexposed=config.unexposed,
    )


def _share_layer(light: Tower, light_layer: int, booster: Tower, booster_layer: int) -> None:
    """Make a linear layer of one tower the other's too."""
    if not isinstance(light, MLP) or not isinstance(booster, MLP):
        raise ValueError("shared_layers: both towers must be of kind mlp")
    pairs = ((light, light_layer, "light"), (booster, booster_layer, "booster"))
    for tower, layer, name in pairs:
        if layer >= len(tower.hidden_widths):
            raise ValueError(f"shared_layers: {name} has no hidden layer {layer}, it has {len(tower.hidden_widths)}")
    of_light, of_booster = (tower.linears[layer] for tower, layer, _ in pairs)
    if of_light.weight.shape != of_booster.weight.shape:
        raise ValueError(
            f"shared_layers: light's layer {light_layer} is {of_light.in_features} x {of_light.out_features}, the "
            f"booster's {booster_layer} {of_booster.in_features} x {of_booster.out_features}; give them the same widths"
        )
    place = [module is of_light for module in light.layers.children()].index(True)
    light.layers[place] = of_booster


def _distillation(
    config: DistillationConfig, networks: Networks, frozen: Mapping[str, Network], teachers: Sequence[str]
) -> Objective:
    if config.layer_hints and not frozen:
        raise ValueError(f"layer_hints need a network that teaches, but {config.teachers} are columns of the log")
    return distillation(
        networks.network(config.student),
        teachers,
        frozen=frozen,
        hint=_hint(config.hint),
        label_weight=config.label_weight,
        layer_hints=[_layer_hint(SINGLE, hint, next(iter(frozen))) for hint in config.layer_hints],
        auxiliary=config.auxiliary_head,
        label_smoothing=config.label_smoothing,
        crossing=networks.crossing,
        unexposed=config.unexposed,
    )


def _mutual(config: MutualLearningConfig, networks: Networks) -> Objective:
    own = config.share == "none"
    return mutual_learning(
        {
            role: networks.network(tower, own_tables=own and index > 0)
            for index, (role, tower) in enumerate(zip(config.roles, config.peers, strict=True))
        },
        hint=_hint(config.hint),
        average=config.average,
        in_turn=config.updates == "in_turn",
        shipped=config.shipped,
        label_smoothing=config.label_smoothing,
        crossing=networks.crossing,
        unexposed=config.unexposed,
    )


def _co_training(
    config: CoTrainingConfig,
    networks: Networks,
    frozen: Mapping[str, Network],
    teachers: Callable[[Sequence[str]], tuple[str, ...]],
) -> Objective:
    return CoTraining(
        {
            role: networks.network(tower, own_tables=role in config.own_tables)
            for role, tower in config.networks.items()
        },
        [
            Lesson(
                lesson.student,
                tuple(t for name in lesson.teachers for t in ([name] if name in config.networks else teachers([name]))),
                _hint(lesson.hint),
                lesson.average,
                lesson.blocked,
                lesson.auxiliary_head,
            )
            for lesson in config.lessons
        ],
        frozen=frozen,
        label_weight=config.label_weight,
        label_smoothing=config.label_smoothing,
        crossing=networks.crossing,
        unexposed=config.unexposed,
        gradient_to_shared=config.gradient_to_shared,
        in_turn=config.updates == "in_turn",
        shipped=config.shipped,
    )


def _slimmable(config: SlimmableConfig, networks: Networks, seed: int) -> Objective:
    embedding, tower = networks.slimmable(
        config.tower, list(config.fractions.values()), config.norm, multiple=config.multiple, rescale=config.rescale
    )
    boosters = {role: networks.network(name) for role, name in zip(config.booster_roles, config.boosters, strict=True)}
    share = config.gradient_to_tables
    return Slimmable(
        embedding,
        tower,
        config.fractions,
        sampling=config.sampling,
        samples=config.samples,
        non_uniform=config.non_uniform,
        distillation=config.distillation,
        label_weight=config.label_weight,
        narrow_to_tables=config.narrow_to_tables,
        boosters=boosters,
        hint=_hint(config.hint),
        gradient_to_tables=(0.0 if boosters else 1.0) if share is None else share,
        label_smoothing=config.label_smoothing,
        calibration_rows=config.calibration_rows,
        shipped=config.shipped[0],
        seed=seed,
    )


def _hint(config: HintConfig) -> Hint:
    return Hint(**config.model_dump())


def _layer_hint(
    student: str, config: LayerHintConfig, teacher: str, named: Mapping[str, str] | None = None
) -> LayerHint:
    teacher = config.teacher or teacher
    teacher = (named or {}).get(teacher, teacher)
    return LayerHint(student, config.layer, teacher, config.teacher_layer, config.loss, config.weight)

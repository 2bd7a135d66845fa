"""A light tower that learns under its boosters, all from scratch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ctrkit.names import LIGHT
from ctrkit.nn.network import Network
from ctrkit.objectives.co_training import CoTraining
from ctrkit.objectives.hint import Hint, LayerHint, Lesson

Route = Literal["none", "paper", "shared"]


def rocket_launching(
    light: Network,
    boosters: Mapping[str, Network],
    *,
    hint: Hint = Hint(),  # noqa: B008  frozen
    route: Route | float = "shared",
    layer_hints: Sequence[LayerHint] = (),
    frozen: Mapping[str, Network] | None = None,
    lessons: Sequence[Lesson] = (),
    auxiliary: bool = False,
    **settings: Any,
) -> CoTraining:
    """BCE(light) + BCE(booster) + lambda hint(light, booster) (Zhou et al., AAAI 2018, eq. 1).

    Gradient routes, that is whose loss moves what; `shared` are tables, and layers, that both towers have:

        route     label(light)     label(booster)   hint
        none      light, shared    booster, shared  light, booster, shared
        paper     light, shared    booster, shared  light, shared: the booster's logit is detached (figure 2)
        shared    light            booster, shared  light: besides, the light tower reads what is shared detached

    A number between 0 and 1 is a route between `shared` (0) and `paper` (1): the share of the light tower's gradient
    that reaches what is shared.

    Args:
        light: the network that ships.
        boosters: that teach it, by role; of several, their mean probability does.
        hint: lambda and loss. One logit with half the lambda of a two-logit softmax has the same gradient.
        route: gradient route.
        layer_hints: between hidden layers.
        frozen: trained networks that teach too (rocket + KD), in `lessons`.
        lessons: of other teachers.
        auxiliary: the hint acts on a head of its own (`Lesson.auxiliary`).
        settings: of `CoTraining`.
    """
    share = {"none": 1.0, "paper": 1.0, "shared": 0.0}[route] if isinstance(route, str) else route
    hinted = Lesson(LIGHT, tuple(boosters), hint, "mean", blocked=route != "none", auxiliary=auxiliary)
    return CoTraining(
        {LIGHT: light, **boosters},
        [hinted, *lessons],
        layer_hints=layer_hints,
        frozen=frozen,
        gradient_to_shared={LIGHT: share},
        **settings,
    )

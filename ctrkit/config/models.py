"""Recipes: [models.NAME], a model for each learning method."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ctrkit.config.data import Strict
from ctrkit.config.hints import HintConfig, KlHintConfig, LayerHintConfig, LessonConfig
from ctrkit.config.train import TrainConfig
from ctrkit.names import BOOSTER, LIGHT, MEAN, SINGLE

CALIBRATION_ROWS = 65_536
"""Rows on which the batch norm of a slimmable tower's width is calibrated, where its model does not say it."""


class _Model(Strict):
    train: TrainConfig = TrainConfig()
    """Keys of [train] that this model overrides: those that are set."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of its networks' towers, in the order of `roles`."""
        raise NotImplementedError

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of its networks, as `Objective.networks` has them."""
        raise NotImplementedError

    @property
    def tower_of(self) -> dict[str, str]:
        """Name of a network's tower, by role."""
        return dict(zip(self.roles, self.towers, strict=True))

    @property
    def shipped(self) -> tuple[str, ...]:
        """Those of `roles` that may ship."""
        return self.roles[:1]

    @property
    def shipped_parts(self) -> tuple[str, ...]:
        """Roles that what may ship consists of."""
        return tuple(part for role in self.shipped for part in (self.roles if role == MEAN else (role,)))

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Networks of models above, or columns of the log, that teach it."""
        return ()

    def changed(self, *keys: str) -> list[str]:
        """Those of some keys that are not as they are where nobody says anything; a recipe that is kept says all."""
        return [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]

    @property
    def hints(self) -> dict[str, HintConfig]:
        """Hints on logits, by key."""
        return {key: value for key, value in vars(self).items() if isinstance(value, HintConfig)}


class PointwiseConfig(_Model):
    """One tower by itself."""

    objective: Literal["pointwise"]
    tower: str
    slice_of: str | None = None
    """Start from a slimmable model above: its tables, and its tower at the widths of this one (AutoSlim)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def towers(self) -> tuple[str, ...]:
        """Its tower."""
        return (self.tower,)

    @property
    def roles(self) -> tuple[str, ...]:
        """The only one."""
        return (SINGLE,)


class TaughtConfig(_Model):
    """What every model has whose networks hear others."""

    unexposed: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the hint, relative to its weight on the log, on candidates that nobody saw: user and context of an
    impression beside the ad of another one of its batch."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every label that becomes one half."""

    @model_validator(mode="after")
    def _heard_on_candidates(self) -> Self:
        heard = [hint for key, hint in self.hints.items() if key != "teacher_hint" or self.taught_by]
        if self.unexposed and heard and all(hint.labelled_only for hint in heard):
            raise ValueError(
                "candidates that nobody saw have no label, so labelled_only leaves unexposed nothing to say"
            )
        return self


def _booster_roles(towers: Sequence[str]) -> tuple[str, ...]:
    """booster, or booster0, booster1, ..."""
    return (BOOSTER,) if len(towers) == 1 else tuple(f"{BOOSTER}{i}" for i in range(len(towers)))


class RocketLaunchingConfig(TaughtConfig):
    """A light tower under its boosters (Zhou et al., AAAI 2018): `ctrkit.objectives.rocket_launching`."""

    objective: Literal["rocket_launching"]
    light: str
    booster: str | Annotated[list[str], Field(min_length=1, max_length=100)]
    """One tower or several, whose mean teaches."""
    hint: HintConfig = HintConfig()
    route: Literal["none", "paper", "shared"] | Annotated[float, Field(ge=0, le=1)] = "shared"
    """Gradient route; a number is the share of the light tower's gradient that reaches what is shared."""
    share: Literal["embeddings", "none"] = "embeddings"
    shared_layers: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list
    )
    """Pairs (light's layer, booster's layer), from 0, that are one layer: [[0, 0]] shares the bottom, pairs of the
    lowest layers of each group of layers the intervals (figure 3). Norms stay private."""
    layer_hints: list[LayerHintConfig] = Field(default_factory=list)
    teachers: list[str] = Field(default_factory=list)
    """Networks of models above, or columns of the log, that teach the light tower too (rocket + KD)."""
    teacher_hint: KlHintConfig = KlHintConfig()
    auxiliary_head: bool = False

    @model_validator(mode="after")
    def _teachers(self) -> Self:
        if self.teacher_hint != KlHintConfig() and not self.teachers:
            raise ValueError("teacher_hint is what `teachers` say to the light tower; give teachers too")
        return self

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not isinstance(self.route, str) and self.route < 1 and self.share == "none" and not self.shared_layers:
            raise ValueError(
                f'route = {self.route:g} is a share of the gradient to what both have: with share = "none" '
                'and no shared_layers that is nothing; take route = "paper" or "none"'
            )
        return self

    @model_validator(mode="after")
    def _layers_once(self) -> Self:
        for place, tower in enumerate(("light", "booster")):
            layers = [pair[place] for pair in self.shared_layers]
            twice = next((layer for layer in layers if layers.count(layer) > 1), None)
            if twice is not None:
                raise ValueError(f"shared_layers names {tower}'s layer {twice} twice; share each layer once")
        return self

    @property
    def boosters(self) -> tuple[str, ...]:
        """Towers of the boosters."""
        return (self.booster,) if isinstance(self.booster, str) else tuple(self.booster)

    @property
    def towers(self) -> tuple[str, ...]:
        """Light's and the boosters'."""
        return (self.light, *self.boosters)

    @property
    def roles(self) -> tuple[str, ...]:
        """light and booster, or light and booster0, booster1, ..."""
        return (LIGHT, *_booster_roles(self.boosters))

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Its frozen teachers."""
        return tuple(self.teachers)


class DistillationConfig(TaughtConfig):
    """A light tower that learns from trained models: `ctrkit.objectives.distillation`."""

    objective: Literal["distillation"]
    student: str
    teachers: Annotated[list[str], Field(min_length=1, max_length=100)]
    """Networks of models above, or columns of the log; of several, their mean teaches."""
    hint: KlHintConfig = KlHintConfig()
    label_weight: Annotated[float, Field(ge=0)] = 1.0
    layer_hints: list[LayerHintConfig] = Field(default_factory=list)
    auxiliary_head: bool = False

    @property
    def towers(self) -> tuple[str, ...]:
        """The student's."""
        return (self.student,)

    @property
    def roles(self) -> tuple[str, ...]:
        """The only one."""
        return (SINGLE,)

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Its teachers."""
        return tuple(self.teachers)


class MutualLearningConfig(TaughtConfig):
    """Towers that teach each other (Zhang et al., CVPR 2018): `ctrkit.objectives.mutual_learning`."""

    objective: Literal["mutual_learning"]
    peers: Annotated[list[str], Field(min_length=2, max_length=100)]
    """Their towers; one may stand there several times."""
    hint: KlHintConfig = KlHintConfig()
    share: Literal["embeddings", "none"] = "none"
    average: Literal["each", "mean"] = "each"
    """each: DML; mean: DML_e."""
    updates: Literal["together", "in_turn"] = "together"
    across_processes: bool = False
    """Each process that torchrun starts trains one peer and sends its predictions; else processes share the batches."""
    serve: Literal["best", "mean"] | Annotated[int, Field(ge=0)] = "best"
    """What ships: the best peer on validation, their mean (its cost: `ctrkit.nn.mean`), or the peer of that number."""

    @property
    def towers(self) -> tuple[str, ...]:
        """The peers'."""
        return tuple(self.peers)

    @property
    def roles(self) -> tuple[str, ...]:
        """peer0, peer1, ..."""
        return tuple(f"peer{i}" for i in range(len(self.peers)))

    @property
    def shipped(self) -> tuple[str, ...]:
        """All, their mean, or the one chosen."""
        match self.serve:
            case "best":
                return self.roles
            case "mean":
                return (MEAN,)
            case number:
                return (self.roles[number],)

    @model_validator(mode="after")
    def _served(self) -> Self:
        if isinstance(self.serve, int) and self.serve >= len(self.peers):
            raise ValueError(f"serve = {self.serve}, but there are {len(self.peers)} peers, counted from 0")
        return self


class EnsembleConfig(_Model):
    """Towers that are trained beside each other, with tables of their own and no word between them: what teaches."""

    objective: Literal["ensemble"]
    members: Annotated[list[str], Field(min_length=2, max_length=100)]
    """Their towers; one may stand there several times: each member starts from other weights."""
    serve: Literal["best", "mean"] = "best"
    """What ships, if it does: the best member on the validation part, or the mean of all."""

    @property
    def towers(self) -> tuple[str, ...]:
        """The members'."""
        return tuple(self.members)

    @property
    def roles(self) -> tuple[str, ...]:
        """member0, member1, ..."""
        return tuple(f"member{i}" for i in range(len(self.members)))

    @property
    def shipped(self) -> tuple[str, ...]:
        """Any of them, or their mean."""
        return self.roles if self.serve == "best" else (MEAN,)


class CoTrainingConfig(TaughtConfig):
    """Any mix of them: `ctrkit.objectives.co_training`."""

    objective: Literal["co_training"]
    networks: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], str], Field(min_length=1)]
    """Tower by role; the first ships unless `serve` says otherwise."""
    lessons: Annotated[list[LessonConfig], Field(min_length=1)]
    own_tables: list[str] = Field(default_factory=list)
    """Roles with tables of their own; the others share."""
    gradient_to_shared: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """By role, where it is not 1."""
    label_weight: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    updates: Literal["together", "in_turn"] = "together"
    serve: list[str] = Field(default_factory=list)
    """Roles of which the best on the validation part ships."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Of `networks`."""
        return tuple(self.networks.values())

    @property
    def roles(self) -> tuple[str, ...]:
        """Of `networks`."""
        return tuple(self.networks)

    @property
    def shipped(self) -> tuple[str, ...]:
        """`serve`, or the first."""
        return tuple(self.serve) or self.roles[:1]

    @property
    def hints(self) -> dict[str, HintConfig]:
        """Of the lessons."""
        return {f"lessons.{index}.hint": lesson.hint for index, lesson in enumerate(self.lessons)}

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Teachers that are no role."""
        return tuple(t for lesson in self.lessons for t in lesson.teachers if t not in self.networks)

    @model_validator(mode="after")
    def _known(self) -> Self:
        named = {"own_tables": self.own_tables, "gradient_to_shared": self.gradient_to_shared}
        named |= {"label_weight": self.label_weight, "serve": self.serve}
        named |= {"lessons.student": [lesson.student for lesson in self.lessons]}
        for key, roles in named.items():
            for role in roles:
                if role not in self.networks:
                    raise ValueError(f"{key} names '{role}', which is not in networks: {sorted(self.networks)}")
        sharing = self.networks.keys() - set(self.own_tables)
        for role, share in self.gradient_to_shared.items():
            if share < 1 and (role not in sharing or len(sharing) == 1):
                raise ValueError(
                    f"gradient_to_shared of '{role}', which shares nothing: it, or all others, is in own_tables"
                )
        if self.updates == "in_turn" and not all(lesson.blocked for lesson in self.lessons):
            raise ValueError('updates = "in_turn" moves the student alone in its turn; leave out blocked = false')
        if MEAN in self.networks:
            raise ValueError(f"networks: '{MEAN}' is what the mean of several is called; rename that network")
        return self


class SlimmableConfig(_Model):
    """One tower of every width: `ctrkit.objectives.slimmable`."""

    objective: Literal["slimmable"]
    tower: str
    widths: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=100)] = Field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0]
    )
    """Fractions of the hidden layers that are evaluated; the lowest and the highest bound what is trained."""
    serve: Annotated[float, Field(gt=0, le=1)] | None = None
    """The one of `widths` that ships; the highest if not given."""
    multiple: Annotated[int, Field(ge=1, le=1024)] = 8
    """Channels of a fraction are rounded to a multiple of it."""
    norm: Literal["switchable_batch_norm", "universal_batch_norm", "shared_batch_norm"] = "universal_batch_norm"
    """What `batch_norm` of the tower is at several widths: `ctrkit.nn.slimmable`."""
    calibration_rows: Annotated[int, Field(ge=1, le=10**8)] = CALIBRATION_ROWS
    """Rows of the training part that universal_batch_norm is calibrated on."""
    rescale: bool = False
    """A layer that reads c of its n inputs multiplies their sum by n / c."""
    sampling: Literal["sandwich", "list", "random"] = "sandwich"
    samples: Annotated[int, Field(ge=1, le=100)] = 4
    """Widths a step, of sandwich and random."""
    non_uniform: bool = False
    """Drawn widths have a fraction of its own for every layer."""
    distillation: Annotated[float, Field(ge=0)] = 0.3
    """Weight of what the narrower widths learn from the widest: at 1, the paper's, the widest learns more slowly."""
    label_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of the label in the losses of the narrower widths."""
    narrow_to_tables: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the narrower widths' gradient that reaches the tables: with all of it they overfit sooner."""
    booster: str | list[str] = Field(default_factory=list)
    """Towers that teach every width (Rocket Launching)."""
    hint: HintConfig = HintConfig()
    gradient_to_tables: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of all widths' gradient that reaches the tables; 1, under boosters 0, if not given."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def fractions(self) -> dict[str, float]:
        """Of `widths`, by role."""
        return {f"w{width:g}" if width < 1 else "w1.0": width for width in sorted(self.widths)}

    @property
    def boosters(self) -> tuple[str, ...]:
        """Towers of the boosters."""
        return (self.booster,) if isinstance(self.booster, str) else tuple(self.booster)

    @property
    def towers(self) -> tuple[str, ...]:
        """The tower, once a width, and the boosters'."""
        return (*(self.tower for _ in self.fractions), *self.boosters)

    @property
    def booster_roles(self) -> tuple[str, ...]:
        """booster, or booster0, booster1, ..."""
        return _booster_roles(self.boosters)

    @property
    def roles(self) -> tuple[str, ...]:
        """w0.25, w0.5, ..., w1.0, and the boosters'."""
        return (*self.fractions, *self.booster_roles)

    @property
    def shipped(self) -> tuple[str, ...]:
        """`serve`, or the widest."""
        served = max(self.widths) if self.serve is None else self.serve
        return (next(role for role, width in self.fractions.items() if width == served),)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.serve is not None and self.serve not in self.widths:
            raise ValueError(f"serve = {self.serve:g} is not one of widths: {self.widths}")
        if len(self.fractions) < len(self.widths):
            raise ValueError(f"widths has one twice, to the six digits that tell them apart: {self.widths}")
        if self.sampling == "sandwich" and self.samples < 2:
            raise ValueError("the sandwich rule takes samples = 2 at least: the largest width and the smallest")
        told = self.hint.weight if self.boosters else 0.0
        if not self.distillation and not self.label_weight and not told:
            raise ValueError(
                "the narrower widths learn from nothing: give distillation, label_weight, or a booster whose hint has "
                "a weight"
            )
        idle = self.changed("samples", "non_uniform")
        if self.sampling == "list" and idle:
            raise ValueError(f'{idle[0]} is about widths that are drawn; sampling = "list" trains those of `widths`')
        if self.norm != "universal_batch_norm" and self.changed("calibration_rows"):
            raise ValueError(f"calibration_rows are for universal_batch_norm, the norm is {self.norm}")
        if self.gradient_to_tables == 0 and not self.boosters:
            raise ValueError(
                "gradient_to_tables = 0 leaves the tables to a booster, and there is none; give booster too"
            )
        if self.hint != HintConfig() and not self.boosters:
            raise ValueError("hint is what a booster says to every width; give booster too")
        if self.hint.gradient_share is not None or self.hint.labelled_only:
            raise ValueError("a slimmable model's hint has no gradient_share and no labelled_only; give weight")
        return self


Model = Annotated[
    PointwiseConfig
    | RocketLaunchingConfig
    | DistillationConfig
    | MutualLearningConfig
    | EnsembleConfig
    | CoTrainingConfig
    | SlimmableConfig,
    Field(discriminator="objective"),
]

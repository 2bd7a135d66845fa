"""Recipes: what networks say to each other."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ctrkit.config.data import Strict


class HintConfig(Strict):
    """What a student is told of its teacher's prediction: see `ctrkit.objectives.hint.Hint`."""

    loss: Literal["logit_mse", "probability_mse", "kl", "soft_bce"] = "logit_mse"
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 1.0
    """Beyond these float32 cannot tell the loss from zero."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    decay_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    gradient_share: Annotated[float, Field(gt=0)] | None = None
    labelled_only: bool = False

    @model_validator(mode="after")
    def _temperature(self) -> Self:
        if self.temperature != 1 and self.loss != "kl":
            raise ValueError(f'temperature is a key of loss = "kl"; this hint is "{self.loss}"')
        return self

    @model_validator(mode="after")
    def _loudness(self) -> Self:
        if self.gradient_share is not None and self.weight != 1:
            raise ValueError("gradient_share says how loud the hint is, and weight would change that; give one of them")
        return self


class KlHintConfig(HintConfig):
    """A hint that is the KL divergence unless it says otherwise."""

    loss: Literal["logit_mse", "probability_mse", "kl", "soft_bce"] = "kl"


class LayerHintConfig(Strict):
    """A loss between two hidden layers, counted from 0, the lowest."""

    layer: Annotated[int, Field(ge=0)]
    teacher_layer: Annotated[int, Field(ge=0)]
    teacher: str | None = None
    """A booster's role, or one of `teachers`; the first if not given."""
    loss: Literal["mse", "cosine", "attention"] = "mse"
    weight: Annotated[float, Field(ge=0)] = 1.0


class LessonConfig(Strict):
    """Who hears whose prediction: see `ctrkit.objectives.hint.Lesson`."""

    student: str
    teachers: Annotated[list[str], Field(min_length=1)]
    """Roles, networks of models above, or columns of the log."""
    hint: KlHintConfig = KlHintConfig()
    average: Literal["each", "mean"] = "mean"
    blocked: bool = True
    auxiliary_head: bool = False

"""A recipe: one TOML file that says what a batch job does, checked to the last key.

    [data]        where the log is and how it is split        [towers.NAME]  an MLP: layers, activation, norm
    [columns]     label, group, weight, time                  [models.NAME]  what is trained, by which objective
    [features]    kind, side and encoding of each feature     [train]        the loop; a model may override any key
    [embedding]   width of the tables                         [export] [bench]  which model goes online, at what size

Modules never see these objects: `ctrkit.build` passes their values on as plain arguments.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ctrkit.config_data import Count, DataConfig, Seed, Strict
from ctrkit.config_errors import explain
from ctrkit.config_overrides import apply_override
from ctrkit.errors import UserError
from ctrkit.schema import Feature, Schema

Width = Annotated[int, Field(ge=1, le=65_536)]
"""Of an embedding or a layer."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of what becomes a file or folder."""


class ColumnsConfig(Strict):
    """Columns of the log that are no features."""

    label: str
    group: str
    weight: str | None = None
    time: str | None = None
    oracle: str | None = None
    slices: list[str] = Field(default_factory=list)
    """Columns that predictions carry as they are, for `ctrkit evaluate --slice`."""


class EmbeddingConfig(Strict):
    """The tables."""

    dim: Width = 16
    dims: dict[str, Width] = Field(default_factory=dict)
    """Width by table, where it is not `dim`."""
    init_std: Annotated[float, Field(gt=0, le=100)] = 0.01
    precision: Literal["fp32", "fp16"] = "fp32"
    """fp16: tables of half the size; the rows of a step are read, updated in fp32 and rounded by chance."""


class TowerConfig(Strict):
    """An MLP from the pooled embeddings to one logit."""

    hidden: Annotated[list[Width], Field(max_length=100)]
    activation: Literal["relu", "leaky_relu", "prelu", "gelu", "silu", "tanh"] = "relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: bool = False


class TrainConfig(Strict):
    """The training loop. `[models.NAME.train]` overrides any of it for one model."""

    epochs: Count = 2
    batch_size: Annotated[int, Field(ge=1, le=10**6)] = 1024
    seed: Seed = 0
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    table_optimizer: Literal["adam", "adagrad", "rowwise_adagrad"] = "adam"
    table_lr: Annotated[float, Field(gt=0)] = 1e-3
    table_l2: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the tables' L2 penalty (`ctrkit.training.table_optimizer`)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    clip_norm: Annotated[float, Field(ge=0)] = 10.0
    """Largest gradient norm of the towers; 0 leaves it as it is."""
    monitor: Literal["gauc", "auc", "log_loss", "normalized_entropy"] = "gauc"
    """Metric of the validation part that early stopping and the best checkpoint go by, for the network that ships."""
    patience: Count = 2
    """Evaluations without improvement before training stops."""
    evaluations_per_epoch: Count = 1
    shuffle_rows: Count = 1_000_000
    """Rows of the shuffle buffer."""
    order: Literal["random", "log"] = "random"
    """log: row groups as they lie, only the buffer is shuffled: for a log sorted by time, its newest rows come last."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the hidden layers' products of training in bfloat16, weights and logits in fp32; evaluation is in fp32."""
    shards: Annotated[int, Field(ge=1, le=4096)] = 8
    """Parts that every buffer is dealt in: as many processes as divide it train on the same batches."""
    negative_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the impressions without a click that are trained on, their weight divided by it; batches get smaller."""
    skip_unreadable: bool = False
    """Leave out row groups of the prepared log that cannot be read, with a warning and a count."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Newest checkpoints that stay, beside the best one."""
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    """Directory of another run: start from the best weights of its model of the same name."""
    tensorboard: bool = False


class _Model(Strict):
    train: TrainConfig = TrainConfig()
    """Keys of [train] that this model overrides: those that are set."""


class PointwiseConfig(_Model):
    """One tower by itself."""

    objective: Literal["pointwise"]
    tower: str

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of its towers."""
        return (self.tower,)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of its networks, as `Objective.networks` has them."""
        return ("",)


class RocketLaunchingConfig(_Model):
    """A light tower under its booster (Zhou et al., AAAI 2018)."""

    objective: Literal["rocket_launching"]
    light: str
    booster: str
    hint_weight: Annotated[float, Field(ge=0)] = 1.0
    """Lambda of eq. 1, for one logit."""
    route: Literal["none", "paper", "shared"] = "shared"
    """Gradient route: see `ctrkit.objectives.rocket_launching`."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of its towers."""
        return (self.light, self.booster)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of its networks, as `Objective.networks` has them."""
        return ("light", "booster")


Model = Annotated[PointwiseConfig | RocketLaunchingConfig, Field(discriminator="objective")]


class ExportConfig(Strict):
    """Which model goes online."""

    model: str | None = None
    """Name of the model; the last one if not given."""
    parity_rows: Annotated[int, Field(ge=1, le=10**7)] = 4096
    """Held-out rows on which ONNX Runtime and torch must agree."""
    items: str | None = None
    """Parquet file with a row an ad: what the first layer makes of each is computed at export and kept."""
    item_key: str | None = None
    """Column of that file, and of requests, that names an ad."""
    tables: Literal["float32", "float16", "int8"] = "float32"
    """Precision in which embedding tables and item table are kept, if it passes the gate."""
    int8: bool = False
    """Graphs in int8 beside the exact ones, if they pass the gate."""
    max_gauc_drop: Annotated[float, Field(ge=0)] = 1e-4
    """Gate of `tables` and `int8`, on the test part; bounds of int8 come from the validation part."""
    max_pcoc_change: Annotated[float, Field(ge=0)] = 1e-3
    max_difference: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Of any probability."""


class BenchConfig(Strict):
    """The latency measurement."""

    ads: Annotated[int, Field(ge=1, le=10**6)] = 400
    repeats: Annotated[int, Field(ge=1, le=10**7)] = 2000


class Recipe(Strict):
    """A whole batch job."""

    name: Name
    data: DataConfig
    columns: ColumnsConfig
    features: dict[str, Feature] = Field(min_length=1)
    embedding: EmbeddingConfig = EmbeddingConfig()
    towers: dict[str, TowerConfig] = Field(min_length=1)
    models: dict[Name, Model] = Field(min_length=1)
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    bench: BenchConfig = BenchConfig()

    @model_validator(mode="before")
    @classmethod
    def _name_features(cls, content: Any) -> Any:
        features = content.get("features") if isinstance(content, dict) else None
        if not isinstance(features, dict):
            return content
        named = {k: {"kind": "categorical", **v, "name": k} if isinstance(v, dict) else v for k, v in features.items()}
        return {**content, "features": named}

    @model_validator(mode="after")
    def _references(self) -> Self:
        for name, model in self.models.items():
            for tower in model.towers:
                if tower not in self.towers:
                    raise ValueError(
                        f"model '{name}' names tower '{tower}', which is not in [towers]: {sorted(self.towers)}"
                    )
            for taken in {"oracle", *(f"{name}_{role}" for role in model.roles if role)} & set(self.models):
                raise ValueError(f"model '{taken}' has the name of another network of the results; rename it")
        if self.export.model is not None and self.export.model not in self.models:
            raise ValueError(f"export.model '{self.export.model}' is not in [models]: {sorted(self.models)}")
        if (self.export.items is None) != (self.export.item_key is None):
            raise ValueError("export.items and export.item_key go together: a file of ads, and its column of names")
        if self.data.split.by == "time" and self.columns.time is None:
            raise ValueError("split by time needs columns.time")
        unknown = sorted(set(self.embedding.dims) - set(self.schema_().tables()))
        if unknown:
            raise ValueError(
                f"embedding.dims names '{unknown[0]}', which is no table: {sorted(self.schema_().tables())}"
            )
        return self

    def schema_(self) -> Schema:
        """The schema that [columns] and [features] declare."""
        return Schema(features=tuple(self.features.values()), **self.columns.model_dump())

    def train_config(self, model: str) -> TrainConfig:
        """[train] with the overrides of one model."""
        overrides = self.models[model].train
        return self.train.model_copy(update={key: getattr(overrides, key) for key in overrides.model_fields_set})

    @property
    def export_model(self) -> str:
        """Name of the model that goes online."""
        return self.export.model or list(self.models)[-1]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=value` overrides (values as TOML writes them, bare words are strings).

    Raises:
        UserError: no such file, no TOML, an unknown key (with the nearest valid one), or a value that does not fit.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}); give the path of a TOML file") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        apply_override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = explain(error, Recipe)
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"{path}: the recipe has {len(problems)} problem(s):\n{lines}") from None


def network_name(model: str, role: str) -> str:
    """What a network is called in tables and files: `rocket_light` for the role light of the model rocket."""
    return f"{model}_{role}" if role else model


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-ready values, defaults included: what a run keeps beside its results.

    Each model has the whole [train] that it is trained by.
    """
    content = recipe.model_dump(mode="json", exclude_none=True)
    for name, model in content["models"].items():
        model["train"] = recipe.train_config(name).model_dump(mode="json", exclude_none=True)
    return content

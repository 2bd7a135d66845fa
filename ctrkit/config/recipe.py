"""A recipe: one TOML file that says what a batch job does, checked to the last key.

    [data]        where the log is and how it is split        [towers.NAME]  kind, layers, activation, norm
    [columns]     label, group, weight, time                  [models.NAME]  what is trained, by which objective
    [features]    kind, side and encoding of each feature     [train]        the loop; a model may override any key
    [embedding]   width of the tables                         [export] [bench]  which model goes online, at what size

Networks, objectives and data never see these objects: `ctrkit.builders` passes their values on as plain arguments. The
training loop takes [train] as it is.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ctrkit.config.data import DataConfig, Strict
from ctrkit.config.errors import explain
from ctrkit.config.models import EnsembleConfig, Model, PointwiseConfig, SlimmableConfig, TaughtConfig
from ctrkit.config.overrides import apply_override
from ctrkit.config.train import TrainConfig
from ctrkit.errors import UserError
from ctrkit.names import MEAN
from ctrkit.schema import Feature, Schema

Width = Annotated[int, Field(ge=1, le=65_536)]
"""Of an embedding or a layer."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of what becomes a file or folder."""


class ColumnsConfig(Strict):
    """Columns of the log that are no features."""

    label: str
    unlabelled: bool = False
    """Impressions of the training part may lack the label; only hints of other networks reach them."""
    group: str
    weight: str | None = None
    time: str | None = None
    oracle: str | None = None
    teachers: list[str] = Field(default_factory=list)
    """Columns with the click probability of other models, for `teachers` of a model."""
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
    """From the embeddings to one logit."""

    kind: Literal["mlp", "dcn_v2", "target_attention"] = "mlp"
    hidden: Annotated[list[Width], Field(max_length=100)]
    """Of the MLP that every kind has."""
    activation: Literal["relu", "leaky_relu", "prelu", "gelu", "silu", "tanh"] = "relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: bool = False
    layer_norm: bool = False
    """Of kind mlp; one norm or the other."""
    cross_layers: Annotated[int, Field(ge=1, le=100)] | None = None
    """Of dcn_v2; 3 if not given."""
    attention_hidden: Annotated[list[Width], Field(min_length=1, max_length=10)] | None = None
    """Hidden widths of target_attention's units; [36] if not given."""
    privileged: bool = False
    """It sees the privileged features too: it may teach, but not ship."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Its learning rate, where it is not train.lr."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        for key, kind in (("cross_layers", "dcn_v2"), ("attention_hidden", "target_attention")):
            if getattr(self, key) is not None and self.kind != kind:
                raise ValueError(f'{key} is a key of kind = "{kind}"; this tower is of kind "{self.kind}"')
        if self.layer_norm and (self.batch_norm or self.kind != "mlp"):
            other = "batch_norm too" if self.batch_norm else f'kind = "{self.kind}"'
            raise ValueError(f'layer_norm is for kind = "mlp" without batch_norm; this tower has {other}')
        return self


BEST = "best"


class ExportConfig(Strict):
    """Which model goes online."""

    model: str | None = None
    """Name of the model; the last one if not given. `best`: of the models that cost least to serve, the one that is
    best on the validation part."""
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
    max_gauc_change: Annotated[float, Field(ge=0)] = 1e-4
    """Gate of `tables` and `int8`, on the test part; bounds of int8 come from the validation part."""
    max_pcoc_change: Annotated[float, Field(ge=0)] = 1e-3
    max_difference: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Of any probability."""


class BenchConfig(Strict):
    """The latency measurement."""

    ads: Annotated[int, Field(ge=1, le=10**6)] = 400
    repeats: Annotated[int, Field(ge=1, le=10**7)] = 2000


@dataclass(frozen=True)
class RecipeNetwork:
    """A network that a recipe trains."""

    model: str
    role: str
    tower: str | None
    """Key of [towers]; None for the mean of a model's networks."""

    @property
    def name(self) -> str:
        """As tables and files of results call it."""
        return network_name(self.model, self.role)


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
            self._check_roles(name, model)
            for taken in {"oracle", *(f"{name}_{role}" for role in model.roles if role)} & set(self.models):
                raise ValueError(f"model '{taken}' has the name of another network of the results; rename it")
        self._check_network_names()
        if BEST in self.models:
            raise ValueError(f"a model cannot be called '{BEST}': export.model = \"{BEST}\" chooses one; rename it")
        if self.export.model not in (None, BEST, *self.models):
            raise ValueError(f"export.model '{self.export.model}' is not in [models]: {sorted(self.models)}")
        if not any(map(self.can_ship, self.models)):
            raise ValueError("every model has a tower that sees privileged features; none could go online")
        if self.export.model != BEST and not self.can_ship(self.export_model):
            raise ValueError(
                f"model '{self.export_model}' goes online (export.model, else the last one), but its tower sees "
                "privileged features, which do not exist there"
            )
        self._check_item_key()
        if self.data.split.by == "time" and self.columns.time is None:
            raise ValueError("split by time needs columns.time")
        unknown = sorted(set(self.embedding.dims) - set(self.schema_().tables()))
        if unknown:
            raise ValueError(
                f"embedding.dims names '{unknown[0]}', which is no table: {sorted(self.schema_().tables())}"
            )
        return self

    def _check_item_key(self) -> None:
        """What names an ad is known online, and so is the file of ads."""
        if (self.export.items is None) != (self.export.item_key is None):
            raise ValueError("export.items and export.item_key go together: a file of ads, and its column of names")
        hidden = {f.source: f.name for f in self.schema_().privileged_features}
        if self.export.item_key in hidden:
            raise ValueError(
                f"export.item_key '{self.export.item_key}' is the column of the privileged feature "
                f"'{hidden[self.export.item_key]}', which does not exist online; name ads by another column"
            )

    def _check_network_names(self) -> None:
        """Files and tables of results have a network by its name."""
        owners: dict[str, str] = {}
        for network in chain.from_iterable(map(self._networks_of, self.models)):
            owner = owners.setdefault(network.name, network.model)
            if owner != network.model:
                raise ValueError(
                    f"models '{owner}' and '{network.model}' both have a network '{network.name}' in the results; "
                    "rename one of them"
                )

    def networks(self) -> dict[str, RecipeNetwork]:
        """Every network that is judged, by name, the oracle left out: model by model, a mean after what it is of."""
        return {network.name: network for model in self.models for network in self._networks_of(model)}

    def _networks_of(self, model: str) -> list[RecipeNetwork]:
        config = self.models[model]
        found = [RecipeNetwork(model, role, tower) for role, tower in config.tower_of.items()]
        return [*found, *([RecipeNetwork(model, MEAN, None)] if MEAN in config.shipped else [])]

    def _check_roles(self, name: str, model: Model) -> None:
        """A tower that sees privileged features teaches, or stands alone; teachers are known before they are needed."""
        tower_of = model.tower_of
        for role in model.shipped_parts if not isinstance(model, EnsembleConfig) else ():
            if self.towers[tower_of[role]].privileged and len(tower_of) > 1:
                raise ValueError(
                    f"model '{name}': tower '{tower_of[role]}' sees privileged features, so its network "
                    f"'{role}' cannot ship; let another one ship, or take the tower's `privileged` away"
                )
        if any(self.towers[tower].privileged for tower in model.towers) and not self.schema_().privileged_features:
            raise ValueError(f"model '{name}' has a privileged tower, but no feature is `privileged = true`")
        self._check_slice(name, model)
        self._check_mean(name, model)
        if isinstance(model, SlimmableConfig) and not self.towers[model.tower].batch_norm:
            idle = model.changed("norm", "calibration_rows")
            if idle:
                raise ValueError(f"model '{name}': {idle[0]} is about batch norm, which tower '{model.tower}' has not")
        unexposed = isinstance(model, TaughtConfig) and model.unexposed > 0
        if unexposed and not self.schema_().side("item"):
            raise ValueError(
                f"model '{name}': unexposed candidates are made of other impressions' ads, but no feature has "
                'side = "item"; set unexposed = 0'
            )
        above = self._networks_above(name)
        for teacher in model.taught_by:
            if teacher not in above and teacher not in self.columns.teachers:
                raise ValueError(
                    f"model '{name}' is taught by '{teacher}', which is no network of a model above it "
                    f"({sorted(above) or 'none'}) and not in columns.teachers ({self.columns.teachers or 'none'})"
                )
            if teacher not in above and unexposed:
                raise ValueError(
                    f"model '{name}': the column '{teacher}' knows nothing of unexposed candidates; set unexposed = 0"
                )
            if teacher in self.columns.teachers and (teacher in above or teacher in model.roles):
                raise ValueError(
                    f"model '{name}' is taught by '{teacher}', which is a column of columns.teachers and the name of a "
                    "network; rename one of them"
                )

    def _check_slice(self, name: str, model: Model) -> None:
        if not isinstance(model, PointwiseConfig) or model.slice_of is None:
            return
        source = self.models.get(model.slice_of)
        if not isinstance(source, SlimmableConfig) or [*self.models].index(model.slice_of) > [*self.models].index(name):
            raise ValueError(f"model '{name}' is a slice of '{model.slice_of}', which is no slimmable model above it")
        ours, theirs = self.towers[model.tower], self.towers[source.tower]
        fits = len(ours.hidden) == len(theirs.hidden) and all(
            a <= b for a, b in zip(ours.hidden, theirs.hidden, strict=True)
        )
        alike = ours.activation == theirs.activation and _norms(ours) == _norms(theirs)
        if not fits or not alike or ours.kind != "mlp" or ours.privileged:
            raise ValueError(
                f"model '{name}' is a slice of '{model.slice_of}': tower '{model.tower}' must be of kind mlp, not "
                f"privileged, no wider than '{source.tower}', {theirs.hidden}, and have its activation, batch_norm and "
                "layer_norm"
            )
        if model.train.warm_start is not None:
            raise ValueError(
                f"model '{name}' starts from a slice of '{model.slice_of}'; its train.warm_start would be another start"
            )

    def _check_mean(self, name: str, model: Model) -> None:
        """Networks whose mean ships are joined into one MLP: what `ctrkit.nn.mean` would refuse after training."""
        if MEAN not in model.shipped:
            return
        towers = [self.towers[tower] for tower in model.towers]
        shapes = {(len(tower.hidden), tower.activation, tower.batch_norm) for tower in towers}
        mlps = all(tower.kind == "mlp" and tower.hidden and tower.activation != "prelu" for tower in towers)
        mlps = mlps and not any(tower.layer_norm for tower in towers)
        if len(shapes) > 1 or not mlps or any(tower.privileged for tower in towers):
            raise ValueError(
                f"model '{name}' ships a mean, which is one MLP: give it towers of kind mlp, not privileged, with the "
                "same number of hidden layers, at least one, the same activation (not prelu), the same batch_norm and "
                'no layer_norm, or serve = "best"'
            )

    def _networks_above(self, model: str) -> dict[str, tuple[str, str]]:
        """Model and role of each network of the models above one, by the network's name; a model's name ships."""
        found: dict[str, tuple[str, str]] = {}
        for name, config in self.models.items():
            if name == model:
                return found
            found |= {each.name: (name, each.role) for each in self._networks_of(name) if each.tower is not None}
            found[name] = (name, config.shipped_parts[0])
        return found

    def frozen_teachers(self, model: str) -> dict[str, tuple[str, str]]:
        """Model and role of each trained network that teaches one, by the name that it is called by."""
        above = self._networks_above(model)
        return {name: above[name] for name in self.teachers(self.models[model].taught_by) if name in above}

    def teacher_columns(self, model: str) -> list[str]:
        """Columns of the log that teach a model."""
        frozen = self.frozen_teachers(model)
        return [name for name in dict.fromkeys(self.teachers(self.models[model].taught_by)) if name not in frozen]

    def teachers(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names of teachers, an ensemble's replaced by those of its members."""
        found: list[str] = []
        for name in names:
            model = self.models.get(name)
            several = isinstance(model, EnsembleConfig)
            found += [network_name(name, role) for role in model.roles] if model and several else [name]
        return tuple(found)

    def can_ship(self, model: str) -> bool:
        """Whether its network that ships does without privileged features."""
        config = self.models[model]
        return not any(self.towers[config.tower_of[role]].privileged for role in config.shipped_parts)

    def schema_(self) -> Schema:
        """The schema that [columns] and [features] declare."""
        return Schema(features=tuple(self.features.values()), **self.columns.model_dump())

    def train_config(self, model: str) -> TrainConfig:
        """[train] with the overrides of one model; a slice starts from its slimmable model, never warm."""
        config = self.models[model]
        sliced = isinstance(config, PointwiseConfig) and config.slice_of is not None
        overrides = {key: getattr(config.train, key) for key in config.train.model_fields_set}
        return self.train.model_copy(update={**overrides, **({"warm_start": None} if sliced else {})})

    @property
    def export_model(self) -> str:
        """Name of the model that goes online, or `BEST`."""
        return self.export.model or list(self.models)[-1]


def _norms(tower: TowerConfig) -> tuple[bool, bool]:
    return tower.batch_norm, tower.layer_norm


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
        way_out = (
            "" if path.suffix == ".toml" else "; a recipe is a TOML file, which `ctrkit init LOG` writes from a log"
        )
        raise UserError(f"{path}: not valid TOML: {error}{way_out}") from error
    for override in overrides:
        apply_override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = explain(error, Recipe)
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"{path}: the recipe has {len(problems)} problem(s):\n{lines}") from None


def read_recipe(path: Path) -> Recipe:
    """The recipe that a run keeps beside its results (`as_dict`).

    Raises:
        UserError: there is none, or it is of another version of ctrkit.
    """
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the directory of a run") from error
    except ValidationError as error:
        raise UserError(f"{path}: not a recipe of this version of ctrkit; carry the run out again: {error}") from None


def network_name(model: str, role: str) -> str:
    """What a network is called in tables and files: `rocket_light` for the role light of the model rocket."""
    return f"{model}_{role}" if role else model


def serving_dict(recipe: Recipe) -> dict[str, Any]:
    """What a bundle keeps of the recipe: nothing of what only training has, features, columns of teachers or slices."""
    content = as_dict(recipe)
    content["features"] = {k: v for k, v in content["features"].items() if not recipe.features[k].privileged}
    tables = recipe.schema_().serving().tables()
    content["embedding"]["dims"] = {table: dim for table, dim in recipe.embedding.dims.items() if table in tables}
    content["columns"] = {k: v for k, v in content["columns"].items() if k not in ("teachers", "slices")}
    for model in content["models"].values():
        for taught in (model, *model.get("lessons", ())):
            if "teachers" in taught:
                taught["teachers"] = [name for name in taught["teachers"] if name not in recipe.columns.teachers]
    return content


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-ready values, defaults included: what a run keeps beside its results.

    Each model has the whole [train] that it is trained by.
    """
    content = recipe.model_dump(mode="json", exclude_none=True)
    for name, model in content["models"].items():
        model["train"] = recipe.train_config(name).model_dump(mode="json", exclude_none=True)
    return content

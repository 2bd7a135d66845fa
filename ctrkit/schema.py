"""What the columns of a click log mean: features with their side, the label, the group key, the weight, the time.

A schema says what a column *is*; how its raw values become ids and floats is the encoding's matter (`ctrkit.encoding`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Side = Literal["user", "item", "context"]
"""Whose feature it is: one value a request (user, context) or one an ad (item). Context may also be given per ad."""


class _Feature(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1)
    side: Side
    column: str | None = None
    """Column of the log that it is read from; its own name if not given, so that one column can feed two features."""
    privileged: bool = False
    """Known in training only: towers that ask for it see it, requests and bundles are without it."""

    @property
    def source(self) -> str:
        """The column of the log that the feature is read from."""
        return self.column or self.name


class _TableFeature(_Feature):
    table: str | None = None
    """Embedding table; features that name the same table share vocabulary and rows. Its own name if not given."""
    min_count: int | None = Field(default=None, ge=1, le=10**9)
    """Ids seen less often in the training part share the unseen row (default 1: every id gets its row)."""
    buckets: int | None = Field(default=None, ge=1, le=2 * 10**9)
    """Hash ids into so many rows instead of keeping a vocabulary; then no id is unseen, and ids may collide."""


class CategoricalFeature(_TableFeature):
    """One id an impression."""

    kind: Literal["categorical"] = "categorical"


class SequenceFeature(_TableFeature):
    """A list of ids an impression, newest first; the first `max_len` count."""

    kind: Literal["sequence"]
    max_len: int = Field(default=20, ge=1, le=100_000)
    pooling: Literal["mean", "sum"] = "mean"


class DenseFeature(_Feature):
    """One number an impression.

    `standardize`: (x - mean) / std of the training part; `log`: the same after sign(x) log(1 + |x|); `bucketize`: the
    quantile bucket's embedding. Values outside the training part's range are clipped to it, missing ones get the mean
    (standardize, log) or a row of their own (bucketize); both are counted.
    """

    kind: Literal["dense"]
    transform: Literal["standardize", "log", "bucketize"] = "standardize"
    num_buckets: int = Field(default=20, ge=2, le=10**6)


Feature = Annotated[CategoricalFeature | SequenceFeature | DenseFeature, Field(discriminator="kind")]


class Schema(BaseModel):
    """The features of a log and the columns that training and evaluation need.

    Raises:
        ValueError: two features of one name, a feature read from the label, or features that share a table but
            disagree about its vocabulary or pooling.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    """Column with 0 (no click) and 1 (click)."""
    unlabelled: bool = False
    """Whether impressions of the training part may lack the label: those that nobody saw, for mutual learning."""
    group: str
    """Column that GAUC groups by: the user. Read as it is, never hashed."""
    weight: str | None = None
    """Column with the weight of an impression in the loss and the metrics."""
    time: str | None = None
    """Column that orders the log; needed to split by time."""
    oracle: str | None = None
    """Column with the true click probability, where it is known (synthetic logs); evaluated beside the models."""
    teachers: tuple[str, ...] = ()
    """Columns with the click probability that other models gave, to learn from."""
    slices: tuple[str, ...] = ()
    """Columns that predictions carry as they are, so that metrics can be told by their values: a slot, a scenario."""
    features: tuple[Feature, ...] = Field(min_length=1)

    @classmethod
    def from_mapping(cls, features: Mapping[str, Mapping[str, Any]], **columns: Any) -> Self:
        """Build from features keyed by name, as a recipe writes them."""
        return cls(
            features=tuple({"kind": "categorical", "name": name, **spec} for name, spec in features.items()), **columns
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        repeated = [name for name, count in Counter(f.name for f in self.features).items() if count > 1]
        if repeated:
            raise ValueError(f"feature '{repeated[0]}' is declared twice; give one of them another name and `column`")
        answers = [(self.label, "label"), (self.oracle, "oracle"), *((column, "teachers") for column in self.teachers)]
        for column, special in answers:
            for feature in self.features:
                if column is not None and feature.source == column:
                    raise ValueError(
                        f"feature '{feature.name}' reads the {special} column '{column}': it gives the answer away"
                    )
        taken = sorted({"label", "group", "weight", "probability", "group_in_train"} & set(self.slices))
        if taken or len(set(self.slices)) < len(self.slices):
            raise ValueError(
                f"slices: {taken or list(self.slices)}: each column once, and no name that predictions use"
            )
        for table, members in self.tables().items():
            settings = {(f.min_count, f.buckets) for f in members if isinstance(f, _TableFeature)} - {(None, None)}
            if len(settings) > 1:
                raise ValueError(f"features of table '{table}' disagree about min_count or buckets; state them once")
            if len({f.pooling for f in members if isinstance(f, SequenceFeature)}) > 1:
                raise ValueError(f"sequences of table '{table}' disagree about pooling; give one of them its own table")
            if len({f.privileged for f in members}) > 1:
                raise ValueError(
                    f"table '{table}' is shared by features that are privileged and features that are not; "
                    "what serves would carry what only training knew: give the privileged ones a table of their own"
                )
            if any(isinstance(f, DenseFeature) for f in members) and len(members) > 1:
                raise ValueError(f"table '{table}' holds the buckets of a dense feature; nothing else can share it")
        if len(self.privileged_features) == len(self.features):
            raise ValueError("every feature is privileged: nothing is left to serve with")
        return self

    @model_validator(mode="after")
    def _label_apart(self) -> Self:
        if self.label in self.teachers:
            raise ValueError(f"teachers names the label column '{self.label}': it would tell labels that are not known")
        return self

    @model_validator(mode="after")
    def _privileged_alone(self) -> Self:
        hidden = {f.source: f.name for f in self.privileged_features}
        for feature in self.serving_features:
            if feature.source in hidden:
                raise ValueError(
                    f"column '{feature.source}' feeds '{hidden[feature.source]}', which is privileged, and "
                    f"'{feature.name}', which is not: what only training knows would serve; make both privileged"
                )
        return self

    @property
    def privileged_features(self) -> tuple[Feature, ...]:
        """Those that only training has."""
        return tuple(f for f in self.features if f.privileged)

    @property
    def serving_features(self) -> tuple[Feature, ...]:
        """Those that requests have too."""
        return tuple(f for f in self.features if not f.privileged)

    def serving(self) -> Self:
        """The schema of requests and bundles: without privileged features and teachers."""
        return self.model_copy(update={"features": self.serving_features, "teachers": (), "unlabelled": False})

    @property
    def sparse_features(self) -> tuple[CategoricalFeature | SequenceFeature | DenseFeature, ...]:
        """Features that look up an embedding, in order: categorical, sequence, and bucketized dense."""
        return tuple(f for f in self.features if not isinstance(f, DenseFeature) or f.transform == "bucketize")

    @property
    def dense_features(self) -> tuple[DenseFeature, ...]:
        """Features that enter the towers as numbers, in order."""
        return tuple(f for f in self.features if isinstance(f, DenseFeature) and f.transform != "bucketize")

    def tables(self) -> dict[str, tuple[CategoricalFeature | SequenceFeature | DenseFeature, ...]]:
        """Embedding tables by name, each with the features that look it up."""
        tables: dict[str, tuple[CategoricalFeature | SequenceFeature | DenseFeature, ...]] = {}
        for feature in self.sparse_features:
            name = table_of(feature)
            tables[name] = (*tables.get(name, ()), feature)
        return tables

    def special_columns(self) -> dict[str, str]:
        """Columns that are read for something else than a feature -> the key that names them."""
        named = [(getattr(self, key), key) for key in ("label", "group", "weight", "time", "oracle")]
        several = dict.fromkeys(self.slices, "slices") | dict.fromkeys(self.teachers, "teachers")
        return several | {column: key for column, key in named if column is not None}

    def table_settings(self, table: str) -> tuple[int, int | None]:
        """(min_count, buckets) of a table, as one of its features states them."""
        members = [f for f in self.tables()[table] if isinstance(f, _TableFeature)]
        min_count = next((f.min_count for f in members if f.min_count is not None), 1)
        return min_count, next((f.buckets for f in members if f.buckets is not None), None)

    def side(self, side: Side) -> tuple[Feature, ...]:
        """The features of one side, in order."""
        return tuple(f for f in self.features if f.side == side)

    def fingerprint(self) -> str:
        """SHA-256 of the schema's canonical JSON: equal if and only if the schema is."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls.model_validate_json(path.read_bytes())


def table_of(feature: CategoricalFeature | SequenceFeature | DenseFeature) -> str:
    """Name of the embedding table that a feature looks up."""
    return (feature.table or feature.name) if isinstance(feature, _TableFeature) else feature.name

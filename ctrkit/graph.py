"""What the exported graph takes and gives: each side's inputs by themselves, and the check of arrays made elsewhere.

The first layer of a tower is linear, so it is a sum over the sides: the user's part is computed once a request however
many ads there are. Each input has a row an ad (item), or one row or a row an ad (user, context):

    ids_<side>                  int64 [R, S]     a column a feature with one id, in schema order
    dense_<side>                float32 [R, D]   the numbers that enter as they are, in schema order
    <f>_ids, <f>_length         int64 [R, max_len], [R]   each sequence feature; what lies beyond the length is not read

each only if the side has such features. The output `probability` is float32 [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.schema import DenseFeature, Schema, SequenceFeature, Side, table_of

Feeds = dict[str, npt.NDArray[Any]]
"""Inputs of the graph by name."""
SIDES: tuple[Side, ...] = ("user", "context", "item")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TensorSpec(_Model):
    """Type and shape of an input; -1 is its number of rows: N for the item side, 1 or N for the others."""

    dtype: Literal["int64", "float32"]
    shape: tuple[int, ...]
    side: Side


class Graph(_Model):
    """What an ONNX graph takes and gives."""

    inputs: dict[str, TensorSpec]
    output: str = "probability"
    """Name of the output, float32 [N]."""


@dataclass(frozen=True)
class SideFeatures:
    """The features of one side by the input that they enter by, in schema order."""

    side: Side
    single: tuple[str, ...]
    sequences: tuple[SequenceFeature, ...]
    dense: tuple[str, ...]

    def inputs(self) -> dict[str, TensorSpec]:
        """The inputs of this side."""
        found = {}
        if self.single:
            found[f"ids_{self.side}"] = TensorSpec(dtype="int64", shape=(-1, len(self.single)), side=self.side)
        for feature in self.sequences:
            found[f"{feature.name}_ids"] = TensorSpec(dtype="int64", shape=(-1, feature.max_len), side=self.side)
            found[f"{feature.name}_length"] = TensorSpec(dtype="int64", shape=(-1,), side=self.side)
        if self.dense:
            found[f"dense_{self.side}"] = TensorSpec(dtype="float32", shape=(-1, len(self.dense)), side=self.side)
        return found


def side_features(schema: Schema, side: Side) -> SideFeatures:
    """The features of one side of a schema."""
    single, sequences, dense = [], [], []
    for feature in schema.side(side):
        if isinstance(feature, SequenceFeature):
            sequences.append(feature)
        elif isinstance(feature, DenseFeature) and feature.transform != "bucketize":
            dense.append(feature.name)
        else:
            single.append(feature.name)
    return SideFeatures(side, tuple(single), tuple(sequences), tuple(dense))


def serving_graph(schema: Schema) -> Graph:
    """Inputs and output of the exported network of a schema."""
    inputs: dict[str, TensorSpec] = {}
    for side in SIDES:
        inputs |= side_features(schema, side).inputs()
    return Graph(inputs=inputs)


class InputCheck:
    """Checks arrays that a caller encoded by itself: names, types, shapes, rows within their tables, finite numbers."""

    def __init__(self, encoding: Encoding) -> None:
        self._specs = serving_graph(encoding.schema).inputs
        self._limits = _limits(encoding)

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]], *, ads: npt.NDArray[np.int64] | None = None) -> Feeds:
        """The same arrays as the graph takes them, copied only where type or memory order differ.

        Args:
            inputs: by name.
            ads: row of the item table of each of N ads, -1 for those that it has not: item inputs are for them alone.

        Raises:
            UserError: it names the input and what it must be.
        """
        specs, items = self._specs, None if ads is None else int(np.count_nonzero(ads < 0))
        if items == 0:
            specs = {name: spec for name, spec in specs.items() if spec.side != "item"}
        unknown, absent = inputs.keys() - specs.keys(), specs.keys() - inputs.keys()
        if unknown or absent:
            what = f"no input '{min(unknown)}'" if unknown else f"an input '{min(absent)}', which is not given"
            raise UserError(f"the graph has {what}; it takes {', '.join(specs)}")
        feeds = {name: _fit(name, spec, inputs[name]) for name, spec in specs.items()}
        self._check_rows(feeds, items, None if ads is None else len(ads))
        for name, array in feeds.items():
            # a negative number, taken as unsigned, is beyond any table
            if name in self._limits and (array.view(np.uint64) >= self._limits[name]).any():
                raise UserError(f"input '{name}': a number is negative or beyond its table; see the bundle's encoding")
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise UserError(f"input '{name}': a number is not finite; a missing value is 0.0, the mean")
        return feeds

    def _check_rows(self, feeds: Feeds, items: int | None, num_ads: int | None) -> None:
        rows: dict[Side, tuple[str, int]] = {} if items is None else {"item": ("ads", items)}
        for name, array in feeds.items():
            first, expected = rows.setdefault(self._specs[name].side, (name, len(array)))
            if len(array) != expected:
                what = "ads that are not in the item table" if first == "ads" else f"in input '{first}'"
                raise UserError(f"input '{name}' has {len(array)} rows, there are {expected} {what}")
        if num_ads is None:
            num_ads = rows["item"][1] if "item" in rows else max(count for _, count in rows.values())
        for side, (name, count) in rows.items():
            if side != "item" and count not in (1, num_ads):
                raise UserError(f"input '{name}' has {count} rows for {num_ads} ads; give 1, or one an ad")


def _fit(name: str, spec: TensorSpec, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = np.asarray(values)
    if values.dtype.kind not in ("iu" if spec.dtype == "int64" else "f"):
        raise UserError(f"input '{name}' is {spec.dtype}, got {values.dtype}")
    shape = spec.shape
    if values.ndim != len(shape) or any(size not in (-1, n) for size, n in zip(shape, values.shape, strict=True)):
        raise UserError(f"input '{name}' has shape {list(shape)} (-1 is its rows), got {list(values.shape)}")
    with np.errstate(over="ignore"):  # infinite then, which is refused
        return np.ascontiguousarray(values, np.dtype(spec.dtype))


def _limits(encoding: Encoding) -> dict[str, Any]:
    """What the integers of each input must stay below."""
    rows = encoding.num_rows()
    limit = {f.name: np.uint64(rows[table_of(f)]) for f in encoding.schema.sparse_features}
    limits: dict[str, Any] = {}
    for side in SIDES:
        features = side_features(encoding.schema, side)
        if features.single:
            limits[f"ids_{side}"] = np.array([limit[name] for name in features.single], np.uint64)
        for feature in features.sequences:
            limits[f"{feature.name}_ids"] = limit[feature.name]
            limits[f"{feature.name}_length"] = np.uint64(feature.max_len + 1)
    return limits

"""What the exported graph takes and gives, and the check of arrays that a caller encoded by itself."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.schema import Schema, SequenceFeature, table_of

Feeds = dict[str, npt.NDArray[Any]]
"""Inputs of the graph by name: see `plain_graph`."""


class TensorSpec(BaseModel):
    """Type and shape of an input of the graph; -1 is N, the number of ads."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dtype: Literal["int64", "float32"]
    shape: tuple[int, ...]


class Graph(BaseModel):
    """What the ONNX graph takes and gives."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    layout: Literal["plain"] = "plain"
    inputs: dict[str, TensorSpec]
    output: str = "probability"
    """Name of the output, float32 [N]."""


def plain_graph(schema: Schema) -> Graph:
    """The graph contract: inputs that the exported network of a schema takes, each only if it has such features.

    `ids` int64 [N, S]: a column a single-valued sparse feature, in the order of `single_features`;
    `<f>_ids` int64 [N, max_len], zero beyond the length, and `<f>_length` int64 [N]: each sequence feature;
    `dense` float32 [N, D]: `Schema.dense_features` in order. Output `probability` float32 [N].
    """
    inputs = {}
    single, sequences = single_features(schema), sequence_features(schema)
    if single:
        inputs["ids"] = TensorSpec(dtype="int64", shape=(-1, len(single)))
    for feature in sequences:
        inputs[f"{feature.name}_ids"] = TensorSpec(dtype="int64", shape=(-1, feature.max_len))
        inputs[f"{feature.name}_length"] = TensorSpec(dtype="int64", shape=(-1,))
    if schema.dense_features:
        inputs["dense"] = TensorSpec(dtype="float32", shape=(-1, len(schema.dense_features)))
    return Graph(inputs=inputs)


def single_features(schema: Schema) -> tuple[str, ...]:
    """Names of the sparse features with one id, in schema order: the columns of the input `ids`."""
    return tuple(f.name for f in schema.sparse_features if not isinstance(f, SequenceFeature))


def sequence_features(schema: Schema) -> tuple[SequenceFeature, ...]:
    """The sequence features, in schema order."""
    return tuple(f for f in schema.sparse_features if isinstance(f, SequenceFeature))


class InputCheck:
    """Checks arrays that a caller encoded by itself: names, types, shapes, rows within their tables, finite numbers."""

    def __init__(self, encoding: Encoding) -> None:
        self._specs = plain_graph(encoding.schema).inputs
        self._limits = _limits(encoding)

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Feeds:
        """The same arrays as the graph takes them, copied only where type or memory order differ.

        Raises:
            UserError: it names the input and what it must be.
        """
        unknown, absent = inputs.keys() - self._specs.keys(), self._specs.keys() - inputs.keys()
        if unknown or absent:
            what = f"no input '{min(unknown)}'" if unknown else f"an input '{min(absent)}', which is not given"
            raise UserError(f"the graph has {what}; it takes {', '.join(self._specs)}")
        feeds = {name: _fit(name, spec, inputs[name]) for name, spec in self._specs.items()}
        first, *others = feeds
        for name in others:
            if len(feeds[name]) != len(feeds[first]):
                raise UserError(f"input '{name}' has {len(feeds[name])} rows, input '{first}' {len(feeds[first])}")
        for name, limit in self._limits.items():
            if (feeds[name].view(np.uint64) >= limit).any():  # a negative number, taken as unsigned, is beyond any
                raise UserError(f"input '{name}': a number is negative or beyond its table; see the bundle's encoding")
        if "dense" in feeds and not np.isfinite(feeds["dense"]).all():
            raise UserError("input 'dense': a number is not finite; a missing value is 0.0, the mean")
        return feeds


def _fit(name: str, spec: TensorSpec, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = np.asarray(values)
    kinds = "iu" if spec.dtype == "int64" else "f"
    if values.dtype.kind not in kinds:
        raise UserError(f"input '{name}' is {spec.dtype}, got {values.dtype}")
    shape = spec.shape
    if values.ndim != len(shape) or any(size not in (-1, n) for size, n in zip(shape, values.shape, strict=True)):
        raise UserError(f"input '{name}' has shape {list(shape)} (-1 is N), got {list(values.shape)}")
    return np.ascontiguousarray(values, np.dtype(spec.dtype))


def _limits(encoding: Encoding) -> dict[str, Any]:
    """What the integers of each input must stay below."""
    rows = encoding.num_rows()
    limit = {f.name: np.uint64(rows[table_of(f)]) for f in encoding.schema.sparse_features}
    limits: dict[str, Any] = {}
    single = single_features(encoding.schema)
    if single:
        limits["ids"] = np.array([limit[name] for name in single], np.uint64)
    for feature in sequence_features(encoding.schema):
        limits[f"{feature.name}_ids"] = limit[feature.name]
        limits[f"{feature.name}_length"] = np.uint64(feature.max_len + 1)
    return limits
